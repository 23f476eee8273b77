"""The one story of a training run, whatever is trained: prepare, train, stop where told to, save, measure, report.

Text (`cli/train_text.py`) and images (`continuous/train_image.py`) say what their data, model, objective and figures
are, and hand them to `run`.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from transformers import HfArgumentParser, ProgressCallback, set_seed
from transformers.hf_argparser import HfArg

from ..common import watching, write_json
from .adapters import ADAPTER, is_adapted, merge_adapter
from .best import BestWeights
from .callbacks import LossBar, terminal_bar
from .checkpoints import checkpoints, digest_of, sweep, why_unusable
from .interrupts import INTERRUPTED, unbroken_output
from .locks import LOCK, locked, refuse_if_locked
from .resuming import (
    REPORT_FILE,
    RUN_FILE,
    Differences,
    applied_differences,
    check_rows,
    describe_differences,
    describe_options,
    finished_report,
    read_json,
)
from .resuming import resolved as resolved
from .short_help import Groups, asked_for, short_help
from .trainer import UDMTrainer, UDMTrainingArguments

NOTHING_TO_DRAW = "note: loss.png is not drawn: no loss was logged; give a smaller --logging_steps"


class OutputExistsError(FileExistsError):
    """The output folder is not empty and `resume` was not asked for."""


def refuse_output(output: Path, resume: bool) -> None:
    """Raises where a folder holds something else than a run of ours to resume, or nothing at all; changes nothing."""
    if output.exists() and not output.is_dir():
        raise OutputExistsError(f"{output} is a file; --output must be a folder")
    names = {path.name for path in output.iterdir()} if output.is_dir() else set()
    if resume and not names:
        raise FileNotFoundError(f"{output} holds no checkpoint to resume from")
    if not names - {LOCK, RUN_FILE, LOGS} and (LOGS not in names or _are_logs(output / LOGS)):
        return  # new, or of a run that died before it had trained anything
    if not resume:
        raise OutputExistsError(
            f"{output} is not empty: give --resume to continue that run, or another --output. Nothing was changed."
        )
    if RUN_FILE not in names and not any(checkpoints(output)):
        raise OutputExistsError(f"{output} holds no checkpoint to resume from; give another --output")


LOGS = "runs"
"""Where TensorBoard's logs go, inside the folder of a run."""


def _are_logs(folder: Path) -> bool:
    """Whether a folder holds TensorBoard's files and nothing else."""
    files = [path for path in folder.rglob("*") if not path.is_dir()]
    return folder.is_dir() and all(path.name.startswith("events.out.tfevents") for path in files)


def find_checkpoint(output: Path) -> tuple[str | None, list[str]]:
    """The checkpoint to resume from (None: from the beginning), and what is wrong with those that are passed over."""
    broken: list[str] = []
    for path in checkpoints(output):
        if (why := why_unusable(path)) is None:
            return str(path), broken
        broken.append(f"{path.name}: {why}")
    if broken and not (output / RUN_FILE).exists():
        raise OutputExistsError(
            f"{output} holds no checkpoint to resume from ({'; '.join(broken)}); give another --output"
        )
    return None, broken


LEAST_ROWS, LEAST_TOKENS, LEAST_STEPS = 64, 1024, 32
"""What the rows of a step follow from where they are not given, see `rows_a_step`."""


def rows_a_step(tokens: float, rows: int) -> int:
    """Rows of a step: 64, and of short rows twice as many as often as it takes to ask about 1,024 tokens a step.

    But never so many that an epoch has fewer than 32 steps. Source: docs/training.md has the runs it was chosen by.

    Args:
        tokens: of a row that may change, on average. rows: that are there to train on.
    """
    found = LEAST_ROWS
    while found * tokens < LEAST_TOKENS and 2 * found * LEAST_STEPS <= rows:
        found *= 2
    return found


@dataclass
class RunArguments(UDMTrainingArguments):
    """How a run is made: every field of TrainingArguments, some with defaults for a laptop."""

    output_dir: str | None = HfArg(  # type: ignore[assignment]
        aliases=["--output"], default=None, help="Where the model goes."
    )
    resume: bool = field(default=False, metadata={"help": "Continue from the last checkpoint in output_dir."})
    plot: bool = field(default=True, metadata={"help": "Draw the loss as loss.png (needs matplotlib)."})
    learning_rate: float | None = field(  # type: ignore[assignment]
        default=None, metadata={"help": "Default: what suits the model, and is printed in report.json."}
    )
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "Learning-rate schedule."})
    warmup_steps: float = field(default=100, metadata={"help": "Steps (or share below 1) of linear warm-up."})
    train_sampling_strategy: str = field(default="group_by_length", metadata={"help": "How rows are ordered."})
    optim: str | None = field(  # type: ignore[assignment]
        default=None,
        metadata={
            "help": "Optimiser: muon, or one of transformers. Default: what suits the model, as report.json says."
        },
    )
    adam_beta2: float = field(default=0.98, metadata={"help": "AdamW beta2."})
    weight_decay: float = field(default=0.01, metadata={"help": "AdamW weight decay."})
    logging_steps: float = field(default=0.01, metadata={"help": "Steps between log lines, or their share of the run."})
    report_to: str = field(default="tensorboard", metadata={"help": "Where logs go; none for nowhere."})
    save_total_limit: int | None = field(default=2, metadata={"help": "Checkpoints kept."})
    keep_best: bool = field(
        default=True, metadata={"help": "Write the weights of the best held-out loss of all evaluations, not the last."}
    )
    patience: int | None = field(
        default=None, metadata={"help": "End after so many evaluations in a row without a better held-out loss."}
    )
    eval_rows: int | None = field(
        default=None,
        metadata={"help": "Held-out rows of an evaluation in the middle of a run, evenly spread; default: all."},
    )

    command = tuple[str, ...]()
    """What was typed, word for word, a recipe's options in front of the others; (): not a command. No option."""
    rows_by_rule = False
    """Whether per_device_train_batch_size is not given, and follows from the corpus. No option."""

    def __post_init__(self):
        if self.resume_from_checkpoint is not None:
            raise ValueError(
                f"resume_from_checkpoint is not for this command, got {self.resume_from_checkpoint!r}: give --resume, "
                "which goes on from the last whole checkpoint in --output"
            )
        if self.per_device_train_batch_size is None:
            self.rows_by_rule, self.per_device_train_batch_size = True, LEAST_ROWS
        if self.output_dir is None:
            raise ValueError("--output DIR is needed: where the model goes")
        for name in ("eval_rows", "patience"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.patience is not None and not self.keep_best:
            raise ValueError("patience waits for a better held-out loss, whose weights are kept: leave keep_best true")
        if self.keep_best and self.load_best_model_at_end:
            raise ValueError("load_best_model_at_end has a place of its own here: keep_best, which is on by default")
        if not torch.accelerator.is_available():
            self.use_cpu = True  # else transformers would refuse bf16, which a CPU has
        super().__post_init__()


def parse(
    kinds: Sequence[Any],
    arguments: list[str] | None,
    command: str,
    defaults: Mapping[str, Any] | None = None,
    groups: Groups | None = None,
) -> tuple[Any, ...]:
    """Command-line arguments as dataclasses of these kinds, one of them `RunArguments`.

    Every field may be written with dashes. `--config FILE` reads fields from a YAML file; what stands on the command
    line goes before it.

    Args:
        arguments: None takes those of the process. command: as a person types it, for messages.
        defaults: of fields, where they differ from those of the dataclasses.
        groups: the fields that --help tells of; --help-all tells of all.

    Raises:
        ValueError: for what is no option of these kinds, or a value that cannot be.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    help = asked_for(given)
    if help is None:
        given = read_recipe(given)
    usage = f"{command} --output DIR [options]   (all of them: {command} --help-all)"
    parser = HfArgumentParser(kinds, prog=command, usage=usage, allow_abbrev=False)
    parser.set_defaults(**(defaults or {}))
    if help is not None:
        print(short_help(parser, groups, command) if help == "--help" and groups else parser.format_help())
        raise SystemExit(0)
    *found, unknown = parser.parse_args_into_dataclasses(given, return_remaining_strings=True)
    if unknown:
        raise ValueError(f"{command} takes no {unknown[0]!r}; all of its options: {command} --help-all")
    for part in found:
        if isinstance(part, RunArguments):
            part.command = (*command.split(), *without_secrets(given))
    return tuple(found)


def without_secrets(given: Sequence[str]) -> list[str]:
    """Arguments word for word, `--name=value` as two of them, without those that are tokens of the Hub."""
    words: list[str] = []
    for argument in given:
        name, equals, value = argument.partition("=")
        words += [name, value] if argument.startswith("--") and equals else [argument]
    hidden = {i for i, word in enumerate(words) if re.fullmatch(r"--\w[\w-]*[_-]token", word)}
    return [word for i, word in enumerate(words) if not {i, i - 1} & hidden]


def read_recipe(given: list[str]) -> list[str]:
    """The arguments with those of the YAML file after `--config` in front of them, where a later one overrides them."""
    index = next((i for i, argument in enumerate(given) if argument.split("=")[0] == "--config"), None)
    if index is None:
        return given
    name, _, file = given[index].partition("=")
    rest = given[:index] + given[index + 1 :]
    if not file:
        if index == len(rest):
            raise ValueError("--config needs the path of a YAML file behind it")
        file = rest.pop(index)
    if not Path(file).is_file():
        raise FileNotFoundError(f"{name} {file}: there is no such file")
    try:
        fields = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is not a YAML file: {error}") from None
    if not isinstance(fields, dict) or any(isinstance(value, (dict, list)) for value in fields.values()):
        raise ValueError(f"{file} must hold lines `field: value`, as in `max_steps: 1000`")
    return [f"--{name}={value}" for name, value in fields.items() if value is not None] + rest


class Preparation(NamedTuple):
    """A run that may begin."""

    output: Path
    checkpoint: str | None
    """What it goes on from; None: the beginning."""
    options: dict[str, dict[str, Any]]
    """As they were given, for run.json."""
    before: dict[str, Any]
    """The run.json that lay beside the checkpoint; empty: none."""
    changes: Differences
    """Options that differ from those it was begun with, and are applied."""
    finished: dict[str, Any] | None
    """The report of a run that is over and asks for nothing more."""
    state: PartialState
    started: float

    def say(self, text: str) -> None:
        """Prints in the first process."""
        if self.state.is_main_process:
            print(text, flush=True)


@contextlib.contextmanager
def prepare(args: RunArguments, options: Mapping[str, Any]) -> Iterator[Preparation]:
    """Refuses a folder that holds something else, before anything is read; seeds, and keeps memory.

    Inside the block the folder is this run's own: a second run there is refused, by the first process of each. A run
    that is finished with these very options is left as it is: `finished` is then its report.

    Args:
        options: the dataclasses of the command line by name, beside `args`.

    Raises:
        OutputExistsError: the folder is no place for this run. FileNotFoundError: there is nothing to resume.
        LockedError: another run works there. ResumeError: it was begun with options that cannot be changed.
        ImportError: the loss is to be drawn and matplotlib is not installed.
    """
    started, output, state = time.time(), Path(str(args.output_dir)), PartialState()
    given = describe_options(options, args)
    with unbroken_output(), contextlib.ExitStack() as held:
        found, broken = in_first_process(state, lambda: _open(output, args.resume, given, held))
        ready = Preparation(output, state=state, started=started, options=given, **found)
        if ready.finished is not None:
            ready.say(
                f"{output}: this run is finished after {ready.finished.get('steps')} steps, and nothing was changed; "
                "to go on, give a larger max_steps (or max_seconds) with --resume"
            )
        else:
            for fault in broken:
                ready.say(f"note: passed over {fault}")
            if args.resume and ready.checkpoint is None:
                ready.say(f"note: {output} holds no whole checkpoint yet: the run starts from the beginning")
            if ready.changes:
                ready.say(f"note: resumed with {describe_differences(ready.changes)}")
            if args.plot:
                require_matplotlib()
            keep_memory(args.device)
            set_seed(args.seed)
        yield ready


def _open(
    output: Path, resume: bool, given: Mapping[str, Mapping[str, Any]], held: contextlib.ExitStack
) -> tuple[dict[str, Any], list[str]]:
    """What a `Preparation` says of a folder, which is locked as long as `held` is open, and the faults found in it."""
    refuse_if_locked(output)
    if resume and (report := finished_report(output, given)) is not None:
        return {"checkpoint": None, "before": {}, "changes": {}, "finished": report}, []
    refuse_output(output, resume)
    if resume and any(checkpoints(output)):
        applied_differences(read_json(output / RUN_FILE) or {}, given)  # refused without a trace
    held.enter_context(locked(output))
    checkpoint, broken = find_checkpoint(output) if resume else (None, [])
    before = (read_json(output / RUN_FILE) or {}) if checkpoint is not None else {}
    changes = applied_differences(before, given)
    sweep(output, every=True)
    return {"checkpoint": checkpoint, "before": before, "changes": changes, "finished": None}, broken


def in_first_process(state: PartialState, work: Callable[[], Any]) -> Any:
    """What `work` gives, done in the first process alone; every process gets it, or raises what it raised."""
    answer: list[Any] = [None, None]
    if state.is_main_process:
        try:
            answer[0] = work()
        except Exception as error:
            answer[1] = error
    result, fault = broadcast_object_list(answer)
    if fault is not None:
        raise fault
    return result


def run(
    trainer: UDMTrainer,
    ready: Preparation,
    facts: Mapping[str, Any],
    measure: Callable[[dict[str, Any]], dict[str, Any]],
    describe: Callable[[dict[str, float]], str] | None = None,
    rows: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Train, and unless a signal ends it save and measure; returns what report.json holds.

    Args:
        ready: of `prepare`. facts: what the report says of the run whatever comes of it.
        measure: report so far -> figures of the model as it was written; called in every process, where it may draw
            pictures beside the model in the first.
        describe: words for an evaluation in the middle of training.
        rows: digests (`digest_rows`) of the rows by their part, which a resumed run must find as they were.

    Raises:
        ResumeError: the rows are others than those that the run was begun with.
    """
    output, args, state = ready.output, trainer.args, ready.state
    trainer.started = ready.started
    if not args.disable_tqdm:
        trainer.remove_callback(ProgressCallback)
        trainer.add_callback(LossBar(describe, trainer.timed_rate))
    check_rows(ready.before, rows or {})
    changed = list(ready.before.get("changed", []))
    record = {**ready.options, "rows": rows or {}, "used": {"learning_rate": args.learning_rate}, "changed": changed}
    if ready.changes:
        step = int(Path(str(ready.checkpoint)).name.rpartition("-")[2])
        changed.append({"step": step, **{name: list(values) for name, values in ready.changes.items()}})
    if state.is_main_process:
        write_json(output / RUN_FILE, record)
    result = trainer.train(resume_from_checkpoint=ready.checkpoint)
    typed = [word if "/" not in word else resolved(word) for word in getattr(args, "command", ())]
    report = {**facts, "command": typed, **describe_training(trainer, result.metrics)}
    if not trainer.steps_made:
        ready.say(f"note: {ready.checkpoint} stands at the end of the run, and no further step was made")
        if isinstance(used := ready.before.get("used", ready.before.get("run")), dict):
            report["learning_rate"] = used.get("learning_rate", args.learning_rate)
            if state.is_main_process:
                write_json(output / RUN_FILE, {**record, "used": {"learning_rate": report["learning_rate"]}})
    if changed:
        report["changed"] = changed
    if trainer.stopped_by is not None and trainer.stopped_by.startswith("SIG"):
        ready.say(
            f"{trainer.stopped_by} at step {trainer.state.global_step}: a checkpoint is written, the model is not "
            "finished; the same command with --resume goes on from there"
        )
    else:
        save(trainer, output)
        state.wait_for_everyone()  # one process has written what all read
        if args.max_seconds is not None:
            ready.say("measuring the written model, which comes on top of max_seconds")
        began = time.time()
        with watching(terminal_bar if state.is_main_process and not args.disable_tqdm else None):
            report |= measure(report)
        report |= {"log": trainer.state.log_history, "measure_seconds": time.time() - began}
        report["seconds"] = trainer.before.seconds + time.time() - ready.started
        if args.max_seconds is not None:
            ready.say(f"measured in {report['measure_seconds']:.0f} s")
        report["files"] = {file.name: digest_of(file) for file in sorted(output.glob("*.safetensors"))}
    if state.is_main_process:
        write_json(output / REPORT_FILE, report)
    state.wait_for_everyone()
    return report


def evaluated_rows(args: RunArguments, count: int) -> list[int]:
    """Of so many held-out rows the places of those of an evaluation in the middle: `eval_rows`, from first to last."""
    most = count if args.eval_rows is None else min(count, args.eval_rows)
    return [i * count // most for i in range(most)]


def keep_best(trainer: UDMTrainer, args: RunArguments, ready: Preparation) -> BestWeights | None:
    """What keeps the weights of the best evaluation of a run, where it makes any."""
    if not args.keep_best or trainer.eval_dataset is None or args.eval_strategy == "no":
        if args.patience is not None:
            raise ValueError(f"patience={args.patience} counts evaluations of held-out rows, and this run makes none")
        return None
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled or trainer.is_distributed_loading_by_transformers:
        if args.patience is not None:
            raise ValueError("patience goes with one process or with DDP")
        ready.say(
            "note: the last weights are written, not the best: under FSDP and DeepSpeed no process has all of them"
        )
        return None
    best = BestWeights(trainer, args.patience)
    trainer.add_callback(best)
    return best


def describe_best(best: BestWeights | None, steps: int, ready: Preparation) -> dict[str, Any]:
    """What a report says of the weights that were written, which is also said aloud where they are not the last."""
    if best is not None and 0 <= best.step < steps:
        ready.say(f"the weights of step {best.step} are written: their held-out loss is the best of all evaluations")
    return {"best_step": best.step if best is not None and best.weights else None}


def end(report: Mapping[str, Any], and_signals: bool = False) -> None:
    """Ends a command with exit code 130 where Ctrl-C has stopped the run of this report.

    and_signals: with exit code 0 where another signal has, for a command that would go on with the model.
    """
    if report.get("stopped") == "SIGINT":
        raise SystemExit(INTERRUPTED)
    if and_signals and str(report.get("stopped")).startswith("SIG"):
        raise SystemExit(0)


def save(trainer: UDMTrainer, output: Path) -> None:
    """The finished model as files; of one with an adapter the merged model, and the adapter in its own folder."""
    if is_adapted(trainer.model):
        trainer.save_model(str(output / ADAPTER))
        with trainer.averaged_weights():
            merged = merge_adapter(trainer.model)
        trainer.model = trainer.model_wrapped = merged
        trainer.average = None  # its part is in the merged weights
    trainer.save_model()


def describe_training(trainer: UDMTrainer, metrics: Mapping[str, float]) -> dict[str, Any]:
    """What a report says of a training that is over, all its legs together. metrics: what `trainer.train` returned."""
    args, model = trainer.args, trainer.model
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "trained_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "rows_per_step": trainer.rows_per_step,
        "steps": trainer.state.global_step,
        "stopped": trainer.stopped_by,
        "seed": args.seed,
        "learning_rate": args.learning_rate,
        "optim": getattr(args.optim, "value", args.optim),
        "ema_decay": args.ema_decay,
        "train_seconds": trainer.before.train_seconds + metrics["train_runtime"],
        "train_loss": metrics.get("train_loss"),
        "step_noise": trainer.noise.relative,
        "machine": machine(),
        "log": trainer.state.log_history,
    }


def keep_memory(device: torch.device) -> bool:
    """Have a CPU process keep the memory that a step frees for the next one; whether its C library can be told so.

    glibc gives blocks of a megabyte and more back to the system each time they are freed, and the next step waits for
    fresh, zeroed pages (what that costs: docs/benchmarks.md). What is kept is at most the peak of the
    run, as an accelerator's allocator has it. Anything but Linux with glibc, and any accelerator, is left alone.
    Source: mallopt(3).
    """
    if device.type != "cpu" or platform.libc_ver()[0] != "glibc":
        return False
    trim_threshold, top_pad, mmap_max = -1, -2, -4
    settings = {mmap_max: 0, trim_threshold: 2**31 - 1, top_pad: 2**28}
    mallopt = ctypes.CDLL(None).mallopt
    return all(mallopt(name, value) for name, value in settings.items())


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    return {
        "processor": processor_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def processor_name() -> str:
    """The processor as the system names it."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def require_matplotlib() -> None:
    """Fail before training where the plot could not be drawn after it."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise ImportError(
            "the loss plot needs matplotlib: pip install '.[train]' in the folder of udm-text, or give --plot false"
        ) from None
