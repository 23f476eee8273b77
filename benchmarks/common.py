"""What the benchmarks share: models by size, training runs, the machine, and what its matrix products reach."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig

from udm_text import UDMConfig, UDMForMaskedGeneration
from udm_text.cli.train_text import intermediate_size
from udm_text.decoders import auto_class, is_decoder, make_bidirectional
from udm_text.training.optimizers import quick_bfloat16
from udm_text.training.runs import processor_name

SIZES = {"mini": (4, 256, 4), "small": (4, 512, 8), "base": (12, 768, 12)}
"""Layers, hidden size, heads."""
BACKBONES = ("nomic_bert", "bert", "llama", "qwen3", "gemma3_text")
"""What is built in the sizes of a preset; the first is what presets are made of. Decoders have grouped keys."""
QUIET = "--max_steps 1000000 --report_to none --plot false --disable_tqdm true --save_strategy no".split()
"""Of a training run that the clock ends and nobody watches."""
MASK, VOCABULARY = 103, 30522
PAD, SPECIAL = 0, [100, 101, 102]


def make_encoder(
    size: str,
    length: int,
    backbone: str,
    attention: str | None = None,
    prompt_dropout: float = 0.0,
    dropout: float = 0.1,
) -> UDMForMaskedGeneration:
    """A random network of a preset's size, process mask.

    backbone: one of `BACKBONES`. attention: implementation; None: that of transformers. prompt_dropout: of its
    UDMConfig. dropout: of hidden states and attention.
    """
    layers, hidden, heads = SIZES[size]
    torch.manual_seed(0)
    own: dict[str, Any] = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    if is_decoder(backbone):
        own = {"num_key_value_heads": heads // 2, "head_dim": hidden // heads, "attention_dropout": dropout}
        own |= dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
    config = AutoConfig.for_model(
        backbone,
        vocab_size=VOCABULARY,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=intermediate_size("nomic_bert" if is_decoder(backbone) else backbone, hidden),
        max_position_embeddings=max(512, length),
        **own,
    )
    make_bidirectional(config)
    network = auto_class(config).from_config(config, attn_implementation=attention)
    whole = UDMConfig(
        text_config=config,
        mask_token_id=MASK,
        pad_token_id=PAD,
        special_token_ids=SPECIAL,
        prompt_dropout=prompt_dropout,
    )
    return UDMForMaskedGeneration(whole, backbone=network)


def train_model(options: Sequence[str], output: Path, program: Sequence[str] = ("-m", "udm_text")) -> dict[str, Any]:
    """`udm train` with these options behind `QUIET`, in a process of its own with one thread; its report.

    program: what Python runs in place of the command line.
    """
    command = [sys.executable, *program, "train", *QUIET, *options, "--output", str(output)]
    command += ["--bf16", str(quick_bfloat16(torch.device("cpu")))]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"})
    report: dict[str, Any] = json.loads((output / "report.json").read_text(encoding="utf-8"))
    return report


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
