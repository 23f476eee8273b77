"""Backbones whose rows depend on their padding, found out by asking, and run in batches of one length.

FNet mixes all positions of a row whatever its mask says; pooling, landmarks, convolutions, hashes and blocks of sparse
attention reach what stands behind a row, too. What such a network says of a row then depends on the rows beside it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .common import eval_mode

_KEPT = {"logits", "last_hidden_state", "hidden_states"}
"""What of an output has a place for each token, and is handed on."""


class PaddingProbe:
    """Whether a row's output depends on the padding behind it, found out by the batches that come.

    The first padded batch, and each that is longer than any before, is read twice: its rows by themselves, and as they
    come. Where weights are split over processes, or torch.compile looks on, nothing is asked.
    """

    def __init__(self) -> None:
        self.depends = False
        self._asked = 0  # no padding of rows up to this length takes part

    def matters(self, model: Any, network: Callable[..., Any], inputs: dict[str, Any]) -> bool:
        """Whether the rows of a call network(**inputs) have to be run by length.

        Raises:
            ValueError: for a network that says another thing of a row each time, which no seed reproduces.
        """
        mask = inputs.get("attention_mask")
        if not isinstance(mask, Tensor) or mask.dim() != 2 or torch.compiler.is_compiling():
            return False
        if not self.depends and (mask.shape[1] <= self._asked or _is_split(model)):
            return False
        lengths = mask.sum(dim=1)
        if bool((lengths == mask.shape[1]).all()):
            return False
        if not self.depends and not _padded_behind(mask, lengths):
            return False  # as in transformers, where any token may be left out
        if not self.depends:
            self.depends = _depends(model, network, inputs, lengths)
            self._asked = mask.shape[1]
        return self.depends


def reads_padding(model: Any, length: int) -> bool:
    """Whether what a `UDMForMaskedGeneration` says of a row depends on its padding: it is asked about two rows.

    length: tokens of the longer row.
    """
    if model._known_structure or length < 2:
        return False
    words = model.config.allowed_token_ids()
    weight = model.get_input_embeddings().weight
    tokens = words[torch.arange(length) % len(words)].to(weight.device)[None]
    mask = (torch.arange(length) < torch.tensor([[length], [length // 2]])).long().to(weight.device)
    told = {name: torch.ones(2, dtype=torch.int64, device=weight.device) for name in ("t", "num_editable")}
    tokens = tokens.repeat(2, 1)
    if model.config.writes_rows:
        told["x0"] = tokens
    with eval_mode(model), torch.no_grad():
        model(input_ids=tokens, attention_mask=mask, **told)
    return model._padding.depends


def padded_wrongly(model: Any, length: int) -> str | None:
    """What of a model's backbone goes wrong in rows that are padded for torch.compile; None: nothing.

    model: anything; what is no `UDMForMaskedGeneration` is passed. length: tokens of a row.
    """
    if getattr(model, "_known_structure", True):
        return None
    if model.time_embedding is not None and getattr(model.config.text_config, "token_dropout", False):
        return "the token dropout of its backbone"
    return "a backbone whose rows depend on their padding" if reads_padding(model, length) else None


def _padded_behind(mask: Tensor, lengths: Tensor) -> bool:
    """Whether a mask (B, L) holds ones, as many as `lengths` (B,), and then zeros."""
    return bool((mask.bool() == (torch.arange(mask.shape[1], device=mask.device) < lengths[:, None])).all())


def _is_split(model: Any) -> bool:
    """Whether a call that other processes do not make, too, would wait for them for ever."""
    return any(hasattr(parameter, "device_mesh") for parameter in model.parameters())


@torch.no_grad()
def _depends(model: Any, network: Callable[..., Any], inputs: dict[str, Any], lengths: Tensor) -> bool:
    """Whether any row reads otherwise by itself than with its padding."""
    mask, row = inputs["attention_mask"], int(lengths.argmax())
    with eval_mode(model), torch.random.fork_rng(devices=[mask.device] if mask.is_cuda else []):
        longest = cut(inputs, slice(row, row + 1), int(lengths[row]))
        alone, again = (network(**longest)[0].float() for _ in range(2))
        apart, beside = by_length(network, inputs)[0].float(), network(**inputs)[0].float()
    attended = mask.bool()[..., None]
    apart, beside = apart.masked_fill(~attended, 0.0), beside.masked_fill(~attended, 0.0)
    if not bool(apart.isfinite().all() & beside.isfinite().all()):
        return False  # said where it is drawn from
    weights = (p.dtype for p in model.parameters() if p.dtype.is_floating_point)
    least = torch.finfo(next(weights, torch.float32)).eps ** 0.5 * alone.square().mean().sqrt()
    if bool((alone - again).square().mean().sqrt() > least):
        kind = model.config.text_config.model_type
        raise ValueError(
            f"the backbone of model type {kind!r} says another thing of the same row each time it is asked, so that no "
            "seed reproduces a text: give one whose configuration lets it draw nothing (Reformer: hash_seed=0; YOSO: "
            "use_expectation=True), or another backbone"
        )
    difference = (apart - beside).square().sum(dim=(1, 2)) / (lengths.clamp(min=1) * apart.shape[2])
    return bool((difference.sqrt() > least).any())


def cut(inputs: dict[str, Any], rows: Any, length: int) -> dict[str, Any]:
    """The inputs of a call of those rows and their first `length` positions; without a mask where none is needed."""
    shape = inputs["attention_mask"].shape
    own = {
        name: value[rows, :length] if isinstance(value, Tensor) and value.shape[:2] == shape else value
        for name, value in inputs.items()
    }
    return own | ({"attention_mask": None} if bool(own["attention_mask"].all()) else {})


def by_length(network: Callable[..., Any], inputs: dict[str, Any]) -> Any:
    """network(**inputs) with the rows of each length by themselves; what it gives of padding is zero.

    inputs: with attention_mask (B, L), ones and then zeros. Attentions, which have no common shape, are left out.

    Raises:
        ValueError: for rows that are not padded behind.
    """
    mask = inputs["attention_mask"].bool()
    lengths = mask.sum(dim=1)
    if not _padded_behind(mask, lengths):
        raise ValueError(
            "attention_mask must hold ones and then zeros in each row: what this backbone says of a row depends on its "
            "padding, so that rows are run without any"
        )
    whole: dict[str, Any] = {}
    kind: Any = dict
    for length in sorted(set(lengths.tolist()) - {0}):
        rows = (lengths == length).nonzero()[:, 0]
        output = network(**cut(inputs, rows, length))
        kind = type(output)
        for name in _KEPT & output.keys():
            states = name == "hidden_states"
            new = list(output[name]) if states else [output[name]]
            old = whole.get(name, [None] * len(new))
            whole[name] = [_put(*pair, mask, rows, length) for pair in zip(old, new, strict=True)]
    return kind(**{name: tuple(x) if name == "hidden_states" else x[0] for name, x in whole.items()})


def _put(whole: Tensor | None, part: Tensor, mask: Tensor, rows: Tensor, length: int) -> Tensor:
    """`whole` (B, L, ...), zeros at first, with `part` (b, l, ...) at the first l positions of the rows."""
    if whole is None:
        whole = part.new_zeros(*mask.shape, *part.shape[2:])
    return whole.index_put((rows[:, None], torch.arange(length, device=part.device)), part[:, :length])
