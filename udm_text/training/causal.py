"""The autoregressive twin: the same backbone made causal, on the same rows, for comparison with diffusion.

Its figures are exact negative log-likelihoods where those of diffusion are bounds. A row becomes [MASK] x_1 ... x_l
[MASK]: the first stands for the beginning, the last ends the row and is scored where rows vary in length (diffusion
pays for lengths by the histogram). What diffusion does not score (prompts, special tokens) is not scored here either.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    PreTrainedConfig,
    PreTrainedModel,
)

from ..common import eval_mode, watched
from ..configuration_udm import UDMConfig
from ..cross_entropy import cross_entropy
from ..decoding import NOT_FINITE
from ..evaluation.bounds import BoundReport, row_figures, scored_rows

PROCESS = "autoregressive"
"""What a report says in place of a process."""

MASKED_TWINS = ("nomic_bert",)
"""Backbones without a causal class that take the mask (B, 1, L, L) that they are given as it is."""


def causal_twin(config: UDMConfig) -> PreTrainedModel:
    """A causal language model, with new weights, of the same class, sizes and number of parameters.

    Where transformers has no causal class for the backbone, it is the masked language model itself, and what makes it
    causal is the mask that `CausalObjective` gives it.
    """
    text_config = copy.deepcopy(config.text_config)
    text_config.is_decoder = True
    if not knows_causal(text_config):
        if text_config.model_type not in MASKED_TWINS:
            raise ValueError(
                f"objective 'ar' needs a backbone that can be made causal, such as bert, roberta or nomic_bert; got "
                f"{text_config.model_type!r}"
            )
        text_config.max_position_embeddings += 2
        return AutoModelForMaskedLM.from_config(text_config)
    text_config.use_cache = False
    if text_config.max_position_embeddings:
        text_config.max_position_embeddings += 2  # [MASK] before and behind a row
    return AutoModelForCausalLM.from_config(text_config)


def load_twin(path: Path | str) -> PreTrainedModel:
    """A twin as training wrote it."""
    kind = AutoModelForCausalLM if knows_causal(AutoConfig.from_pretrained(path)) else AutoModelForMaskedLM
    return kind.from_pretrained(path)


def knows_causal(text_config: PreTrainedConfig) -> bool:
    """Whether transformers has a causal class for the backbone that attends to what came before by itself."""
    return type(text_config) in MODEL_FOR_CAUSAL_LM_MAPPING and hasattr(type(text_config), "is_decoder")


def causal_mask(attention_mask: Tensor, dtype: torch.dtype) -> Tensor:
    """(B, 1, L, L) to be added to scores: each token sees itself and what stands before it. attention_mask: (B, L)."""
    length = attention_mask.shape[1]
    past = torch.ones(length, length, dtype=torch.bool, device=attention_mask.device).tril()
    seen = past & attention_mask[:, None, None, :].bool()
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill(~seen, torch.finfo(dtype).min)


class CausalCollate:
    """Rows -> input_ids, attention_mask and labels (B, L + 1): labels[i] is the token that follows input_ids[i].

    config: the `UDMConfig` that a diffusion model of these rows would have. ends: whether a row's end is predicted.
    """

    def __init__(self, config: UDMConfig, ends: bool):
        self.config, self.ends = config, ends
        self.before, self.behind = list(config.prefix_token_ids or []), list(config.suffix_token_ids or [])

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        mask_id, pad_id = self.config.mask_token_id, self.config.pad_token_id or 0
        inputs, labels = [], []
        for row in rows:
            ids = row["input_ids"].tolist() if hasattr(row["input_ids"], "tolist") else list(row["input_ids"])
            whole = torch.tensor([ids])
            editable = self.config.editable(whole, torch.ones_like(whole))[0].tolist()
            if self.behind and ids[-len(self.behind) :] == self.behind:
                ids = ids[: -len(self.behind)]
            start = len(self.before) if self.before and ids[: len(self.before)] == self.before else 0
            ids, scored = ids[start:], editable[start:]
            inputs.append([mask_id, *ids])
            labels.append([token if open_ else -100 for token, open_ in zip(ids, scored, strict=False)])
            labels[-1].append(mask_id if self.ends else -100)
        width = max(map(len, inputs))
        fill = [pad_id] * width
        return {
            "input_ids": torch.tensor([[*x, *fill[len(x) :]] for x in inputs]),
            "attention_mask": (torch.arange(width) < torch.tensor([[len(x)] for x in inputs])).long(),
            "labels": torch.tensor([[*x, *[-100] * (width - len(x))] for x in labels]),
        }


class CausalObjective:
    """An `Objective` (see trainer.py) of exact negative log-likelihood, in nats per token as diffusion's bound.

    Args:
        config: the `UDMConfig` that a diffusion model of these rows would have.
        eval_batch_size: rows of a forward pass in evaluation.
    """

    def __init__(self, config: UDMConfig, eval_batch_size: int = 64):
        if config.mask_token_id is None:
            raise ValueError("objective 'ar' needs mask_token_id, which stands at both ends of a row")
        self.config, self.eval_batch_size = config, eval_batch_size
        self.end_token: int = config.mask_token_id
        self.knows_causal = knows_causal(config.text_config)
        self.ends = sum(count > 0 for count in config.length_counts or [1, 1]) > 1
        self.collate = CausalCollate(config, self.ends)

    loss_is_bound = True
    """Whether the loss of training is what is measured; here it counts the ends of rows, as the measure does."""

    def begin(self) -> None:
        """Nothing was measured on the weights before."""

    def lengths(self, dataset) -> list[int]:
        columns = getattr(dataset, "column_names", None)
        return [len(ids) for ids in (dataset["input_ids"] if columns else (row["input_ids"] for row in dataset))]

    def num_items(self, inputs: dict[str, Tensor]) -> Tensor:
        """() int64: tokens that are scored, ends of rows not counted."""
        labels = inputs["labels"]
        return (labels.ne(-100) & labels.ne(self.end_token)).sum()

    def row_terms(
        self, model, inputs: dict[str, Tensor], *, row_index: Tensor, total: int, step: int, seed: int
    ) -> Tensor:
        """(B,) nats of each row; there is no noise."""
        return self.token_nats(model, inputs).sum(dim=1)

    def token_nats(self, model, inputs: dict[str, Tensor]) -> Tensor:
        """(B, L) float32: -log p of each label given all tokens before it, zero where there is none."""
        labels = inputs["labels"]
        forbidden = self.config.forbidden_tokens(labels.device).clone()
        forbidden[self.end_token] = not self.ends
        mask = inputs["attention_mask"]
        if not self.knows_causal:
            mask = causal_mask(mask, next(model.parameters()).dtype)
        logits = model(input_ids=inputs["input_ids"], attention_mask=mask).logits
        nats = cross_entropy(logits.flatten(0, 1), labels.clamp(min=0).flatten(), forbidden).view(labels.shape)
        return nats.masked_fill(labels == -100, 0.0)

    @torch.no_grad()
    def row_nats(self, model, rows: Sequence[dict[str, Any]]) -> Tensor:
        """(R, 2) float64: nats of each row's tokens, and of its end.

        Raises:
            ValueError: where the logits of the network are no law (`NOT_FINITE`).
        """
        device = model.get_input_embeddings().weight.device
        nats = torch.zeros(len(rows), 2, dtype=torch.float64)
        by_length = sorted(range(len(rows)), key=lambda i: len(rows[i]["input_ids"]))
        with eval_mode(model):
            for start in watched(range(0, len(rows), self.eval_batch_size), "held-out rows"):
                chosen = by_length[start : start + self.eval_batch_size]
                batch = {name: x.to(device) for name, x in self.collate([rows[i] for i in chosen]).items()}
                each = self.token_nats(model, batch).double()
                end = batch["labels"] == self.end_token
                nats[chosen] = torch.stack(((each * ~end).sum(1), (each * end).sum(1)), dim=1).cpu()
        if bool(nats.isnan().any()):
            raise ValueError(NOT_FINITE)
        return nats

    def report(self, rows: Sequence[dict[str, Any]], nats: Tensor) -> BoundReport:
        """The figures in the fields of a bound. nats: (R, 2) of `row_nats`."""
        tokens = torch.tensor(self.config.count_editable(row["input_ids"] for row in rows), dtype=torch.float64)
        return BoundReport(
            **row_figures(rows, tokens, nats.sum(dim=1), nats[:, 1]),
            length_included=True,
            process=PROCESS,
            kernel=None,
            draws=1,
            seed=0,
        )

    def evaluate(self, trainer, dataset) -> dict[str, float]:
        _, rows = scored_rows(self.config, dataset)
        mine = trainer.own_rows(len(rows))
        own = self.row_nats(trainer.model, [rows[i] for i in mine])
        nats = torch.stack([trainer.gather_rows(own[:, column], mine, len(rows)) for column in (0, 1)], dim=1)
        found = self.report(rows, nats)
        figures = {
            name: getattr(found, name)
            for stem in ("nelbo_nats_per_token", "bits_per_char", "perplexity_bound")
            for name in (stem, f"{stem}_stderr")
        }
        return {name: value for name, value in figures.items() if value is not None} | {
            "loss": found.nelbo_nats_per_token
        }


def evaluate_causal(model, rows, objective: CausalObjective) -> dict[str, Any]:
    """The exact negative log-likelihood of rows, as the dict of a `BoundReport` with "exact" set."""
    _, kept = scored_rows(objective.config, rows)
    return objective.report(kept, objective.row_nats(model, kept)).to_dict() | {"exact": True}
