"""Configuration of a model. The only place that maps a name to a process."""

from __future__ import annotations

import copy
import dataclasses
import math
import os
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

import torch
from huggingface_hub.dataclasses import strict
from huggingface_hub.errors import StrictDataclassError
from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec
from transformers.utils import TRANSFORMERS_DYNAMIC_MODULE_NAME
from transformers.utils.hub import cached_file

from .autoregressive import JointProcess
from .common import CONFIG_EXTRAS, choices, read_object
from .decoders import decoder_tokenizer, is_decoder, make_bidirectional
from .edits import EditProcess
from .framing import LOCATION_ARGUMENTS, find_tokenizer, tokenizer_fields
from .kernels import ALL_KERNELS, KERNELS
from .processes import DeleteProcess, MaskProcess, SubstituteProcess, UniformProcess
from .widths import MOST_WIDTHS

_POSITIONS_BEHIND_PADDING = frozenset(
    "camembert data2vec-text ibert longformer luke roberta roberta-prelayernorm xlm-roberta xlm-roberta-xl xmod".split()
)
"""Model types whose positions are counted from pad_token_id + 1 on, which costs them as many positions."""

CONFIG_VERSION = 1
"""Raised when a newer package writes what an older one cannot read."""

_INSTALLED = not __name__.startswith(TRANSFORMERS_DYNAMIC_MODULE_NAME)
"""False in the copy of this file that a repository on the Hub carries."""

PROCESSES: dict[str, Any] = {
    "mask": MaskProcess,
    "substitute": SubstituteProcess,
    "uniform": UniformProcess,
    "delete": DeleteProcess,
    "edit": EditProcess,
}
"""The one table from a process's name to its class, a `TokenProcess`."""

PREDICTORS: dict[str, Any] = {"factorised": lambda process: process, "autoregressive": JointProcess}
"""What becomes of a process by how x0 is predicted: every token by itself, or whole rows from left to right."""

PRESETS = {
    "tiny": (2, 128, 2),
    "mini": (4, 256, 4),
    "small": (4, 512, 8),
    "base": (12, 768, 12),
}
"""Sizes of new models by name: layers, hidden size, attention heads."""

MOST = {
    "vocab_size": 1 << 26,
    "hidden_size": 1 << 18,
    "embedding_size": 1 << 18,
    "intermediate_size": 1 << 20,
    "num_hidden_layers": 1 << 12,
    "num_attention_heads": 1 << 14,
    "max_position_embeddings": 1 << 26,
    "type_vocab_size": 1 << 16,
}
"""What a text_config may ask for; beyond it a config is damaged, or means harm, and nothing is built."""

MOST_PARAMETERS = 1 << 38
"""Parameters of a model at most."""

OWN_CODE = (
    "{path} is a network by code of its own ({what}), which a model around it would not carry when it is saved: it is "
    "refused before it is trained: give one of transformers' own. For use without saving its masked LM, loaded by its "
    "class, may be given as UDMForMaskedGeneration(config, backbone=...)"
)
"""What is said of a backbone that comes with code."""

_RESIZE = " (a tokenizer that was added to needs model.resize_token_embeddings(len(tokenizer)) first)"


def check_config_file(path: Any, **where: Any) -> None:
    """Raises ValueError where the config.json of a model is no JSON object, or fields of it are none either."""
    if os.path.isfile(path):
        return
    missing = ("_raise_exceptions_for_missing_entries", "_raise_exceptions_for_connection_errors")
    file = cached_file(path, "config.json", **dict.fromkeys(missing, False), **where)
    if file is None:
        return
    stored = read_object(file)
    for name in ("auto_map", "text_config", "custom_pipelines"):
        if name in stored and not isinstance(stored[name], dict):
            raise ValueError(f"{file}: {name} must be an object, got {stored[name]!r}")
    if not isinstance(stored.get("model_type", ""), str):
        raise ValueError(f"{file}: model_type must be a string, got {stored['model_type']!r}")


def check_sizes(config: Any, stored: int | None = None) -> None:
    """Raises ValueError where a masked LM of this text_config would be absurdly large, before anything is built.

    stored: parameters of the checkpoint beside it, which it may exceed by a factor of four (a new head, new tokens);
    None: there is none.
    """
    for name, most in MOST.items():
        value = getattr(config, name, None)
        if isinstance(value, int) and not 0 <= value <= most:
            raise ValueError(f"text_config asks for {name} {value}, and a model has {most} at most")
    hidden, layers = (getattr(config, name, 0) for name in ("hidden_size", "num_hidden_layers"))
    if not (isinstance(hidden, int) and isinstance(layers, int)):
        return
    width = min(hidden, getattr(config, "embedding_size", hidden) or hidden)
    own = 1 if hasattr(config, "num_hidden_groups") else layers  # ALBERT's layers share their weights
    rows = config.vocab_size + (getattr(config, "max_position_embeddings", 0) or 0) * (stored is None)
    parameters = rows * width + 4 * own * hidden**2
    most = MOST_PARAMETERS if stored is None else 4 * stored + (1 << 22)
    if parameters > most:
        beside = "a model has" if stored is None else f"the checkpoint beside it holds {stored}:"
        raise ValueError(
            f"text_config asks for some {parameters} parameters (vocab_size {config.vocab_size}, hidden_size {hidden}, "
            f"num_hidden_layers {layers}), and {beside} {most} at most"
        )


def longest_readable_row(config: Any) -> int | None:
    """The longest row that a model of transformers with this config can read; None where it has no limit."""
    positions = getattr(config, "max_position_embeddings", None)
    if positions is None:
        return None
    kind, learnt = config.model_type, getattr(config, "position_embedding_type", None)
    if kind in _POSITIONS_BEHIND_PADDING or (kind == "esm" and learnt == "absolute"):
        return positions - 1 - (config.pad_token_id or 0)
    return positions - 2 if kind == "mpnet" else positions  # as RoBERTa with the padding token 1, whichever it is


@strict
class UDMConfig(PreTrainedConfig):
    r"""
    Configuration of [`UDMForMaskedGeneration`]: a network (`text_config`) and the corruption it undoes.

    Args:
        text_config (`PreTrainedConfig` or `dict`): configuration of any `AutoModelForMaskedLM`, or of a decoder
            (`AutoModelForCausalLM`), which is made bidirectional: its `is_causal` is then False; with predictor
            `"autoregressive"` of any `AutoModelForSeq2SeqLM` (BART, T5, ...).
        process (`str`, defaults to `"mask"`): the corruption, `"mask"`, `"substitute"`, `"uniform"`, `"delete"` or
            `"edit"` (of repairers).
        predictor (`str`, defaults to `"factorised"`): how x0 is predicted, every token by itself; or
            `"autoregressive"`, as a whole row from left to right (of processes mask, substitute and uniform).
        mask_token_id (`int`, *optional*): id of [MASK]. The mask process needs it; infilling needs it for all.
        special_token_ids (`list[int]`): tokens that are never corrupted, scored or drawn: [PAD], [CLS], [UNK], ... and
            unused rows of the embedding. [MASK] is one of them by itself. Add to it what you add to a tokenizer as a
            special token; other new tokens can be drawn.
        prefix_token_ids, suffix_token_ids (`list[int]`): what the tokenizer puts around a row, as [CLS] and [SEP].
        separator_token_ids (`list[int]`, *optional*): what stands between prompt and answer, as [SEP], where the model
            was trained on both. Then only what is behind the first separator of a row may change, and `length_counts`
            are those of answers. None: rows are one text.
        prompt_dropout (`float`, defaults to 0.0): the share of training rows whose prompt was hidden, each of its
            tokens a [MASK]; guidance compares with such a prompt.
        kernel (`str`, *optional*): reverse kernel of the substitute process, `"site"`, `"hamming"` or `"free"`; the
            uniform process has one, `"uniform"`. None: the first of its process, and `"site"` where it has none.
        time_conditioning (`bool`, *optional*): whether an embedding of t/l (of t where texts grow) is added to the
            input embeddings; None: on for the substitute, the uniform and the delete process, off for masks (where the
            number of masks shows t).
        gap_tokens (`bool`, defaults to `False`): process delete: whether a network reads a [MASK] in every gap, twice
            as many tokens, which a pretrained masked LM knows to answer; else it reads a gap at the token to its left.
            Of process edit always true.
        shift_logits (`bool`, defaults to `False`): of a decoder, whether the prediction for a position is read at the
            one before it, where the decoder has learnt to make it; for the first position at itself. Only of processes
            whose tokens stay where they are.
        length_counts (`list[int]`, *optional*): `length_counts[l]` training rows had l editable tokens. Generation
            without a length draws one from it.
        step_curve (`list[float]`, *optional*): nats of a masked token where a share j/n of the row is masked, for j =
            1..n, as `udm evaluate --curve` measured it. Schedule `"optimal"` and the expected price of a generation
            need it; it is of these weights, and training drops it.
        blank_widths (`int`, *optional*): N, the most tokens that a blank may stand for, of a model of masks with a
            width head (widths.py); None: it has none, and no blank has an unknown width.
    """

    model_type = "udm"
    sub_configs_defaults = {"text_config": SubConfigSpec(config_class=AutoConfig, model_type="bert")}

    text_config: Any = None
    process: str = "mask"
    predictor: str = "factorised"
    mask_token_id: int | None = None
    pad_token_id: int | None = None
    special_token_ids: list[int] | None = None
    prefix_token_ids: list[int] | None = None
    suffix_token_ids: list[int] | None = None
    separator_token_ids: list[int] | None = None
    prompt_dropout: float = 0.0
    kernel: str | None = None
    time_conditioning: bool | None = None
    gap_tokens: bool = False
    shift_logits: bool = False
    length_counts: list[int] | None = None
    step_curve: list[float] | None = None
    blank_widths: int | None = None
    udm_version: int = CONFIG_VERSION

    _known_extras: ClassVar[frozenset[str]] = CONFIG_EXTRAS | {"custom_pipelines"}

    def __post_init__(self, **kwargs):
        self._check_version(self.udm_version)
        self._refuse(list(kwargs))
        if _INSTALLED:  # code that a repository carries is not used, and must not ask for trust_remote_code
            kwargs.pop("custom_pipelines", None)
            kwargs.pop("auto_map", None)
        if isinstance(self.text_config, PreTrainedConfig):
            # A copy: what is set here for the whole (as attn_implementation) would reach the model it was taken from.
            self.text_config = copy.deepcopy(self.text_config)
            kwargs.setdefault("attn_implementation", self.text_config._attn_implementation)
        super().__post_init__(**kwargs)
        if self.predictor not in PREDICTORS:
            raise ValueError(f"predictor must be {choices(PREDICTORS)}, got {self.predictor!r}")
        self._check_architecture()
        make_bidirectional(self.text_config)
        check_sizes(self.text_config)
        if self.process not in PROCESSES:
            raise ValueError(f"process must be {choices(PROCESSES)}, got {self.process!r}")
        if self.writes_rows and not PROCESSES[self.process].whole_rows:
            able = choices([name for name, process in PROCESSES.items() if process.whole_rows])
            raise ValueError(
                f"predictor {self.predictor!r} writes a row of known length, token for token: process must be {able}, "
                f"got {self.process!r}"
            )
        self.kernel = self._find_kernel(self.kernel)
        if self.time_conditioning is None:
            self.time_conditioning = PROCESSES[self.process].time_conditioned
        if PROCESSES[self.process].edits:
            self.gap_tokens = True
        elif self.gap_tokens and not (PROCESSES[self.process].inserts and self.mask_token_id is not None):
            raise ValueError(
                "gap_tokens=True puts [MASK] into the gaps that tokens are put into: it needs process 'delete' and "
                f"mask_token_id, got process {self.process!r} and mask_token_id {self.mask_token_id}"
            )
        if self.shift_logits:
            self._check_shift()
        if self.pad_token_id is None:
            self.pad_token_id = getattr(self.text_config, "pad_token_id", None)
        vocab = self.vocab_size
        for name in ("mask_token_id", "pad_token_id"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < vocab:
                raise ValueError(f"{name} must lie in [0, {vocab}), the backbone's vocabulary, got {value}{_RESIZE}")
        special = {i for i in (self.mask_token_id, self.pad_token_id) if i is not None}
        special.update(self.special_token_ids or [], self.prefix_token_ids or [], self.suffix_token_ids or [])
        special.update(self.separator_token_ids or [])
        if special and not all(0 <= i < vocab for i in special):
            raise ValueError(f"special_token_ids must lie in [0, {vocab}), got {sorted(special)}{_RESIZE}")
        self.special_token_ids = sorted(special)
        if self.separator_token_ids is not None and not self.separator_token_ids:
            raise ValueError(
                "separator_token_ids must hold the tokens between prompt and answer, or be None where rows have no "
                "prompt, got []"
            )
        if not 0.0 <= self.prompt_dropout < 1.0:
            raise ValueError(f"prompt_dropout must lie in [0, 1), got {self.prompt_dropout}")
        if self.prompt_dropout and self.mask_token_id is None:
            raise ValueError(
                f"prompt_dropout is {self.prompt_dropout}, which hides prompts behind [MASK], and mask_token_id is not "
                "set: give mask_token_id, or prompt_dropout=0"
            )
        if self.length_counts is not None and (
            min(self.length_counts, default=-1) < 0 or sum(self.length_counts[1:]) == 0
        ):
            raise ValueError("length_counts must hold counts >= 0 with at least one row of length 1 or more")
        if self.step_curve is not None and not (
            self.step_curve and all(math.isfinite(price) and price >= 0 for price in self.step_curve)
        ):
            raise ValueError("step_curve must hold at least one price, each a number of nats that is at least 0")
        self.prefix_token_ids = list(self.prefix_token_ids or [])
        self.suffix_token_ids = list(self.suffix_token_ids or [])
        if self.blank_widths is not None:
            self._check_blank_widths(self.blank_widths)

    @property
    def writes_rows(self) -> bool:
        """Whether x0 is predicted as whole rows, by the decoder of an encoder-decoder."""
        return self.predictor == "autoregressive"

    @property
    def default_steps(self) -> int | None:
        """The steps of a walk where none are given: one where rows are written as a whole; None: one token a step."""
        return 1 if self.writes_rows else None

    def _check_architecture(self) -> None:
        """Raises ValueError for a text_config of a network that cannot predict as `predictor` says."""
        kind = self.text_config.model_type
        pair = bool(getattr(self.text_config, "is_encoder_decoder", False))
        if not hasattr(self.text_config, "vocab_size") or (pair and not self.writes_rows):
            instead = "; or give predictor='autoregressive', which needs an encoder-decoder" if pair else ""
            raise ValueError(
                "text_config must be that of a masked LM that is an encoder alone (BERT, RoBERTa, ModernBERT, ...) or "
                f"of a decoder of text (Llama, Qwen3, GPT-2, ...), got model type {kind!r}{instead}"
            )
        if not self.writes_rows:
            return
        if not pair:
            raise ValueError(
                "predictor 'autoregressive' needs the text_config of an encoder-decoder (BART, T5, ...), got model "
                f"type {kind!r}: give one, or predictor='factorised'"
            )
        if getattr(self.text_config, "decoder_start_token_id", None) is None:
            raise ValueError(
                f"text_config of model type {kind!r} names no decoder_start_token_id, the token that the decoder "
                "begins with: set it"
            )

    def _check_shift(self) -> None:
        """Raises ValueError for a model that cannot read its predictions one position before."""
        kind, process = self.text_config.model_type, PROCESSES[self.process]
        if not self.from_decoder:
            raise ValueError(
                f"shift_logits=True reads predictions where a decoder has learnt to make them, and model type {kind!r} "
                "is a masked LM, which makes them at the position itself: leave it out"
            )
        if process.inserts or process.edits:
            raise ValueError(
                "shift_logits=True goes with processes whose tokens stay where they are (mask, substitute, uniform), "
                f"got process {self.process!r}, which reads a gap at the token before it as it is: leave it out"
            )

    def _find_kernel(self, kernel: str | None) -> str:
        """The kernel of this model. Raises ValueError for one that its process does not have."""
        own = PROCESSES[self.process].kernels
        if kernel is None:
            return own[0] if own else next(iter(KERNELS))
        if kernel not in (own or ALL_KERNELS):
            of = f" of process {self.process!r}" if kernel in ALL_KERNELS else ""
            raise ValueError(f"kernel{of} must be {choices(own or KERNELS)}, got {kernel!r}")
        return kernel

    def _check_blank_widths(self, widest: int) -> None:
        """Raises ValueError for a width head that this model cannot have."""
        if self.writes_rows:
            raise ValueError(
                f"a width head (blank_widths) reads the hidden states of a masked LM, and this model has predictor "
                f"{self.predictor!r}: leave it out"
            )
        if self.process != "mask":
            raise ValueError(
                "a width head (blank_widths) needs process 'mask', since blanks are opened into [MASK], and this model "
                f"has process {self.process!r}: leave it out"
            )
        longest = self.max_row_length
        most = MOST_WIDTHS if longest is None else longest
        if not 1 <= widest <= most:
            reads = f"{MOST_WIDTHS}" if longest is None else f"{most}, the longest row that the model reads"
            raise ValueError(f"blank_widths must lie in 1 to {reads}, got {widest}")

    @classmethod
    def _own_fields(cls) -> list[str]:
        base = {field.name for field in dataclasses.fields(PreTrainedConfig)}
        return [field.name for field in dataclasses.fields(cls) if field.name not in base]

    @property
    def vocab_size(self) -> int:
        return self.text_config.vocab_size

    @vocab_size.setter
    def vocab_size(self, value: int):  # resize_token_embeddings sets it
        self.text_config.vocab_size = value

    @property
    def from_decoder(self) -> bool:
        """Whether the backbone is a decoder made bidirectional (decoders.py), and no masked LM."""
        return is_decoder(self.text_config) and not self.writes_rows

    @property
    def max_row_length(self) -> int | None:
        """The longest row the backbone can read, or None where it has no limit."""
        positions = longest_readable_row(self.text_config)
        if positions is None:
            return None
        return positions // 2 if self.gap_tokens else positions  # a gap behind every token, at most

    def allowed_token_ids(self) -> torch.Tensor:
        """(V,) int64: the tokens that may stand at an editable position."""
        allowed = torch.ones(self.vocab_size, dtype=torch.bool)
        allowed[self.special_token_ids] = False
        return allowed.nonzero()[:, 0]

    def forbidden_tokens(self, device: torch.device | str = "cpu") -> torch.Tensor:
        """(vocab_size,) bool: the tokens that are never drawn."""
        forbidden = torch.zeros(self.vocab_size, dtype=torch.bool, device=device)
        forbidden[self.special_token_ids] = True
        return forbidden

    @property
    def prompted(self) -> bool:
        """Whether rows are prompt and answer."""
        return self.separator_token_ids is not None

    def answer_start(self, row: Sequence[int]) -> int | None:
        """Where the answer begins in a row: behind its first separator, 0 without prompts; None: no separator."""
        separator = self.separator_token_ids
        if separator is None:
            return 0
        row, n = list(row), len(separator)
        for i in range(len(self.prefix_token_ids or []), len(row) - n + 1):
            if row[i : i + n] == separator:
                return i + n
        return None

    def answer_starts(self, input_ids: torch.Tensor) -> torch.Tensor:
        """(B,) int64, `answer_start` of (B, L) rows; L where there is no separator."""
        width = input_ids.shape[1]
        if self.separator_token_ids is None:
            return torch.zeros(len(input_ids), dtype=torch.int64, device=input_ids.device)
        begins = torch.zeros_like(input_ids, dtype=torch.bool)
        separator = torch.tensor(self.separator_token_ids, device=input_ids.device)
        if width >= (n := len(separator)):
            begins[:, : width - n + 1] = (input_ids.unfold(1, n, 1) == separator).all(dim=-1)
        begins[:, : len(self.prefix_token_ids or [])] = False
        return ((begins.cumsum(dim=1) == 0).sum(dim=1) + n).clamp(max=width)

    def count_editable(self, rows: Iterable[Sequence[int]]) -> list[int]:
        """How many tokens of each row of ids (lists, arrays or tensors) may change."""
        special = set(self.special_token_ids or [])
        counts = []
        for row in rows:
            ids = row.tolist() if hasattr(row, "tolist") else list(row)
            start = self.answer_start(ids)
            counts.append(0 if start is None else sum(token not in special for token in ids[start:]))
        return counts

    def editable(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        """(B, L) bool: positions of a clean row that may change: neither padding nor special tokens nor a prompt."""
        editable = ~self.forbidden_tokens(input_ids.device)[input_ids]
        if self.prompted:
            columns = torch.arange(input_ids.shape[1], device=input_ids.device)
            editable &= columns >= self.answer_starts(input_ids)[:, None]
        return editable if attention_mask is None else editable & attention_mask.bool()

    def prompt_tokens(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        """(B, L) bool: what training hides with `prompt_dropout`, and guidance when it compares: the tokens before the
        answer, special ones apart. Without prompts any token may be a condition: all that could change."""
        if not self.prompted:
            return self.editable(input_ids, attention_mask)
        columns = torch.arange(input_ids.shape[1], device=input_ids.device)
        hidden = ~self.forbidden_tokens(input_ids.device)[input_ids]
        hidden &= columns < self.answer_starts(input_ids)[:, None]
        return hidden if attention_mask is None else hidden & attention_mask.bool()

    def length_probabilities(self) -> torch.Tensor | None:
        """(n + 1,) float64: the law of row lengths 0..n, or None where lengths are not modelled.

        The training histogram and one more row spread evenly over 1..n, so that no length of that range is impossible;
        n is twice the longest training row, less where the backbone cannot read so much.
        """
        if self.length_counts is None:
            return None
        longest = len(self.length_counts) - 1
        top = 2 * longest
        if self.max_row_length is not None:
            around = (self.prefix_token_ids, self.separator_token_ids, self.suffix_token_ids)
            top = min(top, self.max_row_length - sum(len(ids or []) for ids in around))
        top = max(top, longest)
        distribution = torch.zeros(top + 1, dtype=torch.float64)
        distribution[: longest + 1] = torch.tensor(self.length_counts, dtype=torch.float64)
        distribution[1:] += 1.0 / top
        distribution[0] = 0.0
        return distribution / distribution.sum()

    def build_process(self):
        """The process object of this model, a `TokenProcess`."""
        if len(self.special_token_ids or []) >= self.vocab_size:
            raise ValueError("special_token_ids holds the whole vocabulary: no token may stand at an editable position")
        return PREDICTORS[self.predictor](PROCESSES[self.process].from_config(self))

    @property
    def process_words(self) -> str:
        """The process as messages call it, with the predictor where that is what cannot do something."""
        return f"process {self.process!r}" + f" with predictor {self.predictor!r}" * self.writes_rows

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs):
        """As in transformers, but what is given besides the dictionary is checked like the rest.

        Where it changes the process, the default of `time_conditioning` is that of the new process.
        """
        cls._check_version(config_dict.get("udm_version"))
        config_dict, others = cls._without_others(config_dict)
        if isinstance(given := kwargs.get("text_config"), dict):
            stored = config_dict.get("text_config")
            if isinstance(stored, dict) and given.get("model_type", stored.get("model_type")) == stored.get(
                "model_type"
            ):
                kwargs["text_config"] = {**stored, **given}
        own = {name: kwargs.pop(name) for name in cls._own_fields() if name in kwargs}
        if own.get("process", config_dict.get("process")) != config_dict.get("process"):
            own.setdefault("time_conditioning", None)
            kernels = PROCESSES[own["process"]].kernels if own.get("process") in PROCESSES else ()
            if kernels and config_dict.get("kernel") not in kernels:
                own.setdefault("kernel", None)
            own.setdefault("step_curve", None)
            own.setdefault("blank_widths", None)
            own.setdefault("gap_tokens", False)
            process = PROCESSES.get(own["process"]) if isinstance(own["process"], str) else None
            if process is not None and (process.inserts or process.edits):
                own.setdefault("shift_logits", False)
        wants_unused = kwargs.pop("return_unused_kwargs", False)
        try:
            config, unused = super().from_dict({**config_dict, **own}, return_unused_kwargs=True, **kwargs)
            for name, value in others.items():
                setattr(config, name, value)
        except (StrictDataclassError, TypeError, AttributeError) as error:
            said = " ".join(str(error).split())
            raise ValueError(f"a field of the configuration of a UDM model is of a wrong type: {said}") from error
        if wants_unused:
            return config, unused
        cls._refuse(
            [name for name in unused if name not in (*LOCATION_ARGUMENTS, "trust_remote_code", "code_revision")]
        )
        return config

    @classmethod
    def _without_others(cls, config_dict: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """A stored configuration without the attributes that somebody has given it; and these."""
        known = {field.name for field in dataclasses.fields(cls)} | cls._known_extras
        others = {name for name in config_dict if name not in known and not name.startswith("_")}
        others -= {"transformers_version", "architectures"}
        return (
            {name: value for name, value in config_dict.items() if name not in others},
            {name: config_dict[name] for name in others},
        )

    @staticmethod
    def _check_version(version: Any) -> None:
        """First of all: what a newer package wrote may be wrong in any other way to this one."""
        if isinstance(version, int) and version > CONFIG_VERSION:
            raise ValueError(
                f"this model was written by a newer udm-text (udm_version {version}, this package reads up "
                f"to {CONFIG_VERSION}); upgrade with `pip install -U udm-text`"
            )

    @classmethod
    def _refuse(cls, names: list[str]) -> None:
        unknown = [name for name in names if name not in cls._known_extras and not name.startswith("_")]
        if unknown:
            raise ValueError(
                f"UDMConfig got an unknown argument {unknown[0]!r}. Known: {', '.join(sorted(cls._own_fields()))}"
            )

    @classmethod
    def get_config_dict(cls, pretrained_model_name_or_path, **kwargs):
        """As in transformers; the config of a plain masked LM is wrapped, its tokenizer read for the special tokens.

        So is that of a plain decoder, with [MASK] and what else its tokenizer lacks (`decoder_tokenizer`): its
        vocabulary then has room for them.
        """
        where = {name: kwargs[name] for name in LOCATION_ARGUMENTS if name in kwargs}
        check_config_file(pretrained_model_name_or_path, **where)
        where["trust_remote_code"] = kwargs.get("trust_remote_code")
        config, kwargs = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        if not config or config.get("model_type") == cls.model_type:
            return config, kwargs
        if "model_type" not in config:
            raise ValueError(
                f"the config.json of {pretrained_model_name_or_path} names no model_type: it is not that of a masked LM"
            )
        if config["model_type"] not in CONFIG_MAPPING:
            what = f"the model type {config['model_type']!r}"
            raise ValueError(OWN_CODE.format(path=pretrained_model_name_or_path, what=what))
        tokenizer, vocab_size = find_tokenizer(pretrained_model_name_or_path, **where), config.get("vocab_size")
        if tokenizer is not None and is_decoder(config["model_type"]):
            tokenizer = decoder_tokenizer(tokenizer)
            if isinstance(vocab_size, int):
                config["vocab_size"] = vocab_size = max(vocab_size, len(tokenizer))
        own = {} if tokenizer is None else tokenizer_fields(tokenizer, vocab_size)
        return {"model_type": cls.model_type, "text_config": config, **own}, kwargs
