"""What may be drawn at a position: never a special or forbidden token, only tokens of its own set where it has one.

Constraints act on the logits, before softmax, temperature and truncation, so what is left is renormalised.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .decoding import NOT_FINITE
from .devices import reads_are_free
from .inputs import GenerationInputs
from .randomness import RowRandom


class Constraints:
    """The tokens that may stand at each position of the rows, and the user's processor of the logits.

    Args:
        model_config: a `UDMConfig`; its special tokens are forbidden everywhere.
        config: a `UDMGenerationConfig`; `forbidden_tokens` and `allowed_tokens` are read.
        inputs: the rows.
        processor: called as processor(input_ids, scores) with the N positions in question as rows: input_ids (N, L)
            int64, the whole row xt that each of them stands in, and scores (N, V) float32; returns scores (N, V). A
            call holds any number of positions; special and forbidden tokens are taken out behind it.

    Raises:
        ValueError: where a position is left without a token, or is not one that may change; where the logits of a
            position are no law (`NOT_FINITE`). That is found on the device: on a CPU at once, elsewhere at the end
            (`check`), so that no step waits for it.
    """

    def __init__(self, model_config, config, inputs: GenerationInputs, processor: Callable[..., Any] | None = None):
        if processor is not None and not callable(processor):
            raise ValueError(f"logits_processor must be callable, got {type(processor).__name__}")
        device, vocab, width = inputs.tokens.device, model_config.vocab_size, inputs.tokens.shape[1]
        self.processor = processor
        forbidden = model_config.forbidden_tokens(device)
        for token in _inside(config.forbidden_tokens or [], vocab, "forbidden_tokens"):
            forbidden[token] = True
        sets = config.allowed_tokens or {}
        self.blocked = forbidden[None].repeat(1 + len(sets), 1)  # (1 + sets, V)
        self.set_of = torch.zeros(
            width, dtype=torch.int64, device=device
        )  # (L,), the row of `blocked` that holds there
        editable = inputs.editable.any(dim=0).tolist()
        for number, (position, tokens) in enumerate(sets.items(), start=1):
            if not 0 <= position < width or not editable[position]:
                columns = [str(i) for i, changes in enumerate(editable) if changes]
                columns = columns if len(columns) < 10 else [*columns[:8], "...", columns[-1]]
                raise ValueError(
                    f"allowed_tokens names position {position}, which is editable in no row; editable are positions "
                    f"{', '.join(columns)} (special tokens count)"
                )
            keep = torch.tensor(list(_inside(tokens, vocab, f"allowed_tokens[{position}]")), dtype=torch.int64)
            self.blocked[number] |= ~torch.zeros_like(forbidden).index_fill(0, keep.to(device), True)
            self.set_of[position] = number
            if bool(self.blocked[number].all()):
                raise ValueError(
                    f"allowed_tokens leaves no token at position {position}: {list(tokens)} are special or forbidden"
                )
        if bool(forbidden.all()):
            raise ValueError("forbidden_tokens leaves no token: it holds the whole vocabulary")
        self.given = bool(config.forbidden_tokens or sets)
        self.faults: dict[str, Tensor] = {}  # on the device, () bool each
        self.reads_are_free = reads_are_free(device)

    @property
    def forbidden(self) -> Tensor:
        """(V,) bool: what is drawn nowhere."""
        return self.blocked[0]

    def __call__(self, logits: Tensor, xt: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        """(N, V): the logits, -inf at what may not be drawn. xt: (B, L); rows, columns: (N,), the place of each."""
        if self.processor is not None:
            scores = self.processor(xt[rows], logits.to(torch.float32, copy=True))
            if not isinstance(scores, Tensor) or scores.shape != logits.shape or not scores.is_floating_point():
                got = f"{tuple(scores.shape)} {scores.dtype}" if isinstance(scores, Tensor) else type(scores).__name__
                raise ValueError(f"logits_processor must return scores {tuple(logits.shape)}, got {got}")
            logits = scores
        blocked = self.forbidden if len(self.blocked) == 1 else self.blocked[self.set_of[columns]]
        logits = logits.masked_fill(blocked, -torch.inf)
        best = logits.amax(dim=-1)
        if self.processor is not None:
            self.refuse(best == -torch.inf, "logits_processor leaves no token", columns)
        lawless = best - best != 0  # of NaN and of infinities, which are above all others, or nothing is above them
        self.refuse(lawless, NOT_FINITE)
        return logits if self.reads_are_free else logits.masked_fill_(lawless[:, None], 0.0)  # not handed out

    def refuse(self, wrong: Tensor, message: str, columns: Tensor | None = None) -> None:
        """Raises ValueError with this message where any of `wrong` (N,) bool is true.

        On a CPU at once, and with the column (N,) of the first that is; elsewhere at the end (`check`), so that nothing
        waits for it.
        """
        if not self.reads_are_free:
            self.faults[message] = self.faults.get(message, False) | wrong.any()
        elif bool(wrong.any()):
            raise ValueError(message if columns is None else f"{message} at position {int(columns[wrong][0])}")

    def check(self) -> None:
        """Raises ValueError for what was met of what `refuse` refuses."""
        if self.faults:
            found = torch.stack(list(self.faults.values())).tolist()
            for message in (message for message, is_wrong in zip(self.faults, found, strict=True) if is_wrong):
                raise ValueError(message)

    def prior(self, xt: Tensor, editable: Tensor, random: RowRandom) -> Tensor:
        """xt (B, L), its editable tokens drawn anew, each uniform among those that may stand there."""
        uniforms = random.uniform(xt.shape[1])
        drawn = xt.clone()
        for number, blocked in enumerate(self.blocked):
            tokens = (~blocked).nonzero()[:, 0]
            here = self.set_of == number
            drawn[:, here] = tokens[(uniforms[:, here] * len(tokens)).long()]
        return torch.where(editable, drawn, xt)


def _inside(tokens, vocab: int, name: str):
    for token in tokens:
        if not 0 <= token < vocab:
            raise ValueError(f"{name} must hold token ids in [0, {vocab}), got {token}")
        yield int(token)
