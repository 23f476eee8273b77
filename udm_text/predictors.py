"""Predictors of `core.denoise` for tokens: they ask the network where x0 is needed and draw it.

What differs between the processes is here: for masks the changing positions are known before the network is asked, so
it is asked there only; for substitutions it is asked everywhere and a kernel draws what changes.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import accumulate, pairwise
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from .caching import CachedForward
from .constraints import Constraints
from .core import Prediction, recover_noise
from .decoding import (
    NO_ORDER,
    Order,
    confidence,
    draw,
    find_order,
    guide,
    log_probabilities,
    perturb,
    score,
    tempered,
    truncate,
)
from .devices import reads_are_free
from .fastpath import FastForward, Forward
from .generation_configuration_udm import UDMGenerationConfig
from .generation_options import Skeleton
from .hamming import NEVER
from .inputs import GenerationInputs
from .kernels import ALL_KERNELS, Change, Kernel
from .positions import Positions
from .processes import TokenNoise, ranks
from .randomness import RowRandom

_CHUNK_ELEMENTS = 1 << 21
"""Log-probabilities held in float64 at a time: 16 MiB. The head makes logits of as many positions at a time."""

_MOST = torch.finfo(torch.float64).max

_DRAWS = 6
"""Draws of a step, at most, with their numbers for every position."""

_MUST = -1e9
"""log(1 - r_i) where xt_i may not stay; small enough to add up, so that of several the most possible change."""


class NetworkOutput(NamedTuple):
    """What the network says of N positions: rows (N, ...), and `head`, which makes logits (n, V) of n of them.

    Logits are the largest thing there is, so they are made when they are used, some at a time.
    """

    rows: Tensor
    head: Callable[[Tensor], Tensor]


class GraphNeeds(NamedTuple):
    """What the steps of a walk need where they are a graph, all of whose sizes are fixed (compiling.py).

    width: positions of a row that a step asks about, at most. draws: calls of `RowRandom.uniform` in a step, at most.
    keys, uniforms: (B, L), the noise of the walk and the numbers that its tokens are drawn by, where they are drawn
    before its first step.
    """

    width: int
    draws: int
    keys: Tensor | None = None
    uniforms: Tensor | None = None


class GraphStep(Protocol):
    """A step within a graph, as `Predictor.in_graph` sees it: rows that are padded, and sizes that are fixed."""

    config: Any
    """The options that the graph was made for."""
    editable: Tensor
    """(B, L) bool."""
    random: Any
    """Gives `uniform`, as `RowRandom` does."""
    width: int
    keys: Tensor | None
    uniforms: Tensor | None
    """As in `GraphNeeds`."""

    def read(
        self, xt: Tensor, t: Tensor, positions: Positions, live: Tensor, use: Callable[..., Any], *others: Tensor
    ) -> list[Tensor]:
        """use(constrained logits (n, V), others (n,)...) of the N positions, of those that are `live` (N,) bool."""


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
        self._grid: list[list[int]] = []
        self._replaced, self._step = False, 0

    def begin(self, xt: Tensor, grid: list[list[int]]) -> None:
        """Before a walk from rows xt (B, L) down a grid, K + 1 times B counts: what of it is known beforehand."""
        self._grid, self._step = grid, 0

    def replaced(self) -> None:
        """Somebody has put other rows in the place of those of the last step: what was known of them is not."""
        self._replaced = True

    @property
    def is_replaced(self) -> bool:
        """Whether somebody has."""
        return self._replaced

    def stood_aside(self) -> None:
        """A graph has taken the next step, in which the network was asked, in its place."""
        self._counts()
        self.num_calls += self.readings

    def _counts(self) -> tuple[list[int], list[int]]:
        """The counts of the rows before and behind the next step, as numbers of the host."""
        self._step += 1
        return self._grid[self._step - 1], self._grid[self._step]

    def start(self, inputs: GenerationInputs) -> Tensor:
        """xt (B, L) before the first step, where nothing of the editable positions is given: a draw of the prior."""
        return self.process.prior(inputs.tokens, editable=inputs.editable, random=self.random)

    def shown(self, xs: Tensor) -> tuple[Tensor, Tensor | None]:
        """Rows xs (B, L) as those who look on see them; and, where texts grow, what of them is new, (B, L) bool."""
        return xs, None

    def finish(self, sequences: Tensor, inputs: GenerationInputs) -> tuple[Tensor, Tensor, Tensor]:
        """What a walk from `inputs` ended with, as it is handed out: rows, where there is a token, and where it could
        change."""
        return sequences, inputs.attention_mask, inputs.editable

    def graph_needs(self) -> GraphNeeds:
        """After `begin`: what a graph of its steps needs."""
        raise NotImplementedError

    @staticmethod
    def in_graph(step: GraphStep, process: Any, xt: Tensor, t: Tensor, s: Tensor) -> Prediction:
        """What a call gives, within a graph: no value is read, and no number of the host depends on the step. A
        predictor whose class does not say it itself is not compiled."""
        raise NotImplementedError

    def follows_the_curve(self) -> bool:
        """Whether the steps have the law that a measured curve prices: random order, temperature 1, nothing forced."""
        config, constraints = self.config, self.constraints
        plain = config.churn == 0 and config.temperature == 1 and config.top_k is None and (config.top_p or 1) == 1
        functions = constraints.processor or constraints.classifier
        free = not (constraints.given or functions or config.revise or guided(config))
        return config.order == "random" and plain and free and not approximate(config)

    def ask(self, xt: Tensor, t: Tensor, positions: Positions, others: list[int] | None = None) -> NetworkOutput:
        """The output for N positions, in their order. others: see `Forward.hidden`."""
        self.num_calls += self.readings
        if self.condition is None:
            return self._ask(xt, t, positions, others)
        free = xt.masked_fill(self.condition, self.model.config.mask_token_id)
        both = self._ask(
            torch.cat((xt, free)), t.repeat(2), positions.repeat(2), None if others is None else others * 2
        )
        return NetworkOutput(both.rows.unflatten(0, (2, -1)).transpose(0, 1), partial(self._guided, both.head))

    def _guided(self, head: Callable[[Tensor], Tensor], rows: Tensor) -> Tensor:
        """(n, V) guided log-probabilities of rows (n, 2, ...), as the text is and without its condition."""
        conditional, unconditional = head(rows.flatten(0, 1)).unflatten(0, (-1, 2)).unbind(dim=1)
        return guide(conditional, unconditional, self.scale)

    def _ask(self, xt: Tensor, t: Tensor, positions: Positions, others: list[int] | None) -> NetworkOutput:
        hidden = self.fast.hidden(xt, t, positions, others)
        if hidden is not None:
            return NetworkOutput(hidden, self.fast.head)
        # rows that rest are left out where the host need not send word of which they are
        asked = positions.asked if reads_are_free(xt.device) else list(range(len(xt)))
        pick = (lambda x: x) if len(asked) == len(xt) else (lambda x: x[asked])
        own = positions.within(asked)
        logits = self.model(
            input_ids=pick(xt),
            attention_mask=None if self.full else pick(self.attention_mask).long(),
            t=pick(t),
            num_editable=pick(self.lengths),
            positions=own.places,
        ).logits
        return NetworkOutput(logits, lambda rows: rows)

    def _by_chunks(
        self, function: Callable[..., tuple[Tensor, ...]], output: NetworkOutput, *others: Tensor
    ) -> list[Tensor]:
        """function(logits (n, V), others (n,)...) by chunks of the N positions, which bounds what is held of logits."""
        size = max(1, _CHUNK_ELEMENTS // (self.readings * self.model.config.vocab_size))
        size = size if size < 64 else size - size % 64  # the kernels of the head like whole blocks
        if len(output.rows) <= size:
            return list(function(output.head(output.rows), *others))
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


class Plan(NamedTuple):
    """A walk whose order is drawn before its first step: which position is revealed when, and by which number.

    rows, columns: (N,) int64, by their step, then row by row. uniforms: (N,) float64. ends: of each step, how many
    positions are revealed before it. counts: of each step, how many each row reveals.
    """

    rows: Tensor
    columns: Tensor
    uniforms: Tensor
    ends: list[int]
    counts: list[list[int]]

    def step(self, number: int) -> tuple[Positions, Tensor]:
        """What a step reveals, and the uniforms (n,) that draw it."""
        here = slice(self.ends[number], self.ends[number + 1])
        return Positions(self.rows[here], self.columns[here], self.counts[number]), self.uniforms[here]


def _falls(before: list[int], after: list[int]) -> list[int]:
    """By how much each count falls, 0 where it does not."""
    return [max(0, t - s) for t, s in zip(before, after, strict=True)]


class MaskPredictor(Predictor):
    """Noise first: a static order shows which positions a step reveals, so the network is asked there only.

    Without `churn` one draw of the noise serves all steps: the posterior of what is left of it, given the positions
    that are still [MASK], is what a step would draw anew. So of a static order the whole walk is known before its first
    step (`Plan`); an adaptive one puts the keys of a step in an order of its own. A callback that puts other rows in
    between ends that: each step draws its noise then.

    A step with s > t opens again (`revise`): the s positions whose tokens were the least probable when they were drawn.
    What is drawn there has numbers of its own, so that the walk up to it is the one without.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        unknown = torch.full(self.editable.shape, torch.inf, dtype=torch.float64, device=self.editable.device)
        self.draw_probability = self._nothing = unknown  # of the token that stands at each position, when it was drawn
        self._seen: list[int] | None = None  # [MASK] in each row when the network was asked last
        self.noise: TokenNoise | None = None  # of the whole walk
        self.plan: Plan | None = None
        self.adaptive = find_order(self.config.order)

    def begin(self, xt: Tensor, grid: list[list[int]]) -> None:
        super().begin(xt, grid)
        config, length = self.config, xt.shape[1]
        if self.noise is None and not self._replaced and not config.churn:
            self.noise = self._noise(xt, None, self._static_scores(xt))
            if self.adaptive is None:
                self._uniforms = self.random.uniform(length)
                if config.revise:
                    scores = self._static_scores(xt)
                    self._keys_again = self.random.uniform(length) if scores is None else scores.double()
                    self._uniforms_again = self.random.uniform(length)
                    self._risen = torch.zeros(len(xt), 1, dtype=torch.bool, device=xt.device)
                else:
                    self.plan = self._make_plan(xt, grid, self.noise)
        if self.noise is None or self.adaptive is not None:
            self.random.expect((len(grid) - 1) * self._draws())

    def _draws(self) -> int:
        """Draws of a step: for its tokens, for noise on an adaptive order, for its noise and what is fresh of that."""
        noise = 3 + 2 * bool(self.config.churn) if self.noise is None else 0
        return 1 + bool(self.adaptive is not None and self.config.order_noise) + noise

    def replaced(self) -> None:
        super().replaced()
        self.noise = self.plan = None

    def graph_needs(self) -> GraphNeeds:
        if self.noise is not None and self.adaptive is None:
            width = max((max(_falls(*pair)) for pair in pairwise(self._grid)), default=0)
            return GraphNeeds(width, 0, self.noise.keys, self._uniforms)
        return GraphNeeds(max(self._grid[0]), _DRAWS + 1)

    @staticmethod
    def in_graph(step: GraphStep, process: Any, xt: Tensor, t: Tensor, s: Tensor) -> Prediction:
        config, editable, random, length = step.config, step.editable, step.random, xt.shape[1]
        adaptive = find_order(config.order)
        use = partial(draw_tokens, config, adaptive)
        again: dict[str, Any] = {"editable": editable, "random": random}
        if adaptive is None:
            if step.keys is not None and step.uniforms is not None:
                uniforms, noise = step.uniforms, TokenNoise(step.keys, step.keys)  # coins are of churn
            else:
                uniforms, scores = random.uniform(length), static_scores(config.order, xt, editable, random)
                noise = recover_noise(process, xt, xt, t, config.churn, scores=scores, **again)
            positions, live = Positions.padded(process.changing(xt, s, noise), step.width)
            here = positions.places
            tokens, _, _ = step.read(xt, t, positions, live, use, uniforms[here])
            return Prediction(xt.index_put(here, torch.where(live, tokens, xt[here])), noise)
        uniforms = random.uniform(length)
        gumbel = random.uniform(length) if config.order_noise else None
        corrupted = process.corrupted(xt) & editable
        positions, live = Positions.padded(corrupted & (t > s)[:, None], step.width)
        here = positions.places
        tokens, scores, _ = step.read(xt, t, positions, live, use, uniforms[here])
        if gumbel is not None:
            scores = perturb(adaptive, scores, config.order_noise, gumbel[here])
        keys = torch.full_like(uniforms, torch.inf).masked_fill(corrupted, 0.0)
        keys = keys.index_put(here, torch.where(live, scores, keys[here]))
        noise = TokenNoise(keys, keys)
        if config.churn:
            noise = recover_noise(process, xt, xt, t, config.churn, scores=keys, **again)
        return Prediction(xt.index_put(here, torch.where(live, tokens, xt[here])), noise)

    def _make_plan(self, xt: Tensor, grid: list[list[int]], noise: TokenNoise) -> Plan:
        length, steps = xt.shape[1], len(grid) - 1
        # a position of rank r leaves at the step from t > r to s <= r; one that is not [MASK] never does
        rising = torch.tensor(grid, device=xt.device).flip(0).T.contiguous()
        number = steps - torch.searchsorted(rising, ranks(noise.keys), right=True)
        number = number.masked_fill(~(self.process.corrupted(xt) & self.editable), steps)
        order = number.flatten().argsort(stable=True)
        counts = [_falls(*pair) for pair in pairwise(grid)]
        ends = list(accumulate(map(sum, counts), initial=0))
        own_rows, columns = torch.div(order, length, rounding_mode="floor"), order % length
        return Plan(own_rows, columns, self._uniforms.flatten()[order], ends, counts)

    def __call__(self, xt: Tensor, t: Tensor, s: Tensor) -> Prediction:
        before, after = self._counts()
        if self.adaptive is not None:
            return self._by_adaptive_order(self.adaptive, xt, t, s, before, after)
        if self.plan is not None and self.noise is not None:
            noise = self.noise
            positions, own = self.plan.step(self._step - 1)
        else:
            noise, uniforms = self._static_step(xt, t, s, before, after)
            positions = self._revealed(xt, s, noise, before, after)
            own = uniforms[positions.places]
        if not positions.width:
            return Prediction(xt, noise)
        tokens, _ = self._read(xt, t, positions, own)
        return Prediction(xt.index_put(positions.places, tokens), noise)

    def _static_step(
        self, xt: Tensor, t: Tensor, s: Tensor, before: list[int], after: list[int]
    ) -> tuple[TokenNoise, Tensor]:
        """The noise of a step, and the uniforms (B, L) that its tokens are drawn by."""
        if self.noise is None:
            uniforms = self.random.uniform(xt.shape[1])
            noise = self._noise(xt, t, self._static_scores(xt))
            return self._remask_least_confident(noise, t, s, before, after), uniforms
        corrupted = self.process.corrupted(xt) & self.editable
        again = torch.where(corrupted, self._keys_again, torch.inf)
        noise = self.noise._replace(keys=torch.where(self._risen, again, self.noise.keys))
        uniforms = torch.where(self._risen, self._uniforms_again, self._uniforms)
        noise = self._remask_least_confident(noise, t, s, before, after)
        if any(_falls(after, before)):
            self._risen = self._risen | (s > t)[:, None]
        return noise, uniforms

    def _static_scores(self, xt: Tensor) -> Tensor | None:
        return static_scores(self.config.order, xt, self.editable, self.random)

    def _revealed(self, xt: Tensor, s: Tensor, noise: TokenNoise, before: list[int], after: list[int]) -> Positions:
        """The positions that a step reveals, and where to learn which they are would keep a device waiting, others.

        How many they are is known but for `churn`, whose fresh noise may hide others in their place. Then all that are
        [MASK] are as many as the grid says; what is drawn where [MASK] stays is not used.
        """
        if self.noise is not None:
            return Positions.of(self.process.changing(xt, s, noise), _falls(before, after))
        if self._replaced or reads_are_free(xt.device):
            return Positions.of(self.process.changing(xt, s, noise))
        return Positions.of(self.process.corrupted(xt) & self.editable, before)

    def _by_adaptive_order(
        self, adaptive: Order, xt: Tensor, t: Tensor, s: Tensor, before: list[int], after: list[int]
    ) -> Prediction:
        config, length = self.config, xt.shape[1]
        uniforms = self.random.uniform(length)
        gumbel = self.random.uniform(length) if config.order_noise else None
        corrupted = self.process.corrupted(xt) & self.editable
        # a row that rests has no [MASK], unless somebody put it there
        rests = self._replaced and not all(_falls(before, after))
        wanted = corrupted & (t > s)[:, None] if rests else corrupted
        positions = Positions.of(wanted, None if self._replaced else before)
        here, keys = positions.places, self._nothing.masked_fill(corrupted, 0.0) if rests else self._nothing
        tokens = xt.new_zeros(0)
        if positions.width:
            tokens, scores = self._read(xt, t, positions, uniforms[here])
            if gumbel is not None:
                scores = perturb(adaptive, scores, config.order_noise, gumbel[here])
            keys = keys.index_put(here, scores)  # the highest leaves first; a row that rests keeps all
            if config.threshold is not None:  # order by confidence: the scores are probabilities
                s = s.minimum((keys <= config.threshold).sum(dim=1))
        noise = self._noise(xt, t, keys) if self.noise is None else self.noise._replace(keys=keys)
        noise = self._remask_least_confident(noise, t, s, before, after)
        return Prediction(xt.index_put(here, tokens) if positions.width else xt, noise, s=s)

    def _read(self, xt: Tensor, t: Tensor, positions: Positions, uniforms: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens (N,) drawn at the positions, and their scores in an adaptive order."""
        here, before = positions.places, self._grid[self._step - 1]
        steady = self.noise is not None and not self.config.revise  # then what was revealed is all that has changed
        others = _falls(self._seen or before, before) if steady else None
        self._seen = before
        output = self.ask(xt, t, positions, others)
        tokens, scores, probability = self._by_chunks(partial(self._position, xt), output, *here, uniforms)
        if self.config.revise:
            self.draw_probability = self.draw_probability.index_put(here, probability)
        return tokens, scores

    def _position(self, xt: Tensor, logits: Tensor, rows: Tensor, columns: Tensor, uniforms: Tensor):
        """Tokens, their scores in an adaptive order, and where `revise` needs it their probabilities; all (N,)."""
        logits = self.constraints(logits, xt, rows, columns)
        tokens, scores, probability = draw_tokens(self.config, self.adaptive, logits, uniforms)
        if callable(self.config.order):
            self.constraints.refuse(scores.isnan(), NO_ORDER)
            scores = scores.clamp(-_MOST, _MOST)
        return tokens, scores, probability

    def _remask_least_confident(
        self, noise: TokenNoise, t: Tensor, s: Tensor, before: list[int], after: list[int]
    ) -> TokenNoise:
        """The noise; in rows with s > t its smallest keys stand at the positions that were drawn the least surely."""
        if not self.config.revise or not any(_falls(after, before)):
            return noise
        rises = (s > t)[:, None]
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


def static_scores(order: Any, xt: Tensor, editable: Tensor, random: Any) -> Tensor | None:
    """(B, L), the highest first, where the order is known before the tokens are; None where it is random."""
    if order == "random":
        return None
    length = xt.shape[1]
    column = torch.arange(length, device=xt.device)
    if isinstance(order, Skeleton):
        if order.every is not None:
            chosen = (editable.long().cumsum(dim=1) - 1) % order.every == 0
        else:
            assert order.rule is not None
            chosen = order.rule(xt, editable)
            if not isinstance(chosen, Tensor) or chosen.shape != xt.shape or chosen.dtype != torch.bool:
                got = f"{tuple(chosen.shape)} {chosen.dtype}" if isinstance(chosen, Tensor) else type(chosen).__name__
                raise ValueError(f"the rule of order must return a bool tensor {tuple(xt.shape)}, got {got}")
        return torch.where(chosen, 2.0 - column.double() / length, random.uniform(length))
    return -column.expand_as(xt) if order == "left_to_right" else None


def draw_tokens(config, adaptive: Order | None, logits: Tensor, uniforms: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens drawn from constrained logits (N, V), their scores in an adaptive order, and where `revise` needs it their
    probabilities; all (N,), as are the uniforms. What is not needed is the uniforms."""
    scores = tempered(logits, temperature=config.temperature or 0.0)
    if config.top_k is not None or config.top_p is not None:
        scores = truncate(scores, config.top_k, config.top_p)
    tokens = draw(scores, uniforms)
    if adaptive is None and not config.revise:
        return tokens, uniforms, uniforms
    # by the model's own probabilities: temperature 0 or top_k 1 would make every token equally sure
    own = log_probabilities(logits)
    scores = uniforms if adaptive is None else score(adaptive, own, tokens)
    return tokens, scores, confidence(own, tokens) if config.revise else uniforms


class SubstitutePredictor(Predictor):
    """x0_hat first: every editable position says how likely it changes and to what; a kernel draws what does.

    Temperature acts on all of p_i; top_k and top_p on p_i(v | v != xt_i), so that a change always has a token.
    """

    def start(self, inputs: GenerationInputs) -> Tensor:
        xt = super().start(inputs)
        if self.constraints.starts_anew:  # what stands there at the start may stay
            xt = self.constraints.prior(xt, inputs.editable, self.random)
        return xt

    def begin(self, xt: Tensor, grid: list[list[int]]) -> None:
        super().begin(xt, grid)
        self._editable_counts: list[int] = self.editable.sum(dim=1).tolist()
        self._all = Positions.of(self.editable, self._editable_counts)
        never = torch.full(xt.shape, NEVER, dtype=torch.float64, device=xt.device)
        self._unchanged = never, torch.zeros_like(never)
        self.random.expect((len(grid) - 1) * _DRAWS)

    def __call__(self, xt: Tensor, t: Tensor, s: Tensor) -> Prediction:
        before, after = self._counts()
        uniforms = self.random.uniform(xt.shape[1])
        positions, falls = self._all, _falls(before, after)
        if not all(falls):
            own = [count if fall else 0 for count, fall in zip(self._editable_counts, falls, strict=True)]
            positions = Positions.of(self.editable & (t > s)[:, None], own)
        blank = *self._unchanged, xt
        change = Change(*blank)
        if positions.width:
            here = positions.places
            others = None if self._replaced else [0] * len(xt)  # a step changes only what was asked about
            output = self.ask(xt, t, positions, others)
            pieces = self._by_chunks(partial(self._position, xt), output, *here, uniforms[here])
            change = Change(*(x.index_put(here, piece) for x, piece in zip(blank, pieces, strict=True)))
        kernel = ALL_KERNELS[self.config.kernel or self.model.config.kernel]
        return make_changes(self.config, kernel, change, xt, t, s, self.random, max(before, default=0))

    def graph_needs(self) -> GraphNeeds:
        self.process.lie_on(self.editable.device)
        draws = _DRAWS + 4 * bool(self.config.churn)
        return GraphNeeds(max(self._editable_counts), draws)

    @staticmethod
    def in_graph(step: GraphStep, process: Any, xt: Tensor, t: Tensor, s: Tensor) -> Prediction:
        config = step.config
        uniforms = step.random.uniform(xt.shape[1])
        positions, live = Positions.padded(step.editable & (t > s)[:, None], step.width)
        here = positions.places
        use = partial(propose, config)
        pieces = step.read(xt, t, positions, live, use, xt[here], uniforms[here])
        never = torch.full(xt.shape, NEVER, dtype=torch.float64, device=xt.device)
        blank = never, torch.zeros_like(never), xt
        change = Change(
            *(x.index_put(here, torch.where(live, piece, x[here])) for x, piece in zip(blank, pieces, strict=True))
        )
        return make_changes(config, ALL_KERNELS[config.kernel], change, xt, t, s, step.random, step.width)

    def _position(self, xt: Tensor, logits: Tensor, rows: Tensor, columns: Tensor, uniforms: Tensor):
        """Of `Change`, all (N,): log_change, log_stay, tokens; none where it is less sure than `min_confidence`."""
        return propose(self.config, self.constraints(logits, xt, rows, columns), xt[rows, columns], uniforms)


def propose(config, logits: Tensor, current: Tensor, uniforms: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of `Change`, all (N,): log_change, log_stay, tokens; none where it is less sure than `min_confidence`.

    logits: (N, V), constrained. current: (N,), the tokens that stand there. uniforms: (N,).
    """
    log_change, log_stay, tokens = _propose(config, logits, current, uniforms)
    if config.min_confidence is not None:
        own = log_probabilities(logits)
        may_stay = torch.isfinite(own.gather(-1, current[:, None])[:, 0])
        rests = may_stay & (confidence(own, tokens) < config.min_confidence)
        log_change, log_stay = log_change.masked_fill(rests, NEVER), log_stay.masked_fill(rests, 0.0)
    return log_change, log_stay, tokens


def _propose(config, logits: Tensor, current: Tensor, uniforms: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """As `propose`, however sure."""
    log_probs = log_probabilities(logits, temperature=config.temperature or 1.0)
    stay = log_probs.gather(-1, current[:, None])[:, 0].clamp(min=_MUST)
    others = log_probs.scatter(-1, current[:, None], -torch.inf)
    if config.temperature == 0:  # a change is judged by the best token it could bring
        best = others.max(dim=-1)
        return best.values.clamp(min=NEVER), stay, best.indices
    change = others.logsumexp(dim=-1).clamp(min=NEVER)
    if config.top_k is not None or config.top_p is not None:
        others = truncate(others, config.top_k, config.top_p)
    return change, stay, draw(others, uniforms)


def make_changes(
    config, kernel: Kernel, change: Change, xt: Tensor, t: Tensor, s: Tensor, random: Any, most: int
) -> Prediction:
    """What the kernel draws of the changes that were proposed. most: a number that no t exceeds."""
    if not kernel.rests:  # then t changes are to be made
        able = (change.log_change > NEVER / 2).sum(dim=-1)  # below t where constraints leave a position one token
        t = t.minimum(able)
        s = s.minimum(t)
    prediction = kernel.draw(change, xt, t, s, config.churn, random, config.temperature == 0, most)
    prediction = prediction._replace(
        t=t if prediction.t is None else prediction.t, s=s if prediction.s is None else prediction.s
    )
    if config.churn:
        return prediction
    if kernel.rests:  # nothing is taken back, by whatever order
        return prediction._replace(noise=TokenNoise(change.log_stay, change.log_stay, xt))
    return _settled(prediction, xt, random)


def _settled(prediction: Prediction, xt: Tensor, random: Any) -> Prediction:
    """The same step with s = 0: what the recovered noise would take back, s of the changes from xt to x0_hat, is taken
    back here. Of that noise their order is all that is needed, and by the same numbers it is the same.
    """
    assert prediction.s is not None
    numbers = [random.uniform(xt.shape[1]) for _ in range(4)]  # as many as `SubstituteProcess.invert_noise` draws
    tie = numbers[1]
    taken_back = ranks(tie.masked_fill(prediction.x0 == xt, torch.inf)) < prediction.s[:, None]
    x0 = torch.where(taken_back, xt, prediction.x0)
    return prediction._replace(x0=x0, noise=TokenNoise(tie, tie, xt), s=torch.zeros_like(prediction.s))
