"""Count grids: from start to zero, never resting before the end, the same for a row in any batch."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from udm_text.schedules import linear_counts

starts = st.lists(st.integers(0, 60), min_size=1, max_size=6)
steps = st.one_of(st.none(), st.integers(1, 70))
fixed = settings(deadline=None, derandomize=True, max_examples=150)


@fixed
@given(starts, steps)
def test_a_grid_goes_from_start_to_zero_without_resting_on_the_way(start, num_steps):
    start = torch.tensor(start)
    grid = linear_counts(start, num_steps)
    assert grid.dtype == torch.int64
    assert torch.equal(grid[0], start) and (grid[-1] == 0).all()
    fall = grid[:-1] - grid[1:]
    assert ((fall >= 1) | ((grid[:-1] == 0) & (fall == 0))).all()
    assert torch.equal(fall.sum(0), start)


@fixed
@given(starts, steps)
def test_a_row_has_the_same_grid_in_any_batch(start, num_steps):
    together = linear_counts(torch.tensor(start), num_steps)
    for row, own in enumerate(start):
        alone = linear_counts(torch.tensor([own]), num_steps)[:, 0]
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
