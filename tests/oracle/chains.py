"""Exact transition matrices of the package's samplers, read off its own code by enumerating worlds and outcomes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from tests.oracle.outcomes import Board, Script, accumulate, forward_outcomes, reverse_outcomes
from tests.oracle.world import World, all_rows
from udm_text.core import reverse_step
from udm_text.kernels import ALL_KERNELS, KERNELS, log_rest
from udm_text.objectives import changes, mask_terms, substitute_terms, uniform_terms


def filled(value: int, like: Tensor) -> Tensor:
    """(B,) int64 counts."""
    return torch.full((len(like),), value, dtype=torch.int64)


def log_of(p: np.ndarray) -> Tensor:
    return torch.from_numpy(p).log()


def forward_law(process, board: Board, x0: Tensor, t: int, masks: bool) -> Tensor:
    """The law of corrupt(x0, t, sample_noise) for one row of digits x0: (l,)."""
    calls, weights = forward_outcomes(board, shifts=not masks)
    row = board.rows(x0[None]).expand(len(weights), -1)
    script = Script(*calls)
    noise = process.sample_noise(row, editable=board.editable(len(row)), random=script)
    assert script.used_up()
    xt = process.corrupt(row, filled(t, row), noise)
    return accumulate(board.index(xt, masks), weights, (board.num_tokens + masks) ** board.length)


def reverse_law(
    process,
    board: Board,
    xt: Tensor,
    x0: Tensor,
    t: int,
    s: int,
    churn: float,
    masks: bool,
    rising: bool = False,
) -> Tensor:
    """The law of reverse_step for one row of digits xt: (l,) and several x0_hat: (n, l). (n, number of states)."""
    calls, weights = reverse_outcomes(board, churn, shifts=not masks, rising=rising)
    states = (board.num_tokens + masks) ** board.length
    laws = []
    for prediction in x0:
        rows, guesses = (board.rows(d[None]).expand(len(weights), -1) for d in (xt, prediction))
        script = Script(*calls)
        editable = board.editable(len(rows))
        counts = filled(t, rows), filled(s, rows)
        xs = reverse_step(process, rows, guesses, *counts, churn, editable=editable, random=script)
        assert script.used_up()
        laws.append(accumulate(board.index(xs, masks), weights, states))
    return torch.stack(laws)


def mask_transitions(process, board: Board, p: np.ndarray, t: int, s: int, churn: float = 0.0) -> np.ndarray:
    """p(xs | xt) of the mask sampler for every xt with t masks, x0_hat drawn independently from p where it is masked.

    p: ((V + 1)^l, l, V). Returns ((V + 1)^l, (V + 1)^l), rows of other counts are zero.
    """
    num_tokens, length = board.num_tokens, board.length
    states = all_rows(num_tokens + 1, length)
    matrix = np.zeros((len(states), len(states)))
    for number in np.flatnonzero((states == num_tokens).sum(1) == t):
        masked = np.flatnonzero(states[number] == num_tokens)
        fills = all_rows(num_tokens, len(masked)) if t else np.zeros((1, 0), dtype=np.int64)
        x0 = np.repeat(states[number][None], len(fills), axis=0)
        x0[:, masked] = fills
        weights = p[number][masked, fills].prod(-1)
        laws = reverse_law(
            process, board, torch.from_numpy(states[number]), torch.from_numpy(x0), t, s, churn, masks=True
        )
        matrix[number] = weights @ laws.numpy()
    return matrix


def mask_sampler_law(process, board: Board, predictor: Callable[[int], np.ndarray], counts: list[int], churn=0.0):
    """The law over V^l of the mask sampler that walks down `counts`, starting from all masks."""
    states = all_rows(board.num_tokens + 1, board.length)
    law = np.zeros(len(states))
    law[-1] = 1.0
    for t, s in zip(counts[:-1], counts[1:], strict=True):
        law = law @ mask_transitions(process, board, predictor(t), t, s, churn)
    return law[(states < board.num_tokens).all(1)]


def kernel_transitions(name: str, p: np.ndarray, t: int) -> np.ndarray:
    """p(xs | xt) of a one-token step, from `changes` and the kernel's `log_rate`. p: (V^l, l, V)."""
    _, length, num_tokens = p.shape
    xt = torch.from_numpy(all_rows(num_tokens, length))
    change = changes(log_of(p), xt, torch.ones_like(xt, dtype=torch.bool))
    rate = ALL_KERNELS[name].log_rate(change, filled(t, xt))
    move = (log_of(p) + rate[..., None]).exp().scatter(2, xt[..., None], 0.0)
    place = num_tokens ** torch.arange(length).flip(0)
    here = (xt * place).sum(-1)
    target = here[:, None, None] + (torch.arange(num_tokens) - xt[..., None]) * place[:, None]
    matrix = torch.zeros(len(xt), len(xt), dtype=torch.float64)
    matrix.scatter_add_(1, target.flatten(1), move.flatten(1))
    if name == "free":  # it may change nothing
        matrix[here, here] += change.log_stay.sum(-1).exp()
    if name == "uniform":
        total, rest = log_rest(change, filled(t, xt))
        matrix[here, here] += torch.sigmoid(rest - total)
    return matrix.numpy()


def kernel_sampler_law(name: str, predictor: Callable[[int], np.ndarray], start: np.ndarray, length: int):
    """The law over V^l of the substitute sampler, one token a step from t = l, started from the law `start`."""
    law = start
    for t in range(length, 0, -1):
        law = law @ kernel_transitions(name, predictor(t), t)
    return law


def mask_term_means(world: World, predictor: Callable[[int], np.ndarray]) -> np.ndarray:
    """E_S of `mask_terms` for every x0 and t: (V^l, l), column t - 1."""
    columns = []
    for t in range(1, world.length + 1):
        forward = world.mask_forward(t)
        which, states = np.nonzero(forward)
        corrupted = torch.from_numpy(world.masked_sequences[states] == world.num_tokens)
        x0 = torch.from_numpy(world.sequences[which])
        log_p = log_of(predictor(t)[states]).gather(2, x0[..., None])[..., 0]
        terms = mask_terms(-log_p[corrupted], corrupted.nonzero()[:, 0], filled(world.length, x0), filled(t, x0))
        columns.append(np.bincount(which, weights=forward[which, states] * terms.numpy()))
    return np.stack(columns, axis=1)


def substitute_term_means(name: str, world: World, predictor: Callable[[int], np.ndarray]) -> np.ndarray:
    """E_{xt} of `substitute_terms` for every x0 and t: (V^l, l), column t - 1."""
    columns = []
    for t in range(1, world.length + 1):
        forward = world.substitute_forward(t)
        which, states = np.nonzero(forward)
        x0, xt = (torch.from_numpy(world.sequences[n]) for n in (which, states))
        log_p = log_of(predictor(t)[states])
        terms = substitute_terms(
            KERNELS[name],
            changes(log_p, xt, torch.ones_like(xt, dtype=torch.bool)),
            log_p.gather(2, x0[..., None])[..., 0],
            xt != x0,
            filled(world.length, x0),
            filled(t, x0),
            world.num_tokens,
        )
        columns.append(np.bincount(which, weights=forward[which, states] * terms.numpy()))
    return np.stack(columns, axis=1)


def uniform_term_means(world: World, predictor: Callable[[int], np.ndarray]) -> np.ndarray:
    """E_{xt} of `uniform_terms` for every x0 and t: (V^l, l), column t - 1."""
    columns = []
    for t in range(1, world.length + 1):
        forward = world.uniform_forward(t)
        which, states = np.nonzero(forward)
        x0, xt = (torch.from_numpy(world.sequences[n]) for n in (which, states))
        log_p = log_of(predictor(t)[states])
        terms = uniform_terms(
            changes(log_p, xt, torch.ones_like(xt, dtype=torch.bool)),
            log_p.gather(2, x0[..., None])[..., 0],
            xt != x0,
            filled(world.length, x0),
            filled(t, x0),
        )
        columns.append(np.bincount(which, weights=forward[which, states] * terms.numpy()))
    return np.stack(columns, axis=1)
