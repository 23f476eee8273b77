"""Kept keys and values: exact at every refresh and where nothing else changed, off in between, and a row's own."""

import pytest
import torch
from transformers import ElectraConfig

from tests.models import CLS, FAST, MASK, NORMED, PAD, PROCESSES, SEP, UNK, Adapted, decoder_config, make_udm, wrap
from udm_text import UDMGenerationConfig, backbones, fastpath
from udm_text.caching import CachedForward
from udm_text.cli.terminal import describe_speed
from udm_text.fastpath import Batch, plain_path
from udm_text.positions import Positions

pytestmark = pytest.mark.filterwarnings("ignore:guidance_scale")
ROWS = torch.tensor(
    [
        [CLS, 7, MASK, 9, MASK, MASK, SEP, PAD, PAD, PAD],
        [CLS, MASK, MASK, MASK, MASK, MASK, 6, 7, 8, SEP],
        [CLS, UNK, 11, MASK, SEP, PAD, PAD, PAD, PAD, PAD],
        [CLS, MASK, 7, MASK, MASK, 6, MASK, MASK, 8, SEP],
    ]
)
HOWS = [
    {},
    {"order": "confidence"},
    {"revise": 2, "order": "left_to_right"},
    {"churn": 0.5, "num_steps": 4},
    {"threshold": 0.3},
    {"guidance_scale": 2.0},
    {"guidance_scale": 2.0, "order": "entropy", "revise": 1},
]


def deep(family="bert", process="mask", time=False):
    """Four layers, in double precision."""
    return make_udm(process, family=family, layers=4, time_conditioning=time).double()


def full(model, attended, lengths, xt, t, positions):
    with torch.no_grad():
        return model(input_ids=xt, attention_mask=attended.long(), t=t, num_editable=lengths).logits[positions]


def asked(fast, xt, t, wanted):
    with torch.no_grad():
        return fast.head(fast.hidden(xt, t, Positions.of(wanted)))


@pytest.fixture
def errors(monkeypatch):
    """Of each call: which rows were due, and for each of its positions the largest difference from the full forward."""
    found = []
    hidden = CachedForward.hidden

    def checked(self, xt, t, positions, others=None):
        ages = list(self.age) if self.batch.calls else [0] * len(xt)
        rows = hidden(self, xt, t, positions, others)
        batch = self.batch
        attended = torch.ones_like(xt, dtype=torch.bool) if batch.attended is None else batch.attended
        exact = full(batch.model, attended, batch.lengths, xt, t, (positions.rows, positions.columns))
        gap = (self.head(rows) - exact).abs().amax(dim=1)
        due = torch.tensor([age % self.refresh == 0 for age in ages])
        found.append((due[positions.rows], gap))
        return rows

    monkeypatch.setattr(CachedForward, "hidden", checked)
    return found


@pytest.mark.parametrize("time", [False, True])
@pytest.mark.parametrize("family", FAST)
def test_a_refresh_is_exact_and_the_calls_between_are_not(family, time, errors, monkeypatch):
    bound = 1e-4 if family == "modernbert" else 1e-10  # ModernBERT turns queries and keys in float32
    for chunk in (4096, 20):
        monkeypatch.setattr(fastpath, "_ROOM", {"cpu": chunk * 32})
        for how in ({}, {"num_steps": 4}, {"order": "confidence", "guidance_scale": 2.0}):
            deep(family, time=time).generate(ROWS, cache_refresh=3, seed=1, **how)
    deep(family, "substitute", time).generate(ROWS, cache_refresh=2, seed=1)
    due, gap = (torch.cat(parts) for parts in zip(*errors, strict=True))
    assert bool(due.any()) and float(gap[due].max()) < bound
    assert float(gap[~due].median()) > 1e-3, "in between it is an approximation"


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("how", [{}, {"order": "margin"}, {"num_steps": 2}, {"guidance_scale": 3.0}], ids=str)
def test_a_refresh_at_every_call_is_the_exact_path_bit_for_bit(process, how):
    if process != "mask":
        how = {name: value for name, value in how.items() if name != "order"}
    model = deep(process=process)
    exact = model.generate(ROWS, seed=1, **how)
    assert torch.equal(exact, model.generate(ROWS, seed=1, cache_refresh=1, **how))
    assert torch.equal(exact, model.generate(ROWS, seed=1, cache_refresh=None, **how))
    assert process != "mask" or not torch.equal(exact, model.generate(ROWS, seed=1, cache_refresh=100, **how))


@pytest.mark.parametrize("family", [*FAST, "qwen3", "gemma3_text"])
def test_between_refreshes_it_is_exact_where_nothing_or_everything_changed(family):
    bound = 1e-4 if family in ("modernbert", *NORMED) else 1e-10
    model = deep(family) if family in FAST else wrap(decoder_config(family, **NORMED[family])).double()
    attended = torch.arange(10) < torch.tensor([10, 4, 7])[:, None]
    lengths = torch.tensor([10, 4, 7])
    torch.manual_seed(0)
    xt = torch.randint(5, 24, attended.shape).masked_fill(~attended, PAD)
    fast = CachedForward(model, attended, lengths, 100)
    everywhere, t = attended.clone(), torch.ones(3)
    some = [attended & (torch.rand(attended.shape) < 0.4) for _ in range(4)]
    for positions in (everywhere, *some):
        gap = asked(fast, xt, t, positions) - full(model, attended, lengths, xt, t, positions)
        assert float(gap.abs().max()) < bound, "the same rows, asked elsewhere"
    other = torch.where(attended, 5 + (xt - 4) % 19, PAD)
    assert bool((other != xt)[attended].all())
    for positions in (some[0], some[1]):
        gap = asked(fast, other, t, positions) - full(model, attended, lengths, other, t, positions)
        assert float(gap.abs().max()) < bound, "every token is another one"
    one = other.clone()
    one[0, 3] = 5 + (one[0, 3] - 4) % 19
    gap = asked(fast, one, t, everywhere & (torch.arange(10) == 6)) - full(
        model, attended, lengths, one, t, everywhere & (torch.arange(10) == 6)
    )
    assert float(gap[0].abs().max()) > 1e-6 and float(gap[1:].abs().max()) < bound, "rows that stay the same are exact"


class ByHand:
    """One row of a BERT of the definition: kept keys and values of each layer, in plain operations on its weights.

    update: whether the positions that are computed replace what is kept of them.
    """

    def __init__(self, model, length, refresh, update=True):
        self.bert, self.head = model.backbone.bert, model.backbone.cls.predictions
        self.length, self.refresh, self.update, self.calls = length, refresh, update, 0
        self.kept = [{} for _ in self.bert.encoder.layer]  # of each layer: position -> (key, value)
        self.seen = [-1] * length

    def logits(self, tokens, wanted):
        """Of each wanted position, from the row's tokens; both lists."""
        whole = self.calls % self.refresh == 0
        active = [i for i in range(self.length) if whole or tokens[i] != self.seen[i] or i in wanted]
        self.calls, self.seen = self.calls + 1, tokens
        words = self.bert.embeddings
        x = {
            i: normed(
                words.LayerNorm,
                words.word_embeddings.weight[tokens[i]]
                + words.position_embeddings.weight[i]
                + words.token_type_embeddings.weight[0],
            )
            for i in active
        }
        for layer, kept in zip(self.bert.encoder.layer, self.kept, strict=True):
            own, heads = layer.attention.self, layer.attention.self.num_attention_heads
            for i in active:
                if whole or self.update:
                    kept[i] = mapped(own.key, x[i]).view(heads, -1), mapped(own.value, x[i]).view(heads, -1)
            keys, values = (torch.stack([kept[j][part] for j in range(self.length)]) for part in (0, 1))
            after = {}
            for i in active:
                query = mapped(own.query, x[i]).view(heads, -1)
                weights = torch.einsum("hd,jhd->hj", query, keys).div(query.shape[1] ** 0.5).exp()
                context = torch.einsum("hj,jhd->hd", weights / weights.sum(1, keepdim=True), values).flatten()
                out, mlp = layer.attention.output, layer.output
                y = normed(out.LayerNorm, mapped(out.dense, context) + x[i])
                after[i] = normed(mlp.LayerNorm, mapped(mlp.dense, gelu(mapped(layer.intermediate.dense, y))) + y)
            x = after
        last, decoder = self.head.transform, self.head.decoder
        return [mapped(decoder, normed(last.LayerNorm, gelu(mapped(last.dense, x[i])))) for i in wanted]


def mapped(linear, x):
    return linear.weight @ x + linear.bias


def normed(norm, x):
    x = x - x.mean()
    return x / (x.square().mean() + norm.eps).sqrt() * norm.weight + norm.bias


def gelu(x):
    return x * (1 + torch.erf(x / 2**0.5)) / 2


def test_between_refreshes_the_logits_are_those_of_the_definition():
    """Rows of their own lengths and ages, tokens that appear, change and go, one position or several asked about."""
    model, lengths, generator = deep(), [10, 4, 7], torch.Generator().manual_seed(0)
    attended = torch.arange(10) < torch.tensor(lengths)[:, None]
    fast = CachedForward(model, attended, torch.tensor(lengths), 3)
    hand = [ByHand(model, length, 3) for length in lengths]
    stale = [ByHand(model, length, 3, update=False) for length in lengths]
    full_gaps, stale_gaps = [], []
    xt = torch.full((3, 10), MASK).masked_fill(~attended, PAD)
    for call in range(9):
        wanted = attended & (torch.rand(3, 10, generator=generator) < 0.3)
        wanted[2] &= call % 4 != 1  # row 2 rests, though its tokens change: its calls are its own
        logits = asked(fast, xt, torch.ones(3), wanted)
        expected, kept_as_it_was = [], []
        with torch.no_grad():
            for row in range(3):
                where = wanted[row].nonzero()[:, 0].tolist()
                if where:
                    expected += hand[row].logits(xt[row].tolist(), where)
                    kept_as_it_was += stale[row].logits(xt[row].tolist(), where)
        assert float((logits - torch.stack(expected)).abs().max()) < 1e-9, call
        full_gaps.append(float((logits - full(model, attended, fast.batch.lengths, xt, None, wanted)).abs().max()))
        stale_gaps.append(float((logits - torch.stack(kept_as_it_was)).abs().max()))
        change = attended & (torch.rand(3, 10, generator=generator) < 0.25)
        drawn = torch.randint(5, 24, xt.shape, generator=generator)
        xt = torch.where(change, drawn.where(torch.rand(3, 10, generator=generator) < 0.8, MASK), xt)
    assert max(full_gaps) > 1e-2, "it is an approximation here"
    assert max(stale_gaps) > 1e-2, "what is kept is brought up to date where it is computed, or this would not be seen"


@pytest.mark.parametrize("how", HOWS, ids=str)
def test_a_row_does_not_depend_on_its_neighbours_though_they_refresh_and_end_at_calls_of_their_own(how):
    model, index = deep(), torch.tensor([4, 1, 6, 2])
    for refresh in (2, 3):
        together = model.generate(ROWS, sample_index=index, seed=3, cache_refresh=refresh, **how)
        for i, width in enumerate((7, 10, 5, 10)):
            alone = model.generate(
                ROWS[i : i + 1, :width], sample_index=index[i : i + 1], seed=3, cache_refresh=refresh, **how
            )
            assert torch.equal(alone[0], together[i, :width])


def test_memory_does_not_grow_with_the_calls():
    model = make_udm()
    rows = torch.full((3, 12), 7)
    fast = CachedForward(model, torch.ones_like(rows, dtype=torch.bool), torch.full((3,), 12), 4)

    def held():
        values = [*vars(fast).values(), *vars(fast.batch).values()]
        tensors = [x for value in values for x in (value if isinstance(value, list) else [value])]
        return sum(x.numel() for x in tensors if isinstance(x, torch.Tensor))

    sizes = []
    for i in range(10):
        asked(fast, rows.index_fill(1, torch.tensor([i]), 8), torch.ones(3), rows == 7)
        sizes.append(held())
    assert len(set(sizes[1:])) == 1
    assert sum(kept.numel() for kept in fast.kept) == 2 * 2 * 3 * 12 * 32  # keys and values, layers, rows, L, hidden


def test_between_refreshes_few_tokens_run_through_the_layers(monkeypatch):
    model, seen = deep(), []
    after = backbones.BertBody.attention_output_and_mlp
    monkeypatch.setattr(
        backbones.BertBody,
        "attention_output_and_mlp",
        lambda self, layer, c, x: (seen.append(x[..., 0].numel()), after(self, layer, c, x))[1],
    )
    model.generate(length=20, num_return_sequences=8, seed=0, cache_refresh=5)
    calls = [seen[i : i + 4] for i in range(0, len(seen), 4)]
    assert [call for i, call in enumerate(calls) if i % 5 == 0] == [[176, 176, 176, 8]] * 4
    assert all(call == [16, 16, 16, 8] for i, call in enumerate(calls) if i % 5)


def test_weights_changed_on_the_way_are_seen_at_once(errors):
    def nudge(model, step, s, state):
        with torch.no_grad():
            model.backbone.bert.encoder.layer[1].attention.self.value.weight.mul_(1.1)

    deep().generate(ROWS, seed=0, cache_refresh=50, callback_on_step_end=nudge)
    assert max(float(gap.max()) for _, gap in errors) < 1e-10


@pytest.mark.parametrize("process", PROCESSES)
def test_what_a_callback_writes_anywhere_is_computed_anew(process, monkeypatch):
    """It is no step's doing, so that nothing that is known beforehand counts it: the changes are read then."""
    updated = []
    changes = Batch.changes
    monkeypatch.setattr(
        Batch, "changes", lambda self, group, **how: updated.append(changes(self, group, **how)) or updated[-1]
    )

    def write(model, step, s, state):
        xt = state["xt"].clone()
        xt[:, 1] = 9 if step == 1 else xt[:, 1]
        return {"xt": xt}

    model, prompt = make_udm(process), torch.tensor([[CLS, 7, 8, SEP], [CLS, 11, 8, SEP]])
    model.generate(prompt, max_new_tokens=5, seed=0, cache_refresh=4, callback_on_step_end=write)
    assert updated[0][0].columns.tolist().count(1) == 0, "a prompt stays as it is"
    assert [where.columns.tolist().count(1) for where, *_ in updated[1:3]] == [2, 0]


def test_what_cannot_be_cached_is_refused_and_never_exact_in_silence():
    config = ElectraConfig(vocab_size=24, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, pad_token_id=PAD)
    other = wrap(config)
    with pytest.raises(ValueError, match="cache_refresh=4 .* NomicBERT or Llama .*ElectraForMaskedLM"):
        other.generate(ROWS, cache_refresh=4)
    assert other.generate(ROWS, cache_refresh=1) is not None
    adapted = deep()
    adapted.backbone.bert.encoder.layer[1].attention.self.value = Adapted(32, 32).double()  # between first and last
    assert adapted.generate(ROWS) is not None
    with pytest.raises(ValueError, match="cache_refresh=4 .* no adapters"):
        adapted.generate(ROWS, cache_refresh=4)
    with plain_path(), pytest.raises(ValueError, match="cache_refresh=4"):
        deep().generate(ROWS, cache_refresh=4)
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(ValueError, match="cache_refresh=4 .* autocast"):
        make_udm().generate(ROWS, cache_refresh=4)
    with pytest.raises(ValueError, match="speculate .* cache_refresh=4"):
        make_udm().generate(ROWS, cache_refresh=4, speculate=2)
    for bad in (0, -1, 2.5, True, "4"):
        with pytest.raises(ValueError, match="cache_refresh must be a positive integer or None"):
            UDMGenerationConfig(cache_refresh=bad)


def test_the_price_of_the_exact_sampler_is_not_named_for_it():
    model = make_udm(step_curve=[1.0, 2.0])
    assert model.generate(length=4, cache_refresh=1, return_dict_in_generate=True).expected_nats is not None
    output = model.generate(length=4, cache_refresh=2, return_dict_in_generate=True)
    assert output.expected_nats is None and output.num_calls == 4
    told = describe_speed([[{"num_tokens": 4, "num_calls": 4}]], 1, 2.0)
    assert "2.0 tokens/s, 4 network calls; no expected price" in told and "no guidance, caching" in told
