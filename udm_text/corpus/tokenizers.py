"""Tokenizers: one of our own from the texts of a corpus, or an existing one."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from .. import framing
from ..common import choices
from ..framing import tokenizer_fields

TOKENIZERS = ("wordpiece", "char", "bpe")
SPECIAL_TOKENS = {"pad_token": "[PAD]", "unk_token": "[UNK]", "mask_token": "[MASK]"}
CLS_SEP = {"cls_token": "[CLS]", "sep_token": "[SEP]"}

_WORD = "[^\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]"
"""A character of a word: what Unicode does not call white space, which is where the tokenizer splits."""
_WORDS = re.compile(_WORD + "+")
_WORD_LENGTH = 100
"""Characters of a word that WordPiece looks at; of a longer one it would make a single unknown token."""
_HASH = "\U0010fffd"
"""Stands in word pieces for #, which so is never taken for the mark of a piece inside a word."""
_NOTHING = "\U0010ffff"
"""Stands for `_HASH` itself, and is in no vocabulary."""


def train_tokenizer(
    kind: str,
    texts: Iterable[str],
    vocab_size: int = 4000,
    *,
    cls_sep: bool = False,
    separator: bool = False,
    min_frequency: int = 1,
) -> PreTrainedTokenizerFast:
    """A tokenizer of our own, with [PAD], [UNK], [MASK] and nothing around a row, or [CLS] and [SEP] with `cls_sep`.

    With `separator` or `cls_sep`, [SEP] stands between the two texts of a pair, as a prompt and its answer.

    Args:
        kind: "char" (characters seen in training), "wordpiece" (words split at white space, their pieces marked by ##),
            or "bpe" (byte level: any text, no unknown token). With "wordpiece" a text comes back with one space for
            each run of white space, where its characters are known; where # stands in the texts, or words of more than
            100 characters, # is written by a character of private use, and long words are cut into pieces.
        vocab_size: tokens at most, special tokens included.
        min_frequency: what is rarer in the texts becomes no token: characters are then unknown (but for bytes), pieces
            are made of smaller ones.

    Returns:
        A tokenizer that depends on the texts alone: the same in every process and every run.
    """
    names = SPECIAL_TOKENS | (CLS_SEP if cls_sep else {"sep_token": "[SEP]"} if separator else {})
    special = list(names.values())
    if min_frequency < 1:
        raise ValueError(f"min_frequency must be at least 1, got {min_frequency}")
    least = len(special) + (256 if kind == "bpe" else 1)
    if vocab_size < least:
        raise ValueError(f"vocab_size must be at least {least} for tokenizer {kind!r}, got {vocab_size}")
    parts = (part for text in texts for part in split_long(text, lambda left, right: True))
    if kind == "char":
        core = Tokenizer(models.WordLevel(unk_token="[UNK]"))
        core.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
        core.decoder = decoders.Fuse()
        trainer: Any = trainers.WordLevelTrainer(
            vocab_size=vocab_size, min_frequency=min_frequency, special_tokens=special, show_progress=False
        )
        core.train_from_iterator(parts, trainer)
    elif kind == "wordpiece":
        words = Counter(match[0] for text in texts for match in _WORDS.finditer(text))
        core = Tokenizer(models.WordPiece(_word_pieces(words, vocab_size, special, min_frequency), unk_token="[UNK]"))
        core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        core.decoder = decoders.WordPiece(cleanup=False)
        if any("#" in word or len(word) > _WORD_LENGTH for word in words):
            _keep_every_word(core)
    elif kind == "bpe":
        core = Tokenizer(models.BPE())
        core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        core.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            min_frequency=_merged(min_frequency),
            special_tokens=special,
            initial_alphabet=alphabet,
            show_progress=False,
        )
        core.train_from_iterator(parts, trainer)
    else:
        raise ValueError(f"tokenizer must be {choices(TOKENIZERS)}, or a model directory, got {kind!r}")
    if cls_sep or separator:
        ids = [(token, core.token_to_id(token)) for token in CLS_SEP.values() if token in special]
        single, pair = ("[CLS] $A [SEP]", "[CLS] $A [SEP] $B [SEP]") if cls_sep else ("$A", "$A [SEP] $B")
        core.post_processor = processors.TemplateProcessing(single=single, pair=pair, special_tokens=ids)
    return PreTrainedTokenizerFast(tokenizer_object=core, clean_up_tokenization_spaces=False, **names)


def cut_before(text: str, end: int) -> int | None:
    """The last place in the half before `end` that stands between a word and white space; None: there is none."""
    return next((i for i in range(end, end // 2, -1) if text[i].isspace() and not text[i - 1].isspace()), None)


def split_long(text: str, anywhere: Callable[[str, str], bool], size: int = 1 << 16) -> Iterator[str]:
    """A text in parts of about `size` characters, cut before white space, so that tokens of words stay what they are.

    anywhere: whether it may be cut inside a word, asked with what stands before and behind the place; where it may not,
    a part goes on to the next white space.
    """
    while len(text) > 2 * size:
        cut = cut_before(text, size)
        if cut is None and anywhere(text[size - 50 : size], text[size : size + 50]):
            cut = size
        if cut is None:
            cut = next((i for i in range(size, len(text)) if text[i].isspace()), len(text))
        yield text[:cut]
        text = text[cut:]
    if text:
        yield text


def _merged(min_frequency: int) -> int:
    """How often a pair must stand together to become a token; 0, the trainer's default, where nothing is asked for."""
    return min_frequency if min_frequency > 1 else 0


def _keep_every_word(core: Tokenizer) -> None:
    """Makes a WordPiece tokenizer keep words that hold # and words of any length.

    # is written as another character, so that ## is a mark and nothing else. A long word is cut, and its later parts
    begin by that mark, as pieces inside a word do.
    """
    core.normalizer = normalizers.Sequence(
        [
            normalizers.Replace(_HASH, _NOTHING),
            normalizers.Replace("#", _HASH),
            normalizers.Replace(Regex(rf"{_WORD}{{{_WORD_LENGTH}}}\K(?={_WORD})"), " ##"),
        ]
    )
    core.model.max_input_chars_per_word = _WORD_LENGTH + len("##")
    core.decoder = decoders.Sequence([decoders.WordPiece(cleanup=False), decoders.Replace(_HASH, "#")])


class _Marked(dict[str, str]):
    """Characters as they stand inside words: each a string once."""

    def __missing__(self, char: str) -> str:
        return self.setdefault(char, f"##{char}")


def _word_pieces(words: Counter[str], vocab_size: int, special: list[str], min_frequency: int) -> dict[str, int]:
    """The WordPiece vocabulary of `WordPieceTrainer`, but the same in every process.

    That trainer is BPE over characters of which all but a word's first carry ##, and it breaks ties by the order of a
    hash map. Here each character and ##character is one private character, and the alphabet is given in order. # is
    written as `_HASH`, and words are cut where the tokenizer cuts them (`_keep_every_word`).
    """
    pieces: Counter[tuple[str, ...]] = Counter()
    marked = _Marked()
    for word, count in words.items():
        if any(token in word for token in special) or _HASH in word or _NOTHING in word:
            continue
        word = word.replace("#", _HASH)
        for start in range(0, len(word), _WORD_LENGTH):
            part = word[start : start + _WORD_LENGTH]
            first = marked[part[0]] if start else part[0]
            pieces[(first, *(marked[char] for char in part[1:]))] += count
    counts: Counter[str] = Counter()
    for word_symbols, count in pieces.items():
        for symbol in word_symbols:
            counts[symbol] += count
            counts[symbol[-1]] += 0  # a character seen inside words may begin one
    characters: Counter[str] = Counter()
    for symbol, number in counts.items():
        characters[symbol[-1]] += number
    kept = [symbol for symbol in counts if characters[symbol[-1]] >= min_frequency]
    alphabet = sorted(kept, key=lambda symbol: (-counts[symbol], symbol))[: vocab_size - len(special)]
    written = {symbol: chr(0xF0000 + i) for i, symbol in enumerate(sorted(alphabet))}
    read = {char: symbol.removeprefix("##") if len(symbol) > 1 else symbol for symbol, char in written.items()}
    inside = {char for symbol, char in written.items() if len(symbol) > 1}

    def corpus() -> Iterator[list[str]]:
        for word_symbols, count in pieces.items():
            if all(symbol in written for symbol in word_symbols):  # else it is unknown as a whole
                yield ["".join(written[symbol] for symbol in word_symbols)] * count

    core = Tokenizer(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=_merged(min_frequency),
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
    tokenizer = framing.load_tokenizer(name)
    if tokenizer.mask_token_id is None:
        raise ValueError(
            f"the tokenizer of {name} has no mask token, which diffusion by masks needs; add one by "
            "tokenizer.add_special_tokens({'mask_token': '[MASK]'}) and save it"
        )
    return tokenizer


@torch.no_grad()
def fit_vocabulary(model, tokenizer) -> list[int]:
    """Gives a `UDMForMaskedGeneration` a row for each token of the tokenizer; returns the ids that are new to it.

    New are ids beyond the model's vocabulary, and rows of it that were spare and are ordinary tokens now. Their
    embeddings, of the head too where it has its own, are the mean of the ordinary ones and a trace of noise (beyond the
    vocabulary with their covariance, as transformers does it). So a new token starts as likely as the geometric mean of
    all others, times a factor common to all (Hewitt 2021, "Initializing new word embeddings for pretrained language
    models"); the head's bias, lowest of all for it, makes it rarer still.
    """
    config = model.config
    old_size, special = config.vocab_size, set(tokenizer.all_special_ids)
    known = [i for i in config.allowed_token_ids().tolist() if i < len(tokenizer)]
    spare = sorted(set(config.special_token_ids) & set(range(min(old_size, len(tokenizer)))) - special)
    if len(tokenizer) > old_size:
        model.resize_token_embeddings(len(tokenizer))
    config.update(tokenizer_fields(tokenizer, config.vocab_size))
    new = [*spare, *range(old_size, len(tokenizer))]
    if not new:
        return new
    head = model.get_output_embeddings()
    weights = {id(weight): weight for weight in (model.get_input_embeddings().weight, getattr(head, "weight", None))}
    generator = torch.Generator().manual_seed(0)
    for weight in weights.values():
        if weight is not None and spare:
            noise = torch.randn(len(spare), weight.shape[1], generator=generator).to(weight)
            weight[spare] = weight[known].mean(dim=0) + 3e-5 * weight[known].std(dim=0) * noise
    bias = getattr(head, "bias", None)
    if bias is not None:
        bias[new] = bias[known].min()
    return new
