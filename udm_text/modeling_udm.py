"""The x0-predictor: any masked language model, or a decoder made one, asked for the clean tokens of a corrupted row; or
any encoder-decoder, which writes them one after the other."""

from __future__ import annotations

import copy
import functools
import inspect
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import CommitInfo
from torch import Tensor, nn
from transformers import (
    MODEL_FOR_MASKED_LM_MAPPING,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
    AutoModel,
    AutoModelForSeq2SeqLM,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers import initialization as init
from transformers.modeling_outputs import MaskedLMOutput
from transformers.utils import TRANSFORMERS_DYNAMIC_MODULE_NAME, can_return_tuple, logging
from transformers.utils.hub import cached_file
from transformers.utils.hub import has_file as has_file_on_the_hub

from .autoregressive import shift_right
from .backbones import has_known_structure, untouched
from .configuration_udm import OWN_CODE, PROCESSES, UDMConfig, check_sizes
from .decoders import add_rows, auto_class, is_decoder, make_bidirectional
from .devices import device_of
from .embedding_shift import adding, check_embedding
from .framing import LOCATION_ARGUMENTS, has_file, untrusted
from .generation_configuration_udm import UDMGenerationConfig
from .generation_udm import UDMGenerationMixin
from .padding import PaddingProbe, by_length
from .positions import ROW_BLOCK
from .probes import check_context, check_offloaded
from .widths import WidthHead
from .writing import Writer

logger = logging.get_logger(__name__)


class TimeEmbedding(nn.Module):
    """An embedding of how much is corrupted, zero at the start: a pretrained backbone is unchanged.

    Cosine and sine of pi k t/l for k = 1..16, then a two-layer network into the hidden size. Where the text does not
    show its own length (`counts`), t itself is told, by angles pi t / 2^(0.75 k) for k = 0..15.
    """

    num_frequencies = 16

    def __init__(self, hidden_size: int, counts: bool = False):
        super().__init__()
        self.counts = counts
        self.hidden = nn.Linear(2 * self.num_frequencies, hidden_size)
        self.output = nn.Linear(hidden_size, hidden_size)

    def forward(self, t: Tensor, lengths: Tensor) -> Tensor:
        """t, lengths: (B,), or (B, L) told token by token, t of l positions corrupted; returns (B, hidden_size) or
        (B, L, hidden_size) in the parameters' dtype."""
        k = torch.arange(self.num_frequencies, device=t.device, dtype=torch.float32)
        if self.counts:
            angle = math.pi * t.float()[..., None] * 2.0 ** (-0.75 * k)
        else:
            angle = math.pi * (t / lengths.clamp(min=1)).float()[..., None] * (k + 1)
        weight: Any = self.hidden.weight  # a function where torch has quantised the layer, which reads float32
        features = torch.cat((angle.cos(), angle.sin()), dim=-1)
        features = features.to(weight.dtype) if isinstance(weight, Tensor) else features
        return self.output(nn.functional.silu(self.hidden(features)))


@dataclass
class UDMOutput(MaskedLMOutput):
    """
    What the network says: a `MaskedLMOutput`, and what heads of our own say.

    Args:
        gap_logits (`torch.FloatTensor` of shape `(gaps,)`, *optional*): the scores of the gaps that were asked about;
            of shape `(gaps, k)` where the process has k `gap_scores`.
        width_logits (`torch.FloatTensor` of shape `(rows, N + 1)`, *optional*): of the width of the first blank of each
            row, where `blanks` are given.
    """

    gap_logits: Tensor | None = None
    width_logits: Tensor | None = None


_HEADS = (
    ("cls",),  # BERT and its kin
    ("lm_head",),  # RoBERTa and its kin
    ("head", "decoder"),  # ModernBERT
    ("predictions",),  # ALBERT
    ("generator_predictions", "generator_lm_head"),  # ELECTRA
    ("vocab_transform", "activation", "vocab_layer_norm", "vocab_projector"),  # DistilBERT
)
"""Modules that lead from the last hidden states to the logits, one after the other."""


_PLAIN_DECODERS = frozenset(
    "LlamaForCausalLM MistralForCausalLM Qwen2ForCausalLM Qwen3ForCausalLM GemmaForCausalLM Gemma3ForCausalLM "
    "GPT2LMHeadModel".split()
)
"""Decoders whose logits are `lm_head` of the last hidden states and nothing behind it; others cap or scale them."""


def language_head(backbone: PreTrainedModel) -> Callable[[Tensor], Tensor] | None:
    """The function from last hidden states (..., hidden) to logits (..., V) of a masked LM or a decoder.

    Known where a masked LM consists of its body and one of the chains of `_HEADS`, and of nothing else that could take
    part, neither a forward that is not of transformers nor a hook; and of `_PLAIN_DECODERS`, unless they cap their
    logits. Otherwise None, and then full logits are computed by the model's own forward and selected from.
    """
    if not untouched(backbone):
        return None
    if is_decoder(backbone.config):
        capped = getattr(backbone.config, "final_logit_softcapping", None) is not None
        if capped or type(backbone).__name__ not in _PLAIN_DECODERS:
            return None
    children = {name for name, child in backbone.named_children() if not isinstance(child, nn.modules.loss._Loss)}
    own = [*backbone.parameters(recurse=False), *backbone.buffers(recurse=False)]
    for names in _HEADS:
        if children == {backbone.base_model_prefix, *names} and not own:
            modules = [backbone.get_submodule(name) for name in names]
            return lambda hidden: functools.reduce(lambda x, module: module(x), modules, hidden)
    return None


def one_before(positions: Tensor | tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Where the predictions for `positions` are read under `shift_logits`: one to the left, the first at itself.

    positions: (B, L) bool, or rows and columns (N,) int64; returns rows and columns.
    """
    rows, columns = positions.nonzero(as_tuple=True) if isinstance(positions, Tensor) else positions
    return rows, (columns - 1).clamp(min=0)


def network_class(config: UDMConfig) -> Any:
    """The class of transformers that makes the backbone. Raises ValueError where it has none for its text_config."""
    if config.writes_rows:
        if type(config.text_config) not in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING:
            raise ValueError(
                f"text_config is of model type {config.text_config.model_type!r}, which has no sequence-to-sequence LM "
                "in transformers; give a BART, T5 or any other model that AutoModelForSeq2SeqLM loads"
            )
        return AutoModelForSeq2SeqLM
    if not (config.from_decoder or type(config.text_config) in MODEL_FOR_MASKED_LM_MAPPING):
        raise ValueError(
            f"text_config is of model type {config.text_config.model_type!r}, which has no masked LM in transformers "
            "and no decoder; give a BERT, RoBERTa, ModernBERT or any other model that AutoModelForMaskedLM loads, or a "
            "Llama, Qwen3, GPT-2 or any other that AutoModelForCausalLM loads"
        )
    return auto_class(config.text_config)


def check_given(backbone: PreTrainedModel) -> None:
    """Raises ValueError for a backbone that is causal, that has no head, or that changes with what it has read."""
    config = backbone.config
    if getattr(config, "attention_type", None) == "block_sparse":
        raise ValueError(
            f"the backbone of model type {config.model_type!r} has attention_type='block_sparse', which it changes for "
            "good when it reads a short row, so that a text would depend on what was written before it: give "
            "attention_type='original_full', which it reads rows of some hundred tokens by in any case"
        )
    for name in ("is_decoder", "causal"):
        if getattr(config, name, False) and type(config) in MODEL_FOR_MASKED_LM_MAPPING:
            raise ValueError(
                f"the backbone of model type {config.model_type!r} is causal ({name}=True), as the twin of objective "
                "'ar' is: it does not see what stands behind a token, which diffusion needs. Give a masked LM, whose "
                f"{name} is False; weights that were trained to be causal know nothing of masks"
            )
    if backbone.get_output_embeddings() is None and isinstance(backbone.get_input_embeddings(), nn.Module):
        raise ValueError(
            f"backbone must be a masked LM with its head, got {type(backbone).__name__}: give what "
            "AutoModelForMaskedLM loads"
        )


def check_own_code(backbone: Any, path: Any = "the backbone") -> None:
    """Raises ValueError for a backbone whose class came with its weights: what is saved around it would lack that."""
    if type(backbone).__module__.startswith(TRANSFORMERS_DYNAMIC_MODULE_NAME):
        raise ValueError(OWN_CODE.format(path=path, what=f"the class {type(backbone).__name__}"))


def check_weights(path: Any, **where: Any) -> int | None:
    """The parameters that the safetensors of a model hold, from their headers alone; None where there are none.

    Raises:
        OSError: for a file that is no safetensors, or is cut off; for an index that is no index, or that names a file
            which does not lie beside it.
    """
    asked = {name: value for name, value in where.items() if name != "force_download"}
    how: dict[str, Any] = {"_raise_exceptions_for_missing_entries": False, **asked}
    how["_raise_exceptions_for_connection_errors"] = False
    names = ["model.safetensors"]
    if cached_file(path, names[0], **how) is None:
        index = cached_file(path, "model.safetensors.index.json", **how)
        if index is None:
            return None
        try:
            names = sorted(set(json.loads(Path(index).read_text(encoding="utf-8"))["weight_map"].values()))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise OSError(f"{index} is no index of safetensors: its weight_map must name their files") from error
        for name in names:
            if not isinstance(name, str) or Path(name).name != name or "\\" in name:
                raise OSError(f"{index} names {name!r}, which does not lie beside it: nothing is read")
    total = 0
    for name in names:
        file = cached_file(path, name, **how)
        if file is None:
            raise OSError(f"{path} holds no {name}, which its index names")
        total += _count_stored(Path(file))
    return total


def _count_stored(file: Path) -> int:
    """The numbers that a file of safetensors holds, by its header."""
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if not 0 < length <= size - 8:
                raise ValueError("a header longer than the file")
            tensors = json.loads(stream.read(length))
        tensors.pop("__metadata__", None)
        ends = [entry["data_offsets"][1] for entry in tensors.values()]
        count = sum(math.prod(entry["shape"]) for entry in tensors.values())
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError) as error:
        raise OSError(f"{file} is no file of safetensors, or a damaged one: fetch or copy it again") from error
    if max(ends, default=0) + length + 8 != size:
        raise OSError(
            f"{file} is damaged: its header speaks of {max(ends, default=0) + length + 8} bytes, and it has {size}; "
            "fetch or copy it again"
        )
    return count


def refuse_pickle(path: Any, **where: Any) -> None:
    """Raises OSError where a model's only weights are pickle, which can run any code when it is read."""
    where = {name: value for name, value in where.items() if name != "force_download"}
    if any(has_file(path, f"model.safetensors{end}", **where) for end in ("", ".index.json")):
        return
    asked = {name: value for name, value in where.items() if name != "subfolder"}
    inside = f"{where['subfolder']}/" if where.get("subfolder") else ""
    for name in ("pytorch_model.bin", "pytorch_model.bin.index.json"):
        if has_file_on_the_hub(path, inside + name, **asked):
            raise OSError(
                f"{path} holds its weights as {name} only, which is pickle: it can run any code when it is read, and "
                "is refused. If you trust where it is from, load it with its own class and save_pretrained, which "
                "writes safetensors"
            )


class UDMPreTrainedModel(PreTrainedModel):
    config_class = UDMConfig
    generation_config_class = UDMGenerationConfig
    backbone: PreTrainedModel
    time_embedding: TimeEmbedding | None
    gap_head: nn.Linear | None
    width_head: WidthHead | None
    base_model_prefix = "backbone"
    main_input_name = "input_ids"
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        # By layer, not by TimeEmbedding: transformers hands over only modules with parameters of their own, where the
        # code is not its own.
        time = self.time_embedding
        if module is self.gap_head:
            init.zeros_(module.weight)
            init.copy_(module.bias, torch.tensor(PROCESSES[self.config.process].gap_scores))
        elif isinstance(module, nn.Linear) and time is not None and module in (time.hidden, time.output):
            std = 1.0 / math.sqrt(module.in_features) if module is time.hidden else 0.0
            init.normal_(module.weight, std=std)
            init.zeros_(module.bias)
        elif self.width_head is not None and module is self.width_head:
            init.zeros_(module.blank_embedding)
        elif self.width_head is not None and module is self.width_head.head:
            init.zeros_(module.weight)
            init.zeros_(module.bias)
        else:  # a resized embedding; what is inside the backbone is initialised by the backbone itself
            self.backbone._init_weights(module)


class UDMForMaskedGeneration(UDMPreTrainedModel, UDMGenerationMixin):
    """A masked LM, a decoder made bidirectional or an encoder-decoder as predictor of x0, with `generate` by diffusion.

    Args:
        config: see `UDMConfig`.
        backbone: the network itself, whose configuration takes the place of `config.text_config`, that of a decoder
            with `is_causal=False` from now on; None builds one from that, with new weights.
    """

    accepts_loss_kwargs = True  # the loss may be divided by the tokens of the global batch

    def __init__(self, config: UDMConfig, backbone: PreTrainedModel | None = None):
        given = backbone is not None
        super().__init__(config)
        self.generation_config = UDMGenerationConfig(pad_token_id=config.pad_token_id)
        if backbone is None:
            backbone = network_class(config).from_config(config.text_config)
        check_given(backbone)
        make_bidirectional(backbone.config)
        config.text_config = backbone.config
        config._attn_implementation_internal = backbone.config._attn_implementation
        self.backbone = backbone
        self._padding, self._known_structure = PaddingProbe(), has_known_structure(backbone)
        embedding: Any = self.backbone.get_input_embeddings()
        check_embedding(embedding, config)
        inserts, scores = PROCESSES[config.process].inserts, len(PROCESSES[config.process].gap_scores)
        self.time_embedding = (
            TimeEmbedding(embedding.embedding_dim, counts=inserts) if config.time_conditioning else None
        )
        self.gap_head = nn.Linear(backbone.config.hidden_size, scores) if scores else None
        self.width_head = None
        if config.blank_widths is not None:
            self.width_head = WidthHead(embedding.embedding_dim, backbone.config.hidden_size, config.blank_widths)
        self.post_init()
        if given:
            check_context(self, f"the {type(backbone).__name__} given as backbone")

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *model_args, config=None, **kwargs):
        """As in transformers, for our own checkpoints and for those of any masked LM or decoder.

        A plain masked LM is wrapped: its weights are loaded by its own class, head included. An encoder without a head
        gets a new one, with a warning. A decoder is made bidirectional, and gets a row for each token its tokenizer
        lacks; one that does not become so is refused (`probes.check_context`). UDMConfig arguments (`process=`,
        `kernel=`, `mask_token_id=`...) may be given. Code that lies beside the weights runs with
        `trust_remote_code=True` only; nothing is asked.
        """
        path = pretrained_model_name_or_path
        if path is None:  # weights given as state_dict
            return super().from_pretrained(path, *model_args, config=config, **kwargs)
        where = {name: kwargs[name] for name in LOCATION_ARGUMENTS if name in kwargs}
        trust = bool(kwargs.pop("trust_remote_code", None))
        stored, _ = UDMConfig.get_config_dict(path, trust_remote_code=trust, **where)
        if not stored:
            raise OSError(f"{path} holds no config.json that names a model")
        own = {name: kwargs.pop(name) for name in UDMConfig._own_fields() if name in kwargs}
        if own and config is not None:
            raise ValueError(f"give config or its fields, not both: config and {', '.join(own)}")
        if not {"variant", "state_dict", "gguf_file", "use_safetensors"} & kwargs.keys():
            refuse_pickle(path, **where)
            stored_parameters = check_weights(path, **where)
            if stored_parameters is not None:
                check_sizes(UDMConfig.from_dict(stored, **own).text_config, stored_parameters)
        raw, _ = PreTrainedConfig.get_config_dict(path, **where)
        if raw.get("model_type") == UDMConfig.model_type:
            config = config or (UDMConfig.from_dict(stored, **own) if own else None)
            loaded = super().from_pretrained(path, *model_args, config=config, **kwargs)
            check_context(found := loaded[0] if isinstance(loaded, tuple) else loaded, path)
            check_offloaded(found, path)
            return loaded
        config = UDMConfig.from_dict(stored, **own) if config is None else copy.deepcopy(config)
        network = network_class(config)
        if "text_config" in own:
            kwargs["config"] = copy.deepcopy(config.text_config)
        if config.from_decoder:
            kwargs["config"] = copy.deepcopy(config.text_config)
            kwargs["config"].vocab_size = raw.get("vocab_size", config.vocab_size)
        wants_info = kwargs.pop("output_loading_info", False)
        generation_config = kwargs.pop("generation_config", None)
        with untrusted(path):
            backbone, info = network.from_pretrained(path, output_loading_info=True, trust_remote_code=trust, **kwargs)
        check_own_code(backbone, path)
        if info["missing_keys"]:
            what = "a decoder" if config.from_decoder else "an encoder"
            logger.warning(
                f"{path} has no trained weights for {', '.join(sorted(info['missing_keys']))}: these are NEW and "
                f"random. It is {what} without a language-model head; train it before generating."
            )
        if config.from_decoder:
            # one that was bidirectional before has read [MASK]
            add_rows(backbone, config, [] if raw.get("is_causal") is False else [config.mask_token_id])
        config.name_or_path = path
        model = cls(config, backbone=backbone)
        weight = backbone.get_input_embeddings().weight
        for part in (model.time_embedding, model.gap_head, model.width_head):
            if part is not None:
                part.to(device=device_of(backbone.get_input_embeddings()), dtype=weight.dtype)
        own_keys = set(model.state_dict()) - {f"backbone.{name}" for name in backbone.state_dict()}
        info["missing_keys"] = {*info["missing_keys"], *own_keys}
        if generation_config is not None:
            model.generation_config = UDMGenerationConfig.from_dict(generation_config.to_dict())
        model.eval()
        check_context(model, path)
        check_offloaded(model, path)
        return (model, info) if wants_info else model

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        """As in transformers, but weights have the names of the modules unless `save_original_format` is given.

        With it they have those of the backbone's authors, where transformers has changed them.

        Raises:
            ValueError: for a backbone whose class came with its weights (`trust_remote_code`).
        """
        check_own_code(self.backbone)
        kwargs.setdefault("save_original_format", False)
        super().save_pretrained(save_directory, *args, **kwargs)

    def push_to_hub(self, repo_id: str, **kwargs: Any) -> CommitInfo:  # type: ignore[override]
        """Publishes the model, its tokenizer and a card in one commit; for the arguments see `udm_text.hub.push`."""
        from .hub import push

        return push(self, repo_id, **kwargs)

    def get_input_embeddings(self):
        return self.backbone.get_input_embeddings()

    def set_input_embeddings(self, value):
        self.backbone.set_input_embeddings(value)

    def get_output_embeddings(self):
        return self.backbone.get_output_embeddings()

    def set_output_embeddings(self, value):
        self.backbone.set_output_embeddings(value)

    @property
    def supports_gradient_checkpointing(self) -> bool:  # type: ignore[override]
        """Whether the backbone has layers that can be computed twice."""
        return any(hasattr(module, "gradient_checkpointing") for module in self.backbone.modules())

    def _activation_checkpointing_enable(self, *args: Any, **kwargs: Any) -> None:
        if not self.supports_gradient_checkpointing:
            raise ValueError(
                "gradient_checkpointing needs a backbone whose layers transformers can compute twice, and that of "
                f"model type {self.config.text_config.model_type!r} has none: leave it at False"
            )
        super()._activation_checkpointing_enable(*args, **kwargs)

    def tie_weights(self, *args, **kwargs):
        super().tie_weights(*args, **kwargs)
        # Tied weights are not written twice; told to the Trainer, which would warn of them as missing on resume.
        below = self.backbone._keys_to_ignore_on_save or ()
        self._keys_to_ignore_on_save = {f"backbone.{name}" for name in below} | set(self.all_tied_weights_keys)

    def resize_token_embeddings(
        self, new_num_tokens: int | None = None, pad_to_multiple_of: int | None = None, mean_resizing: bool = True
    ) -> nn.Embedding:
        """As in transformers, by the backbone's own method. New tokens can be drawn; rows that only pad the vocabulary
        become special and cannot.

        After adding special tokens to a tokenizer, or using rows that were spare, tell the model what is special:
        `model.config.update(tokenizer_fields(tokenizer, model.config.vocab_size))`.
        """
        config = self.config
        for name in ("mask_token_id", "pad_token_id"):
            value = getattr(config, name)
            if None not in (value, new_num_tokens) and value >= new_num_tokens:
                raise ValueError(f"new_num_tokens must keep {name} {value}, got {new_num_tokens}")
        used = config.vocab_size if new_num_tokens is None else new_num_tokens
        resize = self.backbone.resize_token_embeddings
        if "mean_resizing" in inspect.signature(resize).parameters:
            embedding = resize(new_num_tokens, pad_to_multiple_of, mean_resizing)
        else:  # MobileBERT has a method of its own, which takes the number alone
            rows = used if pad_to_multiple_of is None else -(-used // pad_to_multiple_of) * pad_to_multiple_of
            embedding = resize(rows)
        self.vocab_size = config.vocab_size  # as transformers leaves it
        self.tie_weights()
        spare = range(used, config.vocab_size)
        for name in ("special_token_ids", "prefix_token_ids", "suffix_token_ids", "separator_token_ids"):
            if getattr(config, name) is not None:
                setattr(config, name, [i for i in getattr(config, name) if i < used])
        config.special_token_ids += spare
        return embedding

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        t: Tensor | None = None,
        labels: Tensor | None = None,
        num_editable: Tensor | None = None,
        positions: Tensor | tuple[Tensor, Tensor] | None = None,
        gaps: tuple[Tensor, Tensor] | None = None,
        inputs_embeds: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        apply_head: Callable[[Callable[[Tensor], Tensor], Tensor], Tensor] | None = None,
        blanks: Tensor | None = None,
        x0: Tensor | None = None,
        **kwargs: Any,
    ) -> UDMOutput:
        """Logits of x0 given xt.

        Args:
            input_ids: (B, L) int64, xt. attention_mask: (B, L), 1 where there is a token. position_ids: (B, L).
            t: (B,) corrupted editable positions of each row; needed where the model is conditioned on time. (B, L)
                where rows share a sequence: of the row of each token.
            num_editable: l of each row, of the shape of t; None counts attended positions that hold no special token
                (or [MASK]).
            labels: (B, L) int64, x0 where it is scored and -100 elsewhere; the loss is the mean cross-entropy there,
                special tokens excluded from the softmax and, as labels, from the mean.
            positions: (B, L) bool, where logits are wanted, or their rows and columns, a pair of (N,) int64; None:
                everywhere.
            gaps: rows and columns, a pair of (M,) int64, of the gaps whose scores are wanted (process "delete"), each
                named by the position that it is read at; of process "edit" of any positions.
            num_items_in_batch: what the summed loss is divided by in place of the number of labels.
            apply_head: with positions, called as apply_head(head, hidden) in place of head(hidden), hidden (N, H); what
                it gives stands in the output's logits. For losses that never hold all logits at once.
            blanks: (B, L) bool, where a [MASK] is a blank of unknown width (widths.py); the output then holds
                width_logits (B, N + 1) of the first one of each row.
            x0: (B, L) int64, the clean rows, of a model whose decoder writes them: the logits of a position are given
                xt and the tokens of x0 before it.

        Returns:
            UDMOutput with logits (B, L, V), or (N, V) in the order of the positions; gap_logits (M,) of the gaps, or
            (M, k) of k scores each.
        """
        shift = self._shift(input_ids, attention_mask, inputs_embeds, t, num_editable, blanks)
        if shift is not None and (inputs_embeds is not None or self._takes_embeddings()):
            inputs_embeds = (self.get_input_embeddings()(input_ids) if inputs_embeds is None else inputs_embeds) + shift
            shift = None
        inputs: dict[str, Any] = {"attention_mask": attention_mask, "return_dict": True, **kwargs}
        inputs |= {"input_ids": input_ids} if inputs_embeds is None else {"inputs_embeds": inputs_embeds}
        if position_ids is not None:
            inputs["position_ids"] = position_ids
        if self.config.writes_rows:
            if x0 is None:
                raise ValueError("a decoder writes the clean rows of this model: forward needs x0, what it has written")
            inputs["decoder_input_ids"] = shift_right(x0, self.config.text_config.decoder_start_token_id)
        elif x0 is not None:
            raise ValueError("x0 is read by the decoder of a model with predictor 'autoregressive', and this has none")

        if gaps is not None and self.gap_head is None:
            raise ValueError(
                f"gaps are scored by models of process 'delete' or 'edit', this one has {self.config.process!r}"
            )
        read = positions if positions is None or not self.config.shift_logits else one_before(positions)
        head = language_head(self.backbone) if positions is not None else None
        if (gaps is not None or blanks is not None) and head is None:
            inputs["output_hidden_states"] = True
        if apply_head is not None and (head is None or labels is not None):
            raise ValueError("apply_head needs positions, no labels, and a backbone whose head is known")
        output = self._run(self.backbone if head is None else self.backbone.base_model, inputs, shift)
        if apply_head is not None and head is not None:
            logits = apply_head(head, output.last_hidden_state[read])
        elif head is not None:
            hidden = output.last_hidden_state[read]
            rounds = hidden.device.type == "cpu" and not torch.compiler.is_compiling() and len(hidden) > ROW_BLOCK
            surplus = -len(hidden) % ROW_BLOCK if rounds else 0
            logits = head(nn.functional.pad(hidden, (0, 0, 0, surplus)) if surplus else hidden)
            if surplus:  # a slice that leaves nothing out still costs a copy of all logits backward
                logits = logits[: len(hidden)]
        else:
            logits = output.logits if read is None else output.logits[read]
            if read is None and self.config.shift_logits:
                logits = torch.cat((logits[:, :1], logits[:, :-1]), dim=1)

        gap_logits = None
        if gaps is not None and self.gap_head is not None:
            last = output.last_hidden_state if head is not None else output.hidden_states[-1]
            gap_logits = self.gap_head(last[gaps])
            gap_logits = gap_logits[:, 0] if gap_logits.shape[1] == 1 else gap_logits
        loss = None
        if labels is not None:
            target = labels if positions is None else labels[positions]
            forbidden = self.config.forbidden_tokens(logits.device)
            target = target.masked_fill(forbidden[target.clamp(min=0)], -100)
            scores = logits.float().masked_fill(forbidden, -torch.inf)
            how = "mean" if num_items_in_batch is None else "sum"
            loss = nn.functional.cross_entropy(
                scores.flatten(0, -2), target.flatten(), ignore_index=-100, reduction=how
            )
            loss = loss if num_items_in_batch is None else loss / num_items_in_batch
        width_logits = None
        if blanks is not None and self.width_head is not None:
            last = output.hidden_states[-1] if head is None else output.last_hidden_state
            width_logits = self.width_head(last, blanks)
        return UDMOutput(
            loss=loss,
            logits=logits,
            hidden_states=output.get("hidden_states"),
            attentions=output.get("attentions"),
            gap_logits=gap_logits,
            width_logits=width_logits,
        )

    def begin_writing(self, input_ids: Tensor, attention_mask: Tensor, t: Tensor, num_editable: Tensor) -> Writer:
        """Reads xt: the decoder before its first token, of a model whose decoder writes x0.

        input_ids, attention_mask: (B, L) int64. t, num_editable: (B,), as in `forward`.
        """
        shift = self._shift(input_ids, attention_mask, None, t, num_editable, None)
        said = {"input_ids": input_ids}
        if shift is not None:
            said = {"inputs_embeds": self.get_input_embeddings()(input_ids) + shift}
        read = self.backbone.get_encoder()(**said, attention_mask=attention_mask, return_dict=True)
        return Writer(self.backbone, read, attention_mask, self.config.text_config.decoder_start_token_id)

    def _takes_embeddings(self) -> bool:
        """Whether the backbone reads embeddings in place of tokens as it reads the tokens; one of unknown structure is
        believed to where torch.compile looks on, which knows no hooks that come and go."""
        return self._known_structure or self.config.writes_rows or torch.compiler.is_compiling()

    def _shift(
        self,
        input_ids: Tensor | None,
        attention_mask: Tensor | None,
        inputs_embeds: Tensor | None,
        t: Tensor | None,
        num_editable: Tensor | None,
        blanks: Tensor | None,
    ) -> Tensor | None:
        """What is added to the embeddings of the tokens, (B, L, E) or what broadcasts to it, None: nothing.

        To a backbone of known structure, which reads no padding, it is added there, too.
        """
        tokens: Any = input_ids if inputs_embeds is None else inputs_embeds
        dtype = self.get_input_embeddings().weight.dtype if inputs_embeds is None else inputs_embeds.dtype
        shift: Tensor | None = None
        if self.time_embedding is not None:
            if t is None:
                raise ValueError(
                    "this model is conditioned on time: forward needs t, the corrupted positions of each row"
                )
            if num_editable is None:
                if input_ids is None:
                    raise ValueError("num_editable is needed where input_ids is not given")
                num_editable = self._count_editable(input_ids, attention_mask)
            told = self.time_embedding(t.to(tokens.device), num_editable).to(dtype)
            shift = told[:, None] if told.dim() == 2 else told
        if blanks is not None:
            if self.width_head is None:
                raise ValueError("blanks need a width head, and blank_widths of this model is None")
            marks = self.width_head.marks(blanks).to(dtype)
            shift = marks if shift is None else shift + marks
        if shift is not None and not self._known_structure:
            shift = shift.expand(*tokens.shape[:2], -1)
            if isinstance(attention_mask, Tensor) and attention_mask.dim() == 2:
                shift = shift * attention_mask[..., None].to(dtype)
        return shift

    def _run(self, network: nn.Module, inputs: dict[str, Any], shift: Tensor | None) -> Any:
        """network(**inputs), with `shift` added to its embeddings; by rows of one length where padding takes part."""

        def call(shift: Tensor | None = None, **inputs: Any) -> Any:
            with adding(self.get_input_embeddings(), shift):
                return network(**inputs)

        if self.config.writes_rows:
            return network(**inputs)
        if shift is not None:
            inputs = {**inputs, "shift": shift}
        if self._known_structure or not self._padding.matters(self, call, inputs):
            return call(**inputs)
        return by_length(call, inputs)

    def _count_editable(self, input_ids: Tensor, attention_mask: Tensor | None) -> Tensor:
        editable = self.config.editable(input_ids, attention_mask)
        if self.config.mask_token_id is not None:
            editable |= input_ids == self.config.mask_token_id
        return editable.sum(dim=-1)


class UDMModel(UDMPreTrainedModel):
    """What `AutoModel` gives of our checkpoints: the body of the backbone, without a head."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *model_args, **kwargs):
        """The body of the masked LM in a checkpoint, an object of its own class; no time embedding is part of it."""
        found = UDMForMaskedGeneration.from_pretrained(pretrained_model_name_or_path, *model_args, **kwargs)
        model, *info = found if isinstance(found, tuple) else (found,)
        if model.time_embedding is not None:
            logger.warning(
                f"{pretrained_model_name_or_path} is conditioned on time, and what AutoModel gives of it is not told "
                "of any: AutoModelForMaskedLM gives the whole model"
            )
        return (model.backbone.base_model, *info) if info else model.backbone.base_model

    @classmethod
    def _from_config(cls, config, **kwargs):
        return AutoModel.from_config(config.text_config, **kwargs)
