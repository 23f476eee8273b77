"""The one idea of this package: corrupt, predict, correct. It serves tokens and images alike.

    forward   xt = F_t(x0, noise)                small t keeps much of x0, t = T keeps (almost) nothing
    predict   x0_hat ~ q(x0 | xt)                the network
    correct   xs = F_s(x0_hat, F_t^-1(x0_hat, xt))      s < t; the recovered noise is reused ("improved")
          or  xs = F_s(x0_hat, fresh noise)             ("baseline"); `churn` in [0, 1] joins the two

Source: Su Jianlin, "Unified Diffusion Model" (kexue.fm/archives/9262, 9271). What a process must satisfy is the
marginal identity: sum over xt of p(xs | xt, x0) p(xt | x0) = p(xs | x0). `tests/oracle` checks it by enumeration.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from .randomness import RowRandom


class Process(Protocol):
    """A corruption F_t and its inverse. `editable` marks what may change (None: everything); B rows in a batch.

    Noise is opaque to the loop: whatever `sample_noise` makes, `corrupt` and `blend` understand. `random` is the
    source of each row's own numbers (None: one seeded from torch's default generator).
    """

    def sample_noise(self, x: Tensor, *, editable: Tensor | None = None, random: RowRandom | None = None) -> Any:
        """Noise for data shaped like x; independent of the values of x wherever `editable` is true."""

    def corrupt(self, x0: Tensor, t: Tensor, noise: Any) -> Tensor:
        """F_t(x0, noise). t: (B,)."""

    def invert_noise(
        self,
        x0: Tensor,
        xt: Tensor,
        t: Tensor,
        *,
        editable: Tensor | None = None,
        random: RowRandom | None = None,
    ) -> Any:
        """F_t^-1(x0, xt): noise that carries x0 to xt; a draw from its posterior where it is not unique."""

    def blend(self, noise: Any, fresh: Any, churn: Any) -> Any:
        """Noise of the same law, a share `churn` of it fresh: 0 gives `noise`, 1 gives `fresh`.

        A number; a process may also take a tensor, a share for each row (images do).
        """

    def prior(self, x: Tensor, *, editable: Tensor | None = None, random: RowRandom | None = None) -> Tensor:
        """A draw of x_T: what is left of x when everything editable is corrupted."""


class Prediction(NamedTuple):
    """What a predictor gives: x0_hat, and what it has already settled on the way.

    A predictor may fix the noise before x0_hat (masks: the corrupted set is visible in xt), the counts (a kernel that
    draws fewer changes than t), or the churn of its step (images: DDPM's share depends on t and s). None leaves the
    choice to `reverse_step`.
    """

    x0: Tensor
    noise: Any = None
    t: Tensor | None = None
    s: Tensor | None = None
    churn: float | Tensor | None = None


def recover_noise(
    process: Process,
    xt: Tensor,
    x0: Tensor,
    t: Tensor,
    churn: float | Tensor = 0.0,
    *,
    editable: Tensor | None = None,
    random: RowRandom | None = None,
    **how: Any,
) -> Any:
    """The noise a reverse step uses: F_t^-1(x0, xt), a share `churn` of it replaced by fresh noise."""
    noise = process.invert_noise(x0, xt, t, editable=editable, random=random, **how)
    if isinstance(churn, Tensor) or churn:
        noise = process.blend(noise, process.sample_noise(xt, editable=editable, random=random), churn)
    return noise


def reverse_step(
    process: Process,
    xt: Tensor,
    x0: Tensor,
    t: Tensor,
    s: Tensor,
    churn: float | Tensor = 0.0,
    *,
    noise: Any = None,
    editable: Tensor | None = None,
    random: RowRandom | None = None,
) -> Tensor:
    """xs ~ p(xs | xt, x0) = F_s(x0, blend(F_t^-1(x0, xt), fresh, churn)).

    Args:
        process: the corruption.
        xt: (B, ...) data at t. x0: the predicted clean data, same shape. t, s: (B,), s <= t (s > t inverts).
        churn: in [0, 1]; 0 is the improved sampler, 1 the baseline.
        noise: noise already recovered (it is used as it is); None recovers it here.
    """
    if noise is None:
        noise = recover_noise(process, xt, x0, t, churn, editable=editable, random=random)
    return process.corrupt(x0, s, noise)


PredictX0 = Callable[[Tensor, Tensor, Tensor], Tensor | Prediction]
"""Called as predict_x0(xt, t, s)."""


def take_step(
    process: Process,
    predict_x0: PredictX0,
    xt: Tensor,
    t: Tensor,
    s: Tensor,
    churn: float = 0.0,
    *,
    editable: Tensor | None = None,
    random: RowRandom | None = None,
) -> tuple[Tensor, Prediction]:
    """One step of `denoise`, from xt at t to xs at s: predict, then correct. Returns xs and what was predicted."""
    output = predict_x0(xt, t, s)
    prediction = Prediction(output) if isinstance(output, Tensor) else output
    t, s = t if prediction.t is None else prediction.t, s if prediction.s is None else prediction.s
    step_churn = churn if prediction.churn is None else prediction.churn
    xs = reverse_step(
        process, xt, prediction.x0, t, s, step_churn, noise=prediction.noise, editable=editable, random=random
    )
    return xs, prediction


def denoise(
    process: Process,
    predict_x0: PredictX0,
    xt: Tensor,
    times: Sequence[Tensor],
    churn: float = 0.0,
    *,
    editable: Tensor | None = None,
    random: RowRandom | None = None,
    on_step: Callable[[int, Tensor, Prediction], Tensor | None] | None = None,
    step_by: Callable[..., tuple[Tensor, Prediction]] = take_step,
) -> Tensor:
    """Walk from xt down the grid `times` (num_steps + 1 tensors of shape (B,)), one `reverse_step` at a time.

    Args:
        predict_x0: called as predict_x0(xt, t, s); gives x0_hat or a `Prediction`.
        on_step: called as on_step(step, xs, prediction) after each step; a tensor it returns replaces xs.
        step_by: what takes a step, with the arguments of `take_step`: that, or that as a graph (compiling.py).

    Returns:
        Data at the last time of the grid.
    """
    for step in range(len(times) - 1):
        t, s = times[step], times[step + 1]
        xt, prediction = step_by(process, predict_x0, xt, t, s, churn, editable=editable, random=random)
        if on_step is not None:
            replaced = on_step(step, xt, prediction)
            xt = xt if replaced is None else replaced
    return xt
