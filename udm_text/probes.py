"""Whether the logits of a row depend on what stands on both sides, found out by asking the network; and on no weight
that is elsewhere.

No name of an architecture is trusted: a short row of ordinary tokens is read as it is, with another first and another
last token, alone and beside a longer row. What a backbone makes of padding is asked in `padding.py`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .common import eval_mode
from .devices import device_of

_LENGTH = 4
"""Tokens of the row, few enough to lie in any window of local attention."""
_BEHIND = 2
"""Tokens of padding behind it."""
_ELSEWHERE = ("sdpa", "eager")
"""Attention that runs on any device; others (flash, flex) are probed where the weights lie on an accelerator."""


class Context(NamedTuple):
    """What the logits of a row depend on."""

    earlier: bool
    """Whether the first token of a row changes the logits at all others, with padding behind them and without."""
    later: bool
    """The same of the last token."""


def check_context(model: Any, path: Any) -> None:
    """Raises ValueError where the logits of a decoder at `path` do not depend on what stands on both sides; masked LMs
    are not asked."""
    if not model.config.from_decoder or (found := probe_context(model)) is None:
        return
    kind = model.config.text_config.model_type
    if not (found.earlier and found.later):
        side = "behind it" if found.earlier else "before it"
        raise ValueError(
            f"{path} is a decoder of model type {kind!r}, whose logits at a position do not depend on all tokens that "
            f"stand {side}: is_causal=False, which makes a decoder of transformers bidirectional, does not reach it. "
            "Give one whose layers all attend, such as a Llama, Qwen3, Gemma, Mistral or GPT-2, or a masked LM"
        )


class _AwayError(Exception):
    """An operation on what is there and on a weight that is away."""


class _WeightsThatAreThere(TorchDispatchMode):
    """Within it such an operation raises `_AwayError`: torch gives what happens to lie in memory."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor) and x.dim()]
        if len({x.is_meta for x in given}) > 1:
            raise _AwayError
        return func(*args, **(kwargs or {}))


@torch.no_grad()
def check_offloaded(model: Any, path: Any) -> None:
    """Raises ValueError where a model at `path`, some of whose weights a device map keeps elsewhere, reads such weights
    of modules that it does not call: they are fetched when their module is called, and torch says nothing.

    A short row is read, for which all weights are fetched once. Models without such weights are not asked.
    """
    where = getattr(model, "hf_device_map", None) or getattr(model.backbone, "hf_device_map", None)
    if where is None or not any(weight.is_meta for weight in model.parameters()):
        return
    length = max(1, _row_length(model))
    words = _ordinary(model)
    tokens = words[torch.arange(length) % len(words)][None].to(device_of(model.get_input_embeddings()))
    told = {name: torch.ones(1, dtype=torch.int64, device=tokens.device) for name in ("t", "num_editable")}
    told |= {"x0": tokens} if model.config.writes_rows else {}
    try:
        with eval_mode(model), _WeightsThatAreThere():
            model(input_ids=tokens, **told)
    except _AwayError:
        raise ValueError(
            f"{path} has a backbone of model type {model.config.text_config.model_type!r}, which reads weights of "
            f"modules that it does not call: device_map {where} keeps them where only a call fetches "
            "them from. Leave device_map out, or give one that names neither 'disk' nor, beside an accelerator, 'cpu'"
        ) from None


def probe_context(model: Any) -> Context | None:
    """The worst that is found of the ways of attention that the model can be run by; it is left as it was.

    model: a `UDMForMaskedGeneration`. None where nothing can be told: weights that are not there (device "meta"),
    logits that are not finite or all the same, a vocabulary of less than two tokens, a row of less than two.
    """
    weight = model.get_input_embeddings().weight
    if weight.is_meta or len(_ordinary(model)) < 2 or _row_length(model) < 2:
        return None
    before, found = model.backbone.config._attn_implementation, []
    try:
        for name in _implementations(model, before, weight.device):
            if name != model.backbone.config._attn_implementation:
                model.set_attn_implementation(name)
            found.append(_probe(model))
    finally:
        if model.backbone.config._attn_implementation != before:
            model.set_attn_implementation(before)
    told = [context for context in found if context is not None]
    if not told:
        return None
    return Context(all(context.earlier for context in told), all(context.later for context in told))


def _implementations(model: Any, now: str, device: torch.device) -> list[str]:
    """The ways of attention to try, as `set_attn_implementation` calls them, the present one first."""
    known = ["eager", *(["sdpa"] if model.backbone._supports_sdpa else [])]
    own = [now] if now in known or device.type != "cpu" else []
    if not model.backbone._can_set_attn_implementation():
        return [now]
    return list(dict.fromkeys([*own, *(name for name in _ELSEWHERE if name in known)]))


def _ordinary(model: Any) -> Tensor:
    return model.config.allowed_token_ids()


def _row_length(model: Any) -> int:
    positions = getattr(model.config.text_config, "max_position_embeddings", None)
    longest = model.config.max_row_length if positions is not None else None
    return _LENGTH if longest is None else min(_LENGTH, longest - _BEHIND)


@torch.no_grad()
def _probe(model: Any) -> Context | None:
    """Of the attention that is set. Calls that are compared have one shape, so that equal inputs give equal logits."""
    ordinary, length, device = _ordinary(model), _row_length(model), model.get_input_embeddings().weight.device
    places = torch.arange(length) * len(ordinary) // length
    row, others = ordinary[places], ordinary[(places + 1) % len(ordinary)]
    first, last = row.clone(), row.clone()
    first[0], last[-1] = others[0], others[-1]
    longer = ordinary[torch.arange(length + _BEHIND) % len(ordinary)]

    def ask(*rows: Tensor, attended: list[int]) -> Tensor:
        """(length, V) float32, the logits of the first row."""
        tokens = torch.stack(rows).to(device)
        mask = (torch.arange(tokens.shape[1]) < torch.tensor(attended)[:, None]).long().to(device)
        told: dict[str, Tensor] = {}
        if model.time_embedding is not None:
            told = {name: torch.ones(len(rows), dtype=torch.int64, device=device) for name in ("t", "num_editable")}
        return model(input_ids=tokens, attention_mask=mask, **told).logits[0, :length].float()

    def beside(row: Tensor) -> Tensor:
        """The logits of a row with padding, and another row that is longer."""
        end = torch.full((_BEHIND,), model.config.pad_token_id or 0)
        return ask(torch.cat((row, end)), longer, attended=[length, length + _BEHIND])

    with eval_mode(model):
        alone = {name: ask(ids, attended=[length]) for name, ids in (("", row), ("first", first), ("last", last))}
        padded = {name: beside(ids) for name, ids in (("", row), ("first", first), ("last", last))}
    spread = float(alone[""].std())
    if not (spread > 0.0 and all(bool(x.isfinite().all()) for x in (*alone.values(), *padded.values()))):
        return None
    least = max(1e-4, 4 * torch.finfo(model.get_input_embeddings().weight.dtype).eps)

    def changes(name: str, where: slice) -> bool:
        apart = [(read[name] - read[""]).abs().amax(dim=-1)[where] / spread for read in (alone, padded)]
        return all(bool((difference > least).all()) for difference in apart)

    return Context(earlier=changes("first", slice(1, None)), later=changes("last", slice(None, -1)))
