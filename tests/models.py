"""The alphabet, the tiny random models and the rows that tests share; small masked LMs with real tokenizers."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    AutoConfig,
    BertConfig,
    ModernBertConfig,
    NomicBertConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    RobertaConfig,
)

from udm_text import UDMConfig, UDMForMaskedGeneration
from udm_text.decoders import auto_class, is_decoder
from udm_text.modeling_udm import UDMOutput
from udm_text.randomness import RowRandom

# The alphabet of models without a tokenizer: 0 [PAD], 1 [UNK], 2 [CLS], 3 [SEP], 4 [MASK], then words.
PAD, UNK, CLS, SEP, MASK = range(5)
SPECIAL = {PAD, UNK, CLS, SEP, MASK}
FIRST = 5
VOCAB = 24

COUNTS = [0, 1, 0, 4, 5, 2]
ROWS = (  # three to fill in, the last to continue
    [CLS, 7, MASK, 9, MASK, MASK, SEP],
    [CLS, MASK, MASK, MASK, MASK, MASK, 6, 7, 8, SEP],
    [CLS, UNK, MASK, SEP],
    [CLS, 11, SEP],
)

FAMILIES = ("bert", "roberta", "modernbert", "nomic_bert")
FAST = (*FAMILIES, "llama", "qwen2")
"""Those that the fast path knows, Mistral apart, whose layers are all local as some of this Qwen2's."""
PROCESSES = ("mask", "substitute", "uniform")
TEXTS = ("the cat sat on the mat", "a dog ran to the cat", "the mat is red", "a red dog sat", "the dog is on a mat")
MAX_POSITIONS = 40


def _framed(core: Tokenizer, first: str, last: str) -> None:
    core.post_processor = processors.TemplateProcessing(
        single=f"{first} $A {last}",
        pair=f"{first} $A {last} $B:1 {last}:1",
        special_tokens=[(token, core.token_to_id(token)) for token in (first, last)],
    )


def _number_letters(core: Tokenizer) -> None:
    """Numbers the letters inside words by the alphabet: the trainer of WordPiece does it otherwise in every process."""
    vocabulary = core.get_vocab()
    letters = sorted(piece for piece in vocabulary if piece.startswith("##") and len(piece) == 3)
    vocabulary |= dict(zip(letters, sorted(vocabulary[piece] for piece in letters), strict=True))
    core.model = models.WordPiece(vocabulary, unk_token="[UNK]")


def make_tokenizer(family: str) -> PreTrainedTokenizerFast:
    """WordPiece with [CLS], [SEP] (bert, nomic_bert); byte-level BPE with <s>, </s> (roberta) or [CLS], [SEP]."""
    family = "bert" if family == "nomic_bert" else family
    names = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
    if family == "roberta":
        names = {"cls": "<s>", "pad": "<pad>", "sep": "</s>", "unk": "<unk>", "mask": "<mask>"}
    if family == "bert":
        core = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        core.decoder = decoders.WordPiece(cleanup=False)
        trainer: Any = trainers.WordPieceTrainer(
            vocab_size=60, special_tokens=list(names.values()), show_progress=False
        )
    else:
        core = Tokenizer(models.BPE())
        core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        core.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=300,
            special_tokens=list(names.values()),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
    core.train_from_iterator(TEXTS, trainer)
    if family == "bert":
        _number_letters(core)
    _framed(core, names["cls"], names["sep"])
    mask = AddedToken(names.pop("mask"), lstrip=family != "bert")
    special: dict[str, Any] = {f"{name}_token": token for name, token in names.items()}
    kinds = ["input_ids", "token_type_ids", "attention_mask"] if family == "bert" else ["input_ids", "attention_mask"]
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        mask_token=mask,
        model_input_names=kinds,
        model_max_length=MAX_POSITIONS,
        clean_up_tokenization_spaces=False,
        **special,
    )


def word_tokenizer(words: Iterable[str], lowercase: bool = True) -> PreTrainedTokenizerFast:
    """The alphabet with these words: [CLS] in front, [SEP] behind, as BERT's."""
    names = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")}
    vocabulary = {word: i for i, word in enumerate((*names.values(), *sorted(set(words))))}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    core.normalizer = normalizers.Lowercase() if lowercase else None
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    _framed(core, "[CLS]", "[SEP]")
    return PreTrainedTokenizerFast(tokenizer_object=core, **names)


def text_config(
    family: str = "bert", vocab_size: int = VOCAB, pad_token_id: int = PAD, dropout: float = 0.0, **how: Any
) -> PreTrainedConfig:
    """A small configuration; weights wide enough that no two positions are predicted alike."""
    if is_decoder(family):
        return decoder_config(family, vocab_size, pad_token_id=pad_token_id, **how)
    # Padding stands behind <s> in RoBERTa, whose positions start behind the padding index.
    extra = pad_token_id + 1 if family == "roberta" else 0
    common: dict[str, Any] = {
        "vocab_size": vocab_size,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 48,
        "max_position_embeddings": MAX_POSITIONS + extra,
        "pad_token_id": pad_token_id,
        "initializer_range": 0.3,
    }
    if family == "modernbert":
        own = {f"{place}_dropout": dropout for place in ("attention", "embedding", "mlp")}
        # its default special ids lie near 50,000
        own |= dict.fromkeys(("bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"))
        own |= {"local_attention": 8, "global_attn_every_n_layers": 2, "initializer_cutoff_factor": 2.0}
        return ModernBertConfig(**{**common, **own, **how})
    own = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    kinds = {"bert": BertConfig, "roberta": RobertaConfig, "nomic_bert": NomicBertConfig}
    return kinds[family](**{**common, **own, **how})


NORMED: dict[str, dict[str, Any]] = {
    "qwen3": {"head_dim": 16},
    "gemma": {"head_dim": 4},
    "gemma3_text": {"head_dim": 16, "layer_types": ["sliding_attention", "full_attention"]},
}
"""Others that the fast path knows: of norms of queries and keys, and heads that are no share of a hidden state."""
DECODERS = ("llama", "mistral", "qwen3", "gemma2", "gemma3_text", "gpt2")


def decoder_config(family: str, vocab_size: int = VOCAB, **how: Any) -> PreTrainedConfig:
    """A small decoder of grouped keys (but GPT-2), with local layers where its family has them, heads tied or not."""
    common: dict[str, Any] = {
        "vocab_size": vocab_size,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": MAX_POSITIONS,
        "initializer_range": 0.3,
    }
    if family == "gpt2":
        own: dict[str, Any] = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    else:
        own = {"num_key_value_heads": 2, "head_dim": 8, "intermediate_size": 48}
    if family in ("mistral", "gemma2", "gemma3_text", "qwen2"):
        own["sliding_window"] = 8
    if family == "qwen2":
        own |= {"use_sliding_window": True, "max_window_layers": 1}
    ids = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
    return AutoConfig.for_model(family, **{**common, **own, **ids, **how})


def decoder_tokens(family: str) -> PreTrainedTokenizerFast:
    """A tokenizer without [MASK]: byte-level BPE, which puts <s> before a row (llama, mistral, gemma), or nothing; its
    padding token is <pad> (gemma), its EOS (qwen3), or there is none."""
    gemma, framed = family.startswith("gemma"), family not in ("gpt2", "qwen3")
    names = {"bos": "<s>", "eos": "</s>"} if framed else {"eos": "<|endoftext|>"}
    names |= {"pad": "<pad>"} if gemma else {"pad": "<|endoftext|>"} if family == "qwen3" else {}
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet, special = pre_tokenizers.ByteLevel.alphabet(), list(dict.fromkeys(names.values()))
    core.train_from_iterator(
        TEXTS,
        trainers.BpeTrainer(vocab_size=290, special_tokens=special, initial_alphabet=alphabet, show_progress=False),
    )
    core.post_processor = processors.ByteLevel(trim_offsets=True)
    if framed:
        bos = processors.TemplateProcessing(single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 0)])
        core.post_processor = processors.Sequence([core.post_processor, bos])
    named: dict[str, Any] = {f"{name}_token": token for name, token in names.items()}
    return PreTrainedTokenizerFast(
        tokenizer_object=core, clean_up_tokenization_spaces=False, padding_side="left", **named
    )


def save_decoder(directory: Path, family: str, spare: int = 0, **how: Any) -> Path:
    """A plain causal checkpoint of transformers, with its tokenizer. spare: rows of embeddings that are no tokens."""
    tokenizer = decoder_tokens(family)
    make_masked_lm(decoder_config(family, len(tokenizer) + spare, **how)).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def make_masked_lm(config: PreTrainedConfig, seed: int = 0):
    """A random masked LM or decoder in evaluation mode, its biases and norms random too."""
    with torch.random.fork_rng(devices=[]):
        return _draw_masked_lm(config, seed)


def _draw_masked_lm(config: PreTrainedConfig, seed: int):
    torch.manual_seed(seed)
    model = auto_class(config).from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def save_masked_lm(directory: Path, family: str) -> Path:
    """A plain checkpoint of transformers: config, weights and tokenizer."""
    tokenizer = make_tokenizer(family)
    assert tokenizer.pad_token_id is not None
    config = text_config(family, vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id)
    make_masked_lm(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def wake_time(model: UDMForMaskedGeneration) -> UDMForMaskedGeneration:
    """Gives the time embedding, zero at the start and so silent about mistakes in t, something to say."""
    if model.gap_head is not None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(8)
            torch.nn.init.normal_(model.gap_head.weight, std=0.3)
    if model.time_embedding is not None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(7)
            torch.nn.init.normal_(model.time_embedding.output.weight, std=0.3)
    return model


def wrap(config: PreTrainedConfig, process: str = "mask", seed: int = 0, **fields: Any) -> UDMForMaskedGeneration:
    """A random model of the alphabet around any masked LM, in evaluation mode, its time embedding awake."""
    alphabet = {"mask_token_id": MASK, "pad_token_id": PAD, "special_token_ids": [UNK]}
    frame = {"prefix_token_ids": [CLS], "suffix_token_ids": [SEP]}
    with torch.random.fork_rng(devices=[]):
        backbone = _draw_masked_lm(config, seed)
        own = UDMConfig(text_config=backbone.config, process=process, **{**alphabet, **frame, **fields})
        return wake_time(UDMForMaskedGeneration(own, backbone=backbone).eval())


def make_udm(
    process: str = "mask",
    *,
    family: str = "bert",
    vocab_size: int = VOCAB,
    hidden_size: int = 32,
    layers: int = 2,
    dropout: float = 0.0,
    scale: float = 1.0,
    seed: int = 0,
    **fields: Any,
) -> UDMForMaskedGeneration:
    """The tiny model of the tests, with any fields of `UDMConfig`.

    `scale` multiplies the spread of its weights: below 1 predictions are nearer to uniform, above surer of themselves.
    """
    sizes = {"hidden_size": hidden_size, "num_hidden_layers": layers, "initializer_range": 0.3 * scale}
    return wrap(text_config(family, vocab_size, dropout=dropout, **sizes), process, seed, **fields)


def make_rows(
    count: int, longest: int = 12, vocab_size: int = VOCAB, seed: int = 0, shortest: int = 1
) -> list[dict[str, Any]]:
    """Rows [CLS] ... [SEP] of random lengths, every fifth with an unknown token inside."""
    u = RowRandom(seed, torch.arange(count)).uniform(longest + 1)
    rows = []
    for i, row in enumerate(u.tolist()):
        length = shortest + int(row[0] * (longest - shortest + 1))
        ids = [FIRST + int(x * (vocab_size - FIRST)) for x in row[1 : length + 1]]
        if i % 5 == 4:
            ids.insert(length // 2, UNK)
        rows.append({"input_ids": [CLS, *ids, SEP], "num_chars": 3 * length})
    return rows


def fixed_logits(monkeypatch, model: UDMForMaskedGeneration, table: torch.Tensor) -> list[dict[str, torch.Tensor]]:
    """The model predicts `table` (L, V) whatever it reads; what it is asked is appended to the returned list."""
    calls = []

    def forward(input_ids, positions, attention_mask=None, t=None, num_editable=None):
        asked = torch.zeros_like(input_ids, dtype=torch.bool)
        asked[positions] = True
        calls.append({"input_ids": input_ids.clone(), "positions": asked, "t": t.clone()})
        whole = table[: input_ids.shape[1]].expand(len(input_ids), -1, -1)
        return UDMOutput(logits=whole[positions])

    monkeypatch.setattr(model, "forward", forward)
    return calls


class Adapted(torch.nn.Linear):
    """What a library of adapters puts in the place of a linear map."""

    def forward(self, x):
        return super().forward(x) + 1
