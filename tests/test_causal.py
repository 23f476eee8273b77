"""The autoregressive twin: as large as the model it is compared with, exact, and scored on the same tokens."""

import itertools
import math

import pytest
import torch

from tests.helpers import assert_close_weights
from tests.models import CLS, FIRST, MASK, SEP, UNK, make_rows, make_udm
from tests.training_helpers import UNTRAINED, history, make_trainer, weights
from udm_text.training.causal import CausalObjective, causal_mask, causal_twin, evaluate_causal, load_twin

TWINS = ("bert", "nomic_bert")
"""One that transformers makes causal, and one that the mask does."""


def make_twin(**how):
    """The twin of `make_udm` and its objective."""
    model = make_udm(**how)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        twin = causal_twin(model.config).eval()
    places = 2 * model.config.text_config.hidden_size if how.get("family", "bert") == "bert" else 0
    assert sum(p.numel() for p in twin.parameters()) == sum(p.numel() for p in model.parameters()) + places
    return twin, CausalObjective(model.config)


@torch.no_grad()
def one_by_one(model, objective, tokens, end):
    """-log p of (token, scored) pairs, each from a forward of the tokens before it alone."""
    allowed = [i for i in range(model.config.vocab_size) if i >= FIRST or (end and i == MASK)]
    nats, seen = 0.0, [MASK]
    for token, scored in [*tokens, (MASK, True)] if end else tokens:
        ids = torch.tensor([seen])
        mask = torch.ones_like(ids) if objective.knows_causal else causal_mask(torch.ones_like(ids), torch.float32)
        log_p = model(ids, attention_mask=mask).logits[0, -1, allowed].double().log_softmax(-1)
        nats -= float(log_p[allowed.index(token)]) if scored else 0.0
        seen.append(token)
    return nats


@pytest.mark.parametrize("family", TWINS)
def test_a_rows_nats_are_those_of_its_tokens_one_after_the_other(family):
    twin, objective = make_twin(family=family, length_counts=[0, 1, 2, 3])
    assert objective.ends
    rows = [{"input_ids": ids} for ids in ([CLS, 9, 8, UNK, 7, SEP], [CLS, 11, SEP], [CLS, *[6] * 9, SEP])]
    nats = objective.row_nats(twin, rows)
    for row, (inside, end) in zip(rows, nats.tolist(), strict=True):
        tokens = [(token, token >= FIRST) for token in row["input_ids"][1:-1]]
        assert inside + end == pytest.approx(one_by_one(twin, objective, tokens, True), abs=1e-4)
    alone = torch.cat([objective.row_nats(twin, [row]) for row in rows])
    torch.testing.assert_close(nats, alone, rtol=0, atol=1e-4)


def test_only_the_answer_is_scored_given_its_prompt():
    twin, objective = make_twin(length_counts=[0, 1, 2, 3], separator_token_ids=[SEP])
    row = {"input_ids": [CLS, 9, 8, SEP, 7, 6, SEP]}
    tokens = [(9, False), (8, False), (SEP, False), (7, True), (6, True)]
    expected = one_by_one(twin, objective, tokens, True)
    assert float(objective.row_nats(twin, [row]).sum()) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("family", TWINS)
@pytest.mark.parametrize("counts", [[0, 0, 0, 5], None])
def test_the_probabilities_of_all_rows_of_one_length_sum_to_one(counts, family):
    """Where all rows are as long, none is spent on the end; else the ends make the sum over lengths one."""
    twin, objective = make_twin(family=family, vocab_size=8, length_counts=counts)
    rows = [{"input_ids": [CLS, *ids, SEP]} for ids in itertools.product(range(FIRST, 8), repeat=3)]
    inside, end = objective.row_nats(twin, rows).T
    if counts:
        assert not end.any()
        assert float((-inside).exp().sum()) == pytest.approx(1, abs=1e-5)
    else:
        shorter = [
            {"input_ids": [CLS, *ids, SEP]} for n in (1, 2) for ids in itertools.product(range(FIRST, 8), repeat=n)
        ]
        ended = float((-objective.row_nats(twin, shorter).sum(1)).exp().sum()) + float((-inside - end).exp().sum())
        goes_on = float((-inside).exp().sum() - (-inside - end).exp().sum())
        empty = math.exp(-one_by_one(twin, objective, [], True))
        assert ended + goes_on + empty == pytest.approx(1, abs=1e-5)


def test_the_twin_learns_on_the_rows_of_diffusion_however_a_step_is_split(tmp_path):
    rows, runs = make_rows(90), []
    for batch, accumulated in ((16, 1), (4, 4)):
        twin, objective = make_twin(scale=UNTRAINED, length_counts=[0, 1, 2])
        how = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulated, "learning_rate": 1e-2}
        trainer = make_trainer(tmp_path / str(batch), model=twin, objective=objective, rows=rows, **how)
        before = trainer.evaluate(rows)
        trainer.train()
        runs.append((weights(trainer), history(trainer, "loss")))
    one, other = ({name: w for name, w in run[0].items() if "key.bias" not in name} for run in runs)
    assert_close_weights(one, other, atol=1e-4)  # a key's bias changes nothing: its gradient is rounding alone
    after = trainer.evaluate(rows)
    assert after["eval_loss"] < before["eval_loss"] - 0.1
    report = evaluate_causal(trainer.model, rows, objective)
    assert report["exact"] and report["nelbo_nats_per_token"] == pytest.approx(after["eval_loss"], rel=1e-9)
    assert report["bits_per_char"] == pytest.approx(after["eval_bits_per_char"])
    scored = sum(token >= FIRST for row in rows for token in row["input_ids"])
    assert report["tokens"] == scored


def test_what_has_no_causal_twin_is_named():
    with pytest.raises(
        ValueError, match="objective 'ar' needs a backbone .* bert, roberta or nomic_bert; got 'modernbert'"
    ):
        causal_twin(make_udm(family="modernbert").config)


@pytest.mark.parametrize("family", TWINS)
def test_a_stored_twin_is_loaded_as_what_it_is(tmp_path, family):
    twin, objective = make_twin(family=family, length_counts=[0, 1, 2, 3])
    twin.save_pretrained(tmp_path)
    rows = make_rows(3)
    assert torch.equal(objective.row_nats(twin, rows), objective.row_nats(load_twin(tmp_path), rows))
