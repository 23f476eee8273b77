"""Predictors of `core.denoise` for tokens: they ask the network where x0 is needed and draw it.

What differs between the processes is here: for masks the changing positions are known before the network is asked, so
it is asked there only; for substitutions it is asked everywhere and a kernel draws what changes.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from .caching import CachedForward
from .constraints import Constraints
from .core import Prediction, recover_noise
from .decoding import confidence, draw, find_order, guide, log_probabilities, perturb, score, tempered, truncate
from .fastpath import FastForward, Forward
from .generation_configuration_udm import UDMGenerationConfig
from .hamming import NEVER
from .inputs import GenerationInputs
from .kernels import KERNELS, Change
from .objectives import changes
from .processes import TokenNoise, ranks
from .randomness import RowRandom

_CHUNK_ELEMENTS = 1 << 21
"""Log-probabilities held in float64 at a time: 16 MiB. The head makes logits of as many positions at a time."""

_MUST = -1e9
"""log(1 - r_i) where xt_i may not stay; small enough to add up, so that of several the most possible change."""


class NetworkOutput(NamedTuple):
    """What the network says of N positions: rows (N, ...), and `head`, which makes logits (n, V) of n of them.

    Logits are the largest thing there is, so they are made when they are used, some at a time.
    """

    rows: Tensor
    head: Callable[[Tensor], Tensor]


class Predictor:
    """Asks the network about the wanted positions, from the rows that want any.

    Under guidance every row is read twice, as it is and with [MASK] in place of its condition, in one batch.
    """

    def __init__(
        self,
        model,
        process,
        config: UDMGenerationConfig,
        inputs: GenerationInputs,
        random: RowRandom,
        constraints: Constraints | None = None,
    ):
        self.model, self.process, self.config, self.random = model, process, config, random
        self.editable = inputs.editable
        self.constraints = constraints or Constraints(model.config, config, inputs)
        self.forbidden = self.constraints.forbidden
        self.condition = condition(model.config, inputs, config.guidance_scale) if guided(config) else None
        self.scale = 1.0 if config.guidance_scale is None else float(config.guidance_scale)
        self.readings = 1 if self.condition is None else 2
        self.attention_mask = inputs.attention_mask.repeat(self.readings, 1)
        self.lengths = inputs.editable.sum(dim=1).repeat(self.readings)
        self.full = bool(inputs.attention_mask.all())
        if approximate(config):
            self.fast: Forward = CachedForward(model, self.attention_mask, self.lengths, config.cache_refresh or 1)
        else:
            self.fast = FastForward(model, self.attention_mask, self.lengths)
        self.num_calls = 0

    def start(self, inputs: GenerationInputs) -> Tensor:
        """xt (B, L) before the first step, where nothing of the editable positions is given: a draw of the prior."""
        return self.process.prior(inputs.tokens, editable=inputs.editable, random=self.random)

    def follows_the_curve(self) -> bool:
        """Whether the steps have the law that a measured curve prices: random order, temperature 1, nothing forced."""
        config, constraints = self.config, self.constraints
        plain = config.churn == 0 and config.temperature == 1 and config.top_k is None and (config.top_p or 1) == 1
        free = not (constraints.given or constraints.processor or config.revise or guided(config))
        return config.order == "random" and plain and free and not approximate(config)

    def _any(self, wanted: Tensor) -> bool:
        """Whether a position is wanted; raises ValueError where the last step met logits without law."""
        return self.constraints.check(wanted.any())[0]

    def ask(self, xt: Tensor, t: Tensor, positions: Tensor) -> NetworkOutput:
        """The output for N positions, in the order of `positions.nonzero()`."""
        self.num_calls += self.readings
        if self.condition is None:
            return self._ask(xt, t, positions)
        free = xt.masked_fill(self.condition, self.model.config.mask_token_id)
        both = self._ask(torch.cat((xt, free)), t.repeat(2), positions.repeat(2, 1))
        return NetworkOutput(both.rows.unflatten(0, (2, -1)).transpose(0, 1), partial(self._guided, both.head))

    def _guided(self, head: Callable[[Tensor], Tensor], rows: Tensor) -> Tensor:
        """(n, V) guided log-probabilities of rows (n, 2, ...), as the text is and without its condition."""
        conditional, unconditional = head(rows.flatten(0, 1)).unflatten(0, (-1, 2)).unbind(dim=1)
        return guide(conditional, unconditional, self.scale)

    def _ask(self, xt: Tensor, t: Tensor, positions: Tensor) -> NetworkOutput:
        hidden = self.fast.hidden(xt, t, positions)
        if hidden is not None:
            return NetworkOutput(hidden, self.fast.head)
        rows = positions.any(dim=1)
        everything = bool(rows.all())
        pick = (lambda x: x) if everything else (lambda x: x[rows])
        logits = self.model(
            input_ids=pick(xt),
            attention_mask=None if self.full else pick(self.attention_mask).long(),
            t=pick(t),
            num_editable=pick(self.lengths),
            positions=pick(positions),
        ).logits
        return NetworkOutput(logits, lambda rows: rows)

    def _by_chunks(
        self, function: Callable[..., tuple[Tensor, ...]], output: NetworkOutput, *others: Tensor
    ) -> list[Tensor]:
        """function(logits (n, V), others (n,)...) by chunks of the N positions, which bounds what is held of logits."""
        size = max(1, _CHUNK_ELEMENTS // (self.readings * self.model.config.vocab_size))
        size = size if size < 64 else size - size % 64  # the kernels of the head like whole blocks
        whole: list[Tensor] = []
        for start in range(0, len(output.rows), size):
            chunk = slice(start, start + size)
            pieces = function(output.head(output.rows[chunk]), *(x[chunk] for x in others))
            # What stays is made once: small tensors between large ones that go would keep a C heap from shrinking.
            whole = whole or [piece.new_empty(len(output.rows), *piece.shape[1:]) for piece in pieces]
            for all_of_it, piece in zip(whole, pieces, strict=True):
                all_of_it[chunk] = piece
        return whole


def guided(config: UDMGenerationConfig) -> bool:
    """Whether the unconditional reading takes part: scale 1 is the model itself."""
    return config.guidance_scale is not None and config.guidance_scale != 1


def approximate(config: UDMGenerationConfig) -> bool:
    """Whether keys and values are kept beyond the call they are exact for."""
    return config.cache_refresh is not None and config.cache_refresh > 1


def condition(model_config, inputs: GenerationInputs, scale: float | None) -> Tensor:
    """(B, L) bool: the condition of each row: its prompt where the model knows prompts, or else all that is given.

    Either way attended positions that are not editable and hold no special token: those that training hides.

    Raises:
        ValueError: where a row has none, or the model has no [MASK] to put there.
    """
    if model_config.mask_token_id is None:
        raise ValueError(
            f"guidance_scale={scale} reads a row with [MASK] in place of its prompt, and this model has no "
            "mask_token_id: leave guidance_scale at None"
        )
    given = model_config.prompt_tokens(inputs.tokens, inputs.attention_mask) & ~inputs.editable
    without = (~given.any(dim=1)).nonzero()[:, 0]
    if len(without):
        raise ValueError(
            f"guidance_scale={scale} weighs what a given text changes, and row {int(without[0])} has none: all its "
            "tokens are special, or may change, or belong to the answer. Give a prompt, or text around [MASK], or "
            "leave guidance_scale at None"
        )
    return given


class MaskPredictor(Predictor):
    """Noise first: a static order shows which positions a step reveals, so the network is asked there only.

    A step with s > t opens again (`revise`): the s positions whose tokens were the least probable when they were drawn.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        unknown = torch.full(self.editable.shape, torch.inf, dtype=torch.float64, device=self.editable.device)
        self.draw_probability = unknown  # of the token that stands at each position, when it was drawn

    def __call__(self, xt: Tensor, t: Tensor, s: Tensor) -> Prediction:
        uniforms = self.random.uniform(xt.shape[1])
        adaptive, gumbel = find_order(self.config.order), None
        if self.config.order_noise:
            gumbel = self.random.uniform(xt.shape[1])
        if adaptive is None:
            scores = None
            if self.config.order == "left_to_right":
                scores = -torch.arange(xt.shape[1], device=xt.device).expand_as(xt)
            noise = self._remask_least_confident(self._noise(xt, t, scores), t, s)
            wanted = self.process.changing(xt, s, noise)
        else:
            noise, wanted = None, self.process.corrupted(xt) & self.editable & (t > s)[:, None]
        if not self._any(wanted):
            noise = noise if noise is not None else self._remask_least_confident(self._noise(xt, t, None), t, s)
            return Prediction(xt, noise)
        output, indices = self.ask(xt, t, wanted), wanted.nonzero(as_tuple=True)
        pieces = self._by_chunks(partial(self._position, xt), output, *indices, uniforms[wanted])
        tokens, scores, probability = pieces
        self.draw_probability = self.draw_probability.masked_scatter(wanted, probability)
        if adaptive is not None:
            ranking = torch.zeros(xt.shape, dtype=torch.float64, device=xt.device)
            ranking[wanted] = (
                scores if gumbel is None else perturb(adaptive, scores, self.config.order_noise, gumbel[wanted])
            )
            noise = self._remask_least_confident(self._noise(xt, t, ranking), t, s)
            if self.config.threshold is not None:  # order by confidence: the scores are probabilities
                s = s.minimum(t - (ranking > self.config.threshold).sum(dim=1))
        return Prediction(xt.masked_scatter(wanted, tokens), noise, s=s)

    def _position(self, xt: Tensor, logits: Tensor, rows: Tensor, columns: Tensor, uniforms: Tensor):
        """Tokens, their scores in an adaptive order, and where `revise` needs it their probabilities; all (N,)."""
        config = self.config
        logits = self.constraints(logits, xt, rows, columns)
        scores = tempered(logits, temperature=config.temperature or 0.0)
        if config.top_k is not None or config.top_p is not None:
            scores = truncate(scores, config.top_k, config.top_p)
        tokens = draw(scores, uniforms)
        adaptive = find_order(config.order)
        if adaptive is None and not config.revise:
            return tokens, uniforms, uniforms
        # by the model's own probabilities: temperature 0 or top_k 1 would make every token equally sure
        own = log_probabilities(logits)
        return tokens, uniforms if adaptive is None else score(adaptive, own, tokens), confidence(own, tokens)

    def _remask_least_confident(self, noise: TokenNoise, t: Tensor, s: Tensor) -> TokenNoise:
        """The noise; in rows with s > t its smallest keys stand at the positions that were drawn the least surely."""
        rises = (s > t)[:, None]
        if not self.config.revise or not bool(rises.any()):
            return noise
        draw_probability = self.draw_probability.clamp(max=2.0).masked_fill(~self.editable, torch.inf)
        order = ranks(draw_probability)
        keys = ((order + 0.5) / order.shape[1]).masked_fill(~self.editable, torch.inf)
        return noise._replace(keys=torch.where(rises, keys, noise.keys))

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

    def start(self, inputs: GenerationInputs) -> Tensor:
        xt = super().start(inputs)
        if self.constraints.starts_anew:  # what stands there at the start may stay
            xt = self.constraints.prior(xt, inputs.editable, self.random)
        return xt

    def __call__(self, xt: Tensor, t: Tensor, s: Tensor) -> Prediction:
        uniforms = self.random.uniform(xt.shape[1])
        wanted = self.editable & (t > s)[:, None]
        never = torch.full(xt.shape, NEVER, dtype=torch.float64, device=xt.device)
        change = Change(never, torch.zeros_like(never), xt)
        if self._any(wanted):
            output, indices = self.ask(xt, t, wanted), wanted.nonzero(as_tuple=True)
            pieces = self._by_chunks(partial(self._position, xt), output, *indices, uniforms[wanted])
            wholes = (never, torch.zeros_like(never), xt)
            change = Change(*(x.masked_scatter(wanted, piece) for x, piece in zip(wholes, pieces, strict=True)))
        greedy = self.config.temperature == 0
        kernel = KERNELS[self.config.kernel or self.model.config.kernel]
        able = (change.log_change > NEVER / 2).sum(dim=-1)  # below t where constraints leave a position one token
        t = t.minimum(able)
        s = s.minimum(t)
        prediction = kernel.draw(change, xt, t, s, self.config.churn, self.random, greedy)
        return prediction._replace(
            t=t if prediction.t is None else prediction.t, s=s if prediction.s is None else prediction.s
        )

    def _position(self, xt: Tensor, logits: Tensor, rows: Tensor, columns: Tensor, uniforms: Tensor):
        """Of `Change`, all (N,): log_change, log_stay, tokens."""
        current = xt[rows, columns]
        logits = self.constraints(logits, xt, rows, columns)
        log_probs = log_probabilities(logits, temperature=self.config.temperature or 1.0)
        others = log_probs.scatter(-1, current[:, None], -torch.inf)
        if self.config.temperature == 0:  # a change is judged by the best token it could bring
            best = others.max(dim=-1)
            stay = log_probs.gather(-1, current[:, None])[:, 0]
            return best.values.clamp(min=NEVER), stay.clamp(min=_MUST), best.indices
        change = changes(log_probs, current, torch.ones_like(current, dtype=torch.bool))
        tokens = draw(truncate(others, self.config.top_k, self.config.top_p), uniforms)
        return change.log_change, change.log_stay.clamp(min=_MUST), tokens
