"""Decoders become diffusion models: they read both sides, know [MASK], and go out and in as other models do."""

import copy
import logging

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, MambaConfig, pipeline
from transformers.dynamic_module_utils import get_class_from_dynamic_module

from tests.models import (
    DECODERS,
    MASK,
    PAD,
    TEXTS,
    decoder_config,
    decoder_tokens,
    make_masked_lm,
    save_decoder,
    text_config,
    wrap,
)
from udm_text import UDMConfig, UDMForMaskedGeneration, UDMGenerationPipeline
from udm_text.decoders import decoder_tokenizer, is_decoder, tokenizer_for
from udm_text.detokenizing import read_typed
from udm_text.framing import tokenizer_fields, tokenizer_frame, tokenizer_separator
from udm_text.hub import save_backbone, write_folder
from udm_text.modeling_udm import language_head
from udm_text.probes import probe_context
from udm_text.training.packing import check_packing


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    root = tmp_path_factory.mktemp("decoders")
    return {family: save_decoder(root / family, family) for family in DECODERS}


def tokenizer_of(path):
    return decoder_tokenizer(AutoTokenizer.from_pretrained(path))


def batch_of(path, texts=TEXTS[:2]):
    found = tokenizer_of(path)(list(texts), return_tensors="pt", padding=True)
    return {"input_ids": found["input_ids"], "attention_mask": found["attention_mask"]}


# --- loading ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", DECODERS)
def test_a_plain_decoder_loads_bidirectional_with_the_logits_of_transformers_own_switch(plain, family):
    model = UDMForMaskedGeneration.from_pretrained(plain[family])
    reference = AutoModelForCausalLM.from_pretrained(plain[family])
    reference.config.is_causal = False
    assert model.config.from_decoder and not model.training and type(model.backbone) is type(reference)
    batch, old = batch_of(plain[family]), reference.config.vocab_size
    batch["attention_mask"] = batch["attention_mask"].masked_fill(batch["input_ids"] >= old, 0)
    batch["input_ids"] = batch["input_ids"].clamp(max=old - 1)
    with torch.no_grad():
        ours, theirs = model(**batch).logits, reference(**batch, use_cache=False).logits
    real = batch["attention_mask"].bool()
    assert torch.allclose(ours[..., :old][real], theirs[real], atol=1e-5, rtol=1e-5)
    assert probe_context(model) == (True, True)


@pytest.mark.parametrize("family", DECODERS)
@pytest.mark.parametrize("tied", (False, True))
def test_the_mask_starts_at_the_mean_of_the_tokens_that_can_be_drawn(family, tied, tmp_path):
    path = save_decoder(tmp_path, family, tie_word_embeddings=tied)
    model = UDMForMaskedGeneration.from_pretrained(path)
    config, old = model.config, AutoModelForCausalLM.from_pretrained(path)
    size, tokenizer = old.config.vocab_size, tokenizer_of(path)
    assert config.vocab_size == len(tokenizer) > size and config.mask_token_id == tokenizer.mask_token_id == size
    ordinary = [i for i in range(size) if i not in tokenizer.all_special_ids]
    assert config.allowed_token_ids().tolist() == ordinary
    for ours, theirs in (
        (model.get_input_embeddings(), old.get_input_embeddings()),
        (model.get_output_embeddings(), old.get_output_embeddings()),
    ):
        assert torch.equal(ours.weight[:size], theirs.weight)
        assert torch.allclose(ours.weight[size], theirs.weight[ordinary].mean(dim=0), atol=1e-6)
    shared = model.get_input_embeddings().weight is model.get_output_embeddings().weight
    assert shared == tied


def test_a_spare_row_of_the_embedding_becomes_the_mask_and_no_other_is_drawn(tmp_path):
    model = UDMForMaskedGeneration.from_pretrained(save_decoder(tmp_path, "qwen3", spare=5))
    tokens, old = len(decoder_tokens("qwen3")), AutoModelForCausalLM.from_pretrained(tmp_path)
    assert model.config.vocab_size == tokens + 5 and model.config.mask_token_id == tokens
    assert set(range(tokens, tokens + 5)) <= set(model.config.special_token_ids)
    ordinary = model.config.allowed_token_ids()
    weight = old.get_input_embeddings().weight
    assert torch.allclose(model.get_input_embeddings().weight[tokens], weight[ordinary].mean(dim=0), atol=1e-6)


@pytest.mark.parametrize("family", DECODERS)
def test_positions_gives_the_rows_of_the_full_logits_of_capped_and_scaled_heads_too(family):
    capped = {"final_logit_softcapping": 2.0} if family.startswith("gemma") else {}
    for config in (decoder_config(family), decoder_config(family, **capped)):
        model = wrap(config)
        ids = torch.randint(5, 24, (3, 9), generator=torch.Generator().manual_seed(1))
        positions = torch.rand(3, 9, generator=torch.Generator().manual_seed(2)) < 0.5
        with torch.no_grad():
            full = model(input_ids=ids).logits
            some = model(input_ids=ids, positions=positions).logits
        assert torch.allclose(some, full[positions], atol=1e-5, rtol=1e-5)
        assert full.abs().max() > 2.0 or capped


@pytest.mark.parametrize("kind, field", [("cohere", "logit_scale"), ("granite", "logits_scaling")])
def test_a_decoder_that_scales_its_logits_is_asked_by_its_own_forward(kind, field):
    model = wrap(decoder_config(kind, **{field: 4.0}))
    assert language_head(model.backbone) is None
    ids = torch.full((1, 6), 7)
    with torch.no_grad():
        hidden = model.backbone.base_model(input_ids=ids).last_hidden_state
        bare, logits = model.backbone.lm_head(hidden), model(input_ids=ids, positions=ids == 7).logits
    factor = 4.0 if kind == "cohere" else 0.25
    assert torch.allclose(logits, factor * bare[0], atol=1e-5)


def test_what_stays_causal_is_refused(tmp_path):
    config = MambaConfig(vocab_size=24, hidden_size=16, num_hidden_layers=2, state_size=4, initializer_range=0.3)
    make_masked_lm(config).save_pretrained(tmp_path)
    said = r"model type 'mamba', whose logits at a position do not depend on all tokens that stand behind it"
    with pytest.raises(ValueError, match=said):
        UDMForMaskedGeneration.from_pretrained(tmp_path, mask_token_id=MASK, pad_token_id=PAD)


def test_padding_takes_no_part_in_a_decoders_rows(plain):
    for family in DECODERS:
        model = UDMForMaskedGeneration.from_pretrained(plain[family])
        batch = batch_of(plain[family])
        with torch.no_grad():
            together = model(**batch).logits
            for i, length in enumerate(batch["attention_mask"].sum(dim=1).tolist()):
                alone = model(input_ids=batch["input_ids"][i : i + 1, :length]).logits[0]
                assert torch.allclose(together[i, :length], alone, atol=1e-4)
        assert not model._padding.depends


def test_a_given_decoder_is_made_bidirectional():
    backbone = make_masked_lm(decoder_config("llama"))
    config = UDMConfig(text_config=backbone.config, mask_token_id=MASK, pad_token_id=PAD)
    assert not hasattr(backbone.config, "is_causal"), "the config of a model is copied"
    assert probe_context(UDMForMaskedGeneration(config, backbone=backbone)) == (True, True)


def test_which_backbones_are_decoders():
    assert all(is_decoder(decoder_config(family)) and is_decoder(family) for family in DECODERS)
    assert not any(map(is_decoder, ("bert", "roberta", "modernbert", "clip_text_model", "no such type")))


# --- the tokenizer ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", DECODERS)
def test_a_tokenizer_gets_mask_padding_and_both_ends_and_keeps_them_when_it_is_saved(family, tmp_path):
    old = decoder_tokens(family)
    before = copy.deepcopy(old)
    made = decoder_tokenizer(old)
    made.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert decoder_tokenizer(made) is made and decoder_tokenizer(again) is again
    ends = [old.bos_token_id or 0] if old.bos_token_id is not None else [old.eos_token_id], [old.eos_token_id]
    for tokenizer in (made, again):
        assert tokenizer.padding_side == "right"
        assert tokenizer_frame(tokenizer) == ends and tokenizer_separator(tokenizer) == ends[1]
        special = {"mask_token_id": tokenizer.mask_token_id, "pad_token_id": tokenizer.pad_token_id}
        assert len({*special.values(), *ends[0], *ends[1]}) == 2 + len({*ends[0], *ends[1]})
        assert {*special.values(), *old.all_special_ids} == set(tokenizer.all_special_ids)
        for text in TEXTS:
            inner = tokenizer(text)["input_ids"][1:-1]
            assert inner == old(text, add_special_tokens=False)["input_ids"] and tokenizer.decode(inner) == text
        blank = tokenizer("the [MASK] sat")["input_ids"]
        assert blank[2] == tokenizer.mask_token_id and tokenizer.decode(blank[3:-1]) == " sat"
        typed = read_typed(tokenizer, "a red dog")
        assert typed is not None
    assert old("a cat")["input_ids"] == before("a cat")["input_ids"] and old.mask_token_id is None
    if family.startswith("gemma"):
        assert made.pad_token_id == old.pad_token_id


def test_reserved_tokens_that_a_tokenizer_does_not_name_are_never_drawn():
    old = decoder_tokens("llama")
    old.backend_tokenizer.add_special_tokens(["<|reserved_0|>", "<|reserved_1|>"])
    reserved = old.convert_tokens_to_ids(["<|reserved_0|>", "<|reserved_1|>"])
    assert not set(reserved) & set(old.all_special_ids)
    assert set(reserved) <= set(tokenizer_fields(decoder_tokenizer(old))["special_token_ids"])


# --- in and out ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", DECODERS)
def test_it_is_saved_and_loaded_bit_for_bit_and_generates_the_same(plain, family, tmp_path):
    model = UDMForMaskedGeneration.from_pretrained(plain[family])
    model.save_pretrained(tmp_path)
    again = UDMForMaskedGeneration.from_pretrained(tmp_path)
    assert again.config.text_config.is_causal is False and type(again.backbone) is type(model.backbone)
    state = again.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    how = {"length": 7, "num_return_sequences": 2, "seed": 3}
    rows = model.generate(**how)
    assert torch.equal(rows, again.generate(**how))
    inner = rows[:, 1:-1]
    assert torch.isin(inner, model.config.allowed_token_ids()).all() and inner.shape == (2, 7)
    assert (
        model.config.prefix_token_ids == rows[0, :1].tolist() and model.config.suffix_token_ids == rows[0, -1:].tolist()
    )


@pytest.mark.parametrize("family", ("llama", "gpt2", "gemma3_text"))
def test_a_pipeline_takes_the_tokenizer_of_the_plain_decoder(plain, family):
    model = UDMForMaskedGeneration.from_pretrained(plain[family])
    own, given = tokenizer_of(plain[family]), AutoTokenizer.from_pretrained(plain[family])
    texts = []
    for tokenizer in (given, own):
        pipe = UDMGenerationPipeline(model=model, tokenizer=tokenizer)
        filled, continued = pipe("the [MASK] sat", seed=1), pipe("a red dog", seed=1, max_new_tokens=3)
        texts.append([filled[0]["generated_text"], continued[0]["generated_text"]])
    assert texts[0] == texts[1] and texts[0][0].startswith("the") and texts[0][0].endswith(" sat")
    assert texts[0][1].startswith("a red dog")
    assert given.mask_token is None or family.startswith("gemma"), "what is given stays as it is"


def test_a_folder_for_the_hub_has_the_models_tokenizer_and_the_pipeline_reads_it(plain, tmp_path):
    model = UDMForMaskedGeneration.from_pretrained(plain["llama"])
    write_folder(model, "user/name", tmp_path / "out")
    pipe = pipeline("udm-generation", model=str(tmp_path / "out"))
    assert pipe.tokenizer.mask_token_id == model.config.mask_token_id
    assert tokenizer_for(model.config, pipe.tokenizer) is pipe.tokenizer
    assert pipe("the [MASK] sat", seed=0)[0]["generated_text"].endswith(" sat")


def test_a_folder_that_carries_its_code_is_a_decoder_without_the_package(plain, tmp_path):
    model = UDMForMaskedGeneration.from_pretrained(plain["llama"])
    write_folder(model, "user/name", tmp_path / "out", include_code=True)
    carried = get_class_from_dynamic_module("modeling_udm.UDMForMaskedGeneration", str(tmp_path / "out"))
    again = carried.from_pretrained(tmp_path / "out")
    assert type(again).__module__.startswith("transformers_modules") and again.config.text_config.is_causal is False
    batch = batch_of(plain["llama"])
    with torch.no_grad():
        assert torch.equal(again(**batch).logits, model(**batch).logits)
    assert torch.equal(again.generate(length=6, seed=0), model.generate(length=6, seed=0))


@pytest.mark.parametrize("family", ("qwen3", "gpt2"))
def test_the_backbone_goes_back_to_transformers_bidirectional_and_comes_in_again_with_its_mask(plain, family, tmp_path):
    model = UDMForMaskedGeneration.from_pretrained(plain[family])
    with torch.no_grad():
        model.get_input_embeddings().weight[model.config.mask_token_id].normal_()
    save_backbone(model, tokenizer_of(plain[family]), tmp_path / "out")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    batch = batch_of(plain[family])
    with torch.no_grad():
        assert torch.equal(again(**batch).logits, model(**batch).logits)
        back = UDMForMaskedGeneration.from_pretrained(tmp_path / "out")
        assert torch.equal(back(**batch).logits, model(**batch).logits)
    state = back.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    again.config.is_causal = True  # causal, where that is wanted
    changed = {**batch, "input_ids": batch["input_ids"].clone()}
    changed["input_ids"][0, 4] = 20
    with torch.no_grad():
        assert torch.equal(again(**changed).logits[0, :4], again(**batch).logits[0, :4])


def test_a_decoder_without_a_head_says_that_the_head_is_new(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    make_masked_lm(decoder_config("llama")).model.save_pretrained(tmp_path)
    UDMForMaskedGeneration.from_pretrained(tmp_path, mask_token_id=MASK, pad_token_id=PAD)
    assert "NEW and random. It is a decoder without a language-model head" in caplog.text


@pytest.mark.parametrize("family", DECODERS)
def test_sdpa_and_eager_agree(plain, family):
    model = UDMForMaskedGeneration.from_pretrained(plain[family], attn_implementation="eager")
    batch = batch_of(plain[family])
    real = batch["attention_mask"].bool()
    with torch.no_grad():
        eager = model(**batch).logits[real]
        if family != "gemma2":  # caps its scores, which sdpa cannot
            model.set_attn_implementation("sdpa")
            assert torch.allclose(model(**batch).logits[real], eager, atol=1e-4, rtol=1e-4)


# --- predictions one position before ---------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ("llama", "gemma2", "gpt2"))
def test_shifted_logits_of_a_causal_decoder_are_its_predictions_of_the_next_token(family):
    config = decoder_config(family)
    model, backbone = wrap(config, shift_logits=True), wrap(config).backbone
    model.backbone.config.is_causal = backbone.config.is_causal = True
    ids = torch.randint(5, 24, (2, 7), generator=torch.Generator().manual_seed(1))
    where = torch.rand(2, 7, generator=torch.Generator().manual_seed(2)) < 0.6
    where[0, 0] = True
    with torch.no_grad():
        following, whole = backbone(input_ids=ids, use_cache=False).logits, model(input_ids=ids).logits
        some = model(input_ids=ids, positions=where).logits
        pair = model(input_ids=ids, positions=where.nonzero(as_tuple=True)).logits
    assert torch.allclose(whole[:, 1:], following[:, :-1], atol=1e-5)
    assert torch.allclose(whole[:, 0], following[:, 0], atol=1e-5), "the first position is read at itself"
    assert torch.allclose(some, whole[where], atol=1e-5) and torch.equal(some, pair)


def test_a_shifted_model_is_saved_as_one_and_its_loss_is_of_the_shifted_logits(tmp_path):
    model = wrap(decoder_config("llama"), shift_logits=True)
    model.save_pretrained(tmp_path)
    again = UDMForMaskedGeneration.from_pretrained(tmp_path)
    assert again.config.shift_logits
    ids, labels = torch.tensor([[2, 7, MASK, 9, 3]]), torch.tensor([[-100, -100, 8, -100, -100]])
    with torch.no_grad():
        scores = model(input_ids=ids).logits[0, 2].masked_fill(model.config.forbidden_tokens(), -torch.inf)
        loss = again(input_ids=ids, labels=labels, positions=ids == MASK).loss
    assert torch.allclose(loss, -scores.log_softmax(-1)[8], atol=1e-5)


def test_where_predictions_cannot_be_shifted_it_is_said(tmp_path):
    with pytest.raises(ValueError, match="shift_logits=True reads .* model type 'bert' is a masked LM"):
        wrap(text_config("bert"), shift_logits=True)
    with pytest.raises(ValueError, match=r"shift_logits=True goes with processes .* got process 'delete'"):
        wrap(decoder_config("llama"), "delete", shift_logits=True)
    model = wrap(decoder_config("llama"), shift_logits=True)
    with pytest.raises(ValueError, match="shift_logits of this one is True"):
        check_packing(model, 16)
    model.save_pretrained(tmp_path)
    assert not UDMForMaskedGeneration.from_pretrained(tmp_path, process="delete").config.shift_logits
    assert UDMForMaskedGeneration.from_pretrained(tmp_path, process="substitute").config.shift_logits
