"""What a model adds to the embeddings of its tokens: how much of a row is corrupted, which masks are blanks.

A backbone of unknown structure is given the tokens, and a hook on its input embedding adds to what comes out of it. So
it still sees which tokens it reads (ESM scales its embeddings by the number of masks), and one that takes no embeddings
in place of tokens can be conditioned, too.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn

_INSTEAD = "give process 'mask' without time_conditioning and blank_widths, or another backbone"

_added: ContextVar[list[Tensor] | None] = ContextVar("_added", default=None)
"""What the hook adds in the present call, (B, L, E); it is taken out when that was done."""


def _add(module: nn.Module, inputs: Any, output: Any) -> Any:
    """The hook: the output (B, L', E) and what is added; a backbone may have lengthened rows by padding, L' >= L."""
    waiting = None if torch.compiler.is_compiling() else _added.get()
    if not waiting:
        return None
    shift = waiting.pop()
    if not isinstance(output, Tensor) or output.dim() != 3 or output.shape[0] != shift.shape[0]:
        raise ValueError(
            f"the input embedding of this backbone, a {type(module).__name__}, gives no (rows, tokens, hidden), to "
            f"which something could be added: {_INSTEAD}"
        )
    behind = output.shape[1] - shift.shape[1]
    return output + nn.functional.pad(shift, (0, 0, 0, behind)).to(output.dtype)


def check_embedding(embedding: Any, config: Any) -> None:
    """Raises ValueError where the input embedding of a backbone is none that a model of this config can be built on."""
    kind = config.text_config.model_type
    if not (isinstance(embedding, nn.Module) and isinstance(getattr(embedding, "weight", None), Tensor)):
        raise ValueError(
            f"the backbone of model type {kind!r} has no module that embeds its tokens (get_input_embeddings gives a "
            f"{type(embedding).__name__}), so that it cannot be asked for the tokens of a row: give another masked LM"
        )
    if config.blank_widths is not None and getattr(config.text_config, "token_dropout", False):
        raise ValueError(
            f"the backbone of model type {kind!r} embeds each [MASK] as zero (token_dropout), so that those which are "
            f"blanks cannot be marked (blank_widths {config.blank_widths}): leave blank_widths out"
        )
    adds = config.time_conditioning or config.blank_widths is not None
    if adds and not isinstance(embedding, nn.Embedding):
        raise ValueError(
            f"the backbone of model type {kind!r} embeds its tokens by a {type(embedding).__name__}, to which nothing "
            f"can be added, as time_conditioning and blank_widths do: {_INSTEAD}"
        )


@contextmanager
def adding(embedding: nn.Module, shift: Tensor | None) -> Iterator[None]:
    """Within it the first output of the input embedding has `shift` (B, L, E) added to it; None: nothing.

    Raises:
        ValueError: where the embedding was not asked.
    """
    if shift is None:
        yield
        return
    if _add not in embedding._forward_hooks.values():
        embedding.register_forward_hook(_add)
    waiting = [shift]
    token = _added.set(waiting)
    try:
        yield
    finally:
        _added.reset(token)
    if waiting:
        raise ValueError(
            f"this backbone does not call its input embedding, a {type(embedding).__name__}, so that nothing can be "
            f"added to it: {_INSTEAD}"
        )
