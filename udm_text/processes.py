"""Four corruptions of token rows: [MASK], substitution by a different or by any token, and deletion. A fifth is in
edits.py.

For a row with l editable positions, t in {0..l} counts the corrupted ones, exactly. The noise is a uniform random
ranking of the editable positions, carried as i.i.d. uniform keys; substitution adds one shift for each position. F_t
corrupts the positions of rank < t. No part of the noise depends on x0, so any share of it may be replaced by fresh
noise without changing the law (`blend`), and whatever x0_hat is, exactly s positions are corrupted after a step.

Sources: Su Jianlin, "Unified Diffusion Model" (kexue.fm/archives/9271), mask and edit models, which names deletion;
docs/mathematics.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor

from .canvas import NO_LEFT, holds, justify, symbol_pair
from .core import Process
from .devices import Sent, demand
from .kernels import KERNELS, UNIFORM_KERNELS
from .objectives import CorruptedRows, delete_losses, mask_losses, substitute_losses, uniform_losses
from .randomness import RowRandom
from .subsequences import draw_embedding, last_embedding


class CardWords(NamedTuple):
    """What the card of a model says of its process: a tag of the Hub, how texts are made, what is approximate."""

    tag: str
    what: str
    limits: str


class TokenProcess(Process, Protocol):
    """A `Process` of token rows, complete: whatever training, bounds, generation and cards ask of it, it answers.

    A new one is a class with these methods and a line in `configuration_udm.PROCESSES`; nothing else needs to know.
    """

    time_conditioned: ClassVar[bool]
    """Whether a network is told t unless its configuration says otherwise: where xt does not show it."""
    kernels: ClassVar[tuple[str, ...]]
    """Its reverse kernels, each with a bound of its own; () where there is one way back."""
    training: ClassVar[tuple[str, str]]
    """The weighting (`objectives.LOSS_WEIGHTINGS`) and the law of t (`TIME_LAWS`) that its networks learn most by."""
    inserts: ClassVar[bool]
    """Whether its steps put tokens in, so that texts grow: its rows are canvases (canvas.py), and its networks say at
    which gap, beside the token."""
    edits: ClassVar[bool]
    """Whether it repairs alone: a step edits a text that is there, whose length may change. Its rows are canvases."""
    gap_scores: ClassVar[tuple[float, ...]]
    """The scores that its networks say of a position beside the logits, by what each begins at; () for none."""
    whole_rows: ClassVar[bool]
    """Whether x0 may be drawn for it as a whole row, token by token (autoregressive.py)."""
    prices_steps: ClassVar[bool]
    """Whether a bound of the sampler that takes several tokens a step is known: NELBO_K."""
    has_curve: ClassVar[bool]
    """Whether NELBO_K is a sum of prices on one measured curve, the step curve."""
    has_rates: ClassVar[bool]
    """Whether its bound in continuous time is known, as others state it (evaluation/continuous_time.py)."""
    generation_options: ClassVar[frozenset[str]]
    """The options of a generation that it takes besides those common to all (generation_options.py)."""
    card: ClassVar[CardWords]

    @classmethod
    def from_config(cls, config: Any) -> TokenProcess:
        """The process of a `UDMConfig`. Raises ValueError where that lacks what it needs."""

    def corrupted(self, xt: Tensor, x0: Tensor) -> Tensor:
        """(B, L) bool: the corrupted positions. Where xt alone shows them, x0 may be anything of its shape."""

    def losses(
        self,
        predict: Callable[..., Tensor],
        rows: CorruptedRows,
        forbidden: Tensor,
        *,
        loss: str = "nelbo",
        kernel: str = "site",
        chunk: int | None = None,
    ) -> Tensor:
        """(B,) losses of corrupted rows in nats, see `objectives.row_losses`."""

    def widen(
        self, x: Tensor, editable: Tensor, attention_mask: Tensor | None, t: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Asked only where it `edits`: rows with room for t edits, see `EditProcess.widen`."""

    def of_pairs(
        self,
        x0: Tensor,
        noisy: Tensor,
        paired: Tensor,
        editable: Tensor,
        attention_mask: Tensor | None,
        t: Tensor,
        random: RowRandom,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Any]:
        """Asked only where it `edits`: rows of given noisy texts, see `EditProcess.of_pairs`."""

    def unsettled(self, xt: Tensor, editable: Tensor) -> Tensor:
        """Asked only where it takes `whole_rows`: (B, L) bool, where x0 may differ from xt, or xt shows nothing."""

    def recounted(self, x0: Tensor, xt: Tensor, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        """Asked only where it takes `whole_rows`: t and s (B,) of a step, for a drawn x0 that may not fit t."""

    def prior_nats(self, lengths: Tensor) -> Tensor:
        """Asked only where it takes `whole_rows`: (B,) float64, KL(q(x_l given x0), prior) of rows of l positions."""

    def check_training(self, loss: str, max_corruption: float, loss_chunk: int | None) -> None:
        """Raises ValueError for arguments of `TextObjective` that it cannot be trained with."""

    def predictor(self, model: Any, config: Any, inputs: Any, random: RowRandom, constraints: Any) -> Any:
        """What `core.denoise` asks in a generation, see predictors.py. config: a `UDMGenerationConfig`."""

    def resolve_options(self, config: Any, model_config: Any) -> None:
        """Fills in its own defaults of a `UDMGenerationConfig`; raises ValueError for what does not go together."""


class TokenNoise(NamedTuple):
    """Noise of a batch of rows, all (B, L).

    keys: float64 in (0, 1), +inf where a position is not editable; the rank of a key is the position's rank.
    coins: float64 in (0, 1); `blend` replaces a position where the fresh noise's coin is below churn.
    shifts: int64 in 1..V-1 (substitute), 0..V-1 (uniform); None for masks: how far the replacement stands from x0 in
        the vocabulary.
    """

    keys: Tensor
    coins: Tensor
    shifts: Tensor | None = None


def ranks(keys: Tensor) -> Tensor:
    """Rank 0..L-1 of every key in its row. keys: (B, L); returns (B, L) int64."""
    return keys.argsort(dim=-1, stable=True).argsort(dim=-1)


def corrupted_set(keys: Tensor, t: Tensor) -> Tensor:
    """S_t: (B, L) bool, the editable positions whose rank is below t. keys: (B, L), t: (B,)."""
    return (ranks(keys) < t[:, None]) & (keys < torch.inf)


def settled(x: Tensor, editable: Tensor | None, random: RowRandom | None) -> tuple[Tensor, RowRandom]:
    """What of rows x is editable, and the source of numbers, where a caller says neither."""
    return _editable(x, editable), RowRandom.fresh(len(x), x.device) if random is None else random


def _editable(x: Tensor, editable: Tensor | None) -> Tensor:
    return torch.ones_like(x, dtype=torch.bool) if editable is None else editable


def _fresh_keys(editable: Tensor, random: RowRandom) -> Tensor:
    return random.uniform(editable.shape[1]).masked_fill(~editable, torch.inf)


def _posterior_keys(corrupted: Tensor, editable: Tensor, scores: Tensor | None, random: RowRandom) -> Tensor:
    """I.i.d. uniform keys given that the corrupted positions hold the smallest ones.

    The sorted fresh keys go to the corrupted positions first, among themselves in random order, or by rising `scores`
    (so the position of the highest score is the first to leave the corrupted set), then to the others.
    """
    values = _fresh_keys(editable, random).sort(dim=-1).values
    tie = random.uniform(editable.shape[1])
    if scores is not None:
        tie = torch.where(corrupted, (ranks(scores.to(torch.float64)) + tie) / editable.shape[1], tie)
    order = (tie + (~corrupted).double() + (~editable).double()).argsort(dim=-1)
    return torch.empty_like(values).scatter_(1, order, values)


def _blend(noise: TokenNoise, fresh: TokenNoise, churn: float) -> TokenNoise:
    if not 0.0 <= churn <= 1.0:
        raise ValueError(f"churn must lie in [0, 1], got {churn}")
    swap = fresh.coins < churn
    if noise.shifts is None or fresh.shifts is None:
        shifts = None
    else:
        shifts = torch.where(swap, fresh.shifts, noise.shifts)
    return TokenNoise(torch.where(swap, fresh.keys, noise.keys), torch.where(swap, fresh.coins, noise.coins), shifts)


class Alphabet:
    """The tokens that may stand at an editable position, by their numbers 0..V-1, for processes that move tokens.

    Args:
        allowed_token_ids: (V,) int64, V >= 2, in any order. process: who asks, for the message.
    """

    def __init__(self, allowed_token_ids: Tensor, process: str):
        self.ids = torch.as_tensor(allowed_token_ids, dtype=torch.int64).unique()
        if len(self.ids) < 2:
            raise ValueError(
                f"process {process!r} needs at least 2 tokens that may stand at an editable position, "
                f"the vocabulary has {len(self.ids)}"
            )
        self._ids_on = Sent(self.ids)
        self.size = len(self.ids)

    def lie_on(self, device: torch.device) -> None:
        """What is looked up is sent to a device now."""
        self._ids_on(device)

    def tokens(self, numbers: Tensor) -> Tensor:
        """The tokens of numbers, int64 of any shape."""
        return self._ids_on(numbers.device)[0][numbers]

    def numbers(self, tokens: Tensor, where: Tensor, name: str) -> Tensor:
        """The numbers of tokens (B, L); raises ValueError where one stands at `where` (B, L) bool that may not."""
        (ids,) = self._ids_on(tokens.device)
        index = torch.searchsorted(ids, tokens.contiguous()).clamp(max=self.size - 1)
        message = f"{name} holds a token that may not stand at an editable position (special or [MASK])"
        demand((ids[index] == tokens) | ~where, message)
        return index

    def moved(self, x0: Tensor, t: Tensor, noise: TokenNoise) -> Tensor:
        """x0 with the tokens of rank < t moved by their shifts around the circle of the V tokens."""
        if noise.shifts is None:
            raise ValueError("this noise carries no shifts: it was made by a mask process")
        chosen = corrupted_set(noise.keys, t)
        return torch.where(chosen, self.tokens((self.numbers(x0, chosen, "x0") + noise.shifts) % self.size), x0)

    def shifts(self, x0: Tensor, xt: Tensor, corrupted: Tensor, fresh: Tensor) -> Tensor:
        """How far xt stands from x0 where it is corrupted, and fresh shifts elsewhere; all (B, L)."""
        found = self.numbers(xt, corrupted, "xt") - self.numbers(x0, corrupted, "x0")
        return torch.where(corrupted, found % self.size, fresh)

    def drawn(self, x: Tensor, editable: Tensor, random: RowRandom) -> Tensor:
        """x with a uniform token on every editable position."""
        return torch.where(editable, self.tokens((random.uniform(x.shape[1]) * self.size).long()), x)


def _refuse_repairer(max_corruption: float) -> None:
    if max_corruption < 1.0:
        raise ValueError("max_corruption below 1 trains a repairer, which needs process 'substitute' or 'edit'")


def _refuse_chunks(loss: str, loss_chunk: int | None) -> None:
    if loss_chunk is not None and loss == "nelbo":
        raise ValueError("loss_chunk goes with loss 'cross_entropy': the NELBO needs the logits of whole rows")


class MaskProcess:
    """F_t puts [MASK] on the positions of rank < t. It can be inverted before predicting: [MASK] is visible in xt.

    Args:
        mask_token_id: the id of [MASK].
    """

    time_conditioned: ClassVar[bool] = False  # the number of masks shows t
    training: ClassVar[tuple[str, str]] = ("sqrt", "bell")
    kernels: ClassVar[tuple[str, ...]] = ()
    inserts: ClassVar[bool] = False
    edits: ClassVar[bool] = False
    gap_scores: ClassVar[tuple[float, ...]] = ()
    whole_rows: ClassVar[bool] = True
    prices_steps: ClassVar[bool] = True
    has_curve: ClassVar[bool] = True
    has_rates: ClassVar[bool] = False
    generation_options: ClassVar[frozenset[str]] = frozenset(
        ("order", "revise", "speculate", "threshold", "classifier_scale", "classifier_candidates")
    )
    card: ClassVar[CardWords] = CardWords(
        "masked-diffusion",
        "by masks: every token is hidden and revealed again, in any order",
        "One token a step in random order samples exactly from the model; fewer steps and other orders are "
        "approximations.",
    )

    def __init__(self, mask_token_id: int):
        self.mask_token_id = int(mask_token_id)

    @classmethod
    def from_config(cls, config: Any) -> MaskProcess:
        if config.mask_token_id is None:
            raise ValueError(
                "mask_token_id is not set: process 'mask' needs a [MASK] token. Give `mask_token_id=...`, or load from "
                "a directory that also holds a tokenizer with a mask token."
            )
        return cls(config.mask_token_id)

    def sample_noise(self, x: Tensor, *, editable: Tensor | None = None, random: RowRandom | None = None):
        """x: (B, L) int64 gives the shape; editable: (B, L) bool. Returns `TokenNoise` without shifts."""
        editable, random = settled(x, editable, random)
        return TokenNoise(_fresh_keys(editable, random), random.uniform(x.shape[1]))

    def corrupt(self, x0: Tensor, t: Tensor, noise: TokenNoise) -> Tensor:
        """(B, L) int64: x0 with [MASK] on exactly min(t, l) editable positions. t: (B,) int64."""
        return x0.masked_fill(corrupted_set(noise.keys, t), self.mask_token_id)

    def corrupted(self, xt: Tensor, x0: Tensor | None = None) -> Tensor:
        """(B, L) bool: where xt is [MASK]."""
        return xt == self.mask_token_id

    def invert_noise(
        self,
        x0: Tensor | None,
        xt: Tensor,
        t: Tensor,
        *,
        editable: Tensor | None = None,
        random: RowRandom | None = None,
        scores: Tensor | None = None,
    ) -> TokenNoise:
        """Noise that carries x0 to xt, a draw from its posterior. x0 and t are not needed: xt shows the set.

        `scores` (B, L): order inside the corrupted set; None draws it uniformly (the exact posterior).
        """
        editable, random = settled(xt, editable, random)
        corrupted = self.corrupted(xt) & editable
        return TokenNoise(_posterior_keys(corrupted, editable, scores, random), random.uniform(xt.shape[1]))

    def changing(self, xt: Tensor, s: Tensor, noise: TokenNoise) -> Tensor:
        """(B, L) bool: the positions that a step to s reveals, the only ones where x0_hat is needed."""
        return self.corrupted(xt) & (ranks(noise.keys) >= s[:, None]) & (noise.keys < torch.inf)

    def blend(self, noise: TokenNoise, fresh: TokenNoise, churn: float) -> TokenNoise:
        """Each position's noise is replaced by fresh noise with probability churn in [0, 1]."""
        return _blend(noise, fresh, churn)

    def prior(self, x: Tensor, *, editable: Tensor | None = None, random: RowRandom | None = None) -> Tensor:
        """x with [MASK] on every editable position."""
        return x.masked_fill(_editable(x, editable), self.mask_token_id)

    def losses(self, predict, rows, forbidden, *, loss: str = "nelbo", kernel: str = "site", chunk: int | None = None):
        """As in `TokenProcess`: both losses are the same number."""
        return mask_losses(predict, rows, forbidden, chunk)

    def unsettled(self, xt: Tensor, editable: Tensor) -> Tensor:
        """Where xt is [MASK]: what is not, is x0."""
        return self.corrupted(xt) & editable

    def recounted(self, x0: Tensor, xt: Tensor, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        """As they are: every x0 fits."""
        return t, s

    def prior_nats(self, lengths: Tensor) -> Tensor:
        """None: x_l tells nothing of x0."""
        return torch.zeros(len(lengths), dtype=torch.float64, device=lengths.device)

    def check_training(self, loss: str, max_corruption: float, loss_chunk: int | None) -> None:
        """Raises ValueError for a share below 1: what is not [MASK] is never corrected."""
        _refuse_repairer(max_corruption)

    def predictor(self, model, config, inputs, random: RowRandom, constraints):
        """A `MaskPredictor`, or with `speculate` one that reads drafts, too."""
        from .predictors import MaskPredictor
        from .speculative import SpeculativePredictor

        kind = MaskPredictor if config.speculate is None else SpeculativePredictor
        return kind(model, self, config, inputs, random, constraints)

    def resolve_options(self, config, model_config) -> None:
        """Every option means what it says."""


class SubstituteProcess:
    """F_t replaces the tokens of rank < t, each by a token that differs from x0, uniform over the V - 1 others.

    Hence S_t = {i : xt_i != x0_i} and q(xt | x0) = 1[Hamming(xt, x0) = t] / (C(l, t) (V - 1)^t).

    Args:
        allowed_token_ids: (V,) int64, V >= 2: the tokens that may stand at an editable position (no special tokens).
    """

    time_conditioned: ClassVar[bool] = True
    training: ClassVar[tuple[str, str]] = ("bound", "uniform")
    kernels: ClassVar[tuple[str, ...]] = tuple(KERNELS)
    inserts: ClassVar[bool] = False
    edits: ClassVar[bool] = False
    gap_scores: ClassVar[tuple[float, ...]] = ()
    whole_rows: ClassVar[bool] = True
    prices_steps: ClassVar[bool] = False
    has_curve: ClassVar[bool] = False
    has_rates: ClassVar[bool] = False
    generation_options: ClassVar[frozenset[str]] = frozenset(("kernel", "max_edits", "min_confidence"))
    card: ClassVar[CardWords] = CardWords(
        "uniform-diffusion",
        "by substitution: tokens are replaced by others, and the model undoes it; it can repair a text",
        "Fewer steps than tokens are approximations, and so is a repair, which takes the likeliest edits.",
    )

    def __init__(self, allowed_token_ids: Tensor):
        self.alphabet = Alphabet(allowed_token_ids, "substitute")
        self.allowed, self.num_tokens = self.alphabet.ids, self.alphabet.size

    @classmethod
    def from_config(cls, config: Any) -> SubstituteProcess:
        return cls(config.allowed_token_ids())

    def lie_on(self, device: torch.device) -> None:
        """What it looks up is sent to a device now, and not by the first step there."""
        self.alphabet.lie_on(device)

    def sample_noise(self, x: Tensor, *, editable: Tensor | None = None, random: RowRandom | None = None):
        """x: (B, L) int64 gives the shape; editable: (B, L) bool. Returns `TokenNoise` with shifts."""
        editable, random = settled(x, editable, random)
        return TokenNoise(_fresh_keys(editable, random), random.uniform(x.shape[1]), self._shifts(x, random))

    def _shifts(self, x: Tensor, random: RowRandom) -> Tensor:
        return 1 + (random.uniform(x.shape[1]) * (self.num_tokens - 1)).long()

    def corrupt(self, x0: Tensor, t: Tensor, noise: TokenNoise) -> Tensor:
        """(B, L) int64: x0 with exactly min(t, l) editable positions replaced by another token. t: (B,) int64."""
        return self.alphabet.moved(x0, t, noise)

    def corrupted(self, xt: Tensor, x0: Tensor) -> Tensor:
        """(B, L) bool: where xt differs from x0."""
        return xt != x0

    def invert_noise(
        self,
        x0: Tensor,
        xt: Tensor,
        t: Tensor,
        *,
        editable: Tensor | None = None,
        random: RowRandom | None = None,
        scores: Tensor | None = None,
    ) -> TokenNoise:
        """Noise that carries x0 to xt, a draw from its posterior; t is not needed: the differing set shows it.

        `scores` (B, L): order inside the corrupted set; None draws it uniformly (the exact posterior).
        """
        editable, random = settled(xt, editable, random)
        corrupted = (xt != x0) & editable
        keys = _posterior_keys(corrupted, editable, scores, random)
        coins = random.uniform(xt.shape[1])
        return TokenNoise(keys, coins, self.alphabet.shifts(x0, xt, corrupted, self._shifts(xt, random)))

    def blend(self, noise: TokenNoise, fresh: TokenNoise, churn: float) -> TokenNoise:
        """Each position's noise is replaced by fresh noise with probability churn in [0, 1]."""
        return _blend(noise, fresh, churn)

    def prior(self, x: Tensor, *, editable: Tensor | None = None, random: RowRandom | None = None) -> Tensor:
        """x with a uniform allowed token on every editable position."""
        return self.alphabet.drawn(x, *settled(x, editable, random))

    def losses(self, predict, rows, forbidden, *, loss: str = "nelbo", kernel: str = "site", chunk: int | None = None):
        """As in `TokenProcess`."""
        how: dict[str, Any] = {"loss": loss, "kernel": kernel, "chunk": chunk}
        return substitute_losses(predict, rows, forbidden, self.num_tokens, **how)

    def unsettled(self, xt: Tensor, editable: Tensor) -> Tensor:
        """Everything editable: xt does not show what is corrupted."""
        return editable

    def recounted(self, x0: Tensor, xt: Tensor, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        """t is the number of positions at which x0 differs from xt, whatever was told, and as many of them as in the
        step are put right, as far as there are: kernel `free`."""
        differs = ((xt != x0).sum(dim=1)).to(t)
        return differs, (differs - (t - s)).clamp(min=0)

    def prior_nats(self, lengths: Tensor) -> Tensor:
        """l log(V/(V-1)): x_l differs from x0 everywhere, and the prior does not."""
        return lengths.double() * math.log(self.num_tokens / (self.num_tokens - 1))

    def check_training(self, loss: str, max_corruption: float, loss_chunk: int | None) -> None:
        """Raises ValueError where logits in chunks are asked for and the loss needs whole rows of them."""
        _refuse_chunks(loss, loss_chunk)

    def predictor(self, model, config, inputs, random: RowRandom, constraints):
        """A `SubstitutePredictor`."""
        from .predictors import SubstitutePredictor

        return SubstitutePredictor(model, self, config, inputs, random, constraints)

    def resolve_options(self, config, model_config) -> None:
        """The kernel is the model's, and for repair "free"; it must be one that has an x0_hat to churn."""
        repair = config.max_edits is not None
        if config.kernel is None:
            config.kernel = "free" if repair else model_config.kernel
        if config.min_confidence is not None and not repair:
            raise ValueError(
                f"min_confidence={config.min_confidence} says which edits of a repair are made: give max_edits, too"
            )
        if config.churn and repair:
            raise ValueError("churn corrupts a text anew; a repair changes at most max_edits tokens and needs churn 0")
        if config.churn and config.kernel == "site":
            raise ValueError(
                "churn needs a kernel that draws a whole x0_hat, and kernel 'site' draws single positions: give "
                "kernel='hamming' or kernel='free'"
            )


class UniformProcess:
    """F_t replaces the tokens of rank < t, each by any of the V tokens, its own included.

    So of the corrupted set S, |S| = t, only D = {i : xt_i != x0_i} shows, q(xt | x0) = C(l - d, t - d) / (C(l, t) V^t)
    with d = |D|, and x_l is exactly uniform. Given x0, xt and t, S is D and t - d of the other positions, uniformly,
    each of which was replaced by itself: F_t^-1 is a draw of them.

    Source: Su Jianlin (kexue.fm/archives/9271), edit models by random substitution, which has the baseline step alone;
    the posterior draw and the bound: docs/mathematics.md.

    Args:
        allowed_token_ids: (V,) int64, V >= 2: the tokens that may stand at an editable position (no special tokens).
    """

    time_conditioned: ClassVar[bool] = True
    training: ClassVar[tuple[str, str]] = ("bound", "uniform")
    kernels: ClassVar[tuple[str, ...]] = tuple(UNIFORM_KERNELS)
    inserts: ClassVar[bool] = False
    edits: ClassVar[bool] = False
    gap_scores: ClassVar[tuple[float, ...]] = ()
    whole_rows: ClassVar[bool] = True
    prices_steps: ClassVar[bool] = False
    has_curve: ClassVar[bool] = False
    has_rates: ClassVar[bool] = True
    generation_options: ClassVar[frozenset[str]] = frozenset()
    card: ClassVar[CardWords] = CardWords(
        "uniform-diffusion",
        "by uniform noise: tokens are replaced by any of the vocabulary, and the model puts them right",
        "Fewer steps than tokens are approximations.",
    )

    def __init__(self, allowed_token_ids: Tensor):
        self.alphabet = Alphabet(allowed_token_ids, "uniform")
        self.allowed, self.num_tokens = self.alphabet.ids, self.alphabet.size

    @classmethod
    def from_config(cls, config: Any) -> UniformProcess:
        return cls(config.allowed_token_ids())

    def lie_on(self, device: torch.device) -> None:
        """What it looks up is sent to a device now, and not by the first step there."""
        self.alphabet.lie_on(device)

    def sample_noise(self, x: Tensor, *, editable: Tensor | None = None, random: RowRandom | None = None):
        """x: (B, L) int64 gives the shape; editable: (B, L) bool. Returns `TokenNoise` with shifts 0..V-1."""
        editable, random = settled(x, editable, random)
        return TokenNoise(_fresh_keys(editable, random), random.uniform(x.shape[1]), self._shifts(x, random))

    def _shifts(self, x: Tensor, random: RowRandom) -> Tensor:
        return (random.uniform(x.shape[1]) * self.num_tokens).long()

    def corrupt(self, x0: Tensor, t: Tensor, noise: TokenNoise) -> Tensor:
        """(B, L) int64: x0 with exactly min(t, l) editable positions drawn anew, some of which stay what they were.
        t: (B,) int64."""
        return self.alphabet.moved(x0, t, noise)

    def corrupted(self, xt: Tensor, x0: Tensor) -> Tensor:
        """(B, L) bool: where xt differs from x0, which is what shows of the corrupted set."""
        return xt != x0

    def invert_noise(
        self,
        x0: Tensor,
        xt: Tensor,
        t: Tensor,
        *,
        editable: Tensor | None = None,
        random: RowRandom | None = None,
        scores: Tensor | None = None,
    ) -> TokenNoise:
        """Noise that carries x0 to xt by t (B,) corrupted positions, a draw from its posterior.

        An x0 that differs from xt at more than t positions cannot have been corrupted to it; a predictor may still draw
        one, and then the corrupted positions are those, as with `SubstituteProcess`.

        `scores` (B, L): order inside the corrupted set; None draws it uniformly (the exact posterior).
        """
        editable, random = settled(xt, editable, random)
        differs = (xt != x0) & editable
        same = random.uniform(xt.shape[1]).masked_fill(differs | ~editable, torch.inf)
        corrupted = differs | corrupted_set(same, t - differs.sum(dim=1))
        keys = _posterior_keys(corrupted, editable, scores, random)
        coins = random.uniform(xt.shape[1])
        return TokenNoise(keys, coins, self.alphabet.shifts(x0, xt, corrupted, self._shifts(xt, random)))

    def blend(self, noise: TokenNoise, fresh: TokenNoise, churn: float) -> TokenNoise:
        """Each position's noise is replaced by fresh noise with probability churn in [0, 1]."""
        return _blend(noise, fresh, churn)

    def prior(self, x: Tensor, *, editable: Tensor | None = None, random: RowRandom | None = None) -> Tensor:
        """x with a uniform allowed token on every editable position."""
        return self.alphabet.drawn(x, *settled(x, editable, random))

    def losses(
        self, predict, rows, forbidden, *, loss: str = "nelbo", kernel: str = "uniform", chunk: int | None = None
    ):
        """As in `TokenProcess`; there is one kernel."""
        return uniform_losses(predict, rows, forbidden, loss=loss, chunk=chunk)

    def unsettled(self, xt: Tensor, editable: Tensor) -> Tensor:
        """Everything editable: xt does not show what is corrupted."""
        return editable

    def recounted(self, x0: Tensor, xt: Tensor, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        """As they are: every x0 fits."""
        return t, s

    def prior_nats(self, lengths: Tensor) -> Tensor:
        """None: x_l tells nothing of x0."""
        return torch.zeros(len(lengths), dtype=torch.float64, device=lengths.device)

    def check_training(self, loss: str, max_corruption: float, loss_chunk: int | None) -> None:
        """Raises ValueError for a share below 1, of repairers, and where chunks of logits do not make the loss."""
        _refuse_repairer(max_corruption)
        _refuse_chunks(loss, loss_chunk)

    def predictor(self, model, config, inputs, random: RowRandom, constraints):
        """A `SubstitutePredictor`, whose steps may leave all as it is."""
        from .predictors import SubstitutePredictor

        return SubstitutePredictor(model, self, config, inputs, random, constraints)

    def resolve_options(self, config, model_config) -> None:
        """The kernel is the one there is."""
        config.kernel = model_config.kernel


class DeleteProcess:
    """F_t deletes the tokens of rank < t: what is left stands side by side, and a step back puts one of them in.

    Rows are canvases (canvas.py): where F_t deletes, holes stand behind the tokens of a segment. A string does not show
    which tokens are gone, so F_t^-1 draws one of the ways in which xt stands in x0, all of them as likely.

    Args:
        hole_id: the token that stands for a hole, that of padding.
        gap_token_id: the token that a network reads in every gap, [MASK]; None: a gap is read at the token to its left.
    """

    time_conditioned: ClassVar[bool] = True
    training: ClassVar[tuple[str, str]] = ("sqrt", "bell")
    kernels: ClassVar[tuple[str, ...]] = ()
    inserts: ClassVar[bool] = True
    edits: ClassVar[bool] = False
    gap_scores: ClassVar[tuple[float, ...]] = (0.0,)
    whole_rows: ClassVar[bool] = False
    prices_steps: ClassVar[bool] = True
    has_curve: ClassVar[bool] = False
    has_rates: ClassVar[bool] = False
    generation_options: ClassVar[frozenset[str]] = frozenset()
    card: ClassVar[CardWords] = CardWords(
        "insertion-diffusion",
        "by deletion: tokens are taken out, and the model puts them in again, one by one, wherever it likes",
        "One token a step samples exactly from the model; fewer steps are approximations.",
    )

    def __init__(self, hole_id: int, gap_token_id: int | None = None):
        self.hole_id, self.gap_token_id = int(hole_id), gap_token_id

    @classmethod
    def from_config(cls, config: Any) -> DeleteProcess:
        if config.pad_token_id is None:
            raise ValueError(
                "pad_token_id is not set: process 'delete' needs a padding token, which stands where a text has grown "
                "shorter. Give `pad_token_id=...`"
            )
        if not (config.prefix_token_ids or config.prompted):
            raise ValueError(NO_LEFT)
        if (count := len(config.allowed_token_ids())) < 2:
            raise ValueError(
                f"process 'delete' needs at least 2 tokens that may be put in, since behind itself none is, and the "
                f"vocabulary has {count}"
            )
        return cls(config.pad_token_id, config.mask_token_id if config.gap_tokens else None)

    def sample_noise(self, x: Tensor, *, editable: Tensor | None = None, random: RowRandom | None = None):
        """x: (B, L) int64 gives the shape; editable: (B, L) bool. Returns `TokenNoise` without shifts."""
        editable, random = settled(x, editable, random)
        return TokenNoise(_fresh_keys(editable, random), random.uniform(x.shape[1]))

    def corrupt(self, x0: Tensor, t: Tensor, noise: TokenNoise) -> Tensor:
        """(B, L) int64: x0 without exactly min(t, l) of its l tokens. t: (B,) int64."""
        editable = noise.keys < torch.inf
        return justify(x0, ~self.deleted(x0, t, noise), editable, self.hole_id)

    def deleted(self, x0: Tensor, t: Tensor, noise: TokenNoise) -> Tensor:
        """(B, L) bool: the positions of x0 whose tokens `corrupt` deletes."""
        return corrupted_set(noise.keys.masked_fill(x0 == self.hole_id, torch.inf), t)

    def corrupted(self, xt: Tensor, x0: Tensor) -> Tensor:
        """(B, L) bool: tokens of x0 whose deletion gives xt; of several ways the one that takes the foremost of a run.

        Tokens that are given, and equal in both, count as the rest does.
        """
        held = x0 != self.hole_id
        whole, part, columns = symbol_pair(x0, xt, torch.ones_like(held), self.hole_id)
        return held & ~torch.zeros_like(held).scatter(1, columns, last_embedding(whole, part))

    def invert_noise(
        self,
        x0: Tensor,
        xt: Tensor,
        t: Tensor,
        *,
        editable: Tensor | None = None,
        random: RowRandom | None = None,
        scores: Tensor | None = None,
    ) -> TokenNoise:
        """Noise that carries x0 to xt, a draw from its posterior; t is not needed: the lengths show it.

        `scores` (B, L): order inside the deleted set; None draws it uniformly (the exact posterior).

        Raises:
            ValueError: where xt is not x0 without some of its tokens.
        """
        editable, random = settled(xt, editable, random)
        whole, part, columns = symbol_pair(x0, xt, editable, self.hole_id)
        uniforms = random.uniform(xt.shape[1])[:, : whole.shape[1]]
        taken, exists = draw_embedding(whole, part, uniforms)
        demand(exists, "xt holds a token that x0 does not: no deletion carries x0 to xt")
        held = holds(x0, editable, self.hole_id)
        deleted = held & ~torch.zeros_like(held).scatter(1, columns, taken)
        keys = _posterior_keys(deleted, held, scores, random)
        keys = torch.where(editable & ~held, _fresh_keys(editable, random), keys)  # of holes: of no effect, and fresh
        return TokenNoise(keys, random.uniform(xt.shape[1]))

    def blend(self, noise: TokenNoise, fresh: TokenNoise, churn: float) -> TokenNoise:
        """Each position's noise is replaced by fresh noise with probability churn in [0, 1]."""
        return _blend(noise, fresh, churn)

    def prior(self, x: Tensor, *, editable: Tensor | None = None, random: RowRandom | None = None) -> Tensor:
        """x with nothing but holes at its editable positions: the empty text between what is given."""
        return x.masked_fill(_editable(x, editable), self.hole_id)

    def losses(self, predict, rows, forbidden, *, loss: str = "nelbo", kernel: str = "site", chunk: int | None = None):
        """As in `TokenProcess`: both losses are the same number."""
        if rows.noise is None:
            raise ValueError("process 'delete' scores rows by the noise that they were corrupted with")
        missing = self.deleted(rows.x0, rows.t, rows.noise)
        return delete_losses(predict, rows, missing, forbidden, self.hole_id, self.gap_token_id, chunk)

    def check_training(self, loss: str, max_corruption: float, loss_chunk: int | None) -> None:
        """Raises ValueError for a share below 1: a text that lacks little is still written by all the counts."""
        _refuse_repairer(max_corruption)

    def predictor(self, model, config, inputs, random: RowRandom, constraints):
        """An `InsertionPredictor`."""
        from .insertion import InsertionPredictor

        return InsertionPredictor(model, self, config, inputs, random, constraints)

    def resolve_options(self, config, model_config) -> None:
        """Raises ValueError for options that tokens without a fixed place cannot have."""
        if config.churn:
            raise ValueError(
                f"churn={config.churn} corrupts a predicted text anew, and a step of process 'delete' predicts single "
                "tokens: leave churn at 0"
            )
        if config.allowed_tokens:
            raise ValueError(
                "allowed_tokens names positions, and a token of process 'delete' has none before the text is whole: "
                "give forbidden_tokens, or leave allowed_tokens away"
            )
        if config.cache_refresh is not None and config.cache_refresh > 1:
            raise ValueError(
                f"cache_refresh={config.cache_refresh} keeps what was computed of positions, and texts of process "
                "'delete' grow, which moves them: leave cache_refresh away"
            )
