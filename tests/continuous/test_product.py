"""Tokens and pictures under clocks of their own: 27 sequences, each with a normal law of images, posterior in full."""

import pytest
import torch

from continuous.processes import GaussianProcess
from continuous.product import Held, ProductProcess, check_clocks, in_turn, sample_product, stands, together
from tests.continuous.worlds import at
from tests.oracle.world import make_world, total_variation
from udm_text.core import Prediction, reverse_step
from udm_text.processes import MaskProcess
from udm_text.randomness import RowRandom

WORLD, MASK, SIGMA, N, T = make_world(3, 3), 3, 0.7, 8_000, 200
DATA, SEQUENCES = torch.tensor(WORLD.data), torch.tensor(WORLD.sequences)
MEANS = 1.5 * torch.randn(27, 2, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
IMAGES = GaussianProcess.vp("cosine", T)
PROCESS = ProductProcess(MaskProcess(MASK), IMAGES)


def exact(random):
    """Both x0_hat drawn from their joint law given both parts, as far as each is corrupted."""

    def predict(xt, t, s):
        text, image = xt
        agrees = ((text[:, None] == SEQUENCES) | (text[:, None] == MASK)).all(-1)  # (N, 27)
        a, b = (x[:, 0] for x in IMAGES.coefficients(t[1], image))
        variance = (a * SIGMA) ** 2 + b**2
        off = (image[:, None] - a[:, None, None] * MEANS).square().sum(-1)
        p = torch.where(agrees, DATA.log() - off / (2 * variance[:, None]), -torch.inf).softmax(-1)
        x0 = (p.cumsum(1) < random.uniform(1)).sum(1).clamp(max=26)
        gain = (a * SIGMA**2 / variance)[:, None]
        mean = MEANS[x0] + gain * (image - a[:, None] * MEANS[x0])
        spread = SIGMA * (b.square() / variance).sqrt()[:, None]
        return Prediction((SEQUENCES[x0], mean + spread * random.normal(2)))

    return predict


def data(n=N, seed=0):
    generator = torch.Generator().manual_seed(seed)
    index = torch.multinomial(DATA, n, replacement=True, generator=generator)
    noise = torch.randn(n, 2, generator=generator, dtype=torch.float64)
    return SEQUENCES[index], MEANS[index] + SIGMA * noise


def index_of(text):
    return (text * torch.tensor([9, 3, 1])).sum(1)


def off(text):
    return total_variation(torch.bincount(index_of(text), minlength=27).double().numpy() / len(text), WORLD.data)


def floor():
    """Mean and deviation of the total variation of N draws of the data."""
    found = torch.tensor([off(data(seed=100 + i)[0]) for i in range(30)])
    return float(found.mean()), float(found.std())


def residuals(text, image):
    """(image - mean of its text) / deviation: standard normal where the pair has the law of the data."""
    return (image - MEANS[index_of(text)]) / SIGMA


def assert_standard_normal(values):
    """Mean and deviation within 4 standard errors, in each of the directions."""
    n = len(values)
    assert (values.mean(0).abs() < 4 / n**0.5).all(), values.mean(0)
    assert ((values.std(0) - 1).abs() < 4 / (2 * n) ** 0.5).all(), values.std(0)


CLOCKS = {
    "together": together((3, T), 12),
    "text first": in_turn((3, T), 6, (0, 1)),
    "image first": in_turn((3, T), 6, (1, 0)),
    "text a little ahead": together((3, T), 12, (2.0, 1.0)),
}


@pytest.mark.parametrize("clocks", CLOCKS)
@pytest.mark.parametrize("churn", [0.0, 1.0, (0.3, 0.5)], ids=str)
def test_pairs_have_the_law_of_the_data_whatever_the_clocks(clocks, churn):
    random = RowRandom(1, torch.arange(N))
    like = torch.zeros(N, 3, dtype=torch.int64), torch.zeros(N, 2, dtype=torch.float64)
    text, image = sample_product(PROCESS, exact(random), like, CLOCKS[clocks], churn=churn, random=random)
    least, spread = floor()
    assert off(text) < least + 4 * spread
    assert_standard_normal(residuals(text, image))


def test_an_image_of_a_given_text_has_its_law_and_the_text_is_kept():
    text, _ = data()
    random = RowRandom(2, torch.arange(N))
    like = text, torch.zeros(N, 2, dtype=torch.float64)
    kept, image = sample_product(PROCESS, exact(random), like, together((0, T), 10), random=random)
    assert torch.equal(kept, text)
    assert_standard_normal(residuals(text, image))


def test_a_text_of_a_given_image_has_its_law_and_the_image_is_kept():
    """The pairs are again of the law of the data: the texts by themselves, and the images given them."""
    _, image = data(seed=5)
    random = RowRandom(3, torch.arange(N))
    like = torch.zeros(N, 3, dtype=torch.int64), image
    text, kept = sample_product(PROCESS, exact(random), like, together((3, 0), 3), random=random)
    assert torch.equal(kept, image)
    least, spread = floor()
    assert off(text) < least + 4 * spread
    assert_standard_normal(residuals(text, image))


def test_a_part_that_stands_at_0_is_handed_on_whatever_is_predicted():
    text, image = data(5)
    predicted = (SEQUENCES[:5], torch.zeros(5, 2, dtype=torch.float64))
    for churn in (0.0, 0.5, 1.0):
        xs = reverse_step(PROCESS, (text, image), predicted, (at(0, 5), at(9, 5)), (at(0, 5), at(3, 5)), churn)
        assert torch.equal(xs[0], text) and not torch.equal(xs[1], image)
    noise = PROCESS.invert_noise(predicted, (text, image), (at(0, 5), at(9, 5)))
    assert isinstance(noise[0], Held) and not isinstance(noise[1], Held)


def test_each_part_takes_the_step_of_its_own_process():
    text, image = data(6)
    predicted = (SEQUENCES[:6], torch.zeros(6, 2, dtype=torch.float64))
    xt = (torch.full_like(text, MASK), image)
    found = reverse_step(
        PROCESS, xt, predicted, (at(3, 6), at(50, 6)), (at(1, 6), at(20, 6)), random=RowRandom(0, torch.arange(6))
    )
    alone = reverse_step(IMAGES, image, predicted[1], at(50, 6), at(20, 6))
    assert torch.equal(found[1], alone) and ((found[0] == MASK).sum(1) == 1).all()
    assert ((found[0] == MASK) | (found[0] == predicted[0])).all()


def test_clocks_fall_side_by_side_in_turn_and_ahead_of_each_other():
    assert together((2, 4), 4).tolist() == [[2, 4], [2, 3], [1, 2], [1, 1], [0, 0]]
    assert together((0, 3), 3).tolist() == [[0, 3], [0, 2], [0, 1], [0, 0]]
    assert in_turn((2, 4), 2, (1, 0)).tolist() == [[2, 4], [2, 2], [2, 0], [1, 0], [0, 0]]
    ahead = together((100, 100), 10, (2.0, 1.0))
    assert (ahead[1:-1, 0] < ahead[1:-1, 1]).all()
    for clocks in (*CLOCKS.values(), ahead):
        check_clocks(clocks, 2)


def test_a_row_does_not_depend_on_its_neighbours():
    def some(part):
        random = RowRandom(3, torch.arange(9)[part])
        like = torch.zeros(len(random.rows), 3, dtype=torch.int64), torch.zeros(len(random.rows), 2).double()
        return sample_product(PROCESS, exact(random), like, together((3, T), 5), churn=0.5, random=random)

    whole, first, rest = some(slice(0, 9)), some(slice(0, 4)), some(slice(4, 9))
    assert all(torch.equal(torch.cat(parts), one) for *parts, one in zip(first, rest, whole, strict=True))


def draw(clocks, x=None):
    random = RowRandom(0, torch.arange(2))
    x = (torch.zeros(2, 3, dtype=torch.int64), torch.zeros(2, 2).double()) if x is None else x
    return sample_product(PROCESS, exact(random), x, clocks, random=random)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ProductProcess(IMAGES), "two processes or more, got 1"),
        (lambda: ProductProcess(IMAGES, "mask"), "part 1 must be a process, got str"),
        (lambda: PROCESS.sample_noise(torch.zeros(2, 3)), "x must be a tuple of 2, an entry for each part, got Tensor"),
        (lambda: PROCESS.prior((torch.zeros(2, 3),)), "x must be a tuple of 2, an entry for each part, got 1 entries"),
        (lambda: PROCESS.blend((1, 2), (1, 2), (0.5,)), "churn must be a tuple of 2"),
        (lambda: stands(torch.tensor([0, 1])), "stand at 0 for all rows of a batch or for none"),
        (lambda: draw(together((3, T), 4)[:, :1]), r"clocks must be \(steps \+ 1, 2\) int64, .* got \(5, 1\)"),
        (lambda: draw(together((3, T), 4)[:-1]), "clocks must end at 0"),
        (lambda: draw(together((3, T), 4).flip(0)), "a clock must not rise"),
        (lambda: draw(together((3, T), 4).double()), "torch.float64"),
        (lambda: draw(torch.tensor([[3, T + 1], [0, 0]])), f"t must lie in 0..{T}"),
        (lambda: together((0, 0), 4), "not all 0"),
        (lambda: together((3, T), 0), "num_steps must be an integer of at least 1, got 0"),
        (lambda: together((3, T), 4, (1.0,)), "powers must be 2 positive numbers"),
        (lambda: in_turn((3, T), 4, (0, 0)), r"order must hold each of the parts 0..1 once, got \[0, 0\]"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
