"""A reverse step as one graph: `generate(compile=True)`.

What is traced is `core.take_step` itself, with the network by its parts where fastpath.py knows them. A graph has fixed
sizes: rows are padded to a few batches and lengths (`padded_rows`, `padded_length`), and each row is asked about at as
many positions as the fullest step of the walk needs; a place that is asked about for nothing is not written to. Every
number that decides a size is the host's, from the grid.

A graph is kept with its model, beside it and not in it, for the next walk of the same sizes and options. It reads the
weights where they are, so that new values are used; torch traces again where their dtype, their device or a module is
another.
"""

from __future__ import annotations

import numbers
import warnings
from collections.abc import Callable
from types import FunctionType
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.nn.functional import pad

from .backbones import Body, Linear, Sight
from .constraints import without
from .core import Prediction, take_step
from .decoding import NOT_FINITE, guide
from .fastpath import known_body, last_layer
from .generation_options import OPTIONS
from .positions import Positions
from .predictors import GraphNeeds, Predictor
from .randomness import RowRandom

_BACKEND = "inductor"
"""Of torch.compile; tests take a cheaper one."""

_BLOCK = 16
"""Lengths are padded to a multiple of this."""

_CHUNK_ELEMENTS = 1 << 24
"""Log-probabilities in float64 at a time: 128 MiB. Each chunk makes the graph longer."""

_KEPT = 16
"""Graphs that are kept of a model; the oldest goes."""


def padded_rows(count: int) -> int:
    """The batch that so many rows are padded to: 1, 2, 3, 4, 6, 8, 12, 16, 24, ..."""
    power = 1 << max(0, count - 1).bit_length()
    return power * 3 // 4 if power >= 4 and count <= power * 3 // 4 else power


def padded_length(length: int, longest: int | None) -> int:
    """What a length is padded to: a multiple of 16, or the longest that the model reads."""
    whole = -(-length // _BLOCK) * _BLOCK
    return whole if longest is None else max(length, min(whole, longest))


def compiles(config: Any, functions: list[str], predictor: type[Predictor]) -> bool:
    """Whether the steps of a generation are to be compiled; where they cannot be, a warning names the option.

    functions: what else steps would have to call or to heed, by its name.
    """
    if not config.compile:
        return False
    given = ((name, getattr(config, name)) for name, option in OPTIONS.items())
    ways = [name for name, value in given if not OPTIONS[name].compiles(value)] + functions
    if not ways and "in_graph" not in vars(
        predictor
    ):  # what a class does otherwise than its parent, the parent's graph does not
        ways.append(f"steps by {predictor.__name__}")
    if ways:
        warnings.warn(
            f"compile=True compiles nothing beside {' and '.join(ways)}: this call runs uncompiled", stacklevel=4
        )
    return not ways


class Rows(NamedTuple):
    """The padded rows of a walk, B of L positions; readings of them, R = 1 or under guidance 2, lie behind each other.

    attended: (R B, L) int64. sights: by the kind of layer, None where the parts of the backbone are not known. lengths:
    (R B,) editable positions. blocked: (sets, V) bool; set_of: (B, L), the set that holds at each position. condition:
    (B, L) bool, None without guidance. keys, uniforms: see `GraphNeeds`.
    """

    editable: Tensor
    attended: Tensor
    sights: dict[str, Sight] | None
    lengths: Tensor
    blocked: Tensor
    set_of: Tensor
    condition: Tensor | None
    keys: Tensor | None
    uniforms: Tensor | None


class Numbers:
    """Uniforms that were made outside of the graph: (draws, B, L). Counts those that are used."""

    def __init__(self, made: Tensor | None):
        self.made, self.used = made, 0

    def uniform(self, n: int) -> Tensor:
        """(B, n)."""
        self.used += 1
        assert self.made is not None and n == self.made.shape[2] and self.used <= self.made.shape[0]
        return self.made[self.used - 1]


class Options(NamedTuple):
    """The options that a step depends on besides its tensors, as in a `UDMGenerationConfig`."""

    temperature: float
    top_k: int | None
    top_p: float | None
    order: Any
    order_noise: float
    kernel: str | None
    churn: float
    min_confidence: float | None
    revise: int


class Settings(NamedTuple):
    """What a graph is made for. predict: `Predictor.in_graph`. body: the class of the
    backbone's parts, None: its own forward. scale: of guidance."""

    options: Options
    predict: Callable[..., Prediction]
    body: type[Body] | None
    scale: float
    mask_token_id: int | None
    chunk: int
    width: int


class TracedStep:
    """A `predictors.GraphStep`; made anew within the graph, so that nothing of it outlives a step."""

    def __init__(self, model: Any, settings: Settings, rows: Rows, random: Numbers):
        self.model, self.settings, self.rows, self.random = model, settings, rows, random
        self.config = settings.options
        self.width = settings.width
        self.editable, self.keys, self.uniforms = rows.editable, rows.keys, rows.uniforms
        self.wrong = torch.zeros((), dtype=torch.bool, device=rows.editable.device)

    def read(
        self, xt: Tensor, t: Tensor, positions: Positions, live: Tensor, use: Callable[..., Any], *others: Tensor
    ) -> list[Tensor]:
        settings, rows, condition = self.settings, self.rows, self.rows.condition
        given = live, rows.set_of[positions.places], *others
        if condition is not None:
            assert settings.mask_token_id is not None
            xt = torch.cat((xt, xt.masked_fill(condition, settings.mask_token_id)))
            t, positions = t.repeat(2), positions.repeat(2)
        hidden, head = self._ask(xt, t, positions)
        readings = 1 if condition is None else 2
        hidden = hidden.unflatten(0, (readings, -1))
        pieces = []
        for start in range(0, hidden.shape[1], settings.chunk):
            chunk = slice(start, start + settings.chunk)
            logits = head(hidden[:, chunk].flatten(0, 1)).unflatten(0, (readings, -1)).unbind()
            some, sets, *rest = (x[chunk] for x in given)
            guided = logits[0] if condition is None else guide(logits[0], logits[1], settings.scale)
            lawful, _, lawless = without(guided, rows.blocked[sets])
            self.wrong = self.wrong | (lawless & some).any()
            pieces.append(use(lawful.masked_fill(lawless[:, None], 0.0), *rest))
        return [torch.cat(parts) if len(parts) > 1 else parts[0] for parts in zip(*pieces, strict=True)]

    def _ask(self, xt: Tensor, t: Tensor, positions: Positions) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """What the network says of the positions, and what makes logits of it."""
        model, rows = self.model, self.rows
        if self.settings.body is None or rows.sights is None:
            asked = {"attention_mask": rows.attended, "t": t, "num_editable": rows.lengths}
            return model(input_ids=xt, positions=positions.places, **asked).logits, lambda logits: logits
        body = self.settings.body(model.backbone)
        shift = None
        if model.time_embedding is not None:
            told = model.time_embedding(t, rows.lengths)
            shift = told.to(model.get_input_embeddings().weight.dtype)[:, None]
        x = body.embed(xt, body.position_ids(xt, embedded=shift is not None), shift)
        *before, last = body.layers
        for layer in before:
            x = body.run(layer, x, rows.sights[body.kind(layer)])
        maps, size = body.projections(last), body.width
        query, key_value = Linear(*maps, end=size), Linear(*maps, start=size)
        where = positions.before() if model.config.shift_logits else positions
        hidden = last_layer(body, last, x, query, key_value, rows.sights[body.kind(last)], where)
        return hidden, lambda some: model.get_output_embeddings()(body.head_transform(some))


def _new_graph(settings: Settings, device: torch.device) -> Callable[..., tuple[Tensor, Tensor, int]]:
    """graph(model, process, rows, xt, t, s, numbers) -> xs (B, L), whether logits were no law (), draws that were used.

    It does not hold the model, which would then never be freed.
    """

    def step(model, process, rows, xt, t, s, numbers):
        traced = TracedStep(model, settings, rows, Numbers(numbers))

        def predict(xt: Tensor, t: Tensor, s: Tensor) -> Prediction:
            return settings.predict(traced, process, xt, t, s)

        how: dict[str, Any] = {"editable": rows.editable, "random": traced.random}
        xs, _ = take_step(process, predict, xt, t, s, traced.config.churn, **how)
        return xs, traced.wrong, traced.random.used

    # torch keeps what it compiled by the code that it compiled: code of its own, so that no graph displaces another
    own = FunctionType(step.__code__.replace(), step.__globals__, step.__name__, None, step.__closure__)
    mode = "reduce-overhead" if device.type == "cuda" and _BACKEND == "inductor" else None
    return torch.compile(own, fullgraph=True, dynamic=False, backend=_BACKEND, mode=mode)


_kept: WeakKeyDictionary[Any, dict[Any, Callable[..., Any]]] = WeakKeyDictionary()
"""The graphs of each model, by what they were made for; outside of the model, so that no copy or file holds them."""


def _kept_graph(model: Any, key: Any, settings: Settings, device: torch.device) -> Callable[..., Any]:
    graphs = _kept.setdefault(model, {})
    graph = graphs.pop((key, settings), None) or _new_graph(settings, device)
    graphs[key, settings] = graph  # the last that was used stands at the end
    if len(graphs) > _KEPT:
        del graphs[next(iter(graphs))]
    return graph


def _sights(body: Body, weight: Tensor, attended: Tensor) -> dict[str, Sight]:
    """By the kind of layer; a mask of every row, also where all is seen: whether rows are padded is no other graph."""
    rows, length = attended.shape
    found = body.sights(weight.new_empty(1, 1, 1).expand(rows, length, 1), attended)
    sights = {}
    for kind, (mask, angles) in found.items():
        if mask is None:
            mask = attended.new_ones(1, 1, 1, 1, dtype=torch.bool)
        sights[kind] = Sight(mask.expand(rows, 1, length, length).contiguous(), angles)
    return sights


def _plain(value: Any) -> Any:
    """A number as Python's own: torch would trace one of numpy as an array."""
    if isinstance(value, numbers.Integral):
        return int(value)
    return float(value) if isinstance(value, numbers.Real) else value


def _hooks(model: Any) -> tuple[int, ...]:
    """What is hooked into the modules of a model, which torch does not look at again."""
    hooks = (hook for module in model.modules() for hook in (module._forward_hooks, module._forward_pre_hooks))
    return tuple(id(function) for table in hooks for function in table.values())


class CompiledSteps:
    """Takes the steps of one walk in the place of `core.take_step`, by a graph; a predictor has begun the walk.

    A callback that puts other rows in between ends that, since what the host knew of them is not true any more: the
    rest of the walk goes step by step.
    """

    def __init__(self, predictor: Any, needs: GraphNeeds, xt: Tensor, random: RowRandom):
        self.predictor, self.random, self.count, self.said = predictor, random, len(xt), False
        model, config, constraints = predictor.model, predictor.config, predictor.constraints
        batch, length = padded_rows(len(xt)), padded_length(xt.shape[1], model.config.max_row_length)
        self.extra = (0, length - xt.shape[1], 0, batch - len(xt))
        self.own_random, self.draws = RowRandom(random.seed, pad(random.rows, (0, self.extra[3]))), needs.draws
        weight, device = model.get_input_embeddings().weight, xt.device

        attended = self._padded(predictor.attention_mask[: len(xt)].long())
        attended[len(xt) :] = 1  # rows that are nobody's see something: else they would hold nan
        attended = attended.repeat(predictor.readings, 1)
        body = None if torch.is_autocast_enabled(device.type) else known_body(model)
        sets, vocabulary = constraints.blocked.shape
        editable, keys, uniforms = self._padded(predictor.editable), needs.keys, needs.uniforms
        self.rows = Rows(
            editable,
            attended,
            None if body is None else _sights(body, weight, attended),
            editable.sum(dim=1).repeat(predictor.readings),
            pad(constraints.blocked, (0, 0, 0, padded_rows(sets) - sets)),
            self._padded(constraints.set_of),
            None if predictor.condition is None else self._padded(predictor.condition),
            None if keys is None else self._padded(keys, torch.inf),
            None if uniforms is None else self._padded(uniforms, 0.5),
        )
        settings = Settings(
            Options(*(_plain(getattr(config, name)) for name in Options._fields)),
            type(predictor).in_graph,
            None if body is None else type(body),
            predictor.scale,
            model.config.mask_token_id,
            max(1, _CHUNK_ELEMENTS // (predictor.readings * vocabulary)),
            min(length, padded_rows(needs.width)),
        )
        key = (batch, length, len(self.rows.blocked), predictor.readings, device, weight.dtype, _hooks(model))
        self.graph = _kept_graph(model, key, settings, device)
        self._last: tuple[Tensor, Tensor] | None = None

    def __call__(
        self, process: Any, predict_x0: Any, xt: Tensor, t: Tensor, s: Tensor, churn: float = 0.0, **how: Any
    ) -> tuple[Tensor, Prediction]:
        """As `core.take_step`."""
        if self.predictor.is_replaced:
            self._say_that_it_ends()
            return take_step(process, predict_x0, xt, t, s, churn, **how)
        last = self._last
        rows = last[1] if last is not None and last[0] is xt else self._padded(xt)
        self.own_random.draws = self.random.draws
        numbers = self.own_random.coming(self.draws, rows.shape[1]) if self.draws else None
        t, s = (pad(count, (0, self.extra[3])) for count in (t, s))
        torch.compiler.cudagraph_mark_step_begin()
        try:
            xs, wrong, used = self.graph(self.predictor.model, process, self.rows, rows, t, s, numbers)
        except _failures() as error:
            raise ValueError(
                f"compile=True: torch.compile makes no graph of a step of this model ({_first_line(error)}); leave "
                "compile at False"
            ) from error
        self.random.draws += used
        self.predictor.stood_aside()
        # the memory of a recorded graph is written over by the next step
        rows, wrong = xs.clone(), wrong.clone()
        self.predictor.constraints.refuse(wrong, NOT_FINITE)
        xs = rows[: self.count, : xt.shape[1]]
        self._last = xs, rows
        return xs, Prediction(xs)

    def _say_that_it_ends(self) -> None:
        if not self.said:
            warnings.warn(
                "callback_on_step_end has put other rows in place, which a graph does not go on from: compile=True "
                "ends here, and the rest of this call runs uncompiled",
                stacklevel=2,
            )
        self.said = True

    def _padded(self, x: Tensor, value: float = 0) -> Tensor:
        """(B, L) of the graph, from that of the rows."""
        return pad(x, self.extra, value=value)


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _failures() -> tuple[type[Exception], ...]:
    """What torch raises where it cannot compile."""
    from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException

    return TorchDynamoException, FailOnRecompileLimitHit
