"""LoRA through `peft`: a pretrained model trained by a small adapter, which is merged into a plain model at the end."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedModel

ADAPTER = "adapter"
"""The folder, inside a model's, that holds its adapter."""


def add_adapter(
    model: Any, rank: int, alpha: int | None = None, target: str | None = None, dropout: float = 0.0
) -> Any:
    """The model with low-rank adapters, which alone are trained (Hu et al. 2106.09685), as a `peft.PeftModel`.

    Where the model is conditioned on time or has a width head, these parts are new and are trained whole. So is the
    embedding of [MASK] of a decoder, which has never read it.

    Args:
        model: a `UDMForMaskedGeneration` with trained weights. rank: of the adapters, at least 1.
        alpha: the adapters' product is scaled by alpha / rank; None: 2 rank.
        target: names of the modules that get one, with commas between them; None: every linear map but the last.
    """
    if rank < 1:
        raise ValueError(f"lora_rank must be at least 1, got {rank}")
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError:
        raise ImportError("LoRA needs peft: pip install '.[lora]' in the folder of udm-text") from None
    heads = ("time_embedding", "gap_head", "width_head")
    whole = [name for name in heads if getattr(model, name, None) is not None]
    tokens: dict[str, list[int]] | None = None
    if model.config.from_decoder and model.config.mask_token_id is not None:
        embedding = model.get_input_embeddings()
        (name,) = (name for name, part in model.named_modules() if part is embedding)
        tokens = {name: [model.config.mask_token_id]}
    names = None if target is None else [name.strip() for name in target.split(",")]
    config = LoraConfig(
        r=rank,
        lora_alpha=2 * rank if alpha is None else alpha,
        lora_dropout=dropout,
        target_modules="all-linear" if names is None else names,
        modules_to_save=whole or None,
        trainable_token_indices=tokens,
    )
    try:
        return get_peft_model(model, config)
    except ValueError as error:
        kinds = sorted(
            {name.rpartition(".")[2] for name, part in model.named_modules() if hasattr(part, "in_features")}
        )
        raise ValueError(f"lora_target {target!r} names no module of this model; it has {', '.join(kinds)}") from error


def merge_adapter(model: Any) -> PreTrainedModel:
    """The plain model with the adapter's part added to its weights. The adapter is used up: write it before."""
    return model.merge_and_unload()


def is_adapted(model: Any) -> bool:
    """Whether the model is one of `add_adapter`."""
    return hasattr(model, "merge_and_unload")
