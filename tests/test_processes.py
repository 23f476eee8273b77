"""Both corruptions have exactly the laws they claim, at every churn, and touch nothing but editable positions.

The exact tests run the real code on every outcome of its randomness (tests/oracle/outcomes.py); x0_hat is x0.
"""

import numpy as np
import pytest
import torch

from tests.oracle.chains import filled, forward_law, reverse_law
from tests.oracle.outcomes import ALLOWED, MASK, SPECIAL, Board, Script
from tests.oracle.world import make_world, total_variation
from udm_text.core import recover_noise, reverse_step
from udm_text.processes import MaskProcess, SubstituteProcess, TokenNoise, corrupted_set, ranks
from udm_text.randomness import RowRandom

EXACT = 1e-12
CHURNS = (0.0, 0.3, 1.0)


def make_process(board, masks):
    return MaskProcess(MASK) if masks else SubstituteProcess(board.allowed)


def forward_of(world, t, masks):
    return world.mask_forward(t) if masks else world.substitute_forward(t)


def states_of(world, masks):
    return world.masked_sequences if masks else world.sequences


def check_marginal_identity(board, masks, churn, number, rising=False, times=None):
    """sum over xt of p(xs | xt, x0) q(xt | x0) = q(xs | x0), for one x0 and every t and s."""
    world, process = make_world(board.num_tokens, board.length), make_process(board, masks)
    x0 = torch.from_numpy(world.sequences[number])
    for t in range(board.length + 1) if times is None else times:
        for s in range(board.length + 1):  # s > t inverts, and keeps the law as well
            law = np.zeros(len(states_of(world, masks)))
            q = forward_of(world, t, masks)[number]
            for state in np.flatnonzero(q):
                xt = torch.from_numpy(states_of(world, masks)[state])
                law += q[state] * reverse_law(process, board, xt, x0[None], t, s, churn, masks, rising)[0].numpy()
            assert total_variation(law, forward_of(world, s, masks)[number]) < EXACT, (t, s)


# --- the laws, exactly -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("prompt", [(), (0, 2)])
@pytest.mark.parametrize(("masks", "num_tokens", "length"), [(True, 2, 3), (True, 4, 2), (False, 3, 3), (False, 4, 2)])
def test_corrupt_has_exactly_the_forward_law(masks, num_tokens, length, prompt):
    board, world = Board(num_tokens, length, prompt), make_world(num_tokens, length)
    for t in range(length + 1):
        expected = forward_of(world, t, masks)
        for number, x0 in enumerate(torch.from_numpy(world.sequences)):
            law = forward_law(make_process(board, masks), board, x0, t, masks)
            assert total_variation(law.numpy(), expected[number]) < EXACT


@pytest.mark.parametrize("churn", CHURNS)
@pytest.mark.parametrize("prompt", [(), (1,)])
def test_mask_keeps_the_marginal_identity_for_every_jump(churn, prompt):
    check_marginal_identity(Board(2, 3, prompt), masks=True, churn=churn, number=5)


@pytest.mark.parametrize("churn", CHURNS)
@pytest.mark.parametrize("prompt", [(), (0,)])
@pytest.mark.parametrize(("num_tokens", "number"), [(3, 5), (4, 9)])
def test_substitute_keeps_the_marginal_identity_for_every_jump(churn, prompt, num_tokens, number):
    check_marginal_identity(Board(num_tokens, 2, prompt), masks=False, churn=churn, number=number)


@pytest.mark.slow
@pytest.mark.parametrize("t", [1, 2, 3])
def test_substitute_keeps_the_marginal_identity_at_length_three(t):
    check_marginal_identity(Board(3, 3), masks=False, churn=0.3, number=19, rising=True, times=[t])


@pytest.mark.slow
@pytest.mark.parametrize("t", [1, 2, 3, 4])
def test_mask_keeps_the_marginal_identity_at_length_four(t):
    check_marginal_identity(Board(2, 4), masks=True, churn=0.6, number=6, rising=True, times=[t])


@pytest.mark.parametrize("masks", [True, False])
def test_baseline_step_forgets_xt_even_where_x0_hat_disagrees_with_it(masks):
    board, world = Board(3, 2), make_world(3, 2)
    process = make_process(board, masks)
    for xt in torch.from_numpy(states_of(world, masks)):
        for s in range(3):
            laws = reverse_law(process, board, xt, torch.from_numpy(world.sequences), 1, s, 1.0, masks)
            assert np.abs(laws.numpy() - forward_of(world, s, masks)).max() < EXACT


@pytest.mark.parametrize(("length", "t"), [(3, 3), (3, 2), (4, 3)])
def test_improved_mask_step_reveals_one_uniformly_chosen_position(length, t):
    board = Board(2, length)
    xt = torch.tensor([1] * (length - t) + [2] * t)
    law = reverse_law(MaskProcess(MASK), board, xt, torch.ones(1, length, dtype=torch.int64), t, t - 1, 0.0, True)
    world = make_world(2, length)
    for state in np.flatnonzero(law[0].numpy() > 0):
        revealed = (world.masked_sequences[state] != 2).sum() - (length - t)
        assert revealed == 1
        assert abs(law[0, state] - 1 / t) < EXACT
    assert (law > 0).sum() == t


def test_improved_substitute_step_puts_back_one_uniformly_chosen_token():
    """q(x_{t-1} | x_t, x0) = 1/t on each of the t neighbours that agree with x0 at one more position."""
    board, world = Board(3, 3), make_world(3, 3)
    x0, xt = torch.tensor([0, 1, 2]), torch.tensor([1, 1, 0])
    law = reverse_law(SubstituteProcess(board.allowed), board, xt, x0[None], 2, 1, 0.0, masks=False)[0]
    support = {tuple(row) for row in world.sequences[np.flatnonzero(law.numpy())]}
    assert support == {(0, 1, 0), (1, 1, 2)}
    assert np.allclose(law[law > 0].numpy(), 0.5, atol=EXACT)


def test_prior_is_all_masks_or_uniform_on_the_allowed_tokens():
    board = Board(3, 2, (1,))
    rows, editable = board.rows(torch.zeros(9, 2, dtype=torch.int64)), board.editable(9)
    assert (MaskProcess(MASK).prior(rows, editable=editable) == torch.tensor([MASK, SPECIAL, MASK])).all()
    u = torch.cartesian_prod(*(torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64),) * 2)
    prior = SubstituteProcess(board.allowed).prior(rows, editable=editable, random=Script(board.spread(u)))
    assert board.index(prior, masks=False).tolist() == list(range(9))


# --- noise -----------------------------------------------------------------------------------------------------


def test_ranks_and_corrupted_set():
    keys = torch.tensor([[0.5, torch.inf, 0.1, 0.9], [torch.inf, 0.2, 0.3, torch.inf]], dtype=torch.float64)
    assert ranks(keys).tolist() == [[1, 3, 0, 2], [2, 0, 1, 3]]
    assert corrupted_set(keys, torch.tensor([2, 9])).tolist() == [
        [True, False, True, False],
        [False, True, True, False],
    ]


@pytest.mark.parametrize("masks", [True, False])
def test_blend_takes_the_fresh_noise_where_the_coin_lies_below_churn(masks):
    board = Board(4, 5)
    process, x = make_process(board, masks), board.rows(torch.zeros(3, 5, dtype=torch.int64))
    old, fresh = (process.sample_noise(x, random=RowRandom(seed, torch.arange(3))) for seed in (0, 1))
    swap = fresh.coins < 0.3
    assert swap.any() and not swap.all()
    mixed = process.blend(old, fresh, 0.3)
    assert torch.equal(mixed.keys, torch.where(swap, fresh.keys, old.keys))
    if not masks:
        assert torch.equal(mixed.shifts, torch.where(swap, fresh.shifts, old.shifts))
    for churn, same in ((0.0, old), (1.0, fresh)):
        blended = process.blend(old, fresh, churn)
        assert all(a is b is None or torch.equal(a, b) for a, b in zip(blended, same, strict=True))


@pytest.mark.parametrize("churn", [-0.1, 1.5, float("nan")])
@pytest.mark.parametrize("masks", [True, False])
def test_churn_outside_the_unit_interval_is_refused(masks, churn):
    board = Board(3, 2)
    process = make_process(board, masks)
    noise = process.sample_noise(board.rows(torch.zeros(1, 2, dtype=torch.int64)))
    with pytest.raises(ValueError, match="churn"):
        process.blend(noise, noise, churn)


@pytest.mark.parametrize("masks", [True, False])
def test_recovered_noise_carries_x0_to_xt(masks):
    board, batch = Board(4, 6, (2, 5)), 64
    process, random = make_process(board, masks), RowRandom(4, torch.arange(batch))
    x0 = board.rows(torch.randint(4, (batch, 6), generator=torch.Generator().manual_seed(0)))
    editable, t = board.editable(batch), torch.arange(batch) % 7
    xt = process.corrupt(x0, t, process.sample_noise(x0, editable=editable, random=random))
    noise = process.invert_noise(x0, xt, t, editable=editable, random=random)
    assert torch.equal(process.corrupt(x0, t, noise), xt)
    assert torch.equal(process.corrupted(xt, x0) & editable, corrupted_set(noise.keys, t))
    assert torch.isfinite(noise.keys).equal(editable)


@pytest.mark.parametrize("masks", [True, False])
def test_scores_order_the_corrupted_positions_the_highest_leaves_first(masks):
    board, batch = Board(4, 6, (0,)), 32
    process, random = make_process(board, masks), RowRandom(5, torch.arange(batch))
    generator = torch.Generator().manual_seed(0)
    x0 = board.rows(torch.randint(4, (batch, 6), generator=generator))
    editable, t = board.editable(batch), filled(4, x0)
    xt = process.corrupt(x0, t, process.sample_noise(x0, editable=editable, random=random))
    scores = torch.randn(batch, 7, generator=generator)
    noise = recover_noise(process, xt, x0, t, editable=editable, random=random, scores=scores)
    assert torch.equal(process.corrupt(x0, t, noise), xt)
    corrupted = process.corrupted(xt, x0) & editable
    for s in (3, 2, 1, 0):
        left = process.corrupted(process.corrupt(x0, filled(s, x0), noise), x0) & editable
        first = scores.masked_fill(~corrupted, -torch.inf).topk(4 - s, dim=1).indices
        assert torch.equal(corrupted & ~left, torch.zeros_like(left).scatter(1, first, True))


def test_changing_marks_the_positions_that_a_mask_step_reveals():
    board, batch = Board(3, 6, (1,)), 32
    process, random = MaskProcess(MASK), RowRandom(6, torch.arange(batch))
    x0, editable = board.rows(torch.zeros(batch, 6, dtype=torch.int64)), board.editable(batch)
    t, s = filled(5, x0), torch.arange(batch) % 6
    xt = process.corrupt(x0, t, process.sample_noise(x0, editable=editable, random=random))
    noise = process.invert_noise(None, xt, t, editable=editable, random=random)
    changing = process.changing(xt, s, noise)
    assert torch.equal(changing, xt != process.corrupt(x0, s, noise))
    assert torch.equal(changing.sum(1), t - s)


# --- properties of a step --------------------------------------------------------------------------------------


def random_rows(board, batch, seed):
    generator = torch.Generator().manual_seed(seed)
    return board.rows(torch.randint(board.num_tokens, (batch, board.length), generator=generator))


@pytest.mark.parametrize("churn", CHURNS)
@pytest.mark.parametrize("masks", [True, False])
def test_exactly_s_positions_differ_from_any_x0_hat_after_a_step(masks, churn):
    board, batch = Board(5, 8, (0, 4)), 200
    process, random, editable = (
        make_process(board, masks),
        RowRandom(7, torch.arange(batch)),
        board.editable(batch),
    )
    x0, x0_hat = random_rows(board, batch, 0), random_rows(board, batch, 1)
    t = torch.arange(batch) % 9
    xt = process.corrupt(x0, t, process.sample_noise(x0, editable=editable, random=random))
    s = torch.arange(batch) % (t + 1)
    xs = reverse_step(process, xt, x0_hat, t, s, churn, editable=editable, random=random)
    assert torch.equal((xs != x0_hat).sum(1), s)
    if masks:
        assert torch.equal(((xs == MASK) & editable).sum(1), s)
    board.index(xs, masks)  # only allowed tokens at editable positions, prompts untouched


def test_an_improved_substitute_step_changes_t_minus_s_positions_at_hamming_distance_t():
    board, batch = Board(5, 8, (3,)), 200
    process, random, editable = (
        make_process(board, False),
        RowRandom(8, torch.arange(batch)),
        board.editable(batch),
    )
    x0_hat, t = random_rows(board, batch, 0), 1 + torch.arange(batch) % 8
    xt = process.corrupt(x0_hat, t, process.sample_noise(x0_hat, editable=editable, random=random))
    for back in (1, 2):
        s = (t - back).clamp(min=0)
        xs = reverse_step(process, xt, x0_hat, t, s, editable=editable, random=random)
        assert torch.equal((xs != xt).sum(1), t - s)
        assert torch.equal(xs[xs != xt], x0_hat[xs != xt])


@pytest.mark.parametrize("churn", CHURNS)
@pytest.mark.parametrize("masks", [True, False])
def test_a_padded_row_in_a_batch_goes_the_way_it_goes_alone(masks, churn):
    board, lengths, seed = Board(4, 7), (3, 7, 1, 5), 11
    process, x0 = make_process(board, masks), random_rows(board, 4, 2)
    x0_hat = random_rows(board, 4, 3)
    editable = torch.arange(7) < torch.tensor(lengths)[:, None]
    x0, x0_hat = (x.masked_fill(~editable, SPECIAL) for x in (x0, x0_hat))

    def walk(rows, width):
        random = RowRandom(seed, torch.arange(4)[rows])
        clean, prediction, edit = x0[rows, :width], x0_hat[rows, :width], editable[rows, :width]
        t = edit.sum(1)
        noise = process.sample_noise(clean, editable=edit, random=random)
        xt = process.corrupt(clean, t - 1, noise)
        prior = process.prior(clean, editable=edit, random=random)
        xs = reverse_step(process, xt, prediction, t - 1, t // 2, churn, editable=edit, random=random)
        return torch.cat((xt, prior, xs), dim=0)

    together = walk(slice(None), 7).view(3, 4, 7)
    for row, length in enumerate(lengths):
        assert torch.equal(together[:, row, :length], walk(slice(row, row + 1), length))
    assert (together[:, ~editable] == SPECIAL).all()


@pytest.mark.parametrize("masks", [True, False])
def test_no_argument_is_modified_in_place(masks):
    board, batch = Board(4, 5, (1,)), 6
    process, random = make_process(board, masks), RowRandom(12, torch.arange(batch))
    x0, x0_hat = random_rows(board, batch, 0), random_rows(board, batch, 1)
    editable, t, s, scores = board.editable(batch), filled(3, x0), filled(1, x0), torch.randn(batch, 6)
    noise, fresh = (process.sample_noise(x0, editable=editable, random=random) for _ in range(2))
    xt = process.corrupt(x0, t, noise)
    given = [x0, x0_hat, xt, editable, t, s, scores, *(n for n in (*noise, *fresh) if n is not None)]
    before = [x.clone() for x in given]
    process.prior(x0, editable=editable, random=random)
    process.invert_noise(x0_hat, xt, t, editable=editable, random=random, scores=scores)
    process.blend(noise, fresh, 0.5)
    process.corrupted(xt, x0)
    reverse_step(process, xt, x0_hat, t, s, 0.5, editable=editable, random=random)
    assert all(torch.equal(a, b) for a, b in zip(given, before, strict=True))


def test_without_a_source_the_default_generator_decides():
    board = Board(4, 6)
    x0 = random_rows(board, 8, 0)
    for masks in (True, False):
        process = make_process(board, masks)
        noises = []
        for seed in (1, 1, 2):
            torch.manual_seed(seed)
            noises.append(process.sample_noise(x0).keys)
        assert torch.equal(noises[0], noises[1]) and not torch.equal(noises[0], noises[2])


# --- what is refused -------------------------------------------------------------------------------------------


def test_substitution_needs_two_tokens():
    with pytest.raises(ValueError, match="at least 2"):
        SubstituteProcess(torch.tensor([5, 5]))


def test_allowed_tokens_may_come_in_any_order_and_twice():
    process = SubstituteProcess(torch.tensor([9, 3, 9, 4]))
    assert process.num_tokens == 3 and process.allowed.tolist() == [3, 4, 9]


@pytest.mark.parametrize("intruder", [MASK, SPECIAL, 5, 10_000])
def test_substitution_refuses_tokens_that_may_not_stand_there(intruder):
    process = SubstituteProcess(torch.tensor(ALLOWED))
    x0 = torch.tensor([[3, intruder, 4]])
    noise = process.sample_noise(x0, random=RowRandom(0, torch.arange(1)))
    with pytest.raises(ValueError, match="x0"):
        process.corrupt(x0, torch.tensor([3]), noise)
    with pytest.raises(ValueError, match="x0"):
        process.invert_noise(x0, torch.tensor([[3, 4, 4]]), torch.tensor([1]))
    editable = torch.tensor([[True, False, True]])  # the same token is welcome in a prompt
    noise = process.sample_noise(x0, editable=editable)
    assert process.corrupt(x0, torch.tensor([2]), noise)[0, 1] == intruder


def test_substitution_refuses_noise_without_shifts():
    with pytest.raises(ValueError, match="shifts"):
        SubstituteProcess(torch.tensor(ALLOWED)).corrupt(
            torch.tensor([[3, 4]]), torch.tensor([1]), TokenNoise(torch.rand(1, 2), torch.rand(1, 2))
        )
