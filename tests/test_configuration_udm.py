"""UDMConfig: what it takes from a plain checkpoint, what it refuses, what it survives. UDMGenerationConfig likewise."""

import json

import pytest
import torch
from tokenizers import Tokenizer, models, processors
from transformers import AutoConfig, BartConfig, BertConfig, GPT2Config, PreTrainedTokenizerFast, ViTConfig

from tests.models import FAMILIES, MASK, MAX_POSITIONS, PAD, make_masked_lm, make_tokenizer, save_masked_lm, text_config
from udm_text import UDMConfig, UDMGenerationConfig
from udm_text.configuration_udm import CONFIG_VERSION
from udm_text.framing import tokenizer_fields, tokenizer_frame


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    root = tmp_path_factory.mktemp("plain")
    return {family: save_masked_lm(root / family, family) for family in FAMILIES}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_plain_masked_lm_directory_is_wrapped_with_its_tokenizers_special_ids(plain, family):
    config = UDMConfig.from_pretrained(plain[family])
    tokenizer = make_tokenizer(family)
    assert config.text_config.model_type == family
    assert (config.mask_token_id, config.pad_token_id) == (tokenizer.mask_token_id, tokenizer.pad_token_id)
    assert config.special_token_ids == sorted(tokenizer.all_special_ids)
    assert config.prefix_token_ids == [tokenizer.cls_token_id]
    assert config.suffix_token_ids == [tokenizer.sep_token_id]
    allowed = config.allowed_token_ids()
    assert not set(allowed.tolist()) & set(config.special_token_ids)
    assert len(allowed) + int(config.forbidden_tokens().sum()) == config.vocab_size == len(tokenizer)


def test_a_directory_without_tokenizer_gives_a_config_without_mask_token_and_says_so_when_it_is_needed(tmp_path):
    text_config().save_pretrained(tmp_path)
    config = UDMConfig.from_pretrained(tmp_path)
    assert config.mask_token_id is None
    with pytest.raises(ValueError, match="mask_token_id is not set"):
        config.build_process()
    assert UDMConfig.from_pretrained(tmp_path, mask_token_id=MASK).build_process().mask_token_id == MASK


@pytest.mark.parametrize("family", FAMILIES)
def test_save_and_load_keep_every_field(plain, family, tmp_path):
    config = UDMConfig.from_pretrained(plain[family], process="substitute", kernel="hamming", length_counts=[0, 3, 4])
    config.save_pretrained(tmp_path)
    for again in (UDMConfig.from_pretrained(tmp_path), AutoConfig.from_pretrained(tmp_path)):
        assert isinstance(again, UDMConfig)
        assert type(again.text_config) is type(config.text_config)
        ours, theirs = again.to_dict(), config.to_dict()
        changing = ("_name_or_path", "transformers_version", "text_config")
        assert {k: v for k, v in ours.items() if k not in changing} == {
            k: v for k, v in theirs.items() if k not in changing
        }


def test_time_conditioning_is_on_for_substitute_and_off_for_masks_unless_told():
    for process, default in (("mask", False), ("substitute", True), ("uniform", True)):
        assert UDMConfig(text_config=text_config(), process=process, mask_token_id=MASK).time_conditioning is default
        told = UDMConfig(text_config=text_config(), process=process, mask_token_id=MASK, time_conditioning=not default)
        assert told.time_conditioning is not default


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"proces": "mask"}, "unknown argument 'proces'"),
        ({"process": "noise"}, "process must be 'mask', 'substitute', 'uniform', 'delete' or 'edit', got 'noise'"),
        ({"kernel": "best"}, "kernel must be 'site', 'hamming' or 'free', got 'best'"),
        ({"mask_token_id": 24}, r"mask_token_id must lie in \[0, 24\)"),
        ({"mask_token_id": -1}, r"mask_token_id must lie in \[0, 24\)"),
        ({"special_token_ids": [30]}, r"special_token_ids must lie in \[0, 24\)"),
        ({"length_counts": [5]}, "length_counts must hold"),
        ({"length_counts": [0, -1, 3]}, "length_counts must hold"),
        ({"length_counts": []}, "length_counts must hold"),
        ({"udm_version": CONFIG_VERSION + 1}, "written by a newer udm-text"),
    ],
)
def test_a_field_that_cannot_work_is_refused_by_name(fields, message):
    with pytest.raises(ValueError, match=message):
        UDMConfig(**{"text_config": text_config(), "mask_token_id": MASK, **fields})


def test_a_field_given_when_loading_is_refused_alike(plain):
    with pytest.raises(ValueError, match="unknown argument 'kernell'"):
        UDMConfig.from_pretrained(plain["bert"], kernell="site")
    with pytest.raises(ValueError, match="kernel must be"):
        UDMConfig.from_pretrained(plain["bert"], kernel="best")
    config = UDMConfig.from_pretrained(plain["bert"], process="substitute", local_files_only=True)
    assert config.time_conditioning


@pytest.mark.parametrize("other", [BartConfig(), ViTConfig()])
def test_a_backbone_that_is_no_encoder_of_tokens_is_refused(other):
    with pytest.raises(ValueError, match=f"text_config .* got model type '{other.model_type}'"):
        UDMConfig(text_config=other)


def test_a_config_file_that_names_no_model_type_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"hidden_size": 8}))
    with pytest.raises(ValueError, match="names no model_type"):
        UDMConfig.from_pretrained(tmp_path)


def test_a_vocabulary_of_special_tokens_and_one_of_a_single_token_are_refused():
    everything = UDMConfig(text_config=text_config(), mask_token_id=MASK, special_token_ids=list(range(24)))
    with pytest.raises(ValueError, match="special_token_ids holds the whole vocabulary"):
        everything.build_process()
    single = UDMConfig(text_config=text_config(), process="substitute", special_token_ids=list(range(23)))
    with pytest.raises(ValueError, match="at least 2 tokens"):
        single.build_process()


def test_the_entry_a_registered_pipeline_leaves_in_a_config_is_dropped():
    assert not hasattr(
        UDMConfig(text_config=text_config(), custom_pipelines={"udm-generation": {}}), "custom_pipelines"
    )


def test_editable_leaves_out_special_tokens_and_padding():
    config = UDMConfig(text_config=text_config(), mask_token_id=MASK, pad_token_id=PAD, special_token_ids=[1, 2, 3])
    ids = torch.tensor([[2, 9, 4, 1, 8, 3, 0, 7]])
    assert config.editable(ids)[0].tolist() == [False, True, False, False, True, False, False, True]
    assert (
        config.editable(ids, torch.tensor([[1] * 7 + [0]]))[0].tolist()
        == [False, True] + [False] * 2 + [True] + [False] * 3
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_max_row_length_is_the_longest_row_that_the_backbone_reads(family):
    config = UDMConfig(text_config=text_config(family, pad_token_id=1))
    assert config.max_row_length == MAX_POSITIONS
    backbone = make_masked_lm(config.text_config)
    row = torch.full((1, MAX_POSITIONS), 9)
    assert backbone(input_ids=row).logits.shape == (1, MAX_POSITIONS, 24)
    if family not in ("modernbert", "nomic_bert"):  # rotary positions do not end
        with pytest.raises((IndexError, RuntimeError)):
            backbone(input_ids=torch.full((1, MAX_POSITIONS + 1), 9))


def test_the_law_of_lengths_is_the_histogram_and_one_row_more_spread_evenly():
    config = UDMConfig(text_config=text_config(), length_counts=[0, 0, 6, 3])
    law = config.length_probabilities()
    expected = torch.tensor([0.0, 0, 6, 3, 0, 0, 0], dtype=torch.float64)
    expected[1:] += 1 / 6
    assert torch.allclose(law, expected / 10, atol=1e-15, rtol=0)
    assert UDMConfig(text_config=text_config()).length_probabilities() is None


def test_no_length_beyond_what_the_backbone_reads_has_a_chance():
    counts = [0] * 30 + [5]
    config = UDMConfig(text_config=text_config(), length_counts=counts, prefix_token_ids=[2], suffix_token_ids=[3])
    law = config.length_probabilities()
    assert len(law) - 1 == MAX_POSITIONS - 2
    assert float(law.sum()) == pytest.approx(1.0, abs=1e-14)
    assert bool((law[1:] > 0).all())


def test_tokenizer_fields_counts_rows_beyond_the_tokenizer_as_special():
    tokenizer = make_tokenizer("bert")
    fields = tokenizer_fields(tokenizer, len(tokenizer) + 3)
    assert fields["special_token_ids"][-3:] == [len(tokenizer) + i for i in range(3)]


def test_the_frame_of_a_row_is_found_for_any_tokenizer():
    for family in FAMILIES:
        tokenizer = make_tokenizer(family)
        assert tokenizer_frame(tokenizer) == ([tokenizer.cls_token_id], [tokenizer.sep_token_id])
    bare = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"x": 0, "?": 1}, unk_token="?")))
    assert tokenizer_frame(bare) == ([], [])
    # without an unknown token "a" is nothing at all, so that it cannot show what stands around it
    core = Tokenizer(models.BPE({"[CLS]": 0, "[SEP]": 1, "α": 2, "β": 3}, []))
    core.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 0), ("[SEP]", 1)]
    )
    greek = PreTrainedTokenizerFast(tokenizer_object=core, cls_token="[CLS]", sep_token="[SEP]")
    assert greek("a", add_special_tokens=False)["input_ids"] == []
    assert tokenizer_frame(greek) == ([0], [1])


# ---- generation


def test_generation_settings_round_trip_through_generation_config_json(tmp_path):
    config = UDMGenerationConfig(
        num_steps=7, order="margin", churn=0.25, temperature=0.0, top_p=0.9, seed=3, max_edits=2
    )
    config.save_pretrained(tmp_path)
    again = UDMGenerationConfig.from_pretrained(tmp_path)
    assert again == config
    stored = json.loads((tmp_path / "generation_config.json").read_text())
    assert stored["temperature"] == 0.0 and "kernel" not in stored
    assert UDMGenerationConfig.from_dict(config.to_dict()) == config
    assert UDMGenerationConfig.from_model_config(BertConfig()) == UDMGenerationConfig()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_stepz": 3}, "unknown generation argument 'num_stepz'"),
        ({"do_sample": True}, "unknown generation argument 'do_sample'"),
        ({"num_steps": 0}, "num_steps must be a positive integer"),
        ({"num_steps": 2.5}, "num_steps must be"),
        ({"num_steps": True}, "num_steps must be"),
        ({"length": -1}, "length must be"),
        ({"max_new_tokens": 0}, "max_new_tokens must be"),
        ({"max_edits": 0}, "max_edits must be"),
        ({"num_return_sequences": 0}, "num_return_sequences must be a positive integer, got 0"),
        ({"num_return_sequences": None}, "num_return_sequences must be"),
        (
            {"order": "best"},
            "order must be 'random', 'left_to_right', 'confidence', 'margin' or 'entropy', a Skeleton, or a function "
            "of two arguments, got 'best'",
        ),
        ({"kernel": "best"}, "kernel must be 'site', 'hamming' or 'free'"),
        ({"churn": 1.5}, r"churn must be a number in \[0, 1\]"),
        ({"churn": None}, "churn must be"),
        ({"temperature": -0.1}, "temperature must be a number that is at least 0"),
        ({"temperature": float("nan")}, "temperature must be"),
        ({"temperature": float("inf")}, "temperature must be"),
        ({"top_k": 0}, "top_k must be"),
        ({"top_p": 0.0}, r"top_p must be a number in \(0, 1\]"),
        ({"top_p": 1.1}, "top_p must be"),
        ({"seed": 0.5}, "seed must be an integer"),
    ],
)
def test_a_generation_setting_that_cannot_work_is_refused_by_name(settings, message):
    with pytest.raises(ValueError, match=message):
        UDMGenerationConfig(**settings)


def test_an_update_is_validated_too():
    config = UDMGenerationConfig()
    with pytest.raises(ValueError, match="temperature"):
        config.update(temperature=-1)


def test_a_decoder_is_bidirectional_in_the_config_of_a_model_alone(tmp_path, plain):
    decoder = GPT2Config(vocab_size=50)
    decoder.save_pretrained(tmp_path / "plain")
    for config in (UDMConfig.from_pretrained(tmp_path / "plain"), UDMConfig(text_config=decoder)):
        assert config.from_decoder and config.text_config.model_type == "gpt2"
        config.save_pretrained(tmp_path / "ours")
        assert UDMConfig.from_pretrained(tmp_path / "ours").text_config.is_causal is False
    assert not hasattr(decoder, "is_causal")
    encoder = UDMConfig.from_pretrained(plain["bert"])
    assert not encoder.from_decoder and not hasattr(encoder.text_config, "is_causal")
