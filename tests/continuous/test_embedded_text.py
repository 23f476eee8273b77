"""Embedding diffusion: the law of a token by Bayes' rule, the bound as a sum over every t, rows and checkpoints."""

import math

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file, save_file

from continuous.embedded_text import (
    EmbeddedTextConfig,
    EmbeddedTextModel,
    EmbeddedTextObjective,
    draw_given,
    drawn,
    row_bounds,
    row_terms,
)
from continuous.processes import GaussianProcess
from tests.continuous.worlds import at
from tests.helpers import assert_equal_weights
from udm_text.randomness import RowRandom

BACKBONE = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
ROWS = [[3, 4, 5], [6, 3], [5, 5, 2, 4], [6]]


def make(seed=0, T=30, **fields):
    torch.manual_seed(seed)
    process = GaussianProcess.vp("cosine", T).to_dict()
    how = {"vocab_size": 8, "dim": 4, "special_token_ids": [0, 1, 2], "length_counts": [0, 1, 2, 5], **fields}
    return EmbeddedTextModel(EmbeddedTextConfig(**{"process": process, "backbone": BACKBONE, **how}))


def stirred(seed=0, **how):
    """With a context that says something."""
    model = make(seed, **how)
    torch.nn.init.normal_(model.write.weight, std=0.3)
    return model


def batch(rows=ROWS, **how):
    return EmbeddedTextObjective(make().config, **how).collate([{"input_ids": row} for row in rows])


def test_without_context_the_law_of_a_token_is_bayes_rule_for_its_own_latent():
    """Against densities of the five tokens that may be drawn, all as likely before."""
    model = make()
    ids = torch.tensor(ROWS[0])[None].repeat(50, 1)
    t = torch.arange(50) % 30 + 1
    xt = model.process.corrupt(ids, t, model.process.sample_noise(model.embed(ids)))
    law = model(xt, t).softmax(-1).detach()
    a, b = (x[:, None, None, None] for x in model.process.inner.at(t))
    normal = torch.distributions.Normal(a * model.embeddings()[3:].double(), b)
    known = normal.log_prob(xt[:, :, None].double()).sum(-1).softmax(-1)
    assert torch.allclose(law[..., 3:].double(), known, atol=1e-4) and float(law[..., :3].abs().max()) == 0.0


def test_embeddings_have_unit_rms_however_the_table_is_scaled():
    model = make()
    before = model.embeddings()
    assert torch.allclose(before.square().mean(1), torch.ones(8))
    model.table.data *= 7.0
    assert torch.allclose(model.embeddings(), before, atol=1e-6)


def test_the_bound_of_a_row_is_the_prior_and_every_term():
    """Added up over every t, and by 5 of them; within 4 standard errors of the difference, over 1,000 rows."""
    model, objective = stirred(), EmbeddedTextObjective(make().config)
    rows = Dataset.from_dict({"input_ids": [ROWS[0]] * 1000})
    inputs = objective.collate(rows)
    whole = torch.zeros(1000)
    with torch.no_grad():
        for step in range(1, 31):
            prior, terms = row_terms(model, inputs, at(step, 1000), RowRandom(step, torch.arange(1000)))
            whole += terms
    whole += prior
    some = row_bounds(model, rows, range(1000), objective, draws=5)
    error = math.sqrt(float(whole.var() + some.var()) / 1000)
    assert abs(float(whole.mean() - some.mean())) < 4 * error
    assert error < 0.03 * float(whole.mean())


def test_the_bound_of_tokens_without_context_goes_to_their_entropy():
    """Five tokens as likely, drawn apart: log 5 nats each, from above, within 4 standard errors at T = 1000."""
    torch.manual_seed(0)
    model = make(T=1000)
    ids = torch.randint(3, 8, (400, 6))
    rows = Dataset.from_dict({"input_ids": ids.tolist()})
    nats = row_bounds(model, rows, range(400), EmbeddedTextObjective(model.config, eval_batch_size=400), draws=50) / 6
    error = float(nats.std()) / math.sqrt(400)
    assert -4 * error < float(nats.mean()) - math.log(5) < 0.03 + 4 * error and error < 0.02


def test_training_draws_estimate_the_same_bound_uniformly_and_by_importance():
    model = stirred()
    rows = Dataset.from_dict({"input_ids": [ROWS[0]] * 512})
    exact = row_bounds(model, rows, range(512), EmbeddedTextObjective(model.config), draws=15)
    for importance in (False, True):
        objective = EmbeddedTextObjective(model.config, importance=importance)
        inputs = objective.collate(rows)
        for step in range(3):
            found = objective.row_terms(model, inputs, row_index=torch.arange(512), total=512, step=step, seed=0)
        error = math.sqrt(float(found.detach().var() + exact.var()) / 512)
        assert abs(float(found.detach().mean()) - float(exact.mean())) < 4 * error, importance
        if importance:
            assert float(objective.importance.probabilities(3).max()) > 2 / 30  # no longer uniform


def test_every_weight_learns_from_the_bound():
    model, objective = stirred(), EmbeddedTextObjective(make().config)
    objective.row_terms(model, batch(), row_index=torch.arange(4), total=4, step=0, seed=0).sum().backward()
    assert not [name for name, p in model.named_parameters() if p.grad is None or not torch.isfinite(p.grad).all()]
    assert float(model.table.grad[3:7].abs().min()) > 0


def test_a_row_costs_the_same_alone_and_beside_longer_ones_and_special_tokens_cost_nothing():
    model, objective = stirred(), EmbeddedTextObjective(make().config)
    together = objective.row_terms(model, batch(), row_index=torch.arange(4), total=4, step=0, seed=0)
    for i, row in enumerate(ROWS):
        alone = objective.row_terms(model, batch([row]), row_index=torch.tensor([i]), total=4, step=0, seed=0)
        assert torch.allclose(alone, together[i], rtol=1e-4)
    nothing = objective.row_terms(model, batch([[2, 1]]), row_index=torch.tensor([0]), total=4, step=0, seed=0)
    assert float(nothing.detach().abs().max()) == 0.0
    assert int(objective.num_items(batch())) == 9


@pytest.mark.parametrize("how", [{}, {"eta": 0.0}, {"walk": "draws"}, {"walk": "draws", "eta": 0.3}], ids=str)
def test_a_row_depends_on_its_seed_and_number_alone_and_holds_no_special_token(how):
    model = stirred()
    whole = model.generate(9, num_steps=6, seed=5, **how)
    assert model.generate(9, num_steps=6, seed=5, batch_size=2, **how) == whole
    assert model.generate(9, num_steps=6, seed=6, **how) != whole
    assert min(token for row in whole for token in row) > 2 and {len(row) for row in whole} <= set(range(1, 7))
    assert [len(row) for row in model.generate(3, lengths=[2, 1, 4], num_steps=2, **how)] == [2, 1, 4]


PAIRS = torch.tensor([[0.30, 0.03, 0.02], [0.02, 0.28, 0.05], [0.10, 0.05, 0.15]])
"""p(first, second) of two tokens, 3 to 5."""


class Exact(EmbeddedTextModel):
    """The posterior of both tokens, each alone, of `PAIRS`; a position that stands clean is known."""

    def forward(self, xt, t, given=None, attention_mask=None, table=None):
        a, b = (x[:, None, None, None] for x in self.process.inner.at(t))
        seen = -(xt[:, :, None].double() - a * table[3:6].double()).square().sum(-1) / (2 * b[..., 0].square())
        if given is not None:
            right = (xt[:, :, None] - table[3:6]).abs().sum(-1) < 1e-5
            seen = torch.where(given[:, :, None], right.double().log(), seen)
        joint = PAIRS.double().log() + seen[:, 0, :, None] + seen[:, 1, None, :]
        laws = torch.stack((joint.logsumexp(2), joint.logsumexp(1)), dim=1)
        return torch.nn.functional.pad(laws, (3, 2), value=-torch.inf)


@pytest.mark.parametrize("place", [0, 1])
def test_the_rest_has_its_law_given_known_tokens_that_stand_clean_and_by_replacement_it_has_not(place):
    """Total variation of 20,000 draws: sampling noise alone gives .004. Both tokens are asked about in turn."""
    off = {}
    for share in (0.5, 0.0):
        torch.manual_seed(0)
        model = Exact(make(given_share=share).config)
        known = [[-1, -1] for _ in range(20_000)]
        for row in known:
            row[place] = 3
        rows = torch.tensor(model.generate(20_000, known=known, num_steps=5, walk="draws", seed=0, batch_size=20_000))
        assert rows[:, place].unique().tolist() == [3]
        law = PAIRS.select(place, 0) / PAIRS.select(place, 0).sum()
        drawn_law = torch.bincount(rows[:, 1 - place] - 3, minlength=3) / 20_000
        off[share] = 0.5 * float((drawn_law - law).abs().sum())
    assert off[0.5] < 0.012 and off[0.0] > 0.03, off


@pytest.mark.parametrize("how", [{}, {"walk": "draws"}], ids=str)
def test_given_tokens_stay_where_they_are_and_rows_depend_on_no_neighbour(how):
    model = stirred(given_share=0.5)
    known = [[3, -1, 4], [5], [-1, 6]]
    made = model.generate(3, known=known, lengths=[4, 3, 2], num_steps=4, seed=0, **how)
    assert [len(row) for row in made] == [4, 3, 2] and (made[0][0], made[0][2], made[1][0], made[2][1]) == (3, 4, 5, 6)
    assert min(token for row in made for token in row) > 2
    alone = model.generate(3, known=known, lengths=[4, 3, 2], num_steps=4, seed=0, batch_size=1, **how)
    assert alone == made and model.generate(1, known=[[3, 4]], seed=0, num_steps=2) == [[3, 4]]
    assert min(model.draw_lengths(50, 0, least=4)) == 4


def test_what_stands_clean_in_training_is_of_the_share_of_rows_and_costs_nothing():
    torch.manual_seed(0)
    scored = (torch.arange(6) < 5).expand(4000, 6)
    given = draw_given(scored, 0.5, RowRandom(0, torch.arange(4000)))
    mean = float(given.sum(1).double().mean())  # of 5: half the rows, of them half (0+1+2+3+4)/5 and half 5/2
    assert not bool(given[:, 5].any()) and abs(mean - 0.5 * (0.5 * 2 + 0.5 * 2.5)) < 4 * 1.8 / 4000**0.5
    objective = EmbeddedTextObjective(make(given_share=1.0).config, importance=False)
    inputs = batch()
    costs = objective.row_terms(stirred(), inputs, row_index=torch.arange(4), total=4, step=0, seed=0)
    whole = EmbeddedTextObjective(make().config, importance=False).row_terms(
        stirred(), inputs, row_index=torch.arange(4), total=4, step=0, seed=0
    )
    assert torch.isfinite(costs).all() and not torch.equal(costs, whole)


def test_lengths_follow_the_counts_of_training_and_reach_twice_as_far():
    law = make().config.length_law()
    assert torch.allclose(law * 9, torch.tensor([0, 1, 2, 5, 0, 0, 0]) + torch.tensor([0] + [1 / 6] * 6).double())
    lengths = [len(row) for row in make().generate(2000, num_steps=1, seed=0, batch_size=2000)]
    counts = torch.bincount(torch.tensor(lengths), minlength=7)
    assert ((counts - 2000 * law).abs() < 4 * (2000 * law * (1 - law)).sqrt() + 1e-9).all()


def test_tokens_are_drawn_by_their_law_and_the_likeliest_at_temperature_0():
    logits = torch.tensor([1.0, 2.0, -torch.inf, 0.0]).expand(4000, 1, 4)
    for temperature in (1.0, 0.5):
        found = torch.bincount(drawn(logits, temperature, RowRandom(0, torch.arange(4000)))[:, 0], minlength=4)
        law = (logits[0, 0].double() / temperature).softmax(-1)
        assert ((found - 4000 * law).abs() < 4 * (4000 * law * (1 - law)).sqrt() + 1e-9).all()
    assert drawn(logits, 0.0, RowRandom(0, torch.arange(4000))).unique().tolist() == [1]


def test_a_checkpoint_holds_all_that_its_samples_need(tmp_path):
    model = stirred()
    model.save_pretrained(tmp_path)
    again = EmbeddedTextModel.from_pretrained(tmp_path)
    assert_equal_weights(dict(model.state_dict()), dict(again.state_dict()))
    assert again.generate(5, num_steps=7, seed=1) == model.generate(5, num_steps=7, seed=1)
    assert again.process.inner.to_dict() == model.process.inner.to_dict()


def test_a_checkpoint_without_a_weight_is_refused(tmp_path):
    make().save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    weights = load_file(file)
    del weights["table"]
    save_file(weights, file, {"format": "pt"})
    with pytest.raises(ValueError, match=r"missing keys \['table'\]"):
        EmbeddedTextModel.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: make(kernel="site"), "unknown argument 'kernel' of EmbeddedTextConfig"),
        (lambda: make(udm_version=2), "written by a newer version"),
        (lambda: make(special_token_ids=[8]), r"special_token_ids must lie in 0..7, got \[8\]"),
        (lambda: make(length_counts=[3, 0]), r"length_counts must count rows of 1 token or more, got \[3, 0\]"),
        (lambda: make(dim=0), "dim must be at least 1, got 0"),
        (lambda: make(process={"process": "cold"}), "must be that of a GaussianProcess, got 'cold'"),
        (lambda: make().generate(2, walk="mean"), "walk must be 'draws' or 'means', got 'mean'"),
        (lambda: make().generate(2, eta=0.5), "be 0 or 1 with walk 'means', got 0.5"),
        (lambda: make().generate(2, temperature=-1.0), "temperature must be a number >= 0, got -1.0"),
        (lambda: make().generate(2, lengths=[1]), r"lengths must be 2 numbers of at least 1, got \[1\]"),
        (lambda: make(given_share=1.5), r"given_share must lie in \[0, 1\], got 1.5"),
        (lambda: make().generate(2, known=[[3]]), "lengths must be 2 numbers of at least 1"),
        (lambda: make().generate(1, known=[[3, 4]], lengths=[1]), "known must be 1 rows, none longer than its length"),
        (lambda: make().generate(1, known=[[8]]), "known must hold tokens in 0..7, or -1 for none, got 8"),
        (lambda: make().draw_lengths(1, 0, least=7), "a row has at most 6 tokens here, asked was for 7"),
        (lambda: make().generate(2, num_steps=31), r"num_steps must be an integer in 1..30"),
        (lambda: EmbeddedTextObjective(make().config, eval_draws=0), "eval_draws must be at least 1, got 0"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
