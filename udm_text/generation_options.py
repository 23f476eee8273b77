"""Every option of a generation, declared once: what it is, what it may be, and what it goes with.

`UDMGenerationConfig` takes its fields, defaults and checks from here, `generate` what it refuses, `udm generate` its
flags, and docs/generation.md its table. torch is not imported: the command answers `--help` from this table.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from .common import choices, is_whole, takes


class Option(NamedTuple):
    """One option.

    default: what holds where nothing is given. good: whether a value can be. wanted: what it must be, for messages.
    help: what it does, in sentences; the first is what the command's help says.
    kind: its type on the command line; None: it has no flag there. flags: their names, where not the option's own.
    of: the process that it belongs to, or two joined by "or"; a process takes the options of `generation_options` and
        those of none. instead: what is said to a model of another process.
    speculates: whether it means the same with speculative steps.
    compiles: whether steps with a value can be compiled.
    excludes: options that cannot be given beside it, with the reason.
    """

    default: Any
    wanted: str | Callable[[], str]
    good: Callable[[Any], bool]
    help: str
    kind: Any = None
    flags: tuple[str, ...] = ()
    of: str | None = None
    instead: str = ""
    speculates: bool = False
    compiles: Callable[[Any], bool] = lambda value: True
    excludes: Mapping[str, str] = {}

    def check(self, name: str, value: Any) -> None:
        """Raises ValueError for a value that cannot be, naming the option."""
        if not self.good(value):
            wanted = self.wanted if isinstance(self.wanted, str) else self.wanted()
            raise ValueError(f"{name} must be {wanted}, got {value!r}")


@dataclass(frozen=True)
class Skeleton:
    """An order in two groups: a skeleton of the text first, from left to right, then all that is left, at random.

    An autoregressive model of the skeleton and a diffusion model of the rest, by one network: as every order that is
    known before the first step it samples exactly from the model, one token a step.

    Args:
        every: every k-th of the editable positions of a row, from its first, is of the skeleton.
        rule: in place of it, called as rule(tokens, editable) with the rows (B, L) int64 as they stand before the first
            step ([MASK] where something is to be filled in; with `churn` before every step) and what may change (B, L)
            bool; returns (B, L) bool, true where a position is of the skeleton.
    """

    every: int | None = None
    rule: Callable[[Any, Any], Any] | None = None

    def __post_init__(self) -> None:
        if (self.every is None) == (self.rule is None):
            raise ValueError("a Skeleton has either every (a number) or rule (a function of two arguments)")
        if self.every is not None and not is_whole(self.every, 1):
            raise ValueError(f"every must be a positive integer, got {self.every!r}")
        if self.rule is not None and not takes(self.rule, 2):
            raise ValueError(f"rule must be a function of two arguments, got {self.rule!r}")


def read_order(text: str) -> str | Skeleton:
    """An order as the command is given it: a name, or skeleton:4 for Skeleton(every=4)."""
    kind, _, number = text.partition(":")
    if kind != "skeleton":
        return text
    if not (number.isascii() and number.isdecimal() and is_whole(int(number), 1)):
        raise ValueError(f"order must be a name, or a skeleton such as skeleton:4, every fourth position; got {text!r}")
    return Skeleton(every=int(number))


def _is_number(value: Any, kind: type = numbers.Real) -> bool:
    """Whether a value is a number (no bool) that a float64 holds; of integers, that 64 bits hold."""
    if isinstance(value, numbers.Integral) or kind is numbers.Integral:
        return is_whole(value)
    try:
        return isinstance(value, kind) and math.isfinite(value)  # type: ignore[arg-type]
    except OverflowError:  # a fraction beyond all floats
        return False


def _are_ids(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(_is_number(token, numbers.Integral) for token in value)


def _orders() -> Collection[str]:
    from .decoding import ORDERS

    return ORDERS


def _schedules() -> Collection[str]:
    from .schedules import SCHEDULES

    return SCHEDULES


def _counts() -> Collection[str]:
    from .schedules import COUNTS

    return COUNTS


def _kernels() -> Collection[str]:
    from .kernels import KERNELS

    return KERNELS


def _whole(least: int, optional: bool = True) -> dict[str, Any]:
    """An integer of at least so much, or None where that is allowed."""
    words = "a positive integer" if least == 1 else f"an integer that is at least {least}"
    return {
        "wanted": words + (" or None" if least == 1 else ", or None") * optional,
        "good": lambda x: (x is None and optional) or is_whole(x, least),
    }


def _real(wanted: str, good: Callable[[Any], bool], optional: bool = True) -> dict[str, Any]:
    """A finite number with a property, or None where that is allowed."""
    return {"wanted": wanted, "good": lambda x: (x is None and optional) or (_is_number(x) and good(x))}


def _flag(help: str) -> Option:
    return Option(False, "True or False", lambda x: isinstance(x, bool), help, speculates=True)


OPTIONS: dict[str, Option] = {
    "num_steps": Option(
        None,
        **_whole(1),
        kind=int | None,
        help="Reverse steps; None: one token a step, which is exact for masks. Fewer steps reveal several tokens at "
        "once: faster, no longer exact. Of a model that writes whole rows (predictor autoregressive) None is one step.",
    ),
    "schedule": Option(
        "linear",
        wanted=lambda: choices(_schedules()),
        good=lambda x: isinstance(x, str) and x in _schedules(),
        kind=str,
        help="How num_steps are spread: linear, equal steps; cosine, small steps first; optimal, the grid of lowest "
        "expected price on the model's step_curve (mask process, after `udm evaluate --curve`).",
    ),
    "counts": Option(
        "exact",
        wanted=lambda: choices(_counts()),
        good=lambda x: isinstance(x, str) and x in _counts(),
        kind=str,
        help="How many positions a step leaves corrupted: exact, as many as the schedule says; binomial, each position "
        "with the schedule's share as its chance, by itself, as in MDLM. Then some steps rest and others take "
        "several tokens: no longer exact where none would be with exact counts.",
        excludes={
            "threshold": "threshold says by itself how many positions a step reveals: leave counts at 'exact'",
            "max_edits": "a repair makes its edits one by one: leave counts at 'exact'",
        },
    ),
    "threshold": Option(
        None,
        **_real("a number in (0, 1) or None", lambda x: 0 < x < 1),
        kind=float | None,
        of="mask",
        compiles=lambda x: x is None,
        help="Each step reveals every position whose drawn token has a probability above this, and at least one (order "
        "by confidence). With num_steps, at least what its schedule asks for, so that it takes at most so many steps.",
        excludes={
            "churn": "threshold keeps what is sure, and churn opens it again: give one of them",
            "order_noise": "order_noise does not go with threshold, which takes the surest positions",
            "revise": "revise does not go with threshold, whose rows are done at a step of their own",
        },
    ),
    "order": Option(
        "random",
        wanted=lambda: f"{choices(_orders())}, a Skeleton, or a function of two arguments",
        good=lambda x: isinstance(x, Skeleton) or takes(x, 2) or (isinstance(x, str) and x in _orders()),
        kind=str,
        of="mask",
        instead=", see kernel",
        speculates=True,
        compiles=lambda x: not callable(x) and getattr(x, "rule", None) is None,
        help="Which position is revealed first: random (the order the bound holds for), left_to_right, or by the "
        "model's probabilities, before temperature, top_k and top_p: confidence (of the drawn token), margin, entropy; "
        "or a function called as order(log_probs (N, V), tokens (N,)), with those probabilities and the drawn tokens "
        "of any number of masked positions, that returns scores (N,), the highest first; or a `Skeleton`, two groups "
        "of positions, of which the first is revealed from left to right and then the other at random (the "
        "command: skeleton:4, every fourth). Neither is saved.",
    ),
    "order_noise": Option(
        0.0,
        **_real("a number that is at least 0", lambda x: x >= 0, optional=False),
        kind=float,
        help="Gumbel noise on the scores of an order that looks at the probabilities: 0 takes the highest, a large one "
        "is the random order. It keeps such orders from repeating themselves.",
    ),
    "revise": Option(
        0,
        **_whole(0, optional=False),
        kind=int,
        of="mask",
        instead=", whose steps revisit positions by themselves: see max_edits",
        compiles=lambda x: not x,
        help="At the end, so many tokens, those the model gave the lowest probability when it drew them, are masked "
        "again and drawn anew, one a step, given all the rest. A heuristic: no bound holds for it.",
    ),
    "kernel": Option(
        None,
        wanted=lambda: f"{choices(_kernels())}, or None",
        good=lambda x: x is None or (isinstance(x, str) and x in _kernels()),
        kind=str | None,
        of="substitute",
        help="Reverse kernel: site, hamming or free; None: the model's own, and free for repair, the one that may "
        "leave a text as it is.",
    ),
    "speculate": Option(
        None,
        **_whole(2),
        kind=int | None,
        of="mask",
        instead=", whose steps may change any position, while speculate fills in masks",
        speculates=True,
        compiles=lambda x: x is None,
        help="Exact speculative steps (orders random and left_to_right), which draft so many tokens at a time and keep "
        "the law of one token a step.",
    ),
    "guidance_scale": Option(
        None,
        **_real("a finite number that is at least 0, or None", lambda x: x >= 0),
        kind=float | None,
        speculates=True,
        help="Classifier-free guidance: above 1, hold closer to what was given than the model does; None and 1 are the "
        "model itself. Tokens are drawn from log p_u + guidance_scale (log p_c - log p_u), renormalised, where p_c "
        "reads the row and p_u the row with [MASK] in place of all that was given. For models trained with "
        "prompt_dropout. Two network calls a step.",
    ),
    "classifier_scale": Option(
        1.0,
        **_real("a number that is at least 0", lambda x: x >= 0, optional=False),
        of="mask",
        help="How much the `classifier` of a call counts: tokens are drawn from p_i(v) p(y | xt with v at i)^scale, "
        "renormalised; 0 is the model itself, 1 samples given y where the classifier is exact.",
    ),
    "classifier_candidates": Option(
        None,
        **_whole(1),
        of="mask",
        help="Of each position only so many of the likeliest tokens are shown to the `classifier`, and no other is "
        "drawn; None: all, which is exact and costs as many rows.",
    ),
    "cache_refresh": Option(
        None,
        **_whole(1),
        kind=int | None,
        compiles=lambda x: x is None or x <= 1,
        help="APPROXIMATE, and faster: keys and values of all layers are kept and brought up to date only every so "
        "many calls; None and 1 are exact. In between, only what changed and what is asked about runs through the "
        "layers (backbones built like BERT, RoBERTa, ModernBERT, NomicBERT, and decoders like Llama, Qwen3, Gemma 3).",
    ),
    "churn": Option(
        0.0,
        **_real("a number in [0, 1]", lambda x: 0 <= x <= 1, optional=False),
        kind=float,
        help="Share of fresh noise in each step: 0 improved, 1 baseline sampler. Masks then may close again.",
    ),
    "temperature": Option(
        None,
        **_real("a number that is at least 0, or None", lambda x: x >= 0),
        kind=float | None,
        speculates=True,
        help="Divides the logits; 0, and what is below the smallest normal number, takes the most likely token. None: "
        "1, and 0 for repair.",
    ),
    "top_k": Option(
        None, **_whole(1), kind=int | None, speculates=True, help="Keep the k most likely tokens of each position."
    ),
    "top_p": Option(
        None,
        **_real("a number in (0, 1] or None", lambda x: 0 < x <= 1),
        kind=float | None,
        speculates=True,
        help="Keep the most likely tokens of this mass.",
    ),
    "forbidden_tokens": Option(
        None,
        wanted="a list of token ids (the pipeline takes strings)",
        good=lambda x: x is None or _are_ids(x),
        kind=list[str] | None,
        flags=("--forbid", "--forbidden-tokens"),
        speculates=True,
        help="Tokens that are never drawn, besides the special ones: ids, or strings through pipeline and command.",
    ),
    "allowed_tokens": Option(
        None,
        wanted="a dict {position: list of token ids} (the pipeline takes strings)",
        good=lambda x: (
            x is None or (isinstance(x, dict) and all(_is_number(i, numbers.Integral) and _are_ids(x[i]) for i in x))
        ),
        speculates=True,
        help="The only tokens that may be drawn at a position of the output row (special tokens count as positions), "
        "the same for all rows.",
    ),
    "begin_suppress_tokens": Option(
        None,
        wanted="a list of token ids (the pipeline takes strings)",
        good=lambda x: x is None or _are_ids(x),
        speculates=True,
        help="Tokens that a text does not begin with: never drawn where nothing but what frames a row stands before. "
        "The pipeline's default are those that continue a word, as its tokenizer marks them; [] for none.",
    ),
    "length": Option(
        None,
        **_whole(1),
        kind=int | None,
        speculates=True,
        help="Tokens of a text, its prompt included and special tokens not, of a model of prompts and answers those of "
        "the answer; None: drawn from the training lengths.",
    ),
    "max_new_tokens": Option(
        None,
        **_whole(1),
        kind=int | None,
        speculates=True,
        help="Tokens added behind the prompt, in place of length.",
    ),
    "max_edits": Option(
        None,
        **_whole(1),
        of="substitute or edit",
        help="Repair of a given text: at most so many tokens change; by process edit they come and go, too.",
    ),
    "min_confidence": Option(
        None,
        **_real("a number in [0, 1] or None", lambda x: 0 <= x <= 1),
        of="substitute or edit",
        help="Repair: a token is changed only where the model's probability of the new one (process edit: of the edit, "
        "among all edits of the text and none), before temperature, top_k and top_p, is at least this; where no change "
        "is so sure, the text rests. By substitution what forbidden_tokens or allowed_tokens rule out is replaced all "
        "the same.",
    ),
    "num_return_sequences": Option(
        1,
        **_whole(1, optional=False),
        kind=int,
        flags=("--number", "-n", "--num-return-sequences"),
        speculates=True,
        help="Samples of each input.",
    ),
    "seed": Option(
        None,
        wanted="an integer of 64 bits or None",
        good=lambda x: x is None or is_whole(x),
        kind=int | None,
        speculates=True,
        help="Reproduces the samples; None draws one from torch's generator. A row depends on (its input, seed, its "
        "number among the samples) only, up to rounding, more in bfloat16.",
    ),
    "compile": _flag(
        "Compile a step into one graph (torch.compile; on CUDA a recorded one), kept for later calls of like sizes. "
        "The first call takes long; the tokens are the same, but for rounding.",
    )._replace(kind=bool, flags=("--compile",)),
    "return_dict_in_generate": _flag("Return a UDMGenerateOutput instead of the tokens alone."),
    "output_trajectory": _flag("The output also holds every xt; implies return_dict_in_generate."),
}
"""By name, in the order of documentation and help."""


def refuse_foreign(config: Any, process: Any, process_name: str) -> None:
    """Raises ValueError for an option that was given and is of another process, or not of the model's predictor.

    process: the model's; its `generation_options` are those that it takes besides the ones common to all.
    """
    for name, option in OPTIONS.items():
        if option.of is None or name in process.generation_options or getattr(config, name) == option.default:
            continue
        if process_name in option.of.split(" or "):
            raise ValueError(
                f"{name} looks at the laws of single positions, and a model with predictor 'autoregressive' has those "
                f"of whole rows: leave {name} at {option.default!r}"
            )
        wanted = " or ".join(repr(one) for one in option.of.split(" or "))
        raise ValueError(
            f"{name} is of the {option.of} process and needs a model of process {wanted}; this one has process "
            f"{process_name!r}{option.instead}"
        )


def refuse_pairs(config: Any) -> None:
    """Raises ValueError for two options that cannot be given together."""
    for name, option in OPTIONS.items():
        if getattr(config, name) == option.default:
            continue
        for other, why in option.excludes.items():
            if getattr(config, other) != OPTIONS[other].default:
                raise ValueError(why)


def refuse_beside_speculation(config: Any) -> None:
    """Raises ValueError for an option whose steps are not those that speculation keeps the law of."""
    for name, option in OPTIONS.items():
        if not option.speculates and (value := getattr(config, name)) != option.default:
            raise ValueError(
                f"speculate keeps the law of one-token steps and does not go with {name}={value!r}: leave {name} at "
                f"{option.default!r}, or give speculate=None"
            )


def markdown_table() -> str:
    """The table of docs/generation.md."""
    lines = ["| argument | default | process | meaning |", "| --- | --- | --- | --- |"]
    for name, option in OPTIONS.items():
        default = "" if option.default in (None, False) else f"`{option.default}`"
        lines.append(f"| `{name}` | {default} | {option.of or ''} | {option.help} |")
    return "\n".join(lines)
