"""Ways back from a degradation: at once, step by step and naive, step by step and improved, on held-out images.

    python benchmarks/images.py                          # blur, missing pixels, lost resolution; digits
    python benchmarks/images.py --steps 2000 --json images.json
    python benchmarks/images.py --data PATH --network unet --steps 20000     # a folder with MNIST's idx files, say

For each degradation a model is trained (into a folder that is thrown away, unless --output is given), and all held-out
images (at most --rows) are restored. The table is that of Cold Diffusion (arXiv 2208.09392), with the RMSE in
the range [-1, 1] and a Frechet distance on the features of a classifier of the training part.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import torch

from continuous.data import load_images
from continuous.evaluation import restorations, train_classifier
from continuous.pipeline import ImagePipeline
from continuous.train_image import main as train


def degradations(side: int) -> dict[str, tuple[str, dict, int | None]]:
    """Name, parameters and the t that is restored from (None: T), for images of `side` pixels."""
    factors = [1, 2, 4] if side % 4 == 0 else [1, 2]
    return {
        "blur": ("blur", {"T": 20, "std": 2.5 * side / 8}, None),
        "missing pixels": ("pixel_mask", {"T": 16, "order": "random"}, 10),
        "resolution": ("pool", {"factors": factors}, None),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", default="digits", help="as for udm image train")
    parser.add_argument("--steps", type=int, default=400, help="training steps of each model")
    parser.add_argument("--network", default=None, help="mlp or unet")
    parser.add_argument("--rows", type=int, default=500, help="held-out images at most")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--output", type=Path, default=None, help="keep the models here")
    parser.add_argument("--json", type=Path, default=None)
    how = parser.parse_args()
    if how.threads:
        torch.set_num_threads(how.threads)
    splits = load_images(how.data)
    held = splits.validation.take(torch.arange(min(how.rows, len(splits.validation))))
    classifier = train_classifier(splits.train)
    found = {}
    with tempfile.TemporaryDirectory() as scratch:
        for name, (kind, parameters, t) in degradations(splits.train.shape[1]).items():
            folder = (how.output or Path(scratch)) / kind
            arguments = ["--data", how.data, "--output", str(folder), "--max_steps", str(how.steps)]
            arguments += ["--process", "cold", "--degradation", kind, "--degradation_options", json.dumps(parameters)]
            arguments += ["--conditional", "false", "--report_to", "none", "--plot", "false", "--seed", str(how.seed)]
            arguments += ["--eval_strategy", "no"]  # the last weights of every model, as they were always compared
            train([*arguments, *(["--network", how.network] if how.network else [])])
            figures = restorations(ImagePipeline.from_pretrained(folder), held, classifier, t, how.seed)
            found[name] = {way: figure.to_dict() for way, figure in figures.items()}
    ways = ("degraded", "direct", "naive", "improved")
    print(f"\nRMSE / Frechet distance on {len(held)} held-out images, {how.steps} training steps")
    print(f"{'':<16}" + "".join(f"{way:>20}" for way in ways))
    for name, figures in found.items():
        print(f"{name:<16}" + "".join(f"{figures[w]['rmse']:>11.4f} /{figures[w]['frechet']:>7.3f}" for w in ways))
    if how.json:
        how.json.write_text(json.dumps({"arguments": vars(how), "figures": found}, indent=2, default=str) + "\n")


if __name__ == "__main__":
    main()
