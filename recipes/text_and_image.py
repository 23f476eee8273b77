"""Names of classes and images made together, either from nothing, from the other, or both: one network, two clocks.

    python recipes/text_and_image.py train --data MNIST_FOLDER --output runs/both --max_seconds 600
    python recipes/text_and_image.py generate runs/both -o both.png -n 40
    python recipes/text_and_image.py generate runs/both -o threes.png -n 10 --text three
    python recipes/text_and_image.py read runs/both three.png
    python recipes/text_and_image.py evaluate runs/both

`--data` is what it is for `udm image train`; `digits`, those of scikit-learn, needs no files. The text of an image is
the name of its class, a letter a token, dots behind it. Text is corrupted by masks and images by Gaussian noise, each
at a t of its own (`continuous/product.py`); a clock that stands at 0 gives its part, so one training serves all uses.
"""

from __future__ import annotations

import dataclasses
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # idle CPU threads spin less; read when torch is imported

import torch  # noqa: E402
import typer  # noqa: E402
from huggingface_hub.dataclasses import strict  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from torch.nn import functional  # noqa: E402
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel  # noqa: E402

from continuous import GaussianProcess, save_grid  # noqa: E402
from continuous.data import ImageSplits, collate_images, load_images, read_image  # noqa: E402
from continuous.evaluation import train_classifier  # noqa: E402
from continuous.networks import TimeEmbedding  # noqa: E402
from continuous.objectives import draw_times  # noqa: E402
from continuous.product import ProductProcess, in_turn, sample_product, together  # noqa: E402
from continuous.train_image import DataArguments  # noqa: E402
from udm_text.common import check_place, eval_mode, read_object, share_in_words, watched  # noqa: E402
from udm_text.core import Prediction  # noqa: E402
from udm_text.decoding import draw  # noqa: E402
from udm_text.processes import MaskProcess  # noqa: E402
from udm_text.randomness import RowRandom, step_random  # noqa: E402
from udm_text.training import UDMTrainer  # noqa: E402
from udm_text.training.optimizers import MUON, best_optimizer, muon_rate  # noqa: E402
from udm_text.training.resuming import digest_rows  # noqa: E402
from udm_text.training.runs import RunArguments, describe_best, end, evaluated_rows, keep_best, parse, prepare  # noqa: E402
from udm_text.training.runs import run as carry_out  # noqa: E402

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, no_args_is_help=True)

DIGITS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
FILL = "."
"""What stands behind a name that is shorter than the longest."""
CLEAN = 0.25
"""Share of the rows of a step whose text is clean, and of those whose image is: what generating from it needs."""
ORDERS = ("together", "text", "image")
"""Which part of a pair is made first."""


@strict
class PairConfig(PreTrainedConfig):
    """What a model of texts and images is.

    Args:
        names (`list[str]`): the texts. image_shape (`list[int]`): channels, height, width.
        process (`dict`): `to_dict()` of the `GaussianProcess` of images; text is masked.
        patch (`int`): side of the squares of an image that are read as one token.
        backbone (`dict`): "model_type" and fields of a bidirectional encoder of transformers.
    """

    model_type = "udm-text-and-image"

    names: list[str] | None = None
    image_shape: list[int] | None = None
    process: dict | None = None
    patch: int = 4
    backbone: dict | None = None

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        self.names = list(self.names or DIGITS)
        self.image_shape = list(self.image_shape or (1, 8, 8))
        self.process = dict(self.process or GaussianProcess.vp().to_dict())
        self.backbone = dict(self.backbone or {})
        if any(not name or FILL in name for name in self.names):
            raise ValueError(f"names must be texts without {FILL!r}, got {self.names}")
        if self.patch < 1 or any(side % self.patch for side in self.image_shape[1:]):
            raise ValueError(f"patch must divide height and width, got {self.patch} for images of {self.image_shape}")

    @property
    def letters(self) -> list[str]:
        """The tokens; [MASK] is the number behind them."""
        return sorted(set(FILL.join(self.names)) | {FILL})

    @property
    def length(self) -> int:
        """Tokens of a text."""
        return max(map(len, self.names))

    def encode(self, names: list[str]) -> Tensor:
        """(B, length) int64."""
        number = {letter: i for i, letter in enumerate(self.letters)}
        for name in names:
            if len(name) > self.length or not set(name) <= set(number):
                raise ValueError(
                    f"text must be of at most {self.length} of the letters {''.join(number)}, got {name!r}"
                )
        return torch.tensor([[number[letter] for letter in name.ljust(self.length, FILL)] for name in names])

    def decode(self, text: Tensor) -> list[str]:
        """The texts of (B, length) tokens, without the dots behind them."""
        return ["".join(self.letters[token] for token in row).rstrip(FILL) for row in text.tolist()]


class PairModel(PreTrainedModel):
    """One transformer over the letters of a text and the patches of an image, each part told its own t.

    `forward` gives logits of letters and what is predicted of the image, v.
    """

    config_class = PairConfig
    main_input_name = "text"
    base_model_prefix = "body"

    def __init__(self, config: PairConfig):
        super().__init__(config)
        channels, height, width = config.image_shape
        self.squares = channels * config.patch**2
        fields = {"model_type": "nomic_bert", "hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4}
        fields |= config.backbone
        size = fields["hidden_size"]
        fields = {"vocab_size": 1, "pad_token_id": 0, "type_vocab_size": 2, "intermediate_size": 2 * size, **fields}
        count = config.length + height * width // config.patch**2
        self.body = AutoModel.from_config(AutoConfig.for_model(**fields))
        self.body.set_input_embeddings(None)  # it reads letters and patches
        self.letter = nn.Embedding(len(config.letters) + 1, size)
        self.square = nn.Linear(self.squares, size)
        self.place = nn.Parameter(0.02 * torch.randn(count, size))
        self.times = nn.ModuleList(TimeEmbedding(size) for _ in range(2))
        self.to_letter, self.to_square = nn.Linear(size, len(config.letters)), nn.Linear(size, self.squares)
        nn.init.zeros_(self.to_square.weight)
        self._process: ProductProcess | None = None
        self.post_init()

    def _init_weights(self, module: Any) -> None:
        """The parts initialise themselves."""

    @property
    def process(self) -> ProductProcess:
        """Masks and Gaussian noise."""
        if self._process is None:
            with torch.device("cpu"):
                images = GaussianProcess.from_dict(self.config.process)
            self._process = ProductProcess(MaskProcess(len(self.config.letters)), images)
        return self._process

    def forward(self, text: Tensor, image: Tensor, t_text: Tensor, t_image: Tensor) -> tuple[Tensor, Tensor]:
        """text (B, L) int64, image (B, C, H, W), their t (B,) -> logits (B, L, letters), v (B, C, H, W)."""
        config, images = self.config, self.process.parts[1]
        squares = functional.unfold(image.float(), config.patch, stride=config.patch).transpose(1, 2)
        hidden = torch.cat((self.letter(text), self.square(squares.to(self.dtype))), 1) + self.place
        ratios = t_text.double() / config.length, t_image.double() / images.T
        for embed, ratio in zip(self.times, ratios, strict=True):
            hidden = hidden + embed(ratio, hidden.dtype)[:, None]
        kinds = (torch.arange(hidden.shape[1], device=text.device) >= config.length).long().expand(hidden.shape[:2])
        hidden = self.body(inputs_embeds=hidden, token_type_ids=kinds).last_hidden_state
        v = self.to_square(hidden[:, config.length :]).float().transpose(1, 2)
        v = functional.fold(v, config.image_shape[1:], config.patch, stride=config.patch)
        return self.to_letter(hidden[:, : config.length]).float(), v

    @torch.no_grad()
    def generate(
        self,
        num: int,
        *,
        text: list[str] | None = None,
        images: Tensor | None = None,
        num_steps: int = 50,
        order: str = "together",
        eta: float = 1.0,
        seed: int | None = None,
        batch_size: int = 256,
    ) -> tuple[list[str], Tensor]:
        """Texts and images (num, C, H, W) in [-1, 1] on the CPU; what is given stays as it is. By (seed, row) alone.

        Args:
            text: a text for each, to make images of. images: (num, C, H, W), to be named.
            num_steps: of each part. order: of pairs from nothing, which part is made first, one of `ORDERS`.
            eta: of images: share of the noise of DDPM.
        """
        if order not in ORDERS:
            raise ValueError(f"order must be one of {', '.join(ORDERS)}, got {order!r}")
        if text is not None and images is not None:
            raise ValueError("give text or images: with both nothing is left to make")
        for name, given in (("text", text), ("images", images)):
            if given is not None and len(given) != num:
                raise ValueError(f"{name} must hold {num}, one for each row, got {len(given)}")
        parts = self.process.parts
        tops = (0 if text is not None else self.config.length, 0 if images is not None else parts[1].T)
        if order == "together" or 0 in tops:
            clocks = together(tops, max(num_steps, tops[0]))
        else:
            clocks = in_turn(tops, num_steps, (0, 1) if order == "text" else (1, 0))
        letters = torch.zeros(num, self.config.length, dtype=torch.int64) if text is None else self.config.encode(text)
        blank = torch.zeros(num, *self.config.image_shape) if images is None else images.float()
        seed = RowRandom.fresh(1).seed if seed is None else seed
        made: list[tuple[Tensor, Tensor]] = []
        with eval_mode(self):
            for rows in torch.arange(num).split(batch_size):
                random = RowRandom(seed, rows.to(self.device))
                x = letters[rows].to(self.device), blank[rows].to(self.device)
                predict = self._predictor(random, eta)
                drawn = sample_product(self.process, predict, x, clocks, random=random)
                made.append((drawn[0].cpu(), drawn[1].cpu()))
        words, pictures = (torch.cat(part) for part in zip(*made, strict=True))
        return self.config.decode(words), pictures.clamp(-1, 1) if images is None else images

    def _predictor(self, random: RowRandom, eta: float) -> Any:
        """predict_x0 of pairs: letters drawn each from its law, and the mean image."""
        masks, images = self.process.parts

        def predict(xt: Any, t: Any, s: Any) -> Prediction:
            logits, v = self(*xt, *t)
            letters = draw(logits.double().flatten(0, 1), random.uniform(logits.shape[1]).flatten()).view(xt[0].shape)
            letters = torch.where(masks.corrupted(xt[0]), letters, xt[0])  # what is known of x0 stays
            x0 = images.to_x0("v", v.double(), xt[1].double(), t[1]).float().clamp(-1, 1)
            later = t[1].clamp(min=1)  # of an image that stands at 0 nothing is used
            churn = eta * images.ancestral_churn(later, s[1].minimum(later))
            return Prediction((letters, x0), churn=(0.0, churn))

        return predict


class PairObjective:
    """An `Objective` (see udm_text/training/trainer.py) for `PairModel`: the sum of both parts' losses, t drawn apart.

    Of text the bound, l/t times the cross-entropy of the masked letters; of images `image_weight` times the mean
    squared error of v. In a share of the rows text is clean, in another images are.
    """

    def __init__(self, config: PairConfig, image_weight: float = 30.0, eval_batch_size: int = 256):
        self.config, self.image_weight, self.eval_batch_size = config, image_weight, eval_batch_size
        self.texts = config.encode(config.names)
        self.T = GaussianProcess.from_dict(config.process).T

    collate = staticmethod(collate_images)

    def begin(self) -> None:
        """Nothing was measured on the weights before."""

    def lengths(self, dataset: Any) -> None:
        """Rows are all alike."""

    def num_items(self, inputs: dict[str, Tensor]) -> int:
        """Rows."""
        return len(inputs["images"])

    def row_terms(
        self, model: Any, inputs: dict[str, Tensor], *, row_index: Tensor, total: int, step: int, seed: int
    ) -> Tensor:
        """(B,) losses."""
        device = inputs["images"].device
        random = step_random(seed, step, row_index.to(device))
        t_image, _ = draw_times(self.T, row_index.to(device), total, seed, step)
        which, share = random.uniform(2).unbind(1)
        t_text = (share * self.config.length).long().clamp(max=self.config.length - 1) + 1
        t_text = torch.where(which < CLEAN, 0, t_text)
        t_image = torch.where((which >= CLEAN) & (which < 2 * CLEAN), 0, t_image)
        return sum(self.terms(model, inputs, t_text, t_image, random))  # type: ignore[return-value]

    def terms(
        self, model: Any, inputs: dict[str, Tensor], t_text: Tensor, t_image: Tensor, random: RowRandom
    ) -> tuple[Tensor, Tensor]:
        """(B,) of text and of images; 0 where a part is clean."""
        own = getattr(model, "module", model)
        masks, images = own.process.parts
        text, image = self.texts.to(t_text.device)[inputs["labels"]], inputs["images"]
        noise = own.process.sample_noise((text, image), random=random)
        xt = own.process.corrupt((text, image), (t_text, t_image), noise)
        logits, v = model(*xt, t_text, t_image)
        nats = functional.cross_entropy(logits.transpose(1, 2), text, reduction="none") * masks.corrupted(xt[0])
        off = (v - images.target("v", image, noise[1], t_image)).square().flatten(1).mean(1)
        of_text = nats.sum(1) * self.config.length / t_text.clamp(min=1)
        return of_text, self.image_weight * torch.where(t_image > 0, off, 0.0)

    @torch.no_grad()
    def evaluate(self, trainer: Any, dataset: Any) -> dict[str, float]:
        """The loss on held-out rows by one fixed seed."""
        mine, count = trainer.own_rows(len(dataset)), len(dataset)
        totals = torch.zeros(len(mine), dtype=torch.float64)
        with eval_mode(trainer.model):
            for start in watched(range(0, len(mine), self.eval_batch_size), "held-out pairs"):
                part = mine[start : start + self.eval_batch_size]
                batch = {n: x.to(trainer.args.device) for n, x in collate_images(dataset.__getitems__(part)).items()}
                index = torch.tensor(part)
                found = self.row_terms(trainer.model, batch, row_index=index, total=count, step=0, seed=0)
                totals[start : start + len(part)] = found.double().cpu()
        return {"loss": float(trainer.gather_rows(totals, mine, count).mean())}


@dataclass
class PairArguments:
    """What to train."""

    times: int = field(default=1000, metadata={"help": "T, steps of the noise on images."})
    patch: int | None = field(default=None, metadata={"help": "Side of a patch; default: 7 of 28, 2 of 8, else 4."})
    width: int = field(default=128, metadata={"help": "Width of the network."})
    layers: int = field(default=4, metadata={"help": "Its layers."})
    heads: int = field(default=4, metadata={"help": "Heads of each."})


DEFAULTS = {"max_steps": 2000, "per_device_train_batch_size": 128, "per_device_eval_batch_size": 256}
DEFAULTS |= {"eval_strategy": "steps", "eval_steps": 0.25, "eval_rows": 512, "save_steps": 0.5, "ema_decay": 0.995}


def train_model(arguments: list[str]) -> dict[str, Any]:
    """Train and write a model; returns what report.json holds."""
    data, kind, run = parse(
        (DataArguments, PairArguments, RunArguments), arguments, "text_and_image.py train", DEFAULTS
    )
    with prepare(run, {"data": data, "model": kind}) as ready:
        return ready.finished if ready.finished is not None else _train(data, kind, run, ready)


def splits_of(data: DataArguments) -> ImageSplits:
    """The images, with classes."""
    found = load_images(data.data, size=data.image_size, channels=data.channels, validation_share=data.validation_share)
    if not found.train.num_classes:
        raise ValueError(f"the text of an image is the name of its class, and {data.data} has no classes")
    return found


def names_of(classes: list[str]) -> list[str]:
    """Classes as texts: digits by their names."""
    return DIGITS if classes == [str(i) for i in range(10)] else classes


def _train(data: DataArguments, kind: PairArguments, run: RunArguments, ready: Any) -> dict[str, Any]:
    with ready.state.main_process_first():
        splits = splits_of(data)
    train, held = splits.train, splits.validation
    config = PairConfig(
        names=names_of(train.classes or []),
        image_shape=list(train.shape),
        process=GaussianProcess.vp("cosine", kind.times).to_dict(),
        patch=kind.patch or {28: 7, 8: 2}.get(train.shape[1], 4),
        backbone={"hidden_size": kind.width, "num_hidden_layers": kind.layers, "num_attention_heads": kind.heads},
    )
    model = PairModel(config)
    run.optim = run.optim or best_optimizer(run.device)
    if run.learning_rate is None:
        run.learning_rate = muon_rate(run.per_device_train_batch_size) if run.optim == MUON else 1e-3
    objective = PairObjective(config, eval_batch_size=run.per_device_eval_batch_size)
    some = held.take(torch.tensor(evaluated_rows(run, len(held))))
    trainer = UDMTrainer(model, run, objective=objective, train_dataset=train, eval_dataset=some)
    best = keep_best(trainer, run, ready)
    parameters = sum(p.numel() for p in model.parameters())
    ready.say(f"{len(train)} pairs, {len(held)} held out, {parameters / 1e6:.1f} M parameters")

    def measure(report: dict[str, Any]) -> dict[str, Any]:
        if not ready.state.is_main_process:
            return {}
        written = PairModel.from_pretrained(ready.output).to(run.device)
        texts, images = written.generate(40, seed=0)
        save_grid(ready.output / "samples.png", images, 10)
        ready.say(f"{ready.output / 'samples.png'}: {' '.join(texts)}")
        return describe_best(best, report["steps"], ready)

    facts = {"data": data.data, "data_arguments": vars(data), "train_rows": len(train), "held_out_rows": len(held)}
    digests = {"training": digest_rows([train.images.numpy()]), "held-out": digest_rows([held.images.numpy()])}
    return carry_out(trainer, ready, facts, measure, rows=digests)


def figures_of(model: PairModel, splits: ImageSplits, number: int, seed: int = 0) -> dict[str, float]:
    """Shares of right answers: of a small classifier on images of given texts, and on pairs from nothing; of the names
    that the model gives to held-out images; and of the classifier on held-out images, for comparison."""
    classifier, names = train_classifier(splits.train), model.config.names

    def seen(images: Tensor) -> Tensor:
        return classifier(images).argmax(1)

    held = splits.validation
    labels = torch.arange(number) % len(names)
    asked = [names[i] for i in labels.tolist()]
    _, drawn = model.generate(number, text=asked, seed=seed)
    some = held.take(torch.arange(number) % len(held))
    told, _ = model.generate(number, images=some.images, seed=seed)
    texts, both = model.generate(number, seed=seed)
    assert some.labels is not None
    return {
        "image_from_text": float((seen(drawn) == labels).double().mean()),
        "text_from_image": sum(a == names[i] for a, i in zip(told, some.labels.tolist(), strict=True)) / number,
        "pairs_agree": sum(a == names[i] for a, i in zip(texts, seen(both).tolist(), strict=True)) / number,
        "texts_are_names": sum(text in names for text in texts) / number,
        "classifier_on_held_out": float((seen(some.images) == some.labels).double().mean()),
    }


@app.command(add_help_option=False, context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def train(context: typer.Context) -> None:
    """Train on images with classes; `train --help` lists the options."""
    end(train_model(context.args))


Model = Annotated[str, typer.Argument(help="A trained model.")]
Seed = Annotated[int | None, typer.Option(help="Repeats a call.")]


def load(model: str) -> PairModel:
    """A model from its folder."""
    check_place(model)
    return PairModel.from_pretrained(Path(model)).eval()


@app.command()
def generate(
    model: Model,
    output: Annotated[Path, typer.Option("--output", "-o", help="The image to write: all of them in a grid.")],
    number: Annotated[int, typer.Option("--number", "-n", min=1, help="Images.")] = 40,
    text: Annotated[str | None, typer.Option(help="Draw this; default: text is made, too.")] = None,
    num_steps: Annotated[int, typer.Option(min=1, help="Calls of the network.")] = 50,
    order: Annotated[str, typer.Option(help="Which part is made first: together, text or image.")] = "together",
    seed: Seed = None,
) -> None:
    """Images with their texts, or images of a text."""
    given = None if text is None else [text] * number
    texts, images = load(model).generate(number, text=given, num_steps=num_steps, order=order, seed=seed)
    save_grid(output, images)
    print(output)
    print(" ".join(texts))


@app.command()
def read(model: Model, image: Annotated[list[Path], typer.Argument(help="Image files.")], seed: Seed = 0) -> None:
    """The text of images, a line for each."""
    own = load(model)
    found = torch.stack([read_image(path, str(path), channels=own.config.image_shape[0]) for path in image])
    if list(found.shape[1:]) != own.config.image_shape:
        raise typer.BadParameter(f"images must be of {own.config.image_shape}, got {list(found.shape[1:])}")
    for path, text in zip(image, own.generate(len(found), images=found, seed=seed)[0], strict=True):
        print(f"{path}: {text}")


@app.command()
def evaluate(
    model: Model,
    number: Annotated[int, typer.Option("--number", "-n", min=1, help="Samples of each kind.")] = 500,
    seed: int = 0,
) -> None:
    """How often images of a text, and texts of an image, are right."""
    arguments = read_object(Path(model) / "report.json")["data_arguments"]
    known = {f.name for f in dataclasses.fields(DataArguments)}
    splits = splits_of(DataArguments(**{name: value for name, value in arguments.items() if name in known}))
    figures = figures_of(load(model), splits, number, seed)
    for name, share in figures.items():
        error = (share * (1 - share) / number) ** 0.5
        print(f"{name:<24}{share_in_words(share, error, number)}")
    print(json.dumps(figures))


if __name__ == "__main__":
    app()
