"""What a text model is trained on: rows of tokens, t of them corrupted, and the bound as the measure of progress."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..common import choices
from ..corpus.rows import collate
from ..devices import Sent
from ..evaluation.bounds import PAIRS_SEED, length_nats, ratio_with_stderr, row_draws, scored_rows, summarise
from ..objectives import (
    GEOMETRIC,
    LOSS_WEIGHTINGS,
    LOSSES,
    TIME_LAWS,
    most_corrupted,
    row_losses,
    said,
    stratified_counts,
    take_noisy,
    training_weights,
)
from ..randomness import RowRandom, step_random
from .blanks import BLANKS_SEED, WithQuestions, ask_widths, asked_rows
from .distillation import WithTeacher, check_teacher
from .packing import packed_predict

DROP_SEED = 0x44524F5000000000
"""Distinguishes the seed of which prompts are hidden from that of the noise."""
_STRATA = 0x5354524154410000
"""Distinguishes the seed of the stratification of t from that of the noise."""
_LENGTH_BLOCK = 8
"""Rows before a compiled model are padded to a multiple of so many tokens."""
_FIGURES = ("nelbo_nats_per_token", "bits_per_char", "perplexity_bound")


def check_loss(
    loss: str,
    max_corruption: float,
    loss_chunk: int | None,
    loss_weighting: str | None = "bound",
    time_law: str | None = "uniform",
) -> None:
    """Raises ValueError for arguments of `TextObjective` that no model can be trained with."""
    for name, given, known in (
        ("loss_weighting", loss_weighting, LOSS_WEIGHTINGS),
        ("time_law", time_law, (*TIME_LAWS, GEOMETRIC)),
    ):
        if given is not None and given not in known:
            raise ValueError(f"{name} must be {choices(known)}, got {given!r}")
    if loss not in LOSSES:
        raise ValueError(f"loss must be {choices(LOSSES)}, got {loss!r}")
    if not 0.0 < max_corruption <= 1.0:
        raise ValueError(f"max_corruption must lie in (0, 1], got {max_corruption}")
    if max_corruption == 1.0 and time_law == GEOMETRIC:
        raise ValueError("time_law 'geometric' is of few errors in a row: it goes with max_corruption below 1")
    if max_corruption < 1.0 and loss != "cross_entropy":
        raise ValueError("max_corruption below 1 goes with loss 'cross_entropy': the NELBO is a sum over all counts")
    if loss_chunk is not None and loss_chunk < 1:
        raise ValueError(f"loss_chunk must be at least 1, got {loss_chunk}")


def collate_counted(rows: Sequence[dict[str, Any]], **how: Any) -> dict[str, Any]:
    """A batch of `collate`, and "num_editable", a number of the host for each row: no device is asked for it."""
    batch: dict[str, Any] = collate(rows, **how)
    return {**batch, "num_editable": batch["editable"].sum(dim=1).tolist()}


class TextObjective:
    """An `Objective` (see trainer.py) for `UDMForMaskedGeneration`: rows with "input_ids".

    The terms are nats, (l/t) sum over the corrupted positions of CE; the items are editable tokens, so the loss is in
    nats per token. Of a model that writes whole rows the terms are -log q(x0 | xt), each t as likely.

    Args:
        config: the model's `UDMConfig`.
        loss: "cross_entropy" or "nelbo" (they differ for the substitute process only, see `objectives.row_losses`).
        max_corruption: largest share of a row that is corrupted in training, in (0, 1]. Below 1 the model becomes a
            repairer of texts that may be right already: t is drawn from 0 on. Process "edit" needs that; its terms are
            the nats of one edit back, or of stopping.
        noisy_share: of rows with "noisy_ids", how many in a step, each by a draw of its own, stand corrupted as these
            have them in place of by the process. Their t is the number of tokens that differ, and a token that is
            special or unknown in either row is not scored. Of process "edit" t is the fewest edits between them.
        loss_chunk: rows of logits that are held at a time in training; None: all. Less memory, the same loss.
        loss_weighting: of a row with t of l corrupted positions in training: "bound", l/t; "sqrt", (l/t)^0.5; "mean",
            1 (`objectives.LOSS_WEIGHTINGS`). But for "bound" the training loss is a weighted mean of cross-entropies
            and estimates no bound, so it goes with losses that do otherwise. None: what the process learns most by.
        time_law: that training draws t by, one of `objectives.TIME_LAWS`, or of a repairer "geometric"; None: what the
            process learns most by. Evaluation knows nothing of either.
        eval_draws, eval_batch_size: corruptions of each row in an evaluation; rows of a forward pass there.
        teacher: a `UDMForMaskedGeneration` of the same process and vocabulary, from whose laws the model learns, too
            (distillation.py); it is not changed, and no part of the model. None: there is none.
        teacher_weight: in (0, 1], the share of the terms that is KL(teacher | model); the rest is the loss of the data.
    """

    def __init__(
        self,
        config,
        *,
        loss: str = "cross_entropy",
        max_corruption: float = 1.0,
        eval_draws: int = 2,
        eval_batch_size: int = 64,
        loss_chunk: int | None = None,
        noisy_share: float = 0.0,
        loss_weighting: str | None = "bound",
        time_law: str | None = "uniform",
        teacher: Any = None,
        teacher_weight: float = 0.5,
    ):
        check_loss(loss, max_corruption, loss_chunk, loss_weighting, time_law)
        if eval_draws < 1:
            raise ValueError(f"eval_draws must be at least 1, got {eval_draws}")
        self.config, self.process = config, config.build_process()
        self.process.check_training(loss, max_corruption, loss_chunk)
        if not 0.0 <= noisy_share <= 1.0:
            raise ValueError(f"noisy_share must lie in [0, 1], got {noisy_share}")
        if noisy_share and "max_edits" not in self.process.generation_options:
            raise ValueError(
                "noisy texts train a repairer, which needs process 'substitute' or 'edit', and this model has process "
                f"{config.process!r}"
            )
        if noisy_share and loss != "cross_entropy":
            raise ValueError("noisy texts go with loss 'cross_entropy': the NELBO is of the noise of the process alone")
        if loss_weighting not in (None, "bound") and loss != "nelbo" and (self.process.kernels or self.process.edits):
            instead = "leave it out" if self.process.edits else "give loss 'nelbo' or leave it out"
            raise ValueError(
                f"loss_weighting={loss_weighting!r} changes the weights of a bound, and loss {loss!r} of process "
                f"{config.process!r} is none: {instead}"
            )
        if not 0.0 < teacher_weight <= 1.0:
            raise ValueError(f"teacher_weight must lie in (0, 1], got {teacher_weight}")
        if teacher is not None:
            check_teacher(config, teacher.config)
            if loss_chunk is not None:
                raise ValueError(
                    "loss_chunk keeps no logits, and a teacher's are compared with them: leave it out with a teacher"
                )
        self.teacher, self.teacher_weight = teacher, teacher_weight
        own_weighting, own_law = self.process.training
        self.loss_weighting = own_weighting if loss_weighting is None else loss_weighting
        self.time_law = own_law if time_law is None else time_law
        self.noisy_share = noisy_share
        self._forbidden = Sent(config.forbidden_tokens())
        self.loss_chunk = loss_chunk
        self.loss, self.max_corruption = loss, max_corruption
        self.eval_draws, self.eval_batch_size = eval_draws, eval_batch_size
        self.pack_length: int | None = None  # tokens of the sequences that rows share in training, see packing.py
        self.collate: Callable[[Sequence[dict[str, Any]]], dict[str, Any]] = partial(
            collate_counted, pad_token_id=config.pad_token_id, editable=config.editable
        )

    @property
    def loss_is_bound(self) -> bool:
        """Whether the loss of training estimates the bound, lengths of rows not counted."""
        if self.config.blank_widths is not None or self.process.edits:  # widths of blanks are part of it, or no text
            return False
        if self.teacher is not None:
            return False
        if (self.loss_weighting, self.time_law) != ("bound", "uniform") or self.config.writes_rows:
            return False
        return self.loss == "nelbo" or not self.process.kernels

    def begin(self) -> None:
        """The step curve goes: it was measured on the weights before."""
        self.config.step_curve = None

    def lengths(self, dataset) -> list[int]:
        """Tokens of each row, to group rows of like length."""
        columns = getattr(dataset, "column_names", None)
        return [len(ids) for ids in (dataset["input_ids"] if columns else (row["input_ids"] for row in dataset))]

    def num_items(self, inputs: dict[str, Any]) -> Tensor:
        """() int64: editable tokens of the batch."""
        return inputs["editable"].sum()

    def row_terms(
        self, model, inputs: dict[str, Any], *, row_index: Tensor, total: int, step: int, seed: int
    ) -> Tensor:
        """(B,) nats of each row: corrupt t of its l editable positions, predict, weigh as `row_losses` says.

        Where the model has a width head, the nats of the width of a blank in the clean row are added (blanks.py).

        inputs: of `collate_counted`. "num_editable" in them, l of each row as numbers of the host, spares reading it.
        """
        x0, mask = inputs["input_ids"], inputs["attention_mask"]
        editable = inputs["editable"]
        (forbidden,) = self._forbidden(x0.device)
        places, row_index = row_index, row_index.to(x0.device, non_blocking=True)
        dropping = step_random(seed ^ DROP_SEED, step, row_index)
        x0 = drop_prompts(x0, editable, forbidden, dropping, self.config.prompt_dropout, self.config.mask_token_id)
        noisy, paired = None, None
        if self.noisy_share and "noisy_ids" in inputs:
            paired = step_random(seed ^ PAIRS_SEED, step, row_index).uniform(1)[:, 0] < self.noisy_share
            noisy, editable = take_noisy(self.process, inputs, x0, editable, forbidden, paired)
        counts = None if paired is not None else inputs.get("num_editable")
        if counts is None:
            counts = editable.sum(dim=1).tolist()
        steady = is_compiled(model)
        predict: Callable[..., Tensor] = partial(_predict, model, mask, self.config if steady else None)
        if self.pack_length is not None:
            attention = self.config.text_config._attn_implementation
            predict = packed_predict(model, self.config, mask, self.pack_length, attention)
        asked: WithQuestions | None = None
        if self.config.blank_widths is not None:
            some = torch.tensor(asked_rows(places.tolist(), step), dtype=torch.int64).to(x0.device, non_blocking=True)
            drawing = step_random(seed ^ BLANKS_SEED, step, row_index[some])
            questions = ask_widths(self.config, x0[some], mask[some].bool(), editable[some], drawing)
            reading = partial(_read, model, config=self.config if steady else None)
            predict = asked = WithQuestions(self.config, reading, mask, questions, some)
        taught: WithTeacher | None = None
        if self.teacher is not None:
            self.teacher.to(x0.device)
            predict = taught = WithTeacher(predict, self.teacher, mask, editable, self.process, forbidden)
        least = 0 if self.max_corruption < 1.0 else 1
        # on the host, which so knows how many positions there are
        most = most_corrupted(torch.tensor(counts).clamp(min=1), self.max_corruption)
        drawn = self.draw_counts(most + 1 - least, places.cpu() % total, total, seed, step) - 1 + least
        terms = row_losses(
            predict,
            self.process,
            x0,
            editable,
            drawn.to(x0.device, non_blocking=True),
            step_random(seed, step, row_index),
            forbidden,
            loss=self.loss,
            kernel=self.config.kernel,
            chunk=self.loss_chunk,
            noisy=noisy,
            paired=paired,
            known=None if paired is not None else (drawn.tolist(), counts),
            steady=steady,
            attention_mask=mask,
        )
        if taught is not None:
            terms = (1.0 - self.teacher_weight) * terms + self.teacher_weight * taught.nats().to(terms.dtype)
        weights = self.row_weights(drawn, torch.tensor(counts))
        if weights is not None:
            terms = terms * weights.to(terms.device, terms.dtype, non_blocking=True)
        return terms if asked is None else terms + asked.nats().to(terms.dtype)

    def draw_counts(self, lengths: Tensor, stratum: Tensor, total: int, seed: int, step: int) -> Tensor:
        """(B,) int64 on the host, in 1..l: t of each row, see `stratified_counts`."""
        return stratified_counts(lengths, stratum, total, seed ^ _STRATA, step, self.time_law)

    def row_weights(self, t: Tensor, lengths: Tensor) -> Tensor | None:
        """(B,) float64, what terms are multiplied by for their t, (B,); None: nothing."""
        if self.loss_weighting == "bound":
            return None
        return training_weights(t, lengths, self.loss_weighting, self.time_law)

    def evaluate(self, trainer, dataset) -> dict[str, float]:
        """The bound on `dataset` with one fixed seed, so that checkpoints compare; processes share the rows.

        Of a repairer (max_corruption below 1, or noisy texts), which is no model of texts, the training loss in its
        place: of the noise of the process, or of as many noisy texts as in training.
        """
        config = self.config
        index, rows = scored_rows(config, dataset)
        how: dict[str, Any] = {"draws": self.eval_draws, "seed": 0, "kernel": config.kernel}
        mine = trainer.own_rows(len(rows))
        chosen, indices = [rows[i] for i in mine], [index[i] for i in mine]
        share = self.noisy_share if "noisy_ids" in rows[0] else 0.0
        repairs = self.max_corruption < 1.0 or share > 0.0
        goal: dict[str, Any] = {}
        if repairs:
            goal = {"loss": self.loss, "max_corruption": self.max_corruption, "noisy_share": share}
        own = row_draws(trainer.model, chosen, indices, batch_size=self.eval_batch_size, **how, **goal)
        nats = trainer.gather_rows(own.nats.mean(dim=1), mine, len(rows))
        if repairs:
            lengths = torch.tensor(config.count_editable(row["input_ids"] for row in rows), dtype=torch.float64)
            loss, error = ratio_with_stderr(nats, lengths)
            return {"loss": loss, "loss_stderr": error}
        lengths = length_nats(trainer.model, chosen, batch_size=self.eval_batch_size)
        report = summarise(config, rows, nats, trainer.gather_rows(lengths, mine, len(rows)), **how)
        figures = {name: getattr(report, name) for name in (*_FIGURES, *(f"{name}_stderr" for name in _FIGURES))}
        return {name: value for name, value in figures.items() if value is not None} | {
            "loss": report.nelbo_nats_per_token,
            "length_nats_per_token": report.length_nats_per_token,
        }


def is_compiled(model: Any) -> bool:
    """Whether a model, or a module of it, runs under torch.compile."""
    wrapped = torch._dynamo.OptimizedModule
    return any(isinstance(module, wrapped) or module._compiled_call_impl is not None for module in model.modules())


def _predict(model: Any, mask: Tensor, config: Any, **wanted: Any) -> Any:
    """What a model says of positions (`said`), see `_read`."""
    return said(_read(model, mask, config, **wanted))


def _read(
    model: Any,
    mask: Tensor,
    config: Any,
    *,
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    blanks: Tensor | None = None,
    **wanted: Any,
) -> Any:
    """What a model gives; of a compiled one (config is given) from rows that are padded to a few lengths.

    It is compiled once for all numbers of positions, once more where lengths vary, and once where numbers of rows do.
    attention_mask: of rows that are not those of `mask`.
    """
    mask = mask if attention_mask is None else attention_mask
    if config is not None:
        for place in (*wanted.get("positions", ()), *wanted.get("gaps", ())):
            torch._dynamo.maybe_mark_dynamic(place, 0)
        width, longest = input_ids.shape[1], config.max_row_length
        rounded = -(-width // _LENGTH_BLOCK) * _LENGTH_BLOCK
        extra = (0, (rounded if longest is None else max(width, min(rounded, longest))) - width)
        input_ids, mask = pad(input_ids, extra, value=config.pad_token_id or 0), pad(mask, extra)
        blanks = None if blanks is None else pad(blanks, extra)
        if "x0" in wanted:
            wanted["x0"] = pad(wanted["x0"], extra, value=config.pad_token_id or 0)
    marked = {} if blanks is None else {"blanks": blanks}
    return model(attention_mask=mask, input_ids=input_ids, **marked, **wanted)


def drop_prompts(
    x0: Tensor, editable: Tensor, special: Tensor, random: RowRandom, probability: float, mask_id: int | None
) -> Tensor:
    """x0 with the prompts of some rows hidden: each of their tokens, special ones apart, becomes [MASK].

    A prompt is what of a row is neither editable nor special, padding included among the special tokens. A row's prompt
    is hidden as a whole or not at all, by one number of its own; x0 itself is not changed.

    Args:
        x0: (B, L) int64. editable: (B, L) bool. special: (V,) bool, the special tokens (`config.forbidden_tokens`).
        random: the rows' source. probability: in [0, 1], that a row's prompt is hidden. mask_id: [MASK].
    """
    if not probability:
        return x0
    if mask_id is None:
        raise ValueError(
            f"prompt_dropout is {probability}, which hides prompts behind [MASK]: mask_token_id must be given"
        )
    hidden = random.uniform(1) < probability
    return x0.masked_fill(hidden & ~editable & ~special[x0], mask_id)
