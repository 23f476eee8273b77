"""What seeds gave before the house was rebuilt: texts, images, losses and bounds of small random models.

`python -m tests.golden.record FILE` writes the figures of the code as it is. `figures.json`, beside this file, changes
only where a result is meant to change; `text/` and `image/` are models as that code saved them.
"""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
from transformers import BertConfig, ModernBertConfig, RobertaConfig

from continuous.degradations import Blur
from continuous.modeling import ImageConfig, ImageDenoiser
from continuous.pipeline import ImagePipeline
from continuous.processes import ColdProcess, GaussianProcess
from continuous.train_image import main as train_image
from udm_text import UDMConfig, UDMForMaskedGeneration
from udm_text.corpus import train_tokenizer
from udm_text.evaluation import evaluate_bound, evaluate_token_repair, measure_curve
from udm_text.randomness import RowRandom
from udm_text.training import TextObjective, UDMTrainer, UDMTrainingArguments

PAD, UNK, CLS, SEP, MASK = range(5)
ROWS = [[CLS, 7, MASK, 9, MASK, MASK, SEP], [CLS, MASK, MASK, MASK, MASK, MASK, 6, 7, 8, SEP]]

TEXTS: dict[str, dict[str, dict[str, Any]]] = {  # a process, and what it is asked
    "mask": {
        "drawn lengths": {"num_return_sequences": 4},
        "one token a step": {"length": 9, "num_return_sequences": 3},
        "cosine": {"length": 9, "num_steps": 4, "schedule": "cosine"},
        "optimal": {"length": 9, "num_steps": 4, "schedule": "optimal"},
        "left to right": {"length": 9, "order": "left_to_right"},
        "confidence": {"length": 9, "order": "confidence", "order_noise": 0.5},
        "margin, two at a time": {"length": 9, "order": "margin", "num_steps": 5},
        "entropy": {"length": 9, "order": "entropy", "temperature": 0.7},
        "threshold": {"length": 9, "threshold": 0.3, "num_return_sequences": 3},
        "threshold, few steps": {"length": 9, "threshold": 0.3, "num_steps": 3},
        "churn": {"length": 9, "churn": 0.4},
        "revise": {"length": 9, "revise": 3, "order": "confidence"},
        "speculate": {"length": 12, "speculate": 3, "num_return_sequences": 3},
        "speculate in order": {"length": 12, "speculate": 4, "order": "left_to_right", "top_k": 5},
        "truncated": {"length": 9, "temperature": 1.5, "top_k": 6, "top_p": 0.8},
        "constraints": {"length": 9, "forbidden_tokens": [7, 8], "allowed_tokens": {2: [9, 10], 5: [11]}},
        "filled in": {"input_ids": "rows"},
        "guided": {"input_ids": "rows", "guidance_scale": 2.0},
        "guided speculation": {"input_ids": "rows", "guidance_scale": 1.5, "speculate": 2},
        "cached": {"length": 9, "cache_refresh": 3},
        "continued": {"input_ids": "prompt", "max_new_tokens": 4},
        "continued to a drawn length": {"input_ids": "prompt", "num_return_sequences": 3},
    },
    "substitute": {
        "drawn lengths": {"num_return_sequences": 4},
        "site": {"length": 9, "kernel": "site"},
        "hamming": {"length": 9, "kernel": "hamming", "churn": 0.3},
        "free": {"length": 9, "kernel": "free", "num_steps": 5, "temperature": 0.8},
        "constraints": {"length": 9, "forbidden_tokens": [7], "allowed_tokens": {3: [9, 10]}, "top_p": 0.9},
        "repaired": {"input_ids": "clean", "max_edits": 2},
        "repaired by chance": {"input_ids": "clean", "max_edits": 3, "temperature": 1.0, "kernel": "hamming"},
    },
}
CLEAN = [[CLS, 7, 8, 11, 10, 9, SEP], [CLS, 12, 5, SEP, PAD, PAD, PAD]]
TRAININGS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {  # of the model, of its objective
    "mask": ({}, {}),
    "substitute": ({"process": "substitute"}, {}),
    "substitute, bound": ({"process": "substitute", "kernel": "hamming"}, {"loss": "nelbo"}),
}
IMAGES: dict[str, dict[str, Any]] = {
    "dpm_solver": {"num_steps": 5},
    "ddim": {"sampler": "ddim", "num_steps": 6, "eta": 0.5, "spacing": "quadratic"},
    "ddpm": {"sampler": "ddpm", "num_steps": 8},
    "ddpm_learned": {"sampler": "ddpm_learned", "num_steps": 8},
    "baseline": {"sampler": "baseline", "num_steps": 4},
    "guided": {"num_steps": 5, "guidance_scale": 2.5},
}


def make_udm(process: str = "mask", family: str = "bert", **fields: Any) -> UDMForMaskedGeneration:
    """A random model of 24 tokens, its weights wide enough that no two positions are predicted alike."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    offset = 1 if family == "roberta" else 0
    common = {**sizes, "vocab_size": 24, "max_position_embeddings": 40 + offset, "pad_token_id": PAD}
    config: Any
    if family == "modernbert":
        none: dict[str, Any] = dict.fromkeys(("bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"))
        local = {"local_attention": 8, "global_attn_every_n_layers": 2, "initializer_cutoff_factor": 2.0}
        config = ModernBertConfig(**common, **none, **local, initializer_range=0.3)
    else:
        config = {"bert": BertConfig, "roberta": RobertaConfig}[family](**common, initializer_range=0.3)
    special = {"mask_token_id": MASK, "pad_token_id": PAD, "special_token_ids": [UNK]}
    frame = {"prefix_token_ids": [CLS], "suffix_token_ids": [SEP]}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = UDMForMaskedGeneration(UDMConfig(text_config=config, process=process, **special, **frame, **fields))
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim == 1 or not bool(parameter.any()):
                    parameter.add_(0.2 * torch.randn_like(parameter))
    return model.eval()


def make_rows(number: int) -> list[dict[str, Any]]:
    """Rows of 1 to 9 tokens, every fifth with an unknown one."""
    rows = []
    for i, u in enumerate(RowRandom(2, torch.arange(number)).uniform(10).tolist()):
        ids = [5 + int(19 * x) for x in u[1 : 2 + int(9 * u[0])]]
        rows.append({"input_ids": [CLS, *ids, *([UNK] if i % 5 == 4 else []), SEP], "num_chars": 3 * len(ids)})
    return rows


def texts() -> dict[str, Any]:
    """Token ids and steps."""
    rows = torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in ROWS], batch_first=True)
    inputs = {"rows": rows, "prompt": torch.tensor([[CLS, 11, 7, SEP]]), "clean": torch.tensor(CLEAN)}
    found = {}
    for process, uses in TEXTS.items():
        for family in ("bert", "roberta", "modernbert") if process == "mask" else ("bert", "modernbert"):
            counts, curve = [0, 1, 0, 4, 5, 2, 1], [0.5, 1.0, 2.0, 2.5]
            model = make_udm(
                process, family=family, length_counts=counts, step_curve=curve if process == "mask" else None
            )
            for name, how in uses.items():
                how = {**how, "seed": 3, "return_dict_in_generate": True}
                if "input_ids" in how:
                    how["input_ids"] = inputs[how["input_ids"]]
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # of guidance without dropped prompts
                    out = model.generate(**how)
                found[f"{process}, {family}: {name}"] = {"tokens": out.sequences.tolist(), "steps": out.steps.tolist()}
    model = make_udm("mask", separator_token_ids=[SEP], length_counts=[0, 2, 3, 1])
    prompt = torch.tensor([[CLS, 11, 7, SEP], [CLS, 9, SEP, PAD]])
    found["mask: answers"] = {"tokens": model.generate(prompt, seed=1).tolist()}
    begun = torch.tensor([[CLS, 11, 7, SEP, MASK, 8, SEP]])
    found["mask: begun answer"] = {"tokens": model.generate(begun, seed=1).tolist()}
    return found


def bounds() -> dict[str, Any]:
    """Figures of evaluations."""
    rows, found = make_rows(24), {}
    mask, substitute = make_udm("mask", length_counts=[0] + [3] * 10), make_udm("substitute")
    for name, model, how in (
        ("mask", mask, {}),
        ("mask, 3 steps", mask, {"num_steps": 3, "schedule": "cosine"}),
        *((f"substitute, {kernel}", substitute, {"kernel": kernel}) for kernel in ("site", "hamming", "free")),
    ):
        report = evaluate_bound(model, rows, draws=3, **how).to_dict()
        found[name] = {key: report[key] for key in ("nelbo_nats_per_token", "bits_per_char", "bits_per_char_stderr")}
    found["curve"] = measure_curve(mask, rows, draws=4, points=5).to_dict()["curve"]
    found["repair"] = evaluate_token_repair(substitute, rows).to_dict()
    return found


def trainings(folder: Path) -> dict[str, Any]:
    """Losses and gradient norms of a few steps."""
    found: dict[str, Any] = {}
    for name, (own, how) in TRAININGS.items():
        where = {"output_dir": str(folder / name), "use_cpu": True, "report_to": "none", "disable_tqdm": True}
        steps = {"max_steps": 5, "per_device_train_batch_size": 8, "logging_steps": 1, "save_strategy": "no"}
        arguments = UDMTrainingArguments(**where, **steps, learning_rate=1e-3, ema_decay=0.9)
        sets, model = {"train_dataset": make_rows(40), "eval_dataset": make_rows(9)}, make_udm(**own)
        trainer = UDMTrainer(model, arguments, objective=TextObjective(model.config, **how), **sets)
        trainer.train()
        losses = [[entry["loss"], entry["grad_norm"]] for entry in trainer.state.log_history if "loss" in entry]
        found[name] = {"losses": losses, "held out": trainer.evaluate()["eval_loss"]}
    quiet = "--report_to none --disable_tqdm true --use_cpu --plot false --per_device_train_batch_size 32 --max_steps 4"
    small = ["--network_options", '{"width": 16, "blocks": 1}', "--times", "50"]
    for name, more in {
        "vp": [],
        "importance": ["--importance", "--weighting", "min_snr", "--flip", "true"],
        "vlb": ["--weighting", "vlb", "--learned_variance", "--process", "rf", "--prediction", "x0"],
        "cold": [
            "--process",
            "cold",
            "--times",
            "8",
            "--degradation_options",
            '{"std": 2.0}',
            "--conditional",
            "false",
        ],
    }.items():
        output = folder / f"image-{name}"
        train_image(["--output", str(output), *quiet.split(), "--logging_steps", "1", *small, *more])
        report = json.loads((output / "report.json").read_text())
        losses = [entry["loss"] for entry in report["log"] if "loss" in entry]
        found[f"images, {name}"] = {"losses": losses, "held out": report["validation"]["loss"]}
    return found


def images() -> dict[str, Any]:
    """Pixels."""

    def make(process: Any, **more: Any) -> ImagePipeline:
        network = {"kind": "mlp", "width": 16, "blocks": 1}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = ImageDenoiser(ImageConfig(process=process.to_dict(), network=network, **more))
            for p in model.parameters():
                torch.nn.init.normal_(p, std=0.3)
        return ImagePipeline(model)

    hot = make(GaussianProcess.vp("cosine", 20), learned_variance=True, classes=["a", "b"], image_shape=[1, 3, 3])
    cold = make(ColdProcess(Blur(T=6, std=2.0)), prediction="x0", image_shape=[1, 3, 3])
    made = {name: hot.generate(3, [0, 1, 0], seed=5, **how) for name, how in IMAGES.items()}
    editable = torch.zeros(1, 1, 3, 3, dtype=torch.bool)
    editable[..., 1:] = True
    made["edited"] = hot.edit(made["ddim"], editable, label=1, start=12, num_steps=6, seed=2)
    made["degraded"] = cold.degrade(made["ddim"], 4, seed=1)
    made["restored"] = cold.restore(made["degraded"], 4, seed=1)
    made["restored naively"] = cold.restore(made["degraded"], 4, churn=1.0, seed=1)
    return {name: [round(x, 5) for x in pixels.flatten().tolist()] for name, pixels in made.items()}


def tokenizers() -> dict[str, str]:
    """Digests of the vocabularies of a small corpus."""
    corpus = [f"{a} {b}, {c}." for a in ("Alpha", "beta", "gamma") for b in ("left", "right") for c in ("ran", "stood")]
    return {
        kind: hashlib.sha256(train_tokenizer(kind, corpus, 300).backend_tokenizer.to_str().encode()).hexdigest()
        for kind in ("char", "wordpiece", "bpe")
    }


def draw(pipe: ImagePipeline) -> torch.Tensor:
    """(2, 1, 4, 4) images of a saved model."""
    return pipe.generate(2, "all", num_steps=4, seed=0)


def save(folder: Path) -> None:
    """A text model and an image model, as the code of the day saves them, and what they make."""
    model = make_udm(length_counts=[0, 1, 3, 2], step_curve=[0.5, 1.0, 2.0])
    model.generation_config.num_steps = 5
    model.save_pretrained(folder / "text")
    (folder / "text" / "written.json").write_text(json.dumps(model.generate(num_return_sequences=4, seed=0).tolist()))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = {"kind": "mlp", "width": 16, "blocks": 1, "condition": 16}
        model = ImageDenoiser(ImageConfig(image_shape=[1, 4, 4], classes=["a", "b"], levels=17, network=network))
        for p in model.parameters():
            torch.nn.init.normal_(p, std=0.3)
    pipe = ImagePipeline(model)
    pipe.save_pretrained(folder / "image")
    (folder / "image" / "drawn.json").write_text(json.dumps(draw(pipe).tolist()))


def record(folder: Path) -> dict[str, Any]:
    """Every figure; runs are written below `folder`."""
    parts = {"texts": texts(), "bounds": bounds(), "images": images(), "tokenizers": tokenizers()}
    return {**parts, "training": trainings(folder)}


if __name__ == "__main__":
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        Path(sys.argv[1]).write_text(json.dumps(record(Path(scratch)), indent=1) + "\n")
