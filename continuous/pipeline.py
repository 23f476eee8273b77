"""`ImagePipeline`: images from nothing, restored, or edited, by a trained model and any sampler.

Nothing about the process can be said here: it comes with the checkpoint. A result depends on the seed and its number
only, not on its neighbours nor on `batch_size`.
"""

from __future__ import annotations

import secrets
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from transformers.utils import ModelOutput

from udm_text.common import (
    check_new_folder,
    choices,
    eval_mode,
    load_int8,
    refuse_missing,
    staged_folder,
    written_whole,
)
from udm_text.core import denoise
from udm_text.randomness import RowRandom

from . import control, sampling, variances
from .data import check_images, to_pil
from .grids import as_html, strip, to_image
from .labels import Label, read_labels
from .modeling import ImageDenoiser, NonFiniteOutputError
from .processes import ColdProcess, ImageProcess
from .sampling import Predictor
from .step_control import ADAPTIVE, RTOL, adaptive
from .variances import LearnedVariance
from .watching import OnStepEnd, Watcher, check_flag, check_number, check_whole

STEPS = 20
"""Steps of an image where nothing is said; a student has a number of its own."""
WITH_LEARNED_VARIANCE, WITH_OPTIMAL_VARIANCE = "ddpm_learned", "ddpm_optimal"
SAMPLERS = (*sampling.SAMPLERS, WITH_LEARNED_VARIANCE, WITH_OPTIMAL_VARIANCE)
"""Names of samplers: those of `sampling`, and DDPM with the variance that the network predicts or that was measured."""
HIGHER_ORDER = ("dpm_solver", "dpm_solver_3", "heun")
"""Those of an order above 1."""
COLD_SAMPLERS = {"improved": 0.0, "naive": 1.0}
"""Names of samplers of cold models, and their churn."""
FROM_LAW = "images = pipe.generate(16, seed=0)  # from the law of x_T that was measured in training\n"
"""What the card of a model that keeps such a law shows beside `restore`."""


@dataclass
class ImageOutput(ModelOutput):
    """
    What `ImagePipeline` returns where more than the images is asked for.

    Args:
        images: (N, C, H, W) float32 in [-1, 1] on the CPU; from a call, as `output_type` says.
        trajectory (`tuple[torch.Tensor]`, *optional*): with `output_trajectory`, every xt from the start to the end,
            the last one held inside [-1, 1].
        predictions (`tuple[torch.Tensor]`, *optional*): with `output_trajectory`, the x0_hat of every step, as its
            sampler took it (drawn or extrapolated, where it does so).
    """

    images: Any = None
    trajectory: tuple[Tensor, ...] | None = None
    predictions: tuple[Tensor, ...] | None = None

    def _repr_html_(self) -> str | None:
        """Images of Pillow side by side, or with a trajectory how the images came to be, for a notebook."""
        if self.trajectory is not None:
            return as_html([to_image(strip(self.trajectory))])
        return as_html(self.images) if isinstance(self.images, list) else None


class ImagePipeline:
    """A model and what is done with it.

    ```python
    >>> pipe = ImagePipeline.from_pretrained("runs/digits")
    >>> images = pipe.generate(16, label=3, seed=0)              # (16, 1, 8, 8) in [-1, 1]
    >>> images = pipe.generate(16, label=3, sampler="ddim", num_steps=50, guidance_scale=2.0)
    >>> ImagePipeline.from_pretrained("runs/digits-blur").restore(blurred, t=20)
    >>> pipe(batch_size=4, num_inference_steps=20).images          # as in diffusers: Pillow images
    ```
    """

    _progress_bar: dict[str, Any] = {"disable": False}

    def __init__(self, denoiser: ImageDenoiser):
        if not isinstance(denoiser, ImageDenoiser):
            raise ValueError(f"an ImagePipeline needs an ImageDenoiser, got {type(denoiser).__name__}")
        self.denoiser = denoiser.eval()

    # the model -------------------------------------------------------------------------------------------------------

    @classmethod
    def from_pretrained(cls, name: str | Path, device: str | None = None, **kwargs: Any) -> ImagePipeline:
        """A model directory, or a name on the Hub. ValueError: a device that is not there, before anything is read."""
        check_device(device)
        refuse_missing(str(name))
        denoiser = ImageDenoiser.from_pretrained(str(name), **kwargs)
        return cls(denoiser if device is None else denoiser.to(device))

    def save_pretrained(self, directory: str | Path) -> None:
        """Writes config.json, model.safetensors, and a card where there is none."""
        self.denoiser.save_pretrained(directory)
        card = Path(directory) / "README.md"
        if not card.exists():
            with written_whole(card) as part:
                part.write_text(self.card(), encoding="utf-8")

    def push_to_hub(self, repo_id: str, *, private: bool | None = None, token: str | None = None, **kwargs: Any) -> str:
        """Creates the repository if need be and puts model and card there; returns its address.

        kwargs: of `HfApi.upload_folder`, such as commit_message, revision or create_pr.
        """
        from huggingface_hub import HfApi

        api = HfApi(token=token)
        address = api.create_repo(repo_id, private=private, exist_ok=True)
        kwargs.setdefault("commit_message", "Upload an image model of udm-text")
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            api.upload_folder(repo_id=address.repo_id, folder_path=folder, **kwargs)
        return str(address)

    def card(self) -> str:
        """What the model is and how to load it, as README.md of its repository."""
        config = self.denoiser.config
        channels, height, width = config.shape
        words = self.process.card
        known = f"{config.num_classes} classes: {', '.join(config.classes or [])}" if config.classes else "no classes"
        state = " x ".join(map(str, config.state_shape))
        where = f"It walks in latents of {state} values, which its own autoencoder decodes. " * self.latent
        if config.condition_dim:
            known = f"told a condition of {' x '.join(map(str, config.condition_shape))} numbers each, as `label`"
        return (
            "---\nlibrary_name: udm-text\n"
            f"pipeline_tag: {words.task}\n"
            f"tags:\n- udm\n- diffusion\n- {words.tag}\n---\n\n"
            f"# An image model of udm-text\n\nImages of {channels} x {height} x {width} values in [-1, 1]; {known}. "
            f"{where}"
            f"The network predicts {config.prediction}; the process is\n\n    {config.process}\n\n{self._manner()}"
            "```python\nfrom continuous import ImagePipeline\n\n"
            f'pipe = ImagePipeline.from_pretrained("this-repository")\nimages = pipe.{words.use}\n'
            f"{FROM_LAW * bool(config.prior_rank)}```\n"
        )

    def _manner(self) -> str:
        """A line of the card of a student: of whom it learned, and how it is sampled."""
        student, teacher = self.denoiser.config.student, self.denoiser.config.teacher
        known = [] if teacher is None else [f"It is a student of `{teacher}`."]
        if student is not None:
            samplers = " or ".join(student.samplers)
            known.append(f"It takes few steps: it is sampled by {samplers}, in {student.num_steps} by default.")
        return f"{' '.join(known)}\n\n" if known else ""

    def to(self, *args: Any, **kwargs: Any) -> ImagePipeline:
        """Moves the model, as `torch.nn.Module.to`; returns the pipeline."""
        self.denoiser.to(*args, **kwargs)
        return self

    @property
    def device(self) -> torch.device:
        return self.denoiser.device

    @property
    def process(self) -> ImageProcess:
        return self.denoiser.process

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of an image."""
        return self.denoiser.config.shape

    @property
    def latent(self) -> bool:
        """Whether the model walks in the latents of an autoencoder, which is part of it."""
        return self.denoiser.config.autoencoder is not None

    def _in_pixels(self, what: str) -> None:
        if self.latent:
            raise ValueError(f"{what} works on pixels, and this model walks in latents of images: it generates only")

    # predictors ------------------------------------------------------------------------------------------------------

    def predictor(self, labels: Tensor | None = None, guidance_scale: float = 1.0, clip: bool = True) -> Predictor:
        """predict_x0(xt, t, s) of this model, for `continuous.sampling` and `udm_text.core.denoise`.

        Args:
            labels: (B,) int64, -1 for none, or conditions.
            guidance_scale: scale of classifier-free guidance; 1 asks the network once.
            clip: hold x0_hat inside [-1, 1], where every mean of images lies; latents are never clipped.
        """

        def conditional(xt: Tensor, t: Tensor, s: Tensor) -> Tensor:
            return self.denoiser.predict_x0(xt, t, labels)

        predict: Predictor = conditional
        if guidance_scale != 1.0:
            if labels is None or not self.denoiser.config.conditional:
                raise ValueError("guidance needs a label, and a model that knows classes or conditions")
            predict = control.guided(conditional, lambda xt, t, s: self.denoiser.predict_x0(xt, t), guidance_scale)
        return sampling.clip(predict) if clip and not self.latent else predict

    def learned_variance(
        self, labels: Tensor | None, random: RowRandom | None, clip: bool = True, law: str = "normal"
    ) -> Predictor:
        """DDPM whose steps have the variance that the network predicts (Nichol and Dhariwal, arXiv 2102.09672, eq. 15).

        A step's mean and variance are those of q(xs | xt, x0) for an x0 drawn around x0_hat: see `LearnedVariance`. No
        noise in the step to 0.
        """
        learned = self.learned(labels, clip)
        return sampling.with_variance(
            self.denoiser.gaussian, learned.predict_x0, learned.variance, law=law, random=random, last=False
        )

    def optimal_variance(
        self, labels: Tensor | None, random: RowRandom | None, clip: bool = True, law: str = "normal"
    ) -> Predictor:
        """DDPM whose steps have the best variance, as it was measured and is kept: Analytic-DPM (arXiv 2201.06503).

        No noise in the step to 0. ValueError where the model keeps none.
        """
        variance = variances.kept(self.denoiser.variance, labels)
        predict = self.predictor(labels, clip=clip)
        return sampling.with_variance(self.denoiser.gaussian, predict, variance, law=law, random=random, last=False)

    def measure_variance(self, images: Tensor, labels: Tensor | None = None, seed: int = 0) -> Tensor:
        """(T + 1,) float64 `sampling.optimal_variance` on images, evenly spread where there are more than 512.

        Args:
            images: (N, C, H, W) in [-1, 1], those of training. labels: (N,) int64, -1 or None for no class.
        """
        self._in_pixels("the optimal variance")
        check_images(images, "images", self.shape)
        return variances.measure(self.denoiser, self.predictor, images, labels, _seed(seed))

    def fit_variance(self, images: Tensor, labels: Tensor | None = None, seed: int = 0) -> None:
        """Measure the optimal variance and keep it beside the weights, for sampler "ddpm_optimal".

        T calls of the network for each of at most 512 images, twice of a model with classes: with theirs, and with
        none. Arguments as of `measure_variance`.
        """
        if not self.denoiser.config.conditional:
            self.denoiser.hold_variance(self.measure_variance(images, None, seed)[None])
            return
        if labels is None:
            raise ValueError("labels must be given: this model knows classes or conditions")
        tables = [self.measure_variance(images, own, seed) for own in (labels, None)]
        self.denoiser.hold_variance(torch.stack(tables))

    def learned(self, labels: Tensor | None = None, clip: bool = True) -> LearnedVariance:
        """x0_hat, and the variance of x0 around it that the network predicts; labels and clip as in `predictor`."""
        return LearnedVariance(self.denoiser, labels, clip)

    # what is done with it --------------------------------------------------------------------------------------------

    def __call__(
        self,
        batch_size: int | None = None,
        class_labels: Label = None,
        *,
        num_inference_steps: int | None = None,
        guidance_scale: float = 1.0,
        generator: torch.Generator | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        **kwargs: Any,
    ) -> ImageOutput | tuple[Any]:
        """New images, asked for as pipelines of diffusers are: `generate` by other names.

        Args:
            batch_size: how many images; None: one for each of `class_labels`, or one.
            class_labels: `label` of `generate`. num_inference_steps: its `num_steps`.
            generator: a seed is drawn from it (not with `seed`).
            output_type: "pil", Pillow images; "pt", a tensor (N, C, H, W) in [0, 1]; "np", an array (N, H, W, C) in
                [0, 1].
            return_dict: an `ImageOutput`; False: a tuple of the images.
            kwargs: everything else of `generate`, as `sampler`, `seed` and `callback_on_step_end`.
        """
        if output_type not in ("pil", "pt", "np"):
            raise ValueError(f"output_type must be 'pil', 'pt' or 'np', got {output_type!r}")
        for name, ours in (("num", "batch_size"), ("label", "class_labels"), ("num_steps", "num_inference_steps")):
            if name in kwargs:
                raise ValueError(f"{name} belongs to generate; a call takes {ours}")
        if generator is not None:
            if not isinstance(generator, torch.Generator):
                raise ValueError(f"generator must be a torch.Generator, got {type(generator).__name__}")
            if kwargs.get("seed") is not None:
                raise ValueError("give seed or generator, not both")
            kwargs["seed"] = RowRandom.fresh(1, generator=generator).seed
        check_flag("return_dict", return_dict)
        if batch_size is None:
            several = isinstance(class_labels, Sequence) and not isinstance(class_labels, str)
            several = several or (isinstance(class_labels, Tensor) and class_labels.ndim > 0)
            if self.denoiser.config.condition_dim and several:  # a single vector is of all
                several = torch.as_tensor(class_labels).ndim > len(self.denoiser.config.condition_shape)
            batch_size = len(class_labels) if several else 1  # type: ignore[arg-type]
        kwargs.setdefault("progress", not self._progress_bar.get("disable", False))
        made = self.generate(
            batch_size, class_labels, num_steps=num_inference_steps, guidance_scale=guidance_scale, **kwargs
        )
        output = made if isinstance(made, ImageOutput) else ImageOutput(images=made)
        output.images = {"pil": to_pil, "pt": _to_unit, "np": _to_array}[output_type](output.images)
        return output if return_dict else (output.images,)

    def set_progress_bar_config(self, **kwargs: Any) -> None:
        """As in diffusers: `disable=True` hides the bar of a call; other options are those of tqdm."""
        self._progress_bar = kwargs

    @torch.no_grad()
    def generate(
        self,
        num: int = 1,
        label: Label = None,
        *,
        sampler: str | None = None,
        num_steps: int | None = None,
        spacing: str | None = None,
        eta: float | None = None,
        law: str | None = None,
        rtol: float | None = None,
        guidance_scale: float = 1.0,
        jitter: float = 0.0,
        clip: bool = True,
        seed: int | None = None,
        batch_size: int = 512,
        callback_on_step_end: OnStepEnd | None = None,
        output_trajectory: bool = False,
        progress: bool = False,
    ) -> Any:
        """New images: (num, C, H, W) float32 in [-1, 1] on the CPU.

        A model of a cold process draws x_T from the law that it keeps (`sampling.ColdPrior`) and restores it. Its
        answers are means (or medians), and nothing but x_T is drawn: the less D_T leaves, the more alike images are.

        Args:
            label: a class by index or name; one for each image; "all": every class in turn; None: no class. Of a model
                with a condition_dim a vector (d,) or (n, d) for all images, one for each, or either as JSON.
            sampler: one of `SAMPLERS` or "adaptive", of a cold model one of `COLD_SAMPLERS`; None: "dpm_solver",
                "improved", or what a student was made for, to which another one is refused.
            num_steps: steps of an image, each a network call (twice with guidance; "heun": two but in the last step,
                "dpm_solver_3": two in the first); None: 20, of a student its own number. A cold model takes T at most.
            spacing: of the steps, see `sampling.grid`; None: "snr" for `HIGHER_ORDER`, else "even".
            eta: share of fresh noise, 0 to 1, of "ddim" and "reverse_sde" (None: 0 and 1).
            law: of "ddpm_learned" and "ddpm_optimal", what x0_hat is drawn from around the answer: "normal" (None) or
                "laplace", of the same variance and longer tails (`sampling.with_variance`).
            rtol: of "adaptive", what a step may be off (None: 0.05); it takes as many as that needs.
            guidance_scale: see `predictor`. clip: hold x0_hat inside [-1, 1].
            jitter: of a cold model, the deviation of noise on x_T, which tells pixels apart that D_T has made equal.
            seed: reproduces the call; image i depends on (seed, i) only. None: a fresh one.
            callback_on_step_end: see `OnStepEnd`; called for each batch of `batch_size` images.
            output_trajectory: return an `ImageOutput` with every xt, from the noise on, and every x0_hat, in place of
                the images alone; latents are decoded for it.
            progress: show a bar.
        """
        cold = not self.process.starts_from_noise
        student = self.denoiser.config.student
        if sampler is None or student is not None:
            sampler = self.usual_sampler if student is None else student.sampler(sampler)
        names = tuple(COLD_SAMPLERS) if cold else (*SAMPLERS, ADAPTIVE)
        if not isinstance(sampler, str) or sampler not in names:
            raise ValueError(f"sampler must be {choices(names)} for this model, got {sampler!r}")
        labels, num = self.labels(label, num), int(num)
        check_number("guidance_scale", guidance_scale)
        check_number("jitter", jitter, 0)
        if eta is not None:
            check_number("eta", eta, 0, 1)
        check_flag("clip", clip)
        drawn = sampler in (WITH_LEARNED_VARIANCE, WITH_OPTIMAL_VARIANCE)
        if law is not None and not drawn:
            raise ValueError(f"law is what ddpm_learned and ddpm_optimal draw x0_hat from, got it with {sampler!r}")
        if law is not None and law not in sampling.LAWS:
            raise ValueError(f"law must be {choices(sampling.LAWS)}, got {law!r}")
        watcher = Watcher(self, callback_on_step_end, output_trajectory, progress)
        if cold:
            sampling.check_eta(sampler, eta)
            walk, calls = self._from_law(COLD_SAMPLERS[sampler], num_steps, spacing, guidance_scale, jitter, clip)
            return self._batches(walk, labels, num, calls, seed, batch_size, watcher)
        if jitter:
            raise ValueError(f"jitter is noise on the x_T of a cold model, and this one is Gaussian; got {jitter}")
        if rtol is not None and sampler != ADAPTIVE:
            raise ValueError(f"rtol belongs to sampler {ADAPTIVE!r}, got it with {sampler!r}")
        if sampler == ADAPTIVE:
            sampling.check_eta(sampler, eta)
            absent: dict[str, Any] = {"num_steps": num_steps, "spacing": spacing}
            absent |= {"callback_on_step_end": callback_on_step_end, "output_trajectory": output_trajectory or None}
            for name, given in absent.items():
                if given is not None:
                    raise ValueError(
                        f"{name} does not go with sampler {ADAPTIVE!r}, whose images have steps of their own"
                    )
            own_steps = self._adaptive(RTOL if rtol is None else rtol, guidance_scale, clip)
            return self._batches(own_steps, labels, num, 1, seed, batch_size, watcher)
        process = self.denoiser.gaussian
        if drawn and guidance_scale != 1.0:
            raise ValueError(
                f"guidance moves x0_hat, and the variance of {sampler!r} belongs to the one that was learned: take "
                "another sampler with guidance"
            )
        if student is not None and student.times is not None and guidance_scale != 1.0:
            raise ValueError(f"guidance belongs to the teacher of this model of few steps, got {guidance_scale}")
        times = self._grid(sampler, num_steps, spacing)
        calls = len(times) - 1

        def run(random: RowRandom, part: slice, own: Tensor | None, watcher: Watcher) -> Tensor:
            name: str | None = sampler
            if sampler == WITH_LEARNED_VARIANCE:
                name, predict = None, watcher.predictor(self.learned_variance(own, random, clip, law or "normal"))
            elif sampler == WITH_OPTIMAL_VARIANCE:
                name, predict = None, watcher.predictor(self.optimal_variance(own, random, clip, law or "normal"))
            else:
                predict = watcher.predictor(self.predictor(own, guidance_scale, clip))
            rows = len(random.rows)
            return sampling.sample(
                process,
                predict,
                (rows, *self.denoiser.config.state_shape),
                sampler=name,
                times=times,
                eta=eta,
                random=random,
                device=self.denoiser.device,
                on_step=watcher.on_step,
            )

        return self._batches(run, labels, num, calls, seed, batch_size, watcher)

    def _adaptive(
        self, rtol: float, guidance_scale: float, clip: bool
    ) -> Callable[[RowRandom, slice, Tensor | None, Watcher], Tensor]:
        """What `_batches` runs for images by steps of their own lengths."""
        process = self.denoiser.gaussian

        def run(random: RowRandom, part: slice, own: Tensor | None, watcher: Watcher) -> Tensor:
            like = torch.empty(len(random.rows), *self.denoiser.config.state_shape, device=self.denoiser.device)
            predict = self.predictor(own, guidance_scale, clip)
            images = adaptive(process, predict, process.prior(like, random=random), rtol)
            watcher.advance()
            return images

        return run

    @property
    def usual_sampler(self) -> str:
        """The name of the sampler of `generate` where none is given."""
        student = self.denoiser.config.student
        if student is not None:
            return student.sampler(None)
        return "dpm_solver" if self.process.starts_from_noise else "improved"

    @property
    def usual_steps(self) -> int:
        """The steps of `generate` where none are given."""
        student = self.denoiser.config.student
        return min(STEPS, self.process.T) if student is None else student.num_steps

    def _grid(self, sampler: str, num_steps: int | None, spacing: str | None) -> Tensor:
        """The falling grid of `generate`, of a Gaussian process."""
        student = self.denoiser.config.student
        num_steps = self.usual_steps if num_steps is None else num_steps
        if spacing is None and (student is None or student.times is None):
            # steps of equal length in log-SNR are what a solver of second order extrapolates best over
            spacing = "snr" if sampler in HIGHER_ORDER else "even"
        if student is not None:
            return student.grid(self.process, num_steps, spacing)
        return sampling.grid(self.process, num_steps, "even" if spacing is None else spacing)

    def _refuse_student(self, what: str) -> None:
        """Raises ValueError where the model is a student: what it predicts is no mean of x0 given xt."""
        if self.denoiser.config.few_steps is not None:
            raise ValueError(f"this model of few steps generates and does not {what}: take its teacher")

    def _from_law(
        self,
        churn: float,
        num_steps: int | None,
        spacing: str | None,
        guidance_scale: float,
        jitter: float,
        clip: bool,
    ) -> tuple[Callable[[RowRandom, slice, Tensor | None, Watcher], Tensor], int]:
        """What `_batches` runs for images of a cold model, x_T from its law, restored; and how many calls it takes."""
        process, prior = cast(ColdProcess, self.process), self.denoiser.prior
        num_steps = self.usual_steps if num_steps is None else num_steps
        steps = min(check_whole("num_steps", num_steps, 1), process.T)
        times = sampling.grid(process, steps, "even" if spacing is None else spacing)

        def run(random: RowRandom, part: slice, own: Tensor | None, watcher: Watcher) -> Tensor:
            rows = self.denoiser.label_row(own, len(random.rows))
            places = rows if self.denoiser.config.num_classes else torch.zeros(len(random.rows), dtype=torch.int64)
            assert places is not None
            xt = prior.draw(process, places.to(self.denoiser.device), jitter=jitter, random=random)
            predict = watcher.predictor(self.predictor(own, guidance_scale, clip))
            walk = sampling.spread(times, len(xt), xt.device)
            return denoise(process, predict, xt, walk, churn, random=random, on_step=watcher.on_step)

        return run, steps

    @torch.no_grad()
    def restore(
        self,
        degraded: Tensor,
        t: int | None = None,
        *,
        label: Label = None,
        num_steps: int | None = None,
        churn: float = 0.0,
        clip: bool = True,
        seed: int | None = None,
        batch_size: int = 512,
        callback_on_step_end: OnStepEnd | None = None,
        output_trajectory: bool = False,
        progress: bool = False,
    ) -> Any:
        """Your own degraded images, restored: (N, C, H, W) float32 in [-1, 1] on the CPU.

        Args:
            degraded: (N, C, H, W) float, degraded (or with noise, for a Gaussian process) as far as `t`.
            t: 1..T; None: T, the furthest.
            num_steps: 1..t; None: t. 1 asks once: direct restoration.
            churn: 0 keeps the residual (improved sampling), 1 forgets it (naive).
            label, clip, seed, batch_size, callback_on_step_end, output_trajectory, progress: as in `generate`.
        """
        self._refuse_student("restore")
        self._in_pixels("restore")
        check_images(degraded, "degraded", self.shape, slack=self.process.overshoot())
        t = self.process.T if t is None else check_whole("t", t, 1, self.process.T)
        if num_steps is not None:
            check_whole("num_steps", num_steps, 1, t)
        check_number("churn", churn, 0, 1)
        check_flag("clip", clip)
        labels = self.labels(label, len(degraded))

        def run(random: RowRandom, part: slice, own: Tensor | None, watcher: Watcher) -> Tensor:
            xt = degraded[part].to(self.denoiser.device, torch.float32)
            return sampling.restore(
                self.process,
                watcher.predictor(self.predictor(own, clip=clip)),
                xt,
                t,
                num_steps=num_steps,
                churn=churn,
                random=random,
                on_step=watcher.on_step,
            )

        watcher = Watcher(self, callback_on_step_end, output_trajectory, progress)
        return self._batches(run, labels, len(degraded), num_steps or t, seed, batch_size, watcher)

    @torch.no_grad()
    def edit(
        self,
        known: Tensor,
        editable: Tensor,
        *,
        label: Label = None,
        start: int | None = None,
        num_steps: int | None = 100,
        eta: float = 1.0,
        corrections: int = 0,
        step_size: float = control.STEP_SIZE,
        temperature: float | Tensor = 1.0,
        mode: str | None = None,
        guidance_scale: float = 1.0,
        clip: bool = True,
        seed: int | None = None,
        batch_size: int = 512,
        callback_on_step_end: OnStepEnd | None = None,
        output_trajectory: bool = False,
        progress: bool = False,
    ) -> Any:
        """New content where `editable` is true, `known` exactly elsewhere: (N, C, H, W) float32 on the CPU.

        A model that was trained with regions keeps `known` clean on the way, and samples what belongs to it. Of others
        what is made fits `known` less well than it should, without corrections: see `control.edit`.

        Args:
            known: (N, C, H, W) in [-1, 1]. editable: bool, broadcasts against `known`.
            start: begin at this t, from the known content (a smaller one stays nearer to it); None: T, from nothing.
            num_steps, eta: steps and noise of DDIM; 1 is DDPM, which mends the seams best.
            corrections: Langevin steps after each of these, each a network call more; step_size: theirs, in (0, 2).
            temperature: theirs, >= 0, one number or a (T + 1,) table by t (`sampling.langevin`): below 1 nearer to the
                modes, and a table that falls towards 0 with t is simulated annealing.
            mode: "clean", of a model with regions, or "replace"; None: "clean" where the model has them and corrections
                are 0.
        """
        self._refuse_student("edit")
        self._in_pixels("edit")
        known = check_images(known, "known", self.shape)
        process = self.denoiser.gaussian
        labels = self.labels(label, len(known))
        start = None if start is None else check_whole("start", start, 1, process.T)
        steps = first = process.T if start is None else start
        if num_steps is not None:
            steps = min(check_whole("num_steps", num_steps, 1), first)
        check_number("guidance_scale", guidance_scale)
        check_number("eta", eta, 0, 1)
        check_flag("clip", clip)
        check_number("step_size", step_size)
        times = sampling.grid(process, steps, start=start)
        steps *= 1 + check_whole("corrections", corrections, 0)
        if not corrections and not (isinstance(temperature, int | float) and temperature == 1):
            raise ValueError(
                "temperature is that of corrections, and there are none: give corrections, or leave it at 1"
            )
        editable = control.check_editable(editable, known)
        has = self.denoiser.config.regions
        mode = ("clean" if has and not corrections else "replace") if mode is None else mode
        if mode == "clean" and not has:
            raise ValueError(
                "mode 'clean' needs a model trained with regions (`udm image train --regions`): take 'replace'"
            )
        if mode == "clean" and bool((editable != editable[:, :1]).any()):
            raise ValueError("editable must be the same in all channels of a pixel, for mode 'clean'")

        def run(random: RowRandom, part: slice, own: Tensor | None, watcher: Watcher) -> Tensor:
            return control.edit(
                process,
                sampling.ddim(process, watcher.predictor(self.predictor(own, guidance_scale, clip)), eta),
                known[part].to(self.denoiser.device, torch.float32),
                editable[part].to(self.denoiser.device),
                times=times,
                corrections=corrections,
                step_size=step_size,
                temperature=temperature,
                mode=mode,
                random=random,
                on_step=watcher.on_step,
            )

        watcher = Watcher(self, callback_on_step_end, output_trajectory, progress)
        return self._batches(run, labels, len(known), steps, seed, batch_size, watcher)

    @torch.no_grad()
    def encode(
        self,
        images: Tensor,
        label: Label = None,
        *,
        num_steps: int | None = 50,
        clip: bool = True,
        batch_size: int = 512,
    ) -> Tensor:
        """The noise x_T that `decode` turns into these images, to first order: (N, C, H, W) float32 on the CPU.

        Args:
            images: (N, C, H, W) in [-1, 1]. label, clip: as in `generate`.
            num_steps: of DDIM upwards, each a network call; None: T.
        """
        self._in_pixels("encode")
        check_images(images, "images", self.shape)
        process, labels = self.denoiser.gaussian, self.labels(label, len(images))
        steps = process.T if num_steps is None else min(check_whole("num_steps", num_steps, 1), process.T)
        check_flag("clip", clip)
        check_whole("batch_size", batch_size, 1)
        found = []
        with eval_mode(self.denoiser):
            for first in range(0, len(images), batch_size):
                part = slice(first, first + batch_size)
                own = None if labels is None else labels[part].to(self.denoiser.device)
                x0 = images[part].to(self.denoiser.device, torch.float32)
                found.append(sampling.encode(process, self.predictor(own, clip=clip), x0, steps).cpu())
        noise = torch.cat(found)
        if not bool(torch.isfinite(noise).all()):
            raise NonFiniteOutputError("what the network predicts is not finite, so no noise was found")
        return noise

    @torch.no_grad()
    def decode(
        self,
        noise: Tensor,
        label: Label = None,
        *,
        num_steps: int | None = 50,
        guidance_scale: float = 1.0,
        clip: bool = True,
        batch_size: int = 512,
        callback_on_step_end: OnStepEnd | None = None,
        output_trajectory: bool = False,
        progress: bool = False,
    ) -> Any:
        """The images that DDIM without noise makes of given x_T: (N, C, H, W) float32 in [-1, 1] on the CPU.

        Args:
            noise: (N, C, H, W) float, as `encode` gives it. Everything else as in `generate`.
        """
        self._in_pixels("decode")
        sampling.check_finite(noise, "noise")
        if tuple(noise.shape[1:]) != self.shape:
            raise ValueError(f"noise must be (N, {', '.join(map(str, self.shape))}), got {tuple(noise.shape)}")
        process, labels = self.denoiser.gaussian, self.labels(label, len(noise))
        steps = process.T if num_steps is None else min(check_whole("num_steps", num_steps, 1), process.T)
        check_number("guidance_scale", guidance_scale)
        check_flag("clip", clip)
        times = sampling.grid(process, steps)

        def run(random: RowRandom, part: slice, own: Tensor | None, watcher: Watcher) -> Tensor:
            xt = noise[part].to(self.denoiser.device, torch.float32)
            predict = watcher.predictor(self.predictor(own, guidance_scale, clip))
            walk = sampling.spread(times, len(xt), xt.device)
            return denoise(process, predict, xt, walk, on_step=watcher.on_step)

        watcher = Watcher(self, callback_on_step_end, output_trajectory, progress)
        return self._batches(run, labels, len(noise), steps, 0, batch_size, watcher)

    def interpolate(
        self,
        first: Tensor,
        second: Tensor,
        num: int = 8,
        label: Label = None,
        *,
        num_steps: int | None = 50,
        clip: bool = True,
        batch_size: int = 512,
    ) -> Tensor:
        """Images on the way from one to another: (N, num, C, H, W) float32 on the CPU, `first` and `second` the ends.

        The noises of both are joined by a great circle (`sampling.slerp`), and its points decoded (Song et al.
        2010.02502); the ends are as near to what was given as `decode` comes to what `encode` was given.

        Args:
            first, second: (N, C, H, W) in [-1, 1], pairs. num: >= 2. label: of a pair. Others as in `encode`.
        """
        for name, images in (("first", first), ("second", second)):
            check_images(images, name, self.shape)
        if len(first) != len(second):
            raise ValueError(f"first and second must be pairs, got {len(first)} and {len(second)} images")
        check_whole("num", num, 2)
        labels = self.labels(label, len(first))
        how: dict[str, Any] = {"num_steps": num_steps, "clip": clip, "batch_size": batch_size}
        low, high = (self.encode(images, labels, **how) for images in (first, second))
        points = [sampling.slerp(low, high, i / (num - 1)) for i in range(num)]
        track = torch.stack(points, dim=1)
        many = None if labels is None else labels.repeat_interleave(num, dim=0)
        return self.decode(track.flatten(0, 1), many, **how).unflatten(0, (len(first), num))

    def degrade(self, images: Tensor, t: int | None = None, seed: int | None = None) -> Tensor:
        """Clean images (N, C, H, W) in [-1, 1], corrupted as far as t (None: T), by this model's process."""
        self._in_pixels("degrade")
        check_images(images, "images", self.shape)
        t = self.process.T if t is None else check_whole("t", t, 0, self.process.T)
        times = torch.full((len(images),), t, dtype=torch.int64)
        random = RowRandom(_seed(seed), torch.arange(len(images)))
        return self.process.corrupt(images, times, self.process.sample_noise(images, random=random))

    def labels(self, label: Label, num: int) -> Tensor | None:
        """(num,) int64 classes as `generate` means them, or conditions (num, d) or (num, n, d); None: no class."""
        return read_labels(self.denoiser, label, num)

    def _batches(
        self,
        run: Callable[[RowRandom, slice, Tensor | None, Watcher], Tensor],
        labels: Tensor | None,
        num: int,
        calls: int,
        seed: int | None,
        batch_size: int,
        watcher: Watcher,
    ) -> Tensor | ImageOutput:
        """`run` for each batch of rows with their labels, watched; what it gives is held inside [-1, 1]."""
        check_whole("batch_size", batch_size, 1)
        seed = _seed(seed)
        rows = torch.arange(num, device=self.denoiser.device)
        images = []
        with watcher.bar(-(-num // batch_size) * calls), eval_mode(self.denoiser):
            for first in range(0, num, batch_size):
                part = slice(first, min(first + batch_size, num))
                own = None if labels is None else labels[part].to(self.denoiser.device)
                images.append(watcher.finished(run(RowRandom(seed, rows[part]), part, own, watcher)))
        whole = torch.cat(images)
        if not watcher.keeps:
            return whole
        return ImageOutput(images=whole, trajectory=watcher.trajectory(), predictions=watcher.predictions())


def save_int8(name: str, directory: str | Path) -> ImagePipeline:
    """Writes an image model with the weights of its linear maps as int8, and its card; returns the pipeline so read.

    Convolutions, embeddings and all that is measured and kept stay as they are. `ImagePipeline.from_pretrained` reads
    the folder where torchao is installed, without any argument. Raises as `udm_text.common.load_int8` does, and
    FileExistsError where the directory is not empty.
    """
    directory = check_new_folder(directory)
    refuse_missing(name)
    pipe = ImagePipeline(load_int8(ImageDenoiser, name))
    with staged_folder(directory) as folder:
        pipe.save_pretrained(folder)
    return pipe


def check_device(device: Any) -> None:
    """ValueError unless tensors can be put on this device (None: wherever they are)."""
    if device is None:
        return
    try:
        torch.empty(1, device=device).cpu()
    except (RuntimeError, AssertionError, TypeError, NotImplementedError) as error:
        reason = (str(error).splitlines() or [""])[0].rstrip(".")
        raise ValueError(f"device {str(device)!r} cannot be used here ({reason}); 'cpu' can") from None


def _seed(seed: int | None) -> int:
    """The seed, or a fresh one; ValueError unless its 64 bits hold it."""
    return secrets.randbits(63) if seed is None else check_whole("seed", seed, -(2**63), 2**64 - 1)


def _to_unit(images: Tensor) -> Tensor:
    """(N, C, H, W) in [0, 1], as tensors of diffusers are."""
    return (images + 1.0) / 2.0


def _to_array(images: Tensor) -> Any:
    """(N, H, W, C) in [0, 1], as arrays of diffusers are."""
    return _to_unit(images).permute(0, 2, 3, 1).numpy()
