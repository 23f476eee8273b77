"""Models of ours in the lm-evaluation-harness of EleutherAI, as its model type `udm`.

    python -m udm_text.evaluation.harness --model udm --model_args pretrained=DIR --tasks ... [options of lm_eval]

lm_eval knows a model type once the module of it has been imported, and looks for none in other packages; so the line is
this one in place of `lm_eval`. From Python `import udm_text.evaluation.harness` comes before `simple_evaluate`.

What a causal model is asked for, log p of a continuation given a context, is here a bound or the chain rule, named by
`likelihood`, as `udm_text.evaluation.row_scores` has it: of the continuation given the context and given how long it
is; its length is counted where the model draws it, of whole texts and of answers by a width head.
"""

from __future__ import annotations

import inspect
import math
import sys
from collections import Counter
from collections.abc import Sequence
from typing import Any

from ..common import check_place, check_whole, choices, refuse_unknown, to_json, written_whole
from ..corpus.rows import RowCutter
from ..generation_configuration_udm import UDMGenerationConfig
from .likelihood import check_likelihood, row_scores

try:
    from lm_eval.api.model import LM
    from lm_eval.api.registry import model_registry
    from lm_eval.utils import simple_parse_args_string
except ImportError as error:
    raise ImportError("the harness is a package of its own: pip install 'udm-text[lm-eval]'") from error

NAME = "udm"
BATCH = 64
"""Rows of a forward pass where lm_eval is not told how many, or is to find out."""
UNSAID = "cuda:0"
"""The device that the command of lm_eval names where nobody names one; without CUDA it is the one there is."""
TASK_OPTIONS = ("until", "max_gen_toks", "do_sample", "temperature")
"""What tasks say of a generation in words of their own; all else is an option of `generate`."""


class UDMLM(LM):
    """A model of ours as lm_eval asks it. Arguments are those of `--model_args`.

    Every figure belongs to `seed` and to the texts alone, not to the batch or the order of the requests: the noise of a
    row belongs to the document it is of, so that the answers to one question are compared on the same noise, and a
    generated text to its context.

    Args:
        pretrained: a directory or a name on the Hub; revision, device, dtype and trust_remote_code go with it.
        likelihood, order, draws: "bound", "chain" or "importance", the order of the positions and the number of draws
            of a row, see `row_scores`.
        seed: of the noise and of generation.
        batch_size: rows of a forward pass; "auto": 64.
        num_steps: of generation; None: one token a step.
        max_gen_toks: tokens behind a context where the task does not say; None: the model draws how many, where it can.
        greedy: whether lm_eval is told if a continuation is what the model writes itself at temperature 0, which takes
            a call a token; False: it is told "no" of each, as it is of a model that inserts, whose blanks have no
            given width.
        scores: a file that gets a line of JSON for each scored text: nats, their standard error, tokens, draws.
    """

    def __init__(
        self,
        pretrained: str | None = None,
        likelihood: str = "bound",
        order: str | None = None,
        draws: int | None = None,
        seed: int = 0,
        batch_size: int | str = BATCH,
        max_batch_size: int | None = None,
        device: str | None = None,
        dtype: str = "float32",
        revision: str | None = None,
        trust_remote_code: bool = False,
        num_steps: int | None = None,
        max_gen_toks: int | None = None,
        greedy: bool = True,
        scores: str | None = None,
        **unknown: Any,
    ):
        known = [name for name in inspect.signature(UDMLM).parameters if name not in ("unknown", "max_batch_size")]
        if unknown:
            raise ValueError(f"unknown argument {next(iter(unknown))!r} of model_args, which must be {choices(known)}")
        if pretrained is None:
            raise ValueError("model_args must name a model, a directory or a name on the Hub: pretrained=DIR")
        super().__init__()
        import torch
        import transformers

        from .. import register
        from ..framing import beside, untrusted

        register()
        self.batch_size = BATCH if str(batch_size).startswith("auto") else batch_size
        counts = {"batch_size": self.batch_size, "num_steps": num_steps, "max_gen_toks": max_gen_toks}
        check_whole(1, **{name: value for name, value in counts.items() if value is not None})
        check_whole(-(2**63), seed=seed)
        check_place(pretrained)
        if device == UNSAID and not torch.cuda.is_available():
            device = None
        make: Any = transformers.pipeline
        with untrusted(pretrained), beside(pretrained, revision=revision):
            self.pipe = make(
                "udm-generation",
                model=pretrained,
                revision=revision,
                device=device,
                dtype=dtype,
                trust_remote_code=trust_remote_code,
            )
        self.model, self.tokenizer, self.config = self.pipe.model, self.pipe.tokenizer, self.pipe.model.config
        if not self.tokenizer.is_fast:
            raise ValueError(f"pretrained={pretrained}: the tokenizer does not tell where in a text its tokens stand")
        if self.config.build_process().edits:
            raise ValueError(f"pretrained={pretrained} is a repairer, which has no likelihood and writes no texts")
        self.order, self.draws = check_likelihood(self.config, likelihood, order, draws)
        self.likelihood, self.seed, self.num_steps = likelihood, seed, num_steps
        self.max_gen_toks, self.file = max_gen_toks, scores
        self.greedy = greedy and not self.config.build_process().inserts
        self.special = set(self.tokenizer.all_special_ids)
        frame = RowCutter(self.tokenizer, prompted=self.config.prompted)
        self.prefix, self.suffix = frame.prefix, frame.suffix
        around = len([*frame.prefix, *frame.separator, *frame.suffix])
        longest = self.config.max_row_length
        self.room = None if longest is None else longest - around
        self.lines: list[dict[str, Any]] = []
        self.counts: Counter[str] = Counter()

    @classmethod
    def create_from_arg_string(cls, arg_string: str, additional_config: dict[str, Any] | None = None) -> UDMLM:
        """A model by `--model_args`, and the options of lm_eval that are arguments of it, too."""
        return cls.create_from_arg_obj(simple_parse_args_string(arg_string), additional_config)

    @classmethod
    def create_from_arg_obj(cls, arg_dict: dict[str, Any], additional_config: dict[str, Any] | None = None) -> UDMLM:
        """The same of arguments as a dict; raises ValueError for one that is given in both ways."""
        options = {name: value for name, value in (additional_config or {}).items() if value is not None}
        if twice := arg_dict.keys() & options.keys():
            name = min(twice)
            raise ValueError(f"{name} of model_args is an option of lm_eval: give --{name} {arg_dict[name]} instead")
        return cls(**arg_dict, **options)

    def get_model_info(self) -> dict[str, Any]:
        """What lm_eval writes beside its figures: how texts were scored, and how well that is known."""
        errors = [line["stderr"] for line in self.lines if line["stderr"] is not None]
        return {
            "likelihood": self.likelihood,
            "likelihood_order": self.order,
            "likelihood_draws": self.draws,
            "likelihood_seed": self.seed,
            "likelihood_stderr_nats": sum(errors) / len(errors) if errors else None,
            "likelihood_texts": len(self.lines),
            "unwritable_texts": self.counts["unwritable"],
            "truncated_contexts": self.counts["truncated"],
            "model_num_parameters": sum(part.numel() for part in self.model.parameters()),
        }

    # --- likelihoods -------------------------------------------------------------------------------------------------

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """(log p of the continuation given the context, whether the model writes it at temperature 0) of each request.

        A continuation of no token has log p 0; one that holds a token the model cannot write has -inf.
        """
        pairs = [request.args for request in requests]
        rows = [self._row(*pair) for pair in pairs]
        found = self._scores(rows, requests)
        own = self._written(rows) if self.greedy else [False] * len(rows)
        results = [(-nats, bool(same)) for (nats, _), same in zip(found, own, strict=True)]
        for pair, result in zip(pairs, results, strict=True):
            self.cache_hook.add_partial("loglikelihood", pair, result)
        return results

    def loglikelihood_rolling(self, requests: Sequence[Any]) -> list[float]:
        """log p of each text. One that is longer than the model reads is read in windows: each of its tokens is scored
        once, given those before it in its window, the last window as full as the others; its length is not counted."""
        if self.config.prompted:
            raise ValueError("a text by itself has no prompt, and the model writes answers to prompts")
        parts = [self._windows(request.args[0]) for request in requests]
        owners = [request for request, some in zip(requests, parts, strict=True) for _ in some]
        found = self._scores([row for some in parts for row in some], owners)
        results, start = [], 0
        for request, some in zip(requests, parts, strict=True):
            mine = found[start : start + len(some)]
            start += len(some)
            nats = sum(each - (length if len(some) > 1 else 0.0) for each, length in mine)
            results.append(-nats)
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, -nats)
        return results

    def _row(self, context: str, continuation: str) -> dict[str, Any]:
        """The row that a continuation is scored in: an answer to its prompt, or behind a context that is given."""
        if self.config.prompted:
            return self._answer(context, continuation)
        start = len(context.rstrip())  # white space between both belongs to what comes behind it
        encoded = self.tokenizer(context + continuation, add_special_tokens=False, return_offsets_mapping=True)
        scored = [end > start for _, end in encoded["offset_mapping"]]
        ids = encoded["input_ids"]
        if self.room is not None and len(ids) > self.room:
            if sum(scored) > self.room:
                raise ValueError(
                    f"a continuation has {sum(scored)} tokens and the model reads at most {self.room}: "
                    f"{continuation[:40]!r}"
                )
            self.counts["truncated"] += 1
            ids, scored = ids[-self.room :], scored[-self.room :]
        return self._framed(ids, scored)

    def _framed(self, ids: Sequence[int], scored: Sequence[bool]) -> dict[str, Any]:
        outside = [False] * len(self.prefix), [False] * len(self.suffix)
        return {
            "input_ids": [*self.prefix, *ids, *self.suffix],
            "editable": [*outside[0], *scored, *outside[1]],
        }

    def _answer(self, prompt: str, answer: str) -> dict[str, Any]:
        cutter = RowCutter(self.tokenizer, row_length=self.room, prompted=True)
        [row] = cutter.lines([{"text": answer, "prompt": prompt}])
        if cutter.counts["truncated"]:
            raise ValueError(
                f"prompt and answer have more tokens than the {self.room} that the model reads: {answer[:40]!r}"
            )
        self.counts["truncated"] += cutter.counts["truncated_prompts"]
        ids = row["input_ids"]
        n = len(cutter.separator)
        begins = [i + n for i in range(len(ids) - n + 1) if ids[i : i + n] == cutter.separator]
        if not begins:
            raise ValueError(f"a prompt holds the separator, so that nothing tells where its answer begins: {prompt!r}")
        end = len(ids) - len(self.suffix)
        return {"input_ids": ids, "editable": [begins[0] <= i < end for i in range(len(ids))]}

    def _windows(self, text: str) -> list[dict[str, Any]]:
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        size = len(ids) if self.room is None else min(self.room, len(ids))
        rows = []
        for start in range(0, len(ids), max(1, size)):
            first = min(start, len(ids) - size)
            part = ids[first : first + size]
            rows.append(self._framed(part, [first + i >= start for i in range(len(part))]))
        return rows

    def _scores(self, rows: Sequence[dict[str, Any]], requests: Sequence[Any]) -> list[tuple[float, float]]:
        """Nats of each row, and what of them is for its length; infinite where it holds what cannot be written."""
        found = [(0.0, 0.0)] * len(rows)
        written = [self._can_be_written(row) for row in rows]
        self.counts["unwritable"] += written.count(False)
        kept = [i for i, row in enumerate(rows) if written[i] and any(row["editable"])]
        records = [{"nats": 0.0 if fine else None, "stderr": 0.0, "tokens": 0} for fine in written]
        if kept:
            scores = row_scores(
                self.model,
                [rows[i] for i in kept],
                index=[requests[i].doc_id or 0 for i in kept],
                likelihood=self.likelihood,
                order=self.order,
                draws=self.draws,
                seed=self.seed,
                batch_size=int(self.batch_size),
            )
            columns = (scores.nats, scores.stderr, scores.tokens, scores.length_nats)
            for i, nats, error, tokens, length in zip(kept, *(part.tolist() for part in columns), strict=True):
                found[i] = nats, length
                records[i] = {"nats": nats, "stderr": error if math.isfinite(error) else None, "tokens": tokens}
        found = [pair if fine else (math.inf, 0.0) for pair, fine in zip(found, written, strict=True)]
        for record, request in zip(records, requests, strict=True):
            how = {"likelihood": self.likelihood, "draws": self.draws, "seed": self.seed}
            self.lines.append({"task": request.task_name, "doc": request.doc_id, **record, **how, "text": request.args})
        if self.file is not None:
            with written_whole(self.file) as part:
                part.write_text("".join(f"{to_json(line)}\n" for line in self.lines), encoding="utf-8")
        return found

    def _can_be_written(self, row: dict[str, Any]) -> bool:
        return not any(here and token in self.special for token, here in zip(*row.values(), strict=True))

    def _written(self, rows: Sequence[dict[str, Any]]) -> list[bool]:
        """Whether each continuation is what the model writes in its place at temperature 0, from left to right where
        it opens masks, as many tokens as it has."""
        import torch

        how: dict[str, Any] = {"temperature": 0.0, "seed": self.seed}
        if "order" in self.config.build_process().generation_options:
            how["order"] = "left_to_right"
        same = []
        for row in rows:
            if not any(row["editable"]) or not self._can_be_written(row):
                same.append(not any(row["editable"]))
                continue
            given, open_ = torch.tensor([row["input_ids"]]), torch.tensor([row["editable"]])
            asked = given.masked_fill(open_, self.config.mask_token_id).to(self.model.device)
            same.append(torch.equal(self.model.generate(asked, **how)[0].cpu(), given[0]))
        return same

    # --- generation --------------------------------------------------------------------------------------------------

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """What the model writes behind each context, or answers to it, up to the first of the task's `until`.

        Requests that are alike, as where a task asks for repeats, get texts of their own.
        """
        alike: dict[str, list[int]] = {}
        for number, request in enumerate(requests):
            alike.setdefault(to_json(request.args), []).append(number)
        results = [""] * len(requests)
        for numbers in alike.values():
            context, task = requests[numbers[0]].args
            how, until = self._how(dict(task)), task.get("until") or []
            how["num_return_sequences"] = len(numbers)
            if not self.config.prompted and self.room is not None:
                context = self._end_of(context, how.get("max_new_tokens", 1))
            for number, record in zip(numbers, self.pipe(context, return_full_text=False, **how), strict=True):
                text = record["generated_text"]
                for stop in [until] if isinstance(until, str) else until:
                    text = text.split(stop)[0] if stop else text
                results[number] = text
                self.cache_hook.add_partial("generate_until", requests[number].args, text)
        return results

    def _how(self, task: dict[str, Any]) -> dict[str, Any]:
        """Options of the pipeline from a task's `generation_kwargs`."""
        refuse_unknown(task.keys(), {*TASK_OPTIONS, *UDMGenerationConfig._defaults}, "generation_kwargs")
        how = {name: value for name, value in task.items() if name not in TASK_OPTIONS}
        drawn = task.get("do_sample", task.get("temperature", 0.0) > 0)
        how["temperature"] = float(task.get("temperature") or 1.0) if drawn else 0.0
        if self.num_steps is not None:
            how.setdefault("num_steps", self.num_steps)
        most = task.get("max_gen_toks", self.max_gen_toks)
        if most is not None:
            how["max_new_tokens"] = most
        how.setdefault("seed", self.seed)
        return how

    def _end_of(self, context: str, wanted: int) -> str:
        """As much of the end of a context as leaves room for what is wanted."""
        assert self.room is not None
        if wanted >= self.room:
            raise ValueError(f"max_gen_toks is {wanted}, and the model reads at most {self.room} tokens")
        spans = self.tokenizer(context, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        if len(spans) <= self.room - wanted:
            return context
        self.counts["truncated"] += 1
        return context[spans[len(spans) - (self.room - wanted)][0] :]


def add_to_harness() -> None:
    """Makes the name known to lm_eval, once."""
    if NAME not in model_registry:
        model_registry.register(NAME, target=f"udm_text.evaluation.harness:{UDMLM.__name__}")


def main() -> None:
    """`lm_eval` that knows the model type; what a user can mend ends in one line."""
    from lm_eval.__main__ import cli_evaluate

    try:
        cli_evaluate()
    except (ValueError, OSError) as error:
        print(f"udm: {' '.join(str(error).split())}", file=sys.stderr)
        raise SystemExit(1) from None


add_to_harness()
if __name__ == "__main__":
    main()
