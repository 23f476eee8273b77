"""Count grids: from start to zero, never resting before the end, the same for a row in any batch."""

import math
from itertools import combinations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from udm_text.schedules import SCHEDULES, cosine_counts, counts, curve_at, linear_counts, optimal_counts, step_costs

starts = st.lists(st.integers(0, 60), min_size=1, max_size=6)
steps = st.one_of(st.none(), st.integers(1, 70))
schedules = st.sampled_from(SCHEDULES)
curves = st.lists(st.floats(0, 10), min_size=1, max_size=9)
fixed = settings(deadline=None, derandomize=True, max_examples=150)


@fixed
@given(schedules, starts, steps, curves)
def test_a_grid_goes_from_start_to_zero_without_resting_on_the_way(schedule, start, num_steps, curve):
    start = torch.tensor(start)
    grid = counts(schedule, start, num_steps, curve)
    assert len(grid) - 1 == min(int(start.max()), num_steps or 60)
    assert grid.dtype == torch.int64
    assert torch.equal(grid[0], start) and (grid[-1] == 0).all()
    fall = grid[:-1] - grid[1:]
    assert ((fall >= 1) | ((grid[:-1] == 0) & (fall == 0))).all()
    assert torch.equal(fall.sum(0), start)


@fixed
@given(schedules, starts, steps, curves)
def test_a_row_has_the_same_grid_in_any_batch(schedule, start, num_steps, curve):
    together = counts(schedule, torch.tensor(start), num_steps, curve)
    for row, own in enumerate(start):
        alone = counts(schedule, torch.tensor([own]), num_steps, curve)[:, 0]
        assert torch.equal(together[: len(alone), row], alone)
        assert (together[len(alone) :, row] == 0).all()


@fixed
@given(st.integers(0, 100), st.integers(1, 100))
def test_every_step_takes_the_same_share_to_within_one(start, num_steps):
    grid = linear_counts(torch.tensor([start]), num_steps)[:, 0]
    assert len(grid) - 1 == min(num_steps, start)
    fall = grid[:-1] - grid[1:]
    assert start == 0 or fall.max() - fall.min() <= 1


def test_without_num_steps_one_position_is_taken_a_step():
    assert linear_counts(torch.tensor([3, 1, 0])).T.tolist() == [[3, 2, 1, 0], [1, 0, 0, 0], [0, 0, 0, 0]]


def test_a_short_row_takes_one_position_a_step_and_then_rests():
    assert linear_counts(torch.tensor([8, 2]), 4).T.tolist() == [[8, 6, 4, 2, 0], [2, 1, 0, 0, 0]]


def test_no_rows_give_an_empty_grid():
    assert linear_counts(torch.zeros(0, dtype=torch.int64), 3).shape == (1, 0)


@pytest.mark.parametrize("num_steps", [0, -2])
def test_a_grid_needs_a_step(num_steps):
    with pytest.raises(ValueError, match="num_steps"):
        linear_counts(torch.tensor([4]), num_steps)


def test_a_negative_start_is_refused():
    with pytest.raises(ValueError, match="start"):
        linear_counts(torch.tensor([4, -1]))


def test_start_is_not_modified_in_place():
    start = torch.tensor([5, 0, 2])
    linear_counts(start, 2)
    assert start.tolist() == [5, 0, 2]


def all_grids(start, num_steps):
    """Every grid of exactly min(num_steps, start) steps."""
    for inner in combinations(range(1, start), min(num_steps, start) - 1):
        yield [start, *reversed(inner), 0]


def price(grid, curve, length):
    """From the formula, in plain Python: sum_j (t_j - t_{j+1}) c(t_j)."""

    def c(t):
        place = t / length * len(curve) - 1
        if place <= 0:
            return curve[0]
        below = min(math.floor(place), len(curve) - 1)
        rest = place - below
        return curve[below] if not rest else curve[below] * (1 - rest) + curve[below + 1] * rest

    return sum((t - s) * c(t) for t, s in zip(grid, grid[1:], strict=False))


@fixed
@given(st.integers(1, 9), st.integers(1, 12), st.integers(0, 4), curves)
def test_the_optimal_grid_is_the_cheapest_of_all(start, num_steps, prompt, curve):
    length = start + prompt
    grid = optimal_counts(torch.tensor([start]), num_steps, curve, torch.tensor([length]))
    found = step_costs(grid, curve, torch.tensor([length])).item()
    assert found == pytest.approx(price(grid[:, 0].tolist(), curve, length), abs=1e-9)
    assert found == pytest.approx(min(price(g, curve, length) for g in all_grids(start, num_steps)), abs=1e-7)
    assert len(grid) - 1 == min(num_steps, start)


def test_of_equal_prices_the_optimal_grid_is_the_even_one():
    grid = optimal_counts(torch.tensor([12, 6, 7]), 3, [2.0])
    assert grid.T[:2].tolist() == [[12, 8, 4, 0], [6, 4, 2, 0]]
    assert sorted((grid[:-1] - grid[1:])[:, 2].tolist()) == [2, 2, 3]
    assert torch.equal(optimal_counts(torch.tensor([12]), 3, [0.0]), grid[:, :1])


def test_one_step_takes_all_and_enough_steps_take_one_each():
    for schedule in SCHEDULES:
        assert counts(schedule, torch.tensor([5, 1]), 1, [1.0, 2.0]).T.tolist() == [[5, 0], [1, 0]]
        for num_steps in (4, 9, None):
            assert counts(schedule, torch.tensor([4]), num_steps, [1.0, 2.0])[:, 0].tolist() == [4, 3, 2, 1, 0]


def test_the_optimal_grid_goes_slowly_where_the_curve_is_steep():
    steep_at_the_start = [1.0] * 15 + [5.0]
    assert optimal_counts(torch.tensor([16]), 2, steep_at_the_start)[:, 0].tolist() == [16, 15, 0]


@fixed
@given(st.integers(1, 300), st.integers(1, 300))
def test_cosine_counts_follow_the_cosine_where_they_may(start, num_steps):
    grid = cosine_counts(torch.tensor([start]), num_steps)[:, 0].tolist()
    own = min(num_steps, start)
    assert len(grid) == own + 1
    for j, count in enumerate(grid):
        wish = start * math.cos(math.pi / 2 * j / own)
        at_least, at_most = own - j, start - j  # one token for each step to come, and for each step made
        assert abs(count - min(max(wish, at_least), at_most)) <= 1 + 1e-6


def test_cosine_counts_of_maskgit_size():
    assert cosine_counts(torch.tensor([256, 3]), 8).T.tolist() == [
        [256, 251, 236, 212, 181, 142, 97, 49, 0],
        [3, 2, 1, 0, 0, 0, 0, 0, 0],
    ]
    assert cosine_counts(torch.tensor([10]), 3)[:, 0].tolist() == [10, 8, 5, 0]  # cos(pi/3) is exactly a half


def test_a_curve_is_linear_between_its_points_and_constant_below_the_first():
    shares = torch.tensor([0.1, 0.25, 0.375, 0.5, 0.75, 0.9, 1.0], dtype=torch.float64)
    assert curve_at([1.0, 2.0, 4.0, 3.0], shares).tolist() == pytest.approx([1, 1, 1.5, 2, 4, 3.4, 3])
    assert curve_at([7.0], shares).tolist() == [7.0] * 7


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("num_steps", [0, -1])
def test_every_schedule_needs_a_step(schedule, num_steps):
    with pytest.raises(ValueError, match="num_steps"):
        counts(schedule, torch.tensor([4]), num_steps, [1.0])


def test_what_cannot_work_is_refused_by_name():
    four = torch.tensor([4])
    with pytest.raises(ValueError, match="schedule must be one of 'linear', 'cosine', 'optimal', got 'square'"):
        counts("square", four)
    with pytest.raises(ValueError, match="curve"):
        counts("optimal", four, 2)
    for curve in ([], [1.0, math.nan]):
        with pytest.raises(ValueError, match="curve"):
            counts("optimal", four, 2, curve)
    with pytest.raises(ValueError, match="lengths"):
        counts("optimal", four, 2, [1.0], torch.tensor([3]))
