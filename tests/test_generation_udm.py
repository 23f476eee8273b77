"""`generate`: only what may change changes; a row's result is its own; orders, steps and settings do what they say."""

import itertools
import threading

import pytest
import torch
from scipy.stats import chisquare
from transformers import GenerationConfig, TextDiffusionStreamer, TextStreamer

from tests.models import (
    CLS,
    COUNTS,
    FAMILIES,
    MASK,
    MAX_POSITIONS,
    PAD,
    PROCESSES,
    ROWS,
    SEP,
    SPECIAL,
    UNK,
    fixed_logits,
    make_tokenizer,
    make_udm,
    save_masked_lm,
)
from udm_text import UDMForMaskedGeneration, UDMGenerateOutput, UDMGenerationConfig
from udm_text.decoding import ORDERS
from udm_text.kernels import KERNELS


@pytest.fixture(scope="module")
def model_of():
    """Models in double precision: what rounding does is not what is asked here."""
    return {process: make_udm(process, length_counts=COUNTS).double() for process in PROCESSES}


def batch_of(rows, width=0):
    """input_ids and attention_mask, padded behind."""
    width = max(width, *(len(row) for row in rows))
    ids = torch.tensor([row + [PAD] * (width - len(row)) for row in rows])
    return {"input_ids": ids, "attention_mask": (ids != PAD).long()}


def generated_rows(model, rows, index, width=0, **how):
    output = model.generate(
        **batch_of(rows, width), sample_index=torch.tensor(index), seed=3, return_dict_in_generate=True, **how
    )
    return [tokens[keep].tolist() for tokens, keep in zip(output.sequences, output.attention_mask, strict=True)]


# ---- a row's result is its own


SAMPLERS = [("mask", {"order": order, "churn": churn}) for order in ORDERS for churn in (0, 0.5, 1)] + [
    ("substitute", {"kernel": kernel, "churn": churn})
    for kernel in KERNELS
    for churn in (0, 0.5, 1)
    if not (kernel == "site" and churn)
]


@pytest.mark.parametrize(("process", "sampler"), SAMPLERS, ids=lambda x: x if isinstance(x, str) else str(x))
def test_a_rows_result_depends_on_its_input_seed_and_sample_index_only(model_of, process, sampler):
    model = model_of[process]
    settings = [
        {"temperature": 0},
        {"top_k": 4, "top_p": 0.8},
        {"num_steps": 1, "temperature": 0.7},
        {"num_steps": 3, "temperature": 0},
        {"num_steps": 3, "temperature": 0.7, "top_k": 4},
    ]
    for how in ({**sampler, **setting} for setting in settings):
        together = generated_rows(model, ROWS, [5, 1, 9, 2], **how)
        assert together == generated_rows(model, ROWS, [5, 1, 9, 2], **how), "the seed reproduces"
        assert together == generated_rows(model, ROWS, [5, 1, 9, 2], width=15, **how), "padding"
        assert together[::-1] == generated_rows(model, ROWS[::-1], [2, 9, 1, 5], **how), "another order"
        for row, index, result in zip(ROWS, (5, 1, 9, 2), together, strict=True):
            assert generated_rows(model, [row], [index], **how) == [result], "alone"
        for row, result in zip(ROWS[:3], together[:3], strict=True):
            assert len(row) == len(result)
            for before, after in zip(row, result, strict=True):
                assert after not in SPECIAL if before == MASK else after == before
        assert together[3][:2] == [CLS, 11] and together[3][-1] == SEP
        assert not set(together[3][2:-1]) & SPECIAL


def test_another_seed_or_sample_index_gives_another_result(model_of):
    for process in PROCESSES:
        model, row = model_of[process], {"input_ids": torch.tensor([[CLS] + [MASK] * 12 + [SEP]])}
        first = model.generate(**row, seed=0)
        assert torch.equal(first, model.generate(**row, seed=0))
        assert not torch.equal(first, model.generate(**row, seed=1))
        assert not torch.equal(first, model.generate(**row, seed=0, sample_index=torch.tensor([1])))


def test_dropout_of_a_model_in_training_does_not_reach_the_samples(model_of):
    model = model_of["mask"]
    expected = model.generate(length=8, seed=0)
    model.train()
    model.backbone.bert.embeddings.eval()
    try:
        modes = [module.training for module in model.modules()]
        assert torch.equal(model.generate(length=8, seed=0), expected)
        assert [module.training for module in model.modules()] == modes
    finally:
        model.eval()


# ---- the four uses


@pytest.mark.parametrize("process", PROCESSES)
def test_unconditional_rows_have_the_length_that_is_asked_for(model_of, process):
    rows = model_of[process].generate(length=6, num_return_sequences=5, seed=1)
    assert rows.shape == (5, 8)
    assert bool((rows[:, 0] == CLS).all() and (rows[:, -1] == SEP).all())
    assert not set(rows[:, 1:-1].flatten().tolist()) & SPECIAL
    assert len({tuple(row) for row in rows.tolist()}) == 5
    assert torch.equal(rows[:2], model_of[process].generate(length=6, num_return_sequences=2, seed=1))


@pytest.mark.parametrize("process", PROCESSES)
def test_unconditional_lengths_follow_the_training_lengths(process):
    model = make_udm(process, length_counts=COUNTS)
    output = model.generate(num_return_sequences=4000, seed=5, num_steps=1, return_dict_in_generate=True)
    assert torch.equal(output.attention_mask.sum(1) - 2, output.editable.sum(1))
    law = model.config.length_probabilities()
    seen = torch.bincount(output.editable.sum(1), minlength=len(law))
    assert seen[0] == 0
    assert chisquare(seen[1:].numpy(), (law[1:] * 4000).numpy()).pvalue > 1e-4


def test_a_prompts_length_follows_the_training_lengths_that_exceed_it():
    model = make_udm(length_counts=COUNTS)
    prompt = torch.tensor([[CLS, 7, 8, 9, SEP]])
    output = model.generate(prompt, num_return_sequences=4000, seed=6, num_steps=1, return_dict_in_generate=True)
    law = model.config.length_probabilities()[4:]
    seen = torch.bincount(output.editable.sum(1), minlength=len(law) + 1)
    assert seen[0] == 0 and len(seen) == len(law) + 1
    assert chisquare(seen[1:].numpy(), (law / law.sum() * 4000).numpy()).pvalue > 1e-4
    assert bool((output.sequences[:, :4] == prompt[:, :4]).all())


def test_no_drawn_length_exceeds_what_the_model_reads():
    longest = MAX_POSITIONS - 2
    model = make_udm(length_counts=[0] * (longest - 1) + [1, 1])
    for prompt in (None, torch.tensor([[CLS] + [UNK] * 20 + [SEP]])):  # [UNK] takes room and is not counted
        rows = model.generate(prompt, num_return_sequences=200, num_steps=1, seed=0)
        assert rows.shape[1] <= MAX_POSITIONS


@pytest.mark.parametrize("process", PROCESSES)
def test_a_continuation_keeps_the_prompt_and_ends_as_the_tokenizer_ends_rows(model_of, process):
    model = model_of[process]
    prompts = batch_of([[CLS, 7, 8, SEP], [CLS, 9, UNK, 10, 11, SEP]])
    output = model.generate(**prompts, max_new_tokens=3, seed=0, return_dict_in_generate=True)
    assert isinstance(output, UDMGenerateOutput)
    assert output.sequences[0, :3].tolist() == [CLS, 7, 8] and output.sequences[0, 6:].tolist() == [SEP, PAD, PAD]
    assert output.sequences[1, :5].tolist() == [CLS, 9, UNK, 10, 11] and output.sequences[1, 8] == SEP
    assert output.editable.long().sum(1).tolist() == [3, 3] and output.steps.tolist() == [3, 3]
    assert not set(output.sequences[output.editable].tolist()) & SPECIAL
    by_length = model.generate(**prompts, length=5, seed=0, return_dict_in_generate=True)
    assert by_length.editable.sum(1).tolist() == [3, 2]  # [UNK] is no token of the text
    bare = model.generate(torch.tensor([[7, 8]]), max_new_tokens=2, seed=0)  # a prompt that is not framed
    assert bare[0, :2].tolist() == [7, 8] and bare.shape == (1, 5) and bare[0, -1] == SEP


def test_the_attention_mask_is_that_of_the_padding_token_unless_given(model_of):
    model, batch = model_of["mask"], batch_of(ROWS[:3])
    assert torch.equal(model.generate(batch["input_ids"], seed=0), model.generate(**batch, seed=0))


@pytest.mark.parametrize("family", FAMILIES)
def test_what_a_tokenizer_hands_out_can_be_given_as_it_is(family, tmp_path):
    model = UDMForMaskedGeneration.from_pretrained(save_masked_lm(tmp_path, family))
    tokenizer = make_tokenizer(family)
    batch = tokenizer(["the cat sat", f"the {tokenizer.mask_token} mat"], return_tensors="pt", padding=True)
    assert ("token_type_ids" in batch) == (family in ("bert", "nomic_bert"))
    with pytest.raises(ValueError, match="max_new_tokens does not apply"):
        model.generate(**batch, max_new_tokens=2)
    rows = model.generate(**tokenizer(["the cat sat", "a dog"], return_tensors="pt", padding=True), max_new_tokens=2)
    assert tokenizer.batch_decode(rows, skip_special_tokens=True)[0].startswith("the cat sat")
    with pytest.raises(ValueError, match="token_type_ids must hold zeros"):
        model.generate(torch.tensor([[9, 10]]), token_type_ids=torch.tensor([[0, 1]]), max_new_tokens=1)


TEXT = [CLS, 7, 8, UNK, 9, 10, 11, 12, SEP]


@pytest.mark.parametrize("kernel", [None, *KERNELS])
@pytest.mark.parametrize("temperature", [None, 0.0, 1.0])
def test_a_repair_changes_at_most_max_edits_ordinary_tokens(model_of, kernel, temperature):
    text = batch_of([TEXT, TEXT[:5] + [SEP]])
    for max_edits, num_steps in itertools.product((1, 3, 50), (None, 1, 2)):
        rows = model_of["substitute"].generate(
            **text,
            max_edits=max_edits,
            num_steps=num_steps,
            kernel=kernel,
            temperature=temperature,
            seed=2,
            num_return_sequences=3,
        )
        before = text["input_ids"].repeat_interleave(3, dim=0)
        changed = rows != before
        assert int(changed.sum(1).max()) <= max_edits
        assert not set(before[changed].tolist()) & SPECIAL and not set(rows[changed].tolist()) & SPECIAL


def test_a_repair_mends_the_token_the_model_doubts_most_and_leaves_a_clean_text_alone(monkeypatch):
    model = make_udm("substitute")
    table = torch.zeros(len(TEXT), 24)
    for i, token in enumerate(TEXT):
        table[i, token] = 6.0  # the model believes in the text, token by token
    fixed_logits(monkeypatch, model, table)
    clean = torch.tensor([TEXT])
    assert torch.equal(model.generate(clean, max_edits=4), clean)
    broken = clean.clone()
    broken[0, 2], broken[0, 5] = 20, 21
    table[5, TEXT[5]] = 9.0
    one = model.generate(broken, max_edits=1)
    assert one[0, 5] == TEXT[5] and one[0, 2] == 20  # the surer of the two mistakes
    output = model.generate(broken, max_edits=5, output_trajectory=True)
    assert torch.equal(output.sequences, clean)
    edits = [int((a != b).sum()) for a, b in itertools.pairwise(output.trajectory)]
    assert edits == [1, 1, 0, 0, 0]


def test_rows_with_masks_and_rows_to_continue_may_share_a_batch(model_of):
    output = model_of["mask"].generate(**batch_of(ROWS), seed=0, return_dict_in_generate=True)
    assert output.editable[0].nonzero()[:, 0].tolist() == [2, 4, 5]
    assert output.sequences[3, :2].tolist() == [CLS, 11] and bool(output.editable[3, 2])


# ---- orders, steps, settings


SURE = torch.tensor([(0.60, 0.40, 0.0), (0.62, 0.19, 0.19), (0.63, 0.36, 0.01), (0.90, 0.10, 0.0)], dtype=torch.float64)
SCORES = {
    "confidence": SURE[:, 0],
    "margin": SURE[:, 0] - SURE[:, 1],
    "entropy": torch.special.xlogy(SURE, SURE).sum(1),
    "left_to_right": -torch.arange(4.0),
}


def test_every_order_of_the_next_test_differs_from_the_others():
    assert len({tuple(score.argsort().tolist()) for score in SCORES.values()}) == 4


@pytest.mark.parametrize("num_steps", [None, 2])
@pytest.mark.parametrize(
    ("order", "cut"),
    [
        *((order, cut) for order in SCORES for cut in ({"temperature": 0}, {"top_k": 1})),
        # confidence is that of the drawn token: it is known beforehand for the best one only
        *((order, {"temperature": 3.0}) for order in SCORES if order != "confidence"),
    ],
)
def test_positions_are_revealed_in_the_documented_order(monkeypatch, order, cut, num_steps):
    model = make_udm()
    table = torch.full((6, 24), -70.0)
    table[1:5, 5:8] = SURE.clamp(min=1e-30).log().float()
    table[:, [CLS, MASK]] = 50.0  # what is forbidden does not count
    fixed_logits(monkeypatch, model, table)
    expected = (SCORES[order].argsort(descending=True) + 1).tolist()
    ids = torch.tensor([[CLS, MASK, MASK, MASK, MASK, SEP]])
    for seed in range(3):
        output = model.generate(ids, order=order, seed=seed, num_steps=num_steps, output_trajectory=True, **cut)
        shown = [(b[0] != a[0]).nonzero()[:, 0].tolist() for a, b in itertools.pairwise(output.trajectory)]
        if num_steps is None:
            assert shown == [[i] for i in expected]
        else:
            assert [set(i) for i in shown] == [set(expected[:2]), set(expected[2:])]


def test_the_random_order_is_uniform(monkeypatch):
    model = make_udm()
    fixed_logits(monkeypatch, model, torch.zeros(5, 24))
    output = model.generate(length=3, num_return_sequences=3000, seed=0, output_trajectory=True)
    shown = torch.stack([(b != a).long().argmax(1) for a, b in itertools.pairwise(output.trajectory)], dim=1)
    _, counts = shown.unique(dim=0, return_counts=True)
    assert len(counts) == 6 and chisquare(counts.numpy()).pvalue > 1e-4


def test_a_static_order_asks_the_network_at_the_positions_that_change_only(monkeypatch):
    model = make_udm()
    calls = fixed_logits(monkeypatch, model, torch.zeros(8, 24))
    model.generate(length=5, seed=0, num_return_sequences=2)
    assert len(calls) == 5 and all(call["positions"].sum(1).tolist() == [1, 1] for call in calls)
    calls.clear()
    output = model.generate(length=5, seed=0, num_steps=2, return_dict_in_generate=True)
    assert [int(call["positions"].sum()) for call in calls] == [2, 3] and output.num_calls == 2


def test_a_row_that_is_done_is_not_asked_about(monkeypatch):
    model = make_udm()
    calls = fixed_logits(monkeypatch, model, torch.zeros(10, 24))
    output = model.generate(**batch_of(ROWS[:3]), seed=0, return_dict_in_generate=True)
    assert [len(call["input_ids"]) for call in calls] == [3, 2, 2, 1, 1]
    assert output.steps.tolist() == [3, 5, 1]


@pytest.mark.parametrize(
    ("how", "weights"),
    [
        ({}, lambda p: p),
        ({"temperature": 0.5}, lambda p: p**2),
        ({"temperature": 2.0}, lambda p: p**0.5),
        ({"top_k": 3}, lambda p: p * (p >= p.sort().values[-3])),
        ({"top_p": 0.5}, lambda p: p * (p >= p.sort().values[-2])),
        ({"temperature": 0}, lambda p: (p == p.max()).double()),
    ],
)
def test_tokens_follow_the_models_law_at_the_temperature_asked_for(monkeypatch, how, weights):
    model = make_udm()
    law = torch.tensor([0.3, 0.25, 0.2, 0.15, 0.1], dtype=torch.float64)
    table = torch.full((3, 24), -70.0)
    table[1, 5:10] = law.log().float()
    table[1, [CLS, UNK, MASK, PAD]] = 5.0
    fixed_logits(monkeypatch, model, table)
    rows = model.generate(torch.tensor([[CLS, MASK, SEP]]), num_return_sequences=4000, seed=0, **how)
    seen = torch.bincount(rows[:, 1], minlength=24)
    expected = weights(law)
    expected = expected / expected.sum()
    assert seen[5:10].sum() == 4000 and bool((seen[5:10][expected == 0] == 0).all())
    possible = expected > 0
    if int(possible.sum()) > 1:
        assert chisquare(seen[5:10][possible].numpy(), (expected[possible] * 4000).numpy()).pvalue > 1e-4


@pytest.mark.parametrize("churn", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("order", ORDERS)
def test_a_mask_trajectory_holds_as_many_masks_as_the_step_says(model_of, order, churn):
    model = model_of["mask"]
    for num_steps in (None, 3):
        output = model.generate(
            **batch_of(ROWS[:3]), order=order, churn=churn, num_steps=num_steps, seed=4, output_trajectory=True
        )
        left = torch.stack([(xt == MASK).sum(1) for xt in output.trajectory])
        assert left[0].tolist() == [3, 5, 1] and left[-1].tolist() == [0, 0, 0]
        falls = left[:-1] - left[1:]
        for row in range(3):
            steps = int(output.steps[row])
            assert bool((falls[:steps, row] >= 1).all()) and not falls[steps:, row].any()
            if num_steps is None:
                assert falls[:steps, row].tolist() == [1] * steps
        if churn == 0:
            for a, b in itertools.pairwise(output.trajectory):
                assert bool((a == MASK)[a != b].all()), "what is revealed stays"
        assert torch.equal(output.trajectory[-1], output.sequences)


def test_churn_masks_again_what_was_revealed(model_of):
    output = model_of["mask"].generate(length=12, churn=1.0, seed=0, num_return_sequences=4, output_trajectory=True)
    again = sum(int(((a != MASK) & (b == MASK)).sum()) for a, b in itertools.pairwise(output.trajectory))
    assert again > 0


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_substitute_trajectory_changes_one_token_a_step(model_of, kernel):
    output = model_of["substitute"].generate(
        length=6, kernel=kernel, seed=4, num_return_sequences=5, output_trajectory=True
    )
    edits = torch.stack([(a != b).sum(1) for a, b in itertools.pairwise(output.trajectory)])
    assert edits.shape == (6, 5)
    assert bool((edits <= 1).all()) if kernel == "free" else bool((edits == 1).all())
    by_three = model_of["substitute"].generate(length=6, kernel=kernel, seed=4, num_steps=2, output_trajectory=True)
    edits = [int((a != b).sum()) for a, b in itertools.pairwise(by_three.trajectory)]
    assert max(edits) <= 3 if kernel == "free" else edits == [3, 3]


def test_a_trajectory_asked_for_comes_in_a_dictionary(model_of):
    output = model_of["mask"].generate(length=3, output_trajectory=True)
    assert isinstance(output, UDMGenerateOutput) and len(output.trajectory) == 4
    plain = model_of["mask"].generate(length=3, return_dict_in_generate=True)
    assert plain.trajectory is None and plain["sequences"].shape == (1, 5)


# ---- streamers, callbacks, generators, settings


class Recorder:
    def __init__(self):
        self.events = []

    def put(self, value):
        self.events.append(("put", value.tolist()))

    def put_draft(self, value):
        self.events.append(("draft", value.tolist()))

    def end(self):
        self.events.append(("end", None))


@pytest.mark.parametrize("process", PROCESSES)
def test_a_streamer_gets_the_prompt_every_draft_the_result_and_the_end(model_of, process):
    recorder = Recorder()
    output = model_of[process].generate(
        torch.tensor([[CLS, 7, SEP]]), max_new_tokens=3, seed=0, streamer=recorder, output_trajectory=True
    )
    drafts = [("draft", xt[:, 2:].tolist()) for xt in output.trajectory]
    result = ("put", output.sequences[:, 2:].tolist())
    assert recorder.events == [("put", [[CLS, 7]]), *drafts, result, ("end", None)]


def test_the_streamers_of_transformers_run(model_of, capsys):
    tokenizer = make_tokenizer("bert")
    prompt = torch.tensor([[CLS, 7, SEP]])
    for kind in (TextDiffusionStreamer, TextStreamer):
        rows = model_of["mask"].generate(prompt, max_new_tokens=3, seed=0, streamer=kind(tokenizer))
        shown = capsys.readouterr().out
        assert tokenizer.decode(rows[0, 2:]).removeprefix("##") in shown
        assert ("\033[33m" in shown) == (kind is TextDiffusionStreamer)
    with pytest.raises(ValueError, match="batch size 1"):
        model_of["mask"].generate(length=3, num_return_sequences=2, streamer=TextDiffusionStreamer(tokenizer))


def test_a_callback_sees_every_step_and_may_replace_xt(model_of):
    model, seen = model_of["mask"], []

    def watch(given, step, s, state):
        assert given is model
        seen.append((step, s.tolist(), int((state["xt"] == MASK).sum())))

    expected = model.generate(length=4, seed=0)
    assert torch.equal(model.generate(length=4, seed=0, callback_on_step_end=watch), expected)
    assert seen == [(0, [3], 3), (1, [2], 2), (2, [1], 1), (3, [0], 0)]

    def write(given, step, s, state):
        xt = state["xt"].clone()
        xt[xt != MASK] = torch.where(xt[xt != MASK] > MASK, 9, xt[xt != MASK])
        return {"xt": xt}

    rows = model.generate(length=4, seed=0, callback_on_step_end=write)
    assert rows.tolist() == [[CLS, 9, 9, 9, 9, SEP]]


@pytest.mark.parametrize("how", [{}, {"threshold": 0.5}, {"speculate": 2}], ids=str)
@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (lambda xt: xt, "got Tensor"),
        (lambda xt: "xt", "got str"),
        (lambda xt: {"xs": xt}, r"got \['xs'\]"),
        (lambda xt: {"xt": xt.tolist()}, "got list"),
        (lambda xt: {"xt": xt[:, 1:]}, r"shape \(1, 6\) of xt, got \(1, 5\)"),
        (lambda xt: {"xt": xt.float()}, "got .* torch.float32"),
        (lambda xt: {"xt": xt == 3}, "got .* torch.bool"),
        (lambda xt: {"xt": xt + 24}, r"token ids in \[0, 24\), got 2[4-9] to"),
        (lambda xt: {"xt": xt - 24}, r"token ids in \[0, 24\), got -"),
    ],
)
def test_what_a_callback_returns_is_checked(model_of, returned, message, how):
    with pytest.raises(ValueError, match=f"callback_on_step_end must return None or .*{message}"):
        model_of["mask"].generate(length=4, callback_on_step_end=lambda m, step, s, state: returned(state["xt"]), **how)


def test_a_callback_may_return_nothing_or_ids_of_32_bits(model_of):
    model = model_of["mask"]
    expected = model.generate(length=4, seed=0)
    for returned in (lambda xt: {}, lambda xt: {"xt": xt.int()}, lambda xt: {"xt": xt}):
        rows = model.generate(length=4, seed=0, callback_on_step_end=lambda m, i, s, state, f=returned: f(state["xt"]))
        assert torch.equal(rows, expected) and rows.dtype == torch.int64


@pytest.mark.parametrize("process", PROCESSES)
def test_no_rows_give_no_rows(process):
    model = make_udm(process, length_counts=COUNTS)
    for empty in (torch.zeros(0, 5, dtype=torch.int64), torch.zeros(0, 0, dtype=torch.int64)):
        uses = [{}, {"max_new_tokens": 3}, {"num_return_sequences": 4}]
        own = {"mask": [{"speculate": 2}, {"order": "margin"}], "substitute": [{"max_edits": 2}]}
        uses += own.get(process, [])
        for how in uses:
            assert torch.equal(model.generate(empty, **how), empty)
            output = model.generate(empty, attention_mask=empty.bool(), output_trajectory=True, **how)
            assert output.sequences.shape == empty.shape and output.steps.shape == (0,) and output.num_calls == 0
            assert len(output.trajectory) == 1
        recorder = Recorder()
        model.generate(empty, streamer=recorder)
        assert recorder.events == [("end", None)]
        with pytest.raises(ValueError, match="temperature must be"):
            model.generate(empty, temperature=-1)


@pytest.mark.parametrize("training", [True, False])
def test_threads_that_share_a_model_leave_it_in_the_mode_they_found_it_in(training):
    model = make_udm(dropout=0.5).train(training)
    expected = [module.training for module in model.modules()]
    inside, leave = threading.Barrier(2), threading.Event()
    rows: dict[str, torch.Tensor] = {}

    def first(m, step, s, state):
        if step == 0:
            inside.wait(20)  # the other is within generate as well, which found the model in evaluation mode

    def second(m, step, s, state):
        if step == 0:
            inside.wait(20)
            assert leave.wait(20)  # and stays there when the first has left
        assert not m.training

    def run(name, callback):
        rows[name] = model.generate(length=5, seed=0, callback_on_step_end=callback)

    threads = [threading.Thread(target=run, args=pair) for pair in (("first", first), ("second", second))]
    for thread in threads:
        thread.start()
    threads[0].join(20)
    assert not model.training
    leave.set()
    threads[1].join(20)
    assert [module.training for module in model.modules()] == expected
    assert torch.equal(rows["first"], rows["second"])


def test_a_generator_is_accepted_and_not_beside_a_seed(model_of):
    model = model_of["mask"]
    first = model.generate(length=8, generator=torch.Generator().manual_seed(4))
    assert torch.equal(first, model.generate(length=8, generator=torch.Generator().manual_seed(4)))
    assert not torch.equal(first, model.generate(length=8, generator=torch.Generator().manual_seed(5)))
    with pytest.raises(ValueError, match="seed or generator, not both"):
        model.generate(length=8, generator=torch.Generator(), seed=0)
    torch.manual_seed(1)
    drawn = model.generate(length=8)
    torch.manual_seed(1)
    assert torch.equal(drawn, model.generate(length=8))


def test_settings_come_from_the_call_then_the_given_config_then_the_model():
    model = make_udm(length_counts=COUNTS)
    model.generation_config = UDMGenerationConfig(length=4, num_steps=1, seed=2)
    assert model.generate().shape == (1, 6)
    assert model.generate(return_dict_in_generate=True).num_calls == 1
    assert model.generate(length=3, num_steps=None, return_dict_in_generate=True).num_calls == 3
    other = UDMGenerationConfig(length=5)
    assert model.generate(generation_config=other, return_dict_in_generate=True).num_calls == 5
    assert other == UDMGenerationConfig(length=5) and model.generation_config.length == 4
    # a stored extent gives way to what the call is for
    prompt = torch.tensor([[CLS, 7, 8, 9, 10, 11, SEP]])
    assert model.generate(prompt, max_new_tokens=2).shape == (1, 9)
    assert model.generate(torch.tensor([[CLS, MASK, 7, SEP]])).shape == (1, 4)
    assert model.generate(length=None, seed=3).shape[1] >= 3
    first, second = (model.generate(generator=torch.Generator().manual_seed(i)) for i in (0, 1))
    assert not torch.equal(first, second)


def test_arguments_are_not_changed(model_of):
    batch = batch_of(ROWS)
    before = {name: value.clone() for name, value in batch.items()}
    config = UDMGenerationConfig(seed=1)
    for process in PROCESSES:
        model_of[process].generate(**batch, generation_config=config)
    assert all(torch.equal(batch[name], before[name]) for name in batch)
    assert config == UDMGenerationConfig(seed=1)


# ---- errors


@pytest.mark.parametrize(
    ("process", "how", "message"),
    [
        ("mask", {"num_stepz": 3}, "unknown argument 'num_stepz' of generate"),
        ("mask", {"do_sample": True}, "unknown argument 'do_sample'"),
        ("mask", {"temperature": -1}, "temperature must be"),
        ("mask", {"order": "best"}, "order must be 'random'"),
        ("substitute", {"kernel": "best"}, "kernel must be 'site'"),
        ("mask", {"kernel": "site"}, "kernel is of the substitute process"),
        ("substitute", {"order": "confidence"}, "order is of the mask process"),
        ("substitute", {"churn": 0.5}, "churn needs a kernel"),
        (
            "substitute",
            {"churn": 0.5, "kernel": "free", "max_edits": 1, "input_ids": [[CLS, 7, SEP]]},
            "churn corrupts",
        ),
        ("mask", {"max_edits": 1, "input_ids": [[CLS, 7, SEP]]}, "max_edits .* needs a model of process 'substitute'"),
        ("substitute", {"max_edits": 1}, "max_edits .* give input_ids"),
        ("substitute", {"max_edits": 1, "input_ids": [[CLS, MASK, 7, SEP]]}, "max_edits .* without \\[MASK\\]"),
        ("substitute", {"max_edits": 1, "length": 3, "input_ids": [[CLS, 7, SEP]]}, "length do not apply"),
        (
            "substitute",
            {"max_edits": 1, "input_ids": [[CLS, 7, SEP], [CLS, UNK, SEP]]},
            "row 1 .* no editable position",
        ),
        ("mask", {"input_ids": [[CLS, MASK, SEP]], "length": 3}, "filled in: length does not apply"),
        ("mask", {"input_ids": [[CLS, MASK, SEP]], "max_new_tokens": 3}, "filled in: max_new_tokens does not apply"),
        ("mask", {"input_ids": [[CLS, 7, SEP]], "length": 3, "max_new_tokens": 3}, "give length .* not both"),
        ("mask", {"input_ids": [[CLS, 7, 8, SEP]], "length": 2}, "length is 2, and a prompt has 2 tokens already"),
        ("mask", {"input_ids": [[CLS, 7, SEP]]}, "length_counts"),
        ("mask", {}, "length is not given"),
        ("mask", {"length": MAX_POSITIONS}, f"row of {MAX_POSITIONS + 2} tokens, and the model reads at most"),
        ("mask", {"input_ids": [[CLS] + [7] * MAX_POSITIONS + [SEP]], "max_new_tokens": 1}, "input_ids .* at most 40"),
        ("mask", {"input_ids": [[CLS] + [7] * MAX_POSITIONS + [MASK]]}, "input_ids .* at most 40"),
        ("mask", {"input_ids": [[CLS, 24, SEP]], "max_new_tokens": 1}, r"input_ids must lie in \[0, 24\)"),
        ("mask", {"input_ids": [CLS, MASK, SEP]}, "input_ids must be a .B, L. tensor"),
        ("mask", {"attention_mask": [[1, 1]]}, "attention_mask is given without input_ids"),
        ("mask", {"input_ids": [[CLS, MASK]], "attention_mask": [[1]]}, "attention_mask must have the shape"),
        (
            "mask",
            {"input_ids": [[PAD, CLS, MASK]], "attention_mask": [[0, 1, 1]]},
            "attention_mask must be right-padded",
        ),
        ("mask", {"input_ids": [[PAD, CLS, 7]], "max_new_tokens": 1}, "attention_mask must be right-padded"),
        ("mask", {"length": 2, "sample_index": [1, 2]}, "sample_index must have one entry for each of the 1 rows"),
        ("mask", {"length": 2, "sample_index": [True]}, r"sample_index .* got \(1,\) torch.bool"),
        ("mask", {"length": 2, "sample_index": [0.5]}, "sample_index .* got .* torch.float32"),
        ("mask", {"input_ids": [[CLS, MASK]], "attention_mask": [[1, 2]]}, "attention_mask must hold 1"),
        ("mask", {"input_ids": [[CLS, MASK]], "token_type_ids": "ab"}, "token_type_ids must be a tensor"),
        ("mask", {"length": 2, "generator": 3}, "generator must be a torch.Generator, got int"),
        ("mask", {"length": 2, "streamer": print}, "streamer must have the methods put and end, got builtin"),
        ("mask", {"length": 2, "callback_on_step_end": "print"}, "callback_on_step_end must be callable .*, got str"),
        (
            "mask",
            {"length": 2, "callback_on_step_end": lambda x: x},
            "must be callable as callback.model, .* got function",
        ),
        ("mask", {"length": True}, "length must be a positive integer or None, got True"),
        ("mask", {"length": 2.0}, "length must be a positive integer or None, got 2.0"),
        ("mask", {"length": 2, "num_steps": 10**30}, "num_steps must be a positive integer"),
        ("mask", {"length": 2, "seed": 10**400}, "seed must be an integer of 64 bits or None"),
        ("mask", {"length": 2, "temperature": 10**400}, "temperature must be a number"),
        ("mask", {"length": 2, "top_p": "0.9"}, "top_p must be a number in"),
        ("mask", {"length": 2, "schedule": ["linear"]}, "schedule must be 'linear'"),
        ("substitute", {"length": 2, "kernel": ["site"]}, "kernel must be 'site'"),
        ("mask", {"length": 2, "output_trajectory": "yes"}, "output_trajectory must be True or False, got 'yes'"),
        ("mask", {"length": 2, "return_dict_in_generate": 1}, "return_dict_in_generate must be True or False, got 1"),
        ("mask", {"max_new_tokens": 10**8, "input_ids": [[CLS, 7, SEP]]}, "row of 100000003 tokens, and the model"),
        ("mask", {"length": 2, "num_return_sequences": 10**12}, "asks for 1000000000000 rows, and a call makes"),
    ],
)
def test_what_cannot_work_is_refused_by_name_before_the_network_is_asked(monkeypatch, process, how, message):
    model = make_udm(process)

    def never(**inputs):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(model, "forward", never)
    tensors = ("input_ids", "attention_mask", "sample_index")
    how = {name: torch.tensor(value) if name in tensors else value for name, value in how.items()}
    with pytest.raises(ValueError, match=message):
        model.generate(**how)


def test_a_prompt_that_leaves_no_room_for_a_drawn_length_is_refused():
    model = make_udm(length_counts=COUNTS)
    with pytest.raises(ValueError, match="a prompt of 10 tokens leaves no room"):
        model.generate(torch.tensor([[CLS] + [7] * 10 + [SEP]]))
    assert model.generate(torch.tensor([[CLS] + [7] * 10 + [SEP]]), max_new_tokens=1).shape == (1, 13)


def test_a_generation_config_of_another_kind_is_refused(model_of):
    with pytest.raises(ValueError, match="generation_config must be a UDMGenerationConfig, got GenerationConfig"):
        model_of["mask"].generate(generation_config=GenerationConfig(), length=2)


def test_input_ids_must_be_a_tensor_of_integers(model_of):
    for wrong in ([[CLS, MASK]], torch.tensor([[0.5]]), torch.tensor([[True]]), "text", 3):
        with pytest.raises(ValueError, match="input_ids must be"):
            model_of["mask"].generate(wrong)
    ids = torch.tensor([[CLS, MASK]])
    for name in ("attention_mask", "sample_index", "token_type_ids"):
        with pytest.raises(ValueError, match=f"{name} .* got list"):
            model_of["mask"].generate(ids, **{name: [[1, 1]]})


def test_a_mask_model_without_mask_token_and_a_vocabulary_of_one_are_refused():
    with pytest.raises(ValueError, match="mask_token_id is not set"):
        make_udm(mask_token_id=None).generate(length=2)
    with pytest.raises(ValueError, match="at least 2 tokens"):
        make_udm("substitute", special_token_ids=list(range(23))).generate(length=2)


def test_rows_of_different_lengths_need_a_padding_token():
    model = make_udm(pad_token_id=None, length_counts=[0, 1, 1, 1])
    model.config.pad_token_id = None  # BERT's own is 0
    with pytest.raises(ValueError, match="pad_token_id"):
        model.generate(num_return_sequences=20, seed=0)


@pytest.mark.parametrize("many", [10**8, 2**62])
def test_a_row_that_no_model_reads_is_refused_before_it_is_built(model_of, monkeypatch, many):
    prompt, limited = torch.tensor([[CLS, 7, 8, SEP]]), model_of["mask"]
    reads = f"and the model reads at most {limited.config.max_row_length}"
    for given, row in ((prompt, 3), (None, 1)):
        with pytest.raises(ValueError, match=f"make a row of {many + row + 1} tokens, {reads}: .*max_new_tokens"):
            limited.generate(given, max_new_tokens=many)
    with pytest.raises(ValueError, match=f"make a row of {many + 2} tokens, {reads}: .*smaller length"):
        limited.generate(prompt, length=many, num_return_sequences=3)
    monkeypatch.setattr(type(limited.config), "max_row_length", None)
    with pytest.raises(ValueError, match="the model names no limit, so that 1048576 is it"):
        limited.generate(length=many)
