"""Predictors of `core.denoise` for tokens: they ask the network where x0 is needed and draw it.

What differs between the processes is here: for masks the changing positions are known before the network is asked, so
it is asked there only; for substitutions it is asked everywhere and a kernel draws what changes.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .canvas import Canvas
from .configuration_udm import UDMGenerationConfig
from .core import Guess, recover_noise
from .decoding import ADAPTIVE_ORDERS, draw, log_probabilities, truncate
from .hamming import NEVER
from .kernels import KERNELS, Change
from .objectives import changes
from .randomness import RowRandom

_CHUNK_ELEMENTS = 1 << 24
"""Log-probabilities held in float64 at a time: 128 MiB."""


class Predictor:
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


class MaskPredictor(Predictor):
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


class SubstitutePredictor(Predictor):
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
