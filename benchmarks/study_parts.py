"""What the study compares: corpora, ways to train and to draw, racers, figures of samples."""

from __future__ import annotations

from typing import Any

import corruptions

CORPORA = {"names": "Unicode names", "molecules": "molecules", "tang": "Tang verse"}
EVEN = ["--loss_weighting", "bound", "--time_law", "uniform"]
WAYS = {
    **{way: ["--process", way] for way in corruptions.WAYS},
    "uniform t": ["--time_law", "uniform"],
    "clipped t": ["--time_law", "clipped"],
    "weights of the bound": EVEN,
    "Bernoulli masks": EVEN,
}
"""Options of `udm train` by name; "mask" is today's default, t of a bell."""
TRAINED = {
    "corruptions": corruptions.WAYS,
    "laws": ("mask", "uniform t", "clipped t", "weights of the bound"),
    "counts": ("weights of the bound", "Bernoulli masks"),
}
"""Parts that compare training runs; the first way is what the others are compared with."""
STEPS = {"names": 450, "molecules": 900, "tang": 320}
"""Of a run where what is compared is what a step teaches, not how long it takes: what 60 s came to, by the corpus."""
KINDS = {"corruptions": "train", "laws": "steps", "counts": "steps"}
"""What the runs of a part are called by: those of equal time, from which others draw, or those of equal steps."""
DRAWN: dict[str, dict[str, tuple[str, dict[str, Any]]]] = {
    "drawn": {
        "mask": ("mask", {"order": "random"}),
        "delete": ("delete", {}),
        "substitute": ("substitute", {"kernel": "site"}),
        "uniform": ("uniform", {"churn": 0.0}),
    },
    "kernels": {kernel: ("substitute", {"kernel": kernel}) for kernel in ("site", "hamming", "free")},
    "orders": {order: ("mask", {"order": order}) for order in ("random", "confidence", "margin", "entropy")},
    "churn": {
        f"{way}, churn {churn:g}": (way, {"churn": churn, **({"kernel": "hamming"} if way == "substitute" else {})})
        for way in ("mask", "substitute", "uniform")
        for churn in (0.0, 0.25, 0.5, 1.0)
    },
}
"""Parts that compare ways to draw: of which model, and options of the generation."""
ACROSS = ("drawn",)
"""Those of them that compare models with each other, and not the ways of one."""
RACE, RACERS = "race", {"diffusion": [], "twin": ["--objective", "ar"]}
PARTS = (RACE, "laws", "counts", "corruptions", *DRAWN)
RACE_ROWS, RACE_BATCH = (2_000, 20_000), 64
FIGURES = ("known_grams", "distinct_2", "self_bleu", "word_entropy", "copies")
"""Of samples, beside those of held-out texts (`compare_samples`)."""
CALLS = {"all": "a call a token", "quarter": "a call for four tokens"}
SOUND = {"names": "made_of_words", "molecules": "valid"}
"""The share of samples that are what they should be, where that can be told: of known words; read by RDKit."""
FULL = ("tiny", 60.0)
"""Model and seconds of a run of full size, the defaults."""
