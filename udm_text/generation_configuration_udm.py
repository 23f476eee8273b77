"""How to generate, as a configuration that is saved beside a model. Its options are those of generation_options.py."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from transformers import GenerationConfig

from .generation_options import OPTIONS, Skeleton


class UDMGenerationConfig(GenerationConfig):
    """How to generate; saved beside a model as generation_config.json.

    Args:
    """

    if TYPE_CHECKING:  # the fields are those of OPTIONS

        def __getattr__(self, name: str) -> Any: ...

        def __setattr__(self, name: str, value: Any) -> None: ...

    _defaults: ClassVar[dict[str, Any]] = {name: option.default for name, option in OPTIONS.items()}

    def __init__(self, **kwargs):
        # Only our own fields: most of the parent's steer autoregressive decoding and would be silently without effect.
        for name, default in self._defaults.items():
            setattr(self, name, kwargs.pop(name, default))
        allowed: Any = self.allowed_tokens
        if isinstance(allowed, dict):  # JSON knows no integers as keys
            named = {int(k) if isinstance(k, str) and k.isdecimal() else k: tokens for k, tokens in allowed.items()}
            self.allowed_tokens: Any = named
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
        for name, option in OPTIONS.items():
            option.check(name, getattr(self, name))

    def to_diff_dict(self) -> dict[str, Any]:
        """What differs from our own defaults (those of transformers' GenerationConfig are not ours)."""
        default = UDMGenerationConfig().to_dict()
        keep = "transformers_version"
        return {k: v for k, v in self.to_dict().items() if k == keep or k not in default or v != default[k]}

    def to_dict(self) -> dict[str, Any]:
        """As in transformers; an order that is no name is described, not held."""
        order = self.order
        named = f"function {getattr(order, '__qualname__', type(order).__name__)}" if callable(order) else order
        named = str(order) if isinstance(order, Skeleton) else named
        return {**super().to_dict(), "order": named}

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        if callable(self.order) or isinstance(self.order, Skeleton):
            kind = "a function" if callable(self.order) else "a Skeleton"
            raise ValueError(
                f"order is {kind} ({self.to_dict()['order']}), which generation_config.json cannot hold: give it "
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


UDMGenerationConfig.__doc__ = (UDMGenerationConfig.__doc__ or "").rstrip() + "".join(
    f"\n        {name} (defaults to `{option.default!r}`{f', {option.of} process' * bool(option.of)}): {option.help}"
    for name, option in OPTIONS.items()
)
