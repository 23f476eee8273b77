"""`model.generate`: unconditional text, infilling, continuation and repair, all by the loop of `core.denoise`.

A call makes a canvas (the row, what of it is editable, how many positions are corrupted), then walks it down a grid of
counts. What differs between the processes is the predictor: for masks the changing positions are known before the
network is asked, so it is asked there only; for substitutions it is asked everywhere and a kernel draws what changes.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers.utils import ModelOutput

from .configuration_udm import UDMGenerationConfig
from .core import Guess, denoise, recover_noise
from .decoding import ADAPTIVE_ORDERS, draw, log_probabilities, truncate
from .hamming import NEVER
from .kernels import KERNELS, Change
from .objectives import changes
from .randomness import RowRandom
from .schedules import linear_counts

_CHUNK_ELEMENTS = 1 << 24
"""Log-probabilities held in float64 at a time: 128 MiB."""


@dataclass
class UDMGenerateOutput(ModelOutput):
    """
    What `generate` returns with `return_dict_in_generate=True`.

    Args:
        sequences (`torch.LongTensor` of shape `(rows, length)`): the rows, padded behind with the padding token.
        attention_mask, editable (`torch.BoolTensor` of the same shape): where there is a token; where it could change.
        trajectory (`tuple[torch.LongTensor]`, *optional*): every xt, from the start to the end (`output_trajectory`).
        num_calls (`int`): network calls of the batch.
    """

    sequences: Tensor | None = None
    attention_mask: Tensor | None = None
    editable: Tensor | None = None
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

    def can_generate(self) -> bool:
        return True

    def adjust_generation_fn(
        self,
        generation_config,
        from_auto_class,
        from_pipeline,
        pretrained_model_name_or_path,
        *args,
        **kwargs,
    ):
        """Called by from_pretrained: loads generation_config.json as our own class where there is one."""
        self.generation_config = UDMGenerationConfig()
        if generation_config is not None:
            self.generation_config = UDMGenerationConfig.from_dict(generation_config.to_dict())
        elif pretrained_model_name_or_path is not None:
            names = (
                "cache_dir",
                "force_download",
                "proxies",
                "local_files_only",
                "token",
                "revision",
                "subfolder",
            )
            order = names[: len(args)]
            where = {
                **dict(zip(order, args, strict=False)),
                **{k: v for k, v in kwargs.items() if k in names},
            }
            try:
                self.generation_config = UDMGenerationConfig.from_pretrained(
                    pretrained_model_name_or_path, **where
                )
            except OSError:
                pass  # the repository has no generation_config.json: the defaults hold

    @torch.no_grad()
    def generate(
        self,
        input_ids: Tensor | None = None,
        generation_config: UDMGenerationConfig | None = None,
        *,
        attention_mask: Tensor | None = None,
        generator: torch.Generator | None = None,
        sample_index: Tensor | None = None,
        streamer: Any = None,
        callback_on_step_end: Callable[..., dict[str, Tensor] | None] | None = None,
        **kwargs: Any,
    ) -> Tensor | UDMGenerateOutput:
        """Generate rows of tokens.

        Args:
            input_ids: (B, L) int64. None: rows from nothing, `num_return_sequences` of them. Rows with [MASK]: the masks
                are filled in. With `max_edits`: the rows are repaired (substitute process). Otherwise the rows are
                continued, by `max_new_tokens` or to a length drawn from the training lengths.
            generation_config: see `UDMGenerationConfig`; every field of it may be given by name.
            attention_mask: (B, L), 1 where there is a token.
            generator: where a seed is drawn from if none is given (not both).
            sample_index: (B * num_return_sequences,) int64, what tells the randomness of the rows apart under one seed; None:
                their place in the batch. A row's result depends on (its input, seed, sample index) only.
            streamer: gets `put`, `put_draft` after each step, `end` (`transformers.TextDiffusionStreamer`).
            callback_on_step_end: called as (model, step, s, {"xt": xt}) after each step; may return {"xt": ...}.

        Returns:
            (B * num_return_sequences, L') int64, or a `UDMGenerateOutput`.
        """
        config: UDMGenerationConfig = copy.deepcopy(generation_config or self.generation_config)
        unknown = [name for name in kwargs if name not in config._defaults]
        if unknown:
            raise ValueError(
                f"unknown argument {unknown[0]!r} of generate. Known: {', '.join(config._defaults)}"
            )
        for name, value in kwargs.items():
            setattr(config, name, value)
        config.validate()
        device = self.get_input_embeddings().weight.device  # type: ignore[attr-defined]

        if input_ids is not None:
            if input_ids.ndim != 2 or input_ids.dtype not in (torch.int64, torch.int32):
                raise ValueError(
                    f"input_ids must be (B, L) integers, got {tuple(input_ids.shape)} {input_ids.dtype}"
                )
            input_ids = input_ids.to(device, torch.int64)
            if attention_mask is None:
                attention_mask = torch.ones_like(input_ids)
            attention_mask = attention_mask.to(device).bool()
            input_ids = input_ids.repeat_interleave(config.num_return_sequences, dim=0)
            attention_mask = attention_mask.repeat_interleave(config.num_return_sequences, dim=0)
        rows = config.num_return_sequences if input_ids is None else len(input_ids)
        random = _row_random(rows, config.seed, generator, sample_index, device)

        process = self.config.build_process()
        canvas = _make_canvas(self.config, config, process, input_ids, attention_mask, rows, random, device)
        if config.temperature is None:
            config.temperature = 0.0 if canvas.given else 1.0
        if config.kernel is None:
            config.kernel = "free" if canvas.given else self.config.kernel
        xt = canvas.tokens
        if not canvas.given:
            xt = process.prior(xt, editable=canvas.editable, random=random)
        times = linear_counts(canvas.start, config.num_steps)
        predictor = (_MaskPredictor if process.visible else _SubstitutePredictor)(
            self, process, config, canvas, random
        )

        trajectory = [xt]
        head = int((~canvas.editable[0]).long().cumprod(0).sum()) if rows == 1 else 0
        if streamer is not None:
            streamer.put(xt[:, :head].cpu())
            streamer.put_draft(xt[:, head:].cpu())

        def on_step(step: int, xs: Tensor, guess: Guess) -> Tensor:
            if callback_on_step_end is not None:
                xs = (callback_on_step_end(self, step, times[step + 1], {"xt": xs}) or {}).get("xt", xs)
            if config.output_trajectory:
                trajectory.append(xs)
            if streamer is not None:
                streamer.put_draft(xs[:, head:].cpu())
            return xs

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
        if not config.return_dict_in_generate:
            return sequences
        return UDMGenerateOutput(
            sequences=sequences,
            attention_mask=canvas.attention_mask,
            editable=canvas.editable,
            trajectory=tuple(trajectory) if config.output_trajectory else None,
            num_calls=predictor.num_calls,
        )


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


def _make_canvas(model_config, config, process, input_ids, attention_mask, rows, random, device) -> Canvas:
    """Which of the four uses this is, and its rows."""
    mask_id = model_config.mask_token_id
    masked = None if input_ids is None or mask_id is None else (input_ids == mask_id) & attention_mask
    if config.max_edits is not None:
        if process.visible:
            raise ValueError(
                "max_edits repairs a given text, which needs a model of process 'substitute'; this one has process 'mask'"
            )
        if input_ids is None:
            raise ValueError("max_edits repairs a given text: give input_ids")
        editable = model_config.editable(input_ids, attention_mask)
        canvas = Canvas(
            input_ids, editable, attention_mask, editable.sum(1).clamp(max=config.max_edits), True
        )
    elif masked is not None and masked.any():
        if config.max_new_tokens is not None or config.length is not None:
            raise ValueError(
                "the input holds [MASK], which are filled in: max_new_tokens and length do not apply"
            )
        canvas = Canvas(input_ids, masked, attention_mask, masked.sum(1))
    else:
        canvas = _extend(model_config, config, input_ids, attention_mask, rows, random, device)
    longest = model_config.max_row_length
    width = int(canvas.attention_mask.sum(1).max())
    if longest is not None and width > longest:
        raise ValueError(
            f"the row has {width} tokens with what is to be generated; the model reads at most {longest}"
        )
    if not canvas.attention_mask.eq(canvas.attention_mask.long().cummin(1).values.bool()).all():
        raise ValueError("attention_mask must be right-padded: ones, then zeros (tokenizer.padding_side = 'right')")
    empty = (canvas.start == 0).nonzero()[:, 0]
    if len(empty):
        raise ValueError(
            f"row {int(empty[0])} has no editable position: give [MASK] tokens to fill in, max_new_tokens to continue, or "
            "max_edits to repair"
        )
    return canvas


def _extend(model_config, config, input_ids, attention_mask, rows, random, device) -> Canvas:
    """Rows with new editable positions behind their prompt (or from nothing), framed as the tokenizer frames rows."""
    prefix, suffix = model_config.prefix_token_ids, model_config.suffix_token_ids
    if config.length is not None and config.max_new_tokens is not None:
        raise ValueError("give length (of the whole row) or max_new_tokens (behind the prompt), not both")
    if input_ids is None:
        prompts = [list(prefix)] * rows
    else:
        prompts = [ids[keep].tolist() for ids, keep in zip(input_ids, attention_mask, strict=True)]
        n = len(suffix)
        prompts = [row[:-n] if n and row[-n:] == suffix else row for row in prompts]
    special = set(model_config.special_token_ids)
    held = torch.tensor([sum(token not in special for token in row) for row in prompts], device=device)
    if config.max_new_tokens is not None:
        new = torch.full((rows,), config.max_new_tokens, device=device)
    elif config.length is not None:
        new = config.length - held
        if (new < 1).any():
            raise ValueError(f"length is {config.length}, and a prompt has {int(held.max())} tokens already")
    else:
        new = _draw_lengths(model_config.length_probabilities(), held, random) - held
    tokens, editable = [], []
    filler = model_config.mask_token_id if model_config.mask_token_id is not None else 0
    for row, count in zip(prompts, new.tolist(), strict=True):
        tokens.append(torch.tensor(row + [filler] * count + suffix))
        editable.append(torch.tensor([False] * len(row) + [True] * count + [False] * len(suffix)))
    ragged = len({len(row) for row in tokens}) > 1
    if ragged and model_config.pad_token_id is None:
        raise ValueError("rows of different lengths need a padding token, and the model has no pad_token_id")
    pad = torch.nn.utils.rnn.pad_sequence
    attended = pad([torch.ones(len(row), dtype=torch.bool) for row in tokens], batch_first=True)
    return Canvas(
        pad(tokens, batch_first=True, padding_value=model_config.pad_token_id or 0).to(device),
        pad(editable, batch_first=True).to(device),
        attended.to(device),
        new,
    )


def _draw_lengths(law: Tensor | None, held: Tensor, random: RowRandom) -> Tensor:
    """(B,) int64: lengths from the training lengths, each given that it exceeds the row's own `held` tokens."""
    if law is None:
        raise ValueError(
            "the model has no training lengths (length_counts): give length, or max_new_tokens with a prompt"
        )
    if int(held.max()) >= len(law) - 1:
        raise ValueError(
            f"a prompt of {int(held.max())} tokens is twice as long as any training row; give max_new_tokens"
        )
    law = law.to(held.device)
    weights = law.repeat(len(held), 1).masked_fill(
        torch.arange(len(law), device=held.device) <= held[:, None], 0.0
    )
    return draw(weights.log(), random.uniform(1)[:, 0])


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
        log_probs = self._log_probs(self.logits(xt, t, asked))
        tokens = draw(log_probs, uniforms[asked])
        if adaptive is not None:
            ranking = torch.zeros(xt.shape, dtype=torch.float64, device=xt.device)
            ranking[asked] = adaptive(log_probs, tokens)
            noise = self._noise(xt, t, ranking)
        return Guess(xt.masked_scatter(asked, tokens), noise)

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

    def _log_probs(self, logits: Tensor) -> Tensor:
        log_probs = log_probabilities(logits, self.forbidden, self.config.temperature)
        if self.config.top_k is None and self.config.top_p is None:
            return log_probs
        return truncate(log_probs, self.config.top_k, self.config.top_p)


class _SubstitutePredictor(_Predictor):
    """x0_hat first: every editable position says how likely it changes and to what; a kernel draws what does.

    Temperature acts on all of p_i; top_k and top_p on p_i(v | v != xt_i), so that a change always has a token.
    """

    def __call__(self, xt: Tensor, t: Tensor, s: Tensor) -> Guess:
        uniforms = self.random.uniform(xt.shape[1])
        asked = self.editable & (t > s)[:, None]
        change = Change(
            torch.full(xt.shape, NEVER, dtype=torch.float64, device=xt.device),
            torch.zeros(xt.shape, dtype=torch.float64, device=xt.device),
            xt.clone(),
        )
        if asked.any():
            logits = self.logits(xt, t, asked)
            size = max(1, _CHUNK_ELEMENTS // logits.shape[-1])
            parts = zip(logits.split(size), xt[asked].split(size), uniforms[asked].split(size), strict=True)
            pieces = [self._position(*part) for part in parts]
            for whole, columns in zip(change, zip(*pieces, strict=True), strict=True):
                whole[asked] = torch.cat(columns)
        greedy = self.config.temperature == 0
        kernel = KERNELS[self.config.kernel]
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
