"""Mixed precision where transformers leaves it: rotary positions in the type that autocast multiplies in.

transformers gives the cosines and sines of rotary positions the type of the hidden states. Under autocast these are
float32, so queries and keys, which a linear map has just given out in bfloat16, are turned in float32 and rounded down
again for their product. The angles themselves are computed in float32 in any case; what changes is the type in which
two products and a sum of each entry are made, as in a model that is bfloat16 as a whole. docs/benchmarks.md has what
it saves.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def _narrow(module: nn.Module, inputs: Any, outputs: Any) -> Any:
    """A forward hook: cosines and sines in the type of autocast, where that is on."""
    if not (isinstance(outputs, tuple) and all(isinstance(part, Tensor) for part in outputs)):
        return outputs
    device = outputs[0].device.type
    if not torch.is_autocast_enabled(device):
        return outputs
    return tuple(part.to(torch.get_autocast_dtype(device)) for part in outputs)


def narrow_angles(model: nn.Module) -> int:
    """Turn queries and keys in the type that autocast multiplies in; nothing changes without autocast.

    model: any with modules of transformers that are called RotaryEmbedding and give cosines and sines. Returns how many
    there are; a second call adds nothing.
    """
    found = [module for module in model.modules() if type(module).__name__.endswith("RotaryEmbedding")]
    for module in found:
        if _narrow not in module._forward_hooks.values():
            module.register_forward_hook(_narrow)
    return len(found)
