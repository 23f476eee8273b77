"""What whoever knows transformers expects of a model: loading, saving, resizing, quantising, offloading, AutoModel."""

import copy
import json

import pytest
import torch
from transformers import AutoModel, AutoModelForMaskedLM, BertModel, MobileBertForMaskedLM
from transformers.utils import logging

from tests.interop import FIELDS, SHORT, tiny_config, tiny_masked_lm, wrapped
from tests.models import VOCAB, decoder_config, make_masked_lm, make_rows, make_udm, wake_time
from udm_text import UDMConfig, UDMForMaskedGeneration
from udm_text.fastpath import known_body
from udm_text.training import UDMTrainer, UDMTrainingArguments

OWN_CODE = """
from transformers import BertConfig, BertForMaskedLM


class OwnConfig(BertConfig):
    model_type = "{kind}"


class OwnForMaskedLM(BertForMaskedLM):
    config_class = OwnConfig
"""


def test_an_attribute_that_is_set_on_a_config_survives_a_round_trip(tmp_path):
    model = make_udm()
    model.config.tasks = {"fill": 1}
    model.save_pretrained(tmp_path)
    for config in (UDMConfig.from_pretrained(tmp_path), UDMForMaskedGeneration.from_pretrained(tmp_path).config):
        assert config.tasks == {"fill": 1} and config.to_dict()["tasks"] == {"fill": 1}
    with pytest.raises(ValueError, match="unknown argument 'tasks'"):
        UDMConfig.from_pretrained(tmp_path, tasks=2)


@pytest.mark.parametrize("ours", [True, False], ids=["ours", "plain"])
def test_fields_of_the_text_config_are_merged_with_those_that_are_stored(ours, tmp_path):
    (make_udm() if ours else tiny_masked_lm("bert")).save_pretrained(tmp_path)
    own = {} if ours else FIELDS
    model = UDMForMaskedGeneration.from_pretrained(tmp_path, text_config={"hidden_dropout_prob": 0.5}, **own)
    assert (model.config.text_config.hidden_dropout_prob, model.config.text_config.hidden_size) == (0.5, 32)
    assert model.backbone.config is model.config.text_config
    assert {module.p for module in model.modules() if isinstance(module, torch.nn.Dropout)} >= {0.5}


def test_loading_info_names_the_parts_that_are_new(tmp_path):
    tiny_masked_lm("bert").save_pretrained(tmp_path / "plain")
    make_udm().save_pretrained(tmp_path / "ours")
    parts = {f"time_embedding.{layer}.{part}" for layer in ("hidden", "output") for part in ("weight", "bias")}
    for name, own in (("plain", FIELDS), ("ours", {})):
        how = {"process": "substitute", "output_loading_info": True, **own}
        assert UDMForMaskedGeneration.from_pretrained(tmp_path / name, **how)[1]["missing_keys"] == parts
    info = UDMForMaskedGeneration.from_pretrained(tmp_path / "plain", output_loading_info=True, **FIELDS)[1]
    assert not info["missing_keys"]


def test_resizing_goes_through_the_backbones_own_method(tmp_path):
    """MobileBERT's also widens the part of its head that is not tied; NeoMME has a second embedding."""
    for kind in ("mobilebert", "neomme", "distilbert"):
        model = wrapped(tiny_masked_lm(kind), "substitute")
        embedding = model.resize_token_embeddings(VOCAB + 3, pad_to_multiple_of=8)
        assert embedding is model.get_input_embeddings() and model.config.vocab_size == len(embedding.weight) == 32
        assert {27, 28, 31} <= set(model.config.special_token_ids) and 26 not in model.config.special_token_ids
        model.save_pretrained(tmp_path / kind)
        again = UDMForMaskedGeneration.from_pretrained(tmp_path / kind).eval()
        with torch.no_grad():
            logits = model(input_ids=SHORT, t=torch.tensor([2])).logits
            assert logits.shape[-1] == 32 and torch.equal(again(input_ids=SHORT, t=torch.tensor([2])).logits, logits)
    assert isinstance(tiny_masked_lm("mobilebert"), MobileBertForMaskedLM)


class Weight(torch.Tensor):
    """What libraries of quantisation put in the place of a weight: a tensor of another class."""


def test_weights_of_another_class_take_the_plain_path():
    model = make_udm()
    assert known_body(model) is not None
    layer = model.backbone.bert.encoder.layer[0].intermediate.dense
    layer.weight = torch.nn.Parameter(layer.weight.detach().as_subclass(Weight), requires_grad=False)
    assert type(layer.weight) is not torch.nn.Parameter and known_body(model) is None
    assert torch.equal(model.generate(length=4, seed=0), make_udm().generate(length=4, seed=0))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("process", ["mask", "substitute"])
def test_layers_quantised_by_torch_generate(process):
    model = wake_time(wrapped(tiny_masked_lm("distilbert"), process))
    quantised = torch.ao.quantization.quantize_dynamic(copy.deepcopy(model), {torch.nn.Linear}, dtype=torch.qint8)
    rows = quantised.generate(length=6, num_return_sequences=3, seed=0)
    assert rows.shape == (3, 8) and set(rows[:, 1:-1].flatten().tolist()).isdisjoint(model.config.special_token_ids)


@pytest.mark.parametrize("process", ["mask", "substitute"])
def test_a_model_that_is_offloaded_to_a_disk_writes_the_same(process, tmp_path):
    model = make_udm(process)
    model.save_pretrained(tmp_path / "model")
    away = UDMForMaskedGeneration.from_pretrained(
        tmp_path / "model", device_map={"": "disk"}, offload_folder=str(tmp_path / "away")
    )
    assert away.get_input_embeddings().weight.is_meta
    how = {"length": 5, "num_return_sequences": 2, "seed": 0}
    assert torch.equal(away.generate(**how), model.generate(**how))


@pytest.mark.parametrize("kind", ["mobilebert", "neomme"])
def test_a_backbone_that_reads_weights_which_nobody_fetches_is_refused_on_a_disk(kind, tmp_path):
    """transformers' own class gives what lies in memory, and says nothing."""
    tiny_masked_lm(kind).save_pretrained(tmp_path / "plain")
    wrapped(tiny_masked_lm(kind), "substitute").save_pretrained(tmp_path / "model")
    how = {"device_map": {"": "disk"}, "offload_folder": str(tmp_path / "away")}
    for name, own in (("plain", FIELDS), ("model", {})):
        with pytest.raises(ValueError, match=f"model type '{kind}', which reads weights of modules that it does not"):
            UDMForMaskedGeneration.from_pretrained(tmp_path / name, **how, **own)


def test_what_a_plain_model_on_a_disk_is_given_besides_is_there_or_it_says_why_not(tmp_path):
    how = {"device_map": {"": "disk"}, "offload_folder": str(tmp_path / "away"), **FIELDS}
    tiny_masked_lm("bert").save_pretrained(tmp_path / "bert")
    away = UDMForMaskedGeneration.from_pretrained(tmp_path / "bert", process="substitute", **how)
    assert not away.time_embedding.hidden.weight.is_meta and away.get_input_embeddings().weight.is_meta
    with torch.no_grad():
        plain = tiny_masked_lm("bert")(input_ids=SHORT).logits
        torch.testing.assert_close(away(input_ids=SHORT, t=torch.tensor([2])).logits, plain)
    make_masked_lm(decoder_config("llama")).save_pretrained(tmp_path / "llama")
    with pytest.raises(
        ValueError, match=r"no embedding of rows \[4\] yet, and device_map .* load it without device_map"
    ):
        UDMForMaskedGeneration.from_pretrained(tmp_path / "llama", **how)


@pytest.mark.parametrize("kind", ["funnel", "xlm"])
def test_gradient_checkpointing_is_refused_by_the_type_of_the_backbone(kind):
    model = wrapped(tiny_masked_lm(kind))
    with pytest.raises(ValueError, match=f"gradient_checkpointing needs a backbone .* model type '{kind}' has none"):
        model.activation_checkpointing_enable()
    assert make_udm().supports_gradient_checkpointing and not model.supports_gradient_checkpointing


def test_a_trainer_makes_its_model_by_model_init(tmp_path):
    made = []

    def model_init():
        made.append(make_udm("substitute"))
        return made[-1]

    arguments = UDMTrainingArguments(str(tmp_path), max_steps=2, use_cpu=True, report_to="none", save_strategy="no")
    trainer = UDMTrainer(None, arguments, model_init=model_init, train_dataset=make_rows(8))
    trainer.train()
    assert len(made) == 2 and trainer.model is made[1] and trainer.objective.config is made[1].config
    assert not torch.equal(
        trainer.model.get_input_embeddings().weight,
        make_udm("substitute").backbone.bert.embeddings.word_embeddings.weight,
    )
    with pytest.raises(RuntimeError, match="requires either a `model` or `model_init`"):
        UDMTrainer(None, arguments)


def test_auto_model_gives_the_body_of_the_backbone(tmp_path, caplog):
    for process in ("mask", "substitute"):
        model = make_udm(process)
        model.save_pretrained(tmp_path / process)
        logging.get_logger().addHandler(caplog.handler)
        caplog.clear()
        try:
            body = AutoModel.from_pretrained(tmp_path / process).eval()
        finally:
            logging.get_logger().removeHandler(caplog.handler)
        assert type(body) is BertModel and ("is not told of any" in caplog.text) == (process == "substitute")
        with torch.no_grad():
            expected = model.backbone.bert(input_ids=SHORT).last_hidden_state
            assert torch.equal(body(input_ids=SHORT).last_hidden_state, expected)
    assert type(AutoModel.from_config(make_udm().config)) is BertModel


@pytest.mark.parametrize("kind", ["own_bert", "bert"])
def test_a_network_with_code_of_its_own_is_refused_before_it_is_trained(kind, tmp_path):
    tiny_masked_lm("bert").save_pretrained(tmp_path)
    (tmp_path / "modeling_own.py").write_text(OWN_CODE.format(kind=kind))
    config = json.loads((tmp_path / "config.json").read_text()) | {"model_type": kind}
    config["auto_map"] = {"AutoConfig": "modeling_own.OwnConfig", "AutoModelForMaskedLM": "modeling_own.OwnForMaskedLM"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="a network by code of its own .*refused before it is trained") as error:
        UDMForMaskedGeneration.from_pretrained(tmp_path, trust_remote_code=True, **FIELDS)
    assert len(str(error.value)) < 700
    backbone = AutoModelForMaskedLM.from_pretrained(tmp_path, trust_remote_code=True)
    assert "transformers_modules" in type(backbone).__module__
    model = wrapped(backbone)
    with torch.no_grad():
        assert torch.equal(model(input_ids=SHORT).logits, backbone(input_ids=SHORT).logits)
    arguments = UDMTrainingArguments(str(tmp_path / "run"), use_cpu=True, report_to="none")
    for trained_or_saved in (lambda: UDMTrainer(model, arguments), lambda: model.save_pretrained(tmp_path / "saved")):
        with pytest.raises(ValueError, match="the backbone is a network by code of its own"):
            trained_or_saved()
    assert not (tmp_path / "saved").exists()


@pytest.mark.parametrize("kind", ["esm", "mpnet", "roberta"])
def test_the_longest_row_is_what_positions_that_are_learnt_leave(kind):
    how = {"position_embedding_type": "absolute"} if kind == "esm" else {}
    model = wrapped(tiny_masked_lm(kind, pad_token_id=1, **how), pad_token_id=1)
    longest = model.config.max_row_length
    assert longest == tiny_config(kind).max_position_embeddings - 2
    with torch.no_grad():
        model(input_ids=torch.full((1, longest), 7))
        with pytest.raises((IndexError, RuntimeError)):
            model(input_ids=torch.full((1, longest + 1), 7))
