"""The data side through one door: sources of text, tokenizers, rows and streams."""

from __future__ import annotations

from .files import CorpusError, read_lines
from .rows import ROWS, RowCutter, collate, length_counts, make_rows, vocabulary_report
from .sources import Corpus, hold_out, load_corpus, open_corpus
from .tokenizers import TOKENIZERS, fit_vocabulary, load_tokenizer, train_tokenizer

__all__ = [
    "ROWS",
    "TOKENIZERS",
    "Corpus",
    "CorpusError",
    "RowCutter",
    "collate",
    "fit_vocabulary",
    "hold_out",
    "length_counts",
    "load_corpus",
    "load_tokenizer",
    "make_rows",
    "open_corpus",
    "read_lines",
    "train_tokenizer",
    "vocabulary_report",
]
