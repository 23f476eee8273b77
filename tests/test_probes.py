"""The probe finds out on which sides a network reads, and leaves the model as it was."""

import pytest
import torch
from transformers import BertConfig

from tests.models import FAMILIES, PROCESSES, decoder_config, make_udm, wrap
from udm_text.probes import probe_context


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("process", PROCESSES)
def test_a_masked_lm_reads_both_sides(family, process):
    assert probe_context(make_udm(process, family=family)) == (True, True)


def causal():
    model = wrap(decoder_config("gpt2"))
    model.backbone.config.is_causal = True
    return model


def test_a_causal_decoder_is_found_to_read_what_stands_before_alone():
    assert probe_context(causal()) == (True, False)


def test_one_way_of_attention_that_is_causal_is_enough_to_be_found():
    model = wrap(decoder_config("gpt2"))
    own = model.backbone.base_model.forward

    def causal_where_eager(*args, **how):
        model.backbone.config.is_causal = model.backbone.config._attn_implementation == "eager"
        return own(*args, **how)

    model.backbone.base_model.forward = causal_where_eager
    assert probe_context(model) == (True, False)


def test_the_model_is_left_as_it_was():
    model = make_udm("mask", dropout=0.5).train()
    model.set_attn_implementation("eager")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert probe_context(model) == probe_context(model), "dropout is off meanwhile"
    assert model.training and model.backbone.training
    assert model.config._attn_implementation == model.backbone.config._attn_implementation == "eager"
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_weights_that_fsdp_has_gathered_are_spread_out_again_before_an_optimiser_is_made_of_them():
    model, spread = make_udm(family="llama"), []
    model.reshard = lambda: spread.append(model.training)
    model.train()
    probe_context(model)
    assert spread and all(spread)


def test_nothing_is_told_of_logits_that_say_nothing():
    broken, silent = make_udm("mask"), make_udm("mask")
    with torch.no_grad():
        next(broken.parameters()).fill_(float("nan"))
        for weight in silent.parameters():
            weight.zero_()
    assert probe_context(broken) is None and probe_context(silent) is None
    with torch.device("meta"):
        assert probe_context(wrap(BertConfig(vocab_size=24, hidden_size=8, num_attention_heads=1))) is None


def test_bfloat16_is_told_by_its_own_rounding():
    found = probe_context(make_udm("mask").to(torch.bfloat16))
    assert found == (True, True)
    assert probe_context(causal().to(torch.bfloat16)) == (True, False)
