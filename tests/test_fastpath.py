"""The fast path gives the logits of the full forward, and knows where it must not try."""

import copy

import pytest
import torch
from torch import nn
from transformers import AutoModelForMaskedLM, DistilBertConfig, ElectraConfig

from udm_text import UDMConfig, UDMForMaskedGeneration, fastpath
from udm_text.fastpath import FastForward, plain_path, round_up

from .models import CLS, FAMILIES, MASK, PAD, SEP, make_masked_lm, make_udm, text_config

ROWS = torch.tensor(
    [
        [CLS, 7, 8, MASK, MASK, MASK, SEP, PAD, PAD, PAD, PAD, PAD],
        [CLS, MASK, MASK, MASK, 9, 9, 9, MASK, MASK, MASK, MASK, SEP],
        [CLS, MASK, SEP] + [PAD] * 9,
        [CLS, 5, 6, 7, 8, MASK, MASK, MASK, MASK, SEP, PAD, PAD],
    ]
)
HOWS = (
    {},
    {"num_steps": 3},
    {"order": "confidence"},
    {"churn": 0.5, "num_steps": 6},
    {"order": "left_to_right", "temperature": 0.7, "top_k": 5},
)
KERNELS = ("site", "hamming", "free")


@pytest.fixture
def errors(monkeypatch):
    """The largest difference of each call's logits from those of the full forward of the backbone."""
    found: list[float] = []
    fast = FastForward.__call__

    def checked(self, xt, t, positions):
        logits = fast(self, xt, t, positions)
        assert logits is not None
        mask = torch.ones_like(xt) if self.attended is None else self.attended.long()
        whole = self.model(input_ids=xt, attention_mask=mask, t=t, num_editable=self.lengths).logits
        assert not logits.isnan().any()
        found.append(float((logits - whole[positions]).abs().max()))
        return logits

    monkeypatch.setattr(FastForward, "__call__", checked)
    return found


def declines(model) -> bool:
    fast = FastForward(model, torch.ones(2, 6, dtype=torch.bool), torch.full((2,), 6))
    rows = torch.full((2, 6), 7)
    with torch.no_grad():
        return fast(rows, torch.ones(2), rows == 7) is None


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("time", (False, True))
@pytest.mark.parametrize("dtype, bound", ((torch.float32, 1e-4), (torch.float64, 1e-10)))
def test_logits_are_those_of_the_full_forward_on_whole_trajectories(family, time, dtype, bound, errors):
    model = make_udm(family=family, time_conditioning=time).to(dtype)
    for how in HOWS:
        model.generate(ROWS, seed=1, **how)
        model.generate(length=9, num_return_sequences=3, seed=1, **how)
    repairs = make_udm("substitute", family=family, time_conditioning=time).to(dtype)
    for kernel in KERNELS:
        repairs.generate(ROWS, seed=1, kernel=kernel)
    # ModernBERT turns queries and keys in float32 whatever its dtype
    assert len(errors) > 50 and max(errors) <= (1e-5 if family == "modernbert" and dtype == torch.float64 else bound)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("time", (False, True))
def test_texts_are_the_same_on_both_paths(family, time):
    for process, hows in (("mask", HOWS), ("substitute", [{"kernel": kernel} for kernel in KERNELS])):
        model = make_udm(process, family=family, time_conditioning=time).double()
        for how in hows:
            rows = model.generate(ROWS, seed=3, **how)
            with plain_path():
                assert torch.equal(rows, model.generate(ROWS, seed=3, **how))


@pytest.mark.parametrize("family", FAMILIES)
def test_sub_batches_and_eager_attention(family, errors, monkeypatch):
    monkeypatch.setattr(fastpath, "_CHUNK_TOKENS", 24)  # two rows at a time
    model = make_udm(family=family)
    model.generate(ROWS, seed=1)
    model.set_attn_implementation("eager")
    model.generate(ROWS, seed=1)
    model.generate(length=12, num_return_sequences=5, seed=1, num_steps=4)
    assert max(errors) < 1e-4


def test_bfloat16_follows_its_own_full_forward(errors):
    for family in FAMILIES:
        model = make_udm(family=family).to(torch.bfloat16)
        model.generate(ROWS, seed=1)
    assert max(errors) < 0.25  # some units in the last place of logits of about 10


def test_a_long_head_is_packed_and_exact(errors):
    config = text_config("bert", vocab_size=3000)
    own = UDMConfig(text_config=config, mask_token_id=MASK, pad_token_id=PAD)
    UDMForMaskedGeneration(own, backbone=make_masked_lm(config)).eval().generate(ROWS, seed=1)
    assert max(errors) < 1e-4


def test_weights_changed_between_and_within_calls_are_seen(errors):
    model = make_udm(length_counts=[0, 1])

    def shake(*_):
        with torch.no_grad():
            for weight in model.parameters():
                weight.add_(0.1 * torch.randn_like(weight))

    model.generate(ROWS, seed=1)
    shake()
    model.generate(ROWS, seed=1)
    model.generate(ROWS, seed=1, callback_on_step_end=shake)
    assert max(errors) < 1e-4


def test_calls_in_any_order_and_on_any_text_are_exact():
    torch.manual_seed(0)
    for family in FAMILIES:
        model = make_udm(family=family)
        attended = torch.arange(10) < torch.tensor([10, 4, 7])[:, None]
        fast = FastForward(model, attended, torch.tensor([10, 4, 7]))
        for _ in range(12):
            xt = torch.randint(5, 24, attended.shape).masked_fill(~attended, PAD)
            positions = (torch.rand(attended.shape) < 0.3) & attended & (torch.rand(3, 1) < 0.7)
            if not positions.any():
                continue
            with torch.no_grad():
                logits = fast(xt, torch.ones(3), positions)
                whole = model(input_ids=xt, attention_mask=attended.long()).logits
            assert (logits - whole[positions]).abs().max() < 1e-4


def test_no_state_is_left_in_the_model():
    model = make_udm()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    names = [set(vars(module)) for module in model.modules()]
    first = model.generate(ROWS, seed=1)
    model.generate(length=20, seed=2)
    assert torch.equal(first, model.generate(ROWS, seed=1))
    assert names == [set(vars(module)) for module in model.modules()]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(weight.grad is None and weight.requires_grad for weight in model.parameters())
    model.train()
    model(input_ids=ROWS, t=torch.ones(4), labels=ROWS).loss.backward()
    assert all(layer.attention.self.query.weight.grad is not None for layer in model.backbone.bert.encoder.layer)


def test_only_the_rows_that_are_asked_for_reach_the_head():
    model = make_udm()
    seen: list[int] = []
    head = model.backbone.cls.predictions.transform
    head.dense.register_forward_pre_hook(lambda module, args: seen.append(args[0].numel() // args[0].shape[-1]))
    model.generate(length=20, num_return_sequences=8, seed=0)
    assert len(seen) == 20 and max(seen) == 8
    assert [round_up(n) for n in (1, 8, 9, 64, 65)] == [1, 8, 16, 64, 128]


class Adapted(nn.Linear):
    """What a library of adapters puts in the place of a linear map."""

    def forward(self, x):
        return super().forward(x) + 1


def last_attention(model) -> tuple[nn.Module, str]:
    """The last layer's attention, and the name of its first projection."""
    body = model.backbone.base_model
    return (
        (body.layers[-1].attn, "Wqkv") if hasattr(body, "layers") else (body.encoder.layer[-1].attention.self, "query")
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_known_backbones_take_it_unless_something_was_changed(family):
    model = make_udm(family=family)
    assert not declines(model)
    with plain_path():
        assert declines(model)
    attention, name = last_attention(model)
    handle = attention.register_forward_hook(lambda *_: None)
    assert declines(model)
    handle.remove()
    adapted = copy.deepcopy(model)
    attention, name = last_attention(adapted)
    setattr(attention, name, Adapted(32, attention.get_submodule(name).out_features))
    assert declines(adapted)
    model.backbone(input_ids=ROWS, output_hidden_states=True)  # leaves hooks of transformers behind, which only record
    assert not declines(model)
    model.set_attn_implementation("eager")
    model.backbone.base_model.config.output_attentions = True
    assert declines(model)


def test_training_mode_gradients_and_autocast_decline():
    model = make_udm()
    fast = FastForward(model, torch.ones(1, 4, dtype=torch.bool), torch.tensor([4]))
    rows, t = torch.full((1, 4), 7), torch.ones(1)
    assert fast(rows, t, rows == 7) is None  # gradients are on
    with torch.no_grad():
        assert fast(rows.repeat(2, 1), t, rows.repeat(2, 1) == 7) is None
        with torch.autocast("cpu", torch.bfloat16):
            assert fast(rows, t, rows == 7) is None
        assert fast(rows, t, rows == 7) is not None
        model.train()
        assert fast(rows, t, rows == 7) is None


@pytest.mark.parametrize("kind", (DistilBertConfig, ElectraConfig))
def test_unknown_backbones_decline_and_generate_all_the_same(kind):
    config = kind(vocab_size=24, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, pad_token_id=PAD)
    own = UDMConfig(text_config=config, mask_token_id=MASK, pad_token_id=PAD)
    model = UDMForMaskedGeneration(own, backbone=AutoModelForMaskedLM.from_config(config).eval())
    assert declines(model)
    assert not (model.generate(ROWS, seed=1) == MASK).any()
