"""Decoders as backbones: which they are, what makes them read both sides, and what their tokenizers lack.

A decoder (Llama, Qwen3, Gemma, Mistral, GPT-2, ...) is bidirectional where its configuration says `is_causal = False`,
transformers' own switch, which is saved with it. `probes.py` finds out whether the switch did what it says.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from tokenizers import AddedToken, processors
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    PreTrainedTokenizerFast,
)

from .framing import tokenizer_frame

MASK, PAD = "[MASK]", "[PAD]"
"""What a tokenizer without such tokens gets."""


def is_decoder(text_config: Any) -> bool:
    """Whether a configuration, its class or the name of its model type is one that transformers has a causal language
    model for, and no masked one, and that has no encoder."""
    kind = text_config if isinstance(text_config, str | type) else type(text_config)
    if isinstance(kind, str):
        if kind not in CONFIG_MAPPING:
            return False
        kind = CONFIG_MAPPING[kind]
    alone = not getattr(kind, "is_encoder_decoder", False)
    return alone and kind in MODEL_FOR_CAUSAL_LM_MAPPING and kind not in MODEL_FOR_MASKED_LM_MAPPING


def auto_class(text_config: Any) -> Any:
    """What of transformers loads and builds a backbone of this configuration."""
    return AutoModelForCausalLM if is_decoder(text_config) else AutoModelForMaskedLM


def make_bidirectional(text_config: Any) -> None:
    """Turns the switch in the configuration of a decoder, and it keeps no keys; no other changes."""
    if is_decoder(text_config):
        text_config.is_causal = False
        text_config.use_cache = False


def decoder_tokenizer(tokenizer: Any) -> Any:
    """The tokenizer of a decoder with what diffusion needs; a new one, or the given one where nothing is missing.

    * [MASK], which takes the white space before it along, where there is no mask token.
    * [PAD], where there is no padding token or one that also ends or begins texts: ids tell padding from text.
    * Its own BOS before a row and EOS behind it (one for both, where it has one alone), so that the ends of a row can
      be seen; a tokenizer that has neither puts nothing there. A slow tokenizer is left to frame rows as it does.

    Added tokens that are special in the vocabulary alone, as reserved ones, count as special tokens of the tokenizer.
    """
    frame = tokenizer_frame(tokenizer)
    begin, end = tokenizer.bos_token or tokenizer.eos_token, tokenizer.eos_token or tokenizer.bos_token
    framed = begin is None or not tokenizer.is_fast or all(frame)
    own = {getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "unk", "sep", "cls")}
    padded = tokenizer.pad_token_id is not None and tokenizer.pad_token_id not in own
    reserved = [str(t) for i, t in tokenizer.added_tokens_decoder.items() if t.special]
    hidden = [token for token in reserved if token not in tokenizer.all_special_tokens]
    if framed and padded and tokenizer.mask_token_id is not None and not hidden:
        return tokenizer
    made = copy.deepcopy(tokenizer)
    if tokenizer.mask_token_id is None:
        made.add_special_tokens({"mask_token": AddedToken(MASK, lstrip=True, special=True, normalized=False)})
    if not padded:
        made.add_special_tokens({"pad_token": PAD})
    if not tokenizer.is_fast:
        return made
    core = made.backend_tokenizer
    if not framed:
        prefix, suffix = (made.convert_ids_to_tokens(ids) for ids in frame)
        core.post_processor = _template(core.post_processor, made, prefix or [begin], suffix or [end])
    return _plain(made, core, hidden)


def _template(old: Any, tokenizer: Any, prefix: list[str], suffix: list[str]) -> Any:
    """What puts tokens around a row and between two; the trimming of offsets stays what it was."""
    before, behind = " ".join(prefix), " ".join(suffix)
    template = processors.TemplateProcessing(
        single=f"{before} $A {behind}",
        pair=f"{before} $A {behind} $B {behind}",
        special_tokens=[(token, tokenizer.convert_tokens_to_ids(token)) for token in {*prefix, *suffix}],
    )
    parts: Any = old if isinstance(old, processors.Sequence) else [old]
    kept = [part for part in parts if isinstance(part, processors.ByteLevel)]
    return processors.Sequence([*kept, template]) if kept else template


def _plain(tokenizer: Any, core: Any, hidden: list[str]) -> PreTrainedTokenizerFast:
    """A fast tokenizer that is its tokenizer.json and no more: classes of models make anew some of it when loaded."""
    special = dict(tokenizer.special_tokens_map)
    extra = [*special.pop("extra_special_tokens", []), *hidden]
    mask = next(token for token in core.get_added_tokens_decoder().values() if token.content == tokenizer.mask_token)
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        **{**special, "mask_token": mask},
        extra_special_tokens=extra,
        model_max_length=tokenizer.model_max_length,
        clean_up_tokenization_spaces=False,
        padding_side="right",
        chat_template=tokenizer.chat_template,
    )


def tokenizer_for(config: Any, tokenizer: Any) -> Any:
    """The tokenizer as the model of a UDMConfig reads it: the given one, or `decoder_tokenizer` of it where that alone
    has the mask token and the frame of the configuration."""
    if not config.from_decoder:
        return tokenizer
    wanted = config.mask_token_id, (config.prefix_token_ids, config.suffix_token_ids)
    for own in (tokenizer, decoder_tokenizer(tokenizer)):
        if (own.mask_token_id, tokenizer_frame(own)) == wanted:
            return own
    return tokenizer


@torch.no_grad()
def add_rows(backbone: Any, config: Any, new: list[int | None]) -> None:
    """Gives a decoder as many rows of embeddings as `config` (a UDMConfig) has tokens, and new tokens their start.

    Rows of `new` tokens, of the head too where it has its own, are the mean of the rows of tokens that can be drawn: a
    decoder has never read [MASK], and from there it is as near to any token as to any other. Rows beyond the vocabulary
    that are no tokens get the same, which nothing reads.

    Raises:
        ValueError: where a device map keeps the embeddings on a disk, so that nothing can be added to them.
    """
    old = backbone.get_input_embeddings().weight.shape[0]
    ordinary = [i for i in config.allowed_token_ids().tolist() if i < old]
    rows = sorted({*new, *range(old, config.vocab_size)} - {None})

    def tables() -> list[torch.Tensor]:
        parts = backbone.get_input_embeddings(), backbone.get_output_embeddings()
        weights = [getattr(part, "weight", None) for part in parts]
        return list({id(weight): weight for weight in weights if weight is not None}.values())

    if rows and hasattr(backbone, "hf_device_map") and any(weight.is_meta for weight in tables()):
        raise ValueError(
            f"this decoder has no embedding of rows {rows} yet, and device_map {backbone.hf_device_map} keeps its "
            "embeddings or its head where none can be added: load it without device_map once, save it with "
            "save_pretrained and load that"
        )
    if config.vocab_size > old:
        backbone.resize_token_embeddings(config.vocab_size, mean_resizing=False)
    for weight in tables() if rows and ordinary else ():
        weight[rows] = weight[ordinary].float().mean(dim=0).to(weight.dtype)
