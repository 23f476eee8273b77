"""What the buttons of the page do, without a page: each yields what is to be shown, step by step.

A model is shared by all who look, and read only; what belongs to one of them comes in and goes out as an argument.
"""

from __future__ import annotations

import math
import queue
import secrets
import statistics
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ...card import example_texts
from ...common import check_whole
from ...configuration_udm import PROCESSES
from ...decoding import ORDERS
from ...framing import report_share
from ...pipeline_udm import BLANK, MASK
from ...schedules import counts, step_costs
from ..terminal import TextStreamer
from . import markup

MOST_CHARACTERS = 2000
MOST_TOKENS = 256
MOST_STEPS = 256
MOST_SAMPLES = 8
MOST_EDITS = 16
MOST_IMAGES = 64
MOST_IMAGE_STEPS = 100
MOST_PIXELS = 16_000_000
MOST_BYTES = 4 * 2**20
"""Of a file that is sent."""
LONGEST_SHOW = 4.0
"""Seconds that the states of a walk are held for the eye, all together: others wait meanwhile."""
STRIP = 4
"""Images whose way is shown beside each other."""

WALK = "a walk that is watched"
"""The name of the threads that work for those who look."""


class _Stopped(Exception):
    """Nobody looks any more."""


class Frame(NamedTuple):
    """What is shown at a moment: HTML, and a line of words below it. edits: of a repair, what it has changed so far."""

    html: str
    note: str = ""
    edits: tuple[markup.Edit, ...] = ()


@dataclass(frozen=True)
class Settings:
    """How a text is written. num_steps: 0 takes one token a step. order: of models of masks; others have none."""

    num_steps: int = 0
    order: str = "random"
    temperature: float = 1.0

    def check(self) -> None:
        """ValueError for what the page does not offer, with what it does."""
        _check_range("the number of steps", self.num_steps, 0, MOST_STEPS)
        if not (math.isfinite(self.temperature) and 0 <= self.temperature <= 2):
            raise ValueError(f"the temperature must lie between 0 and 2, got {self.temperature}")
        if self.order not in ORDERS:
            raise ValueError(f"the order must be one of {', '.join(ORDERS)}, got {self.order!r}")


def fresh_seed() -> int:
    """A seed that a person can read out."""
    return secrets.randbelow(10**6)


def _check_range(name: str, value: int, low: int, high: int) -> None:
    check_whole(low, **{name: value})
    if value > high:
        raise ValueError(f"{name} may be {high} at most on this page, got {value}: the command line has no such limit")


def check_text(text: str, what: str = "the text") -> None:
    """ValueError where a text is longer than the page takes."""
    if len(text) > MOST_CHARACTERS:
        raise ValueError(f"{what} has {len(text)} characters, and this page takes {MOST_CHARACTERS} at most")


def held_for_the_eye(states: Iterable[Any], pause: float) -> Iterator[Any]:
    """The states one by one, each for so many seconds, until they have stood for `LONGEST_SHOW` together."""
    held = 0.0
    for state in states:
        yield state
        if held < LONGEST_SHOW:
            time.sleep(pause)
            held += pause


def watch(run: Callable[[Callable[[Any], None]], Any]) -> Iterator[Any]:
    """What a function hands over while it works, one by one, and at last what it returns.

    It works in a thread of its own and waits until what it handed over was taken. Where the reader stops reading, the
    next thing that it hands over ends it, and its end is waited for: nothing works unseen.

    run: called with the function that hands over. What it raises is raised here.
    """
    handed: queue.Queue[tuple[str, Any]] = queue.Queue(maxsize=1)
    stopped = threading.Event()

    def put(kind: str, value: Any) -> None:
        while not stopped.is_set():
            try:
                return handed.put((kind, value), timeout=0.1)
            except queue.Full:
                continue
        raise _Stopped

    def work() -> None:
        try:
            try:
                end = "returned", run(lambda value: put("state", value))
            except Exception as error:
                end = "raised", error
            put(*end)
        except _Stopped:
            pass

    worker = threading.Thread(target=work, name=WALK, daemon=True)
    worker.start()
    try:
        while True:
            kind, value = handed.get()
            if kind == "raised":
                raise value
            yield value
            if kind == "returned":
                return
    finally:
        stopped.set()
        worker.join()


class _States(TextStreamer):
    """Hands the texts of every state over."""

    def __init__(self, tokenizer: Any, hand_over: Callable[[Any], None]):
        super().__init__(tokenizer)
        self.hand_over = hand_over

    def show(self, texts: list[str], done: bool) -> None:
        self.hand_over(texts)


def told(frames: Callable[..., Iterator[Frame]]) -> Callable[..., Iterator[Frame]]:
    """The same frames, with a last one that says what was wrong where a ValueError ends them."""

    def framed(*args: Any, **kwargs: Any) -> Iterator[Frame]:
        try:
            yield from frames(*args, **kwargs)
        except ValueError as error:
            yield Frame(markup.problem(error))

    return framed


@dataclass(frozen=True)
class Writer:
    """A model of texts, as the page uses it: a pipeline "udm-generation", and what it is called."""

    pipe: Any
    name: str
    pause: float = 0.12
    """Seconds that a state is held for the eye."""
    report: dict[str, Any] = field(default_factory=dict)
    """The report.json of its training, or nothing."""

    @property
    def config(self) -> Any:
        return self.pipe.model.config

    @property
    def process(self) -> Any:
        return PROCESSES[self.config.process]

    @property
    def options(self) -> frozenset[str]:
        """The options of a generation that its process takes besides those of all."""
        return frozenset(self.config.build_process().generation_options)

    @property
    def repairs(self) -> bool:
        return "max_edits" in self.options

    @property
    def writes(self) -> bool:
        """Whether it was trained to write, and not only to repair."""
        return not self.process.edits and report_share(self.config.name_or_path) >= 1.0

    @property
    def fills(self) -> bool:
        """Whether it fills in [MASK]."""
        return self.writes and self.pipe.tokenizer.mask_token_id is not None

    @property
    def takes_blanks(self) -> bool:
        """Whether it fills in <blank>, by any number of tokens."""
        return bool(self.process.inserts) or self.config.blank_widths is not None

    @property
    def orders(self) -> list[str]:
        return list(ORDERS) if "order" in self.options else []

    @property
    def knows_lengths(self) -> bool:
        return self.config.length_counts is not None

    def describe(self) -> str:
        """What it is, in a line."""
        size = sum(parameter.numel() for parameter in self.pipe.model.parameters())
        return f"{self.name}: process {self.config.process}, {size / 1e6:.1f} million parameters"

    def examples(self) -> list[str]:
        """Texts to begin with: prompts, or texts with an error in them; none of a model that needs none."""
        return example_texts(self.pipe.model, self.pipe.tokenizer, self.report)[:4]

    def blanked(self, seed: int) -> str:
        """A text of the model's own with [MASK] in place of every third word: something to fill in."""
        how: dict[str, Any] = {} if self.knows_lengths else {"length": 9}
        words = self.pipe("", seed=seed, **how)[0]["generated_text"].split()
        return " ".join(MASK if place % 3 == 2 or len(words) < 3 else word for place, word in enumerate(words)) or MASK

    @told
    def write(self, text: str, length: int, settings: Settings, number: int, seed: int) -> Iterator[Frame]:
        """Texts from nothing, or that go on where `text` ends. length: of the whole, in tokens; 0: as in training."""
        check_text(text, "the beginning")
        _check_range("the length", length, 0, MOST_TOKENS)
        if not (length or self.knows_lengths):
            raise ValueError("this model does not know how long texts are: choose a length")
        yield from self._walk(text, settings, number, seed, **({"length": length} if length else {}))

    @told
    def fill(self, text: str, settings: Settings, number: int, seed: int) -> Iterator[Frame]:
        """Texts whose [MASK], or <blank>, are filled in."""
        check_text(text)
        if not any(blank in text for blank in (MASK, BLANK, self.pipe.tokenizer.mask_token)):
            wide = f", or {BLANK} where any number of words may be missing" * self.takes_blanks
            raise ValueError(f"nothing is missing in this text: write {MASK} where a word is to be filled in{wide}")
        yield from self._walk(text, settings, number, seed)

    def _walk(self, text: str, settings: Settings, number: int, seed: int, **how: Any) -> Iterator[Frame]:
        settings.check()
        _check_range("the number of samples", number, 1, MOST_SAMPLES)
        _check_range("the seed", seed, 0, 2**31)
        if len(self.pipe.tokenizer(text, verbose=False)["input_ids"]) > MOST_TOKENS:
            raise ValueError(f"the text has more than {MOST_TOKENS} tokens, which is as much as this page takes")
        how |= {"num_steps": settings.num_steps or None, "temperature": settings.temperature}
        how |= {"order": settings.order} if self.orders else {}
        how |= {"num_return_sequences": number, "seed": seed, "return_dict_in_generate": True}
        before: list[str] = []
        for step, state in enumerate(self._states(text, **how)):
            if isinstance(state[0], dict):
                yield Frame(markup.cards(before, done=True), self.describe_walk(state, step - 2))
            else:
                yield Frame(markup.cards(state, before or state), f"step {step}" if step else "the start")
                before = state

    def _states(self, text: str, **how: Any) -> Iterator[list[Any]]:
        """Texts of all rows after each step, held for the eye; at last the records of the pipeline."""

        def run(hand_over: Callable[[Any], None]) -> Any:
            return self.pipe(text, streamer=_States(self.pipe.tokenizer, hand_over), **how)

        yield from held_for_the_eye(watch(run), self.pause)

    def describe_walk(self, records: list[dict[str, Any]], steps: int) -> str:
        """What it took, and what the steps cost where that is known."""
        tokens = sum(record["num_tokens"] for record in records)
        line = f"{tokens} tokens in {steps} steps, {records[0]['num_calls']} calls of the network."
        priced = [record for record in records if "expected_nats" in record]
        if len(priced) < len(records) or not tokens:
            return line
        nats = sum(record["expected_nats"] * record["num_tokens"] for record in priced) / tokens
        return f"{line} Expected price of these steps: {nats:.3f} nats a token (a bound)."

    def price(self, length: int, settings: Settings) -> str:
        """What so many steps are expected to cost, in nats a token, beside one token a step: a sentence.

        By the curve that was measured of the model (`udm evaluate --curve`), for a row of `length` tokens, or where
        that is 0 of the median length of training.
        """
        curve, config = self.config.step_curve, self.config
        if curve is None or not self.config.build_process().has_curve:
            if not self.process.has_curve:
                return "What fewer steps cost is not known of this model beforehand."
            return "What fewer steps cost was not measured: udm evaluate MODEL --curve does it, and stores it."
        if settings.order != "random" or settings.temperature != 1.0:
            return "The price was measured for order random at temperature 1, and is not known of these settings."
        if not length:
            if config.length_counts is None:
                return "Choose a length, and the price of the steps is shown."
            rows = [size for size, count in enumerate(config.length_counts) for _ in range(min(count, 1000))]
            length = statistics.median_low(rows)
        start = torch.tensor([length])
        exact, chosen = (
            float(step_costs(counts("linear", start, steps), curve)) / length
            for steps in (None, settings.num_steps or None)
        )
        steps = min(settings.num_steps or length, length)
        more = f", {chosen - exact:+.3f} beside one token a step" if steps < length else ", which is one token a step"
        return f"{steps} steps for {length} tokens: {chosen:.3f} nats a token expected (a bound){more}."

    @told
    def repair(self, text: str, max_edits: int, min_confidence: float) -> Iterator[Frame]:
        """The text, what was changed in it marked, after each edit of a repair."""
        check_text(text)
        _check_range("the number of edits", max_edits, 1, MOST_EDITS)
        if not text.strip():
            raise ValueError("there is nothing to repair: type a text with an error in it")
        how: dict[str, Any] = {"max_edits": max_edits, "min_confidence": min_confidence or None, "seed": 0}
        edits: tuple[markup.Edit, ...] = ()
        for state in self._states(text, **how):
            if not isinstance(state[0], dict):
                edits = tuple(markup.find_edits(text, state[0]))
                yield Frame(self.show_edits(text, edits), "", edits)
        note = "Untick an edit to undo it." if edits else "Nothing was changed: the model takes the text as it is."
        yield Frame(self.show_edits(text, edits), note, edits)

    @staticmethod
    def show_edits(text: str, edits: tuple[markup.Edit, ...]) -> str:
        """The text with its edits marked, and as it then reads."""
        after = markup.escaped(markup.apply_edits(text, edits))
        return f'<div class="card">{markup.edited(text, edits)}</div><div class="card done">{after}</div>'

    def compare(
        self, text: str, length: int, settings: tuple[Settings, Settings], number: int, seed: int
    ) -> Iterator[tuple[Frame, Frame]]:
        """Samples of two settings under one seed: those of the first, then those of the second beside them."""
        first = second = Frame("")
        for first in self.write(text, length, settings[0], number, seed):
            yield first, second
        for second in self.write(text, length, settings[1], number, seed):
            yield first, second


@dataclass(frozen=True)
class Painter:
    """A model of images, as the page uses it: an `ImagePipeline`, and what it is called."""

    pipe: Any
    name: str
    pause: float = 0.05

    @property
    def config(self) -> Any:
        return self.pipe.denoiser.config

    @property
    def labels(self) -> list[str]:
        return list(self.config.classes or [])

    @property
    def draws(self) -> bool:
        """Whether it makes images from nothing: by noise, or of a cold model from a law of x_T that it keeps."""
        return bool(self.pipe.process.starts_from_noise or self.config.prior_rank)

    @property
    def restores(self) -> bool:
        return not self.pipe.latent and self.config.few_steps is None

    def describe(self) -> str:
        """What it is, in a line."""
        channels, height, width = self.config.shape
        size = sum(parameter.numel() for parameter in self.pipe.denoiser.parameters())
        shape = f"{height} x {width}, {'grey' if channels == 1 else 'colour'}"
        return f"{self.name}: images of {shape}, {size / 1e6:.1f} million parameters"

    @told
    def draw(self, label: str, number: int, num_steps: int, seed: int) -> Iterator[Frame]:
        """New images as they come to be, and at last the way of the first of them. label: a class, or "" for none."""
        from continuous.grids import grid, strip

        _check_range("the number of images", number, 1, MOST_IMAGES)
        _check_range("the number of steps", num_steps, 1, MOST_IMAGE_STEPS)
        _check_range("the seed", seed, 0, 2**31)
        how: dict[str, Any] = {"num_steps": num_steps, "seed": seed}
        made = None
        for step, made in enumerate(self._states(self.pipe.generate, number, label or None, **how), start=1):
            if isinstance(made, torch.Tensor):
                yield Frame(markup.picture(grid(made), f"step {step}"))
        assert made is not None
        way = strip([state[:STRIP] for state in made.trajectory])
        whole = markup.picture(grid(made.images), f"{number} images, seed {seed}")
        yield Frame(whole + markup.picture(way, "how the first ones came to be"))

    @told
    def restore(self, file: str | None, degrade: bool, t: int, seed: int) -> Iterator[Frame]:
        """An image that was sent, restored: what it was restored from, the way, and the end.

        Args:
            file: its path on this machine. degrade: it is clean, and is degraded first. t: how far, 1..T.
        """
        from continuous.grids import strip, tile

        _check_range("the seed", seed, 0, 2**31)
        _check_range("how far it is degraded", t, 1, self.pipe.process.T)
        image = self._read(file)
        given = self.pipe.degrade(image, t, seed=seed) if degrade else image
        made = None
        for step, made in enumerate(self._states(self.pipe.restore, given, t, seed=seed), start=1):
            if isinstance(made, torch.Tensor):
                yield Frame(markup.picture(tile([made]), f"step {step}"))
        assert made is not None
        pairs = [image, given, made.images] if degrade else [given, made.images]
        words = "sent, degraded, restored" if degrade else "sent, restored"
        shown = tile([torch.cat(pairs)])
        yield Frame(markup.picture(shown, words) + markup.picture(strip(made.trajectory), "the way from there"))

    def _states(self, run: Callable[..., Any], *args: Any, **how: Any) -> Iterator[Any]:
        """The state after each step, (N, C, H, W) in [-1, 1], held for the eye; at last what `run` gives."""
        from continuous.pipeline import ImagePipeline

        def work(hand_over: Callable[[Any], None]) -> Any:
            def look(pipe: ImagePipeline, step: int, s: Any, state: dict[str, Any]) -> None:
                hand_over(pipe.denoiser.to_images(state["xt"]).cpu().to(torch.float32))

            return run(*args, **how, callback_on_step_end=look, output_trajectory=True)

        yield from held_for_the_eye(watch(work), self.pause)

    def _read(self, file: str | None) -> torch.Tensor:
        """(1, C, H, W): an image file of any size, its middle brought to that of the model."""
        from PIL import Image

        from continuous.data import read_image

        if file is None:
            raise ValueError("there is no image: send one")
        size = Path(file).stat().st_size
        if size > MOST_BYTES:
            raise ValueError(f"the file has {size / 2**20:.1f} MiB, and this page takes {MOST_BYTES >> 20} at most")
        channels, height, width = self.config.shape
        side = max(height, width)

        def opened() -> Any:
            image = Image.open(file)
            if image.width * image.height > MOST_PIXELS:
                raise ValueError(f"it has {image.width} x {image.height} pixels, and {MOST_PIXELS} are the most")
            return image

        square = read_image(opened, "what was sent", size=side, channels=channels)
        top, left = (side - height) // 2, (side - width) // 2
        return square[None, :, top : top + height, left : left + width]
