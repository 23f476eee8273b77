"""Muon for the matrices of a network, AdamW for everything else, as one optimiser.

Muon makes of each matrix's averaged gradient the nearest orthogonal one, so that all directions of a layer learn at a
like pace. It is for maps between hidden states alone: tables of embeddings, the map to the vocabulary, norms, biases
and the kernels of convolutions go to AdamW. Updates of matrices are scaled to the size that AdamW's have, so that one
learning rate and one weight decay serve both (Liu et al., 2502.16982).
Source: Jordan et al., kellerjordan.github.io/posts/muon; the optimiser itself is torch's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import nn
from torch.optim import AdamW, Optimizer

MUON = "muon"
"""The name of it in `TrainingArguments.optim`."""
_FALLBACK = "adamw_torch_fused"


def has_muon() -> bool:
    """Whether this torch brings Muon (2.9 and newer)."""
    return hasattr(torch.optim, "Muon")


def quick_bfloat16(device: torch.device) -> bool:
    """Whether a CUDA device or a processor multiplies bfloat16 itself; one that does not takes many times as long."""
    if device.type != "cpu":
        return device.type == "cuda" and torch.cuda.is_bf16_supported()
    return torch.backends.mkldnn.is_available() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def muon_rate(rows: int) -> float:
    """The learning rate of a new network under Muon: 4e-3 for 64 rows a step, with the square root of their number.

    The gradient of more rows is less noisy, and a step of an optimiser that sets the size of its steps itself may be as
    much longer as the noise is smaller (Malladi et al., 2205.10287). At most 8e-3, beyond which nothing was measured;
    docs/training.md has the runs.
    """
    return min(4e-3 * math.sqrt(rows / 64), 8e-3)


def best_optimizer(device: torch.device) -> str:
    """The optimiser that a new network is trained with on a device unless another is asked for.

    Muon multiplies matrices in bfloat16, which a processor without such instructions takes many times as long for.
    """
    quick = device.type != "cpu" or quick_bfloat16(device)
    return MUON if has_muon() and quick else _FALLBACK


def muon_matrices(model: nn.Module) -> list[str]:
    """The names of the weights that Muon trains: the matrices of linear maps, but for those to vocabulary and widths.

    A matrix that is also a table of embeddings, as a tied head is, is none of them.
    """
    tables = {
        id(part) for module in model.modules() if isinstance(module, nn.Embedding) for part in module.parameters()
    }
    heads = getattr(model, "get_output_embeddings", lambda: None)(), getattr(model, "width_head", None)
    tables |= {id(part) for head in heads if head is not None for part in head.parameters()}
    linear = {id(module.weight) for module in model.modules() if isinstance(module, nn.Linear)} - tables
    return [name for name, part in model.named_parameters() if id(part) in linear and part.requires_grad]


class MuonAdamW(Optimizer):
    """One optimiser of two: `torch.optim.Muon` of the matrices and `torch.optim.AdamW` of the rest.

    Its groups are those of both and its state is one, so schedules, checkpoints and `accelerate` see an optimiser like
    any other. Groups are, in this order and where they hold a weight, the matrices that decay and those that do not,
    then the rest in the same way.

    Args:
        model: what is trained; weights that need no gradient are left out.
        lr: of all groups.
        weight_decay: of the weights whose names are `decayed`; the others have none.
        betas, eps: of AdamW.

    Raises:
        ValueError: where torch has no Muon.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        lr: float,
        weight_decay: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        decayed: Collection[str] = (),
    ):
        if not has_muon():
            raise ValueError(f"Muon needs torch 2.9 or newer, got {torch.__version__}")
        matrices = set(muon_matrices(model))
        groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
        for name, part in model.named_parameters():
            if part.requires_grad:
                groups.setdefault((name in matrices, name in decayed), []).append(part)

        def of(muon: bool) -> list[dict[str, Any]]:
            kinds = [(decays, groups[muon, decays]) for decays in (True, False) if (muon, decays) in groups]
            return [{"params": parts, "weight_decay": weight_decay if decays else 0.0} for decays, parts in kinds]

        muon: Any = torch.optim.Muon
        self._parts: list[Optimizer] = []
        if matrices:
            self._parts.append(muon(of(True), lr=lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"))
        if rest := of(False):
            self._parts.append(AdamW(rest, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, fused=True))
        self._sizes = [len(part.param_groups) for part in self._parts]
        super().__init__([group for part in self._parts for group in part.param_groups], {})
        self._share()

    def _share(self) -> None:
        """Groups and state of the two are those of the whole: whoever changes a rate here changes it there."""
        first = 0
        for part, size in zip(self._parts, self._sizes, strict=True):
            part.param_groups = self.param_groups[first : first + size]
            part.state = self.state
            first += size

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._share()

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of both. closure: makes the loss anew, called once."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self._parts:
            part.step()
        return loss
