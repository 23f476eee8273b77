"""How to generate: every option, its default and what it may be."""

from __future__ import annotations

import math
import numbers
from typing import Any, ClassVar

from transformers import GenerationConfig

from .configuration_udm import choices
from .decoding import ORDERS, Order
from .kernels import KERNELS
from .schedules import SCHEDULES


class UDMGenerationConfig(GenerationConfig):
    """How to generate; saved beside a model as generation_config.json.

    Args:
        num_steps (`int`, *optional*): reverse steps; None: one token a step, which is exact for masks.
        schedule (`str`, defaults to `"linear"`): how num_steps are spread: `"linear"`, equal steps; `"cosine"`, small
            steps first; `"optimal"`, the grid of lowest expected price on the model's `step_curve` (mask process).
        threshold (`float`, *optional*): in (0, 1); each step reveals every position whose drawn token has a probability
            above it, and at least one (mask process, order by confidence). With num_steps, at least what its schedule
            asks for, so that it takes at most so many steps.
        order (`str`, defaults to `"random"`): which position is revealed first (mask process): `"random"` (the order
            the bound holds for), `"left_to_right"`, or by the model's probabilities, before temperature, top_k and
            top_p: `"confidence"` (of the drawn token), `"margin"`, `"entropy"`; or a function called as
            order(log_probs (N, V), tokens (N,)), with those probabilities and the drawn tokens of any number of masked
            positions, that returns scores (N,), the highest first. A function is not saved.
        order_noise (`float`, defaults to 0.0): Gumbel noise on the scores of an order that looks at the probabilities:
            0 takes the highest, a large one is the random order. It keeps such orders from repeating themselves.
        revise (`int`, defaults to 0): a heuristic, no bound holds for it (mask process): when a row is done, so many of
            its tokens, those the model gave the lowest probability when it drew them, are masked again and drawn anew,
            one a step, given all the rest.
        kernel (`str`, *optional*): reverse kernel of the substitute process; None: the model's own, and `"free"` for
            repair, the one that may leave a text as it is.
        speculate (`int`, *optional*): at least 2: exact speculative steps (mask process, orders `"random"` and
            `"left_to_right"`), which draft so many tokens at a time and keep the law of one token a step.
        guidance_scale (`float`, *optional*): classifier-free guidance, at least 0: tokens are drawn from log p_u +
            guidance_scale (log p_c - log p_u), renormalised, where p_c reads the row and p_u the row with [MASK] in
            place of all that was given. None and 1 are the model itself; more than 1 holds closer to what was given.
            For models trained with prompt_dropout. Two network calls a step.
        cache_refresh (`int`, *optional*): an APPROXIMATION (backbones built like BERT, RoBERTa, ModernBERT): keys and
            values of all layers are kept and brought up to date only every so many calls; in between, only what
            changed and what is asked about runs through the layers. None and 1 are exact.
        churn (`float`, defaults to 0.0): share of fresh noise in each step; 0 improved, 1 baseline sampler.
        temperature (`float`, *optional*): divides the logits; 0 takes the most likely token. None: 1, and 0 for repair.
        top_k (`int`, *optional*), top_p (`float`, *optional*): truncation of each token's distribution.
        forbidden_tokens (`list[int]`, *optional*): tokens that are never drawn, besides the special ones.
        allowed_tokens (`dict[int, list[int]]`, *optional*): the only tokens that may be drawn at a position of the
            output row (special tokens count as positions), the same for all rows.
        length (`int`, *optional*): tokens of a row, its prompt included and special tokens not; None: drawn from the
            training lengths.
        max_new_tokens (`int`, *optional*): tokens added behind the prompt, in place of `length`.
        max_edits (`int`, *optional*): repair of a given text (substitute process): at most so many tokens change.
        num_return_sequences (`int`, defaults to 1): samples of each input.
        seed (`int`, *optional*): reproduces the samples; None draws one from torch's generator.
        return_dict_in_generate (`bool`): return a `UDMGenerateOutput` instead of the tokens alone.
        output_trajectory (`bool`): the output also holds every xt; implies `return_dict_in_generate`.
    """

    num_steps: int | None
    schedule: str
    threshold: float | None
    order: str | Order
    order_noise: float
    revise: int
    kernel: str | None
    speculate: int | None
    guidance_scale: float | None
    cache_refresh: int | None
    churn: float
    temperature: float | None
    top_k: int | None
    top_p: float | None
    forbidden_tokens: list[int] | None
    allowed_tokens: dict[int, list[int]] | None
    length: int | None
    max_new_tokens: int | None
    max_edits: int | None
    num_return_sequences: int
    seed: int | None
    return_dict_in_generate: bool
    output_trajectory: bool

    _defaults: ClassVar[dict[str, Any]] = {
        "num_steps": None,
        "schedule": "linear",
        "threshold": None,
        "order": "random",
        "order_noise": 0.0,
        "revise": 0,
        "kernel": None,
        "speculate": None,
        "guidance_scale": None,
        "cache_refresh": None,
        "churn": 0.0,
        "temperature": None,
        "top_k": None,
        "top_p": None,
        "forbidden_tokens": None,
        "allowed_tokens": None,
        "length": None,
        "max_new_tokens": None,
        "max_edits": None,
        "num_return_sequences": 1,
        "seed": None,
        "return_dict_in_generate": False,
        "output_trajectory": False,
    }

    def __init__(self, **kwargs):
        # Only our own fields: most of the parent's steer autoregressive decoding and would be silently without effect.
        for name, default in self._defaults.items():
            setattr(self, name, kwargs.pop(name, default))
        if isinstance(self.allowed_tokens, dict):  # JSON knows no integers as keys
            self.allowed_tokens = {
                int(key) if isinstance(key, str) and key.isdecimal() else key: value
                for key, value in self.allowed_tokens.items()
            }
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):  # Trainer aligns these with the tokenizer's
            setattr(self, name, kwargs.pop(name, None))
        self._commit_hash = kwargs.pop("_commit_hash", None)
        self._from_model_config = kwargs.pop("_from_model_config", False)
        self.transformers_version = kwargs.pop("transformers_version", None)
        if kwargs:
            raise ValueError(f"unknown generation argument {next(iter(kwargs))!r}. Known: {', '.join(self._defaults)}")
        self.validate()

    def validate(self, strict: bool = False, user_set_attributes: set[str] | None = None) -> None:
        """Raises ValueError for a value that cannot work, naming the argument."""

        def need(ok: bool, name: str, what: str):
            if not ok:
                raise ValueError(f"{name} must be {what}, got {getattr(self, name)!r}")

        def number(value: Any, kind: type = numbers.Real) -> bool:
            return isinstance(value, kind) and not isinstance(value, bool) and math.isfinite(value)  # type: ignore

        for name in ("num_steps", "top_k", "length", "max_new_tokens", "max_edits", "num_return_sequences"):
            value = getattr(self, name)
            optional = name != "num_return_sequences"
            good = (value is None and optional) or (number(value, numbers.Integral) and value >= 1)
            need(good, name, "a positive integer" + " or None" * optional)
        need(self.schedule in SCHEDULES, "schedule", choices(SCHEDULES))
        threshold = self.threshold
        need(threshold is None or (number(threshold) and 0 < threshold < 1), "threshold", "a number in (0, 1) or None")
        named = choices(ORDERS) if isinstance(self.order, str) else f"{choices(ORDERS)}, or a function"
        need(callable(self.order) or self.order in ORDERS, "order", named)
        revise = self.revise
        need(number(revise, numbers.Integral) and revise >= 0, "revise", "an integer that is at least 0")
        need(number(self.order_noise) and self.order_noise >= 0, "order_noise", "a number that is at least 0")
        need(self.kernel is None or self.kernel in KERNELS, "kernel", f"{choices(KERNELS)}, or None")
        speculate = self.speculate
        need(
            speculate is None or (number(speculate, numbers.Integral) and speculate >= 2),
            "speculate",
            "an integer that is at least 2, or None",
        )
        scale, refresh = self.guidance_scale, self.cache_refresh
        need(
            scale is None or (number(scale) and scale >= 0),
            "guidance_scale",
            "a finite number that is at least 0, or None",
        )
        need(
            refresh is None or (number(refresh, numbers.Integral) and refresh >= 1),
            "cache_refresh",
            "a positive integer or None",
        )
        need(number(self.churn) and 0 <= self.churn <= 1, "churn", "a number in [0, 1]")
        temperature, top_p = self.temperature, self.top_p
        need(
            temperature is None or (number(temperature) and temperature >= 0),
            "temperature",
            "a number that is at least 0, or None",
        )
        need(top_p is None or (number(top_p) and 0 < top_p <= 1), "top_p", "a number in (0, 1] or None")
        need(self.seed is None or number(self.seed, numbers.Integral), "seed", "an integer or None")

        def ids(value: Any) -> bool:
            return isinstance(value, list | tuple) and all(number(token, numbers.Integral) for token in value)

        forbidden, allowed = self.forbidden_tokens, self.allowed_tokens
        need(
            forbidden is None or ids(forbidden), "forbidden_tokens", "a list of token ids (the pipeline takes strings)"
        )
        need(
            allowed is None
            or (isinstance(allowed, dict) and all(number(i, numbers.Integral) and ids(allowed[i]) for i in allowed)),
            "allowed_tokens",
            "a dict {position: list of token ids} (the pipeline takes strings)",
        )

    def to_diff_dict(self) -> dict[str, Any]:
        """What differs from our own defaults (those of transformers' GenerationConfig are not ours)."""
        default = UDMGenerationConfig().to_dict()
        keep = "transformers_version"
        return {k: v for k, v in self.to_dict().items() if k == keep or k not in default or v != default[k]}

    def to_dict(self) -> dict[str, Any]:
        """As in transformers; an order that is a function is named, not held."""
        order = self.order
        named = f"function {getattr(order, '__qualname__', type(order).__name__)}" if callable(order) else order
        return {**super().to_dict(), "order": named}

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        if callable(self.order):
            raise ValueError(
                f"order is a function ({self.to_dict()['order']}), which generation_config.json cannot hold: give it "
                "to generate, or name an order"
            )
        super().save_pretrained(*args, **kwargs)

    @classmethod
    def from_model_config(cls, model_config) -> UDMGenerationConfig:
        """The defaults: a model's config holds nothing of how to generate."""
        return cls()

    @staticmethod
    def _get_default_generation_params() -> dict[str, Any]:
        return {}

    def get_generation_mode(self, *args, **kwargs):
        raise ValueError("a diffusion model has no autoregressive generation mode; see UDMGenerationConfig")
