"""How good samples are, and whether they are new: three figures that are read together, and what real images get.

A Frechet distance alone cannot tell a good model from a memoriser, and with some hundred samples its own noise is of
the order of the differences one looks for. So it is never printed without the distance to the training set and a
two-sample figure, and two samplers are compared on paired seeds only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from udm_text.common import choices, watched
from udm_text.randomness import RowRandom

from . import likelihood
from .data import ImageRows, ImageSplits
from .processes import GaussianProcess
from .sampling import Predictor
from .step_control import ADAPTIVE
from .variances import MEASURED

FEATURES = 32
_BLOCK = 512
"""Rows of a distance matrix that are held at a time."""


class FeatureClassifier(nn.Module):
    """A small classifier whose last hidden layer, 32 hyperbolic tangents, serves as features.

    Args:
        shape: (C, H, W) of the images. num_classes: at least 2.
    """

    def __init__(self, shape: Sequence[int], num_classes: int, hidden: int = 256):
        super().__init__()
        if num_classes < 2:
            raise ValueError(
                f"features come from a classifier, which needs rows with at least 2 classes, got {num_classes}"
            )
        self.body = nn.Sequential(
            nn.Flatten(),
            nn.Linear(math.prod(shape), hidden),
            nn.ReLU(),
            nn.Linear(hidden, FEATURES),
            nn.Tanh(),
        )
        self.head = nn.Linear(FEATURES, num_classes)

    def features(self, images: Tensor) -> Tensor:
        """(N, C, H, W) to (N, 32) in (-1, 1)."""
        return self.body(images)

    def forward(self, images: Tensor) -> Tensor:
        """(N, C, H, W) to logits (N, num_classes)."""
        return self.head(self.body(images))

    @torch.no_grad()
    def accuracy(self, images: Tensor, labels: Tensor) -> float:
        """Share of the images that are given their label."""
        return float((self(images).argmax(dim=1) == labels).double().mean())


def train_classifier(rows: ImageRows, steps: int = 1000, batch_size: int = 128, seed: int = 0) -> FeatureClassifier:
    """A `FeatureClassifier` of these rows; a second or two for 8 x 8 images, the same weights for a seed."""
    if rows.labels is None:
        raise ValueError("the Frechet distance needs labels to train its classifier on, and these images have none")
    draws = RowRandom(seed, torch.arange(steps)).uniform(batch_size)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = FeatureClassifier(rows.shape, rows.num_classes)
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-3, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for draw in watched(draws, "classifier"):
        index = (draw * len(rows)).long()
        loss = nn.functional.cross_entropy(network(rows.images[index]), rows.labels[index])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    return network.eval().requires_grad_(False)


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """|m_a - m_b|^2 + tr(A + B - 2 (A^1/2 B A^1/2)^1/2) of the means and covariances of two sets of features.

    a, b: (N, d) and (M, d), N, M > 1. Computed in float64. It is the squared 2-Wasserstein distance of the two normal
    laws (Dowson and Landau 1982); small sets bias it upwards. Source of its use: Heusel et al., arXiv 1706.08500.
    """
    for name, x in (("a", a), ("b", b)):
        if x.ndim != 2 or len(x) < 2 or x.shape[1] != a.shape[1]:
            raise ValueError(f"{name} must be features (N, {a.shape[-1]}) of at least 2 images, got {tuple(x.shape)}")
        if not torch.isfinite(x).all():
            raise ValueError(f"{name} holds features that are not finite")
    a, b = a.double(), b.double()
    first, second = (torch.atleast_2d(torch.cov(x.T)) for x in (a, b))
    values, vectors = torch.linalg.eigh(first)
    root = vectors @ (values.clamp(min=0).sqrt()[:, None] * vectors.T)
    cross = torch.linalg.eigvalsh(root @ second @ root).clamp(min=0).sqrt().sum()
    gap = (a.mean(dim=0) - b.mean(dim=0)).square().sum()
    return max(0.0, float(gap + first.trace() + second.trace() - 2.0 * cross))


def inception_score(logits: Tensor) -> float:
    """exp of the mean of KL(p(y | x) || p(y)) over images x, p(y | x) what a classifier says of each and p(y) its mean.

    From 1, where it says the same of all, to the number of classes, where it is sure of each and none is rarer. It
    knows nothing of the data: a memoriser, and one image of each class, score as well as can be.

    Args:
        logits: (N, K) of any classifier of the images, in float64 within. Source: Salimans et al., arXiv 1606.03498.
    """
    if logits.ndim != 2 or not len(logits) or not bool(torch.isfinite(logits).all()):
        raise ValueError(f"logits must be finite, (N, classes) of at least 1 image, got {tuple(logits.shape)}")
    each = logits.double().log_softmax(dim=1)
    whole = each.logsumexp(dim=0) - math.log(len(each))
    return math.exp(max(0.0, float((each.exp() * (each - whole)).sum(dim=1).mean())))


def nearest_distances(samples: Tensor, rows: Tensor, leave_out: bool = False) -> Tensor:
    """(N,) float64: the Euclidean distance of each sample to its nearest row; shapes (N, ...) and (M, ...).

    leave_out: sample i is row i, and its nearest other row is meant.
    """
    flat = rows.flatten(1).double()
    found = []
    for start in watched(range(0, len(samples), _BLOCK), "nearest images"):
        part = samples[start : start + _BLOCK].flatten(1).double()
        distances = torch.cdist(part, flat, compute_mode="donot_use_mm_for_euclid_dist")
        if leave_out:
            distances[torch.arange(len(part)), start + torch.arange(len(part))] = torch.inf
        found.append(distances.min(dim=1).values)
    return torch.cat(found)


def one_nn_accuracy(a: Tensor, b: Tensor) -> float:
    """How well the nearest other image tells the two sets apart, leaving each image out in turn.

    0.5: not at all, as for two sets of one law; near 1: told apart at sight; below 0.5: each clings to the other's
    images, as copies do. a, b: (N, ...) and (N, ...), of one size, or else 0.5 would not be the middle.

    Source: Lopez-Paz and Oquab, "Revisiting classifier two-sample tests" (arXiv 1610.06545).
    """
    if a.shape != b.shape or len(a) < 2:
        raise ValueError(
            "a and b must hold as many images each, at least 2, of one size, or 0.5 would not be the middle; got a of "
            f"{tuple(a.shape)} and b of {tuple(b.shape)}: draw as many samples as there are images to compare with"
        )
    correct = 0.0
    for own, other in ((a, b), (b, a)):
        inside, across = nearest_distances(own, own, leave_out=True), nearest_distances(own, other)
        correct += float(((inside < across).double() + 0.5 * (inside == across).double()).sum())
    return correct / (2 * len(a))


@dataclass
class Quality:
    """Samples beside held-out images.

    Args:
        frechet: Frechet distance of classifier features to the held-out images; None without a classifier.
        inception: `inception_score` by that classifier; None without.
        nearest: mean Euclidean distance to the nearest training image, pixels in [-1, 1]; 0 for a memoriser.
        one_nn: how well nearest neighbours tell samples from held-out images; 0.5 is best.
        label_accuracy: share of the samples that the classifier gives the class that was asked for; None without.
        number: samples.
    """

    frechet: float | None
    inception: float | None
    nearest: float
    one_nn: float
    label_accuracy: float | None
    number: int

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@torch.no_grad()
def quality(
    samples: Tensor, splits: ImageSplits, classifier: FeatureClassifier | None, labels: Tensor | None = None
) -> Quality:
    """The figures of `Quality` for samples (N, C, H, W); `labels` (N,): the classes that were asked for."""
    train, held = splits.train.images, splits.validation.images
    if samples.shape[1:] != train.shape[1:]:
        raise ValueError(f"samples must have the shape {tuple(train.shape[1:])}, got {tuple(samples.shape[1:])}")
    if len(samples) < 2:
        raise ValueError(f"samples must be at least 2 images, to tell them from held-out ones, got {len(samples)}")
    samples = samples.detach().to(torch.float32).cpu()
    many = min(len(samples), len(held))
    return Quality(
        frechet=None
        if classifier is None
        else frechet_distance(classifier.features(samples), classifier.features(held)),
        inception=None if classifier is None else inception_score(classifier(samples)),
        nearest=float(nearest_distances(samples, train).mean()),
        one_nn=one_nn_accuracy(samples[:many], held[:many]),
        label_accuracy=None if classifier is None or labels is None else classifier.accuracy(samples, labels),
        number=len(samples),
    )


def pick_like(rows: ImageRows, labels: Tensor | None, number: int, seed: int, replace: bool = False) -> Tensor:
    """(number,) places of random rows, with the class of each as `labels` has it; each once unless `replace`."""
    keys = RowRandom(seed, torch.arange(2)).uniform(max(len(rows), number))
    if labels is None or rows.labels is None:
        if replace:
            return (keys[0, :number] * len(rows)).long()
        return keys[0, : len(rows)].argsort()[:number]
    picked = torch.empty(number, dtype=torch.int64)
    for label in labels[:number].unique():
        indices = (labels[:number] == label).nonzero()[:, 0]
        pool = (rows.labels == label).nonzero()[:, 0]
        if replace:
            picked[indices] = pool[(keys[1, indices] * len(pool)).long()]
        elif len(pool) < len(indices):
            raise ValueError(
                f"{len(indices)} different rows of class {int(label)} are wanted, and there are {len(pool)}"
            )
        else:
            picked[indices] = pool[keys[0, pool].argsort()[: len(indices)]]
    return picked


def reference_rows(splits: ImageSplits, classifier: FeatureClassifier | None, seed: int = 0) -> dict[str, Quality]:
    """What the figures are for samples whose worth is known, as many as there are held-out images (or training ones).

    real: training images of the held-out classes, as samples; their `nearest` is that of held-out images to the
    training set. memoriser: the same, drawn with replacement, so `nearest` is 0. gaussian: a normal law with the
    training set's mean and covariance. noise: uniform pixels.
    """
    train, held = splits.train, splits.validation
    number = min(len(held), len(train) // 2)
    real = quality(train.images[pick_like(train, held.labels, number, seed)], splits, classifier)
    real.nearest = float(nearest_distances(held.images, train.images).mean())
    copies = train.images[pick_like(train, held.labels, number, seed + 1, replace=True)]
    flat = train.images.flatten(1).double()
    source = RowRandom(seed + 2, torch.arange(number))
    values, vectors = torch.linalg.eigh(torch.cov(flat.T))
    normal = torch.special.ndtri(source.uniform(flat.shape[1]))
    gaussian = flat.mean(dim=0) + (normal * values.clamp(min=0).sqrt()) @ vectors.T
    noise = 2.0 * source.uniform(flat.shape[1]) - 1.0
    shape = (number, *train.shape)
    return {
        "real": real,
        "memoriser": quality(copies, splits, classifier),
        "matched Gaussian": quality(gaussian.reshape(shape), splits, classifier),
        "uniform noise": quality(noise.reshape(shape), splits, classifier),
    }


def told(pipe: Any, rows: ImageRows) -> Tensor | None:
    """What a model is told of rows: their classes, their conditions, or nothing."""
    config = pipe.denoiser.config
    return rows.conditions if config.condition_dim else rows.labels if config.num_classes else None


# A model -------------------------------------------------------------------------------------------------------------

RESTORATIONS: dict[str, dict[str, Any]] = {
    "direct": {"num_steps": 1, "churn": 1.0},
    "naive": {"churn": 1.0},
    "improved": {"churn": 0.0},
}
"""Ways back from D_T: x0_hat at once; step by step, the residual forgotten, and kept (arXiv 2208.09392)."""


@dataclass
class Restoration:
    """Degraded held-out images, restored.

    Args:
        rmse: root mean square of the difference to the clean images, in units of the range [-1, 1].
        frechet: as in `Quality`; that of the degraded images themselves under "degraded".
    """

    rmse: float
    frechet: float | None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def restorations(
    pipe: Any,
    rows: ImageRows,
    classifier: FeatureClassifier | None,
    t: int | None = None,
    seed: int = 0,
    progress: bool = False,
) -> dict[str, Restoration]:
    """Each way of `RESTORATIONS` on all rows, and "degraded", the images before; `pipe`: an `ImagePipeline`.

    progress: show a bar of each way.
    """
    degraded = pipe.degrade(rows.images, t, seed=seed)
    labels = told(pipe, rows)
    found = {"degraded": degraded}
    for name, how in RESTORATIONS.items():
        found[name] = pipe.restore(degraded, t, label=labels, seed=seed, progress=progress, **how)
    return {
        name: Restoration(
            rmse=float((images - rows.images).double().square().mean().sqrt()),
            frechet=None
            if classifier is None
            else frechet_distance(classifier.features(images), classifier.features(rows.images)),
        )
        for name, images in found.items()
    }


def last_time(process: GaussianProcess, levels: int) -> int:
    """The first t whose noise b_t / a_t reaches half the distance of two levels: below it a pixel's level shows."""
    below = process.sigma(torch.arange(1, process.T + 1)) < 1.0 / (levels - 1)
    return min(int(below.sum()) + 1, process.T)


VARIANCES = ("fixed", "learned", "optimal")
"""Of a step, in the bound: the least one that is right for some data; what the network predicts; measured on images."""


def bits_per_dim(
    pipe: Any,
    rows: ImageRows,
    terms: int,
    seed: int = 0,
    *,
    variance: str | None = None,
    train: ImageRows | None = None,
) -> dict[str, Any]:
    """The bound on -log2 p a dimension, of two DDPM samplers, with its standard error over images.

    Args:
        variance: of the sampler's steps, one of `VARIANCES`; None: "learned" where the model has it, else "fixed".
            "optimal" is that of Analytic-DPM (arXiv 2201.06503), measured on at most 512 images of `train`.

    "bits_per_dim" is of the sampler that goes through every t down to `last_time` and from there to 0 at once, a level
    being drawn by its probability. "bits_per_dim_all_steps" is of the one that takes every step to t = 0. Where pixels
    have few levels the second pays for pixels that a network does not round exactly, and says little.
    """
    process = pipe.denoiser.gaussian
    labels = told(pipe, rows)
    variance = check_variance(pipe, variance)
    predict_x0: Predictor = pipe.predictor(labels)
    v: Any = None
    if variance == "learned":
        learned = pipe.learned(labels)
        predict_x0, v = learned.predict_x0, learned.variance
    elif variance == "optimal":
        if train is None:
            raise ValueError(
                "variance 'optimal' is measured on images: give train, those that the model was trained on"
            )
        v = pipe.measure_variance(train.images, told(pipe, train), seed)
    figures: dict[str, Any] = {"terms": min(terms, process.T), "last_time": last_time(process, rows.levels)}
    figures["variance"] = variance
    for name, end in (("bits_per_dim", figures["last_time"]), ("bits_per_dim_all_steps", 1)):
        times = torch.tensor([*range(process.T, end - 1, -1), 0])
        bound = likelihood.nelbo(
            process,
            predict_x0,
            rows.images,
            times,
            variance=v,
            levels=rows.levels,
            num_terms=terms if terms < len(times) - 1 else None,
            random=RowRandom(seed, torch.arange(len(rows))),
        )
        bits = bound.bits_per_dim(rows.images[0].numel())
        figures[name] = float(bits.mean())
        figures[f"{name}_stderr"] = float(bits.std() / math.sqrt(len(bits))) if len(bits) > 1 else math.nan
    return figures


def check_variance(pipe: Any, variance: str | None) -> str:
    """One of `VARIANCES` that the model has; None: the learned one where there is one."""
    learned = pipe.denoiser.config.learned_variance
    if variance is None:
        return "learned" if learned else "fixed"
    if variance not in VARIANCES:
        raise ValueError(f"variance must be {choices(VARIANCES)}, got {variance!r}")
    if variance == "learned" and not learned:
        raise ValueError("this model was trained without learned_variance: variance can be 'fixed' or 'optimal'")
    return variance


def generates(pipe: Any) -> bool:
    """Whether a model can draw images of its own: a cold one has to keep a law of x_T for it."""
    return bool(pipe.process.starts_from_noise or pipe.denoiser.config.prior_rank)


def has_bound(pipe: Any) -> bool:
    """Whether a model bounds the likelihood: a cold one does not, nor one that walks in latents, nor a student, who
    predicts no mean of x0."""
    return bool(pipe.process.starts_from_noise and not pipe.latent and pipe.denoiser.config.few_steps is None)


def evaluate_model(
    pipe: Any,
    splits: ImageSplits,
    *,
    sampler: str | None = None,
    num_steps: int | None = None,
    guidance_scale: float = 1.0,
    number: int | None = None,
    terms: int = 64,
    variance: str | None = None,
    seed: int = 0,
    progress: bool = False,
) -> dict[str, Any]:
    """The figures of a model as they go into a report; `pipe`: an `ImagePipeline`. progress: show bars.

    Cold: "restorations". Of what generates, "samples" (their classes those of the held-out rows, where the model knows
    classes; sampler None: that of `generate`) and "reference"; Gaussian, with `terms`: the "bound".
    """
    held = splits.validation
    if splits.train.shape != pipe.shape:
        raise ValueError(f"the model makes images of shape {pipe.shape}, and the data has {splits.train.shape}")
    if len(held) < 2 or len(splits.train) < 4:
        raise ValueError(
            f"figures need at least 2 held-out images and 4 to train on, got {len(held)} and {len(splits.train)}: give "
            "--data with more"
        )
    if number is not None and number < 2:
        raise ValueError(f"number, of samples, must be at least 2, got {number}")
    if terms and terms < 2:
        raise ValueError(f"terms must be 0, for no bound, or at least 2, got {terms}")
    if variance is not None:
        if not pipe.process.starts_from_noise:
            raise ValueError("variance is that of the steps of a Gaussian process, and this model's process is cold")
        if not has_bound(pipe):
            raise ValueError(
                "variance is that of the steps of a bound, and this model of latents or few steps has none"
            )
        check_variance(pipe, variance)
    classifier = train_classifier(splits.train) if splits.train.num_classes > 1 else None
    figures: dict[str, Any] = {}
    if not pipe.process.starts_from_noise:
        found = restorations(pipe, held, classifier, seed=seed, progress=progress)
        figures |= {"restorations": {name: one.to_dict() for name, one in found.items()}}
        figures |= {"rows": len(held), "seed": seed}
        if not generates(pipe):
            return figures
    if num_steps is None and sampler != ADAPTIVE:
        num_steps = pipe.usual_steps
    number = len(held) if number is None else number
    labels = told(pipe, held)
    labels = None if labels is None else labels[torch.arange(number) % len(held)]
    reference = reference_rows(splits, classifier, seed)  # what it refuses is refused before samples are made
    images = pipe.generate(
        number,
        labels,
        sampler=sampler,
        num_steps=num_steps,
        guidance_scale=guidance_scale,
        seed=seed,
        progress=progress,
    )
    name = pipe.usual_sampler if sampler is None else sampler
    how = {"sampler": name, "num_steps": num_steps, "guidance_scale": guidance_scale, "seed": seed}
    figures |= {
        "samples": {
            **how,
            **quality(images, splits, classifier, labels if pipe.denoiser.config.num_classes else None).to_dict(),
        },
        "reference": {name: one.to_dict() for name, one in reference.items()},
    }
    if terms and has_bound(pipe):
        figures["bound"] = bits_per_dim(pipe, held, terms, seed, variance=variance, train=splits.train)
    return figures


def describe_work(
    pipe: Any,
    splits: ImageSplits,
    *,
    num_steps: int | None = None,
    number: int | None = None,
    terms: int = 64,
    variance: str | None = None,
) -> str:
    """What `evaluate_model` is about to do with these arguments, in a line: it takes minutes where there is much."""
    held, train = len(splits.validation), len(splits.train)
    cold, words = not pipe.process.starts_from_noise, ""
    if cold:
        words = f"{held} held-out images are degraded and restored in {len(RESTORATIONS)} ways"
        if not generates(pipe):
            return words
        words += "; "
    steps = min(num_steps or pipe.usual_steps, pipe.process.T)
    words += f"{number or held} samples of {steps} steps are drawn, and compared with {held} "
    words += f"held-out images and {train} to train on"
    if not has_bound(pipe):
        return words
    words += f"; the bound takes {2 * min(terms, pipe.process.T)} calls for each held-out image" * (terms > 0)
    if terms and variance == "optimal":
        words += f", and its variance {pipe.process.T} for each of at most {MEASURED} training images"
    return words


def describe_figures(figures: dict[str, Any]) -> str:
    """`evaluate_model`'s figures as a table in plain text, as wide as the terminal (80 columns where there is none)."""
    from rich.console import Console
    from rich.table import Table

    def cell(value: float | None, digits: int = 3) -> str:
        return "-" if value is None else format(value, f".{digits}f")

    def printed(heads: tuple[str, ...], rows: dict[str, tuple[str, ...]]) -> str:
        table = Table("")
        for head in heads:
            table.add_column(head, justify="right")
        for name, row in rows.items():
            table.add_row(name, *row)
        console = Console(color_system=None)
        with console.capture() as capture:
            console.print(table)
        return capture.get()

    parts: list[str] = []
    rows: dict[str, tuple[str, ...]]
    if "restorations" in figures:
        rows = {n: (cell(r["rmse"], 4), cell(r["frechet"])) for n, r in figures["restorations"].items()}
        parts.append(printed(("RMSE", "Frechet"), rows) + f"({figures['rows']} held-out images, from D_T)")
    if "samples" in figures:
        own, names = figures["samples"], ("frechet", "inception", "nearest", "one_nn", "label_accuracy")
        steps = "its own" if own["sampler"] == ADAPTIVE else own["num_steps"] or "all"
        every = {f"{own['sampler']}, {steps} steps": own, **figures["reference"]}
        rows = {name: tuple(cell(row[key]) for key in names) for name, row in every.items()}
        parts.append(
            printed(("Frechet", "IS", "nearest", "1-NN", "label"), rows)
            + "(nearest: distance to the training set; 1-NN: 0.5 where samples cannot be told from held-out images; "
            "IS: inception score)"
        )
    if "bound" in figures:
        parts.append(describe_bound(figures["bound"]))
    return "\n".join(parts)


def describe_bound(bound: dict[str, Any]) -> str:
    """`bits_per_dim`'s figures in a line."""
    first, second = (
        f"{bound[name]:.3f} +- {bound[f'{name}_stderr']:.3f}" for name in ("bits_per_dim", "bits_per_dim_all_steps")
    )
    return (
        f"held-out images: at most {first} bits/dim, the last step from t = {bound['last_time']} (every step taken: "
        f"{second}; {bound['terms']} terms an image; {bound['variance']} variance)"
    )
