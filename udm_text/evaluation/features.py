"""Texts as vectors of a language model's hidden states, and MAUVE, which compares two collections of them.

MAUVE (Pillutla et al. 2102.01454) quantises the vectors of both collections together, in a tenth as many cells as there
are texts, and is the area under the curve of the two divergences from their mixtures: near 1 where both are alike, near
0 where they share no cell. It is that of the package mauve-text (`pip install 'udm-text[metrics]'`), which is under the
GPL; the vectors are ours, since the package takes models by a few names alone.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..common import eval_mode, watched
from ..configuration_udm import longest_readable_row

SEED = 25
"""Of the cells: that of the package."""


def check_package() -> None:
    """Raises ValueError where the package of MAUVE is not there."""
    if importlib.util.find_spec("mauve") is None:
        raise ValueError("MAUVE needs the package mauve-text: pip install 'udm-text[metrics]'")


def check_vocabulary(model: Any, tokenizer: Any, name: str) -> None:
    """Raises ValueError where a tokenizer has a token for which the model has no embedding.

    name: of the argument that gave both, with what was given.
    """
    known = model.get_input_embeddings().num_embeddings
    size = max(len(tokenizer), max(tokenizer.get_vocab().values(), default=-1) + 1)
    if size > known:
        raise ValueError(f"{name}: its tokenizer has {size} tokens and the model {known}: they are of two models")


def encoder_of(model: Any) -> Any:
    """The encoder of an encoder-decoder, whose states are those of a text that is read; any other model itself."""
    return model.get_encoder() if model.config.is_encoder_decoder else model


@torch.no_grad()
def check_featuriser(model: Any, tokenizer: Any, name: str = "featuriser") -> None:
    """Raises ValueError for a model that gives no states of a text: of another vocabulary, or not of tokens alone.

    name: of the argument that gave it, with what was given.
    """
    try:
        check_vocabulary(model, tokenizer, name)
        device = model.get_input_embeddings().weight.device
        tokens = torch.zeros(1, 2, dtype=torch.int64, device=device)
        with eval_mode(model):
            states = model(input_ids=tokens, attention_mask=torch.ones_like(tokens)).last_hidden_state
    except (AttributeError, NotImplementedError, TypeError) as error:
        raise ValueError(f"{name}: it gives no hidden states of tokens alone, so it compares no texts") from error
    if states.shape[:2] != tokens.shape:
        raise ValueError(f"{name}: it gives no hidden state for each token, so it compares no texts")


def count_cut(model: Any, tokenizer: Any, texts: Sequence[str]) -> int:
    """How many of some texts have more tokens than a model reads, so that `text_features` cuts them."""
    limit = longest_readable_row(model.config)
    return 0 if limit is None else sum(len(ids) > limit for ids in tokenizer(list(texts), verbose=False)["input_ids"])


@torch.no_grad()
def text_features(model: Any, tokenizer: Any, texts: Sequence[str], batch_size: int = 16) -> Tensor:
    """(R, H) float32 on the CPU: the last hidden state of a model at the last token of each text.

    A text without a token has the vector 0. Texts longer than the model reads are cut at their end (`count_cut`).

    Args:
        model: of `AutoModel`. tokenizer: its own.
    """
    limit = longest_readable_row(model.config)
    device = model.get_input_embeddings().weight.device
    rows = [torch.tensor(ids[:limit], dtype=torch.int64) for ids in tokenizer(list(texts), verbose=False)["input_ids"]]
    order = sorted((i for i in range(len(rows)) if len(rows[i])), key=lambda i: len(rows[i]))
    pad = torch.nn.utils.rnn.pad_sequence
    found: dict[int, Tensor] = {}
    with eval_mode(model):
        for start in watched(range(0, len(order), batch_size), "features"):
            chosen = order[start : start + batch_size]
            lengths = torch.tensor([len(rows[i]) for i in chosen])
            tokens = pad([rows[i] for i in chosen], batch_first=True).to(device)
            mask = (torch.arange(tokens.shape[1]) < lengths[:, None]).long().to(device)
            states = model(input_ids=tokens, attention_mask=mask).last_hidden_state.float().cpu()
            found |= dict(zip(chosen, states[torch.arange(len(chosen)), lengths - 1], strict=True))
    width = len(next(iter(found.values()))) if found else 1
    return torch.stack([found.get(i, torch.zeros(width)) for i in range(len(rows))])


def mauve(model: Any, tokenizer: Any, collections: Sequence[Sequence[str]], reference: Sequence[str]) -> list[float]:
    """MAUVE of each collection of texts against reference texts, in [0, 1]; it falls with the number of texts.

    Args:
        model, tokenizer: of `text_features`. collections: of as many texts each as there are reference texts.

    Raises:
        ValueError: there is no package for it; a collection has another number of texts; there are fewer than two.
    """
    check_package()
    if len(reference) < 2 or any(len(texts) != len(reference) for texts in collections):
        sizes = [len(texts) for texts in collections]
        raise ValueError(
            f"collections must have as many texts as reference, at least 2, got {sizes} and {len(reference)}"
        )
    from mauve import compute_mauve

    others = text_features(model, tokenizer, reference).numpy()
    scores = []
    for texts in collections:
        own = text_features(model, tokenizer, texts).numpy()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            result = compute_mauve(p_features=own, q_features=others, seed=SEED, verbose=False)
        scores.append(float(result.mauve))
    return scores
