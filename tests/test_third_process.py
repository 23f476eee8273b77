"""A process of one's own: a class, a line in the table, and nothing else, trains, bounds, generates and saves."""

import itertools
import math

import pytest
import torch

from tests.models import CLS, MASK, SEP, make_rows, make_udm
from tests.training_helpers import make_trainer
from udm_text import UDMForMaskedGeneration, configuration_udm
from udm_text.card import make_card
from udm_text.core import denoise
from udm_text.evaluation import evaluate_bound
from udm_text.objectives import mask_losses
from udm_text.predictors import MaskPredictor
from udm_text.processes import CardWords, MaskProcess, TokenNoise, corrupted_set
from udm_text.randomness import RowRandom

BLANKS = (MASK, 23)
"""Two tokens that a corrupted position may show, either with a chance of one half."""


class TwoBlanks:
    """F_t puts one of two blanks on the positions of rank < t: which one is noise, and tells nothing of x0."""

    time_conditioned, kernels, inserts, prices_steps, has_curve, has_rates = False, (), False, True, True, False
    edits, gap_scores, training, whole_rows = False, (), ("bound", "uniform"), False
    generation_options = frozenset(("order", "revise", "threshold"))
    card = CardWords("two-blanks", "by two kinds of blank", "A toy.")

    def __init__(self, mask_token_id):
        self.masks, self.blanks = MaskProcess(mask_token_id), torch.tensor([mask_token_id, 23])

    @classmethod
    def from_config(cls, config):
        return cls(config.mask_token_id)

    def sample_noise(self, x, *, editable=None, random=None):
        noise = self.masks.sample_noise(x, editable=editable, random=random)
        return noise._replace(shifts=(random.uniform(x.shape[1]) < 0.5).long())

    def corrupt(self, x0, t, noise):
        return torch.where(corrupted_set(noise.keys, t), self.blanks[noise.shifts], x0)

    def corrupted(self, xt, x0=None):
        return torch.isin(xt, self.blanks)

    def invert_noise(self, x0, xt, t, *, editable=None, random=None, scores=None):
        as_masks = torch.where(self.corrupted(xt), self.blanks[0], xt)
        noise = self.masks.invert_noise(x0, as_masks, t, editable=editable, random=random, scores=scores)
        fresh = (random.uniform(xt.shape[1]) < 0.5).long()
        return noise._replace(shifts=torch.where(self.corrupted(xt), (xt == self.blanks[1]).long(), fresh))

    def changing(self, xt, s, noise):
        return self.corrupted(xt) & ~corrupted_set(noise.keys, s) & torch.isfinite(noise.keys)

    def blend(self, noise, fresh, churn):
        swap = fresh.coins < churn
        return TokenNoise(*(torch.where(swap, new, old) for new, old in zip(fresh, noise, strict=True)))

    def prior(self, x, *, editable=None, random=None):
        noise = self.sample_noise(x, editable=editable, random=random)
        return self.corrupt(x, torch.full((len(x),), x.shape[1]), noise)

    def losses(self, predict, rows, forbidden, *, loss="nelbo", kernel="site", chunk=None):
        return mask_losses(predict, rows, forbidden, chunk)

    def check_training(self, loss, max_corruption, loss_chunk):
        pass

    def predictor(self, model, config, inputs, random, constraints):
        return MaskPredictor(model, self, config, inputs, random, constraints)

    def resolve_options(self, config, model_config):
        pass


@pytest.fixture(autouse=True)
def in_the_table(monkeypatch):
    monkeypatch.setitem(configuration_udm.PROCESSES, "two-blanks", TwoBlanks)


def blank_model(**how):
    return make_udm("two-blanks", special_token_ids=[1, 23], **how)


def test_it_satisfies_the_marginal_identity():
    """sum over xt of p(xs | xt, x0) p(xt | x0) = p(xs | x0): what is drawn at t and walked to s is as if drawn at s."""
    process, x0, many = TwoBlanks(MASK), torch.tensor([[7, 8, 9]]), 60_000
    rows, random = x0.expand(many, -1), RowRandom(0, torch.arange(many))
    three, one = torch.full((many,), 3), torch.full((many,), 1)
    xt = process.corrupt(rows, three, process.sample_noise(rows, random=random))
    for churn in (0.0, 0.6):
        xs = denoise(process, lambda xt, t, s: rows, xt, [three, one], churn, random=random)
        for place, blank in itertools.product(range(3), BLANKS):
            seen = float(((xs[:, place] == blank) & (xs == rows).sum(1).eq(2)).double().mean())
            assert abs(seen - 1 / 6) < 4.5 * math.sqrt(5 / 36 / many)


def test_it_trains_and_its_bound_is_that_of_its_walk(tmp_path):
    trainer = make_trainer(
        tmp_path / "run", model=blank_model(), rows=make_rows(40), eval_dataset=make_rows(9), max_steps=4
    )
    trainer.train()
    assert trainer.state.global_step == 4 and math.isfinite(trainer.evaluate()["eval_loss"])
    model, row = blank_model(), [CLS, 7, 8, SEP]
    report = evaluate_bound(model, [{"input_ids": row}], draws=4000, seed=0)

    def price(show, position):
        logits = model(input_ids=torch.tensor([show])).logits[0, position]
        logits[model.config.special_token_ids] = -torch.inf
        return -float(logits.log_softmax(-1)[row[position]].detach())

    with torch.no_grad():
        both = [sum(price([CLS, a, b, SEP], i) for i in (1, 2)) / 2 for a, b in itertools.product(BLANKS, BLANKS)]
        one = [price([CLS, a, 8, SEP], 1) for a in BLANKS] + [price([CLS, 7, a, SEP], 2) for a in BLANKS]
    exact = sum(both) / 4 + sum(one) / 4  # nats of two tokens: t = 2 and t = 1
    spread = max(both + one) - min(both + one)
    assert abs(report.nelbo_nats_per_token - exact / 2) < 4.5 * spread / math.sqrt(4000)
    assert (report.process, report.kernel) == ("two-blanks", None)


def test_it_generates_by_every_option_it_takes_and_refuses_those_of_others():
    model = blank_model()
    for how in ({}, {"order": "confidence"}, {"threshold": 0.2}, {"revise": 2}, {"churn": 0.5}, {"num_steps": 2}):
        rows = model.generate(length=6, num_return_sequences=3, seed=0, **how)
        assert not torch.isin(rows[:, 1:-1], torch.tensor([*BLANKS, *range(4)])).any(), how
    for name, value in {"speculate": 2, "kernel": "free", "max_edits": 1}.items():
        with pytest.raises(ValueError, match=f"{name} is of the .* this one has process 'two-blanks'"):
            model.generate(length=6, **{name: value})


def test_it_is_saved_loaded_and_described(tmp_path):
    model = blank_model()
    model.save_pretrained(tmp_path)
    again = UDMForMaskedGeneration.from_pretrained(tmp_path)
    assert again.config.process == "two-blanks" and isinstance(again.config.build_process(), TwoBlanks)
    assert torch.equal(model.generate(length=6, seed=1), again.generate(length=6, seed=1))
    card = make_card(model, "user/name")
    assert "by two kinds of blank" in card and "- two-blanks" in card and "A toy." in card
