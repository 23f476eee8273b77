"""A step as one graph: the rows of the uncompiled one, kept for calls of like sizes and never stale."""

import copy
import gc
import pickle
import warnings
import weakref
from collections import Counter

import numpy as np
import pytest
import torch
from torch._dynamo.backends.registry import lookup_backend
from transformers import DistilBertConfig, pipeline

from tests.models import CLS, FAMILIES, MASK, PAD, SEP, VOCAB, make_udm, text_config, word_tokenizer, wrap
from udm_text import compiling, predictors
from udm_text.compiling import padded_length, padded_rows
from udm_text.decoding import NOT_FINITE
from udm_text.fastpath import plain_path
from udm_text.generation_options import OPTIONS
from udm_text.positions import Positions
from udm_text.predictors import MaskPredictor
from udm_text.randomness import RowRandom

BLANKS = torch.tensor(
    [
        [CLS, MASK, 7, MASK, MASK, MASK, MASK, SEP],
        [CLS, 9, 8, MASK, 11, MASK, MASK, SEP],
        [CLS, 6, MASK, MASK, SEP, PAD, PAD, PAD],
    ]
)
TEXT = torch.tensor([[CLS, 7, 8, 9, 10, 11, 12, SEP], [CLS, 6, 5, 9, SEP, PAD, PAD, PAD]])
MASKS = {
    "random": {},
    "left to right": {"order": "left_to_right"},
    "confidence": {"order": "confidence"},
    "margin": {"order": "margin", "temperature": 0.7},
    "entropy with noise": {"order": "entropy", "order_noise": 0.5},
    "few steps": {"num_steps": 2, "schedule": "cosine"},
    "cut": {"top_k": 5, "top_p": 0.9},
    "greedy": {"temperature": 0.0},
    "guidance": {"guidance_scale": 2.0},
    "constraints": {"forbidden_tokens": [9], "allowed_tokens": {3: [7, 8]}, "begin_suppress_tokens": [8]},
    "churn": {"churn": 0.5},
    "churn, confidence": {"churn": 0.5, "order": "confidence"},
}
SUBSTITUTES = {
    "site": {"kernel": "site"},
    "hamming": {"kernel": "hamming"},
    "hamming, churn": {"kernel": "hamming", "churn": 0.5},
    "free": {"kernel": "free"},
    "free, churn": {"kernel": "free", "churn": 0.5},
    "greedy": {"kernel": "hamming", "temperature": 0.0, "num_steps": 2},
}


class Backend:
    """Compiles as torch's "aot_eager" or "eager" do; counts graphs that were made, and their runs."""

    def __init__(self, name):
        self.compile, self.graphs, self.runs = lookup_backend(name), 0, 0

    def __call__(self, graph, inputs):
        self.graphs += 1
        run = self.compile(graph, inputs)

        def counted(*arguments):
            self.runs += 1
            return run(*arguments)

        return counted


@pytest.fixture
def backend(monkeypatch):
    torch._dynamo.reset()
    found = Backend("eager")
    monkeypatch.setattr(compiling, "_BACKEND", found)
    return found


def quiet(model, rows=None, **how):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="guidance_scale")
        warnings.filterwarnings("error", message="compile")
        return model.generate(rows, **{"seed": 3, **how})


def agree(model, rows=None, **how):
    """Rows and counts of the compiled steps are those of the others."""
    one, other = (quiet(model, rows, compile=c, return_dict_in_generate=True, **how) for c in (False, True))
    assert torch.equal(one.sequences, other.sequences)
    assert one.num_calls == other.num_calls and torch.equal(one.steps, other.steps)
    return other.sequences


@pytest.mark.parametrize("name", MASKS)
def test_a_step_of_masks_is_one_graph_and_gives_the_same_rows(name, backend):
    agree(make_udm(), BLANKS, **MASKS[name])
    assert backend.graphs == 1 and backend.runs > 1


@pytest.mark.parametrize("name", SUBSTITUTES)
def test_a_step_of_substitutions_is_one_graph_and_gives_the_same_rows(name, backend):
    agree(make_udm("substitute"), length=5, num_return_sequences=3, **SUBSTITUTES[name])
    assert backend.graphs == 1 and backend.runs > 1


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("process", ["mask", "substitute", "uniform"])
def test_the_functional_graph_of_every_family_gives_the_same_rows(family, process, backend):
    backend.compile = lookup_backend("aot_eager")
    model = make_udm(process, family=family, time_conditioning=True)
    agree(model, BLANKS if process == "mask" else None, **({} if process == "mask" else {"length": 5}))
    assert backend.graphs == 1


def test_a_repair_is_compiled(backend):
    model = make_udm("substitute")
    agree(model, TEXT, max_edits=3, temperature=0.8)
    agree(model, TEXT, max_edits=3, min_confidence=0.2)
    assert backend.graphs == 2  # with a confidence and without


@pytest.mark.slow
@pytest.mark.parametrize("process", ["mask", "substitute", "uniform"])
def test_what_users_get_gives_the_same_rows(process):
    """torch's own compiler, which makes machine code."""
    agree(make_udm(process), **({"rows": BLANKS} if process == "mask" else {"length": 5, "num_return_sequences": 3}))


def test_calls_of_like_sizes_compile_nothing(backend):
    model = make_udm()
    agree(model, length=9, num_return_sequences=7)
    assert backend.graphs == 1
    agree(model, length=12, num_return_sequences=8, seed=5)
    agree(model, length=14, num_return_sequences=8, forbidden_tokens=[9])  # none of the rows is padded
    assert backend.graphs == 1
    agree(model, length=15, num_return_sequences=8)
    assert backend.graphs == 2
    agree(model, length=9, num_return_sequences=7)
    assert backend.graphs == 2


def test_calls_of_an_adaptive_order_have_a_graph_by_the_masks_of_a_row(backend):
    model = make_udm()
    for length in (5, 6, 5):
        agree(model, length=length, order="confidence")
    assert backend.graphs == 1


def test_sizes_are_few_and_never_smaller():
    assert [padded_rows(n) for n in (1, 2, 3, 4, 5, 7, 9, 13, 17, 33)] == [1, 2, 3, 4, 6, 8, 12, 16, 24, 48]
    assert len({padded_rows(n) for n in range(1, 1025)}) == 20
    assert all(n <= padded_rows(n) <= 1.5 * n for n in range(1, 1025))
    assert [padded_length(n, 40) for n in (1, 16, 17, 33, 40)] == [16, 16, 32, 40, 40]
    assert padded_length(33, None) == 48


def test_rows_that_the_model_just_reads_are_compiled(backend):
    model = make_udm()
    longest = model.config.max_row_length
    assert longest % 16
    agree(model, length=longest - 2, num_steps=3)


def test_a_row_does_not_depend_on_its_neighbours(backend):
    model = make_udm()
    together = quiet(model, BLANKS, compile=True, order="confidence")
    for i, row in enumerate(BLANKS):
        alone = row[None, : int((row != PAD).sum())]
        own = quiet(model, alone, compile=True, order="confidence", sample_index=torch.tensor([i]))
        assert torch.equal(own[0], together[i, : own.shape[1]])


def test_the_law_is_that_of_the_uncompiled_sampler(backend):
    """Row by row: of 500 rows under one seed none differs."""
    agree(make_udm(scale=0.3), length=3, num_return_sequences=500)


def updated(model):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.8)


def loaded(model):
    model.load_state_dict(make_udm(seed=1).state_dict())


def assigned(model):
    model.load_state_dict(make_udm(seed=1).state_dict(), assign=True)
    model.tie_weights()


def replaced(model):
    model.backbone.bert.encoder.layer[0].intermediate.dense = torch.nn.Linear(32, 48)


def shortened(model):
    del model.backbone.bert.encoder.layer[1]


def patched(model):
    dense = model.backbone.bert.encoder.layer[0].intermediate.dense
    dense.forward = lambda x: torch.nn.Linear.forward(dense, x) * 2


def hooked(model):
    model.backbone.bert.encoder.layer[0].intermediate.register_forward_hook(lambda module, given, out: 2 * out)


@pytest.mark.parametrize("change", [updated, loaded, assigned, replaced, shortened, patched, hooked])
def test_a_kept_graph_is_never_stale(change, backend):
    torch.manual_seed(0)
    model = make_udm(layers=3) if change is shortened else make_udm()
    before = agree(model, length=12, num_return_sequences=8)
    change(model)
    after = agree(model, length=12, num_return_sequences=8)
    assert not torch.equal(before, after)
    assert change not in (updated, loaded) or backend.graphs == 1  # the same graph reads other numbers


def test_a_kept_graph_of_another_precision_is_another(backend):
    """Its rows are those of that precision but for rounding, which depends on the shape of a batch."""
    model, how = make_udm(), {"length": 12, "num_return_sequences": 8}
    agree(model, **how)
    model.to(torch.bfloat16)
    found, expected = (quiet(model, compile=c, **how) for c in (True, False))
    assert backend.graphs == 2 and (found == expected).double().mean() > 0.8
    model.to(torch.float32)
    agree(model, **how)
    assert backend.graphs == 2


def test_what_is_special_may_change_between_calls(backend):
    model = make_udm()
    agree(model, length=12)
    model.config.special_token_ids = [*model.config.special_token_ids, *range(8, 16)]
    rows = agree(model, length=12, num_return_sequences=8)
    assert not ((rows >= 8) & (rows < 16)).any()


def test_a_graph_is_kept_beside_the_model_and_not_in_it(backend, tmp_path):
    model = make_udm()
    names = set(vars(model))
    agree(model, BLANKS)
    assert set(vars(model)) == names
    twin, sent = copy.deepcopy(model), pickle.loads(pickle.dumps(model))
    for other in (twin, sent):
        assert other not in compiling._kept
        updated(other)
        agree(other, BLANKS)
    agree(model, BLANKS)
    model.save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "generation_config.json", "model.safetensors"}


def test_a_model_with_graphs_is_freed(backend):
    model = make_udm()
    agree(model, BLANKS)
    seen = weakref.ref(model)
    del model
    gc.collect()
    assert seen() is None


def test_the_oldest_graphs_go(backend, monkeypatch):
    monkeypatch.setattr(compiling, "_KEPT", 2)
    model = make_udm()
    for top_k in (2, 3, 4, 3, 2):
        agree(model, BLANKS, top_k=top_k)
    assert len(compiling._kept[model]) == 2 and backend.graphs == 4


UNCOMPILED = {
    "threshold": {"threshold": 0.3},
    "speculate": {"speculate": 2},
    "revise": {"revise": 2},
    "cache_refresh": {"cache_refresh": 3},
    "order": {"order": lambda log_probs, tokens: log_probs[:, 7]},
    "logits_processor": {"logits_processor": lambda input_ids, scores: scores / 2},
    "classifier": {"classifier": lambda tokens, rows: (tokens == 7).sum(1).double()},
}


@pytest.mark.parametrize("name", UNCOMPILED)
def test_what_cannot_be_compiled_runs_uncompiled_with_one_warning_that_names_it(name, backend):
    model, how = make_udm(), UNCOMPILED[name]
    expected = model.generate(BLANKS, seed=3, **how)
    with pytest.warns(UserWarning, match=f"compile=True compiles nothing beside {name}: ") as seen:
        found = model.generate(BLANKS, seed=3, compile=True, **how)
    assert torch.equal(found, expected) and len(seen) == 1 and seen[0].filename == __file__
    assert not backend.graphs


def test_a_predictor_of_ones_own_is_not_compiled_as_its_parent(backend, monkeypatch):
    class Own(MaskPredictor):
        def __call__(self, xt, t, s):
            return super().__call__(xt, t, s)

    model = make_udm()
    expected = model.generate(BLANKS, seed=3)
    monkeypatch.setattr(predictors, "MaskPredictor", Own)
    with pytest.warns(UserWarning, match="compile=True compiles nothing beside steps by Own"):
        assert torch.equal(model.generate(BLANKS, seed=3, compile=True), expected)
    assert not backend.graphs


@pytest.mark.parametrize("process", ["mask", "substitute", "uniform"])
def test_logits_are_made_some_at_a_time(process, backend, monkeypatch):
    monkeypatch.setattr(compiling, "_CHUNK_ELEMENTS", 5 * VOCAB)
    prompt = {"rows": BLANKS, "guidance_scale": 2.0, "order": "confidence"}
    agree(make_udm(process), **(prompt if process == "mask" else {"length": 6, "num_return_sequences": 3}))


def test_numbers_of_numpy_are_numbers(backend):
    model = make_udm()
    agree(model, BLANKS, temperature=np.float64(0.7), top_k=np.int64(5))
    agree(model, BLANKS, temperature=0.7, top_k=5)
    assert backend.graphs == 1


def test_rows_are_compiled_in_inference_mode_too(backend):
    model = make_udm()
    agree(model, BLANKS)
    with torch.inference_mode():
        agree(model, BLANKS)
    agree(model, BLANKS)


def test_every_option_that_is_not_compiled_is_tried_here():
    tried = {**{name: None for name in OPTIONS}, "order": UNCOMPILED["order"]["order"]}
    numbers = {name: [2, 0.5, True, {}, [], "word", tried[name]] for name in OPTIONS}
    found = {name for name, values in numbers.items() for x in values if not _compiles(OPTIONS[name], x)}
    assert found == set(UNCOMPILED) - {"logits_processor", "classifier"}


def _compiles(option, value):
    return not option.good(value) or option.compiles(value)


def test_a_callback_that_looks_on_is_compiled_and_one_that_changes_rows_ends_that(backend):
    model, seen = make_udm(), Counter()

    def looks(model, step, s, state):
        seen[step] += 1

    agree(model, BLANKS, callback_on_step_end=looks)
    assert backend.graphs == 1 and set(seen.values()) == {2}

    def changes(model, step, s, state):
        if step == 1:
            rows = state["xt"].clone()
            rows[:, 2] = 11
            return {"xt": rows}

    for how in ({}, {"order": "confidence"}):
        expected = model.generate(BLANKS, seed=3, callback_on_step_end=changes, **how)
        with pytest.warns(
            UserWarning, match="callback_on_step_end has put other rows in place.*compile=True"
        ) as warned:
            found = model.generate(BLANKS, seed=3, callback_on_step_end=changes, compile=True, **how)
        assert torch.equal(found, expected) and len(warned) == 1


def test_streamers_and_trajectories_see_every_step_as_it_was(backend):
    model, drafts = make_udm(), {False: [], True: []}

    class Streamer:
        def __init__(self, kept):
            self.put_draft = lambda rows: kept.append(rows.clone())

        def put(self, rows):
            pass

        def end(self):
            pass

    outputs = [quiet(model, BLANKS, compile=c, output_trajectory=True, streamer=Streamer(drafts[c])) for c in drafts]
    assert all(torch.equal(a, b) for a, b in zip(*(output.trajectory for output in outputs), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(drafts[False], drafts[True], strict=True)) and len(drafts[True]) > 2


def test_logits_without_a_law_are_refused(backend):
    model = make_udm()
    agree(model, BLANKS)
    with torch.no_grad():
        model.backbone.cls.predictions.bias.fill_(torch.nan)
    with pytest.raises(ValueError) as error:
        model.generate(BLANKS, seed=3, compile=True)
    assert str(error.value) == NOT_FINITE


def test_other_backbones_are_traced_by_their_own_forward(backend):
    config = DistilBertConfig(
        vocab_size=VOCAB, dim=32, n_layers=2, n_heads=2, hidden_dim=48, max_position_embeddings=40
    )
    for process, how in (("mask", {"rows": BLANKS}), ("substitute", {"length": 5})):
        agree(wrap(config, process), **how)
    with plain_path():
        agree(wrap(text_config(), "mask"), BLANKS, guidance_scale=2.0)
    assert backend.graphs == 3


def test_autocast_is_what_it_is_without_a_graph(backend):
    with torch.autocast("cpu", torch.bfloat16):
        agree(make_udm(), BLANKS)


def test_a_backbone_that_cannot_be_traced_is_refused_by_name(backend):
    model = make_udm()

    def forward(x):
        return x * float(x.detach().numpy().mean() > -1e9)

    model.backbone.bert.encoder.layer[0].intermediate.forward = forward
    with pytest.raises(ValueError, match="compile=True: torch.compile makes no graph.*leave compile at False"):
        model.generate(BLANKS, compile=True)


def test_the_pipeline_and_saved_settings_take_it(backend):
    tokenizer = word_tokenizer("abcdefghijklmnopqrs")
    model = make_udm(vocab_size=len(tokenizer))
    pipe = pipeline("udm-generation", model=model, tokenizer=tokenizer)
    assert pipe("a [MASK] c [MASK]", seed=0, compile=True) == pipe("a [MASK] c [MASK]", seed=0)
    assert backend.graphs == 1
    model.generation_config.compile = True
    assert torch.equal(model.generate(BLANKS, seed=3), model.generate(BLANKS, seed=3, compile=False))
    with pytest.raises(ValueError, match="compile must be True or False, got 1"):
        model.generate(BLANKS, compile=1)


def test_padded_positions_are_those_that_are_wanted_and_others_that_differ():
    wanted = torch.tensor([[0, 1, 0, 1, 0], [0, 0, 0, 0, 0], [1, 1, 1, 0, 0]], dtype=torch.bool)
    positions, live = Positions.padded(wanted, 3)
    assert positions.counts == [3, 3, 3] and len(set(zip(*(x.tolist() for x in positions.places), strict=True))) == 9
    assert torch.equal(live, wanted[positions.places])
    found = torch.zeros_like(wanted)
    found[positions.rows[live], positions.columns[live]] = True
    assert torch.equal(found, wanted)


def test_coming_numbers_are_those_that_are_drawn_next():
    rows = torch.arange(3)
    plain, ahead = RowRandom(5, rows), RowRandom(5, rows)
    for count, used in ((4, 2), (3, 3), (5, 1)):
        coming = ahead.coming(count, 6)
        assert coming.shape == (count, 3, 6)
        ahead.draws += used
        for number in range(used):
            assert torch.equal(plain.uniform(6), coming[number])
