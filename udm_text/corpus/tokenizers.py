"""Tokenizers: one of our own from the texts of a corpus, or an existing one."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from .. import framing
from ..chats import MARKS, TEMPLATE
from ..common import choices
from ..configuration_udm import UDMConfig
from ..decoders import decoder_tokenizer, tokenizer_for
from ..framing import tokenizer_fields

TOKENIZERS = ("wordpiece", "char", "bpe")
SPECIAL_TOKENS = {"pad_token": "[PAD]", "unk_token": "[UNK]", "mask_token": "[MASK]"}
CLS_SEP = {"cls_token": "[CLS]", "sep_token": "[SEP]"}

_WHITE = "\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
"""What Unicode calls white space, which is where the tokenizer splits, as part of a class of characters."""
_WORDS = re.compile(f"[^{_WHITE}]+")
_SPACE = "\u2581"
"""Stands in word pieces for the white space before them."""
_BAR = "\u2028"
"""Stands in word pieces for `_SPACE` itself: no other white space is left in them, so nothing else is written so."""
_RUN_LENGTH = 100
"""Characters of a word that WordPiece looks at together; the rest of a longer one is a piece of its own."""
_PUNCTUATION = r"\p{P}$+<=>^`|~"
"""What BERT calls punctuation, as part of a class of characters."""
_PIECES = Regex(rf"{_SPACE}?(?:[{_PUNCTUATION}]|\p{{Han}}|[^{_SPACE}{_PUNCTUATION}\p{{Han}}]{{1,{_RUN_LENGTH}}})")
"""What a piece lies inside: a character of punctuation, a Chinese one, or a run of others, each with its `_SPACE`."""


def train_tokenizer(
    kind: str,
    texts: Iterable[str],
    vocab_size: int = 4000,
    *,
    cls_sep: bool = False,
    separator: bool = False,
    min_frequency: int = 1,
    chat: bool = False,
) -> PreTrainedTokenizerFast:
    """A tokenizer of our own, with [PAD], [UNK], [MASK] and nothing around a row, or [CLS] and [SEP] with `cls_sep`.

    With `separator` or `cls_sep`, [SEP] stands between the two texts of a pair, as a prompt and its answer. With `chat`
    it has a chat template, and the special tokens that this puts before messages (`chats.TEMPLATE`).

    Args:
        kind: "char" (characters seen in training), "wordpiece" (pieces of words, each character of punctuation and each
            Chinese character by itself; a piece that white space stands before begins with \u2581), or "bpe" (byte
            level: any text, no unknown token). With "wordpiece" a text comes back with one space for each run of white
            space and none around it, where its characters are known. With "wordpiece" and "bpe" the white space before
            a [MASK] is part of the blank: what is filled in brings its own.
        vocab_size: tokens at most, special tokens included.
        min_frequency: what is rarer in the texts becomes no token: characters are then unknown (but for bytes), pieces
            are made of smaller ones.

    Returns:
        A tokenizer that depends on the texts alone: the same in every process and every run.
    """
    names = SPECIAL_TOKENS | (CLS_SEP if cls_sep else {"sep_token": "[SEP]"} if separator else {})
    marks = MARKS if chat else ()
    special = [*names.values(), *marks]
    tokens = {name: _added(token, kind) for name, token in names.items()}
    extra = [_added(token, kind) for token in marks]
    added = [*tokens.values(), *extra]
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
            vocab_size=vocab_size, min_frequency=min_frequency, special_tokens=added, show_progress=False
        )
        core.train_from_iterator(parts, trainer)
    elif kind == "wordpiece":
        words = Counter(match[0] for text in texts for match in _WORDS.finditer(text))
        core = _word_piece_tokenizer(_word_pieces(words, vocab_size, special, min_frequency))
    elif kind == "bpe":
        core = Tokenizer(models.BPE())
        core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        core.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            min_frequency=_merged(min_frequency),
            special_tokens=added,
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
    more: dict[str, Any] = {"extra_special_tokens": extra, "chat_template": TEMPLATE} if chat else {}
    return PreTrainedTokenizerFast(tokenizer_object=core, clean_up_tokenization_spaces=False, **tokens, **more)


def _added(token: str, kind: str) -> AddedToken:
    """A special token and what it does to the white space beside it in a text.

    That before a [MASK] is the blank's, but for characters, of which it is one. That around a typed [SEP], and around
    the mark of a message, is of neither text; of word pieces a text behind it begins with the mark of its white space.
    """
    between = token in ("[SEP]", *MARKS)
    left = between or (token == "[MASK]" and kind != "char")
    return AddedToken(token, lstrip=left, rstrip=between and kind != "wordpiece", special=True)


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


def _word_piece_tokenizer(vocabulary: dict[str, int], prepend_scheme: str = "first") -> Tokenizer:
    """Greedy pieces of a vocabulary whose tokens carry `_SPACE` where white space stands before them.

    prepend_scheme: "first": the beginning of a text counts as such a place, what stands behind a special token does
    not; "never": no place does.
    """
    core = Tokenizer(
        models.WordPiece(
            vocabulary, unk_token="[UNK]", continuing_subword_prefix="", max_input_chars_per_word=1 + _RUN_LENGTH
        )
    )
    core.normalizer = normalizers.Sequence(
        [
            normalizers.Strip(left=False, right=True),
            normalizers.Replace(Regex(f"[{_WHITE}]+"), " "),
            normalizers.Replace(_SPACE, _BAR),
        ]
    )
    metaspace: dict[str, Any] = {"replacement": _SPACE, "prepend_scheme": prepend_scheme, "split": False}
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Metaspace(**metaspace), pre_tokenizers.Split(_PIECES, "isolated")]
    )
    core.decoder = decoders.Sequence([decoders.Metaspace(**metaspace), decoders.Replace(_BAR, _SPACE)])
    return core


def _pieces_of(words: Counter[str], special: list[str]) -> Counter[tuple[str, ...]]:
    """How often each part of a word that pieces lie inside stands in the texts: its characters, each a string.

    The first of a part that white space stands before is `_SPACE` and the character.
    """
    special_tokens = re.compile("|".join(map(re.escape, special)))
    first, later = (_word_piece_tokenizer({"[UNK]": 0}, scheme) for scheme in ("first", "never"))
    pieces: Counter[tuple[str, ...]] = Counter()
    for word, count in words.items():
        for number, part in enumerate(special_tokens.split(word)):
            core = later if number else first
            for piece, _ in core.pre_tokenizer.pre_tokenize_str(core.normalizer.normalize_str(part)):
                head = 1 + piece.startswith(_SPACE)
                pieces[(piece[:head], *piece[head:])] += count
    return pieces


def _word_pieces(words: Counter[str], vocab_size: int, special: list[str], min_frequency: int) -> dict[str, int]:
    """A WordPiece vocabulary, the same in every process.

    Its trainer is BPE over characters, each of them with and without `_SPACE` a symbol of its own, so that no token is
    white space alone. The one of the tokenizers library breaks ties by the order of a hash map. Here each symbol is one
    private character, and the alphabet is given in order.
    """
    pieces = _pieces_of(words, special)
    counts: Counter[str] = Counter()
    for symbols, count in pieces.items():
        for symbol in symbols:
            counts[symbol] += count
            for other in (symbol[-1], _SPACE + symbol[-1]):
                counts[other] += 0
    characters: Counter[str] = Counter()
    for symbol, number in counts.items():
        characters[symbol[-1]] += number
    kept = [symbol for symbol in counts if characters[symbol[-1]] >= min_frequency]
    alphabet = sorted(kept, key=lambda symbol: (-counts[symbol], symbol))[: vocab_size - len(special)]
    written = {symbol: chr(0xF0000 + i) for i, symbol in enumerate(sorted(alphabet))}
    read = {char: symbol for symbol, char in written.items()}

    def corpus() -> Iterator[list[str]]:
        for symbols, count in pieces.items():
            if all(symbol in written for symbol in symbols):  # else it is unknown as a whole
                yield ["".join(written[symbol] for symbol in symbols)] * count

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
    return {
        token if token in special else "".join(read[char] for char in token): index
        for token, index in core.get_vocab().items()
    }


def load_tokenizer(name: str, config: UDMConfig | None = None):
    """An existing tokenizer, by directory or name; it must have a mask token, or gets one for a decoder.

    config: of the model that it is for; None: that of a masked LM.
    """
    tokenizer = framing.load_tokenizer(name)
    if config is not None and config.from_decoder:
        tokenizer = tokenizer_for(config, tokenizer)
        tokenizer = decoder_tokenizer(tokenizer) if tokenizer.mask_token_id is None else tokenizer
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
