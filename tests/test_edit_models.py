"""Repairers that insert and delete: what a network says is the table it says it is, and a small one learns to repair."""

import pytest
import torch

from tests.models import CLS, FIRST, MASK, PAD, SEP, UNK, make_rows, make_udm
from udm_text.edit_actions import EditScores, edit_losses
from udm_text.lattice import DELETE, INSERT, KEEP, SUBSTITUTE
from udm_text.objectives import row_losses, said
from udm_text.randomness import RowRandom

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
