"""The two corruptions of images: hot (Gaussian noise) and cold (any degradation). Both walk through `core.denoise`.

    GaussianProcess   F_t(x0, noise) = a_t x0 + b_t noise         DDPM, VE, rectified flow: tables (a_t, b_t), t = 0..T
    ColdProcess       F_t(x0, noise) = D_t(x0) + noise            the noise is the residual, so sigma = 0 is safe

Images are (B, ...) of any float dtype, mostly (B, C, H, W) in [-1, 1]; t is a step, (B,) int64 in 0..T, or float64 in
[0, 1] of a process in continuous time (`GaussianProcess.from_log_snr`). Tables are float64; a coefficient is rounded to
the image's dtype last of all. Every row's noise is its own (`RowRandom`). A Gaussian process also takes a clock for
each pixel: t of the images' rank, (B, 1 or C, 1 or H, 1 or W), 0 where clean.

Source: Su Jianlin, "Unified Diffusion Model" (kexue.fm/archives/9262); Bansal et al., "Cold Diffusion" (2208.09392).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor

from udm_text.common import choices
from udm_text.core import Process
from udm_text.devices import Sent, demand
from udm_text.randomness import RowRandom

from . import degradations, schedules

PREDICTIONS = ("epsilon", "x0", "v", "score")
"""What a network may be trained to predict: the noise, the clean image, v = (a noise - b x0) / sqrt(a^2 + b^2), or
the score of xt, which is the mean of -noise / b given xt (denoising score matching: Vincent 2011, 1907.05600).

v of rf is noise - x0. Elsewhere it has unit variance at every t where x0 and noise have, and are independent: of vp it
is the v of Salimans and Ho (2202.00512), whose a^2 + b^2 is 1.
"""

SMALL = 0.05  # a_T / b_T above this leaves more than a thousandth of a nat per dimension in x_T


def check_finite(x: Tensor, name: str = "x0", *, low: float | None = None, high: float | None = None) -> Tensor:
    """x itself if it is (B, ...) float, finite and, where bounds are given, inside them; else a ValueError."""
    if not isinstance(x, Tensor) or not x.is_floating_point() or x.ndim < 2:
        what = f"{tuple(x.shape)} {x.dtype}" if isinstance(x, Tensor) else type(x).__name__
        raise ValueError(f"{name} must be a float tensor (B, ...), for images (B, C, H, W), got {what}")
    if not bool(torch.isfinite(x).all()):
        raise ValueError(f"{name} holds {int((~torch.isfinite(x)).sum())} values that are NaN or infinite")
    if low is not None and high is not None and x.numel():
        least, most = float(x.min()), float(x.max())
        if least < low - 1e-6 or most > high + 1e-6:
            raise ValueError(f"{name} must lie in [{low:g}, {high:g}], got values from {least:g} to {most:g}")
    return x


def check_times(t: Tensor, x: Tensor, T: int, by_pixel: bool = False, real: bool = False) -> Tensor:
    """t itself; ValueError unless it is (B,) int64 in 0..T, B the rows of x. On an accelerator: see `demand`.

    by_pixel: t may also have the rank of x and broadcast to it, a step for each pixel. real: it may also be float64, in
    [0, 1].
    """
    clocks = t.ndim == x.ndim and len(t) == len(x) and all(n in (1, m) for n, m in zip(t.shape, x.shape, strict=True))
    fits = t.shape == (len(x),) or (by_pixel and clocks)
    if real and fits and t.dtype == torch.float64:
        demand((t >= 0) & (t <= 1), "t must lie in [0, 1]", lambda: f", got {float(t.min())}..{float(t.max())}")
        return t
    if t.dtype != torch.int64 or not fits:
        more = ", or one for each pixel that broadcasts to the images" * by_pixel
        raise ValueError(f"t must be a ({len(x)},) int64 tensor of steps{more}, got {tuple(t.shape)} {t.dtype}")
    demand((t >= 0) & (t <= T), f"t must lie in 0..{T}", lambda: f", got {int(t.min())}..{int(t.max())}")
    return t


def noisy(t: Tensor) -> Tensor:
    """t, and 1 where it is 0: a time with noise, for values that are thrown away there."""
    return torch.where(t > 0, t, torch.ones_like(t))


def node(t: Tensor, T: int) -> Tensor:
    """The step of T, int64, that is nearest to t; t itself where it is a step."""
    return (t * T).round().long() if t.is_floating_point() else t


def normal_like(x: Tensor, random: RowRandom | None) -> Tensor:
    """Standard normal noise of the shape, dtype and device of x; row i from row i of `random`."""
    random = RowRandom.fresh(len(x), x.device) if random is None else random
    if len(random.rows) != len(x):
        raise ValueError(f"random has {len(random.rows)} rows and the images have {len(x)}")
    return random.normal(math.prod(x.shape[1:])).view(x.shape).to(x)


def mix(noise: Tensor, fresh: Tensor, churn: float | Tensor) -> Tensor:
    """sqrt(1 - churn^2) noise + churn fresh: of two independent standard normals, again one.

    churn is a number, or (B, ...), a share for each row.

    0 gives `noise` and 1 gives `fresh`, exactly.
    """
    wrong = "churn must lie in [0, 1]"
    if not isinstance(churn, Tensor):
        if not 0.0 <= churn <= 1.0:
            raise ValueError(f"{wrong}, got {churn}")
        return math.sqrt(1 - churn**2) * noise + churn * fresh
    weight = churn.to(noise.device, torch.float64)
    demand((weight >= 0) & (weight <= 1), wrong, lambda: f", got {churn}")
    weight = weight.view(*weight.shape, *[1] * (noise.ndim - weight.ndim)) if weight.ndim else weight
    return (1 - weight.square()).sqrt().to(noise.dtype) * noise + weight.to(noise.dtype) * fresh


def _everything(editable: Tensor | None) -> None:
    if editable is not None:
        raise ValueError(
            "images take no `editable`: pixels that stay must carry the noise of their time, see control.edit"
        )


class CardWords(NamedTuple):
    """What the card of a model says of its process: a tag and a task of the Hub, and how the model is used."""

    tag: str
    task: str
    use: str


class ImageProcess(Process, Protocol):
    """A `Process` of images, complete: whatever models, training, sampling and cards ask of it, it answers."""

    T: int
    starts_from_noise: ClassVar[bool]
    """Whether nothing of x0 is left at T: images can then be drawn from the prior, and their likelihood has a bound."""
    default_prediction: ClassVar[str]
    default_error: ClassVar[str]
    card: ClassVar[CardWords]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; `process_from_dict` gives an equal process back."""

    def check_learnable(self, prediction: str, learned_variance: bool) -> None:
        """Raises ValueError where it cannot be learned by this prediction type."""

    def ratio(self, t: Tensor) -> Tensor:
        """(B,) float64 t/T in [0, 1], as a network reads it."""

    def scale_input(self, xt: Tensor, t: Tensor) -> Tensor:
        """xt as a network reads it, of about unit variance whatever t."""

    def scale_output(self, prediction: str, output: Tensor, t: Tensor) -> Tensor:
        """What a network of this prediction type predicts, from its numbers of about unit variance whatever t."""

    def target(self, prediction: str, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """What a network of this prediction type should answer for xt = corrupt(x0, t, noise)."""

    def to_x0(self, prediction: str, output: Tensor, xt: Tensor, t: Tensor) -> Tensor:
        """x0_hat from a network's answer."""

    def overshoot(self) -> float:
        """How far beyond [-1, 1] what it made of an image may lie; infinite where noise may carry it anywhere."""


class GaussianProcess:
    """F_t(x0, noise) = a_t x0 + b_t noise, noise standard normal.

    Made by `vp`, `ve`, `rf`, `from_log_snr`, or from two tables of your own.

    Args:
        a, b: (T + 1,) float64, T >= 1; a_0 = 1, b_0 = 0 and a_t / b_t falls with t.
        unit_v: False: v = a noise - b x0 is not divided by sqrt(a^2 + b^2), as it was not when older models of `ve` and
            of tables were trained; `from_dict` gives these back so.

    Raises:
        ValueError: tables of another form. A UserWarning says so where x_T still shows x0 (a_T / b_T above 0.05).
    """

    starts_from_noise: ClassVar[bool] = True
    default_prediction: ClassVar[str] = "v"
    default_error: ClassVar[str] = "l2"
    card: ClassVar[CardWords] = CardWords(
        "gaussian-diffusion", "unconditional-image-generation", "generate(16, seed=0)"
    )

    def __init__(self, a: Tensor, b: Tensor, *, unit_v: bool = True, made_by: dict[str, Any] | None = None):
        if not isinstance(unit_v, bool):
            raise ValueError(f"unit_v must be True or False, got {unit_v!r}")
        a, b = (torch.as_tensor(table, dtype=torch.float64).cpu() for table in (a, b))
        if a.ndim != 1 or a.shape != b.shape or len(a) < 2:
            raise ValueError(
                f"a and b must be two tables of T + 1 >= 2 numbers, got {tuple(a.shape)}, {tuple(b.shape)}"
            )
        if not bool(torch.isfinite(a).all() & torch.isfinite(b).all() & (a >= 0).all()):
            raise ValueError("a and b must be finite and a not negative")
        if float(a[0]) != 1.0 or float(b[0]) != 0.0:
            raise ValueError(f"at t = 0 nothing is corrupted: a_0 must be 1 and b_0 be 0, got {a[0]:g} and {b[0]:g}")
        if not bool((b[1:] > 0).all()) or not bool((a[1:] / b[1:]).diff().lt(0).all()):
            raise ValueError("b_t must be positive from t = 1 on and a_t / b_t must fall with every t")
        self.a, self.b, self._tables = a, b, Sent(a, b)
        self.T = len(a) - 1
        self.unit_v, self._made_by = unit_v, made_by
        self._log_snr: schedules.Curve | None = None
        rest = float(a[-1] / b[-1])
        if rest > SMALL:
            warnings.warn(
                f"a_T / b_T is {rest:.3g}: x_T still shows x0, so samples started from pure noise will be off. "
                "Take more steps, a faster schedule, or 'cosine'.",
                stacklevel=3,
            )

    # constructors ----------------------------------------------------------------------------------------------------

    @classmethod
    def vp(cls, schedule: str | Tensor = "cosine", T: int = 1000, **options: float) -> GaussianProcess:
        """Variance preserving, a^2 + b^2 = 1.

        Args:
            schedule: "linear", "cosine", "sigmoid", "sigmoid_beta" or "sqrt" with its own options, or the table abar
                itself, (T + 1,) from abar_0 = 1 downwards, in which case T is read off it.
        """
        if isinstance(schedule, Tensor):
            table = schedule.to(torch.float64)
            made_by: dict[str, Any] = {"family": "vp", "schedule": table.tolist()}
            if table.ndim != 1 or not bool(((table >= 0) & (table <= 1)).all()):
                raise ValueError(f"abar must be a row of T + 1 numbers in [0, 1], got shape {tuple(table.shape)}")
        else:
            table = schedules.abar(schedule, T, **options)
            made_by = {"family": "vp", "schedule": schedule, "T": T, **options}
        return cls(table.sqrt(), (1 - table).sqrt(), made_by=made_by)

    @classmethod
    def ve(
        cls, T: int = 1000, sigma_min: float = 0.01, sigma_max: float = 50.0, unit_v: bool = True
    ) -> GaussianProcess:
        """Variance exploding: a = 1, b_t geometric from sigma_min at 1 to sigma_max at T (Song et al. 2011.13456)."""
        schedules.check_num_times(T)
        if not 0 < sigma_min <= sigma_max or (T > 1 and sigma_min == sigma_max):
            raise ValueError(f"ve needs 0 < sigma_min < sigma_max, got {sigma_min} and {sigma_max}")
        sigmas = torch.linspace(math.log(sigma_min), math.log(sigma_max), T, dtype=torch.float64).exp()
        sigmas = sigmas if T > 1 else torch.tensor([sigma_max], dtype=torch.float64)
        b = torch.cat((torch.zeros(1, dtype=torch.float64), sigmas))
        made_by = {"family": "ve", "T": T, "sigma_min": sigma_min, "sigma_max": sigma_max, "unit_v": unit_v}
        return cls(torch.ones_like(b), b, unit_v=unit_v, made_by=made_by)

    @classmethod
    def rf(cls, T: int = 1000) -> GaussianProcess:
        """Rectified flow: a_t = 1 - t/T, b_t = t/T (Liu et al. 2209.03003)."""
        b = torch.arange(schedules.check_num_times(T) + 1, dtype=torch.float64) / T
        return cls(1 - b, b, made_by={"family": "rf", "T": T})

    @classmethod
    def from_log_snr(cls, curve: str | schedules.Curve = "cosine", T: int = 1000, **options: float) -> GaussianProcess:
        """Continuous time, a^2 + b^2 = 1 and log(a_t^2 / b_t^2) a curve over t in [0, 1] (Kingma et al. 2107.00630).

        t may be float64 in [0, 1] wherever a process takes times, and is in training and in grids; t = 0 is the clean
        image. A step j of 0..T, int64, means t = j/T: tables, and what is measured on them, have these nodes.

        Args:
            curve: "linear" or "cosine" with `high` and `low`, its ends; or a function, float64 to float64, elementwise,
                falling, which torch differentiates. A function of your own cannot be saved.
        """
        known = isinstance(curve, str)
        log_snr = schedules.log_snr(curve, **options) if isinstance(curve, str) else curve
        nodes = torch.arange(schedules.check_num_times(T) + 1, dtype=torch.float64) / T
        a, b = _of_log_snr(log_snr, nodes)
        made_by: dict[str, Any] = {"family": "log_snr", "curve": curve if known else None, "T": T, **options}
        found = cls(a, b, made_by=made_by)
        found._log_snr = log_snr
        return found

    @property
    def continuous(self) -> bool:
        """Whether t may be any number in [0, 1]."""
        return self._log_snr is not None

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; `process_from_dict` gives an equal process back. ValueError: a curve of your own."""
        if self.continuous and (self._made_by or {}).get("curve") is None:
            raise ValueError(f"a log_snr of your own cannot be saved: take {choices(schedules.LOG_SNRS)}, by name")
        how = self._made_by or {
            "family": "table",
            "a": self.a.tolist(),
            "b": self.b.tolist(),
            "unit_v": self.unit_v,
        }
        return {"process": "gaussian", **how}

    @classmethod
    def from_dict(cls, saved: dict[str, Any]) -> GaussianProcess:
        """The process that `to_dict` wrote. One of `ve` or of tables without `unit_v` is older, and keeps its v."""
        options = {name: value for name, value in saved.items() if name not in ("process", "family")}
        family = saved.get("family")
        if family in ("ve", "table"):
            options.setdefault("unit_v", False)
        return cls.of_family(family, **options)

    @classmethod
    def of_family(cls, family: Any, /, **options: Any) -> GaussianProcess:
        """A new process: 'vp', 've', 'rf', 'log_snr' with the parameters of its constructor, 'table' with `a`, `b`."""
        if family == "table":
            return cls(_doubles(options["a"]), _doubles(options["b"]), unit_v=options.get("unit_v", True))
        if family not in ("vp", "ve", "rf", "log_snr"):
            raise ValueError(f"family must be 'vp', 've', 'rf', 'log_snr' or 'table', got {family!r}")
        if isinstance(options.get("schedule"), (list, tuple)):
            options["schedule"] = _doubles(options["schedule"])
        try:
            return (cls.from_log_snr if family == "log_snr" else getattr(cls, family))(**options)
        except TypeError as error:
            raise ValueError(f"family {family!r} does not take these parameters: {error}") from error

    # the process -----------------------------------------------------------------------------------------------------

    def coefficients(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """(a_t, b_t) as (B, 1, ..., 1), or of the shape of a t for each pixel, in like's dtype. Checks t."""
        a, b = self.at(check_times(t, like, self.T, by_pixel=True, real=self.continuous))
        return degradations.per_row(a, like), degradations.per_row(b, like)

    def at(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(a_t, b_t) in float64, of the shape and on the device of t, which is not checked."""
        if self._log_snr is not None and t.is_floating_point():
            return _of_log_snr(self._log_snr, t)
        a, b = self._tables(t.device)
        return a[t], b[t]

    def sigma(self, t: Tensor) -> Tensor:
        """(B,) float64 b_t / a_t: the noise on the scale of the clean image; 0 at t = 0, infinite where a_t = 0."""
        a, b = self.at(t)
        return b / a

    def log_snr_slope(self, t: Tensor) -> Tensor:
        """(B,) float64: d log(a_t^2 / b_t^2) / dt of a process in continuous time, t float64."""
        assert self._log_snr is not None
        with torch.enable_grad():
            time = t.detach().clone().requires_grad_()
            (slope,) = torch.autograd.grad(self._log_snr(time).sum(), time)
        return slope

    def ratio(self, t: Tensor) -> Tensor:
        """(B,) float64 t/T in [0, 1], as a network reads it."""
        return t if t.is_floating_point() else t.to(torch.float64) / self.T

    def ancestral_churn(self, t: Tensor, s: Tensor) -> Tensor:
        """(B,) float64: the churn with which a step is a draw of q(xs | xt, x0), sqrt(1 - (a_t b_s / a_s b_t)^2).

        For a clock for each pixel of its shape; 0 where t = 0.
        """
        ratio = torch.where(t > 0, self.sigma(s) / self.sigma(t), 1.0)  # 0 at s = 0 and where a_t = 0
        return (1 - ratio.square()).clamp(0, 1).sqrt()

    def sample_noise(self, x: Tensor, *, editable: Tensor | None = None, random: RowRandom | None = None) -> Tensor:
        """Standard normal, of the shape and dtype of x."""
        _everything(editable)
        return normal_like(x, random)

    def corrupt(self, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """a_t x0 + b_t noise."""
        a, b = self.coefficients(t, x0)
        return a * x0 + b * noise

    def invert_noise(
        self, x0: Tensor, xt: Tensor, t: Tensor, *, editable: Tensor | None = None, random: RowRandom | None = None
    ) -> Tensor:
        """(xt - a_t x0) / b_t. At t = 0 there is no noise to recover: ValueError; of pixels with a clock of 0: 0."""
        _everything(editable)
        a, b = self.coefficients(t, xt)
        if t.ndim > 1:
            return torch.where(b > 0, (xt - a * x0) / torch.where(b > 0, b, 1.0), 0.0)
        demand(t > 0, "at t = 0 no noise can be recovered: steps upwards from a clean image take sampling.inverted")
        return (xt - a * x0) / b

    def blend(self, noise: Tensor, fresh: Tensor, churn: float | Tensor) -> Tensor:
        """sqrt(1 - churn^2) noise + churn fresh."""
        return mix(noise, fresh, churn)

    def prior(self, x: Tensor, *, editable: Tensor | None = None, random: RowRandom | None = None) -> Tensor:
        """b_T times noise, of the shape and dtype of x: what x_T would be if nothing of x0 were left."""
        _everything(editable)
        return float(self.b[-1]) * normal_like(x, random)

    # what a network predicts -----------------------------------------------------------------------------------------

    def target(self, prediction: str, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """What a network of this prediction type should answer for xt = corrupt(x0, t, noise)."""
        a, b = self.coefficients(t, x0)
        p, q = self._of_v(a, b)
        return {"epsilon": noise, "x0": x0, "v": p * noise - q * x0, "score": -noise / b}[_known(prediction)]

    def to_x0(self, prediction: str, output: Tensor, xt: Tensor, t: Tensor) -> Tensor:
        """x0_hat from a network's answer. "epsilon" and "score" have none where a_t = 0 (rf at T): ValueError."""
        a, b = self.coefficients(t, xt)
        if _known(prediction) == "x0":
            return output
        if prediction in ("epsilon", "score"):
            demand(a > 0, "where a_t = 0 the noise says nothing of x0: train with prediction 'v' or 'x0'")
            return (xt - b * output) / a if prediction == "epsilon" else (xt + b * b * output) / a
        p, q = self._of_v(a, b)  # v = p noise - q x0 and xt = a x0 + b noise
        return (p * xt - b * output) / (p * a + q * b)

    def _of_v(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        """(p, q) of v = p noise - q x0, given (a_t, b_t)."""
        family = None if self._made_by is None else self._made_by["family"]
        if family == "rf":
            return torch.ones_like(a), torch.ones_like(b)
        if family in ("vp", "log_snr") or not self.unit_v:  # of vp the root is 1
            return a, b
        root = (a.square() + b.square()).sqrt()
        return a / root, b / root

    def check_learnable(self, prediction: str, learned_variance: bool) -> None:
        """Raises ValueError where the noise says nothing of x0, and it is the noise that is to be predicted."""
        if self.continuous and learned_variance:
            raise ValueError("learned_variance is that of steps from t to t - 1: it does not go with continuous time")
        if prediction in ("epsilon", "score") and float(self.a[-1]) == 0.0:
            raise ValueError(
                f"prediction {prediction!r} cannot tell x0 where a_t = 0, as this process has it at T: train with 'v' "
                "or 'x0'"
            )

    def scale_input(self, xt: Tensor, t: Tensor) -> Tensor:
        """xt / sqrt(a_t^2 + b_t^2)."""
        a, b = self.coefficients(t, xt)
        return xt / (a.square() + b.square()).sqrt()

    def scale_output(self, prediction: str, output: Tensor, t: Tensor) -> Tensor:
        """The output over b_t, of "score" (at t = 0 as it is); else itself."""
        if prediction != "score":
            return output
        _, b = self.coefficients(t, output)
        return output / torch.where(b > 0, b, 1.0)

    def overshoot(self) -> float:
        """Noise knows no range."""
        return math.inf

    def __repr__(self) -> str:
        return f"GaussianProcess({self._made_by or {'family': 'table', 'T': self.T}})"


class ColdProcess:
    """F_t(x0, noise) = D_t(x0) + noise, noise = sigma times a standard normal; at sigma = 0 it is nothing at all.

    A step recovers the residual xt - D_t(x0_hat) and keeps it (churn 0, the paper's improved sampling: xs = xt -
    D_t(x0_hat) + D_s(x0_hat)), or forgets it (churn 1, naive sampling). With sigma > 0, x_0 is clean: F_0(x0, noise)
    is x0.

    Args:
        degradation: (x0, t) -> xt with D_0(x0) = x0; it is checked at the first use.
        T: the last step; None takes the degradation's own.
        sigma: >= 0, the noise beside the degradation.
    """

    starts_from_noise: ClassVar[bool] = False
    default_prediction: ClassVar[str] = "x0"
    default_error: ClassVar[str] = "l1"
    card: ClassVar[CardWords] = CardWords("cold-diffusion", "image-to-image", "restore(images)")

    def __init__(self, degradation: degradations.Degradation, T: int | None = None, sigma: float = 0.0):
        if not callable(degradation):
            raise ValueError(f"degradation must be a function (x0, t) -> xt, got {degradation!r}")
        own = getattr(degradation, "T", None)
        if T is None and own is None:
            raise ValueError("T must be given: this degradation does not say how many steps it has")
        if T is not None and own is not None and T != own:
            raise ValueError(f"T is {T} and the degradation's own T is {own}: give one of them, or the same")
        if not (isinstance(sigma, (int, float)) and math.isfinite(sigma) and sigma >= 0):
            raise ValueError(f"sigma must be a number >= 0, got {sigma!r}")
        self.degradation = degradation
        self.T = schedules.check_num_times(own if T is None else T)  # type: ignore[arg-type]
        self.sigma = float(sigma)
        self._checked = False

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready. A degradation that is not in the table of `degradations` cannot be saved: ValueError."""
        return {
            "process": "cold",
            "degradation": degradations.to_dict(self.degradation),
            "T": self.T,
            "sigma": self.sigma,
        }

    @classmethod
    def from_dict(cls, saved: dict[str, Any]) -> ColdProcess:
        """The process that `to_dict` wrote."""
        return cls(degradations.degradation(**saved["degradation"]), T=saved.get("T"), sigma=saved.get("sigma", 0.0))

    def degrade(self, x0: Tensor, t: Tensor) -> Tensor:
        """D_t(x0), checked: the identity at t = 0, the shape and dtype of x0."""
        check_times(t, x0, self.T)
        if not self._checked and len(x0):
            clean = self.degradation(x0, torch.zeros_like(t))
            if not isinstance(clean, Tensor) or clean.shape != x0.shape or clean.dtype != x0.dtype:
                what = f"{tuple(clean.shape)} {clean.dtype}" if isinstance(clean, Tensor) else type(clean).__name__
                raise ValueError(f"a degradation must keep shape and dtype, {tuple(x0.shape)} {x0.dtype}, got {what}")
            off = float((clean - x0).abs().max())
            if not off <= 1e-5 * max(1.0, float(x0.abs().max())):
                raise ValueError(
                    f"the degradation is not the identity at t = 0: it changes a pixel by {off:.3g}. D_0(x0) must be x0"
                )
            self._checked = True
        return self.degradation(x0, t)

    def sample_noise(self, x: Tensor, *, editable: Tensor | None = None, random: RowRandom | None = None) -> Tensor:
        """sigma times a standard normal, of the shape and dtype of x; zeros, without a draw, at sigma = 0."""
        _everything(editable)
        return self.sigma * normal_like(x, random) if self.sigma else torch.zeros_like(x)

    def corrupt(self, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """D_t(x0) + noise."""
        xt = self.degrade(x0, t) + noise
        if not self.sigma:
            return xt
        return torch.where(degradations.per_row(t > 0, x0, torch.bool), xt, x0)

    def invert_noise(
        self, x0: Tensor, xt: Tensor, t: Tensor, *, editable: Tensor | None = None, random: RowRandom | None = None
    ) -> Tensor:
        """The residual xt - D_t(x0)."""
        _everything(editable)
        return xt - self.degrade(x0, t)

    def blend(self, noise: Tensor, fresh: Tensor, churn: float | Tensor) -> Tensor:
        """sqrt(1 - churn^2) noise + churn fresh."""
        return mix(noise, fresh, churn)

    def prior(self, x: Tensor, *, editable: Tensor | None = None, random: RowRandom | None = None) -> Tensor:
        """D_T(x) + noise. A cold process does not leave nothing of x: x must be an image, or a guess at one."""
        noise = self.sample_noise(x, editable=editable, random=random)
        return self.corrupt(x, torch.full((len(x),), self.T, dtype=torch.int64, device=x.device), noise)

    def check_learnable(self, prediction: str, learned_variance: bool) -> None:
        """Raises ValueError for anything but the clean image: there is no noise to predict, and no variance."""
        if prediction != "x0" or learned_variance:
            raise ValueError(
                f"a cold process is learned with prediction 'x0' and without a learned variance, got {prediction!r} "
                f"and learned_variance {learned_variance}"
            )

    def ratio(self, t: Tensor) -> Tensor:
        """(B,) float64 t/T in [0, 1], as a network reads it."""
        return t.to(torch.float64) / self.T

    def scale_input(self, xt: Tensor, t: Tensor) -> Tensor:
        """xt itself: a degraded image is of the size of an image."""
        return xt

    def scale_output(self, prediction: str, output: Tensor, t: Tensor) -> Tensor:
        """The output itself."""
        return output

    def target(self, prediction: str, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """x0."""
        return x0

    def to_x0(self, prediction: str, output: Tensor, xt: Tensor, t: Tensor) -> Tensor:
        """The answer itself."""
        return output

    def overshoot(self) -> float:
        """A blur may overshoot a little."""
        return math.inf if self.sigma else 0.1

    def __repr__(self) -> str:
        return f"ColdProcess({self.degradation!r}, T={self.T}, sigma={self.sigma:g})"


PROCESSES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "gaussian": GaussianProcess.from_dict,
    "cold": ColdProcess.from_dict,
}
"""The one table from the word in a saved process to what reads it."""


def process_from_dict(saved: dict[str, Any]) -> ImageProcess:
    """The process that `to_dict` of either kind wrote."""
    word = saved.get("process")
    if word not in PROCESSES:
        raise ValueError(f"process must be {choices(PROCESSES)}, got {word!r}")
    return PROCESSES[word](saved)


def _known(prediction: str) -> str:
    if prediction not in PREDICTIONS:
        raise ValueError(f"prediction must be {choices(PREDICTIONS)}, got {prediction!r}")
    return prediction


def _of_log_snr(log_snr: schedules.Curve, t: Tensor) -> tuple[Tensor, Tensor]:
    """(a_t, b_t) of a curve, a^2 + b^2 = 1; (1, 0) at t = 0, where the image is clean. t: float64 in [0, 1]."""
    level, clean = log_snr(t), t == 0
    return torch.where(clean, 1.0, level.sigmoid().sqrt()), torch.where(clean, 0.0, (-level).sigmoid().sqrt())


def _doubles(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)
