"""`model.generate`: unconditional text, infilling, continuation and repair, all by the loop of `core.denoise`.

A call prepares its inputs (`inputs.py`: the rows, what of them is editable, how many positions are corrupted), picks a
sampler (`samplers.py`), walks them down a grid of counts with the predictor of its process, and hands them out.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.utils import ModelOutput

from .common import eval_mode, takes
from .compiling import compiles
from .constraints import Constraints
from .decoding import COLDEST, find_order
from .devices import device_of
from .framing import LOCATION_ARGUMENTS
from .generation_configuration_udm import UDMGenerationConfig
from .generation_options import refuse_foreign, refuse_pairs
from .inputs import MOST_TOKENS, check_inputs, find_blanks, make_inputs
from .padding import padded_wrongly
from .predictors import guided
from .randomness import RowRandom
from .samplers import Start, find_sampler
from .schedules import binomial_counts, counts, step_costs
from .speculative import Drafts, check_speculation
from .widths import check_blanks, drawn_widths, open_blanks

_LENGTH_ARGUMENTS = ("length", "max_new_tokens", "max_edits")
"""Arguments that say how far a row may change."""

_COUNTS_SEED = 0x434F554E54530000
"""Distinguishes the seed of binomial counts from that of the tokens."""


@dataclass
class UDMGenerateOutput(ModelOutput):
    """
    What `generate` returns with `return_dict_in_generate=True`.

    Args:
        sequences (`torch.LongTensor` of shape `(rows, length)`): the rows, padded behind with the padding token.
        attention_mask, editable (`torch.BoolTensor` of the same shape): where there is a token; where it could change.
        steps (`torch.LongTensor` of shape `(rows,)`): reverse steps of each row, rounds where it speculates; a row
            that is done rests.
        trajectory (`tuple[torch.LongTensor]`, *optional*): every xt, from the start to the end (`output_trajectory`);
            of row i the entries up to `steps[i]` are its own.
        trajectory_editable (`tuple[torch.BoolTensor]`, *optional*): of a process whose texts grow, which tokens of
            every xt have been put in; xt are closed up there, with padding behind.
        num_calls (`int`): network calls of the batch; guidance reads it twice, which counts as two.
        tokens_per_call (`torch.DoubleTensor` of shape `(rows,)`): positions settled for each call of the row; 1 where a
            step takes one token and has one call.
        drafts (`Drafts`, *optional*): with `speculate`, the drafts that were tested and accepted, by their place in the
            round; `drafts.acceptance` is the share accepted at each place.
        expected_nats (`torch.DoubleTensor` of shape `(rows,)`, *optional*): what the model's `step_curve` says a
            generated token costs on this grid, in nats: NELBO_K, a bound for rows like those it was measured on. Only
            of the sampler that it prices: masks in random order, temperature 1, nothing truncated or forced.
        widths (`torch.LongTensor` of shape `(rows, blanks)`, *optional*): where the model drew widths of blanks, those
            of each row from left to right, -1 behind its last.
        width_nats (`torch.DoubleTensor` of shape `(rows,)`, *optional*): -log p of these widths under the model, exact.
    """

    sequences: Tensor | None = None
    attention_mask: Tensor | None = None
    editable: Tensor | None = None
    steps: Tensor | None = None
    trajectory: tuple[Tensor, ...] | None = None
    num_calls: int | None = None
    tokens_per_call: Tensor | None = None
    drafts: Drafts | None = None
    expected_nats: Tensor | None = None
    trajectory_editable: tuple[Tensor, ...] | None = None
    widths: Tensor | None = None
    width_nats: Tensor | None = None


class UDMGenerationMixin:
    """Generation by diffusion, for models with a `UDMConfig` and a `forward(input_ids, ..., t, positions)`."""

    config: Any
    generation_config: Any

    def adjust_generation_fn(
        self, generation_config, from_auto_class, from_pipeline, pretrained_model_name_or_path, **kwargs
    ):
        """Called by from_pretrained: loads generation_config.json as our own class where there is one."""
        self.generation_config = UDMGenerationConfig()
        if generation_config is not None:
            self.generation_config = UDMGenerationConfig.from_dict(generation_config.to_dict())
        elif pretrained_model_name_or_path is not None:
            where = {name: value for name, value in kwargs.items() if name in (*LOCATION_ARGUMENTS, "proxies")}
            try:
                self.generation_config = UDMGenerationConfig.from_pretrained(pretrained_model_name_or_path, **where)
            except OSError:
                pass  # the repository has no generation_config.json: the defaults hold

    def _prepare_generation_config(
        self, generation_config: UDMGenerationConfig | None, **kwargs: Any
    ) -> UDMGenerationConfig:
        """The settings of a call: its keywords, on top of `generation_config` or else of the model's own."""
        if generation_config is not None and not isinstance(generation_config, UDMGenerationConfig):
            raise ValueError(
                f"generation_config must be a UDMGenerationConfig, got {type(generation_config).__name__}, which "
                "steers autoregressive generation"
            )
        config = copy.deepcopy(self.generation_config if generation_config is None else generation_config)
        unknown = [name for name in kwargs if name not in config._defaults]
        if unknown:
            raise ValueError(f"unknown argument {unknown[0]!r} of generate. Known: {', '.join(config._defaults)}")
        if generation_config is None and any(kwargs.get(name) is not None for name in _LENGTH_ARGUMENTS):
            kwargs = dict.fromkeys(_LENGTH_ARGUMENTS) | kwargs  # a stored length gives way to the one of the call
        for name, value in kwargs.items():
            setattr(config, name, value)
        config.validate()
        return config

    @torch.no_grad()
    def generate(
        self,
        input_ids: Tensor | None = None,
        generation_config: UDMGenerationConfig | None = None,
        *,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        blanks: Tensor | None = None,
        generator: torch.Generator | None = None,
        sample_index: Tensor | None = None,
        logits_processor: Callable[..., Tensor] | None = None,
        classifier: Callable[..., Tensor] | None = None,
        streamer: Any = None,
        callback_on_step_end: Callable[..., dict[str, Tensor] | None] | None = None,
        **kwargs: Any,
    ) -> Tensor | UDMGenerateOutput:
        """Generate rows of tokens.

        Args:
            input_ids: (B, L) int64. None: rows from nothing, `num_return_sequences` of them. A row with [MASK]: the
                masks are filled in. With `max_edits`: the rows are repaired (substitute process). Any other row is
                continued, by `max_new_tokens`, to `length`, or to a length drawn from the training lengths; of a model
                of prompts and answers with a width head, by as many tokens as it draws given the prompt.
            generation_config: see `UDMGenerationConfig`; every field of it may be given by name.
            attention_mask: (B, L), 1 where there is a token, then 0; None: up to the padding token.
            token_type_ids: (B, L), which BERT's tokenizers hand out; rows have one segment, so it may hold only zeros.
            blanks: (B, L) bool, which [MASK] of input_ids are blanks, each of any number of tokens, none included, as
                the model draws it (widths.py; models with `blank_widths`). They are opened from left to right before
                anything is filled in, so the rows that come back have other lengths.
            generator: where a seed is drawn from if none is given (not both).
            sample_index: (B * num_return_sequences,) int64, what tells the randomness of the rows apart under one seed;
                None: their place in the batch. A row's result depends on (its input, seed, sample index) only, up to
                the rounding of the network, whose last bits change with the shape of a batch, more in bfloat16.
            logits_processor: called as processor(input_ids, scores), as transformers' `LogitsProcessorList` is, with a
                row for each position asked about: input_ids (N, L), the whole xt it stands in, and scores (N, V).
            classifier: guides masks towards what it knows (`classifier_scale`, `classifier_candidates`). Called as
                classifier(tokens, rows) with rows (M, L) in which one more position is filled in, [MASK] wherever
                nothing stands yet, and which row of the call each is a variant of (M,); returns (M,), log p(y | tokens)
                in nats for the y that this row is to have. A step of several tokens weighs each by itself.
            streamer: gets `put(prompt)`, `put_draft` of the rest at the start and after each step, `put` of the rest at
                the end, and `end()` (`transformers.TextDiffusionStreamer`; one without put_draft gets no drafts). The
                prompt, what precedes the first editable position, is told apart where there is a single row. Where
                widths are drawn, one with `put_widths` gets them first, (rows, blanks) as in the output; where texts
                grow, one with `put_new` gets, before each draft, which of its tokens have been put in, (rows, L) bool.
            callback_on_step_end: called as (model, step, s, {"xt": xt}) after each step (with `speculate`, after each
                round, s the masks that remain); may return {"xt": ...}, token ids of the shape of xt.

        The model is in evaluation mode meanwhile: dropout would make a row's result depend on more than its own noise.

        Returns:
            (B * num_return_sequences, L') int64, or a `UDMGenerateOutput`. No rows give no rows, unasked.

        Raises:
            ValueError: for an argument of a type or value that cannot work, before the network is asked; where its
                logits are no law (`decoding.NOT_FINITE`); where a callback or processor returns what cannot be used.
        """
        model: Any = self
        _check_call(generator, streamer, callback_on_step_end)
        config = self._prepare_generation_config(generation_config, **kwargs)
        if generator is not None and generation_config is None and "seed" not in kwargs:
            config.seed = None  # a stored seed gives way to the generator of the call
        device = device_of(model.get_input_embeddings())
        input_ids, attention_mask = check_inputs(model.config, input_ids, attention_mask, token_type_ids, device)
        given = [name for name in _LENGTH_ARGUMENTS if kwargs.get(name) is not None or generation_config is not None]
        lengths = {name: getattr(config, name) for name in given if getattr(config, name) is not None}
        blanks = check_blanks(model.config, input_ids, attention_mask, blanks, lengths)
        if input_ids is not None and attention_mask is not None:
            check_rows(len(input_ids) * config.num_return_sequences)
            input_ids = input_ids.repeat_interleave(config.num_return_sequences, dim=0)
            attention_mask = attention_mask.repeat_interleave(config.num_return_sequences, dim=0)
            blanks = None if blanks is None else blanks.repeat_interleave(config.num_return_sequences, dim=0)
        rows = config.num_return_sequences if input_ids is None else len(input_ids)
        random = _row_random(rows, config.seed, generator, sample_index, device)

        process = model.config.build_process()
        _resolve_defaults(config, model.config, process)
        _check_classifier(config, classifier, process, model.config.process_words)
        if input_ids is not None and attention_mask is not None and not rows:
            return _no_rows(config, input_ids, attention_mask, streamer)
        widths, opened = None, None
        found = find_blanks(model.config, config, input_ids, attention_mask, blanks, random)
        if found is not None:
            widths = open_blanks(model, *found[:3], drawn_widths(random, config.temperature), found.at_least_one)
            input_ids, attention_mask, opened = widths.tokens, widths.attention_mask, found.blanks.any(dim=1)
            if hasattr(streamer, "put_widths"):
                streamer.put_widths(widths.widths)
        inputs = make_inputs(model.config, config, input_ids, attention_mask, random, given, opened)
        if widths is not None and not bool(inputs.start.any()):
            config.compile = False  # nothing is left to be filled in
        constraints = Constraints(model.config, config, inputs, logits_processor, classifier)
        predictor = process.predictor(model, config, inputs, random, constraints)
        ours = {"logits_processor": logits_processor, "classifier": classifier}
        named = [name for name, function in ours.items() if function is not None]
        if config.compile and (what := padded_wrongly(model, inputs.tokens.shape[1])) is not None:
            named.append(what)
        config.compile = compiles(config, named, type(predictor))
        xt = inputs.tokens if inputs.keep_tokens else predictor.start(inputs)
        curve = model.config.step_curve
        tokens = (inputs.editable | model.config.editable(inputs.tokens, inputs.attention_mask)).sum(dim=1)
        times = counts(config.schedule, inputs.start, config.num_steps, curve, tokens)
        if config.counts == "binomial":
            own = RowRandom(random.seed ^ _COUNTS_SEED, random.rows).uniform(max(1, int(inputs.start.max())))
            times = binomial_counts(times.double() / inputs.start.clamp(min=1), inputs.start, own)

        watcher = Watcher(
            self, inputs.editable, streamer, callback_on_step_end, config.output_trajectory, predictor.shown
        )
        watcher.begin(xt)
        start = Start(process, predictor, xt, times, config, inputs.editable, random, watcher)
        with eval_mode(model):
            walk = find_sampler(config)(start)
        constraints.check()
        sequences, attended, editable = predictor.finish(walk.sequences, inputs)
        watcher.end(sequences)
        if not (config.return_dict_in_generate or config.output_trajectory):
            return sequences
        priced = curve is not None and process.has_curve and predictor.follows_the_curve()
        return UDMGenerateOutput(
            sequences=sequences,
            attention_mask=attended,
            editable=editable,
            steps=walk.steps,
            trajectory=tuple(watcher.trajectory) if config.output_trajectory else None,
            trajectory_editable=tuple(watcher.new) if watcher.new else None,
            num_calls=predictor.num_calls + (0 if widths is None else widths.num_calls),
            tokens_per_call=walk.tokens_per_call / predictor.readings,
            drafts=walk.drafts,
            expected_nats=step_costs(times, curve, tokens) / inputs.start.clamp(min=1) if priced else None,
            widths=None if widths is None else widths.widths,
            width_nats=None if widths is None else widths.nats,
        )


class Watcher:
    """Who looks on while rows come to be: a streamer, the caller's callback, a trajectory.

    The prompt, what precedes the first editable position, is told apart for the streamer where there is one row.
    """

    def __init__(
        self,
        model: Any,
        editable: Tensor,
        streamer: Any,
        callback: Callable[..., Any] | None,
        keeps_trajectory: bool,
        shown: Callable[[Tensor], tuple[Tensor, Tensor | None]],
    ):
        self.shown, self.new = shown, list[Tensor]()
        self.model, self.streamer, self.callback, self.keeps_trajectory = model, streamer, callback, keeps_trajectory
        self.replaces = callback is not None
        self.prompt = int((~editable[0]).long().cumprod(0).sum()) if len(editable) == 1 else 0
        self.trajectory: list[Tensor] = []

    def begin(self, xt: Tensor) -> None:
        """The rows (B, L) before the first step."""
        if self.streamer is not None:
            self.streamer.put(xt[:, : self.prompt].cpu())
        self._show(xt)

    def __call__(self, step: int, xs: Tensor, s: Tensor) -> Tensor:
        """The rows after a step, s (B,) positions of them corrupted; returns what the callback puts in their place."""
        if self.callback is not None:
            xs = self._replaced(self.callback(self.model, step, s, {"xt": xs}), xs)
        self._show(xs)
        return xs

    def _replaced(self, returned: Any, xs: Tensor) -> Tensor:
        """What a callback returned in place of the rows xs, checked."""
        if returned is None or (isinstance(returned, Mapping) and not returned):
            return xs
        must = 'callback_on_step_end must return None or {"xt": tensor}'
        if not isinstance(returned, Mapping) or set(returned) != {"xt"}:
            got = list(returned) if isinstance(returned, Mapping) else type(returned).__name__
            raise ValueError(f"{must}, got {got}")
        new = returned["xt"]
        if new is xs:
            return xs
        if not isinstance(new, Tensor) or new.shape != xs.shape or new.dtype not in (torch.int64, torch.int32):
            got = f"{tuple(new.shape)} {new.dtype}" if isinstance(new, Tensor) else type(new).__name__
            raise ValueError(f"{must} with token ids of the shape {tuple(xs.shape)} of xt, got {got}")
        vocab = self.model.config.vocab_size
        if bool(((new < 0) | (new >= vocab)).any()):
            raise ValueError(f"{must} with token ids in [0, {vocab}), got {int(new.min())} to {int(new.max())}")
        return new.to(xs)

    def end(self, sequences: Tensor) -> None:
        """The finished rows."""
        if self.streamer is not None:
            self.streamer.put(sequences[:, self.prompt :].cpu())
            self.streamer.end()

    def _show(self, xs: Tensor) -> None:
        xs, new = self.shown(xs)
        if self.keeps_trajectory:
            self.trajectory.append(xs)
            self.new += [] if new is None else [new]
        if new is not None and hasattr(self.streamer, "put_new"):
            self.streamer.put_new(new.cpu())
        if hasattr(self.streamer, "put_draft"):
            self.streamer.put_draft(xs[:, self.prompt :].cpu())


def _check_call(generator: Any, streamer: Any, callback: Any) -> None:
    """Raises ValueError for what is not of the kind that `generate` can use."""
    if not isinstance(generator, torch.Generator | None):
        raise ValueError(f"generator must be a torch.Generator, got {type(generator).__name__}")
    if streamer is not None and not all(callable(getattr(streamer, name, None)) for name in ("put", "end")):
        raise ValueError(f"streamer must have the methods put and end, got {type(streamer).__name__}")
    if callback is not None and not takes(callback, 4):
        what = type(callback).__name__
        raise ValueError(f"callback_on_step_end must be callable as callback(model, step, s, state), got {what}")


def _check_classifier(config: UDMGenerationConfig, classifier: Any, process: Any, process_words: str) -> None:
    """Raises ValueError for a classifier that cannot guide, or for how it does without one."""
    if classifier is None:
        for name in ("classifier_scale", "classifier_candidates"):
            if getattr(config, name) != UDMGenerationConfig._defaults[name]:
                raise ValueError(f"{name}={getattr(config, name)!r} is of a classifier: give classifier, too")
    elif "classifier_scale" not in process.generation_options:
        raise ValueError(
            f"classifier fills in masks one by one and needs a model of process 'mask'; this one has {process_words}: "
            "give logits_processor"
        )
    elif config.speculate is not None:
        raise ValueError("classifier weighs tokens one step at a time and does not go with speculate: leave it at None")


def check_rows(rows: int) -> None:
    """Raises ValueError for more rows than a call makes."""
    if rows > MOST_TOKENS:
        raise ValueError(
            f"num_return_sequences asks for {rows} rows, and a call makes {MOST_TOKENS} at most: make several calls, "
            "each with another seed or sample_index"
        )


def _no_rows(config: UDMGenerationConfig, input_ids: Tensor, attention_mask: Tensor, streamer: Any):
    """What `generate` returns for a batch without rows: (0, L) as it came."""
    if streamer is not None:
        streamer.end()
    if not (config.return_dict_in_generate or config.output_trajectory):
        return input_ids
    none = input_ids.new_zeros(0)
    no_drafts = input_ids.new_zeros(0, config.speculate or 0)
    return UDMGenerateOutput(
        sequences=input_ids,
        attention_mask=attention_mask,
        editable=attention_mask.clone(),
        steps=none,
        trajectory=(input_ids,) if config.output_trajectory else None,
        num_calls=0,
        tokens_per_call=none.double(),
        drafts=None if config.speculate is None else Drafts(no_drafts, no_drafts.clone()),
    )


def _row_random(rows, seed, generator, sample_index, device) -> RowRandom:
    if seed is not None and generator is not None:
        raise ValueError("give seed or generator, not both")
    check_rows(rows)
    if sample_index is None:
        sample_index = torch.arange(rows)
    tensor = isinstance(sample_index, Tensor)
    if not tensor or sample_index.dtype not in (torch.int64, torch.int32) or sample_index.shape != (rows,):
        got = f"{tuple(sample_index.shape)} {sample_index.dtype}" if tensor else type(sample_index).__name__
        raise ValueError(
            f"sample_index must have one entry for each of the {rows} rows, a ({rows},) tensor of integers, got {got}"
        )
    if seed is None:
        seed = RowRandom.fresh(1, generator=generator).seed
    return RowRandom(seed, sample_index.to(device, torch.int64))


def _resolve_defaults(config: UDMGenerationConfig, model_config, process) -> None:
    """Fills in the defaults that depend on the use, and refuses what would be without effect."""
    if config.speculate is not None:
        check_speculation(config)
    refuse_foreign(config, process, model_config.process)
    refuse_pairs(config)
    if config.schedule == "optimal" and not process.has_curve:
        raise ValueError(
            f"schedule 'optimal' follows the measured price of several tokens a step, and none is known of "
            f"{model_config.process_words}: give 'linear' or 'cosine'"
        )
    if config.schedule == "optimal" and model_config.step_curve is None:
        raise ValueError("schedule 'optimal' needs the measured curve of the model: run `udm evaluate MODEL --curve`")
    if guided(config) and not getattr(model_config, "prompt_dropout", 0.0):
        warnings.warn(
            f"guidance_scale={config.guidance_scale}: this model was not trained with its condition dropped "
            "(prompt_dropout is 0), so it was never shown a row whose prompt is [MASK] everywhere, and what it says of "
            "such a row may be worth little",
            stacklevel=4,
        )
    if config.threshold is not None:
        if config.order not in ("random", "confidence"):
            raise ValueError(f"threshold reveals the surest tokens: order must be 'confidence', got {config.order!r}")
        config.order = "confidence"
    if config.order_noise and find_order(config.order) is None:
        raise ValueError(
            f"order_noise is of orders that look at the probabilities, and order {config.order!r} does not: give "
            "order='confidence', 'margin', 'entropy' or a function"
        )
    if config.temperature is None:
        config.temperature = 1.0 if config.max_edits is None else 0.0
    if config.temperature < COLDEST:
        config.temperature = 0.0
    process.resolve_options(config, model_config)
