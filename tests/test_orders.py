"""Orders of the user's own, and noise on orders that look at the probabilities."""

import itertools

import pytest
import torch
from scipy.stats import chisquare

from tests.models import CLS, MASK, PAD, SEP, fixed_logits, make_udm
from tests.test_generation_udm import SURE
from udm_text import UDMGenerationConfig
from udm_text.decoding import ADAPTIVE_ORDERS, confidence, negative_entropy, perturb

ROW = torch.tensor([[CLS, MASK, MASK, MASK, MASK, SEP]])


@pytest.fixture
def sure_model(monkeypatch):
    """Predicts the four laws of SURE, whatever it reads."""
    model = make_udm()
    table = torch.full((6, 24), -70.0)
    table[1:5, 5:8] = SURE.clamp(min=1e-30).log().float()
    fixed_logits(monkeypatch, model, table)
    return model


def revealed(output):
    """(rows, steps): the position that each one-token step reveals."""
    return torch.stack([(b != a).long().argmax(1) for a, b in itertools.pairwise(output.trajectory)], dim=1)


@pytest.mark.parametrize("num_steps", [None, 2])
@pytest.mark.parametrize("churn", [0.0, 0.5])
@pytest.mark.parametrize("name", ADAPTIVE_ORDERS)
def test_a_named_order_given_as_its_function_is_the_same_order(name, churn, num_steps):
    model = make_udm()
    how = {"length": 8, "seed": 0, "num_return_sequences": 4, "churn": churn, "num_steps": num_steps}
    expected = model.generate(order=name, **how)
    assert torch.equal(model.generate(order=ADAPTIVE_ORDERS[name], **how), expected)
    assert torch.equal(model.generate(order=name, order_noise=0.0, **how), expected)
    assert not torch.equal(model.generate(order=name, order_noise=5.0, **how), expected)


def test_a_function_sees_the_models_probabilities_and_the_drawn_tokens_and_the_highest_score_goes_first(sure_model):
    seen = []

    def unlikely_first(log_probs, tokens):
        seen.append((log_probs, tokens))
        return -log_probs.max(dim=-1).values.float()

    output = sure_model.generate(ROW, order=unlikely_first, seed=0, temperature=0.0, output_trajectory=True)
    assert revealed(output).tolist() == [[1, 2, 3, 4]]
    log_probs, tokens = seen[0]
    assert log_probs.shape == (4, 24) and tokens.tolist() == [5, 5, 5, 5]
    assert torch.allclose(log_probs[:, 5:8].exp(), SURE, atol=1e-6) and bool((log_probs[:, MASK] == -torch.inf).all())


@pytest.mark.parametrize(
    ("order", "weights"),
    [
        ("confidence", SURE[:, 0]),
        ("margin", SURE[:, 0] - SURE[:, 1]),
        ("entropy", torch.special.xlogy(SURE, SURE).sum(1).exp()),
        (lambda log_probs, tokens: log_probs.max(dim=-1).values, SURE[:, 0]),
    ],
    ids=["confidence", "margin", "entropy", "function"],
)
@pytest.mark.parametrize("noise", [1.0, 0.5])
def test_the_first_position_is_drawn_in_proportion_to_its_score_to_the_power_of_one_over_the_noise(
    sure_model, order, weights, noise
):
    output = sure_model.generate(
        ROW, order=order, order_noise=noise, temperature=0.0, seed=0, num_return_sequences=3000, output_trajectory=True
    )
    first = torch.bincount(revealed(output)[:, 0] - 1, minlength=4)
    law = weights.double() ** (1 / noise)
    assert chisquare(first.numpy(), (law / law.sum() * 3000).numpy()).pvalue > 1e-4


def test_much_noise_makes_every_order_the_random_one(sure_model):
    for order in (*ADAPTIVE_ORDERS, negative_entropy):
        output = sure_model.generate(
            ROW, order=order, order_noise=1e6, seed=1, num_return_sequences=2400, output_trajectory=True
        )
        kinds, counts = revealed(output).unique(dim=0, return_counts=True)
        assert len(kinds) == 24 and chisquare(counts.numpy()).pvalue > 1e-4


def test_a_little_noise_leaves_a_clear_order_as_it_is(sure_model):
    clear = sure_model.generate(ROW, order="confidence", temperature=0.0, seed=0, output_trajectory=True)
    noisy = sure_model.generate(
        ROW, order="confidence", order_noise=1e-4, temperature=0.0, seed=0, output_trajectory=True
    )
    assert revealed(clear).tolist() == revealed(noisy).tolist()


def test_scores_of_zero_stay_finite_under_noise():
    scores, half = torch.tensor([0.0, 1.0], dtype=torch.float64), torch.full((2,), 0.5, dtype=torch.float64)
    assert bool(perturb(confidence, scores, 1.0, half).isfinite().all())


@pytest.mark.parametrize("order", [*ADAPTIVE_ORDERS, confidence])
def test_noise_belongs_to_the_row(order):
    model = make_udm().double()
    ids = torch.tensor([[CLS, MASK, 7, MASK, SEP, PAD], [CLS, 8, MASK, MASK, MASK, SEP]])
    how = {"seed": 2, "order": order, "order_noise": 0.7}
    both = model.generate(ids, sample_index=torch.tensor([4, 6]), **how)
    assert torch.equal(both[:1, :5], model.generate(ids[:1, :5], sample_index=torch.tensor([4]), **how))
    assert torch.equal(both[1:], model.generate(ids[1:], sample_index=torch.tensor([6]), **how))


@pytest.mark.parametrize(
    ("process", "how", "message"),
    [
        ("mask", {"order": 3}, "order must be 'random', .* or a function of two arguments, got 3"),
        ("mask", {"order": lambda: 0}, "or a function of two arguments, got <function"),
        ("mask", {"order_noise": -1.0, "order": "margin"}, "order_noise must be"),
        ("mask", {"order_noise": True, "order": "margin"}, "order_noise must be"),
        ("mask", {"order_noise": 0.5}, "order_noise is of orders that look .* order 'random' does not"),
        ("mask", {"order_noise": 0.5, "order": "left_to_right"}, "order_noise is of orders"),
        (
            "mask",
            {"order_noise": 0.5, "order": "confidence", "threshold": 0.5},
            "order_noise does not go with threshold",
        ),
        ("mask", {"order": confidence, "speculate": 3}, "order"),
        ("mask", {"order_noise": 0.5, "order": "margin", "speculate": 3}, "order"),
        ("substitute", {"order": confidence}, "order is of the mask process"),
        ("substitute", {"order_noise": 0.5}, "order_noise is of orders"),
        ("mask", {"order": lambda log_probs, tokens: log_probs}, "order must return one score for each"),
        ("mask", {"order": lambda log_probs, tokens: 1.0}, "order must return one score .* got float"),
        ("mask", {"order": lambda log_probs, tokens: tokens / 0 * 0.0}, "order must return numbers, got nan"),
    ],
)
def test_what_cannot_work_is_refused_by_name(process, how, message):
    with pytest.raises(ValueError, match=message):
        make_udm(process).generate(length=3, **how)


def test_a_function_is_not_saved_and_the_error_says_what_to_do(tmp_path):
    config = UDMGenerationConfig(order=confidence)
    assert "function confidence" in repr(config)
    with pytest.raises(ValueError, match=r"order is a function \(function confidence\).*give it to generate"):
        config.save_pretrained(tmp_path)
    UDMGenerationConfig(order="margin", order_noise=0.5).save_pretrained(tmp_path)
    again = UDMGenerationConfig.from_pretrained(tmp_path)
    assert again.order == "margin" and again.order_noise == 0.5
    assert make_udm().generate(generation_config=UDMGenerationConfig(order=confidence, length=3)) is not None
