"""The fast path gives the logits of the full forward, and knows where it must not try."""

import copy
import itertools

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import DistilBertConfig, ElectraConfig

from tests.helpers import python
from tests.models import CLS, FAST, MASK, NORMED, PAD, SEP, Adapted, decoder_config, make_udm, wrap
from tests.oracle.world import all_rows, index_of, total_variation
from udm_text import fastpath, predictors
from udm_text.backbones import Linear
from udm_text.decoding import log_probabilities
from udm_text.fastpath import FastForward, plain_path, round_up
from udm_text.positions import Positions

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
    fast = FastForward.hidden

    def checked(self, xt, t, positions, others=None):
        rows = fast(self, xt, t, positions, others)
        assert rows is not None
        logits = self.head(rows)
        batch = self.batch
        mask = torch.ones_like(xt) if batch.attended is None else batch.attended.long()
        whole = batch.model(input_ids=xt, attention_mask=mask, t=t, num_editable=batch.lengths).logits
        assert not logits.isnan().any()
        found.append(float((logits - whole[positions.rows, positions.columns]).abs().max()))
        return rows

    monkeypatch.setattr(FastForward, "hidden", checked)
    return found


def asked(fast, xt, t, wanted):
    """(N, V) logits, or None where it declines."""
    rows = fast.hidden(xt, t, Positions.of(wanted))
    return None if rows is None else fast.head(rows)


def declines(model) -> bool:
    fast = FastForward(model, torch.ones(2, 6, dtype=torch.bool), torch.full((2,), 6))
    rows = torch.full((2, 6), 7)
    with torch.no_grad():
        return asked(fast, rows, torch.ones(2), rows == 7) is None


@pytest.mark.parametrize("family", [*FAST, pytest.param("mistral", marks=pytest.mark.slow)])
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


@pytest.mark.parametrize("family", NORMED)
@pytest.mark.parametrize("dtype, bound", ((torch.float32, 1e-4), (torch.float64, 1e-5)))
def test_decoders_with_norms_and_heads_of_any_width_have_the_logits_of_the_full_forward(family, dtype, bound, errors):
    """Their norms compute in float32 whatever the dtype, so that float64 agrees to its rounding.

    Eager attention of transformers is not a number in float64 where a row sees nothing, as padding beyond a window.
    """
    config = decoder_config(family, **NORMED[family])
    model, timed = (wrap(config, process).to(dtype) for process in ("mask", "substitute"))
    for attention in ("sdpa", "eager") if dtype == torch.float32 else ("sdpa",):
        model.set_attn_implementation(attention)
        for how in HOWS[:3]:
            model.generate(ROWS, seed=1, **how)
    model.generate(length=9, num_return_sequences=3, seed=1)
    timed.generate(ROWS, seed=1)
    assert len(errors) > 25 and max(errors) <= bound


def test_a_decoder_that_caps_its_logits_or_masks_by_a_way_of_its_own_takes_the_plain_path():
    assert not declines(wrap(decoder_config("gemma3_text", **NORMED["gemma3_text"])))
    for own in ({"final_logit_softcapping": 3.0}, {"use_bidirectional_attention": True}):
        assert declines(wrap(decoder_config("gemma3_text", **NORMED["gemma3_text"], **own)))
    assert declines(wrap(decoder_config("gemma2")))


@pytest.mark.parametrize("family", FAST)
@pytest.mark.parametrize("time", (False, True))
def test_texts_are_the_same_on_both_paths(family, time):
    for process, hows in (("mask", HOWS), ("substitute", [{"kernel": kernel} for kernel in KERNELS])):
        model = make_udm(process, family=family, time_conditioning=time).double()
        for how in hows:
            rows = model.generate(ROWS, seed=3, **how)
            with plain_path():
                assert torch.equal(rows, model.generate(ROWS, seed=3, **how))


@pytest.mark.parametrize("family", FAST)
def test_sub_batches_and_eager_attention(family, errors, monkeypatch):
    monkeypatch.setattr(fastpath, "_ROOM", {"cpu": 24 * 32})  # two rows at a time
    model = make_udm(family=family)
    model.generate(ROWS, seed=1)
    model.set_attn_implementation("eager")
    model.generate(ROWS, seed=1)
    model.generate(length=12, num_return_sequences=5, seed=1, num_steps=4)
    assert max(errors) < 1e-4


def test_bfloat16_follows_its_own_full_forward(errors):
    for family in FAST:
        model = make_udm(family=family).to(torch.bfloat16)
        model.generate(ROWS, seed=1)
    assert max(errors) < 0.25  # some units in the last place of logits of about 10


def test_a_long_head_is_packed_and_exact(errors):
    make_udm(vocab_size=3000).generate(ROWS, seed=1)
    assert max(errors) < 1e-4


def test_weights_changed_between_and_within_calls_are_seen(errors):
    model, generator = make_udm(length_counts=[0, 1]), torch.Generator().manual_seed(0)

    def shake(*_):
        with torch.no_grad():
            for weight in model.parameters():
                weight.add_(0.1 * torch.randn(weight.shape, generator=generator))

    model.generate(ROWS, seed=1)
    shake()
    model.generate(ROWS, seed=1)
    model.generate(ROWS, seed=1, callback_on_step_end=shake)
    assert max(errors) < 1e-4


def test_calls_in_any_order_and_on_any_text_are_exact():
    torch.manual_seed(0)
    for family in FAST:
        model = make_udm(family=family)
        attended = torch.arange(10) < torch.tensor([10, 4, 7])[:, None]
        fast = FastForward(model, attended, torch.tensor([10, 4, 7]))
        for _ in range(12):
            xt = torch.randint(5, 24, attended.shape).masked_fill(~attended, PAD)
            positions = (torch.rand(attended.shape) < 0.3) & attended & (torch.rand(3, 1) < 0.7)
            if not positions.any():
                continue
            with torch.no_grad():
                logits = asked(fast, xt, torch.ones(3), positions)
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


class LargestTensor(TorchDispatchMode):
    """Counts the elements of whatever any operation makes."""

    largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        made = out if isinstance(out, tuple | list) else [out]
        self.largest = max([self.largest, *(x.numel() for x in made if isinstance(x, torch.Tensor))])
        return out


@pytest.mark.filterwarnings("ignore:guidance_scale")
@pytest.mark.parametrize(
    ("process", "how"),
    [
        ("mask", {"order": "confidence", "num_steps": 3}),
        ("mask", {"threshold": 0.5}),
        ("mask", {"num_steps": 1}),
        ("mask", {"order": "entropy", "num_steps": 3, "guidance_scale": 2.0}),
        ("mask", {"order": "margin", "num_steps": 3, "cache_refresh": 2}),
        ("substitute", {"kernel": "site", "num_steps": 3}),
        ("substitute", {"kernel": "hamming", "num_steps": 3, "guidance_scale": 2.0}),
    ],
    ids=str,
)
def test_logits_of_all_positions_are_never_held_at_once(process, how, monkeypatch):
    vocab, asked = 2000, 8 * 20
    model = make_udm(process, vocab_size=vocab).double()
    rows = torch.full((8, 24), 7).index_fill(1, torch.arange(20), MASK)
    whole = model.generate(rows, seed=0, **how)
    monkeypatch.setattr(predictors, "_CHUNK_ELEMENTS", 32 * vocab)
    with LargestTensor() as seen:
        assert torch.equal(model.generate(rows, seed=0, **how), whole)
    assert seen.largest <= 32 * vocab < asked * vocab
    if "cache_refresh" not in how:
        with plain_path(), LargestTensor() as seen:
            model.generate(rows, seed=0, **how)
        assert seen.largest >= asked * vocab, "the plain path holds what the forward returns, and this sees it"


@pytest.mark.slow
def test_an_adaptive_order_keeps_to_a_tenth_of_the_naive_peak(repository):
    """512 tokens, 32 rows, 30,522 words, every position asked about (once, by a fragmented heap, 7 GiB)."""
    done = python("benchmarks/generation.py", "--peak", "mini", "confidence", cwd=repository, timeout=None)
    assert int(done.stdout.split()[-1]) < 5829 * 1024 / 10  # KiB; the naive loop's as measured in docs/benchmarks.md


@pytest.mark.parametrize("family", ("bert", "roberta"))
def test_the_law_through_the_fast_path_is_that_of_exhaustive_enumeration_for_every_order(family):
    """V = 3 tokens, L = 3: the sum over all reverse trajectories, asked state by state of the plain forward."""
    words, length = [5, 6, 7], 3
    special = [token for token in range(24) if token not in (*words, MASK)]
    model = make_udm(family=family, special_token_ids=special).double()
    forbidden, inside = model.config.forbidden_tokens(), slice(1, 1 + length)
    spelled = torch.tensor([*words, MASK])

    def framed(digits):
        inner = spelled[torch.from_numpy(digits)]
        ends = inner.new_full((len(inner), 1), CLS), inner.new_full((len(inner), 1), SEP)
        return torch.cat((ends[0], inner, ends[1]), dim=1)

    with torch.no_grad():
        logits = model(framed(all_rows(4, length))).logits[:, inside, words]
    table = logits.softmax(-1).numpy()  # (4^3 states, 3 places, 3 tokens)
    texts = all_rows(3, length)

    def by_trajectories(xt, order):
        """{text: mass} of what is still to come, one branch for each token of each place."""
        if not order:
            return {tuple(xt): 1.0}
        law: dict[tuple[int, ...], float] = {}
        for token in range(3):
            after = xt.copy()
            after[order[0]] = token
            mass = table[index_of(xt, 4), order[0], token]
            for text, rest in by_trajectories(after, order[1:]).items():
                law[text] = law.get(text, 0.0) + mass * rest
        return law

    laws = []
    for order in itertools.permutations(range(length)):
        fast = FastForward(model, torch.ones(len(texts), length + 2, dtype=torch.bool), torch.full((27,), length))
        law, xt = np.ones(len(texts)), np.full_like(texts, 3)
        for done, place in enumerate(order):
            rows = framed(xt)
            wanted = (torch.arange(length + 2) == 1 + place).expand_as(rows)
            with torch.no_grad():
                logits = asked(fast, rows, torch.full((27,), length - done), wanted)
            assert logits is not None
            p = log_probabilities(logits, forbidden).exp()[:, words].numpy()
            law *= p[np.arange(27), texts[:, place]]
            xt[:, place] = texts[:, place]
        expected = by_trajectories(np.full(length, 3), order)
        assert total_variation(law, np.array([expected[tuple(text)] for text in texts.tolist()])) < 1e-12
        laws.append(law)
    assert max(total_variation(laws[0], law) for law in laws[1:]) > 1e-3, "orders differ, so each was a test of its own"


def last_attention(model) -> tuple[nn.Module, str]:
    """The last layer's attention, and the name of its first projection."""
    body = model.backbone.base_model
    if not hasattr(body, "layers"):
        return body.encoder.layer[-1].attention.self, "query"
    last = body.layers[-1]
    return (last.attn, "Wqkv") if hasattr(last, "attn") else (last.self_attn, "q_proj")


@pytest.mark.parametrize("family", FAST)
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
    assert asked(fast, rows, t, rows == 7) is None  # gradients are on
    with torch.no_grad():
        assert asked(fast, rows.repeat(2, 1), t, rows.repeat(2, 1) == 7) is None
        with torch.autocast("cpu", torch.bfloat16):
            assert asked(fast, rows, t, rows == 7) is None
        assert asked(fast, rows, t, rows == 7) is not None
        model.train()
        assert asked(fast, rows, t, rows == 7) is None


def test_shifted_predictions_are_read_at_the_position_before(errors):
    model = make_udm(family="llama", shift_logits=True)
    for how in HOWS:
        model.generate(ROWS, seed=1, **how)
        model.generate(length=9, num_return_sequences=3, seed=1, **how)
    assert len(errors) > 20 and max(errors) < 1e-4
    with pytest.raises(ValueError, match="cache_refresh"):
        model.generate(ROWS, seed=1, cache_refresh=2)


def test_a_decoder_whose_rotary_positions_depend_on_the_longest_row_or_that_is_causal_again_declines():
    scaled = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    assert declines(wrap(decoder_config("llama", rope_parameters=scaled)))
    assert not declines(wrap(decoder_config("llama", rope_parameters={**scaled, "rope_type": "linear"})))
    causal = make_udm(family="llama")
    causal.backbone.config.is_causal = True
    assert declines(causal)


@pytest.mark.parametrize("kind", (DistilBertConfig, ElectraConfig))
def test_unknown_backbones_decline_and_generate_all_the_same(kind):
    config = kind(vocab_size=24, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, pad_token_id=PAD)
    model = wrap(config)
    assert declines(model)
    assert not (model.generate(ROWS, seed=1) == MASK).any()


@pytest.mark.parametrize("masked", (None, "closed", "added"))
@pytest.mark.parametrize("bias", (False, True))
def test_attention_without_keys_and_values_is_that_with_them(masked, bias):
    generator = torch.Generator().manual_seed(0)
    rows, length, heads, width = 3, 7, 2, 4
    hidden = heads * width
    maps = [torch.nn.Linear(hidden, hidden, bias=bias).double() for _ in range(2)]
    where = torch.rand(rows, length, generator=generator) < 0.4
    where[0], where[1, 2] = False, True  # a row that asks nothing, and slots that stay empty
    x = torch.randn(rows, length, hidden, generator=generator, dtype=torch.float64)
    query = torch.randn(int(where.sum()), heads, width, generator=generator, dtype=torch.float64)
    mask = None if masked is None else torch.rand(rows, 1, length, length, generator=generator) < 0.7
    if mask is not None:
        mask = mask | torch.eye(length, dtype=torch.bool)
    if masked == "added":
        mask = torch.zeros(mask.shape, dtype=torch.float64).masked_fill(~mask, torch.finfo(torch.float64).min)
    with torch.no_grad():
        key, value = (made(x).unflatten(-1, (heads, -1)) for made in maps)
        positions = Positions.of(where)
        expected = fastpath.attend(query, key, value, mask, positions)
        found = fastpath.attend_unprojected(query, x, Linear(*maps), mask, positions)
        turned = fastpath.attend_to_unprojected(query, key, x, Linear(*maps), mask, positions)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(turned, expected, rtol=1e-12, atol=1e-12)


def test_keys_and_values_are_left_out_where_that_is_less_work_by_half():
    for width, wanted in ((1, True), (8, True), (16, True), (17, False), (64, False)):
        assert fastpath.cheaper_unprojected(width, length=64, heads=8, width=512) is wanted
