"""Small runs for the tests of training; as a script, the worker of the two-process test."""

import json
import os
import signal
import sys
from pathlib import Path

import torch
from accelerate import PartialState
from safetensors.torch import save_file
from transformers import TrainerCallback

from tests.models import make_rows, make_udm
from udm_text import UDMForMaskedGeneration
from udm_text.training import TextObjective, UDMTrainer, UDMTrainingArguments

QUIET = {"report_to": "none", "disable_tqdm": True, "use_cpu": True, "logging_steps": 1}
UNTRAINED = 1 / 15
"""The `scale` of a model that training begins with, its weights as BERT's.

The gradient of a key's bias is nothing but rounding; from wider weights it is too large for Adam to pass over, and two
splits of one step no longer agree.
"""
VARIANTS = {
    "mask": {"process": "mask"},
    "substitute": {"process": "substitute"},
    "substitute nelbo": {"process": "substitute", "kernel": "hamming", "loss": "nelbo"},
}
TRAINED = {**VARIANTS, "muon": {"process": "mask", "optim": "muon"}}
"""Variants, and other ways to train one."""
SPLITS = {"1 x 16": (16, 1), "4 x 4": (4, 4), "16 x 1": (1, 16)}
"""Rows of a micro-step and accumulated micro-steps; the two-process run takes 2 x (2 x 4)."""


def make_trainer(
    output,
    variant="mask",
    *,
    model=None,
    family="bert",
    rows=None,
    dropout=0.0,
    eval_dataset=None,
    objective=None,
    **args,
):
    """A `UDMTrainer` of 16 rows a step and 20 steps on a small model."""
    own = dict(TRAINED[variant])
    args = {name: own.pop(name) for name in ("optim",) if name in own} | args
    goal = {"loss": own.pop("loss")} if "loss" in own else {}
    goal |= {name: args.pop(name) for name in ("loss", "max_corruption", "loss_chunk") if name in args}
    defaults = {"max_steps": 20, "per_device_train_batch_size": 16, "learning_rate": 1e-3, "save_strategy": "no"}
    arguments = UDMTrainingArguments(output_dir=str(output), **{**QUIET, **defaults, **args})
    rows = make_rows(90) if rows is None else rows
    model = make_udm(family=family, dropout=dropout, scale=UNTRAINED, **own) if model is None else model
    if goal:
        goal |= {"eval_draws": arguments.eval_draws, "eval_batch_size": arguments.per_device_eval_batch_size}
        objective = TextObjective(model.config, **goal)
    return UDMTrainer(model, arguments, objective=objective, train_dataset=rows, eval_dataset=eval_dataset)


def say_it_is_sharded(monkeypatch, model):
    """The model says of itself what one says whose weights no process has whole."""
    monkeypatch.setattr(type(model), "is_distributed_loading_by_transformers", True)


def weights(trainer):
    """(name: value) of every parameter, as they are now."""
    return {name: p.detach().clone() for name, p in trainer.model.named_parameters()}


def history(trainer, *names):
    """(steps, names) float64: what was logged at each step."""
    log = [[entry[name] for name in names] for entry in trainer.state.log_history if "loss" in entry]
    return torch.tensor(log, dtype=torch.float64)


def interrupted(output: Path) -> dict:
    """A run that only the second process is told to stop, resumed; and one that nobody disturbs."""
    how = {"ema_decay": 0.9, "dropout": 0.1, "max_steps": 9, "per_device_train_batch_size": 8}

    class Signalled(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == 4 and args.process_index == 1:
                os.kill(os.getpid(), signal.SIGUSR1)

    whole = make_trainer(output / "whole", **how)
    whole.train()
    first = make_trainer(output / "stopped", **how)
    first.add_callback(Signalled())
    first.train()
    second = make_trainer(output / "stopped", **how)
    second.train(resume_from_checkpoint=True)
    same = all(torch.equal(value, weights(second)[name]) for name, value in weights(whole).items())
    averages = whole.average.average, second.average.average
    same_average = all(torch.equal(value, averages[1][name]) for name, value in averages[0].items())
    return {
        "stopped_by": first.stopped_by,
        "stopped_at": first.state.global_step,
        "ended_at": second.state.global_step,
        "same": same,
        "same_average": same_average,
    }


def sharded(output: Path, family: str = "bert", layers: str = "backbone.bert.encoder.layer.*") -> dict:
    """20 steps of a model whose weights are spread over both processes by FSDP2, as transformers loads it."""
    from transformers.distributed import DistributedConfig

    state = PartialState()
    if state.is_main_process:
        make_udm(family=family, scale=UNTRAINED).save_pretrained(output / "base")
    state.wait_for_everyone()
    spread = DistributedConfig(fsdp_size=2, fsdp_plan={layers: "free_full_weight"})
    model = UDMForMaskedGeneration.from_pretrained(output / "base", distributed_config=spread)
    trainer = make_trainer(output / "sharded", model=model, per_device_train_batch_size=8)
    trainer.train()
    metrics = trainer.evaluate(make_rows(31, seed=1))
    trainer.save_model(str(output / "sharded" / "model"))
    kinds = sorted({type(p.data).__name__ for p in model.parameters()})
    return {"kinds": kinds, "history": history(trainer, "loss", "grad_norm").tolist(), "metrics": metrics}


def spread_decoder(output: Path) -> None:
    """What each of two processes does of a decoder; the first writes it down."""
    state = PartialState(cpu=True)
    record = sharded(output, "llama", "backbone.model.layers.*")
    if state.is_main_process:
        (output / "decoder.json").write_text(json.dumps(record))


def work(output: Path, toy: Path) -> None:
    """What each of the two processes does; the first writes it down."""
    from udm_text.cli.train_text import main

    more = {"interrupted": interrupted(output), "sharded": sharded(output)}
    if PartialState().is_main_process:
        (output / "more.json").write_text(json.dumps(more))
    for variant in TRAINED:
        trainer = make_trainer(
            output / "trainer", variant, per_device_train_batch_size=4, gradient_accumulation_steps=2
        )
        trainer.train()
        metrics = trainer.evaluate(make_rows(31, seed=1))
        if trainer.args.process_index == 0:
            save_file(weights(trainer), output / f"{variant}.safetensors")
            record = {
                "world_size": trainer.args.world_size,
                "num_processes": trainer.accelerator.num_processes,
                "history": history(trainer, "loss", "grad_norm").tolist(),
                "metrics": metrics,
            }
            (output / f"{variant}.json").write_text(json.dumps(record))
    options = "--model tiny --max_steps 4 --per_device_train_batch_size 4 --use_cpu --report_to none --plot false"
    main(["--data", str(toy), "--output", str(output / "text"), *options.split()])


if __name__ == "__main__":
    torch.set_num_threads(1)
    if len(sys.argv) == 2:
        spread_decoder(Path(sys.argv[1]))
    else:
        work(Path(sys.argv[1]), Path(sys.argv[2]))
