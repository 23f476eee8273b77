"""The schedulers of diffusers as further samplers, inside the same loop.

A scheduler knows how to get from xt to xs. The adapter asks it, and hands the loop the noise that leads from x0_hat to
exactly that xs, so that `core.denoise` walks the scheduler's path:

    walk = SchedulerPredictor(UniPCMultistepScheduler(num_train_timesteps=1000), process, predict_x0, num_steps=10)
    images = sample(process, walk, (8, 1, 8, 8), sampler=None, times=walk.times)

Timestep i of diffusers is t = i + 1 here. The scheduler is copied, and its table is replaced by the process's, in
float64, so that it cannot disagree with the network about the noise.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from udm_text.core import Prediction

from .processes import GaussianProcess
from .sampling import Predictor, as_prediction, grid, spread


class SchedulerPredictor:
    """A predictor whose steps are a diffusers scheduler's.

    Works with schedulers that take one network call a step and integer timesteps: DDIM, DDPM, DPM-Solver++ and its kin,
    UniPC, DEIS, Euler (also ancestral) on a `vp` process, FlowMatchEuler on an `rf` one.

    Args:
        scheduler: a scheduler object of diffusers; its num_train_timesteps must be process.T.
        process: the process of the network.
        predict_x0: the predictor.
        num_steps: the scheduler's inference steps.
        options: handed to every `scheduler.step` (eta, generator, ...).

    Attributes:
        times: the falling grid to walk, (num_steps + 1,) int64, for `sample(..., sampler=None, times=...)`.
    """

    def __init__(
        self, scheduler: Any, process: GaussianProcess, predict_x0: Predictor, num_steps: int, **options: Any
    ) -> None:
        name = type(scheduler).__name__
        config = scheduler.config
        if config.get("num_train_timesteps") != process.T:
            raise ValueError(f"{name} has {config.get('num_train_timesteps')} timesteps and the process {process.T}")
        if config.get("clip_sample") or config.get("thresholding"):
            raise ValueError(
                f"{name} clips x0 and some schedulers then keep the unclipped noise: make it with clip_sample=False, "
                "thresholding=False and put continuous.clip around the predictor"
            )
        if getattr(scheduler, "order", 1) != 1:
            raise ValueError(f"{name} takes {scheduler.order} network calls a step; the adapter serves those of one")
        self.process, self.predict_x0, self.options = process, predict_x0, options
        self.scheduler = copy.deepcopy(scheduler)
        self.flow = not hasattr(scheduler, "alphas_cumprod")
        if self.flow:
            self._set_flow(num_steps, name)
        else:
            self._set_preserving(num_steps, name)

    def _set_flow(self, num_steps: int, name: str) -> None:
        process, times = self.process, grid(self.process, num_steps)
        if not bool(torch.isclose(process.a + process.b, torch.ones(()).double(), atol=1e-12).all()):
            raise ValueError(
                f"{name} has no alphas_cumprod, so it is a flow: it needs GaussianProcess.rf, got {process!r}"
            )
        self.scheduler.set_timesteps(sigmas=process.b[times[:-1]].numpy())
        if not torch.allclose(self.scheduler.sigmas.double(), process.b[times], atol=1e-6):
            raise ValueError(f"{name} shifts its sigmas: make it with shift=1 and without dynamic shifting")
        self.times, self.exploding = times, False

    def _set_preserving(self, num_steps: int, name: str) -> None:
        process, scheduler = self.process, self.scheduler
        if not bool(torch.isclose(process.a**2 + process.b**2, torch.ones(()).double(), atol=1e-9).all()):
            raise ValueError(f"{name} needs a variance-preserving process (GaussianProcess.vp), got {process!r}")
        scheduler.alphas_cumprod = process.a[1:].square()
        scheduler.set_timesteps(num_steps)
        steps = torch.as_tensor(scheduler.timesteps).double().cpu()
        if bool((steps != steps.round()).any()) or bool((steps.diff() >= 0).any()):
            raise ValueError(
                f"{name}'s timesteps must be falling integers: choose timestep_spacing='leading' or 'trailing' without "
                f"Karras sigmas, got {steps.tolist()[:8]}"
            )
        self.times = torch.cat((steps.long() + 1, torch.zeros(1, dtype=torch.int64)))
        strides = -steps.diff()
        if hasattr(scheduler, "final_alpha_cumprod") and bool((strides != process.T // num_steps).any()):
            raise ValueError(f"{name} assumes a stride of T // num_steps: choose timestep_spacing='leading'")
        sigmas = torch.as_tensor(scheduler.sigmas).double().cpu() if hasattr(scheduler, "sigmas") else None
        if sigmas is not None and len(sigmas) == len(self.times):
            if not torch.allclose(sigmas[:-1], process.sigma(self.times[:-1]), rtol=1e-3):
                raise ValueError(
                    f"{name}'s sigmas are not those of its timesteps: make it without Karras, exponential or beta "
                    "sigmas"
                )
        # the Euler family holds x0 + sigma noise, that is xt / a_t, and says so by the size of its first noise
        self.exploding = abs(float(scheduler.init_noise_sigma) - 1) > 1e-6

    def _output(self, prediction: Prediction, xt: Tensor, t: Tensor) -> Tensor:
        """What the scheduler expects of a network."""
        noise = self.process.invert_noise(prediction.x0, xt, t)
        if self.flow:
            return noise - prediction.x0
        kind = {"sample": "x0"}.get(self.scheduler.config.prediction_type, self.scheduler.config.prediction_type)
        return self.process.target({"v_prediction": "v"}.get(kind, kind), prediction.x0, noise, t)

    def __call__(self, xt: Tensor, t: Tensor, s: Tensor) -> Prediction:
        process = self.process
        at = (
            int((self.times == t[0].cpu()).nonzero()[0])
            if bool((self.times == t[0].cpu()).any())
            else len(self.times) - 1
        )
        if at == len(self.times) - 1 or bool((s != self.times[at + 1]).any()) or bool((t != t[0]).any()):
            raise ValueError("the grid must be the scheduler's own: sample(..., sampler=None, times=walk.times)")
        if at == 0:
            self._restart()
        prediction = as_prediction(self.predict_x0(xt, t, s), xt)
        (a_t, _), (a_s, _) = process.coefficients(t, xt), process.coefficients(s, xt)
        state = xt / a_t if self.exploding else xt
        if hasattr(self.scheduler, "scale_model_input"):
            self.scheduler.scale_model_input(state, self.scheduler.timesteps[at])  # some insist on having been asked
        step = self.scheduler.step(self._output(prediction, xt, t), self.scheduler.timesteps[at], state, **self.options)
        xs = step.prev_sample.to(xt)
        xs = a_s * xs if self.exploding else xs
        if bool((s == 0).all()):
            return prediction._replace(x0=xs, noise=torch.zeros_like(xs))
        return prediction._replace(noise=process.invert_noise(prediction.x0, xs, s))

    def _restart(self) -> None:
        """A multistep scheduler forgets the last walk."""
        if self.flow:
            self.scheduler.set_timesteps(sigmas=self.process.b[self.times[:-1]].numpy())
        else:
            self.scheduler.set_timesteps(len(self.times) - 1)

    def walk(self, rows: int, device: torch.device | str = "cpu") -> list[Tensor]:
        """The grid as `core.denoise` wants it."""
        return spread(self.times, rows, device)
