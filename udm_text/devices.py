"""What an accelerator must not be kept waiting for: checks of what tensors hold, and constants that lie on the CPU.

A value that the host reads from a device drains its queue, and a step that does so can be no graph. A CPU has no queue:
there a read is free, and a fault is named at once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def reads_are_free(device: torch.device) -> bool:
    """Whether nothing waits for a value that the host reads from there; a graph reads none, wherever it runs."""
    return device.type == "cpu" and not torch.compiler.is_compiling()


def device_of(module: Any) -> torch.device:
    """Where a module of weights computes: of one that accelerate has offloaded, where its weights are fetched to."""
    device = module.weight.device
    hook: Any = getattr(module, "_hf_hook", None)
    if device.type == "meta" and getattr(hook, "execution_device", None) is not None:
        return torch.empty(0, device=hook.execution_device).device
    return device


def demand(good: Tensor, message: str, detail: Callable[[], str] | None = None) -> None:
    """Raises ValueError unless all of `good`, bool, is true.

    On an accelerator the device itself stops there, with the message, when it comes to it (`torch._assert_async`).

    detail: what stands behind the message on a CPU, where values can be read to say it.
    """
    if not reads_are_free(good.device):
        torch._assert_async(good.all(), message)
    elif not bool(good.all()):
        raise ValueError(message + (detail() if detail is not None else ""))


class Sent:
    """Tensors of the CPU, sent to each device once."""

    def __init__(self, *tensors: Tensor):
        self._by_device = {torch.device("cpu"): tensors}

    def __call__(self, device: torch.device) -> tuple[Tensor, ...]:
        """They on that device."""
        if device not in self._by_device:
            self._by_device[device] = tuple(tensor.to(device) for tensor in self._by_device[torch.device("cpu")])
        return self._by_device[device]
