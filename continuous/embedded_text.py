"""Sentences by embedding diffusion: Gaussian noise on learned embeddings of tokens, a network that says the tokens.

    x_t = a_t F(x0) + b_t noise,   F(x0)_i = table[x0_i], rows of length sqrt(d), so that F has unit rms

The network reads x_t and gives, at each position, the law of the token,

    q(x0_i = v | x_t)  ~  exp(context_v(x_t, t) - |x_t,i - a_t table_v|^2 / (2 b_t^2)),

where the second part is what the position's own latent says by Bayes' rule, and context is learned. Its mean embedding
is the mean latent. Table and network are trained under the whole bound of `encoded.bound_terms`, and a text is drawn by
either of the walks of `encoded`. Given tokens stand clean beside noisy ones, a clock at 0 for each of them, where the
network was trained so (`given_share`); else they carry the noise of their time (replacement), which is no draw of the
rest given them. A token is an integer here: which text it stands for is the tokenizer's business.

Sources: Su Jianlin (kexue.fm/archives/9271, the encoding model); Li et al., "Diffusion-LM" (2205.14217); Gulrajani and
Hashimoto (2305.18619), whose Plaid has the same law of a token.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel

from udm_text.common import check_whole, choices, eval_mode, load_exactly, refuse_newer, refuse_unknown, watched
from udm_text.core import Prediction
from udm_text.devices import Sent
from udm_text.randomness import RowRandom, step_random

from .encoded import EncodedProcess, bound_terms, prior_nats, sample_encoded, sample_means
from .networks import TimeEmbedding
from .objectives import Importance, draw_times
from .processes import GaussianProcess
from .sampling import grid

CONFIG_VERSION = 1
BACKBONE = {"model_type": "nomic_bert", "hidden_size": 256, "num_hidden_layers": 6, "num_attention_heads": 4}
"""The network where none is given; its MLP has four thirds of its usual width, since it is gated."""
WALKS = ("draws", "means")
STEPS = 200
"""Steps of a generation, where they are not given."""
_LENGTHS = 0x4C454E4754480000
"""Distinguishes the seed of the lengths from that of the tokens."""


@strict
class EmbeddedTextConfig(PreTrainedConfig):
    """What a model of embedded text is.

    Args:
        process (`dict`): `to_dict()` of a `GaussianProcess`.
        vocab_size (`int`): number of tokens. dim (`int`): numbers of an embedding.
        special_token_ids (`list[int]`): tokens that are never drawn nor scored; where they stand they stand clean.
        pad_token_id (`int`): fills rows up.
        length_counts (`list[int]`): `counts[l]`: how many training rows had l tokens.
        given_share (`float`): share of the training rows of which a random part stands clean, as given tokens do in a
            generation. 0: the network was never shown such, and given tokens are replacement (see `generate`).
        backbone (`dict`): "model_type" and the fields of a bidirectional encoder of transformers.
    """

    model_type = "udm-embedded-text"

    process: dict | None = None
    vocab_size: int = 0
    dim: int = 16
    special_token_ids: list[int] | None = None
    pad_token_id: int | None = 0
    length_counts: list[int] | None = None
    given_share: float = 0.0
    backbone: dict | None = None
    udm_version: int = CONFIG_VERSION

    def __post_init__(self, **kwargs):
        refuse_unknown(kwargs, {field.name for field in dataclasses.fields(PreTrainedConfig)}, "EmbeddedTextConfig")
        super().__post_init__(**kwargs)
        refuse_newer(self.udm_version, CONFIG_VERSION)
        self.process = dict(self.process or GaussianProcess.vp().to_dict())
        self.special_token_ids = sorted(set(self.special_token_ids or []))
        self.length_counts = list(self.length_counts or [0, 1])
        self.backbone = {**BACKBONE, **(self.backbone or {})}
        if not self.vocab_size:
            self.vocab_size = 1 + max(self.special_token_ids, default=1)  # transformers makes configs of no fields
        check_whole(2, vocab_size=self.vocab_size)
        check_whole(1, dim=self.dim)
        if not 0.0 <= self.given_share <= 1.0:
            raise ValueError(f"given_share must lie in [0, 1], got {self.given_share}")
        if any(not 0 <= token < self.vocab_size for token in self.special_token_ids):
            raise ValueError(f"special_token_ids must lie in 0..{self.vocab_size - 1}, got {self.special_token_ids}")
        if len(self.length_counts) < 2 or min(self.length_counts) < 0 or not sum(self.length_counts[1:]):
            raise ValueError(f"length_counts must count rows of 1 token or more, got {self.length_counts[:8]}")
        if self.process.get("process") != "gaussian":
            raise ValueError(f"process must be that of a GaussianProcess, got {self.process.get('process')!r}")
        self.build_process()

    def build_process(self) -> GaussianProcess:
        """What noises the embeddings."""
        assert self.process is not None
        with torch.device("cpu"):  # not "meta", on which from_pretrained builds a model
            return GaussianProcess.from_dict(self.process)

    def special_tokens(self) -> Tensor:
        """(V,) bool."""
        special = torch.zeros(self.vocab_size, dtype=torch.bool)
        special[torch.tensor(self.special_token_ids, dtype=torch.int64)] = True
        return special

    def length_law(self) -> Tensor:
        """(n + 1,) float64: p(l) of a row of l = 0..n tokens, n twice the longest of training.

        The counts, and one row more spread evenly over 1..n, so that none of these is impossible.
        """
        counts = torch.tensor(self.length_counts, dtype=torch.float64)
        top = 2 * (len(counts) - 1)
        law = torch.zeros(top + 1, dtype=torch.float64)
        law[: len(counts)] = counts
        law[1:] += 1.0 / top
        law[0] = 0.0
        return law / law.sum()


class EmbeddedTextModel(PreTrainedModel):
    """Embeddings of tokens, and a network that reads noisy ones.

    `forward` gives the logits of the tokens, which is what is trained; `generate` draws rows.

    Args:
        config: see `EmbeddedTextConfig`.
    """

    config_class = EmbeddedTextConfig
    config: EmbeddedTextConfig
    base_model_prefix = "body"
    main_input_name = "xt"

    def __init__(self, config: EmbeddedTextConfig):
        super().__init__(config)
        fields = {"vocab_size": 1, "pad_token_id": 0, "type_vocab_size": 2, **(config.backbone or {})}
        width = fields["hidden_size"]
        fields.setdefault("intermediate_size", 8 * width // 3)
        self.table = nn.Parameter(torch.randn(config.vocab_size, config.dim))
        self.read = nn.Linear(config.dim, width)
        self.time = TimeEmbedding(width)
        self.body = AutoModel.from_config(AutoConfig.for_model(**fields))
        self.body.set_input_embeddings(None)  # it reads latents
        self.write = nn.Linear(width, config.vocab_size)
        nn.init.zeros_(self.write.weight)
        nn.init.zeros_(self.write.bias)
        self._process: EncodedProcess | None = None
        self._special: Sent | None = None
        self.post_init()

    def _init_weights(self, module: Any) -> None:
        """The parts initialise themselves; a checkpoint that lacks weights is refused."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """As everywhere in transformers. A checkpoint whose weights are not exactly those of its config is refused."""
        return load_exactly(super().from_pretrained, pretrained_model_name_or_path, *args, **kwargs)

    @property
    def process(self) -> EncodedProcess:
        """Noise on the embeddings of this model. It holds the model, and so follows its training."""
        if self._process is None:
            self._process = EncodedProcess(self.config.build_process(), self.embed)
        return self._process

    def special(self, device: torch.device) -> Tensor:
        """(V,) bool: the special tokens."""
        if self._special is None:
            self._special = Sent(self.config.special_tokens())
        return self._special(device)[0]

    def embeddings(self) -> Tensor:
        """(V, d): the table, each row of length sqrt(d)."""
        return functional.normalize(self.table, dim=1) * math.sqrt(self.config.dim)

    def embed(self, ids: Tensor) -> Tensor:
        """F: (B, L) int64 -> (B, L, d)."""
        return self.embeddings()[ids]

    def forward(
        self,
        xt: Tensor,
        t: Tensor,
        given: Tensor | None = None,
        attention_mask: Tensor | None = None,
        table: Tensor | None = None,
    ) -> Tensor:
        """(B, L, V) float32 logits of x0 at each position; -inf for special tokens.

        Args:
            xt: (B, L, d). t: (B,) int64 in 1..T.
            given: (B, L) bool, positions that stand clean. attention_mask: (B, L) bool, false at padding.
            table: `embeddings()`, where it is known already.
        """
        table = self.embeddings() if table is None else table
        a, b = (x.float()[:, None, None] for x in self.process.inner.at(t))
        size = (a.square() + b.square()).sqrt()
        hidden = self.read((xt / size).to(self.read.weight.dtype))
        hidden = hidden + self.time(t.double() / self.process.T, hidden.dtype)[:, None]
        kinds = None if given is None else given.long()
        hidden = self.body(inputs_embeds=hidden, token_type_ids=kinds, attention_mask=attention_mask).last_hidden_state
        own = (a * (xt.float() @ table.T.float()) - a.square() * self.config.dim / 2) / b.square()
        return (self.write(hidden).float() + own).masked_fill(self.special(own.device), -torch.inf)

    # generation ------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def generate(
        self,
        num: int = 1,
        *,
        lengths: Sequence[int] | None = None,
        known: Sequence[Sequence[int]] | None = None,
        num_steps: int | None = None,
        walk: str = "means",
        eta: float = 1.0,
        temperature: float = 1.0,
        seed: int | None = None,
        batch_size: int = 64,
    ) -> list[list[int]]:
        """New rows of tokens. Row i depends on (seed, i) only.

        Args:
            lengths: tokens of each row; None: those of `known`, or drawn from `length_law`.
            known: for each row the tokens that it begins with, -1 where one is to be written; all behind them is
                written. A model with a `given_share` sees them clean, and so draws from what it takes for the law of
                the rest given them. Another one sees them under the noise of their time, which is replacement: its
                rest fits them less well than it should, as in `continuous.control.edit`, more so in few steps.
            num_steps: 1..T, each a call of the network; None: 200, or T where that is less.
            walk: "means", by mean embeddings, decoded in the last step; "draws", by tokens drawn at each step.
            eta: of draws: share of the noise of DDPM. Mean embeddings take 1, DDPM itself, and 0, DDIM.
            temperature: >= 0, of the tokens that are drawn; 0: the likeliest.
            seed: None: a fresh one.
        """
        check_whole(1, num=num, batch_size=batch_size)
        num_steps = min(STEPS, self.process.T) if num_steps is None else num_steps
        if walk not in WALKS:
            raise ValueError(f"walk must be {choices(WALKS)}, got {walk!r}")
        if not temperature >= 0 or not math.isfinite(temperature):
            raise ValueError(f"temperature must be a number >= 0, got {temperature}")
        if not 0.0 <= eta <= 1.0 or (walk == "means" and eta not in (0, 1)):
            raise ValueError(f"eta must lie in [0, 1], and be 0 or 1 with walk 'means', got {eta}")
        seed = RowRandom.fresh(1).seed if seed is None else seed
        rows = torch.arange(num)
        if lengths is None:
            lengths = self.draw_lengths(num, seed) if known is None else [len(row) for row in known]
        if len(lengths) != num or min(lengths) < 1:
            raise ValueError(f"lengths must be {num} numbers of at least 1, got {list(lengths)[:8]}")
        given = None if known is None else self._check_known(known, lengths)
        made: list[list[int]] = []
        times = grid(self.process.inner, num_steps)
        with eval_mode(self):
            for first in range(0, num, batch_size):
                part = slice(first, min(first + batch_size, num))
                random = RowRandom(seed, rows[part].to(self.device))
                sizes = torch.tensor(lengths[part], device=self.device)
                own = None if given is None else given[part, : max(lengths[part])].to(self.device)
                ids = self._rows(sizes, times, walk, eta, temperature, random, own)
                made += [row[:size] for row, size in zip(ids.tolist(), sizes.tolist(), strict=True)]
        return made

    def draw_lengths(self, num: int, seed: int, least: int = 1) -> list[int]:
        """Lengths by `length_law`, of those of at least so many tokens; ValueError where no row may be so long."""
        law = self.config.length_law()
        law[:least] = 0.0
        if not bool(law.any()):
            raise ValueError(f"a row has at most {len(law) - 1} tokens here, asked was for {least}: give lengths")
        uniform = RowRandom(seed ^ _LENGTHS, torch.arange(num)).uniform(1)[:, 0] * law.sum()
        return torch.searchsorted(law.cumsum(0), uniform, right=True).clamp(max=len(law) - 1).tolist()

    def _check_known(self, known: Sequence[Sequence[int]], lengths: Sequence[int]) -> Tensor:
        """(num, longest) int64, -1 where a token is to be written."""
        if len(known) != len(lengths) or any(len(row) > size for row, size in zip(known, lengths, strict=False)):
            raise ValueError(f"known must be {len(lengths)} rows, none longer than its length, got {len(known)}")
        rows = torch.full((len(known), max(lengths)), -1, dtype=torch.int64)
        for place, row in zip(rows, known, strict=True):
            place[: len(row)] = torch.as_tensor(row, dtype=torch.int64)
        if not -1 <= int(rows.min()) <= int(rows.max()) < self.config.vocab_size:
            wrong = int(rows.min()) if int(rows.min()) < -1 else int(rows.max())
            raise ValueError(f"known must hold tokens in 0..{self.config.vocab_size - 1}, or -1 for none, got {wrong}")
        return rows

    def _rows(
        self,
        sizes: Tensor,
        times: Tensor,
        walk: str,
        eta: float,
        temperature: float,
        random: RowRandom,
        known: Tensor | None = None,
    ) -> Tensor:
        """(B, L) int64: rows of `sizes` (B,) tokens, anything behind. known: (B, L) int64, -1 where none is given."""
        mask = torch.arange(int(sizes.max()), device=sizes.device) < sizes[:, None]
        table = self.embeddings()
        like = torch.zeros(*mask.shape, self.config.dim, device=sizes.device)

        shown: Tensor | None = None
        if known is not None:
            given, ids = known >= 0, known.clamp(min=0)
            clean = table[ids]
            shown = given if self.config.given_share else given & self.special(ids.device)[ids]

        def logits(xt: Tensor, t: Tensor) -> Tensor:
            xt = xt if shown is None else torch.where(shown[:, :, None], clean, xt)
            return self(xt, t, given=shown, attention_mask=mask, table=table)

        def draw(xt: Tensor, t: Tensor, s: Tensor | None = None) -> Tensor:
            found = drawn(logits(xt, t), temperature, random)
            return found if known is None else torch.where(given, known, found)

        def mean(xt: Tensor, t: Tensor, s: Tensor) -> Tensor | Prediction:
            found = logits(xt, t).softmax(-1) @ table
            return found if known is None else torch.where(given[:, :, None], clean, found)

        if walk == "draws":
            return sample_encoded(self.process, draw, like, times, eta=eta, random=random)[0]
        sampler = "ddpm" if eta else "ddim"
        return sample_means(self.process, mean, draw, like, times, sampler=sampler, random=random)


def drawn(logits: Tensor, temperature: float, random: RowRandom) -> Tensor:
    """(B, L) int64: a token for each position, by the inverse distribution function in float64; 0: the likeliest."""
    if temperature == 0:
        return logits.argmax(-1)
    p = (logits.double() / temperature).softmax(-1)
    u = random.uniform(logits.shape[1])[:, :, None]
    total = p.cumsum(-1)
    index = (total < u * total[..., -1:]).sum(-1).clamp(max=p.shape[-1] - 1)
    return torch.where(p.gather(-1, index[..., None])[..., 0] > 0, index, p.argmax(-1))


class EmbeddedTextObjective:
    """An `Objective` (see udm_text/training/trainer.py) for `EmbeddedTextModel`: rows with "input_ids".

    A row's term is an unbiased estimate of its bound in nats from one t, prior included; the items are the tokens that
    are scored, so the loss is in nats per token. Table and network are trained by it alike. Of the config's
    `given_share` of the rows a part stands clean and costs nothing (`draw_given`); evaluations are of whole rows.

    Args:
        config: the model's.
        importance: draw t by importance (`objectives.Importance`) in place of uniformly.
        eval_draws, eval_batch_size: values of t for each row in an evaluation; rows of a forward pass there.
    """

    def __init__(
        self, config: EmbeddedTextConfig, *, importance: bool = True, eval_draws: int = 4, eval_batch_size: int = 64
    ):
        check_whole(1, eval_draws=eval_draws, eval_batch_size=eval_batch_size)
        self.config = config
        self.importance = Importance(config.build_process().T) if importance else None
        self.eval_draws, self.eval_batch_size = eval_draws, eval_batch_size
        self._special = config.special_tokens()

    def collate(self, rows: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        """input_ids (B, L) int64; attention_mask, scored (B, L) bool."""
        ids = [torch.as_tensor(row["input_ids"]).long() for row in rows]
        sizes = torch.tensor([len(row) for row in ids])
        padded = nn.utils.rnn.pad_sequence(ids, batch_first=True, padding_value=self.config.pad_token_id or 0)
        mask = torch.arange(padded.shape[1]) < sizes[:, None]
        return {"input_ids": padded, "attention_mask": mask, "scored": mask & ~self._special[padded]}

    def begin(self) -> None:
        """Nothing was measured on the weights before."""

    def lengths(self, dataset: Any) -> list[int]:
        """Tokens of each row."""
        return [len(row) for row in dataset["input_ids"]]

    def num_items(self, inputs: dict[str, Tensor]) -> Tensor:
        """Tokens of the batch that are scored."""
        return inputs["scored"].sum()

    def row_terms(
        self, model: Any, inputs: dict[str, Tensor], *, row_index: Tensor, total: int, step: int, seed: int
    ) -> Tensor:
        """(B,) nats: prior_nats + L_t / p(t)."""
        row_index = row_index.to(inputs["input_ids"].device, non_blocking=True)
        num_times = self.config.build_process().T if self.importance is None else self.importance.T
        distribution = None if self.importance is None else self.importance.probabilities(step)
        t, weight = draw_times(num_times, row_index, total, seed, step, distribution)
        random = step_random(seed, step, row_index)
        if self.config.given_share:
            given = draw_given(inputs["scored"], self.config.given_share, random)
            inputs = {**inputs, "scored": inputs["scored"] & ~given}
        prior, terms = row_terms(model, inputs, t, random)
        if self.importance is not None and torch.is_grad_enabled():
            self.importance.observe(t, terms)
        return prior + num_times * weight.to(terms.dtype) * terms

    @torch.no_grad()
    def evaluate(self, trainer: Any, dataset: Any) -> dict[str, float]:
        """The bound on held-out rows in nats per token, lengths aside; its standard error over rows."""
        mine = trainer.own_rows(len(dataset))
        nats = row_bounds(trainer.model, dataset.select(mine), mine, self, draws=self.eval_draws)
        rows = trainer.gather_rows(nats, mine, len(dataset))
        tokens = torch.tensor([int((~self._special[torch.as_tensor(x)]).sum()) for x in dataset["input_ids"]])
        loss = float(rows.sum() / tokens.sum())
        error = float((rows - loss * tokens).square().sum().sqrt() / tokens.sum())
        return {"loss": loss, "loss_stderr": error}


def draw_given(scored: Tensor, share: float, random: RowRandom) -> Tensor:
    """(B, L) bool: what of a row stands clean: of `share` of the rows a part of them, of the others nothing.

    With a number u of a row, evenly drawn, that part is the first floor(u l) of its l scored positions in half of these
    rows, and each of them with chance u in the others.
    """
    uniform = random.uniform(3 + scored.shape[1])
    some, beginning, size = uniform[:, :1] < share, uniform[:, 1:2] < 0.5, uniform[:, 2:3]
    place = scored.cumsum(1) - 1
    first = place < (size * scored.sum(1, keepdim=True)).floor()
    return scored & some & torch.where(beginning, first, uniform[:, 3:] < size)


def row_terms(model: Any, inputs: dict[str, Tensor], t: Tensor, random: RowRandom) -> tuple[Tensor, Tensor]:
    """(prior_nats, L_t) of rows, (B,) each, over the scored positions; the others stand clean. t: (B,) in 1..T."""
    own = getattr(model, "module", model)
    ids, scored, process = inputs["input_ids"], inputs["scored"], own.process
    table = own.embeddings()
    clean = table[ids]
    noisy = process.inner.corrupt(clean, t, process.sample_noise(clean, random=random))
    xt = torch.where(scored[:, :, None], noisy, clean)
    logits = model(xt, t, given=~scored, attention_mask=inputs["attention_mask"], table=table)
    means = logits.softmax(-1) @ table.float()
    nats = functional.cross_entropy(logits.transpose(1, 2), ids.where(scored, -100), reduction="none")
    only = scored[:, :, None]
    clean, means = clean.float() * only, means * only
    return prior_nats(process.inner, clean), bound_terms(process.inner, clean, means, nats.sum(1), t)


@torch.no_grad()
def row_bounds(
    model: Any, rows: Any, index: Sequence[int], objective: EmbeddedTextObjective, *, draws: int, seed: int = 0
) -> Tensor:
    """(R,) float64: the bound of each row in nats, its t spread evenly over 1..T, `draws` of them.

    The noise belongs to (seed, index of the row), so figures do not depend on the batch.
    """
    device, found = next(model.parameters()).device, torch.zeros(len(rows), dtype=torch.float64)
    num_times = objective.config.build_process().T
    by_length = sorted(range(len(rows)), key=lambda i: len(rows[i]["input_ids"]))
    with eval_mode(model):
        for start in watched(range(0, len(rows), objective.eval_batch_size), "bound"):
            chosen = by_length[start : start + objective.eval_batch_size]
            inputs = {name: x.to(device) for name, x in objective.collate([rows[i] for i in chosen]).items()}
            random = RowRandom(seed, torch.tensor([index[i] for i in chosen], device=device))
            offset = random.uniform(1)[:, 0]
            for draw in range(draws):
                t = ((draw + offset) / draws * num_times).long().clamp(max=num_times - 1) + 1
                prior, terms = row_terms(model, inputs, t, random)
                found[chosen] += ((prior + num_times * terms).double() / draws).cpu()
    return found


AutoConfig.register(EmbeddedTextConfig.model_type, EmbeddedTextConfig, exist_ok=True)  # what a tokenizer is asked for
