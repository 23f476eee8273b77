"""`pipeline("udm-generation")`: text in, text out."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sized
from types import GeneratorType
from typing import Any

import torch
from huggingface_hub import CommitInfo
from torch.utils.data import Dataset
from transformers import MODEL_FOR_MASKED_LM_MAPPING, Pipeline
from transformers.utils import logging
from transformers.utils.chat_template_utils import Chat

from .chats import check_chat, prompt_of, refuse_special
from .common import check_whole
from .configuration_udm import PROCESSES, UDMConfig
from .decoders import tokenizer_for
from .detokenizing import Typed, edited_typed, grown_typed, open_typed, read_typed, restore_text, unknown_parts
from .framing import continuation_tokens, report_share, tokenizer_fields
from .generation_configuration_udm import UDMGenerationConfig
from .generation_udm import check_rows
from .modeling_udm import UDMForMaskedGeneration
from .showing import Texts

MASK = "[MASK]"
"""What stands for the mask token of any model in a text."""

BLANK = "<blank>"
"""What stands in a text for any number of tokens, unless another string is given."""

_LIKE_MASK = re.compile(r"\[mask\]|<mask>", re.IGNORECASE)
_SURROGATE = re.compile("[\ud800-\udfff]")

logger = logging.get_logger(__name__)


class _Opening:
    """A streamer that is told what was typed once more when widths are drawn: with as many masks as the rows have."""

    def __init__(self, streamer: Any, typed: list[Typed | None], blanks: torch.Tensor, mask: int):
        self.streamer, self.typed, self.blanks, self.mask = streamer, typed, blanks, mask

    def __getattr__(self, name: str) -> Any:
        return getattr(self.streamer, name)

    def put_widths(self, widths: torch.Tensor) -> None:
        rows = zip(self.typed, self.blanks, widths, strict=True)
        self.streamer.put_typed([_opened(text, self.mask, *row) for text, *row in rows])


class _Growing:
    """A streamer that is told before each draft what was typed, with as many masks in each blank as the rows have."""

    def __init__(self, streamer: Any, typed: list[Typed | None], mask: int | None):
        self.streamer, self.typed, self.mask = streamer, typed, mask

    def __getattr__(self, name: str) -> Any:
        return getattr(self.streamer, name)

    def put_new(self, new: torch.Tensor) -> None:
        self.streamer.put_typed([_grown(typed, self.mask, row) for typed, row in zip(self.typed, new, strict=True)])


class _Editing:
    """A streamer that is told before each draft what was typed as the rows have it, whose length may change."""

    def __init__(self, streamer: Any, typed: list[Typed | None], tokenizer: Any):
        self.streamer, self.typed, self.tokenizer = streamer, typed, tokenizer
        self.head: torch.Tensor | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.streamer, name)

    def put(self, value: torch.Tensor) -> None:
        """What stands before the first token that may change, and at last the rest."""
        if self.head is None:
            self.head = value
        else:
            self._tell(self.head, value)
        self.streamer.put(value)

    def put_draft(self, value: torch.Tensor) -> None:
        if self.head is not None and hasattr(self.streamer, "put_draft"):
            self._tell(self.head, value)
            self.streamer.put_draft(value)

    def _tell(self, head: torch.Tensor, rest: torch.Tensor) -> None:
        rows = torch.cat((head, rest), dim=1)
        self.streamer.put_typed([_edited(self.tokenizer, *pair) for pair in zip(self.typed, rows, strict=True)])


def _edited(tokenizer: Any, typed: Typed | None, row: torch.Tensor) -> Typed | None:
    """A typed text with a token for each of a row (L,) that was made of it by edits; see `edited_typed`."""
    ids = row[: int((row != tokenizer.pad_token_id).nonzero().max()) + 1].tolist()
    return typed if typed is None else edited_typed(tokenizer, typed, ids)


def _grown(typed: Typed | None, mask: int | None, new: torch.Tensor) -> Typed | None:
    """A typed text with its blanks as wide as a row has new tokens there, new (L,) bool; see `grown_typed`."""
    return typed if typed is None or mask is None else grown_typed(typed, mask, new.tolist())


def _opened(typed: Typed | None, mask: int, blanks: torch.Tensor, widths: torch.Tensor) -> Typed | None:
    """A typed text with its blanks (L,) bool as wide as they were drawn, widths (m,) int64."""
    places = blanks.nonzero()[:, 0].tolist()
    return typed if typed is None else open_typed(typed, mask, places, widths[: len(places)].tolist())


def _wrap(masked_lm: Any, tokenizer: Any) -> UDMForMaskedGeneration:
    """A model of masks around a plain masked LM, which is told to be untrained for it."""
    config = masked_lm.config
    known: Any = MODEL_FOR_MASKED_LM_MAPPING.get(type(config), ())
    if not isinstance(masked_lm, known):
        raise ValueError(
            f"udm-generation needs a UDM model or a masked LM, got {type(masked_lm).__name__} (model type "
            f"{config.model_type!r}): give what `udm train` wrote, or what AutoModelForMaskedLM loads"
        )
    if tokenizer.mask_token_id is None:
        raise ValueError(
            f"udm-generation fills in [MASK] with a masked LM, and the tokenizer {type(tokenizer).__name__} of "
            f"{config.name_or_path or type(masked_lm).__name__} has no mask_token: give a tokenizer that has one"
        )
    own = tokenizer_fields(tokenizer, config.vocab_size)
    model = UDMForMaskedGeneration(UDMConfig(text_config=config, **own), backbone=masked_lm)
    model.config.name_or_path = config.name_or_path
    model.train(masked_lm.training)
    logger.warning(
        f"{config.name_or_path or type(masked_lm).__name__} is a masked LM that was not trained for generation: it "
        "fills in a few [MASK] of a text, jointly, and what it writes behind a prompt or from nothing is worth little. "
        "`udm train --model` trains it"
    )
    return model


class UDMGenerationPipeline(Pipeline):
    """Text generation by diffusion.

    What is done follows from the input: text with [MASK] is filled in, and so is text with <blank>, which stands for
    any number of tokens (models trained with `udm train --blanks`, and those of process delete, to which [MASK] is the
    same); with `max_edits` a text is repaired (models of the substitute process, and those of the edit process, which
    do nothing else); any other text is continued; an empty string is written from nothing. To a model that was trained
    on prompts and answers a text is a prompt, and what comes back is its answer; an answer that is begun, or has [MASK]
    to fill in, stands behind the separator: "prompt [SEP] begun". [MASK] may be written so whatever the model's own
    mask token is, and as that, too (RoBERTa's <mask>). A list of messages, `{"role": ..., "content": ...}`, is a chat:
    the tokenizer's chat template makes a prompt of it, and it comes back with the assistant's message behind. A plain
    masked LM is wrapped, with a warning.

    ```python
    >>> import udm_text
    >>> from transformers import pipeline
    >>> pipe = pipeline("udm-generation", model="runs/unicode-names")
    >>> pipe("", num_return_sequences=4, seed=0)
    >>> pipe("LATIN SMALL LETTER A WITH [MASK]", seed=0)
    ```

    Every argument of [`UDMGenerationConfig`] may be given to the pipeline or to a call. A result depends on its input,
    the seed and its number among `num_return_sequences` only: not on the other inputs, nor on `batch_size`, up to the
    rounding of the network, whose last bits change with the shape of a batch, more in bfloat16. So equal inputs under
    one seed give equal texts, and different ones have draws and lengths of their own; ask for several texts by
    `num_return_sequences`. The empty text has the draws of `model.generate` under that seed.
    """

    _load_tokenizer: Any = True
    _load_processor: Any = False
    _load_image_processor: Any = False
    _load_feature_extractor: Any = False
    model: Any
    tokenizer: Any

    _calls = ("generation_config", "logits_processor", "classifier", "streamer", "callback_on_step_end", "generator")

    def __init__(self, model: Any, tokenizer: Any = None, **kwargs: Any):
        if tokenizer is None:
            raise ValueError(
                "udm-generation needs a tokenizer: give tokenizer=..., or a model directory that holds one"
            )
        if getattr(model.config, "model_type", None) != UDMConfig.model_type:
            model = _wrap(model, tokenizer)
        super().__init__(model=model, tokenizer=tokenizer, **kwargs)
        self.tokenizer = tokenizer_for(self.model.config, self.tokenizer)
        self.tokenizer.padding_side = "right"
        self._unknown: set[str] = set()
        self._repairer: float | None = None  # the largest corrupted share of its training, once it was looked up
        self._hinted = False  # whether it was said that something is no mask token
        self._decodes = False  # whether it was said that texts come back decoded
        self._continuations: tuple[int, list[int]] = 0, []  # of a vocabulary of that size

    def _sanitize_parameters(
        self, return_full_text: bool | None = None, return_tensors: bool | None = None, **kwargs: Any
    ):
        before = {name: kwargs.pop(name) for name in ("blank_token",) if name in kwargs}
        for token in before.values():
            if token is not None and not (isinstance(token, str) and token.strip()):
                raise ValueError(
                    f"blank_token must be a string that stands for a blank, or None for no blanks, got {token!r}"
                )
        known = (*UDMGenerationConfig._defaults, *self._calls)
        for name in kwargs:
            if name not in known:
                known = (*known, "return_full_text", "return_tensors", "blank_token", "batch_size", "num_workers")
                raise ValueError(f"unknown argument {name!r} of udm-generation. Known: {', '.join(known)}")
        for name, flag in (("return_full_text", return_full_text), ("return_tensors", return_tensors)):
            if not isinstance(flag, bool | None):
                raise ValueError(f"{name} must be True, False or None, got {flag!r}")
        for name in ("forbidden_tokens", "begin_suppress_tokens"):
            if kwargs.get(name) is not None:
                kwargs[name] = self._token_ids(name, kwargs[name])
        if isinstance(allowed := kwargs.get("allowed_tokens"), dict):
            named = {at: self._token_ids(f"allowed_tokens[{at}]", tokens) for at, tokens in allowed.items()}
            kwargs["allowed_tokens"] = named
        after = {"return_full_text": return_full_text, "return_tensors": return_tensors}
        after = {name: flag for name, flag in after.items() if flag is not None}
        return before, kwargs, after

    def _token_ids(self, name: str, tokens: Any) -> list[Any]:
        """Ids of tokens that are given by id, as the vocabulary writes them, or as texts of one token.

        A string that is both, as where white space before a word is part of its token, names both tokens.
        """
        if not isinstance(tokens, list | tuple):
            raise ValueError(f"{name} must be a list of tokens, got {tokens!r}")
        vocabulary, ids = self.tokenizer.get_vocab(), []
        for token in tokens:
            if not isinstance(token, str):
                ids.append(token)
                continue
            written = [vocabulary[token]] if token in vocabulary else []
            made = self._encode(token)
            read = made if len(made) == 1 and made[0] != self.tokenizer.unk_token_id else []
            if not (written or read):
                raise ValueError(
                    f"{name} must hold single tokens, and {token!r} is "
                    f"{self.tokenizer.convert_ids_to_tokens(made)} to this tokenizer"
                )
            ids += dict.fromkeys([*written, *read])
        return ids

    def _continuation_tokens(self) -> list[int]:
        """What no text begins with by default; a tokenizer may get more tokens."""
        if self._continuations[0] != len(self.tokenizer):
            found = continuation_tokens(self.tokenizer, self.model.config.vocab_size)
            self._continuations = len(self.tokenizer), found
        return self._continuations[1]

    def _encode(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def __call__(self, inputs="", *args, **kwargs):
        """
        Args:
            inputs (`str`, `list[str]`, or an iterable such as a dataset column): the texts; a text from nothing where
                none is given. Or a chat, a list of messages of which the last is the user's, or a list of chats.
            kwargs: arguments of `UDMGenerationConfig` (`forbidden_tokens`, `allowed_tokens` and `begin_suppress_tokens`
                may name tokens by strings; the last one is by default what continues a word); `generator`,
                `logits_processor`, `classifier` (its rows count from 0 in each batch), `streamer` (its `put_typed`, if
                it has one, gets a `detokenizing.Typed` or None for each text first) and `callback_on_step_end` as in
                `generate`; `return_full_text=False` gives what was generated alone, True the whole row, prompt
                included; by default the answer of a model of prompts and answers, and the whole row of any other;
                `blank_token`, what stands in a text for any number of tokens, "<blank>" unless given, None for nothing;
                `return_tensors=True` gives beside the text `"generated_token_ids"`, the
                tokens of the whole row, and `"generated"`, for each whether it was generated; `batch_size`.

        Returns:
            For one text a list of `{"generated_text": str}`, `num_return_sequences` of them; for several texts a list
            of such lists, or an iterator over them where the texts are a torch dataset or a generator. Lists are
            `showing.Texts`, tables in a notebook. Of a chat it is the list of messages with the assistant's behind, or
            with `return_full_text=False` the answer alone. With
            `output_trajectory=True` each also holds `"trajectory"`, that text before the first and after every step of
            its own, the tokenizer's mask token where nothing stands yet; with
            `return_dict_in_generate=True` what it took: `"num_tokens"` made, `"steps"` of its own, `"num_calls"` of
            the network for its batch, and `"widths"` of its blanks and `"expected_nats"` where `generate` gives them.
        """
        for name, least in (("batch_size", 1), ("num_workers", 0)):
            if kwargs.get(name) is not None:
                check_whole(least, **{name: kwargs[name]})
        if isinstance(inputs, torch.Tensor):
            raise ValueError("udm-generation reads strings, got a tensor: `model.generate` takes tokens as input_ids")
        if isinstance(inputs, Iterable) and not isinstance(inputs, str | dict | list | GeneratorType | Dataset):
            # a column of `datasets`, a tuple, an array; what has no length is read as it comes
            inputs = list(inputs) if isinstance(inputs, Sized) else (text for text in inputs)
        results = [] if inputs == [] else super().__call__(inputs, *args, **kwargs)
        return Texts(results) if isinstance(results, list) else results

    def save_pretrained(self, save_directory: Any, **kwargs: Any) -> None:
        """Saves model and tokenizer. A registered pipeline would add this package's source files and ask for
        trust_remote_code when it is loaded, even where the package is installed."""
        self.model.save_pretrained(save_directory, **kwargs)
        self.tokenizer.save_pretrained(save_directory, **kwargs)
        if self.model.is_remote_code():  # then the code came with the model, and goes with it
            from .hub import write_code

            write_code(save_directory)

    def push_to_hub(self, repo_id: str, **kwargs: Any) -> CommitInfo:
        """Publishes model, tokenizer and card in one commit; for the arguments see `udm_text.hub.push`."""
        from .hub import push

        return push(self.model, repo_id, tokenizer=kwargs.pop("tokenizer", self.tokenizer), **kwargs)

    def preprocess(  # type: ignore[override]
        self, input_: Any, blank_token: str | None = BLANK, **preprocess_parameters: Any
    ) -> dict[str, Any]:
        said: Any = input_.messages if isinstance(input_, Chat) else input_
        if isinstance(said, dict) and said.keys() & {"role", "content"}:
            said = [said]
        chat = said if isinstance(said, list | tuple) and any(isinstance(one, dict) for one in said) else None
        if chat is not None:
            input_ = self.prompt_of(chat)
            blank_token = None  # which is text there
        if not isinstance(input_, str):
            raise ValueError(
                f"udm-generation reads strings and chats, lists of messages with a 'role' and a 'content', got "
                f"{type(input_).__name__}; of a data set give the column of the texts"
            )
        if (half := _SURROGATE.search(input_)) is not None:
            raise ValueError(
                f"udm-generation reads Unicode text, and character {half.start()} of an input is half a surrogate "
                f"pair, {half[0]!r}: decode what it comes from as UTF-8 or UTF-16"
            )
        input_ = self._with_own_masks(input_) if chat is None else input_
        input_, are_blanks = self._with_blanks(input_, blank_token)
        self._hint_masks(input_)
        new = [part for part in unknown_parts(self.tokenizer, input_) if part not in self._unknown]
        if new:
            self._unknown.update(new)
            more = f" and {len(new) - 10} more" if len(new) > 10 else ""
            logger.warning(
                f"not in the vocabulary of this model: {', '.join(map(repr, new[:10]))}{more}. They stay in the text "
                f"as they were typed, and the model reads {self.tokenizer.unk_token} instead"
            )
        ids = self.tokenizer(input_, verbose=False)["input_ids"]  # what is too long, `generate` refuses
        input_ids = torch.tensor([ids], dtype=torch.int64)
        found = {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids), "text": input_, "chat": chat}
        if self.model.config.blank_widths is None:
            return found
        blanks = torch.zeros_like(input_ids)
        if any(are_blanks):
            masks = (input_ids[0] == self.tokenizer.mask_token_id).nonzero()[:, 0]
            if len(masks) != len(are_blanks):
                raise ValueError(
                    f"the tokenizer reads {len(masks)} mask tokens in a text with {len(are_blanks)} [MASK] and "
                    f"{blank_token}: put spaces around them"
                )
            blanks[0, masks] = torch.tensor(are_blanks).long()
        return {**found, "blanks": blanks}

    def prompt_of(self, messages: Any) -> str:
        """The prompt that a chat is."""
        chat = check_chat(messages)
        if not self.model.config.prompted:
            raise ValueError(
                "this model continues texts and was not trained on prompts and answers, which a chat needs: train it "
                "with `udm train --messages_column`"
            )
        refuse_special(self.tokenizer, chat)
        return prompt_of(self.tokenizer, chat)

    def _keys(self, input_tensors: dict[str, Any]) -> list[int]:
        """Of each input a number that depends on its tokens alone; 0 where nothing was typed, as `generate` counts."""
        nothing = list(self.tokenizer("")["input_ids"])
        keys = []
        for ids, keep in zip(input_tensors["input_ids"], input_tensors["attention_mask"].bool(), strict=True):
            row = ids[keep].tolist()
            digest = hashlib.blake2b(b"".join(token.to_bytes(8, "little") for token in row), digest_size=8).digest()
            # 62 bits: the numbers of the samples are added
            keys.append(0 if row == nothing else int.from_bytes(digest, "little") >> 2)
        return keys

    def _hint_masks(self, text: str) -> None:
        """Says once of what looks like a mask token that it is read as text."""
        if self._hinted or self.tokenizer.mask_token_id is None:
            return
        for found in _LIKE_MASK.findall(text):
            if found not in self.tokenizer.get_vocab() and self.tokenizer.mask_token_id not in self._encode(found):
                self._hinted = True
                logger.warning(f"{found!r} is read as text: a blank to be filled in is written {MASK}")
                return

    def _with_own_masks(self, text: str) -> str:
        """The text with the tokenizer's mask token where it says [MASK], unless that is a token of its own there."""
        own = self.tokenizer.mask_token
        if own is None or MASK not in text or own == MASK or MASK in self.tokenizer.get_vocab():
            return text
        return text.replace(MASK, own)

    def _with_blanks(self, text: str, blank_token: str | None) -> tuple[str, list[bool]]:
        """The text with a mask token in place of each blank, and of each mask token in it whether it is one."""
        mask = self.tokenizer.mask_token
        if self._inserts and mask is not None:  # a run of masks is one blank there
            if blank_token and blank_token not in self.tokenizer.get_vocab():
                text = text.replace(blank_token, mask)
            return re.sub(rf"{re.escape(mask)}(\s*{re.escape(mask)})+", lambda _: mask, text), []
        if not blank_token or blank_token not in text or mask is None or blank_token in self.tokenizer.get_vocab():
            return text, []
        if self.model.config.blank_widths is None:
            raise ValueError(
                f"the text holds {blank_token}, and this model has no width head to say how many tokens are missing: "
                "train it with `udm train --blanks`, write as many [MASK], or give another blank_token to read it as "
                "text"
            )
        parts = re.split(f"({re.escape(blank_token)}|{re.escape(mask)})", text)
        are_blanks = [part == blank_token for part in parts[1::2]]
        return "".join(mask if i % 2 else part for i, part in enumerate(parts)), are_blanks

    @property
    def _inserts(self) -> bool:
        """Whether the texts of the model grow, so that its blanks have no width of their own."""
        return bool(PROCESSES[self.model.config.process].inserts)

    def _warn_repairer(self, input_ids: torch.Tensor) -> None:
        """Says once of a repairer that it is asked to write: rows that are all noise are none that it has seen."""
        mask = self.tokenizer.mask_token_id
        if self._repairer is not None or (mask is not None and bool((input_ids == mask).any(dim=1).all())):
            return  # blanks in a text may be as few as its training had wrong tokens
        self._repairer = report_share(self.model.config.name_or_path)
        if self._repairer < 1.0:
            logger.warning(
                f"this model repairs texts and was not trained to write them: of a row of its training at most "
                f"{self._repairer:g} was wrong. Give max_edits=..., or on the command line `udm repair`"
            )

    def _forward(self, input_tensors: dict[str, Any], **forward_parameters: Any) -> Any:
        settings = {name: value for name, value in forward_parameters.items() if name not in self._calls}
        config = self.model._prepare_generation_config(forward_parameters.get("generation_config"), **settings)
        if config.begin_suppress_tokens is None:
            forward_parameters["begin_suppress_tokens"] = self._continuation_tokens()
        if config.max_edits is None and not PROCESSES[self.model.config.process].edits:
            self._warn_repairer(input_tensors["input_ids"])
        number, rows = config.num_return_sequences, len(input_tensors["input_ids"])
        check_rows(number * rows)
        index = None
        seeded = config.seed is not None and forward_parameters.get("generator") is None
        if seeded:  # under one seed a row is told apart by its input and its number among the samples of it
            index = torch.cat([key + torch.arange(number) for key in self._keys(input_tensors)])
        blanks = input_tensors["blanks"].bool() if "blanks" in input_tensors else torch.zeros(0, dtype=torch.bool)
        marked = {"blanks": blanks} if bool(blanks.any()) else {}
        streamer: Any = forward_parameters.get("streamer")
        if hasattr(streamer, "put_typed"):
            texts = input_tensors["text"]
            typed = [self._read(text) for text in ([texts] if isinstance(texts, str) else texts)]
            streamer.put_typed(typed)
            rows_typed = [text for text in typed for _ in range(number)]
            if self._inserts:
                forward_parameters["streamer"] = _Growing(streamer, rows_typed, self.tokenizer.mask_token_id)
            elif PROCESSES[self.model.config.process].edits:
                forward_parameters["streamer"] = _Editing(streamer, rows_typed, self.tokenizer)
            elif marked:
                where = blanks.repeat_interleave(number, dim=0)
                forward_parameters["streamer"] = _Opening(streamer, rows_typed, where, self.tokenizer.mask_token_id)
        output = self.model.generate(
            input_tensors["input_ids"],
            attention_mask=input_tensors["attention_mask"],
            sample_index=index,
            **marked,
            **{**forward_parameters, "return_dict_in_generate": True},
        )

        def by_input(x: torch.Tensor) -> torch.Tensor:
            return x.reshape(rows, number, *x.shape[1:])

        result = {name: by_input(output[name]) for name in ("sequences", "attention_mask", "editable", "steps")}
        result |= {name: input_tensors[name] for name in ("text", "chat")}
        if output.widths is not None:
            result |= {"widths": by_input(output.widths), **marked}
        if self.model.config.prompted:
            starts = self.model.config.answer_starts(output.sequences)[:, None]
            columns = torch.arange(output.sequences.shape[1], device=starts.device)
            result["answer"] = by_input((columns >= starts) & output.attention_mask)
        if config.return_dict_in_generate:
            result["num_calls"] = by_input(torch.full_like(output.steps, output.num_calls))
            if output.expected_nats is not None:
                result["expected_nats"] = by_input(output.expected_nats)
        if output.trajectory is not None:
            result["trajectory"] = by_input(torch.stack(output.trajectory, dim=1))
        if output.trajectory_editable is not None:
            result["trajectory_editable"] = by_input(torch.stack(output.trajectory_editable, dim=1))
        return result

    def postprocess(  # type: ignore[override]
        self,
        model_outputs: Any,
        return_full_text: bool | None = None,
        return_tensors: bool | None = None,
        **postprocess_parameters: Any,
    ) -> list[dict[str, Any]]:
        records = []
        wanted = model_outputs["attention_mask"] if return_full_text is not False else model_outputs["editable"]
        if return_full_text is None:
            wanted = model_outputs.get("answer", wanted)
        given, edits = self._read(model_outputs["text"]), PROCESSES[self.model.config.process].edits
        for i in range(model_outputs["sequences"].shape[1]):
            row, shown = model_outputs["sequences"][0, i], wanted[0, i].bool()
            typed = given
            if self._inserts:
                typed = _grown(given, self.tokenizer.mask_token_id, model_outputs["editable"][0, i])
            elif edits:
                typed = _edited(self.tokenizer, given, row)
            elif "blanks" in model_outputs:
                where, widths = model_outputs["blanks"][0], model_outputs["widths"][0, i]
                typed = _opened(given, self.tokenizer.mask_token_id, where, widths)
            record: dict[str, Any] = {"generated_text": self._text_of(typed, row, shown)}
            if (chat := model_outputs["chat"]) is not None and return_full_text is not False:
                answer = self._text_of(typed, row, model_outputs["answer"][0, i].bool())
                record["generated_text"] = [*chat, {"role": "assistant", "content": answer}]
            if return_tensors:
                there = model_outputs["attention_mask"][0, i].bool()
                record["generated_token_ids"] = row[there].tolist()
                record["generated"] = model_outputs["editable"][0, i][there].tolist()
            if "num_calls" in model_outputs:
                record["num_tokens"] = int(model_outputs["editable"][0, i].sum())
                record |= {name: int(model_outputs[name][0, i]) for name in ("steps", "num_calls")}
                if "widths" in model_outputs:
                    record["widths"] = [width for width in model_outputs["widths"][0, i].tolist() if width >= 0]
                if "expected_nats" in model_outputs:
                    record["expected_nats"] = float(model_outputs["expected_nats"][0, i])
            if "trajectory" in model_outputs:
                states = model_outputs["trajectory"][0, i][: model_outputs["steps"][0, i] + 1]
                if "trajectory_editable" in model_outputs:
                    new = model_outputs["trajectory_editable"][0, i]
                    texts = [
                        self._grown_text(given, *state, return_full_text) for state in zip(states, new, strict=False)
                    ]
                elif edits:
                    texts = [self._edited_text(given, xt, return_full_text) for xt in states]
                else:
                    texts = [self._text_of(typed, xt, shown, self.tokenizer.mask_token) for xt in states]
                record["trajectory"] = texts
            records.append(record)
        return records

    def _read(self, text: str) -> Typed | None:
        """The typed text and where its tokens stand in it; what a slow tokenizer cannot tell is said once."""
        typed = read_typed(self.tokenizer, text)
        if typed is None and not self._decodes:
            self._decodes = True
            logger.warning(
                f"{type(self.tokenizer).__name__} is a slow tokenizer, which does not say where in a text its tokens "
                "stand, and they could not be found there: texts come back as it decodes them, not as they were typed"
            )
        return typed

    def _grown_text(
        self, given: Typed | None, row: torch.Tensor, new: torch.Tensor, return_full_text: bool | None
    ) -> str:
        """The text of a row (L,) that is still to grow, new (L,) bool the tokens that have been put in."""
        shown = new if return_full_text is False else torch.ones_like(new)
        if return_full_text is None and self.model.config.prompted:
            shown = torch.arange(len(row)) >= int(self.model.config.answer_starts(row[None])[0])
        return self._text_of(_grown(given, self.tokenizer.mask_token_id, new), row, shown)

    def _edited_text(self, given: Typed | None, row: torch.Tensor, return_full_text: bool | None) -> str:
        """The text of a row (L,) on the way of a repair, padding behind."""
        config = self.model.config
        there = row != self.tokenizer.pad_token_id
        shown = config.editable(row[None], there[None])[0] if return_full_text is False else there
        if return_full_text is None and config.prompted:
            shown = there & (torch.arange(len(row)) >= int(config.answer_starts(row[None])[0]))
        return self._text_of(_edited(self.tokenizer, given, row), row, shown)

    def _text_of(self, typed: Typed | None, row: torch.Tensor, shown: torch.Tensor, blank: str | None = None) -> str:
        """The text of a row (L,), what was typed as it was typed; blank: what is written for a mask that is open."""
        if typed is not None:
            return restore_text(self.tokenizer, *typed, row.tolist(), shown.tolist(), blank)
        ids, special = row[shown].tolist(), set(self.tokenizer.all_special_ids)
        left = [i for i in ids if i not in special or (blank is not None and i == self.tokenizer.mask_token_id)]
        return self.tokenizer.decode(left)
