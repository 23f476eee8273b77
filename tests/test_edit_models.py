"""Repairers that insert and delete: what a network says is a table of edits, and a small one learns."""

import json
import random
from collections import Counter

import pytest
import torch
from datasets import Dataset
from scipy.stats import chisquare

from tests.helpers import udm, udm_here, write_lines
from tests.models import (
    CLS,
    FIRST,
    MASK,
    PAD,
    SEP,
    UNK,
    make_rows,
    make_tokenizer,
    make_udm,
    text_config,
    word_tokenizer,
    wrap,
)
from tests.training_helpers import make_trainer
from udm_text import UDMConfig, UDMForMaskedGeneration
from udm_text.canvas import widen
from udm_text.cli.terminal import marks
from udm_text.cli.train_text import train_text
from udm_text.corpus import CorpusError
from udm_text.corpus import make_rows as corpus_rows
from udm_text.corpus.rows import collate
from udm_text.detokenizing import align, edited_typed, read_typed, restore_text
from udm_text.edit_actions import EditScores, Move, edit_losses, edit_rates, find_runs, make_move
from udm_text.evaluation import evaluate_bound, evaluate_repair, evaluate_token_repair
from udm_text.evaluation.repair import edits
from udm_text.lattice import DELETE, INSERT, KEEP, NOTHING, SUBSTITUTE, edit_distance
from udm_text.objectives import row_losses, said, share_of_counts, stratified_counts
from udm_text.pipeline_udm import UDMGenerationPipeline
from udm_text.randomness import RowRandom
from udm_text.training import TextObjective
from udm_text.training.arguments import parse

FALSE_ALARM = 1e-5
SPECIAL = (PAD, UNK, CLS, SEP, MASK)


def few_words(**how):
    """A model with 8 tokens that may stand in a text."""
    return make_udm("edit", vocab_size=FIRST + 8, **how)


def table_of(model, rows, editable):
    """`EditScores` of rows with holes (B, L), float64, read from the network row by row: its text is written down token
    by token, with a [MASK] where a token may come, and every place is asked about."""
    process, width = model.config.build_process(), rows.shape[1]
    count = len(process.allowed)
    tables = [
        torch.zeros(len(rows), *shape).double() for shape in ((), (width, count), (width,), (width,), (width, count))
    ]
    stop, tokens, delete, gap, inserts = tables
    for n, (row, is_open) in enumerate(zip(rows.tolist(), editable.tolist(), strict=True)):
        text, at_token, at_gap = [], {}, {}
        for column, token in enumerate(row):
            hole = is_open[column] and token == PAD
            begins = is_open[column] and not (is_open[column - 1] and row[column - 1] == PAD)
            if begins:
                at_gap[column] = len(text)
                text.append(MASK)
            if not hole and not (token == PAD and not is_open[column]):
                at_token[column] = len(text)
                text.append(token)
            ends = is_open[column] and not hole and not (column + 1 < width and is_open[column + 1])
            if ends:  # a full segment: a gap that takes nothing
                text.append(MASK)
        with torch.no_grad():
            every = torch.zeros(len(text), dtype=torch.int64), torch.arange(len(text))
            output = model(torch.tensor([text]), positions=every, gaps=every)
        logits, scores = output.logits[:, process.allowed].double(), output.gap_logits.double()
        stop[n] = scores[0, 0]
        for column, place in at_token.items():
            tokens[n, column], delete[n, column] = logits[place], scores[place, 1]
        for column, place in at_gap.items():
            inserts[n, column], gap[n, column] = logits[place], scores[place, 2]
    return EditScores(*tables)


def awake(model):
    """Scores that matter: the head's bias in favour of stopping goes."""
    with torch.no_grad():
        model.gap_head.bias.zero_()
    return model


def toy_rows(batch, longest, seed=0):
    """Rows of 1 to `longest` words out of 8 with repetitions, [UNK] in some of them: (B, L) tokens, attention_mask."""
    rows = [row["input_ids"] for row in make_rows(batch, longest, vocab_size=FIRST + 3, seed=seed)]
    width = max(map(len, rows))
    tokens = torch.tensor([row + [PAD] * (width - len(row)) for row in rows])
    return tokens, tokens != PAD


@pytest.mark.parametrize("family", ["bert", "nomic_bert", "roberta"])
def test_the_loss_of_a_network_is_that_of_the_table_it_says(family):
    model = awake(few_words(family=family))
    process, config = model.config.build_process(), model.config
    x0, mask = toy_rows(12, 7)
    t, editable = torch.arange(12) % 4, config.editable(x0, mask)
    asked = {}

    def predict(**inputs):
        asked.update(inputs)
        return said(model(**inputs))

    losses = row_losses(
        predict,
        process,
        x0,
        editable,
        t,
        RowRandom(3, torch.arange(12)),
        config.forbidden_tokens(),
        loss="cross_entropy",
        attention_mask=mask,
    )
    assert not bool((asked["input_ids"] == PAD)[asked["attention_mask"].bool()].any())
    wide, _, is_open, room = process.widen(x0, editable, mask, t)
    assert torch.equal(room, t)
    edited = process.edit(wide, t, process.sample_noise(wide, editable=is_open, random=RowRandom(3, torch.arange(12))))
    expected = edit_losses(table_of(model, edited.xt, is_open), edited, is_open, process)
    torch.testing.assert_close(losses, expected, rtol=1e-4, atol=1e-5)
    assert {*edited.kinds.flatten().tolist()} == {SUBSTITUTE, DELETE, INSERT, KEEP}


def test_a_wider_row_has_its_tokens_in_their_order_and_its_own_room_in_each_segment():
    tokens = torch.tensor([[CLS, 7, 8, UNK, 9, SEP, PAD], [CLS, 7, SEP, PAD, PAD, PAD, PAD]])
    editable = (tokens >= FIRST) & (tokens != PAD)
    wide = widen(tokens, editable, tokens != PAD, torch.tensor([2, 1]), PAD)
    assert wide.tokens.tolist() == [
        [CLS, 7, 8, PAD, PAD, UNK, 9, PAD, PAD, SEP, PAD],
        [CLS, 7, PAD, SEP, *[PAD] * 7],
    ]
    assert wide.editable[0].nonzero()[:, 0].tolist() == [1, 2, 3, 4, 6, 7, 8]
    assert wide.editable[1].nonzero()[:, 0].tolist() == [1, 2]
    assert wide.attention_mask.sum(dim=1).tolist() == [10, 4]


def first_edits(model, row, max_edits=1):
    """The row as one with room, its table of rates, and {row after an edit or none: its chance}."""
    process, config = model.config.build_process(), model.config
    tokens = torch.tensor([row])
    wide, _, is_open, _ = process.widen(tokens, config.editable(tokens), None, torch.tensor([max_edits]))
    runs = find_runs(wide, is_open, process)
    rates = edit_rates(table_of(model, wide, is_open), runs)
    law = {tuple(row): float((rates.stop - rates.total).exp())}
    for kind, table in ((SUBSTITUTE, rates.substitute), (INSERT, rates.insert), (DELETE, rates.delete[..., None])):
        for column, letter in (table[0] > -1e20).nonzero().tolist():
            move = Move(*(torch.tensor([x]) for x in (kind, column, letter)))
            after = make_move(wide, is_open, move, process)[0]
            chance = float((table[0, column, letter] - rates.total[0]).exp())
            text = tuple(after[(after != PAD) | ~is_open[0]].tolist())
            law[text] = law.get(text, 0.0) + chance
    return law


ROW = [CLS, FIRST, FIRST, UNK, FIRST + 2, SEP]


def test_a_draw_has_the_law_of_the_table_and_the_coldest_one_is_its_best():
    model, many = awake(few_words()), 20_000
    law = first_edits(model, ROW)
    assert abs(sum(law.values()) - 1) < 1e-5
    drawn = model.generate(torch.tensor([ROW] * many), max_edits=1, temperature=1.0, seed=0)
    counts = Counter(tuple(i for i in row if i != PAD) for row in drawn.tolist())
    common = [row for row in law if law[row] * many > 8]
    assert not [row for row in counts if row not in law] and len(common) > 20
    seen, expected = [counts[row] for row in common], [law[row] * many for row in common]
    seen, expected = [*seen, many - sum(seen)], [*expected, many - sum(expected)]
    assert chisquare(seen, [sum(seen) / sum(expected) * e for e in expected]).pvalue > FALSE_ALARM
    best = max(law, key=lambda row: law[row])
    assert tuple(model.generate(torch.tensor([ROW]), max_edits=1)[0].tolist()) == best != tuple(ROW)
    sure = law[best]
    for least, expected_row in ((sure - 1e-4, best), (sure + 1e-4, tuple(ROW))):
        got = model.generate(torch.tensor([ROW]), max_edits=1, min_confidence=least)[0]
        assert tuple(got[got != PAD].tolist()) == expected_row


def test_a_temperature_divides_the_log_rates_and_top_k_is_of_the_tokens_of_a_place():
    model, many = awake(few_words()), 6_000
    law = first_edits(model, ROW)
    for temperature in (0.5, 2.0):
        cooled = {row: chance ** (1 / temperature) for row, chance in law.items()}
        whole = sum(cooled.values())
        drawn = model.generate(torch.tensor([ROW] * many), max_edits=1, temperature=temperature, seed=1)
        counts = Counter(tuple(i for i in row if i != PAD) for row in drawn.tolist())
        common = [row for row in law if cooled[row] / whole * many > 8]
        seen, expected = [counts[row] for row in common], [cooled[row] / whole * many for row in common]
        seen, expected = [*seen, many - sum(seen)], [*expected, max(many - sum(expected), 1e-9)]
        assert chisquare(seen, [sum(seen) / sum(expected) * e for e in expected]).pvalue > FALSE_ALARM
    drawn = model.generate(torch.tensor([ROW] * many), max_edits=1, temperature=5.0, top_k=1, seed=2)
    # at each of the 3 tokens one substitute, at each of the 5 gaps one token, 2 runs to delete from, or nothing
    assert len({tuple(row) for row in drawn.tolist()}) <= 3 + 5 + 2 + 1


def test_a_row_s_repair_does_not_depend_on_its_neighbours_and_a_seed_reproduces():
    model = awake(few_words())
    tokens, mask = toy_rows(6, 7, seed=3)
    how = {"max_edits": 3, "temperature": 1.0, "seed": 5}
    together = model.generate(tokens, attention_mask=mask, **how)
    assert torch.equal(together, model.generate(tokens, attention_mask=mask, **how))
    for n in range(len(tokens)):
        alone = model.generate(tokens[n : n + 1, : mask[n].sum()], sample_index=torch.tensor([n]), **how)[0]
        row = together[n][: len(alone)]
        assert torch.equal(row, alone) and not bool((together[n][len(alone) :] != PAD).any())


def test_at_most_max_edits_are_made_one_a_step_and_given_tokens_stand():
    model = awake(few_words())
    with torch.no_grad():
        model.gap_head.bias[0] = -20.0  # it never stops
    tokens, mask = toy_rows(8, 5, seed=4)
    for most in (1, 3):
        out = model.generate(tokens, attention_mask=mask, max_edits=most, output_trajectory=True)
        states = [[[i for i in row if i != PAD] for row in state.tolist()] for state in out.trajectory]
        assert len(states) == most + 1
        for before, after in zip(states, states[1:], strict=False):
            for a, b in zip(before, after, strict=True):
                assert a != b and len(edits(a, b)) == 1
        for row, given in zip(out.sequences.tolist(), tokens.tolist(), strict=True):
            assert [i for i in row if i in (CLS, UNK, SEP)] == [i for i in given if i in (CLS, UNK, SEP)]
        assert out.num_calls == most


def test_a_row_that_stops_rests_and_is_not_asked_about_again():
    model = few_words()
    with torch.no_grad():
        model.gap_head.bias[0] = 100.0
    tokens, mask = toy_rows(4, 6)
    for temperature in (0.0, 1.0):
        out = model.generate(
            tokens, attention_mask=mask, max_edits=5, temperature=temperature, return_dict_in_generate=True, seed=0
        )
        assert torch.equal(out.sequences, tokens) and out.num_calls == 1


def test_a_row_as_long_as_the_model_reads_gets_no_insertion_and_trains():
    model = awake(few_words())
    longest = model.config.max_row_length
    with torch.no_grad():
        model.gap_head.bias.copy_(torch.tensor([-50.0, -50.0, 50.0]))
    row = [CLS, *[FIRST + i % 8 for i in range(longest - 3)], SEP]
    out = model.generate(torch.tensor([row]), max_edits=4)
    assert out.shape[1] == longest
    process, tokens = model.config.build_process(), torch.tensor([row + [SEP]])
    editable = model.config.editable(tokens)
    _, _, _, t = process.widen(torch.tensor([row]), editable[:, :-1], None, torch.tensor([4]))
    assert t.tolist() == [1]
    with pytest.raises(ValueError, match="tokens, and the model reads at most"):
        model.generate(torch.tensor([[CLS, *[FIRST] * longest, SEP]]), max_edits=1)


def test_forbidden_tokens_are_never_brought_and_a_text_begins_with_what_may_begin_it():
    model = awake(few_words())
    rows = torch.tensor([[CLS, FIRST + 1, FIRST + 2, SEP]] * 200)
    allowed = {FIRST + 1, FIRST + 2, FIRST + 3}
    forbidden = [i for i in range(FIRST, FIRST + 8) if i not in allowed]
    how = {"max_edits": 3, "temperature": 3.0, "seed": 0}
    drawn = model.generate(rows, forbidden_tokens=forbidden, **how)
    assert {*drawn.flatten().tolist()} <= {CLS, SEP, PAD, *allowed} and FIRST + 3 in drawn
    how |= {"max_edits": 1}  # of two edits the second may delete what stands before a token
    first = Counter(model.generate(rows, **how)[:, 1].tolist())
    held = Counter(model.generate(rows, begin_suppress_tokens=[FIRST + 5], **how)[:, 1].tolist())
    assert first[FIRST + 5] and not held[FIRST + 5]


LINES = [[CLS, *range(FIRST + 5 * (i % 4), FIRST + 5 * (i % 4) + 5), SEP] for i in range(20)]
"""Four lines of five words each, 20 words in all."""


def one_error(line, kind, source):
    line, place, word = list(line), source.randrange(1, len(line) - 1), source.randrange(FIRST, FIRST + 20)
    if kind == "substitute":
        line[place] = word if word != line[place] else FIRST + (word - FIRST + 1) % 20
    elif kind == "delete":
        del line[place]
    else:
        line.insert(place, word)
    return line


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    model = make_udm("edit", vocab_size=FIRST + 20, hidden_size=64, scale=0.3)
    trainer = make_trainer(
        tmp_path_factory.mktemp("run"),
        model=model,
        rows=[{"input_ids": line} for line in LINES] * 8,
        eval_dataset=[{"input_ids": line} for line in LINES],
        objective=TextObjective(model.config, max_corruption=0.3, eval_draws=8),
        max_steps=250,
        per_device_train_batch_size=32,
        learning_rate=2e-3,
        warmup_steps=10,
        logging_steps=50,
    )
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    return model.eval(), before, trainer.evaluate()["eval_loss"]


@pytest.mark.parametrize("kind", ["substitute", "delete", "insert"])
def test_it_learns_to_repair_errors_of_each_kind_and_to_leave_a_text_alone(trained, kind):
    model, before, after = trained
    assert after < 0.6 * before
    source = random.Random(1)
    wrong = [one_error(line, kind, source) for line in LINES]
    repaired = model.generate(*padded(wrong), max_edits=2)
    back = [[i for i in row if i != PAD] for row in repaired.tolist()]
    assert sum(a == b for a, b in zip(back, LINES, strict=True)) >= 14
    assert torch.equal(model.generate(torch.tensor(LINES), max_edits=2), torch.tensor(LINES))


def padded(rows):
    """(B, L) int64."""
    width = max(map(len, rows))
    return (torch.tensor([row + [PAD] * (width - len(row)) for row in rows]),)


def test_the_geometric_law_halves_with_each_edit():
    for counts in (1, 4):
        number = torch.full((4096,), counts)
        drawn = stratified_counts(number, torch.arange(4096), 4096, 0, 0, "geometric") - 1
        found = torch.bincount(drawn, minlength=counts) / 4096
        expected = torch.tensor([0.5**n for n in range(counts)])
        torch.testing.assert_close(found, expected / expected.sum(), atol=1e-3, rtol=0)
    u = torch.tensor([1e-9, 1 - 1e-9], dtype=torch.float64)
    assert torch.allclose(share_of_counts(u, torch.tensor([7, 7]), "geometric"), torch.tensor([0.0, 1.0]).double())


def test_splits_of_a_training_step_are_the_same_step(tmp_path):
    runs = []
    for size, number in ((16, 1), (4, 4)):
        model = make_udm("edit", scale=1 / 15)
        trainer = make_trainer(
            tmp_path,
            model=model,
            objective=TextObjective(model.config, max_corruption=0.3),
            max_steps=3,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=number,
        )
        trainer.train()
        runs.append({name: p.detach().clone() for name, p in model.named_parameters()})
    for name, value in runs[0].items():
        torch.testing.assert_close(runs[1][name], value, rtol=0, atol=2e-5, msg=name)


def test_a_saved_model_repairs_alike_and_a_masked_lm_becomes_one(tmp_path):
    model = awake(few_words())
    model.save_pretrained(tmp_path / "own")
    loaded = UDMForMaskedGeneration.from_pretrained(tmp_path / "own")
    tokens, mask = toy_rows(5, 6)
    how = {"attention_mask": mask, "max_edits": 3}
    assert torch.equal(model.generate(tokens, **how), loaded.generate(tokens, **how))
    model.backbone.save_pretrained(tmp_path / "plain")
    turned = UDMForMaskedGeneration.from_pretrained(
        tmp_path / "plain", process="edit", mask_token_id=MASK, pad_token_id=PAD, special_token_ids=[*SPECIAL]
    )
    assert turned.config.gap_tokens and not turned.config.time_conditioning
    assert not bool(turned.gap_head.weight.any()) and turned.gap_head.bias.tolist() == [4.0, 0.0, 0.0]


def test_what_it_cannot_do_is_refused_in_a_sentence():
    model = few_words()
    row = torch.tensor([[CLS, FIRST, SEP]])
    for given, how, message in (
        (None, {"length": 3}, "repairs texts and cannot write, continue or fill in one: give a text and max_edits"),
        (row, {}, "repairs texts and cannot write, continue or fill in one: give a text and max_edits"),
        (row, {"max_new_tokens": 2}, "repairs texts and cannot write"),
        (torch.tensor([[CLS, MASK, SEP]]), {"max_edits": 1}, "repairs a text without .MASK.; give a text without it"),
        (
            row,
            {"max_edits": 1, "num_steps": 1},
            "num_steps=1 does not go with a repair by process 'edit', since a step",
        ),
        (row, {"max_edits": 1, "churn": 0.5}, "churn=0.5 does not go with a repair"),
        (row, {"max_edits": 1, "allowed_tokens": {1: [FIRST]}}, "allowed_tokens=.* does not go with a repair"),
        (row, {"max_edits": 1, "guidance_scale": 2.0}, "guidance_scale=2.0 does not go with a repair"),
        (row, {"max_edits": 1, "cache_refresh": 4}, "cache_refresh=4 does not go with a repair"),
        (row, {"max_edits": 1, "order": "confidence"}, "order is of the mask process"),
        (torch.tensor([[CLS, SEP]]), {"max_edits": 1}, "has no editable position"),
    ):
        with pytest.raises(ValueError, match=message):
            model.generate(given, **how)
    with pytest.raises(ValueError, match="max_edits is of the substitute or edit process and needs a model of"):
        make_udm("mask").generate(row, max_edits=1)
    for how, message in (
        ({}, "trains repairers, of texts most of which stands: give max_corruption below 1, as 0.15, got 1.0"),
        ({"max_corruption": 0.2, "loss_chunk": 4}, "loss_chunk=4 is of losses"),
        ({"max_corruption": 0.2, "loss_weighting": "sqrt"}, "loss_weighting='sqrt' changes the weights of a bound"),
    ):
        with pytest.raises(ValueError, match=message):
            TextObjective(model.config, **how)
    with pytest.raises(ValueError, match="time_law 'geometric' is of few errors in a row"):
        TextObjective(make_udm("mask").config, time_law="geometric")
    with pytest.raises(ValueError, match="loss 'nelbo' bounds -log p of texts"):
        evaluate_bound(model, [{"input_ids": [CLS, FIRST, SEP]}])
    for fields, message in (
        ({"mask_token_id": None}, "mask_token_id is not set: process 'edit' needs such a token"),
        ({"mask_token_id": PAD}, "mask_token_id and pad_token_id are both 0"),
        ({"time_conditioning": True}, "time_conditioning=True tells a model how many errors there are"),
    ):
        with pytest.raises(ValueError, match=message):
            UDMConfig(
                **{"text_config": text_config(), "process": "edit", "mask_token_id": MASK, **fields}
            ).build_process()
    with pytest.raises(ValueError, match="rows need a token before the text"):
        wrap(text_config(), "edit").generate(torch.tensor([[FIRST, FIRST + 1]]), max_edits=1)


WORDS = [f"w{i:02d}" for i in range(20)]


@pytest.fixture(scope="module")
def pipe(trained):
    return UDMGenerationPipeline(model=trained[0], tokenizer=word_tokenizer(WORDS))


def text_of(line):
    return " ".join(WORDS[token - FIRST] for token in line[1:-1])


def test_a_repaired_text_stands_as_it_was_typed_where_no_token_was_edited(pipe):
    clean = " ".join(WORDS[:5])
    for typed, repaired in (
        ("W00  w01 w03 W04 ", "W00  w01 w02 w03 W04 "),
        ("W00  w01 w02 w19 w03\tW04", "W00  w01 w02 w03\tW04"),
        ("W01  w02 w03 w04", "w00 W01  w02 w03 w04"),
        ("W00 w01 w02 w03\nw04", "W00 w01 w02 w03\nw04"),
    ):
        [record] = pipe(typed, max_edits=2, output_trajectory=True)
        assert record["generated_text"] == repaired and repaired.lower().split() == clean.split()
        assert record["trajectory"][0] == typed and record["trajectory"][-1] == repaired
    ids = pipe("w00 w01 w03 w04", max_edits=2, return_tensors=True)[0]
    assert ids["generated_token_ids"] == LINES[0] and ids["generated"] == [False, *[True] * 5, False]
    several = pipe(["w00 w01 w03 w04", "w05 w06 w07 w08 w09"], max_edits=2, batch_size=2)
    assert [one["generated_text"] for [one] in several] == [text_of(LINES[0]), text_of(LINES[1])]
    with pytest.raises(ValueError, match="repairs texts and cannot write"):
        pipe("w00")


def test_a_streamer_sees_what_was_typed_with_the_row_s_own_tokens(pipe):
    class Seen:
        def __init__(self):
            self.typed, self.texts, self.head = None, [], None

        def put_typed(self, typed):
            self.typed = typed

        def put(self, value):
            self.head = value if self.head is None else self.head

        def put_draft(self, value):
            row = torch.cat((self.head, value), dim=1)[0].tolist()
            self.texts.append(restore_text(pipe.tokenizer, *self.typed[0], row, [True] * len(row)))

        def end(self):
            pass

    seen = Seen()
    [record] = pipe("W00  w01 w03 W04", max_edits=1, streamer=seen)
    assert seen.texts == ["W00  w01 w03 W04", "W00  w01 w02 w03 W04"] and record["generated_text"] == seen.texts[-1]


def test_the_measures_of_repair_reach_texts_of_another_length(pipe, trained):
    clean = [text_of(line) for line in LINES]
    noisy = [
        text_of(line[:2] + line[3:]) if i % 2 else text_of([*line[:3], FIRST + 19, *line[3:]])
        for i, line in enumerate(LINES)
    ]
    report = evaluate_repair(trained[0], pipe.tokenizer, clean, noisy=noisy, max_edits=2)
    assert report.out_of_reach == 0 and report.left_alone == 1.0 and report.restored > 0.6
    assert evaluate_repair(trained[0], pipe.tokenizer, clean, noisy=["w00"] * 20, max_edits=2).out_of_reach >= 15
    own = evaluate_token_repair(trained[0], [{"input_ids": line} for line in LINES], errors=1)
    assert own.left_alone == 1.0 and own.restored > 0.6


def test_alignments_are_the_fewest_edits_and_in_order():
    source = random.Random(0)
    for _ in range(300):
        a, b = ([source.randrange(3) for _ in range(source.randrange(7))] for _ in range(2))
        origins = align(a, b)
        old = [i for i in origins if i >= 0]
        assert len(origins) == len(b) and old == sorted({*old})
        substituted = sum(i >= 0 and a[i] != token for i, token in zip(origins, b, strict=True))
        assert substituted + origins.count(-1) + len(a) - len(old) == len(edits(a, b))


@pytest.mark.parametrize(
    ("family", "typed", "target", "shown"),
    [
        ("roberta", "the  cat sat", "the red cat sat", "the red cat sat"),
        ("roberta", "the cat sat", "cat sat", "cat sat"),
        ("roberta", "hel lo", "hello", "hello"),
        ("roberta", "hello", "hel lo", "hel lo"),
        ("roberta", "na\u00efve cat", "nave cat", "nave cat"),
        ("roberta", "nave", "na\u00efve", "na\u00efve"),
        ("bert", "the  cat\tsat", "the sat", "the \tsat"),
        ("bert", "cat", "the cat", "the cat"),
        ("bert", " the cat ", "cat", " cat "),
    ],
)
def test_what_is_put_in_or_left_out_takes_its_space_with_it(family, typed, target, shown):
    tokenizer = make_tokenizer(family)
    row = tokenizer(target)["input_ids"]
    found = edited_typed(tokenizer, read_typed(tokenizer, typed), row)
    assert len(found.source) == len(found.spans) == len(row)
    assert restore_text(tokenizer, *found, row, [True] * len(row)) == shown


def test_an_edit_that_changes_nothing_leaves_every_text_as_it_was_typed():
    tokenizer = word_tokenizer(WORDS)
    for text in ("W00  w01", " w00\n\nXX w03 ", "w00", "XX", "w01 [SEP] w02"):
        typed = read_typed(tokenizer, text)
        assert edited_typed(tokenizer, typed, typed.source) == typed


@pytest.mark.parametrize(
    ("before", "after", "line"),
    [
        ("the cat", "the cab", "      ^"),
        ("the cat", "the red cat", "    + red "),
        ("the red cat", "the cat", "    ----"),
        ("a cat", "a horse", "  ^^^ horse"),
        ("", "a", "+ a"),
    ],
)
def test_marks_say_what_comes_and_what_goes(before, after, line):
    assert marks(before, after) == line


def test_the_command_trains_measures_and_repairs(tmp_path):
    lines = write_lines(tmp_path / "lines.txt", ["red", "green", "blue", "small", "large"], 60, 5)
    options = ["--process", "edit", "--max_corruption", "0.15", "--model", "tiny", "--max_steps", "3"]
    options += ["--per_device_train_batch_size", "8", "--eval_strategy", "steps", "--eval_steps", "2"]
    out = tmp_path / "run"
    done = udm("train", "--data", lines, "--output_dir", out, *options, "--use_cpu")
    assert "cannot be reached by edits of at most 6 tokens" in done.stdout
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    assert report["repair"]["loss_nats_per_token"] > 0 and report["process"] == "edit"
    [record] = json.loads(udm_here("repair", out, "green red", "--json").stdout)
    assert record["input"] == "green red" and record["edits"][0] == "green red"
    assert "cannot be reached by edits" in udm_here("evaluate", out).stdout


# --- pairs of noisy and clean texts ----------------------------------------------------------------------------------


def fewest(a, b):
    """Levenshtein's distance by its definition."""
    if not a or not b:
        return len(a) + len(b)
    return min(fewest(a[1:], b) + 1, fewest(a, b[1:]) + 1, fewest(a[1:], b[1:]) + (a[0] != b[0]))


def test_the_edit_distance_of_rows_is_that_of_the_definition():
    source = random.Random(0)
    pairs = [([source.randrange(3) for _ in range(source.randrange(6))] for _ in range(2)) for _ in range(60)]
    pairs = [(list(a), list(b)) for a, b in pairs]
    a, b = (
        torch.tensor([[*text, *[NOTHING] * (7 - len(text))] for text in texts]) for texts in zip(*pairs, strict=True)
    )
    assert edit_distance(a, b).tolist() == [fewest(*pair) for pair in pairs]
    assert edit_distance(a[:1, :0], b[:1]).tolist() == [len(pairs[0][1])]


def pair_batch(config, pairs, prompt=()):
    """A batch of rows [CLS] prompt [SEP] text [SEP] with noisy texts of other lengths, and the process."""
    rows = [
        {name: [CLS, *prompt, SEP, *text, SEP] for name, text in zip(("input_ids", "noisy_ids"), pair, strict=True)}
        for pair in pairs
    ]
    count = len(prompt) + 2
    for row in rows:
        row["editable"] = [i >= count and token != SEP for i, token in enumerate(row["input_ids"])]
    batch = collate(rows, PAD, config.editable)
    behind = torch.arange(batch["noisy_ids"].shape[1]) >= batch["noisy_lengths"][:, None]
    return batch, batch["noisy_ids"].masked_fill(behind, PAD)


@pytest.mark.parametrize("prompt", [(), (FIRST, FIRST + 1)])
def test_pairs_are_carried_to_their_noisy_texts_by_the_fewest_edits(prompt):
    model = few_words()
    process, source = model.config.build_process(), random.Random(1)
    pairs = []
    for _ in range(24):
        clean = [FIRST + source.randrange(8) for _ in range(source.randrange(1, 9))]
        noisy = list(clean)
        for _ in range(source.randrange(4)):
            place = source.randrange(len(noisy) + 1)
            noisy[place : place + source.randrange(2)] = [FIRST + source.randrange(8)] * source.randrange(2)
        pairs.append((clean, noisy if fewest(clean, noisy) <= len(clean) else clean))
    batch, noisy = pair_batch(model.config, pairs, prompt)
    paired = torch.arange(len(pairs)) % 3 != 0
    given = batch["input_ids"], noisy, paired, batch["editable"], batch["attention_mask"]
    t = torch.ones(len(pairs), dtype=torch.int64)
    x0, mask, editable, counts, noise = process.of_pairs(*given, t, RowRandom(0, torch.arange(len(pairs))))
    xt = process.corrupt(x0, counts, noise)
    frame = len(prompt) + 2
    fresh = process.sample_noise(x0, editable=editable, random=RowRandom(0, torch.arange(len(pairs))))
    by_itself = process.corrupt(x0, counts, fresh)
    for row, (clean, wrong) in enumerate(pairs):
        text = [token for token, is_open in zip(xt[row].tolist(), editable[row].tolist(), strict=True) if is_open]
        text = [token for token in text if token != PAD]
        assert xt[row, :frame].tolist() == [CLS, *prompt, SEP]
        if paired[row]:
            assert text == wrong
            assert int(counts[row]) == fewest(clean, wrong)
        else:
            assert int(counts[row]) == 1
            assert torch.equal(xt[row], by_itself[row])


def test_a_pair_does_not_depend_on_its_neighbours_and_every_way_of_fewest_edits_is_drawn():
    model = few_words()
    process = model.config.build_process()
    a, b = FIRST, FIRST + 1
    pairs = [([a, a, b], [a, b]), ([a] * 6, [b] * 5), ([a, b], [b, a])]
    batch, noisy = pair_batch(model.config, pairs)
    true = torch.ones(3, dtype=torch.bool)
    given = batch["input_ids"], noisy, true, batch["editable"], batch["attention_mask"], torch.ones(3).long()
    x0, _, editable, t, noise = process.of_pairs(*given, RowRandom(0, torch.arange(3)))
    together = process.edit(x0, t, noise)
    for row in range(3):
        own, own_noisy = pair_batch(model.config, pairs[row : row + 1])
        one = own["input_ids"], own_noisy, true[:1], own["editable"], own["attention_mask"], torch.ones(1).long()
        *_, t_alone, alone = process.of_pairs(*one, RowRandom(0, torch.tensor([row])))
        edited = process.edit(
            *process.widen(own["input_ids"], own["editable"], own["attention_mask"], t_alone)[:1], t_alone, alone
        )
        width = edited.kinds.shape[1]
        assert torch.equal(edited.kinds, together.kinds[row : row + 1, :width])
        assert t_alone[0] == t[row]
    many = 4000
    rows = [x[:1].expand(many, *x.shape[1:]) for x in given]
    x0, _, editable, t, noise = process.of_pairs(*rows, RowRandom(0, torch.arange(many)))
    deleted = (process.edit(x0, t, noise).kinds == DELETE).long().argmax(dim=1)
    counts = Counter(deleted.tolist())  # either of the two tokens may have gone
    assert set(counts) == {2, 3}
    assert chisquare([counts[2], counts[3]]).pvalue > FALSE_ALARM


def test_a_pair_that_could_be_longer_than_the_model_reads_has_the_noise_of_the_process():
    model = few_words()
    process = model.config.build_process()
    process.longest = 9
    clean = [FIRST] * 6  # and a frame of three
    batch, noisy = pair_batch(model.config, [(clean, clean[1:])])
    given = batch["input_ids"], noisy, torch.tensor([True]), batch["editable"], batch["attention_mask"]
    x0, _, _, t, noise = process.of_pairs(*given, torch.tensor([3]), RowRandom(0, torch.arange(1)))
    assert t.tolist() == [0]
    assert torch.equal(process.corrupt(x0, t, noise), x0)


def test_rows_of_pairs_that_edits_lead_between_are_kept_and_the_others_counted():
    tokenizer = word_tokenizer("abcd")
    texts = {
        "text": ["a b c", "a b c", "a b", "a", "b", "c", "c"],
        "noisy": ["a c", "a b b c d", "zebra b", "a b c d", "b", "c d", "d d"],
    }
    rows, counts = corpus_rows(Dataset.from_dict(texts), tokenizer, row_length=4, most_edits=2)
    assert (counts["noisy_out_of_reach"], counts["left_out"]) == (
        4,
        4,
    )  # too long, unknown, three edits; two, of one token
    assert [len(x) - len(y) for x, y in zip(rows["input_ids"], rows["noisy_ids"], strict=True)] == [1, 0, -1]
    with pytest.raises(CorpusError, match="1 noisy texts are out of reach of the clean ones, by more than 2 edits"):
        corpus_rows(Dataset.from_dict({"text": ["a"], "noisy": ["b c d"]}), tokenizer, most_edits=2)


def test_pairs_teach_the_errors_that_are_made(tmp_path):
    """The one error that is ever made is a doubled first letter, which no noise of the process would teach so fast."""
    clean = [f"{a} {b} {c}" for a in "abcd" for b in "efgh" for c in "ijkl"]
    lines = ["typed,meant", *(f"{line[0]}{line},{line}" for line in clean), *(f"{line},{line}" for line in clean)]
    file = tmp_path / "pairs.csv"
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    options = "--text_column meant --noisy_column typed --noisy_share 1 --process edit --max_corruption 0.4"
    options += " --tokenizer char --model tiny --max_steps 150 --learning_rate 2e-3 --use_cpu --report_to none"
    options += " --optim adamw_torch_fused --per_device_train_batch_size 16 --plot false --validation_share 0.2"
    report = train_text(*parse(["--data", str(file), "--output", str(tmp_path / "run"), *options.split()]))
    assert report["dropped"]["noisy_out_of_reach"] == 0
    assert report["repair"]["restored"] > 0.9
    assert report["repair"]["left_alone"] > 0.9
