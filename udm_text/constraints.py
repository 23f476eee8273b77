"""What may be drawn at a position: never a special or forbidden token, only tokens of its own set where it has one.

Constraints act on the logits, before softmax, temperature and truncation, so what is left is renormalised. A classifier
weighs what they leave.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .common import takes
from .decoding import NOT_FINITE, log_probabilities
from .devices import reads_are_free
from .inputs import GenerationInputs
from .randomness import RowRandom

_ROWS_A_CALL = 1024
"""Rows that a classifier is asked about at a time."""


class Constraints:
    """The tokens that may stand at each position of the rows, and the user's processor and classifier.

    Args:
        model_config: a `UDMConfig`; its special tokens are forbidden everywhere.
        config: a `UDMGenerationConfig`; `forbidden_tokens`, `allowed_tokens` and `begin_suppress_tokens` are read.
        inputs: the rows.
        processor: called as processor(input_ids, scores) with the N positions in question as rows: input_ids (N, L)
            int64, the whole row xt that each of them stands in, and scores (N, V) float32; returns scores (N, V). A
            call holds any number of positions; special and forbidden tokens are taken out behind it.
        classifier: called as classifier(tokens (M, L) int64, rows (M,) int64) with rows in which a position is filled
            in, and which rows of the call they are of; returns (M,) floating, log p(y | tokens) in nats for the y that
            is wanted, -inf where that cannot be (`weighed`).

    Raises:
        ValueError: where a position is left without a token, or is not one that may change; where the logits of a
            position are no law (`NOT_FINITE`). That is found on the device: on a CPU at once, elsewhere at the end
            (`check`), so that no step waits for it.
    """

    def __init__(
        self,
        model_config,
        config,
        inputs: GenerationInputs,
        processor: Callable[..., Any] | None = None,
        classifier: Callable[..., Any] | None = None,
    ):
        if classifier is not None and not takes(classifier, 2):
            what = type(classifier).__name__
            raise ValueError(f"classifier must be callable as classifier(tokens, rows), got {what}")
        if processor is not None and not takes(processor, 2):
            what = type(processor).__name__
            raise ValueError(f"logits_processor must be callable as processor(input_ids, scores), got {what}")
        device, vocab, width = inputs.tokens.device, model_config.vocab_size, inputs.tokens.shape[1]
        self.processor, self.classifier = processor, classifier
        self.scale = float(config.classifier_scale)
        forbidden = model_config.forbidden_tokens(device)
        for token in _inside(config.forbidden_tokens or [], vocab, "forbidden_tokens"):
            forbidden[token] = True
        sets = config.allowed_tokens or {}
        self.blocked = forbidden[None].repeat(1 + len(sets), 1)  # (1 + sets, V)
        # (B, L), the row of `blocked` that holds there
        self.set_of = torch.zeros(inputs.tokens.shape, dtype=torch.int64, device=device)
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
            self.set_of[:, position] = number
            if bool(self.blocked[number].all()):
                raise ValueError(
                    f"allowed_tokens leaves no token at position {position}: {list(tokens)} are special or forbidden"
                )
        if bool(forbidden.all()):
            raise ValueError("forbidden_tokens leaves no token: it holds the whole vocabulary")
        # What a text may not begin with is left out of `given`: no text of the data does, and their price only falls.
        self.given = bool(config.forbidden_tokens or sets)
        self.faults: dict[str, list[Tensor]] = {}  # on the device, bool
        self.reads_are_free = reads_are_free(device)
        # whether a draw of the prior may put what must not stand there; the same for a row whatever its neighbours
        self.starts_anew = bool(self.given or config.begin_suppress_tokens)
        self.candidates = vocab
        if classifier is not None:
            most = int((~forbidden).sum())
            self.candidates = most if config.classifier_candidates is None else min(most, config.classifier_candidates)
        if config.begin_suppress_tokens:
            self._suppress_at_beginnings(model_config, config.begin_suppress_tokens, inputs)

    def _suppress_at_beginnings(self, model_config, tokens, inputs: GenerationInputs) -> None:
        """Sets of their own for the positions where a text begins."""
        vocab = model_config.vocab_size
        begins = beginnings(model_config, inputs)
        suppressed = torch.zeros_like(self.forbidden)
        suppressed[torch.tensor(list(_inside(tokens, vocab, "begin_suppress_tokens")), device=begins.device)] = True
        if not bool(begins.any()):
            return
        self.set_of = self.set_of + len(self.blocked) * begins
        self.blocked = torch.cat((self.blocked, self.blocked | suppressed))
        for number in self.set_of[begins].unique().tolist():
            if bool(self.blocked[number].all()):
                column = int((begins & (self.set_of == number)).any(dim=0).nonzero()[0])
                raise ValueError(
                    f"begin_suppress_tokens leaves no token at position {column}, where a text begins: what else might "
                    "stand there is special, forbidden or not allowed; give begin_suppress_tokens=[]"
                )
        if inputs.keep_tokens:  # what was typed there may stay
            typed = (begins & suppressed[inputs.tokens] & ~self.forbidden[inputs.tokens]).nonzero().tolist()
            for row, column in typed:
                own = self.blocked[self.set_of[row, column]].clone()
                own[inputs.tokens[row, column]] = False
                self.set_of[row, column] = len(self.blocked)
                self.blocked = torch.cat((self.blocked, own[None]))

    @property
    def forbidden(self) -> Tensor:
        """(V,) bool: what is drawn nowhere."""
        return self.blocked[0]

    def __call__(self, logits: Tensor, xt: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        """(N, V): the logits, -inf at what may not be drawn.

        xt: (B * k, L), k variants of each row behind each other; rows, columns: (N,), the place of each in it.
        """
        if self.processor is not None:
            scores = self.processor(xt[rows], logits.to(torch.float32, copy=True))
            if not isinstance(scores, Tensor) or scores.shape != logits.shape or not scores.is_floating_point():
                got = f"{tuple(scores.shape)} {scores.dtype}" if isinstance(scores, Tensor) else type(scores).__name__
                raise ValueError(f"logits_processor must return scores {tuple(logits.shape)}, got {got}")
            logits = scores
        blocked = self.forbidden
        if len(self.blocked) > 1:
            variants = len(xt) // len(self.set_of)
            blocked = self.blocked[self.set_of[rows if variants == 1 else rows // variants, columns]]
        logits, best, lawless = without(logits, blocked)
        if self.processor is not None:
            self.refuse(best == -torch.inf, "logits_processor leaves no token", columns)
        self.refuse(lawless, NOT_FINITE)
        logits = logits if self.reads_are_free else logits.masked_fill_(lawless[:, None], 0.0)  # not handed out
        return self.weighed(logits, xt, rows, columns) if self.classifier is not None and self.scale else logits

    def weighed(self, logits: Tensor, xt: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        """(N, V) float64: log p_i(v) + classifier_scale log p(y | xt with v at i), -inf but for the best candidates.

        Normalised it is p_i(v | xt, y) at scale 1, by Bayes' rule, where all tokens are candidates: with the exact
        classifier one token a step samples given y. The arguments are those of a call.
        """
        assert self.classifier is not None
        best = log_probabilities(logits).topk(self.candidates, dim=-1)
        size, said = max(1, _ROWS_A_CALL // self.candidates), []
        for start in range(0, len(rows), size):
            row, column = (x[start : start + size].repeat_interleave(self.candidates) for x in (rows, columns))
            tokens = xt[row].scatter(1, column[:, None], best.indices[start : start + size].reshape(-1, 1))
            answer = self.classifier(tokens, row)
            if not isinstance(answer, Tensor) or answer.shape != row.shape or not answer.is_floating_point():
                got = f"{tuple(answer.shape)} {answer.dtype}" if isinstance(answer, Tensor) else type(answer).__name__
                raise ValueError(f"classifier must return log-probabilities {tuple(row.shape)}, got {got}")
            said.append(answer.to(torch.float64).view(-1, self.candidates))
        log_y = torch.cat(said) if said else best.values
        self.refuse((log_y.isnan() | (log_y == torch.inf)).any(dim=1), "classifier must return log-probabilities")
        joint = (best.values + self.scale * log_y).masked_fill(best.values == -torch.inf, -torch.inf)
        nothing = (joint == -torch.inf).all(dim=1)
        self.refuse(nothing, "classifier leaves no token", columns)
        joint = joint.masked_fill(nothing[:, None], 0.0)
        return joint.new_full(logits.shape, -torch.inf).scatter(1, best.indices, joint)

    def refuse(self, wrong: Tensor, message: str, columns: Tensor | None = None) -> None:
        """Raises ValueError with this message where any of `wrong` (N,) bool is true.

        On a CPU at once, and with the column (N,) of the first that is; elsewhere at the end (`check`), so that nothing
        waits for it.
        """
        if not self.reads_are_free:
            self.faults.setdefault(message, []).append(wrong.flatten())
        elif bool(wrong.any()):
            raise ValueError(message if columns is None else f"{message} at position {int(columns[wrong][0])}")

    def check(self) -> None:
        """Raises ValueError for what was met of what `refuse` refuses."""
        if self.faults:
            found = torch.stack([torch.cat(wrong).any() for wrong in self.faults.values()]).tolist()
            for message in (message for message, is_wrong in zip(self.faults, found, strict=True) if is_wrong):
                raise ValueError(message)

    def prior(self, xt: Tensor, editable: Tensor, random: RowRandom) -> Tensor:
        """xt (B, L), its editable tokens drawn anew, each uniform among those that may stand there."""
        uniforms = random.uniform(xt.shape[1])
        drawn = xt.clone()
        for number, blocked in enumerate(self.blocked):
            tokens = (~blocked).nonzero()[:, 0]
            here = self.set_of == number
            drawn[here] = tokens[(uniforms[here] * len(tokens)).long()]
        return torch.where(editable, drawn, xt)


def without(logits: Tensor, blocked: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The logits (N, V), -inf at what is `blocked` (N or 1, V) bool; the best of each (N,); whether they are no law."""
    logits = logits.masked_fill(blocked, -torch.inf)
    best = logits.amax(dim=-1)
    return logits, best, best - best != 0  # NaN and infinities are above all others, or nothing is above them


def beginnings(model_config, inputs: GenerationInputs) -> Tensor:
    """(B, L) bool: the editable positions where a text begins: what frames a row stands before them, or nothing."""
    parts = (model_config.prefix_token_ids, model_config.suffix_token_ids, model_config.separator_token_ids)
    frame = {token for part in parts for token in part or ()} | {model_config.pad_token_id} - {None}
    framing = torch.isin(inputs.tokens, torch.tensor(sorted(frame), dtype=torch.int64, device=inputs.tokens.device))
    before = torch.ones_like(inputs.editable)
    before[:, 1:] = (framing & ~inputs.editable)[:, :-1]
    return before & inputs.editable


def _inside(tokens, vocab: int, name: str):
    for token in tokens:
        if not 0 <= token < vocab:
            raise ValueError(f"{name} must hold token ids in [0, {vocab}), got {token}")
        yield int(token)
