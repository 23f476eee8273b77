"""Weights, bounds and times of training, against closed forms and laws computed in another way."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import norm
from torch.distributions import Normal, kl_divergence

from continuous.degradations import Blur
from continuous.modeling import ImageConfig, ImageDenoiser
from continuous.objectives import (
    ImageObjective,
    Importance,
    discretised_log_prob,
    draw_regions,
    draw_times,
    kl_terms,
    loss_weights,
    snr,
    step_variances,
)
from continuous.processes import ColdProcess, GaussianProcess
from udm_text.randomness import RowRandom

PROCESSES = {
    "vp": GaussianProcess.vp("cosine", 12),
    "ve": GaussianProcess.ve(12, 0.05, 60.0),
    "rf": GaussianProcess.rf(12),
}
SHAPE = (1, 4, 4)
BATCH = {"images": torch.linspace(-1, 1, 6 * 16).view(6, *SHAPE).double(), "labels": torch.arange(6) % 3}


def config_of(process, prediction="v", **more):
    return ImageConfig(
        process=process.to_dict(),
        prediction=prediction,
        image_shape=list(SHAPE),
        levels=17,
        classes=["a", "b", "c"],
        network={"kind": "mlp", "width": 16, "blocks": 1},
        **more,
    )


def answering(process, prediction):
    """A network that tells, by this prediction type, always the same x0_hat of xt."""

    def network(xt, t, labels):
        x0_hat = 0.3 * xt + 0.1 * torch.sin(7 * xt)
        zero, one = torch.zeros_like(xt), torch.ones_like(xt)
        offset = process.to_x0(prediction, zero, xt, t)
        return (x0_hat - offset) / (process.to_x0(prediction, one, xt, t) - offset)

    return network


def terms_of(process, prediction, weighting, t, network=None, **more):
    objective = ImageObjective(config_of(process, prediction), weighting=weighting, **more)
    source = RowRandom(3, torch.arange(len(t)))
    network = network or answering(process, prediction)
    return objective.terms(network, BATCH["images"][: len(t)], t, BATCH["labels"][: len(t)], source)[0]


def predictions(process):
    return ["x0", "v"] + ["epsilon", "score"] * (float(process.a[-1]) > 0)


@pytest.mark.parametrize("name", PROCESSES)
def test_a_step_of_the_bound_is_the_kl_of_two_normal_laws_found_by_conditioning(name):
    process = PROCESSES[name]
    x0, x0_hat = torch.tensor([0.4, -0.7]).double(), torch.tensor([0.1, -0.2]).double()
    for t in range(2, process.T + 1):
        a_t, a_s, b_t, b_s = (float(x) for x in (process.a[t], process.a[t - 1], process.b[t], process.b[t - 1]))
        # (xs, xt) given x0 are jointly normal: xt = (a_t/a_s) xs + noise
        covariance = np.array([[b_s**2, a_t / a_s * b_s**2], [a_t / a_s * b_s**2, b_t**2]])
        xt = a_t * x0.numpy() + 0.8 * b_t

        def conditioned(clean, a_t=a_t, a_s=a_s, covariance=covariance, xt=xt):
            slope = covariance[0, 1] / covariance[1, 1]
            return a_s * clean + slope * (xt - a_t * clean), covariance[0, 0] - slope * covariance[0, 1]

        true_mean, variance = conditioned(x0.numpy())
        told_mean, _ = conditioned(x0_hat.numpy())
        largest = b_t**2 - (a_t / a_s) ** 2 * b_s**2
        time = torch.tensor([t])
        for share in (0.0, 0.4, 1.0):
            told_variance = math.exp(math.log(variance) * (1 - share) + math.log(largest) * share)
            p, q = (
                Normal(torch.from_numpy(np.asarray(mean)), var**0.5)
                for mean, var in ((told_mean, told_variance), (true_mean, variance))
            )
            expected = float(kl_divergence(q, p).sum())
            given = torch.full((1, 2, 1, 1), share).double()
            found = kl_terms(process, x0.view(1, 2, 1, 1), x0_hat.view(1, 2, 1, 1), time, given)
            assert float(found) == pytest.approx(expected, rel=1e-7, abs=1e-12)


@pytest.mark.parametrize(("mean", "std"), [(0.2, 0.3), (-0.9, 0.01), (1.4, 0.002), (0.0, 5.0)])
def test_the_probabilities_of_all_levels_are_those_of_the_normal_law_and_add_to_one(mean, std):
    x = torch.linspace(-1, 1, 17).double()
    log_std = torch.tensor(math.log(std), dtype=torch.float64)
    found = discretised_log_prob(x, torch.tensor(mean, dtype=torch.float64), log_std, 17)
    assert torch.isfinite(found).all() and float(found.exp().sum()) == pytest.approx(1.0, abs=1e-10)
    edges = np.concatenate(([-np.inf], (x[1:] + x[:-1]).numpy() / 2, [np.inf]))
    assert np.allclose(found.exp().numpy(), np.diff(norm.cdf(edges, mean, std)), atol=1e-12)


def test_far_from_the_mean_the_log_probability_keeps_its_digits():
    x, mean = torch.tensor([-0.5, 0.5]).double(), torch.zeros(2).double()
    found = discretised_log_prob(x, mean, torch.tensor(math.log(0.01), dtype=torch.float64), 17)
    # the tail of a normal law between 43.75 and 56.25 standard deviations
    expected = norm.logsf(0.4375 / 0.01)
    assert found.tolist() == pytest.approx([expected] * 2, rel=1e-12)


@pytest.mark.parametrize("name", PROCESSES)
def test_weights_for_the_error_of_x0_do_not_depend_on_what_the_network_tells(name):
    process = PROCESSES[name]
    t = torch.tensor([2, 3, 5, 7, 9, 11])
    for weighting in ("snr", "min_snr", "vlb"):
        first, *others = [terms_of(process, kind, weighting, t) for kind in predictions(process)]
        for other in others:
            assert torch.allclose(first, other, rtol=1e-9)


def test_the_weights_are_those_of_the_papers():
    process, t = PROCESSES["vp"], torch.arange(1, 13)
    ratio = snr(process, t)
    ones = torch.ones(12).double()

    def weights(kind, weighting):
        return loss_weights(process, kind, weighting, t, gamma=5.0)

    for kind in ("epsilon", "x0", "v"):
        assert torch.equal(weights(kind, "simple"), ones)
    assert torch.allclose(weights("epsilon", "snr"), ones)
    assert torch.allclose(weights("score", "simple"), process.b[1:].square())  # denoising score matching: b^2
    assert torch.allclose(weights("score", "snr"), process.b[1:].square())
    assert torch.allclose(weights("v", "snr"), ratio / (ratio + 1))
    assert torch.allclose(weights("x0", "min_snr"), ratio.clamp(max=5))
    assert torch.allclose(weights("epsilon", "min_snr"), ratio.clamp(max=5) / ratio)
    assert torch.allclose(weights("v", "min_snr"), ratio.clamp(max=5) / (ratio + 1))
    exploding = PROCESSES["ve"]  # v is divided by sqrt(a^2 + b^2), so its weights are those of vp
    loud = snr(exploding, t)
    assert torch.allclose(loss_weights(exploding, "v", "snr", t), loud / (loud + 1))
    assert torch.allclose(loss_weights(exploding, "v", "min_snr", t), loud.clamp(max=5) / (loud + 1))
    # plain losses of two kinds differ by the squared gain: epsilon's is snr-weighted, v's (snr + 1)-weighted on x0
    simple = {kind: terms_of(process, kind, "simple", t[1:7]) for kind in ("epsilon", "x0", "v")}
    assert torch.allclose(simple["epsilon"], ratio[1:7] * simple["x0"])
    assert torch.allclose(terms_of(process, "score", "simple", t[1:7]), simple["epsilon"])
    assert torch.allclose(simple["v"], (ratio[1:7] + 1) * simple["x0"])


def test_the_vlb_weight_is_the_bound_and_its_gradient_is_that_of_the_weighted_error():
    process, t = PROCESSES["vp"], torch.tensor([2, 4, 6, 8, 10, 12])
    scale = torch.tensor(1.3, dtype=torch.float64, requires_grad=True)
    inner = answering(process, "v")
    found = terms_of(process, "v", "vlb", t, lambda xt, times, labels: scale * inner(xt, times, labels))
    (slope,) = torch.autograd.grad(found.sum(), scale)
    simple = terms_of(process, "v", "simple", t, lambda xt, times, labels: scale * inner(xt, times, labels))
    weighted = loss_weights(process, "v", "vlb", t) * simple
    (other,) = torch.autograd.grad(weighted.sum(), scale)
    assert torch.allclose(found, weighted, rtol=1e-9) and torch.allclose(slope, other, rtol=1e-9)


def test_the_hybrid_objective_gives_x0_no_gradient_from_the_bound_and_the_variance_its_own():
    process, t = PROCESSES["vp"], torch.tensor([1, 3, 5, 7, 9, 12])
    generator = torch.Generator().manual_seed(0)
    output = torch.randn(6, 2, 4, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    objective = ImageObjective(config_of(process, "epsilon", learned_variance=True), vlb_share=0.5)
    x0, source = BATCH["images"], RowRandom(1, torch.arange(6))
    terms, bound = objective.terms(lambda xt, t, labels: output, x0, t, None, source)
    (slope,) = torch.autograd.grad(terms.sum(), output)
    noise = process.sample_noise(x0, random=RowRandom(1, torch.arange(6)))
    assert torch.allclose(slope[:, :1], 2 * (output[:, :1] - noise), rtol=1e-6)
    assert slope[:, 1:].abs().min() > 0 and torch.isfinite(bound).all()
    assert torch.allclose(terms, (output[:, :1] - noise).square().flatten(1).sum(1) + 0.5 * 12 * bound, rtol=1e-6)


def test_the_share_of_the_bound_rises_in_a_straight_line_and_is_whole_in_evaluations():
    process, how = PROCESSES["vp"], {"row_index": torch.arange(6), "total": 6, "seed": 5}
    output = torch.randn(6, 2, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    config, found = config_of(process, "epsilon", learned_variance=True), {}
    for share, ramp in ((0.5, 8), (0.5, 0), (0.25, 0), (0.0, 0)):
        objective = ImageObjective(config, vlb_share=share, vlb_ramp=ramp)
        for step in (0, 4, 8, 30):
            terms = objective.row_terms(lambda xt, t, labels: output, BATCH, step=step, **how)
            found[share, ramp, step] = terms
    for step, share in ((0, 0.0), (4, 0.25), (8, 0.5), (30, 0.5)):
        assert torch.equal(found[0.5, 8, step], found[share, 0, step])
    assert not torch.allclose(found[0.5, 8, 4], found[0.5, 0, 4])
    t, network = torch.tensor([1, 3, 5, 7, 9, 12]), lambda xt, t, labels: output
    plain, ramped = (
        ImageObjective(config, vlb_share=0.5, vlb_ramp=ramp).terms(
            network, BATCH["images"], t, None, RowRandom(1, torch.arange(6))
        )[0]
        for ramp in (0, 8)
    )
    assert torch.equal(plain, ramped)


def test_the_bound_is_least_where_the_variance_is_that_of_x0_hat_added_to_the_known_one():
    # var = least + slope^2 E(x0 - x0_hat)^2 is the best variance of a normal step
    process, t = PROCESSES["vp"], torch.tensor([5])
    error = 0.3
    least, largest = step_variances(process, t, t - 1)
    slope = process.a[4] * (1 - snr(process, t) / snr(process, t - 1))
    best = ((least + slope**2 * error**2).log() - least.log()) / (largest.log() - least.log())
    share = best.view(1, 1, 1, 1).clone().requires_grad_()
    x0 = torch.zeros(1, 1, 1, 1).double()
    kl_terms(process, x0, x0 + error, t, share).sum().backward()
    assert 0 < float(best) and abs(float(share.grad)) < 1e-9


@pytest.mark.parametrize(
    ("error", "expected"),
    [("l2", 0.4**2 + 0.05**2), ("l1", 0.45), ("huber", 0.1 * (0.4 - 0.05) + 0.05**2 / 2)],
)
def test_the_errors_are_what_their_names_say(error, expected):
    objective = ImageObjective(config_of(PROCESSES["vp"]), error=error)
    told, target = torch.tensor([[0.5, 0.0]]).double(), torch.tensor([[0.1, -0.05]]).double()
    assert float(objective.errors(told, target)) == pytest.approx(expected)


def test_where_the_huber_error_turns_can_be_said():
    told, target = torch.tensor([[0.5, 0.0]]).double(), torch.tensor([[0.1, -0.05]]).double()
    config = config_of(PROCESSES["vp"])
    for delta, expected in ((1.0, (0.4**2 + 0.05**2) / 2), (0.2, 0.2 * (0.4 - 0.1) + 0.05**2 / 2)):
        objective = ImageObjective(config, error="huber", huber_delta=delta)
        assert float(objective.errors(told, target)) == pytest.approx(expected)


def test_cold_training_compares_x0_with_what_is_predicted_of_the_degraded_image():
    process = ColdProcess(Blur(T=4, std=2.0))
    config = config_of(process, "x0")
    seen = {}

    def network(xt, t, labels):
        seen.update(xt=xt, t=t)
        return xt

    objective = ImageObjective(config, error="l1")
    row_index = torch.arange(6)
    terms = objective.row_terms(network, BATCH, row_index=row_index, total=6, step=0, seed=0)
    x0 = BATCH["images"]
    assert torch.equal(seen["xt"], process.degrade(x0, seen["t"])) and set(seen["t"].tolist()) == {1, 2, 3, 4}
    assert torch.allclose(terms, (seen["xt"] - x0).abs().flatten(1).sum(1))


def test_a_row_costs_the_same_whatever_the_batch_it_stands_in():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = ImageDenoiser(config_of(PROCESSES["vp"])).double().eval()
    objective = ImageObjective(model.config, flip=True)
    row_index, how = torch.arange(6), {"total": 6, "step": 4, "seed": 9}
    whole = objective.row_terms(model, BATCH, row_index=row_index, **how)
    parts = [
        objective.row_terms(model, {k: v[i] for k, v in BATCH.items()}, row_index=row_index[i], **how)
        for i in (slice(0, 2), slice(2, 6))
    ]
    assert torch.allclose(whole, torch.cat(parts), rtol=1e-12)
    assert objective.num_items(BATCH) == 6 * 16
    assert not torch.allclose(whole, objective.row_terms(model, BATCH, row_index=row_index, **{**how, "step": 5}))


def test_classes_are_withheld_from_the_asked_share_of_rows():
    seen = []

    def network(xt, t, labels):
        seen.append(labels)
        return xt

    rows = {"images": torch.zeros(4000, 1, 1, 1), "labels": torch.zeros(4000, dtype=torch.int64)}
    config = ImageConfig(image_shape=[1, 1, 1], classes=["a", "b", "c"])
    objective = ImageObjective(config, label_drop=0.2)
    objective.row_terms(network, rows, row_index=torch.arange(4000), total=4000, step=0, seed=0)
    assert set(seen[0].tolist()) == {0, 3}
    assert float((seen[0] == 3).double().mean()) == pytest.approx(0.2, abs=4 * 0.4 / 4000**0.5)


def test_regions_are_of_every_size_never_empty_and_belong_to_their_row():
    regions = draw_regions(RowRandom(0, torch.arange(3000)), 4, 6)
    assert regions.shape == (3000, 1, 4, 6) and regions.dtype == torch.bool
    sizes = regions.flatten(1).sum(1)
    assert set(sizes.tolist()) == set(range(1, 25))
    assert torch.equal(draw_regions(RowRandom(0, torch.tensor([7, 3])), 4, 6), regions[[7, 3]])
    share = regions.double().mean(0)
    assert 0.4 < float(share.min()) and float(share.max()) < 0.6


@pytest.mark.parametrize("prediction", ["epsilon", "x0", "v", "score"])
def test_outside_its_region_an_image_is_clean_the_network_is_told_so_and_nothing_is_asked(prediction):
    process, seen = PROCESSES["vp"], {}
    objective = ImageObjective(config_of(process, prediction, regions=True), regions=0.6)
    scale = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)

    def network(xt, t, labels):
        seen.update(xt=xt, t=t)
        return scale * xt

    rows = {"images": torch.linspace(-1, 1, 400 * 16).view(400, *SHAPE).double()}
    how = {"total": 400, "step": 3, "seed": 9}
    terms = objective.row_terms(network, rows, row_index=torch.arange(400), **how)
    clock, xt = seen["t"], seen["xt"]
    inside = clock > 0
    assert clock.shape == (400, 1, 4, 4) and torch.equal(xt[~inside], rows["images"][~inside])
    assert not torch.isclose(xt[inside], rows["images"][inside]).any()
    every = inside.flatten(1).all(1)
    assert float(every.double().mean()) == pytest.approx(0.4, abs=0.12) and inside.flatten(1).any(1).all()
    times = clock.flatten(1).amax(1)
    noise = process.invert_noise(rows["images"], xt, clock)
    target = torch.where(inside, process.target(prediction, rows["images"], noise, times), 0.0)
    weights = loss_weights(process, prediction, "simple", times)
    assert torch.allclose(terms, weights * (torch.where(inside, scale * xt, 0.0) - target).square().flatten(1).sum(1))
    (slope,) = torch.autograd.grad(terms.sum(), scale)
    assert torch.isfinite(slope)
    part = objective.row_terms(network, {"images": rows["images"][50:60]}, row_index=torch.arange(50, 60), **how)
    assert torch.allclose(part, terms[50:60])


def test_conditions_are_withheld_whole_from_the_asked_share_of_rows():
    seen = []

    def network(xt, t, labels):
        seen.append(labels)
        return xt

    rows = {"images": torch.zeros(4000, 1, 1, 1), "conditions": torch.arange(8000.0).view(4000, 2)}
    objective = ImageObjective(ImageConfig(image_shape=[1, 1, 1], condition_dim=2), label_drop=0.2)
    objective.row_terms(network, rows, row_index=torch.arange(4000), total=4000, step=0, seed=0)
    none = seen[0].isnan()
    assert torch.equal(none[:, 0], none[:, 1]) and torch.equal(seen[0][~none], rows["conditions"][~none])
    assert float(none[:, 0].double().mean()) == pytest.approx(0.2, abs=4 * 0.4 / 4000**0.5)


@pytest.mark.parametrize("law", [None, "steep"])
def test_times_are_spread_by_their_law_to_within_one_row(law):
    p = torch.full((10,), 0.1).double() if law is None else torch.arange(1, 11).double() / 55
    given = None if law is None else p
    t, weight = draw_times(10, torch.arange(550), 550, 1, 2, given)
    counts = t.bincount(minlength=11)[1:]
    assert (counts - 550 * p).abs().max() <= 1
    assert torch.allclose(weight, 1 / (10 * p[t - 1]))
    halves = torch.cat(
        [draw_times(10, torch.arange(550)[i], 550, 1, 2, given)[0] for i in (slice(300), slice(300, 550))]
    )
    assert torch.equal(t, halves)  # however the global batch is split
    assert not torch.equal(t, t.sort().values)  # a row's place says nothing of its time


def test_importance_goes_to_the_root_of_the_mean_square_and_keeps_sums_unbiased():
    table = Importance(4, warm=2)
    found = torch.tensor([1.0, 2.0, 4.0, 8.0]).double()
    t = torch.arange(1, 5)
    for step in range(3):
        assert torch.allclose(table.probabilities(step), torch.full((4,), 0.25).double())
        table.observe(t, found)
        # what this step found is not used in it, so parts of a global batch draw alike
        assert torch.allclose(table.probabilities(step), torch.full((4,), 0.25).double())
        if step == 1:
            break
    law = table.probabilities(2)
    assert torch.allclose(law, 0.999 * found / 15 + 0.001 / 4)
    drawn, weight = draw_times(4, torch.arange(10000), 10000, 0, 2, law)
    assert float((found[drawn - 1] * weight).mean()) == pytest.approx(15 / 4, rel=2e-3)


def test_importance_observed_in_parts_is_importance_observed_at_once():
    whole, parts = Importance(4, warm=1), Importance(4, warm=1)
    t, terms = torch.tensor([1, 2, 3, 4, 4, 1]), torch.tensor([1.0, 3.0, 2.0, 5.0, 1.0, 2.0])
    for step in range(3):
        whole.probabilities(step), parts.probabilities(step)
        whole.observe(t, terms)
        for i in (slice(0, 2), slice(2, 6)):
            parts.observe(t[i], terms[i])
            parts.probabilities(step)
    assert torch.allclose(whole.probabilities(3), parts.probabilities(3), rtol=1e-12)


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"error": "l3"}, "error must be 'l2', 'l1' or 'huber', got 'l3'"),
        ({"weighting": "heavy"}, "weighting must be 'simple', 'snr', 'min_snr' or 'vlb'"),
        ({"weighting": "vlb", "error": "l1"}, "'vlb' is a bound and goes with error 'l2'"),
        ({"label_drop": 1.5}, r"label_drop must lie in \[0, 1\]"),
        ({"gamma": 0.0}, "gamma must be positive"),
        ({"error": "huber", "huber_delta": 0.0}, "huber_delta must be a positive number, got 0.0"),
        ({"error": "huber", "huber_delta": math.inf}, "huber_delta must be a positive number, got inf"),
        ({"huber_delta": 1.0}, "huber_delta belongs to error 'huber', got 1.0 with error 'l2'"),
        ({"eval_draws": 0}, "eval_draws must be at least 1"),
        ({"vlb_ramp": 100}, "vlb_ramp must be 0, or with a learned variance a number of steps, got 100"),
    ],
)
def test_objectives_that_mean_nothing_are_refused(how, words):
    with pytest.raises(ValueError, match=words):
        ImageObjective(config_of(PROCESSES["vp"]), **how)


def test_regions_go_with_models_that_are_told_them_and_with_no_bound():
    told = config_of(PROCESSES["vp"], regions=True)
    for config, how, words in (
        (
            config_of(PROCESSES["vp"]),
            {"regions": 0.5},
            r"regions must lie in \(0, 1\] for a model with regions and be 0",
        ),
        (told, {}, "got 0.0 for one with regions=True"),
        (told, {"regions": 1.5}, "got 1.5"),
        (told, {"regions": 0.5, "weighting": "vlb"}, "regions have no terms of the bound"),
        (told, {"regions": 0.5, "importance": True}, "regions have no terms of the bound"),
    ):
        with pytest.raises(ValueError, match=words):
            ImageObjective(config, **how)
    with pytest.raises(ValueError, match="regions are a clock for each pixel, which a Gaussian process has"):
        config_of(ColdProcess(Blur(T=4)), "x0", regions=True)


def test_a_cold_process_has_no_snr_weights_and_no_importance():
    config = config_of(ColdProcess(Blur(T=4)), "x0")
    with pytest.raises(ValueError, match="'min_snr' needs a Gaussian process"):
        ImageObjective(config, weighting="min_snr")
    with pytest.raises(ValueError, match="importance draws t by the terms of the bound"):
        ImageObjective(config, importance=True)
