"""What the benchmarks share: models by size, the machine, and what its matrix products reach."""

from __future__ import annotations

import time
from pathlib import Path

import torch
from transformers import AutoModelForMaskedLM, BertConfig

from udm_text import UDMConfig, UDMForMaskedGeneration
from udm_text.training.runs import processor_name

SIZES = {"mini": (4, 256, 4), "small": (4, 512, 8), "base": (12, 768, 12)}
"""Layers, hidden size, heads."""
MASK, VOCABULARY = 103, 30522
PAD, SPECIAL = 0, [100, 101, 102]


def make_bert(
    size: str, length: int, attention: str | None = None, prompt_dropout: float = 0.0, **fields
) -> UDMForMaskedGeneration:
    """A random BERT of that size, process mask. attention: implementation; None: that of transformers.

    prompt_dropout: of its UDMConfig. fields: of its BertConfig, such as hidden_dropout_prob.
    """
    layers, hidden, heads = SIZES[size]
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * hidden,
        max_position_embeddings=max(512, length),
        **fields,
    )
    backbone = AutoModelForMaskedLM.from_config(config, attn_implementation=attention)
    own = UDMConfig(
        text_config=config,
        mask_token_id=MASK,
        pad_token_id=PAD,
        special_token_ids=SPECIAL,
        prompt_dropout=prompt_dropout,
    )
    return UDMForMaskedGeneration(own, backbone=backbone)


def synchronize(device: str) -> None:
    """Wait for what an accelerator was given to do."""
    if device != "cpu":
        torch.accelerator.synchronize()


def matrix_peak(device: str, dtype: torch.dtype, seconds: float = 1.0) -> float:
    """Operations a second of the best of some large matrix products."""
    best = 0.0
    for n in (1024, 2048) if device == "cpu" else (4096, 8192):
        a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            start = time.perf_counter()
            a @ b
            synchronize(device)
            best = max(best, 2.0 * n**3 / (time.perf_counter() - start))
    return best


def machine(device: str) -> str:
    """The accelerator, or the processor and whether it has AMX."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    amx = info.exists() and "amx_bf16" in info.read_text()
    return f"{processor_name()}, AMX {'yes' if amx else 'no'}"
