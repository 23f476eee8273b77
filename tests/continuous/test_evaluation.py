"""The figures of samples: against closed forms, and on samples whose worth is known."""

import math

import pytest
import torch

from continuous.data import ImageRows, ImageSplits, digits
from continuous.evaluation import (
    FeatureClassifier,
    describe_figures,
    frechet_distance,
    inception_score,
    last_time,
    nearest_distances,
    one_nn_accuracy,
    pick_like,
    quality,
    reference_rows,
    train_classifier,
)
from continuous.processes import GaussianProcess


@pytest.fixture(scope="module")
def splits():
    return digits()


@pytest.fixture(scope="module")
def classifier(splits):
    return train_classifier(splits.train)


def with_moments(mean, root, number=64, seed=0):
    """(number, d) points whose sample mean and covariance are exactly `mean` and root root^T."""
    d = len(mean)
    x = torch.randn(number, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    x = x - x.mean(dim=0)
    values, vectors = torch.linalg.eigh(torch.cov(x.T))
    white = x @ vectors @ torch.diag(values.rsqrt()) @ vectors.T
    return white @ root.T + mean


def test_the_frechet_distance_is_the_closed_form_of_two_normal_laws():
    a, b = torch.tensor([1.0, -2.0, 0.5]).double(), torch.tensor([0.0, 1.0, 1.0]).double()
    s, r = torch.tensor([2.0, 1.0, 0.5]).double(), torch.tensor([1.0, 3.0, 0.5]).double()
    # commuting covariances: |a - b|^2 + sum (s_i - r_i)^2
    x, y = with_moments(a, torch.diag(s)), with_moments(b, torch.diag(r), 80, seed=1)
    expected = float((a - b).square().sum() + (s - r).square().sum())
    assert frechet_distance(x, y) == pytest.approx(expected, rel=1e-9)
    turn = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(2)).double())[0]
    assert frechet_distance(x @ turn, y @ turn) == pytest.approx(expected, rel=1e-8)
    assert frechet_distance(x, x) == pytest.approx(0.0, abs=1e-9)


def test_the_frechet_distance_of_covariances_that_do_not_commute_is_that_of_two_dimensions():
    # tr (AB)^1/2 of 2 x 2 matrices: sqrt(tr AB + 2 sqrt(det A det B))
    root = torch.tensor([[1.0, 0.3], [-0.8, 0.5]]).double()
    other = torch.tensor([[0.2, 1.0], [0.7, -0.4]]).double()
    zero = torch.zeros(2).double()
    first, second = root @ root.T, other @ other.T
    cross = (first @ second).trace() + 2 * (first.det() * second.det()).sqrt()
    expected = first.trace() + second.trace() - 2 * cross.sqrt()
    found = frechet_distance(with_moments(zero, root), with_moments(zero, other, 90, seed=3))
    assert found == pytest.approx(float(expected), rel=1e-8)


def test_the_inception_score_goes_from_one_to_the_number_of_classes(splits, classifier):
    assert inception_score(torch.full((30, 7), 3.0)) == pytest.approx(1.0, abs=1e-12)  # the same of all
    assert inception_score(torch.randn(1, 7)) == pytest.approx(1.0, abs=1e-12)
    sure = 1000.0 * torch.nn.functional.one_hot(torch.arange(28) % 7).double()
    assert inception_score(sure) == pytest.approx(7.0, rel=1e-12) and inception_score(sure[::7]) == pytest.approx(1.0)
    # half of the images of either class, each told with probability 0.9: log 2 less the entropy of a coin of 0.9
    coin = torch.tensor([[0.9, 0.1], [0.1, 0.9]], dtype=torch.float64).log()
    expected = 2 * 0.9**0.9 * 0.1**0.1
    assert inception_score(coin) == pytest.approx(expected, rel=1e-12)
    assert 8.5 < inception_score(classifier(splits.validation.images)) < 10.0


def test_distances_to_the_nearest_row_are_those_of_pythagoras_in_whatever_blocks():
    rows = torch.tensor([[0.0, 0.0], [3.0, 4.0]])
    found = nearest_distances(torch.tensor([[3.0, 0.0], [3.0, 4.0]]), rows)
    assert found.tolist() == [3.0, 0.0]
    many = torch.randn(1100, 3, generator=torch.Generator().manual_seed(0))
    expected = torch.stack([(many - x).norm(dim=1).sort().values[1] for x in many]).double()
    assert torch.allclose(nearest_distances(many, many, leave_out=True), expected, rtol=1e-5)


def test_nearest_neighbours_cannot_tell_one_law_from_itself_and_tell_others_at_sight():
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(1000, 4, generator=generator) for _ in range(2))
    assert one_nn_accuracy(a, b) == pytest.approx(0.5, abs=4 * 0.5 / 2000**0.5 * 1.5)
    assert one_nn_accuracy(a, b + 10.0) == 1.0
    assert one_nn_accuracy(a, a.clone()) == 0.0  # copies cling to their originals
    assert one_nn_accuracy(torch.zeros(5, 2), torch.zeros(5, 2)) == 0.5  # nothing to tell apart


def test_the_classifier_is_the_same_in_every_run_and_good_enough_to_judge(splits, classifier):
    assert classifier.accuracy(splits.validation.images, splits.validation.labels) > 0.975
    features = classifier.features(splits.validation.images)
    assert features.shape == (500, 32) and features.abs().max() <= 1.0
    few = [train_classifier(splits.train, steps=5) for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(*(c.state_dict().values() for c in few), strict=True))


def test_samples_whose_worth_is_known_get_the_figures_they_deserve(splits, classifier):
    rows = reference_rows(splits, classifier, seed=0)
    real, copies, normal, noise = (rows[k] for k in ("real", "memoriser", "matched Gaussian", "uniform noise"))
    assert real.frechet < 0.12 < 1.0 < normal.frechet < noise.frechet
    assert 0.45 < real.one_nn < 0.55 and normal.one_nn > 0.75 and noise.one_nn > 0.99
    assert copies.nearest == 0.0 and copies.frechet < 0.15  # the distance alone would praise a memoriser
    assert 2.05 < real.nearest < 2.15 < normal.nearest < noise.nearest


def test_rows_are_picked_by_class_without_repeats_unless_asked(splits):
    wanted = splits.validation.labels
    once = pick_like(splits.train, wanted, 500, seed=1)
    assert torch.equal(splits.train.labels[once], wanted) and len(once.unique()) == 500
    again = pick_like(splits.train, wanted, 500, seed=1, replace=True)
    assert torch.equal(splits.train.labels[again], wanted) and len(again.unique()) < 500
    plain = ImageRows(splits.train.images)
    assert len(pick_like(plain, None, 300, seed=0).unique()) == 300


def test_the_last_time_is_where_noise_reaches_half_the_distance_of_two_levels():
    process = GaussianProcess.ve(50, 0.01, 40.0)
    found = last_time(process, 17)
    sigma = process.sigma(torch.arange(51))
    assert sigma[found - 1] < 1 / 16 <= sigma[found] and last_time(process, 256) == 1
    assert last_time(process, 2) == int((sigma < 1).sum())


def test_images_without_labels_are_measured_without_a_frechet_distance(splits):
    plain = ImageSplits(ImageRows(splits.train.images[:50]), ImageRows(splits.validation.images[:20]))
    found = quality(splits.validation.images[20:40], plain, None)
    assert found.frechet is None and found.label_accuracy is None and found.number == 20
    with pytest.raises(ValueError, match="needs labels to train its classifier on"):
        train_classifier(plain.train)


def test_figures_are_printed_as_a_table_whose_rows_are_whole_in_80_columns(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    row = {"frechet": 0.12345, "inception": 9.5, "nearest": 2.1, "one_nn": 0.75, "label_accuracy": None}
    own = {**row, "sampler": "dpm_solver", "num_steps": None, "label_accuracy": 0.99}
    text = describe_figures({"samples": own, "reference": {"matched Gaussian": row}})
    lines = {line.split("│")[1].strip(): line for line in text.splitlines() if "│" in line}
    assert "Frechet" in text and "1-NN" in text and "\x1b" not in text
    assert lines["dpm_solver, all steps"].replace("│", " ").split()[3:] == ["0.123", "9.500", "2.100", "0.750", "0.990"]
    assert lines["matched Gaussian"].replace("│", " ").split()[2:] == ["0.123", "9.500", "2.100", "0.750", "-"]
    text = describe_figures({"restorations": {"direct": {"rmse": 0.2, "frechet": None}}, "rows": 7})
    (line,) = (line for line in text.splitlines() if "direct" in line)
    assert line.replace("│", " ").split() == ["direct", "0.2000", "-"] and "(7 held-out images, from D_T)" in text


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: frechet_distance(torch.zeros(3, 2), torch.zeros(1, 2)), "b must be features"),
        (lambda: frechet_distance(torch.full((3, 2), math.nan), torch.zeros(3, 2)), "a holds features"),
        (
            lambda: one_nn_accuracy(torch.zeros(3, 2), torch.zeros(4, 2)),
            "as many images each.* got a of .3, 2. and b of .4, 2.",
        ),
        (lambda: inception_score(torch.zeros(3)), r"logits must be finite, \(N, classes\) .* got \(3,\)"),
        (lambda: inception_score(torch.full((3, 2), math.nan)), "logits must be finite"),
        (lambda: FeatureClassifier((1, 8, 8), 1), "at least 2 classes"),
    ],
)
def test_figures_of_nothing_are_refused(call, words):
    with pytest.raises(ValueError, match=words):
        call()
