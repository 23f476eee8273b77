"""What an image model is trained on: corrupted images, weighted errors of what the network predicts, exact bounds.

All weights are stated for the squared error of x0, and carried over to what the network predicts by the process itself:
the error of x0 is gain_t times that of the model's output, gain_t = d x0_hat / d output. With snr_t = a_t^2 / b_t^2:

    weighting   on |x0 - x0_hat|^2            on epsilon            on v (but that of rf)
    simple      1 / gain_t^2                  1                     1 (on the score b_t^2, that of epsilon)
    snr         snr_t                         1                     snr_t / (snr_t + 1)
    min_snr     min(snr_t, gamma)             min(snr_t, gamma)/snr_t   min(snr_t, gamma) / (snr_t + 1)
    vlb         (snr_{t-1} - snr_t) T / 2     nats, an unbiased estimate of the bound; t = 1 by a discretised normal law

Sources: Ho et al. (arXiv 2006.11239), Salimans and Ho (2202.00512), Hang et al. (2303.09556), Kingma et al.
(2107.00630), Nichol and Dhariwal (2102.09672).
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional
from transformers import TrainerCallback

from udm_text.common import choices, eval_mode, watched
from udm_text.devices import Sent
from udm_text.randomness import RowRandom, step_random

from .data import collate_images
from .degradations import per_row
from .distillation import Student, Target
from .likelihood import discretised_log_prob
from .modeling import ImageConfig
from .processes import GaussianProcess, ImageProcess

ERRORS = ("l2", "l1", "huber")
WEIGHTINGS = ("simple", "snr", "min_snr", "vlb")
HUBER = 0.1
"""Where the Huber loss turns from a parabola into a line, unless it is said: a tenth of a deviation of the noise.

torch's own default, and that of most code of diffusion models, is 1, at which most errors of a network lie in the
parabola: half of l2.
"""
_STRATA = 0x494D414745540000
"""Distinguishes the seed of the stratification of t from that of the noise."""


# Gaussian steps ------------------------------------------------------------------------------------------------------


def snr(process: GaussianProcess, t: Tensor) -> Tensor:
    """(B,) float64 a_t^2 / b_t^2; infinite at t = 0."""
    a, b = process.at(t)
    return (a / b).square()


def step_variances(process: GaussianProcess, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    """Least and largest variance of a step from t to s < t that is right for some data, (B,) float64.

    Least: that of q(xs | xt, x0), b_s^2 (1 - snr_t / snr_s), right where x0 is known. Largest: that of q(xt | xs),
    right for vp data of unit variance. At s = 0 the least would be 0; there it is that of the step from
    t = 2 to 1.
    """
    before = s == 0
    second = torch.full_like(t, min(2, process.T))
    a_upper, b_upper = process.at(torch.where(before, second.maximum(t), t))
    a_lower, b_lower = process.at(torch.where(before, torch.ones_like(s), s))
    (a_t, b_t), (a_s, b_s) = process.at(t), process.at(s)
    least = b_lower.square() - (a_upper / a_lower * b_lower.square() / b_upper).square()
    largest = b_t.square() - (a_t / a_s * b_s).square()
    return (largest if process.T == 1 else least), largest


def kl_terms(
    process: GaussianProcess,
    x0: Tensor,
    x0_hat: Tensor,
    t: Tensor,
    share: Tensor | None = None,
    levels: int = 256,
) -> Tensor:
    """L_t of the bound, (B,) in nats, for steps from t to t - 1; -log p(x0) <= sum over t of E[L_t] + KL(x_T || prior).

    Args:
        x0, x0_hat: (B, C, H, W); x0_hat is what was predicted from xt. t: (B,) int64 in 1..T.
        share: (B, C, H, W) of the logarithm of the variance between least (0) and largest (1); None: the least, and the
            largest at t = 1.
        levels: values of a pixel. At t = 1 the term is -log of the probability that a normal law around x0_hat gives to
            the interval of width 2 / (levels - 1) around x0, whose ends reach to infinity at -1 and 1.
    """
    wide = torch.promote_types(x0.dtype, torch.float32)

    def column(values: Tensor) -> Tensor:
        return per_row(values, x0, wide)

    s = t - 1
    least, largest = step_variances(process, t, s)
    low, high = column(least.log()), column(largest.log())
    log_variance = torch.where(column(t) == 1, high, low) if share is None else low + share.to(wide) * (high - low)
    # mean of q(xs | xt, x0): its factor of x0 is a_s (1 - snr_t / snr_s)
    factor = process.at(s)[0] * (1 - snr(process, t) / snr(process, s))
    gap = column(factor.to(t.device)) * (x0 - x0_hat).to(wide)
    # e^low + gap^2 over the variance; the exponents are joined first, for at small t both are tiny
    kl = 0.5 * ((low - log_variance).exp() - 1 + log_variance - low + gap.square() * (-log_variance).exp())
    nll = -discretised_log_prob(x0.to(wide), x0_hat.to(wide), 0.5 * log_variance.expand_as(x0), levels)
    return torch.where(column(t) == 1, nll, kl).flatten(1).sum(dim=1)


def gain(process: GaussianProcess, prediction: str, t: Tensor) -> Tensor:
    """(B,) float64 d x0_hat / d output at t: -b/a of epsilon, 1 of x0, b^2/a of the score, -b/sqrt(a^2 + b^2) of v (rf:
    -b/(a + b))."""
    one = torch.ones(len(t), 1, dtype=torch.float64, device=t.device)
    return process.to_x0(prediction, one, torch.zeros_like(one), t)[:, 0]


def loss_weights(process: ImageProcess, prediction: str, weighting: str, t: Tensor, gamma: float = 5.0) -> Tensor:
    """(B,) float64: the weight of the error of what the network predicts, for t in 1..T (see the table above).

    `vlb` here is T (snr_{t-1} - snr_t) / 2 times the squared gain, its form for t > 1 at the least variance; at real t,
    in continuous time, -(d snr_t / dt) / 2 times it.
    """
    if weighting not in WEIGHTINGS:
        raise ValueError(f"weighting must be {choices(WEIGHTINGS)}, got {weighting!r}")
    if weighting == "simple":
        if prediction == "score":
            return cast(GaussianProcess, process).at(t)[1].square()
        return torch.ones(len(t), dtype=torch.float64, device=t.device)
    if not process.starts_from_noise:
        raise ValueError(f"weighting {weighting!r} needs a Gaussian process; a cold one takes 'simple'")
    hot = cast(GaussianProcess, process)
    now = snr(hot, t)
    if weighting == "snr":
        on_x0 = now
    elif weighting == "min_snr":
        on_x0 = now.clamp(max=gamma)
    elif t.is_floating_point():
        on_x0 = -0.5 * now * hot.log_snr_slope(t)
    else:
        on_x0 = 0.5 * hot.T * (snr(hot, t - 1) - now)
    return on_x0 * gain(hot, prediction, t).square()


# Times ---------------------------------------------------------------------------------------------------------------


class Importance:
    """p(t) in proportion to the root of E[L_t^2] of the bound's terms, measured on the way (2102.09672, section 3.3).

    What the rows of a global step find is taken over when the next step begins, so the order of its parts does not
    matter. Uniform until every t has been seen `warm` times.

    Args:
        num_times: T. decay: of the running average, for each observation. floor: share of the uniform law mixed in.
    """

    def __init__(self, num_times: int, warm: int = 10, decay: float = 0.9, floor: float = 0.001):
        self.T, self.warm, self.decay, self.floor = num_times, warm, decay, floor
        self.square = torch.zeros(num_times, dtype=torch.float64)
        self.seen = torch.zeros(num_times, dtype=torch.float64)
        self.pending = torch.zeros(2, num_times, dtype=torch.float64)
        self.step = -1

    def probabilities(self, step: int) -> Tensor:
        """(T,) float64: p(t) for t = 1..T in this global step."""
        if step != self.step:
            total, count = self.pending
            keep = self.decay**count
            keep = torch.where(self.seen == 0, torch.where(count > 0, 0.0, 1.0), keep)
            self.square = keep * self.square + (1 - keep) * total / count.clamp(min=1)
            self.seen += count
            self.pending = torch.zeros_like(self.pending)
            self.step = step
        uniform = torch.full((self.T,), 1.0 / self.T, dtype=torch.float64)
        if float(self.seen.min()) < self.warm or not bool((self.square > 0).any()):
            return uniform
        root = self.square.sqrt()
        return (1 - self.floor) * root / root.sum() + self.floor * uniform

    def observe(self, t: Tensor, terms: Tensor) -> None:
        """Remember the bound's terms (B,) found at t (B,), of all processes."""
        from accelerate.utils import gather

        pair: Any = gather(torch.stack((t.double(), terms.detach().double())).T.contiguous())
        index, squares = pair[:, 0].long().cpu() - 1, pair[:, 1].square().cpu()
        self.pending[0].index_add_(0, index, squares)
        self.pending[1].index_add_(0, index, torch.ones_like(squares))

    def state(self) -> dict[str, Tensor]:
        step = torch.tensor(self.step)
        return {"square": self.square, "seen": self.seen, "pending": self.pending, "step": step}

    def load(self, state: dict[str, Tensor]) -> None:
        if len(state["square"]) != self.T:
            raise ValueError(
                f"the saved importance of times is of T = {len(state['square'])}, this process has {self.T}"
            )
        self.square, self.seen, self.pending = (state[name].double() for name in ("square", "seen", "pending"))
        self.step = int(state["step"])


class ImportanceCallback(TrainerCallback):
    """Keeps the importance of times beside every checkpoint, so that a resumed run draws what it would have drawn."""

    name = "importance.safetensors"

    def __init__(self, trainer: Any, importance: Importance):
        self.trainer, self.importance = trainer, importance
        trainer.in_checkpoints.append(self.save)

    def on_train_begin(self, args, state, control, **kwargs):
        if self.trainer.resumed_from is None:
            return
        path = Path(self.trainer.resumed_from) / self.name
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing: that run drew its times uniformly; resume without importance")
        self.importance.load(load_file(path))

    def save(self, folder: Path) -> None:
        """Writes importance.safetensors."""
        save_file(self.importance.state(), folder / self.name)


def stratified(row_index: Tensor, total: int, seed: int, step: int) -> Tensor:
    """(B,) float64 uniform on (0, 1), one row of the global batch in each of `total` equal parts."""
    source = RowRandom(seed ^ _STRATA, torch.full((1,), step, dtype=torch.int64, device=row_index.device))
    stratum = source.uniform(total)[0].argsort()[row_index % total]
    return (stratum + source.uniform(total)[0][row_index % total]) / total


def draw_times(
    num_times: int, row_index: Tensor, total: int, seed: int, step: int, distribution: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """t of each row, stratified over a global batch of `total` rows, and 1 / (T p(t)).

    Args:
        row_index: (B,) int64, the rows' places in the global batch. distribution: (T,) float64, p(t) for
            t = 1..T; None: uniform.
    """
    u = stratified(row_index, total, seed, step)
    if distribution is None:
        return (u * num_times).long().clamp(max=num_times - 1) + 1, torch.ones_like(u)
    distribution = distribution.to(row_index.device)
    t = torch.searchsorted(distribution.cumsum(0), u, right=True).clamp(max=num_times - 1)
    return t + 1, 1.0 / (num_times * distribution[t])


# The objective -------------------------------------------------------------------------------------------------------


def draw_regions(random: RowRandom, height: int, width: int) -> Tensor:
    """(B, 1, height, width) bool: a region for each row, in thirds a rectangle, all but one, and single pixels.

    A rectangle has two corners drawn evenly over the image, so that it may be a stripe or a half; of single pixels each
    is in the region with a probability that is even on (0, 1). No region is empty.
    """
    kind, share, *ends = random.uniform(6).unbind(1)
    lines = []
    for n, (first, second) in ((height, ends[:2]), (width, ends[2:])):
        low, high = ((end * n).long()[:, None] for end in (torch.minimum(first, second), torch.maximum(first, second)))
        place = torch.arange(n, device=kind.device)
        lines.append((place >= low) & (place <= high))
    inside = lines[0][:, :, None] & lines[1][:, None, :]
    alone = (random.uniform(height * width) < share[:, None]).view_as(inside)
    which = (kind * 3).long()[:, None, None]
    region = torch.where(which == 0, inside, torch.where(which == 1, ~inside, alone))
    return torch.where(region.any(dim=(1, 2), keepdim=True), region, inside)[:, None]


class ImageObjective:
    """An `Objective` (see udm_text/training/trainer.py) for `ImageDenoiser`: rows of `ImageRows`.

    A row's term is the weighted error summed over its pixels, the items are pixels' values, so the loss is an average
    per dimension; with `weighting="vlb"` it is the bound in nats per dimension, less the constant KL(x_T || prior).

    Args:
        config: the model's.
        error: "l2", "l1" or "huber". huber_delta: > 0, where "huber", e^2 / 2 for small errors e, turns into the line
            delta (|e| - delta / 2) (Huber 1964).
        weighting: "simple", "snr", "min_snr" or "vlb".
        gamma: of min_snr.
        label_drop: share of the rows whose class or condition is withheld; what classifier-free guidance needs.
        importance: draw t by importance instead of uniformly.
        vlb_share: with a learned variance, the share of the bound, which gives x0_hat no gradient.
        vlb_ramp: steps over which that share rises from 0, in a straight line; 0: it is there from the first.
        regions: share of the rows that are corrupted in a random region M alone, of a model with regions: t = 0
            outside, x_t = M (a_t x0 + b_t noise) + (1 - M) x0; the network is told M, and the error is that within. 0:
            none.
        flip: mirror half of the rows left to right.
        eval_draws, eval_batch_size: corruptions of each row in an evaluation; rows of a forward pass there.
        target: what x0 the network is to predict in place of the row's, see distillation.py; None: the row's.
    """

    collate = staticmethod(collate_images)

    def __init__(
        self,
        config: ImageConfig,
        *,
        error: str = "l2",
        huber_delta: float = HUBER,
        weighting: str = "simple",
        gamma: float = 5.0,
        label_drop: float = 0.1,
        importance: bool = False,
        vlb_share: float = 0.001,
        vlb_ramp: int = 0,
        regions: float = 0.0,
        flip: bool = False,
        eval_draws: int = 2,
        eval_batch_size: int = 256,
        target: Target | None = None,
    ):
        process = config.build_process()
        if target is not None and (config.regions or config.condition_dim):
            raise ValueError(
                "with a target images are whole, of classes or none: take a model without regions, conditions"
            )
        if target is not None and (weighting == "vlb" or importance or config.learned_variance):
            raise ValueError(
                "a bound is one of images: with a target leave out weighting 'vlb', importance and learned_variance"
            )
        if error not in ERRORS:
            raise ValueError(f"error must be {choices(ERRORS)}, got {error!r}")
        loss_weights(process, config.prediction, weighting, torch.tensor([min(2, process.T)]), gamma)
        if config.prediction == "score" and error != "l2":
            raise ValueError(
                f"prediction 'score' is a mean and goes with error 'l2', got {error!r}: take prediction 'epsilon'"
            )
        if weighting == "vlb" and error != "l2":
            raise ValueError(f"weighting 'vlb' is a bound and goes with error 'l2', got {error!r}")
        if not (math.isfinite(huber_delta) and huber_delta > 0):
            raise ValueError(f"huber_delta must be a positive number, got {huber_delta}")
        if huber_delta != HUBER and error != "huber":
            raise ValueError(f"huber_delta belongs to error 'huber', got {huber_delta} with error {error!r}")
        if not gamma > 0:
            raise ValueError(f"gamma must be positive, got {gamma}")
        if not 0.0 <= label_drop <= 1.0:
            raise ValueError(f"label_drop must lie in [0, 1], got {label_drop}")
        if config.autoencoder is not None and (importance or weighting == "vlb"):
            raise ValueError(
                "importance and weighting 'vlb' go by a bound on the levels of pixels, which latents do not have"
            )
        self.real = process.starts_from_noise and cast(GaussianProcess, process).continuous
        if importance and self.real:
            raise ValueError("importance is measured on steps 1..T: it does not go with continuous time")
        if importance and not process.starts_from_noise:
            raise ValueError("importance draws t by the terms of the bound, which a cold process does not have")
        if vlb_ramp < 0 or (vlb_ramp and not config.learned_variance):
            raise ValueError(f"vlb_ramp must be 0, or with a learned variance a number of steps, got {vlb_ramp}")
        if not 0.0 <= regions <= 1.0 or (regions > 0) != config.regions:
            raise ValueError(
                f"regions must lie in (0, 1] for a model with regions and be 0 for others, got {regions} for one with "
                f"regions={config.regions}"
            )
        if regions and (config.learned_variance or importance or weighting == "vlb"):
            raise ValueError("regions have no terms of the bound: leave learned_variance, importance and 'vlb' out")
        if eval_draws < 1:
            raise ValueError(f"eval_draws must be at least 1, got {eval_draws}")
        self.regions = regions
        self.config, self.process = config, process
        self.error, self.weighting, self.gamma = error, weighting, gamma
        self.huber_delta = huber_delta
        self.label_drop, self.flip = label_drop, flip
        self.vlb_share, self.vlb_ramp = vlb_share, vlb_ramp
        self.importance = Importance(process.T) if importance else None
        self.eval_draws, self.eval_batch_size = eval_draws, eval_batch_size
        self.target = target
        self._times = Sent(torch.arange(1, process.T + 1) if target is None or target.times is None else target.times)

    def begin(self) -> None:
        """Nothing was measured on the weights before."""

    def lengths(self, dataset: Any) -> None:
        """Rows are all alike."""

    def num_items(self, inputs: dict[str, Tensor]) -> int:
        """Pixels' values of the batch."""
        return inputs["images"].numel()

    def row_terms(
        self, model: Any, inputs: dict[str, Tensor], *, row_index: Tensor, total: int, step: int, seed: int
    ) -> Tensor:
        """(B,) weighted errors: images corrupted at t, predicted by the network, compared."""
        row_index = row_index.to(inputs["images"].device, non_blocking=True)
        distribution = None if self.importance is None else self.importance.probabilities(step)
        t, weight = self.draw_times(row_index, total, seed, step, distribution)
        random = step_random(seed, step, row_index)
        x0, labels = inputs["images"], inputs.get("conditions" if self.config.condition_dim else "labels")
        choice = random.uniform(2)
        if self.flip:  # no rows with a noise of their own, whose pairs it would part
            x0 = torch.where(per_row(choice[:, 0] < 0.5, x0, torch.bool), x0.flip(-1), x0)
        if self.config.conditional and labels is not None:
            dropped = per_row(choice[:, 1] < self.label_drop, labels, torch.bool)
            labels = torch.where(dropped, self.config.withheld(len(x0), x0.device), labels)
        region = None
        if self.regions:
            region = draw_regions(random, *x0.shape[2:])
            region = region | per_row(random.uniform(1)[:, 0] >= self.regions, x0, torch.bool)
        share = self.vlb_share * (min(1.0, step / self.vlb_ramp) if self.vlb_ramp else 1.0)
        noise = inputs.get("noise")
        x0 = self.state_of(model, x0)
        terms, bound = self.terms(model, x0, t, labels, random, self.importance is not None, share, noise, region)
        if self.importance is not None and torch.is_grad_enabled():
            assert bound is not None
            self.importance.observe(t, bound)
        return terms * weight.to(terms.dtype)

    def draw_times(
        self, row_index: Tensor, total: int, seed: int, step: int, distribution: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """As the function `draw_times`, of the times that are trained, and the weight of each row.

        (B,) int64; in continuous time, where there is no target that names times, float64, uniform on (0, 1).
        """
        if self.real and (self.target is None or self.target.times is None):
            t = stratified(row_index, total, seed, step)
            return t, torch.ones_like(t)
        (times,) = self._times(row_index.device)
        place, weight = draw_times(len(times), row_index, total, seed, step, distribution)
        return times[place - 1], weight

    def state_of(self, model: Any, images: Tensor) -> Tensor:
        """What is corrupted of images: they themselves, or their latents by the autoencoder of the model."""
        return images if self.config.autoencoder is None else getattr(model, "module", model).to_state(images)

    def terms(
        self,
        model: Any,
        x0: Tensor,
        t: Tensor,
        labels: Tensor | None,
        random: RowRandom,
        always_bound: bool = False,
        vlb_share: float | None = None,
        noise: Tensor | None = None,
        region: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """(B,) weighted errors at t, and the bound's terms L_t (B,) in nats where they are needed.

        vlb_share: in place of that of the objective. noise: of the rows, which came with them; None: drawn. region:
        (B, 1, H, W) bool, where images are corrupted; None: everywhere.
        """
        config, process = self.config, self.process
        if not config.conditional:
            labels = None
        elif labels is None:
            labels = config.withheld(len(x0), x0.device)
        elif config.num_classes:
            labels = torch.where(labels < 0, config.num_classes, labels)
        noise = process.sample_noise(x0, random=random) if noise is None else noise
        clock = t if region is None else torch.where(region, per_row(t, x0, t.dtype), 0)
        xt = process.corrupt(x0, clock, noise)
        if self.target is not None:
            x0 = self.target(self._student(model), xt, t, labels, x0, noise)
            noise = process.invert_noise(x0, xt, t)
        output = model(xt, clock, labels)
        output = output.to(torch.promote_types(output.dtype, torch.float32))
        model_output, share = (output, None) if not config.learned_variance else output.chunk(2, dim=1)
        share = None if share is None else (share + 1.0) / 2.0
        bound = None
        if (self.weighting == "vlb" and not t.is_floating_point()) or share is not None or always_bound:
            x0_hat = process.to_x0(config.prediction, model_output.double(), xt.double(), t).to(model_output.dtype)
            hybrid = self.weighting != "vlb"
            bound = kl_terms(
                cast(GaussianProcess, process), x0, x0_hat.detach() if hybrid else x0_hat, t, share, config.levels
            )
            if not hybrid:
                return process.T * bound, bound
        weights = loss_weights(process, config.prediction, self.weighting, t, self.gamma)
        target = process.target(config.prediction, x0, noise, clock)
        if region is not None:
            model_output, target = (torch.where(region, values, 0.0) for values in (model_output, target))
        terms = weights.to(model_output.dtype) * self.errors(model_output, target)
        if share is not None:
            assert bound is not None
            terms = terms + (self.vlb_share if vlb_share is None else vlb_share) * process.T * bound
        return terms, bound

    def _student(self, model: Any) -> Student:
        """x0_hat of the network that is trained."""

        def predict(xt: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
            output = model(xt, t, labels)
            return self.process.to_x0(self.config.prediction, output.double(), xt.double(), t).to(xt.dtype)

        return predict

    def errors(self, model_output: Tensor, target: Tensor) -> Tensor:
        """(B,) errors summed over the pixels' values."""
        if self.error == "l2":
            each = (model_output - target).square()
        elif self.error == "l1":
            each = (model_output - target).abs()
        else:
            each = functional.huber_loss(model_output, target, reduction="none", delta=self.huber_delta)
        return each.flatten(1).sum(dim=1)

    @torch.no_grad()
    def evaluate(self, trainer: Any, dataset: Any) -> dict[str, float]:
        """The loss on held-out rows with all labels, t spread evenly, one fixed seed; its standard error over rows."""
        model, count = trainer.model, len(dataset)
        mine = trainer.own_rows(count)
        totals = torch.zeros(len(mine), dtype=torch.float64)
        with eval_mode(model):
            for start in watched(range(0, len(mine), self.eval_batch_size), "held-out images"):
                part = mine[start : start + self.eval_batch_size]
                batch = collate_images(dataset.__getitems__(part))
                x0 = self.state_of(model, batch["images"].to(trainer.args.device))
                told = batch.get("conditions" if self.config.condition_dim else "labels")
                labels, noise = (None if part is None else part.to(x0.device) for part in (told, batch.get("noise")))
                index = torch.tensor(part, device=x0.device)
                for draw in range(self.eval_draws):
                    t, _ = self.draw_times(index, count, 0, draw)
                    terms, _ = self.terms(model, x0, t, labels, step_random(0, draw, index), noise=noise)
                    totals[start : start + len(part)] += terms.double().cpu() / (self.eval_draws * x0[0].numel())
        rows = trainer.gather_rows(totals, mine, count)
        error = float(rows.std() / math.sqrt(count)) if count > 1 else math.nan
        return {"loss": float(rows.mean()), "loss_stderr": error}
