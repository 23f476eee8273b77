"""From text to rows: reading a corpus, making a tokenizer, cutting rows of one line, of fixed length, or packed."""

from __future__ import annotations

import hashlib
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, DatasetDict, load_dataset, load_dataset_builder, load_from_disk
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from .configuration_udm import tokenizer_frame

TOKENIZERS = ("wordpiece", "char", "bpe")
ROWS = ("line", "fixed", "packed")
SPECIAL_TOKENS = {"pad_token": "[PAD]", "unk_token": "[UNK]", "mask_token": "[MASK]"}
LANDMARKS = {"cls_token": "[CLS]", "sep_token": "[SEP]"}
TABLES = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}
"""Suffixes of files that have columns, and who reads them; any other file is plain text."""


class CorpusError(ValueError):
    """The corpus cannot be used; the message names the file, and the line where there is one."""


def read_lines(path: Path) -> Iterator[str]:
    """The non-empty lines of a UTF-8 text file, without their line ends and without a byte order mark."""
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            try:
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise CorpusError(
                    f"{path}, line {number}: not valid UTF-8 (byte {error.object[error.start]:#04x}, the line's byte "
                    f"{error.start + 1}); convert the file, for example with iconv"
                ) from None
            if line := line.strip("\r\n"):
                yield line


def _plain_text(files: Iterable[Path]) -> DatasetDict:
    return DatasetDict(train=Dataset.from_dict({"text": [line for file in files for line in read_lines(file)]}))


def _load_file(path: Path) -> DatasetDict:
    kind = TABLES.get(path.suffix.lower())
    if kind is None:
        return _plain_text([path])
    if kind != "parquet":
        for _ in read_lines(path):  # so that invalid UTF-8 is reported with its line
            pass
    return load_dataset(kind, data_files={"train": str(path)})


def _load_folder(path: Path, name: str | None) -> DatasetDict:
    files = sorted(file for file in path.rglob("*") if file.is_file())
    texts = [file for file in files if file.suffix.lower() == ".txt"]
    card = path / "README.md"
    has_card = card.is_file() and card.read_bytes().startswith(b"---")  # the YAML of a `datasets` repository
    if texts and not has_card and not any(file.suffix.lower() in TABLES for file in files):
        return _plain_text(texts)
    if (path / "dataset_dict.json").is_file() or (path / "dataset_info.json").is_file():
        saved = load_from_disk(str(path))
        return saved if isinstance(saved, DatasetDict) else DatasetDict(train=saved)
    # By its files: the cache of a folder does not notice that they have changed, the cache of files does.
    builder = load_dataset_builder(str(path), name)
    if not builder.config.data_files:
        return load_dataset(str(path), name)
    reader = type(builder).__module__.rsplit(".", 1)[-1]
    return load_dataset(reader, data_files={split: list(files) for split, files in builder.config.data_files.items()})


def load_corpus(data: str, text_column: str = "text", name: str | None = None) -> DatasetDict:
    """Read a corpus into splits of a "text" column.

    Args:
        data: a text file (one row a line), a .jsonl, .json, .csv or .parquet file, a folder of text files, a folder
            that is a `datasets` repository or was written by `save_to_disk`, or the name of a data set on the Hub.
        text_column: the column that holds the text. name: configuration of a `datasets` data set.

    Returns:
        Splits as the source has them, without blank rows; a file or a folder of text files is one split, "train".

    Raises:
        CorpusError: where there is no such source, it cannot be read, or it holds no text to train on.
    """
    path = Path(data).expanduser()
    if path.is_file() and not path.stat().st_size:
        raise CorpusError(f"{path} is empty")
    is_path = path.suffix.lower() in (".txt", *TABLES) or data.startswith((".", "/", "~"))
    if is_path and not path.exists():
        raise CorpusError(f"there is no file or folder {data}")
    try:
        if path.is_file():
            splits = _load_file(path)
        else:
            splits = _load_folder(path, name) if path.is_dir() else load_dataset(data, name)
    except CorpusError:
        raise
    except Exception as error:
        what = (
            f"{path} cannot be read as a {path.suffix} file"
            if path.is_file()
            else f"{path} is neither a folder of .txt files nor a `datasets` repository"
            if path.is_dir()
            else f"{data!r} is neither a file, nor a folder, nor a data set that could be loaded"
        )
        raise CorpusError(f"{what}: {error.__cause__ or error}") from error
    for split, rows in splits.items():
        if text_column not in rows.column_names:
            raise CorpusError(
                f"{data}, split {split}: no column {text_column!r}; it has {', '.join(map(repr, rows.column_names))}"
            )
        if (kind := getattr(rows.features[text_column], "dtype", "nested")) not in ("string", "large_string", "null"):
            raise CorpusError(f"{data}, split {split}: column {text_column!r} holds no text but {kind} values")
    splits = splits.select_columns([text_column])
    splits = splits if text_column == "text" else splits.rename_column(text_column, "text")
    splits = splits.filter(lambda text: bool(text and text.strip()), input_columns="text")
    splits = DatasetDict({split: rows for split, rows in splits.items() if len(rows)})
    if "train" not in splits:
        raise CorpusError(f"{data} holds no text to train on (splits with text: {', '.join(splits) or 'none'})")
    return splits


def hold_out(splits: DatasetDict, share: float = 0.05, contiguous: bool = False) -> DatasetDict:
    """A validation split where there is none, of about `share` of the texts and one at least.

    Texts are chosen by a hash of their own, so equal texts never stand on both sides, and a text keeps its side when
    others come or go. With `contiguous` it is the end of the corpus instead: for packed rows, whose blocks join
    neighbours.
    A test split serves as validation split where there is no other.
    """
    if not 0 <= share < 1:
        raise ValueError(f"validation_share must lie in [0, 1), got {share}")
    if "validation" in splits or not share:
        return splits
    if "test" in splits:
        return DatasetDict(**{**splits, "validation": splits["test"]})
    if contiguous:
        total = len(splits["train"])
        cut = min(total - 1, round(total * (1 - share)))
        if cut < 1:
            raise CorpusError(f"{total} texts are too few to hold out a share of {share} for validation")
        train = splits["train"]
        return DatasetDict(train=train.select(range(cut)), validation=train.select(range(cut, total)))
    places = [int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") for text in splits["train"]["text"]]
    limit = max(int(share * 2**64), min(places) + 1)
    sides = {
        "train": [i for i, place in enumerate(places) if place >= limit],
        "validation": [i for i, place in enumerate(places) if place < limit],
    }
    if not sides["train"]:
        raise CorpusError(
            f"{len(places)} rows are too few to hold out a share of {share} for validation; give more text, a "
            "validation split, or validation_share=0"
        )
    return DatasetDict({side: splits["train"].select(rows) for side, rows in sides.items()})


def train_tokenizer(
    kind: str, texts: Iterable[str], vocab_size: int = 4000, *, landmarks: bool = False
) -> PreTrainedTokenizerFast:
    """A tokenizer of our own, with [PAD], [UNK], [MASK] and nothing around a row, or [CLS] and [SEP] with `landmarks`.

    Args:
        kind: "char" (characters seen in training), "wordpiece" (words split at white space, their pieces marked by ##),
            or "bpe" (byte level: any text, no unknown token).
        vocab_size: tokens at most, special tokens included.

    Returns:
        A tokenizer that depends on the texts alone: the same in every process and every run.
    """
    names = SPECIAL_TOKENS | (LANDMARKS if landmarks else {})
    special = list(names.values())
    least = len(special) + (256 if kind == "bpe" else 1)
    if vocab_size < least:
        raise ValueError(f"vocab_size must be at least {least} for tokenizer {kind!r}, got {vocab_size}")
    if kind == "char":
        core = Tokenizer(models.WordLevel(unk_token="[UNK]"))
        core.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
        core.decoder = decoders.Fuse()
        trainer: Any = trainers.WordLevelTrainer(vocab_size=vocab_size, special_tokens=special, show_progress=False)
        core.train_from_iterator(texts, trainer)
    elif kind == "wordpiece":
        core = Tokenizer(models.WordPiece(_word_pieces(texts, vocab_size, special), unk_token="[UNK]"))
        core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        core.decoder = decoders.WordPiece(cleanup=False)
    elif kind == "bpe":
        core = Tokenizer(models.BPE())
        core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        core.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size, special_tokens=special, initial_alphabet=alphabet, show_progress=False
        )
        core.train_from_iterator(texts, trainer)
    else:
        raise ValueError(f"tokenizer must be one of {', '.join(TOKENIZERS)} or a model directory, got {kind!r}")
    if landmarks:
        ids = [(token, core.token_to_id(token)) for token in LANDMARKS.values()]
        core.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ids)
    return PreTrainedTokenizerFast(tokenizer_object=core, clean_up_tokenization_spaces=False, **names)


def _word_pieces(texts: Iterable[str], vocab_size: int, special: list[str]) -> dict[str, int]:
    """The WordPiece vocabulary of `WordPieceTrainer`, but the same in every process.

    That trainer is BPE over characters of which all but a word's first carry ##, and it breaks ties by the order of a
    hash map. Here each character and ##character is one private character, and the alphabet is given in order.
    """
    words = Counter(word for text in texts for word in text.split() if not any(token in word for token in special))
    counts: Counter[str] = Counter()
    for word, count in words.items():
        for symbol in (word[0], *(f"##{char}" for char in word[1:])):
            counts[symbol] += count
            counts[symbol[-1]] += 0  # a character seen inside words may begin one
    symbols = sorted(counts, key=lambda symbol: (-counts[symbol], symbol))[: vocab_size - len(special)]
    written = {symbol: chr(0xF0000 + i) for i, symbol in enumerate(sorted(symbols))}
    read = {char: symbol.removeprefix("##") if len(symbol) > 1 else symbol for symbol, char in written.items()}
    inside = {char for symbol, char in written.items() if len(symbol) > 1}

    def corpus() -> Iterator[list[str]]:
        for word, count in words.items():
            pieces = [written.get(s, "") for s in (word[0], *(f"##{char}" for char in word[1:]))]
            if all(pieces):  # a word with a character outside the vocabulary is unknown as a whole
                yield ["".join(pieces)] * count

    core = Tokenizer(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=special,
        initial_alphabet=list(read),
        limit_alphabet=len(read),
        show_progress=False,
    )
    core.train_from_iterator(corpus(), trainer)
    vocab = {}
    for token, index in core.get_vocab().items():
        if token not in special:
            token = ("##" if token[0] in inside else "") + "".join(read[char] for char in token)
        vocab[token] = index
    return vocab


def load_tokenizer(name: str):
    """An existing tokenizer, by directory or name; it must have a mask token."""
    tokenizer = AutoTokenizer.from_pretrained(name)
    if tokenizer.mask_token_id is None:
        raise ValueError(
            f"the tokenizer of {name} has no mask token, which diffusion by masks needs; add one by "
            "tokenizer.add_special_tokens({'mask_token': '[MASK]'}) and save it"
        )
    return tokenizer


def make_rows(
    texts: Dataset, tokenizer, *, rows: str = "line", row_length: int | None = None, num_proc: int | None = None
) -> tuple[Dataset, dict[str, int]]:
    """Tokenised rows with "input_ids", "length" (tokens that may change) and "num_chars".

    num_chars counts the characters of the text that the tokens which may change stand for, with the white space before
    them: unknown tokens are not scored, so their characters do not count. None where the tokenizer cannot tell.

    Args:
        texts: a data set with a "text" column.
        rows: "line": a row a text, cut at `row_length` tokens; "fixed": the texts of exactly `row_length` tokens;
            "packed": all texts, each with a newline behind it where the tokenizer has one, joined and cut into blocks
            of `row_length` tokens, the rest dropped.
        row_length: tokens of a row without the special tokens around it (needed for "fixed" and "packed").

    Returns:
        The rows, and counts of what was "truncated", "left_out" and "unknown" (tokens, never corrupted nor scored).
    """
    if rows not in ROWS:
        raise ValueError(f"rows must be one of {', '.join(ROWS)}, got {rows!r}")
    if rows != "line" and row_length is None:
        raise ValueError(f"rows={rows!r} needs row_length")
    if row_length is not None and row_length < 1:
        raise ValueError(f"row_length must be at least 1, got {row_length}")
    prefix, suffix = tokenizer_frame(tokenizer)
    special = set(tokenizer.all_special_ids)
    unknown_id = tokenizer.unk_token_id
    counts = {"truncated": 0, "left_out": 0, "unknown": 0}
    fast = tokenizer.is_fast

    def encode(batch):
        out = tokenizer(batch["text"], add_special_tokens=False, return_offsets_mapping=fast, verbose=False)
        if not fast:
            return {"ids": out["input_ids"]}
        spans = zip(batch["text"], out["input_ids"], out["offset_mapping"], strict=True)
        return {"ids": out["input_ids"], "chars": [_chars_per_token(*span, special) for span in spans]}

    encoded = texts.map(encode, batched=True, num_proc=num_proc, remove_columns=texts.column_names, desc="tokenising")
    tokens, begins = array("i"), array("q")  # 4 bytes a token; where each row but the first begins
    lengths: list[int] = []
    num_chars: list[int | None] = []

    def add(ids: list[int], chars: list[int]) -> None:
        length = sum(token not in special for token in ids)
        if not length:
            counts["left_out"] += 1
            return
        counts["unknown"] += ids.count(unknown_id)
        if tokens:
            begins.append(len(tokens))
        tokens.extend([*prefix, *ids, *suffix])
        lengths.append(length)
        num_chars.append(sum(chars) if fast else None)

    def texts_and_chars() -> Iterator[tuple[list[int], list[int]]]:
        for batch in encoded.iter(batch_size=1000):
            yield from zip(batch["ids"], batch["chars"] if fast else [[]] * len(batch["ids"]), strict=True)

    if rows == "packed":
        assert row_length is not None
        newline = [t for t in tokenizer("\n", add_special_tokens=False)["input_ids"] if t not in special]
        newline_chars = [int(i == 0) for i in range(len(newline))]
        pending: tuple[list[int], list[int]] = [], []
        for ids, chars in texts_and_chars():
            pending[0].extend(ids + newline)
            pending[1].extend(chars + newline_chars)
            whole = len(pending[0]) // row_length * row_length
            for start in range(0, whole, row_length):
                add(*(part[start : start + row_length] for part in pending))
            for part in pending:
                del part[:whole]
        counts["left_out"] += bool(pending[0])
    else:
        for ids, chars in texts_and_chars():
            if rows == "fixed" and len(ids) != row_length:
                counts["left_out"] += 1
            else:
                counts["truncated"] += row_length is not None and len(ids) > row_length
                add(ids[:row_length], chars[:row_length])
    if not lengths:
        raise CorpusError(
            f"no row is left: rows={rows!r}, row_length={row_length}, {len(texts)} texts, {counts['left_out']} left out"
        )
    input_ids = np.split(np.frombuffer(tokens, dtype=np.intc), begins)
    return Dataset.from_dict({"input_ids": input_ids, "length": lengths, "num_chars": num_chars}), counts


def _chars_per_token(text: str, ids: list[int], spans: list[tuple[int, int]], special: set[int]) -> list[int]:
    """How many characters of the text each token stands for, those before it that no token holds too; special: 0."""
    chars, done = [], 0
    for i, (_, end) in enumerate(spans):
        end = len(text) if i == len(spans) - 1 else max(end, done)
        chars.append(0 if ids[i] in special else end - done)
        done = end
    return chars


def length_counts(rows: Dataset) -> list[int]:
    """`counts[l]`: how many rows have l tokens that may change."""
    lengths = rows["length"]
    counts = [0] * (max(lengths) + 1)
    for length in lengths:
        counts[length] += 1
    return counts
