"""What a tokenizer tells of its rows: special tokens, what stands around a text, and what separates two."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from transformers import AutoTokenizer
from transformers.utils.hub import cached_file

from .common import read_object

LOCATION_ARGUMENTS = ("cache_dir", "revision", "token", "local_files_only", "force_download", "subfolder")
"""Arguments of from_pretrained that say where a file is to be found."""

_MOST_ROWS = 1 << 26
"""Rows of an embedding at most."""

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "vocab.json")


_TEXT_MARKS = ("\u2581", "\u0120")
"""What stands for a space in the tokens of SentencePiece and of byte-level BPE."""


def has_file(path, name: str, **where) -> bool:
    """Whether the model repository or directory holds this file."""
    found = cached_file(
        path,
        name,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
        **where,
    )
    return found is not None


def report_share(path) -> float:
    """The largest corrupted share of a row in the training of a model, below 1 of a repairer; 1 where it is not known.

    From the report.json beside it, in its folder or in the cache: no network is asked.
    """
    missing = dict.fromkeys(("_raise_exceptions_for_missing_entries", "_raise_exceptions_for_connection_errors"), False)
    try:
        found = cached_file(path, "report.json", local_files_only=True, **missing) if path else None
        share = 1.0 if found is None else read_object(found).get("max_corruption", 1.0)
    except (OSError, ValueError):  # what it is worth is said by who reads all of it
        return 1.0
    return float(share) if isinstance(share, int | float) else 1.0


@contextmanager
def untrusted(path: Any) -> Iterator[None]:
    """Within it, what cannot be loaded without running code that lies beside it raises ValueError of one sentence.

    For calls with `trust_remote_code` at True or False: at None transformers would ask on stdin.
    """
    try:
        yield
    except ValueError as error:
        if "trust_remote_code=True" not in str(error):
            raise
        raise ValueError(
            f"{path} holds Python code of its own, which would have to run for it to be loaded: read it, and if you "
            "trust it, give trust_remote_code=True (the command: --trust-remote-code)"
        ) from error


@contextmanager
def beside(path: Any, **where: Any) -> Iterator[None]:
    """Within it, a tokenizer that cannot be loaded since the model at `path` has none beside it raises ValueError of
    one sentence. where: of `has_file`."""
    try:
        yield
    except (OSError, ValueError) as error:
        files = ("config.json", *_TOKENIZER_FILES)
        there = "tokenizer" in str(error) and [name for name in files if has_file(path, name, **where)]
        if there != ["config.json"]:
            raise
        raise ValueError(f"{path} holds no tokenizer: save the model's own beside it") from error


def load_tokenizer(path: Any, trust_remote_code: bool | None = None, **where: Any):
    """The tokenizer of a repository or directory. Code of its own runs only if that is asked for; nothing is asked."""
    with untrusted(path), beside(path, **where):
        return AutoTokenizer.from_pretrained(path, trust_remote_code=bool(trust_remote_code), **where)


def find_tokenizer(path: Any, trust_remote_code: bool | None = None, **where: Any) -> Any:
    """The tokenizer beside a model, or None: AutoTokenizer would make an empty one out of the model type alone."""
    if not any(has_file(path, name, **where) for name in _TOKENIZER_FILES):
        return None
    return load_tokenizer(path, trust_remote_code, **where)


def tokenizer_fields(tokenizer, vocab_size: int | None = None, **where: Any) -> dict[str, Any]:
    """What a UDMConfig takes from a tokenizer: the special tokens and what it puts around a row.

    Args:
        tokenizer: a tokenizer, or the name or path of one; {} where there is none at that place.
        vocab_size: rows of the backbone's embedding; rows beyond the tokenizer count as special.
        where: `revision`, `cache_dir`, `token`, ... for a name on the Hub, and `trust_remote_code`.
    """
    if not hasattr(tokenizer, "all_special_ids"):
        tokenizer = find_tokenizer(tokenizer, **where)
        if tokenizer is None:
            return {}
    if vocab_size is not None and not (isinstance(vocab_size, int) and vocab_size <= _MOST_ROWS):
        raise ValueError(f"vocab_size must be an integer up to {_MOST_ROWS}, got {vocab_size!r}")
    special = set(tokenizer.all_special_ids)
    if vocab_size is not None:
        special.update(range(len(tokenizer), vocab_size))
    prefix, suffix = tokenizer_frame(tokenizer)
    return {
        "mask_token_id": tokenizer.mask_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "special_token_ids": sorted(special),
        "prefix_token_ids": prefix,
        "suffix_token_ids": suffix,
    }


def tokenizer_frame(tokenizer) -> tuple[list[int], list[int]]:
    """The tokens that a tokenizer puts before and behind a row, as ([CLS], [SEP])."""
    for text, bare in _samples(tokenizer):
        framed = list(tokenizer(text)["input_ids"])
        if (start := _find(framed, bare)) is not None:
            return framed[:start], framed[start + len(bare) :]
    return [], []


def tokenizer_separator(tokenizer) -> list[int]:
    """What a tokenizer puts between a pair of texts, as [SEP]; its sep_token where it puts no special token there."""
    special = set(tokenizer.all_special_ids)
    for text, bare in _samples(tokenizer):
        pair = list(tokenizer(text, text)["input_ids"])
        if (start := _find(pair, bare)) is None:
            continue
        behind = pair[start + len(bare) :]
        if (end := _find(behind, bare)) is not None and end and special.issuperset(behind[:end]):
            return behind[:end]
        break
    if tokenizer.sep_token_id is None:
        raise ValueError(
            "rows of prompt and answer need a separator, and the tokenizer has no sep_token; add one by "
            "tokenizer.add_special_tokens({'sep_token': '[SEP]'}) and save it"
        )
    return [tokenizer.sep_token_id]


def continuation_tokens(tokenizer, vocab_size: int | None = None) -> list[int]:
    """The ids of the tokens that continue a word, and so begin no text; [] where tokens do not tell.

    They tell where a word's pieces carry a mark (## of WordPiece), or where its first piece does and so does every text
    (\u2581 of SentencePiece): then those without it. vocab_size: of the model, if it may have fewer tokens.
    """
    vocabulary, special = tokenizer.get_vocab(), set(tokenizer.all_special_ids)
    ordinary = {token: i for token, i in vocabulary.items() if i not in special}
    core = tokenizer.backend_tokenizer.model if tokenizer.is_fast else None
    inside = getattr(core, "continuing_subword_prefix", None) or "##"
    marked = [token for token in ordinary if token.startswith(inside) and len(token) > len(inside)]
    twice = ((token, tokenizer.decode([ordinary[token]] * 2)) for token in marked[:20])
    if any(said.endswith(token + token[len(inside) :]) for token, said in twice):
        found = marked  # and not tokens that happen to be written so
    else:
        bare = [ids[0] for _, ids in _samples(tokenizer) if ids[0] not in special]
        heads = tokenizer.convert_ids_to_tokens(bare)
        mark = next((mark for mark in _TEXT_MARKS if heads and all(head.startswith(mark) for head in heads)), None)
        found = [] if mark is None else [token for token in ordinary if not token.startswith(mark)]
    if len(found) == len(ordinary):
        return []
    return sorted(ordinary[token] for token in found if vocab_size is None or ordinary[token] < vocab_size)


def _samples(tokenizer) -> Iterable[tuple[str, list[int]]]:
    """Short texts and the tokens they are, without what a tokenizer puts around them."""
    special = set(tokenizer.all_special_ids)
    ordinary = (i for i in range(len(tokenizer)) if i not in special)
    for text in ("a", "A", *(tokenizer.decode([i]) for _, i in zip(range(100), ordinary, strict=False))):
        bare = list(tokenizer(text, add_special_tokens=False)["input_ids"])
        if bare:  # a tokenizer without [UNK] makes nothing of characters that it does not know
            yield text, bare


def _find(row: list[int], part: list[int]) -> int | None:
    return next((i for i in range(len(row) - len(part) + 1) if row[i : i + len(part)] == part), None)
