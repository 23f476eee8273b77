"""Whole rows as predictions: x0_hat is drawn from left to right, each token given those before it and all of xt.

A factorised predictor draws every token of x0_hat by itself, so that a step is exact only where it takes one of them.
Here an encoder reads xt (and t), and a decoder writes a row from

    q(x0 | xt) = prod over i of q(x0_i | x0_<i, xt),

in which the tokens depend on each other as they do in texts. With the exact conditionals a walk samples the data
whatever its grid and its churn, in one step as in many. Nothing but the prediction is different: corruption, inverse
and loop are those of the process within.

Of a walk l = t_0 > ... > t_K = 0 the transitions of model and data share p(xs | xt, x0), and the model draws x0 with
chance q(x0 | xt), so that

    -log p(x0) <= KL(q(x_l | x0), prior) + sum over k < K of E[-log q(x0 | x_{t_k})].

In one step of masks, which draws x0 once from a row that is nothing but [MASK], both sides are equal.

Source: Su Jianlin, "Unified Diffusion Model" (kexue.fm/archives/9262, 9271), which leaves open whether q(x0 | xt) is
autoregressive; the bound is ours (docs/mathematics.md).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .cross_entropy import cross_entropy
from .objectives import CorruptedRows
from .processes import CardWords
from .randomness import RowRandom


def shift_right(x0: Tensor, start: int) -> Tensor:
    """(B, L) int64: what a decoder reads to write x0 (B, L): `start`, then x0 without its last token."""
    return torch.cat((torch.full_like(x0[:, :1], start), x0[:, :-1]), dim=1)


class JointProcess:
    """A process whose x0_hat are whole rows: a `TokenProcess` that corrupts and corrects as the one within it.

    Args:
        inner: a process that takes `whole_rows`. What is not said here it says: noise, corruption, inverse, prior.
    """

    def __init__(self, inner: Any):
        self.inner = inner
        self.kernels: tuple[str, ...] = ()
        self.training = ("bound", "uniform")
        self.prices_steps, self.has_curve, self.has_rates = True, False, False
        self.generation_options = frozenset(("order",)) & inner.generation_options
        words: CardWords = inner.card
        self.card = words._replace(
            what=f"{words.what}; each prediction is a whole text, written from left to right by an encoder-decoder",
            limits="One step samples exactly from the model that the figures are of; of more steps a looser bound is "
            "known.",
        )

    def __getattr__(self, name: str) -> Any:
        if name == "inner":  # of a copy that is not made yet
            raise AttributeError(name)
        return getattr(self.inner, name)

    def losses(
        self,
        predict: Callable[..., Tensor],
        rows: CorruptedRows,
        forbidden: Tensor,
        *,
        loss: str = "nelbo",
        kernel: str = "site",
        chunk: int | None = None,
    ) -> Tensor:
        """(B,) -log q(x0 | xt) in nats; where `rows.s` says which step is meant, an estimate of the bound of the walk.

        That step is one of l / (t - s) if t is drawn as evenly as `evaluation.row_draws` does it, which raises a
        uniform count to the next one of the grid. predict is called with x0=, too, and gives logits (B, L, V).
        """
        logits = predict(input_ids=rows.xt, t=rows.t, num_editable=rows.lengths, x0=rows.x0)
        logits = logits[:, : rows.x0.shape[1]]  # a compiled network reads rows of a few lengths
        nats = cross_entropy(logits.flatten(0, 1), rows.x0.flatten(), forbidden).view_as(rows.x0)
        total = nats.masked_fill(~self.inner.unsettled(rows.xt, rows.editable), 0.0).sum(dim=1)
        if rows.s is None:
            return total
        steps = rows.lengths.double() / (rows.t - rows.s).clamp(min=1)
        return steps * total + self.inner.prior_nats(rows.lengths)

    def check_training(self, loss: str, max_corruption: float, loss_chunk: int | None) -> None:
        """Raises ValueError for repairers, whose edits are single positions, and for logits in chunks."""
        if max_corruption < 1.0:
            raise ValueError(
                f"max_corruption={max_corruption} trains a repairer, which edits single positions: it goes with "
                "predictor 'factorised'"
            )
        if loss_chunk is not None:
            raise ValueError(
                "loss_chunk makes the logits of single positions in turn, and a decoder those of whole rows: leave it "
                "out with predictor 'autoregressive'"
            )

    def predictor(self, model: Any, config: Any, inputs: Any, random: RowRandom, constraints: Any) -> Any:
        """A `JointPredictor`."""
        from .writing import JointPredictor

        return JointPredictor(model, self, config, inputs, random, constraints)

    def resolve_options(self, config: Any, model_config: Any) -> None:
        """One step, unless another number is asked for. Raises ValueError for what needs laws of single positions."""
        if config.num_steps is None:
            config.num_steps = 1
        if config.cache_refresh is not None and config.cache_refresh > 1:
            raise ValueError(
                f"cache_refresh={config.cache_refresh} keeps what an encoder computed of rows that change, and a "
                "decoder keeps its own: leave cache_refresh at None with predictor 'autoregressive'"
            )
        from .decoding import find_order

        if find_order(config.order) is not None:
            raise ValueError(
                f"order={config.order!r} compares the laws of single positions, and predictor 'autoregressive' has "
                "those of whole rows: give 'random', 'left_to_right' or a Skeleton"
            )
