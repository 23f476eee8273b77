"""`model.generate`: unconditional text, infilling, continuation and repair, all by the loop of `core.denoise`.

A call makes a canvas (the row, what of it is editable, how many positions are corrupted), then walks it down a grid of
counts. What differs between the processes is the predictor: for masks the changing positions are known before the
network is asked, so it is asked there only; for substitutions it is asked everywhere and a kernel draws what changes.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers.utils import ModelOutput

from .configuration_udm import LOCATION_ARGUMENTS, UDMGenerationConfig
from .core import Guess, denoise, recover_noise
from .decoding import ADAPTIVE_ORDERS, draw, log_probabilities, truncate
from .hamming import NEVER
from .kernels import KERNELS, Change
from .objectives import changes
from .randomness import RowRandom
from .schedules import linear_counts

_EXTENTS = ("length", "max_new_tokens", "max_edits")
"""Arguments that say how far a row may change."""

_CHUNK_ELEMENTS = 1 << 24
"""Log-probabilities held in float64 at a time: 128 MiB."""


@dataclass
class UDMGenerateOutput(ModelOutput):
    """
    What `generate` returns with `return_dict_in_generate=True`.

    Args:
        sequences (`torch.LongTensor` of shape `(rows, length)`): the rows, padded behind with the padding token.
        attention_mask, editable (`torch.BoolTensor` of the same shape): where there is a token; where it could change.
        steps (`torch.LongTensor` of shape `(rows,)`): reverse steps of each row; a row that is done rests.
        trajectory (`tuple[torch.LongTensor]`, *optional*): every xt, from the start to the end (`output_trajectory`);
            of row i the entries up to `steps[i]` are its own.
        num_calls (`int`): network calls of the batch.
    """

    sequences: Tensor | None = None
    attention_mask: Tensor | None = None
    editable: Tensor | None = None
    steps: Tensor | None = None
    trajectory: tuple[Tensor, ...] | None = None
    num_calls: int | None = None


class Canvas(NamedTuple):
    """Rows to work on, all (B, L): tokens, what may change, where there is a token; start (B,): corrupted positions."""

    tokens: Tensor
    editable: Tensor
    attention_mask: Tensor
    start: Tensor
    given: bool = False


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
        if generation_config is None and any(kwargs.get(name) is not None for name in _EXTENTS):
            kwargs = dict.fromkeys(_EXTENTS) | kwargs  # a stored extent gives way to the one of the call
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
        generator: torch.Generator | None = None,
        sample_index: Tensor | None = None,
        streamer: Any = None,
        callback_on_step_end: Callable[..., dict[str, Tensor] | None] | None = None,
        **kwargs: Any,
    ) -> Tensor | UDMGenerateOutput:
        """Generate rows of tokens.

        Args:
            input_ids: (B, L) int64. None: rows from nothing, `num_return_sequences` of them. A row with [MASK]: the
                masks are filled in. With `max_edits`: the rows are repaired (substitute process). Any other row is
                continued, by `max_new_tokens`, to `length`, or to a length drawn from the training lengths.
            generation_config: see `UDMGenerationConfig`; every field of it may be given by name.
            attention_mask: (B, L), 1 where there is a token, then 0; None: up to the padding token.
            token_type_ids: (B, L), which BERT's tokenizers hand out; rows have one segment, so it may hold only zeros.
            generator: where a seed is drawn from if none is given (not both).
            sample_index: (B * num_return_sequences,) int64, what tells the randomness of the rows apart under one seed;
                None: their place in the batch. A row's result depends on (its input, seed, sample index) only, up to
                the rounding of the network, whose last bits change with the shape of a batch.
            streamer: gets `put(prompt)`, `put_draft` of the rest at the start and after each step, `put` of the rest at
                the end, and `end()` (`transformers.TextDiffusionStreamer`; one without put_draft gets no drafts). The
                prompt, what precedes the first editable position, is told apart where there is a single row.
            callback_on_step_end: called as (model, step, s, {"xt": xt}) after each step; may return {"xt": ...}.

        The model is in evaluation mode meanwhile: dropout would make a row's result depend on more than its own noise.

        Returns:
            (B * num_return_sequences, L') int64, or a `UDMGenerateOutput`.
        """
        model: Any = self
        config = self._prepare_generation_config(generation_config, **kwargs)
        if generator is not None and generation_config is None and "seed" not in kwargs:
            config.seed = None  # a stored seed gives way to the generator of the call
        device = model.get_input_embeddings().weight.device
        input_ids, attention_mask = _check_inputs(model.config, input_ids, attention_mask, token_type_ids, device)
        if input_ids is not None and attention_mask is not None:
            input_ids = input_ids.repeat_interleave(config.num_return_sequences, dim=0)
            attention_mask = attention_mask.repeat_interleave(config.num_return_sequences, dim=0)
        rows = config.num_return_sequences if input_ids is None else len(input_ids)
        random = _row_random(rows, config.seed, generator, sample_index, device)

        process = model.config.build_process()
        _settle(config, model.config, process)
        asked = [name for name in _EXTENTS if kwargs.get(name) is not None or generation_config is not None]
        canvas = _make_canvas(model.config, config, process, input_ids, attention_mask, random, asked)
        xt = canvas.tokens
        if not canvas.given:
            xt = process.prior(xt, editable=canvas.editable, random=random)
        times = linear_counts(canvas.start, config.num_steps)
        predictor = (_MaskPredictor if process.visible else _SubstitutePredictor)(
            model, process, config, canvas, random
        )

        trajectory = [xt]
        head = int((~canvas.editable[0]).long().cumprod(0).sum()) if rows == 1 else 0
        put_draft = getattr(streamer, "put_draft", lambda tokens: None)
        if streamer is not None:
            streamer.put(xt[:, :head].cpu())
        put_draft(xt[:, head:].cpu())

        def on_step(step: int, xs: Tensor, guess: Guess) -> Tensor:
            if callback_on_step_end is not None:
                xs = (callback_on_step_end(self, step, times[step + 1], {"xt": xs}) or {}).get("xt", xs)
            if config.output_trajectory:
                trajectory.append(xs)
            put_draft(xs[:, head:].cpu())
            return xs

        with _evaluating(model):
            sequences = denoise(
                process,
                predictor,
                xt,
                list(times),
                config.churn,
                editable=canvas.editable,
                random=random,
                on_step=on_step,
            )
        if streamer is not None:
            streamer.put(sequences[:, head:].cpu())
            streamer.end()
        if not (config.return_dict_in_generate or config.output_trajectory):
            return sequences
        return UDMGenerateOutput(
            sequences=sequences,
            attention_mask=canvas.attention_mask,
            editable=canvas.editable,
            steps=(times[1:] < times[:-1]).sum(dim=0),
            trajectory=tuple(trajectory) if config.output_trajectory else None,
            num_calls=predictor.num_calls,
        )


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode, each of its modules put back as it was."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _check_inputs(
    model_config, input_ids, attention_mask, token_type_ids, device
) -> tuple[Tensor, Tensor] | tuple[None, None]:
    """(input_ids int64, attention_mask bool) on the device of the model, or (None, None)."""
    if input_ids is None:
        if attention_mask is not None:
            raise ValueError("attention_mask is given without input_ids")
        return None, None
    if not isinstance(input_ids, Tensor) or input_ids.ndim != 2 or input_ids.dtype not in (torch.int64, torch.int32):
        tensor = isinstance(input_ids, Tensor)
        got = f"{tuple(input_ids.shape)} {input_ids.dtype}" if tensor else type(input_ids).__name__
        raise ValueError(f"input_ids must be a (B, L) tensor of integers, got {got}")
    input_ids = input_ids.to(device, torch.int64)
    if input_ids.numel() and not 0 <= int(input_ids.min()) <= int(input_ids.max()) < model_config.vocab_size:
        raise ValueError(
            f"input_ids must lie in [0, {model_config.vocab_size}), the vocabulary of the model, got "
            f"{int(input_ids.min())} to {int(input_ids.max())}"
        )
    if token_type_ids is not None and bool(torch.as_tensor(token_type_ids).any()):
        raise ValueError("token_type_ids must hold zeros: a row has one segment")
    if attention_mask is None:
        pad = model_config.pad_token_id
        attention_mask = torch.ones_like(input_ids) if pad is None else input_ids != pad
    if attention_mask.shape != input_ids.shape:
        raise ValueError(
            f"attention_mask must have the shape {tuple(input_ids.shape)} of input_ids, got "
            f"{tuple(attention_mask.shape)}"
        )
    attention_mask = attention_mask.to(device).bool()
    if (attention_mask[:, 1:] & ~attention_mask[:, :-1]).any():
        raise ValueError("attention_mask must be right-padded: ones, then zeros (tokenizer.padding_side = 'right')")
    return input_ids, attention_mask


def _row_random(rows, seed, generator, sample_index, device) -> RowRandom:
    if seed is not None and generator is not None:
        raise ValueError("give seed or generator, not both")
    if sample_index is None:
        sample_index = torch.arange(rows)
    if sample_index.shape != (rows,):
        raise ValueError(
            f"sample_index must have one entry for each of the {rows} rows, got {tuple(sample_index.shape)}"
        )
    if seed is None:
        seed = RowRandom.fresh(1, generator=generator).seed
    return RowRandom(seed, sample_index.to(device, torch.int64))


def _make_canvas(model_config, config, process, input_ids, attention_mask, random: RowRandom, asked) -> Canvas:
    """The rows, and which of the four uses each of them is. asked: the extents that the caller gave himself."""
    uniforms = random.uniform(1)[:, 0]  # for the lengths; drawn always, so that a row's later numbers are the same
    mask_id = model_config.mask_token_id
    masked = None if input_ids is None or mask_id is None else (input_ids == mask_id) & attention_mask
    infill = [] if masked is None else masked.any(dim=1).tolist()
    if config.max_edits is not None:
        if process.visible:
            raise ValueError(
                f"max_edits repairs a given text, which needs a model of process 'substitute'; this one has process "
                f"{model_config.process!r}"
            )
        if input_ids is None:
            raise ValueError("max_edits repairs a given text: give input_ids")
        if any(infill):
            raise ValueError("max_edits repairs a text without [MASK]; leave max_edits away to fill the masks in")
        if config.max_new_tokens is not None or config.length is not None:
            raise ValueError("max_edits repairs a text, which keeps its length: max_new_tokens and length do not apply")
        editable = model_config.editable(input_ids, attention_mask)
        start = editable.sum(1).clamp(max=config.max_edits)
        canvas = Canvas(input_ids, editable, attention_mask, start, True)
    else:
        if any(infill) and (wrong := [name for name in asked if getattr(config, name) is not None]):
            raise ValueError(f"the input holds [MASK], which are filled in: {wrong[0]} does not apply")
        if masked is not None and infill and all(infill):
            canvas = Canvas(input_ids, masked, attention_mask, masked.sum(1))
        else:
            canvas = _extend(model_config, config, input_ids, attention_mask, infill, uniforms)
    longest = model_config.max_row_length
    width = int(canvas.attention_mask.sum(1).max()) if canvas.attention_mask.numel() else 0
    if longest is not None and width > longest:
        raise ValueError(
            f"input_ids with what is to be generated make a row of {width} tokens, and the model reads at most "
            f"{longest}: shorten the input, or give a smaller length or max_new_tokens"
        )
    empty = (canvas.start == 0).nonzero()[:, 0]
    if len(empty):
        raise ValueError(
            f"row {int(empty[0])} of input_ids has no editable position: give [MASK] tokens to fill in, max_new_tokens "
            "to continue, or max_edits to repair a text"
        )
    return canvas


def _settle(config: UDMGenerationConfig, model_config, process) -> None:
    """Fills in the defaults that depend on the use, and refuses what would be without effect."""
    if process.visible and config.kernel is not None:
        raise ValueError(f"kernel is of the substitute process; this model has process {model_config.process!r}")
    if not process.visible and config.order != "random":
        raise ValueError(f"order is of the mask process; this model has process {model_config.process!r}, see kernel")
    repair = config.max_edits is not None
    if config.temperature is None:
        config.temperature = 0.0 if repair else 1.0
    if config.kernel is None:
        config.kernel = "free" if repair else model_config.kernel
    if config.churn and not process.visible:
        if repair:
            raise ValueError("churn corrupts a text anew; a repair changes at most max_edits tokens and needs churn 0")
        if config.kernel == "site":
            raise ValueError(
                "churn needs a kernel that draws a whole x0_hat, and kernel 'site' draws single positions: give "
                "kernel='hamming' or kernel='free'"
            )


def _extend(model_config, config, input_ids, attention_mask, infill: list[bool], uniforms: Tensor) -> Canvas:
    """Rows with new editable positions behind their prompt (or from nothing), framed as the tokenizer frames rows.

    Rows that hold [MASK] stand among them as they are, their masks editable.
    """
    prefix, suffix = model_config.prefix_token_ids, model_config.suffix_token_ids
    mask_id, device, rows = model_config.mask_token_id, uniforms.device, len(uniforms)
    if config.length is not None and config.max_new_tokens is not None:
        raise ValueError("give length (of the whole row) or max_new_tokens (behind the prompt), not both")
    infill = infill or [False] * rows
    if input_ids is None:
        prompts = [list(prefix)] * rows
    else:
        prompts = [ids[keep].tolist() for ids, keep in zip(input_ids, attention_mask, strict=True)]
    n = len(suffix)
    prompts = [
        row[:-n] if n and row[-n:] == suffix and not whole else row for row, whole in zip(prompts, infill, strict=True)
    ]
    new = _count_new(model_config, config, prompts, infill, uniforms)
    filler = mask_id if mask_id is not None else 0
    tokens, editable = [], []
    for row, whole, count in zip(prompts, infill, new.tolist(), strict=True):
        tail = [] if whole else suffix
        tokens.append(torch.tensor(row + [filler] * count + tail, dtype=torch.int64))
        changing = [whole and token == mask_id for token in row]
        editable.append(torch.tensor(changing + [True] * count + [False] * len(tail), dtype=torch.bool))
    if len({len(row) for row in tokens}) > 1 and model_config.pad_token_id is None:
        raise ValueError("rows of different lengths need a padding token, and the model has no pad_token_id")
    pad = torch.nn.utils.rnn.pad_sequence
    attended = pad([torch.ones(len(row), dtype=torch.bool) for row in tokens], batch_first=True)
    marked = pad(editable, batch_first=True)
    return Canvas(
        pad(tokens, batch_first=True, padding_value=model_config.pad_token_id or 0).to(device),
        marked.to(device),
        attended.to(device),
        marked.sum(dim=1).to(device),
    )


def _count_new(model_config, config, prompts: list[list[int]], infill: list[bool], uniforms: Tensor) -> Tensor:
    """(B,) int64: tokens that each row is given behind its prompt, none where it is filled in."""
    device = uniforms.device
    grows = ~torch.tensor(infill, dtype=torch.bool, device=device)
    special = set(model_config.special_token_ids)
    held = torch.tensor([sum(token not in special for token in row) for row in prompts], device=device)
    if config.max_new_tokens is not None:
        return config.max_new_tokens * grows
    if config.length is not None:
        if bool(((held >= config.length) & grows).any()):
            raise ValueError(f"length is {config.length}, and a prompt has {int(held[grows].max())} tokens already")
        return (config.length - held) * grows
    law = model_config.length_probabilities()
    if law is None:
        raise ValueError(
            "length is not given and the model has no training lengths (length_counts): give length, or max_new_tokens "
            "with a prompt"
        )
    law = law.to(device)
    top = torch.full_like(held, len(law) - 1)
    if model_config.max_row_length is not None:
        used = torch.tensor([len(row) for row in prompts], device=device) + len(model_config.suffix_token_ids)
        top = top.minimum(held + model_config.max_row_length - used)
    if bool(((held >= top) & grows).any()):
        raise ValueError(
            f"a prompt of {int(held[grows].max())} tokens leaves no room: rows of this model have at most "
            f"{int(top[grows].min())}, by twice the longest training row or by what the model can read; shorten it, or "
            "give max_new_tokens"
        )
    number = torch.arange(len(law), device=device)
    possible = (number > held[:, None]) & (number <= top[:, None]) & grows[:, None]
    weights = torch.where(possible | ~grows[:, None], law, 0.0)
    return (draw(weights.log(), uniforms) - held) * grows


class _Predictor:
    """Asks the network: logits at the wanted positions, from the rows that want any."""

    def __init__(self, model, process, config: UDMGenerationConfig, canvas: Canvas, random: RowRandom):
        self.model, self.process, self.config, self.random = model, process, config, random
        self.editable, self.attention_mask = canvas.editable, canvas.attention_mask
        self.lengths = canvas.editable.sum(dim=1)
        self.forbidden = model.config.forbidden_tokens(canvas.tokens.device)
        self.full = bool(canvas.attention_mask.all())
        self.num_calls = 0

    def logits(self, xt: Tensor, t: Tensor, positions: Tensor) -> Tensor:
        """(N, V) logits in the order of `positions.nonzero()`."""
        rows = positions.any(dim=1)
        everything = bool(rows.all())
        pick = (lambda x: x) if everything else (lambda x: x[rows])
        self.num_calls += 1
        return self.model(
            input_ids=pick(xt),
            attention_mask=None if self.full else pick(self.attention_mask).long(),
            t=pick(t),
            num_editable=pick(self.lengths),
            positions=pick(positions),
        ).logits

    @staticmethod
    def _by_chunks(function: Callable[..., tuple[Tensor, ...]], logits: Tensor, *others: Tensor) -> list[Tensor]:
        """function(logits (N, V), others (N,)...) in chunks, which bounds what is held in float64."""
        size = max(1, _CHUNK_ELEMENTS // logits.shape[-1])
        parts = zip(*(x.split(size) for x in (logits, *others)), strict=True)
        return [torch.cat(columns) for columns in zip(*(function(*part) for part in parts), strict=True)]


class _MaskPredictor(_Predictor):
    """Noise first: a static order shows which positions a step reveals, so the network is asked there only."""

    def __call__(self, xt: Tensor, t: Tensor, s: Tensor) -> Guess:
        uniforms = self.random.uniform(xt.shape[1])
        adaptive = ADAPTIVE_ORDERS.get(self.config.order)
        if adaptive is None:
            scores = None
            if self.config.order == "left_to_right":
                scores = -torch.arange(xt.shape[1], device=xt.device).expand_as(xt)
            noise = self._noise(xt, t, scores)
            asked = self.process.changing(xt, s, noise)
        else:
            noise, asked = None, self.process.corrupted(xt) & self.editable & (t > s)[:, None]
        if not asked.any():
            return Guess(xt, noise if noise is not None else self._noise(xt, t, None))
        tokens, scores = self._by_chunks(self._position, self.logits(xt, t, asked), uniforms[asked])
        if adaptive is not None:
            ranking = torch.zeros(xt.shape, dtype=torch.float64, device=xt.device)
            ranking[asked] = scores
            noise = self._noise(xt, t, ranking)
        return Guess(xt.masked_scatter(asked, tokens), noise)

    def _position(self, logits: Tensor, uniforms: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens (N,), and their scores (N,) in an adaptive order."""
        config = self.config
        log_probs = log_probabilities(logits, self.forbidden, config.temperature or 0.0)
        if config.top_k is not None or config.top_p is not None:
            log_probs = truncate(log_probs, config.top_k, config.top_p)
        tokens = draw(log_probs, uniforms)
        adaptive = ADAPTIVE_ORDERS.get(config.order)
        if adaptive is None:
            return tokens, uniforms
        # by the model's own probabilities: temperature 0 or top_k 1 would make every token equally sure
        return tokens, adaptive(log_probabilities(logits, self.forbidden), tokens)

    def _noise(self, xt, t, scores):
        return recover_noise(
            self.process,
            xt,
            xt,
            t,
            self.config.churn,
            editable=self.editable,
            random=self.random,
            scores=scores,
        )


class _SubstitutePredictor(_Predictor):
    """x0_hat first: every editable position says how likely it changes and to what; a kernel draws what does.

    Temperature acts on all of p_i; top_k and top_p on p_i(v | v != xt_i), so that a change always has a token.
    """

    def __call__(self, xt: Tensor, t: Tensor, s: Tensor) -> Guess:
        uniforms = self.random.uniform(xt.shape[1])
        asked = self.editable & (t > s)[:, None]
        never = torch.full(xt.shape, NEVER, dtype=torch.float64, device=xt.device)
        change = Change(never, torch.zeros_like(never), xt)
        if asked.any():
            pieces = self._by_chunks(self._position, self.logits(xt, t, asked), xt[asked], uniforms[asked])
            wholes = (never, torch.zeros_like(never), xt)
            change = Change(*(x.masked_scatter(asked, piece) for x, piece in zip(wholes, pieces, strict=True)))
        greedy = self.config.temperature == 0
        kernel = KERNELS[self.config.kernel or self.model.config.kernel]
        return kernel.draw(change, xt, t, s, self.config.churn, self.random, greedy)

    def _position(self, logits: Tensor, current: Tensor, uniforms: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        log_probs = log_probabilities(logits, self.forbidden, self.config.temperature or 1.0)
        others = log_probs.scatter(-1, current[:, None], -torch.inf)
        if self.config.temperature == 0:  # a change is judged by the best token it could bring
            best = others.max(dim=-1)
            stay = log_probs.gather(-1, current[:, None])[:, 0]
            return best.values.clamp(min=NEVER), stay.clamp(min=NEVER), best.indices
        change = changes(log_probs, current, torch.ones_like(current, dtype=torch.bool))
        tokens = draw(truncate(others, self.config.top_k, self.config.top_p), uniforms)
        return change.log_change, change.log_stay, tokens
