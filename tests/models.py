"""Small random masked LMs with real tokenizers, as directories that transformers itself wrote."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForMaskedLM,
    BertConfig,
    ModernBertConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    RobertaConfig,
)

from udm_text import UDMConfig, UDMForMaskedGeneration

FAMILIES = ("bert", "roberta", "modernbert")
PROCESSES = ("mask", "substitute")
TEXTS = ("the cat sat on the mat", "a dog ran to the cat", "the mat is red", "a red dog sat", "the dog is on a mat")
MAX_POSITIONS = 40


def _framed(core: Tokenizer, kind: str, first: str, last: str) -> None:
    core.post_processor = processors.TemplateProcessing(
        single=f"{first} $A {last}",
        pair=f"{first} $A {last} $B:1 {last}:1",
        special_tokens=[(token, core.token_to_id(token)) for token in (first, last)],
    )


def make_tokenizer(family: str) -> PreTrainedTokenizerFast:
    """WordPiece with [CLS], [SEP] (bert); byte-level BPE with <s>, </s> (roberta) or [CLS], [SEP] (modernbert)."""
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
    _framed(core, family, names["cls"], names["sep"])
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


def text_config(family: str = "bert", vocab_size: int = 24, pad_token_id: int = 0, **how: Any) -> PreTrainedConfig:
    """A small configuration; weights wide enough that no two positions are predicted alike."""
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
        # its default special ids lie near 50,000
        ids = {"bos_token_id": None, "eos_token_id": None, "cls_token_id": None, "sep_token_id": None}
        return ModernBertConfig(
            **{
                **common,
                **ids,
                "local_attention": 8,
                "global_attn_every_n_layers": 2,
                "initializer_cutoff_factor": 2.0,
            },
            **how,
        )
    return {"bert": BertConfig, "roberta": RobertaConfig}[family](**common, **how)


def make_masked_lm(config: PreTrainedConfig, seed: int = 0):
    """A random masked LM in evaluation mode, its biases and norms random too."""
    torch.manual_seed(seed)
    model = AutoModelForMaskedLM.from_config(config).eval()
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
    """Gives the time embedding, zero at the start, something to say."""
    if model.time_embedding is not None:
        torch.manual_seed(7)
        torch.nn.init.normal_(model.time_embedding.output.weight, std=0.3)
    return model


# A vocabulary without a tokenizer: 0 [PAD], 1 [UNK], 2 [CLS], 3 [SEP], 4 [MASK], then words.
PAD, UNK, CLS, SEP, MASK = range(5)

COUNTS = [0, 1, 0, 4, 5, 2]
ROWS = (  # three to fill in, the last to continue
    [CLS, 7, MASK, 9, MASK, MASK, SEP],
    [CLS, MASK, MASK, MASK, MASK, MASK, 6, 7, 8, SEP],
    [CLS, UNK, MASK, SEP],
    [CLS, 11, SEP],
)


def make_udm(process: str = "mask", *, family: str = "bert", seed: int = 0, **fields: Any) -> UDMForMaskedGeneration:
    """A random model of that vocabulary in evaluation mode, its time embedding awake."""
    fields = {
        "mask_token_id": MASK,
        "pad_token_id": PAD,
        "special_token_ids": [UNK],
        "prefix_token_ids": [CLS],
        "suffix_token_ids": [SEP],
        **fields,
    }
    backbone = make_masked_lm(text_config(family), seed)
    config = UDMConfig(text_config=backbone.config, process=process, **fields)
    return wake_time(UDMForMaskedGeneration(config, backbone=backbone).eval())
