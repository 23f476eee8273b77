"""The edit process: tokens are substituted, deleted and inserted, exactly t edits of a row, and a text is repaired.

An editable segment of a row (a run of editable positions between given tokens) holds its tokens first and then holes,
so that tokens can come and go without moving what is given. Each token of x0 has a rank; the tokens of rank < t have
an edit each, of a kind drawn by known shares: the token is substituted, or deleted, or it stays and another one is
inserted somewhere. Where things stand is noise, too: every token of x0 and every inserted one has a place in (0, 1),
and the row is read in the order of places. So every order of them is as likely (where a deleted token was counts, too),
none of the noise depends on x0, and F_s does the first s of the edits of F_t.

Source: derived in docs/mathematics.md, checked by enumeration in tests/test_edits.py.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from .canvas import widen
from .devices import Sent, demand
from .hamming import NEVER
from .lattice import (
    DELETE,
    INSERT,
    KEEP,
    NOTHING,
    SUBSTITUTE,
    WALL,
    Steps,
    draw_alignment,
    edit_distance,
    lattice_table,
)
from .processes import CardWords, corrupted_set, ranks, settled
from .randomness import RowRandom

SHARES = 0.4, 0.3, 0.3
"""Of substitutions, deletions and insertions, in the training of a model."""
MOST_OF_A_PAIR = 12
"""Edits between two given texts that a model learns from at most: the table of ways grows with their cube."""


class EditNoise(NamedTuple):
    """Noise of a batch of rows, all (B, L); what belongs to one position is replaced together by `blend`.

    keys: float64 in (0, 1), +inf where a position is not editable; the rank of a token's key is its rank.
    coins: float64 in (0, 1); `blend` replaces a position where the fresh noise's coin is below churn.
    kinds: int64, the edit of a token: SUBSTITUTE, DELETE or INSERT.
    shifts: int64 in 1..V-1: how far a substitute stands from x0 in the vocabulary.
    letters: int64 in 0..V-1: the index of the token that an INSERT brings.
    places: float64 in (0, 1): sorted, where the tokens of x0 and the walls between segments stand.
    insertions: float64 in (0, 1): where the token stands that an INSERT brings.
    """

    keys: Tensor
    coins: Tensor
    kinds: Tensor
    shifts: Tensor
    letters: Tensor
    places: Tensor
    insertions: Tensor


class Edited(NamedTuple):
    """Rows after their edits, and the edits, at the tokens of x0 that have them. All (B, L) int64.

    xt: the rows. kinds: SUBSTITUTE, DELETE, INSERT or KEEP (no edit). columns: the column of xt where the substitute or
    the inserted token stands, or where a deleted token would. letters: the index 0..V-1 of the token of x0.
    ghosts: how many tokens were deleted between the neighbours in xt of an inserted token; 0 for other edits.
    """

    xt: Tensor
    kinds: Tensor
    columns: Tensor
    letters: Tensor
    ghosts: Tensor


class _Rows(NamedTuple):
    """Rows as a lattice reads them: their tokens, and a wall between one segment and the next.

    things: (B, L) int64, indices 0..V-1 of tokens and WALL, then NOTHING. columns: (B, L) int64, where each stands.
    here: (B, L) bool, the positions of the row that hold a thing. letters: (B, L) int64, see `EditProcess.letters`.
    number: (B,) int64, the number of things. length: (B,) int64, l, the number of tokens.
    """

    things: Tensor
    columns: Tensor
    here: Tensor
    letters: Tensor
    number: Tensor
    length: Tensor


def _walls(editable: Tensor) -> Tensor:
    """(B, L) bool: the given positions right before a segment that is not the first of its row."""
    after = torch.cat((editable[:, 1:], torch.zeros_like(editable[:, :1])), dim=1)
    return ~editable & after & (editable.long().cumsum(dim=1) > 0)


def _in_order(values: Tensor, here: Tensor) -> Tensor:
    """(B, L): the values that are `here` among themselves in rising order, the others where they are."""
    rising = values.masked_fill(~here, torch.inf).sort(dim=1).values
    return torch.where(here, rising.gather(1, (here.long().cumsum(dim=1) - 1).clamp(min=0)), values)


def _between(gone: Tensor, stands: Tensor) -> Tensor:
    """(B, N) int64: how many are `gone` between the last place before each that `stands` and the first one after it."""
    count = gone.long().cumsum(dim=1)
    before = torch.cat((torch.zeros_like(count[:, :1]), torch.where(stands, count, 0)[:, :-1]), dim=1)
    after = torch.cat((torch.where(stands, count, count[:, -1:])[:, 1:], count[:, -1:]), dim=1)
    return after.flip(1).cummin(dim=1).values.flip(1) - before.cummax(dim=1).values


class EditProcess:
    """F_t makes the edits of rank < t: substitutions, deletions and insertions by known shares.

    With one share 1 it is that process alone: substitution by another token, deletion, or insertion of uniform tokens.

    Args:
        allowed_token_ids: (V,) int64, V >= 2: the tokens that may stand at an editable position.
        hole_token_id: what stands behind the tokens of a segment, up to its width; not among the allowed.
        shares: the chances of a substitution, a deletion and an insertion, sum 1.
        gap_token_id: the token that a network reads in every gap, [MASK].
        longest: tokens of a row at most, with what is inserted; None: any number.
    """

    time_conditioned: ClassVar[bool] = False  # nobody can tell a repairer how many errors there are
    training: ClassVar[tuple[str, str]] = ("bound", "geometric")
    kernels: ClassVar[tuple[str, ...]] = ()
    inserts: ClassVar[bool] = False
    edits: ClassVar[bool] = True
    gap_scores: ClassVar[tuple[float, ...]] = (4.0, 0.0, 0.0)  # stop, delete, gap: a text of 18 words is left alone
    whole_rows: ClassVar[bool] = False
    prices_steps: ClassVar[bool] = False
    has_curve: ClassVar[bool] = False
    has_rates: ClassVar[bool] = False
    generation_options: ClassVar[frozenset[str]] = frozenset(("max_edits", "min_confidence"))
    card: ClassVar[CardWords] = CardWords(
        "edit-diffusion",
        "by edits: tokens are substituted, deleted and inserted, and the model undoes it; it repairs texts, and writes "
        "none",
        "A repair takes the likeliest edits, one after the other, and is no sample of a law of texts.",
    )

    def __init__(
        self,
        allowed_token_ids: Tensor,
        hole_token_id: int,
        shares: tuple[float, float, float] = SHARES,
        gap_token_id: int | None = None,
        longest: int | None = None,
    ):
        allowed = torch.as_tensor(allowed_token_ids, dtype=torch.int64).unique()
        if len(allowed) < 2:
            raise ValueError(f"allowed_token_ids must hold at least 2 tokens, got {len(allowed)}")
        if (allowed == hole_token_id).any():
            raise ValueError(f"hole_token_id must not be an allowed token, got {hole_token_id}; give the padding token")
        if len(shares) != 3 or not all(share >= 0 for share in shares) or abs(sum(shares) - 1) > 1e-9:
            raise ValueError(
                "shares must be three chances of sum 1, of substitution, deletion and insertion, "
                f"got {shares}; (0.6, 0.2, 0.2) would do"
            )
        self.allowed, self._allowed_on = allowed, Sent(allowed)
        self.num_tokens, self.hole_token_id, self.shares = len(allowed), int(hole_token_id), shares
        self.gap_token_id, self.longest = gap_token_id, longest
        alternatives = (self.num_tokens - 1, 1, self.num_tokens)
        self.steps = Steps(*(math.log(p / n) if p > 0 else NEVER for p, n in zip(shares, alternatives, strict=True)))

    @classmethod
    def from_config(cls, config: Any) -> EditProcess:
        for name, what in (("pad_token_id", "stands where a text may grow"), ("mask_token_id", "is read in every gap")):
            if getattr(config, name) is None:
                raise ValueError(
                    f"{name} is not set: process 'edit' needs such a token, which {what}; give `{name}=...`"
                )
        if config.pad_token_id == config.mask_token_id:
            raise ValueError(
                f"mask_token_id and pad_token_id are both {config.pad_token_id}, and process 'edit' tells the two "
                "tokens apart: give another mask_token_id"
            )
        if config.time_conditioning:
            raise ValueError(
                "time_conditioning=True tells a model how many errors there are, which nobody knows of a text that is "
                "to be repaired by process 'edit': give time_conditioning=False"
            )
        return cls(
            config.allowed_token_ids(),
            config.pad_token_id,
            gap_token_id=config.mask_token_id,
            longest=config.max_row_length,
        )

    def widen(
        self, x: Tensor, editable: Tensor, attention_mask: Tensor | None, t: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Rows x (B, L) with room for t (B,) edits in each of their segments: tokens, attention_mask, editable, t.

        t falls to as many edits as a row has tokens less than `longest`.
        """
        attended = torch.ones_like(editable) if attention_mask is None else attention_mask.bool()
        if self.longest is not None:
            t = t.minimum((self.longest - attended.sum(dim=1)).clamp(min=0))
        wide = widen(x, editable, attended, t, self.hole_token_id)
        return wide.tokens, wide.attention_mask, wide.editable, t

    def of_pairs(
        self,
        x0: Tensor,
        noisy: Tensor,
        paired: Tensor,
        editable: Tensor,
        attention_mask: Tensor | None,
        t: Tensor,
        random: RowRandom,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, EditNoise]:
        """Rows with room for their edits as of `widen`, and noise: of those `paired` one that carries them to `noisy`.

        It is a draw from the posterior at t = the fewest edits that lead there. The others have fresh noise, as have
        rows that with so many edits could be longer than `longest`, or that have fewer tokens than edits.

        Args:
            x0: (B, L) int64, of which all that is editable stands together. noisy: (B, M) int64, the same rows with
                other tokens there, and holes behind their ends. paired: (B,) bool. editable: (B, L) bool.
            attention_mask: (B, L), 1 where there is a token; None: everywhere. t: (B,) int64, of rows not paired.
        """
        attended = torch.ones_like(editable) if attention_mask is None else attention_mask.bool()
        behind = noisy == self.hole_token_id
        least = edit_distance(x0.masked_fill(~attended, NOTHING), noisy.masked_fill(behind, NOTHING))
        wanted = torch.where(paired, least, t)
        x, mask, wide, t = self.widen(x0, editable, attended, wanted)
        taken = paired & (t == wanted) & (t <= editable.sum(dim=1))
        columns = torch.arange(x.shape[1], device=x.device)
        number = editable.sum(dim=1) + (~behind).sum(dim=1) - attended.sum(dim=1)  # tokens of the noisy text
        place = columns - wide.long().argmax(dim=1)[:, None]
        there = torch.nn.functional.pad(noisy, (0, x.shape[1]), value=self.hole_token_id)[:, : x.shape[1]]
        xt = torch.where(wide, torch.where(place < number[:, None], there, self.hole_token_id), x)
        fresh = self.sample_noise(x, editable=wide, random=random)
        led = self.invert_noise(
            x, torch.where(taken[:, None], xt, x), torch.where(taken, t, 0), editable=wide, random=random
        )
        chosen = taken[:, None]
        return x, mask, wide, t, EditNoise(*(torch.where(chosen, *two) for two in zip(led, fresh, strict=True)))

    def tokens_of(self, letters: Tensor) -> Tensor:
        """The tokens of indices 0..V-1, int64 of any shape; -1 stays."""
        (allowed,) = self._allowed_on(letters.device)
        return torch.where(letters >= 0, allowed[letters.clamp(min=0)], letters)

    def index_of(self, tokens: Tensor) -> Tensor:
        """The indices 0..V-1 of tokens that may stand at an editable position, int64 of any shape."""
        (allowed,) = self._allowed_on(tokens.device)
        return torch.searchsorted(allowed, tokens.contiguous()).clamp(max=self.num_tokens - 1)

    def sample_noise(self, x: Tensor, *, editable: Tensor | None = None, random: RowRandom | None = None) -> EditNoise:
        """x: (B, L) int64 gives the shape; editable: (B, L) bool. Independent of the tokens and of their number."""
        editable, random = settled(x, editable, random)
        width = x.shape[1]
        u = [random.uniform(width) for _ in range(7)]
        return EditNoise(
            u[0].masked_fill(~editable, torch.inf),
            u[1],
            self._kinds(u[2]),
            1 + (u[3] * (self.num_tokens - 1)).long(),
            (u[4] * self.num_tokens).long(),
            u[5],
            u[6],
        )

    def _kinds(self, uniforms: Tensor) -> Tensor:
        """A kind of edit for each uniform; one of share 0 never comes."""
        substitute, delete, insert = self.shares
        if insert == 0:
            return torch.where(uniforms < substitute, SUBSTITUTE, DELETE)
        kinds = torch.where(uniforms < substitute + delete, DELETE, INSERT)
        return torch.where(uniforms < substitute, SUBSTITUTE, kinds)

    def letters(self, x: Tensor, editable: Tensor, name: str = "x") -> Tensor:
        """(B, L) int64: the index 0..V-1 of each token of a segment, -1 at holes and at given positions.

        Raises:
            ValueError: where something else stands in a segment, or a hole in front of a token.
        """
        token = editable & (x != self.hole_token_id)
        index = self.index_of(x)
        demand(
            (self.tokens_of(index) == x) | ~token, f"{name} holds a token that may not stand at an editable position"
        )
        torn = editable[:, 1:] & editable[:, :-1] & token[:, 1:] & ~token[:, :-1]
        demand(~torn, f"{name} has a hole in front of a token: in a segment the tokens stand first, and then the holes")
        return index.masked_fill(~token, -1)

    def _read(self, x: Tensor, editable: Tensor, name: str) -> _Rows:
        letters = self.letters(x, editable, name)
        token = letters >= 0
        here = token | _walls(editable)
        columns = (~here).long().argsort(dim=1, stable=True)
        number = here.sum(dim=1)
        things = torch.where(token, letters, WALL).gather(1, columns)
        behind = torch.arange(x.shape[1], device=x.device) >= number[:, None]
        return _Rows(things.masked_fill(behind, NOTHING), columns, here, letters, number, token.sum(dim=1))

    def corrupt(self, x0: Tensor, t: Tensor, noise: EditNoise) -> Tensor:
        """(B, L) int64: x0 after min(t, l) edits. t: (B,) int64.

        Raises:
            ValueError: where a segment has no room for what is inserted: give it t holes.
        """
        return self.edit(x0, t, noise).xt

    def edit(self, x0: Tensor, t: Tensor, noise: EditNoise) -> Edited:
        """`corrupt`, and what was done where."""
        editable = noise.keys < torch.inf
        rows = self._read(x0, editable, "x0")
        (allowed,) = self._allowed_on(x0.device)
        token, index = rows.letters >= 0, rows.letters.clamp(min=0)
        chosen = corrupted_set(noise.keys.masked_fill(~token, torch.inf), t)
        kind = torch.where(chosen, noise.kinds, KEEP)
        value = torch.where(kind == SUBSTITUTE, (index + noise.shifts) % self.num_tokens, index)
        comes = kind == INSERT
        # the things of x0, those that are deleted too, and what is inserted, all in the order of their places
        places = torch.cat(
            (
                _in_order(noise.places, rows.here).masked_fill(~rows.here, torch.inf),
                noise.insertions.masked_fill(~comes, torch.inf),
            ),
            dim=1,
        )
        values = torch.cat((torch.where(token, value, WALL), noise.letters), dim=1)
        stands = torch.cat((rows.here & (kind != DELETE), comes), dim=1)
        order = places.argsort(dim=1, stable=True)
        things = torch.where(stands, values, NOTHING).gather(1, order)
        column = self._columns(things, editable)
        holes = torch.cat((x0.masked_fill(editable, self.hole_token_id), x0[:, :1]), dim=1)
        width = x0.shape[1]
        target = torch.where(things >= 0, column, width)
        xt = holes.scatter(1, target, allowed[things.clamp(min=0)])[:, :width]
        gone = torch.cat((rows.here & (kind == DELETE), torch.zeros_like(comes)), dim=1).gather(1, order)
        column, ghosts = (
            torch.empty_like(x).scatter_(1, order, x) for x in (column, _between(gone, things != NOTHING))
        )
        columns = torch.where(comes, column[:, width:], column[:, :width])
        return Edited(xt, kind, columns, index, torch.where(comes, ghosts[:, width:], 0))

    def _columns(self, things: Tensor, editable: Tensor) -> Tensor:
        """(B, N) int64: where each of the things stands in the row, or where what has gone would stand.

        things: (B, N) int64, tokens, WALL, and NOTHING for what has gone. Raises ValueError where there is no room.
        """
        width = editable.shape[1]
        number = torch.arange(width, device=editable.device).expand_as(editable)
        before = torch.cat((torch.zeros_like(editable[:, :1]), editable[:, :-1]), dim=1)
        starts = editable & ~before
        segment = torch.where(editable, starts.long().cumsum(dim=1) - 1, width)
        first = torch.zeros(len(editable), width + 1, dtype=torch.int64, device=editable.device)
        first.scatter_(1, torch.where(starts, segment, width), number)
        wide = torch.zeros_like(first).scatter_add_(1, segment, editable.long())
        token, wall = (things >= 0).long(), things == WALL
        count = token.cumsum(dim=1)
        own = count - token - torch.where(wall, count, 0).cummax(dim=1).values  # how many of its segment stand before
        which = wall.long().cumsum(dim=1)
        demand(
            (things < 0) | (own < wide.gather(1, which)),
            "a segment has no room for the tokens that are inserted into it: give it as many holes as there are edits",
        )
        return first.gather(1, which) + own

    def _end(self, x0: _Rows, xt: _Rows, t: Tensor, table: Tensor) -> Tensor:
        """(B, T + 1, T + 1) float64: log q(x_t | x0) by its numbers of deletions and insertions [d, k]."""
        most = table.shape[2] - 1
        counts = torch.arange(most + 1, device=t.device)
        d, k = counts[:, None], counts[None, :]
        s = t[:, None, None] - d - k
        fits = (s >= 0) & (k - d == (xt.number - x0.number)[:, None, None])
        rows = torch.arange(len(t), device=t.device)[:, None, None]
        paths = table[rows, x0.number[:, None, None], s.clamp(min=0), d, k]

        def log_factorial(number: Tensor) -> Tensor:
            return torch.lgamma(number.clamp(min=0).double() + 1)

        length, number, edits = (x[:, None, None] for x in (x0.length, x0.number, t))
        weight = log_factorial(edits) + log_factorial(length - edits + k) - log_factorial(number + k)
        weight = weight + log_factorial(number) - log_factorial(length)
        return torch.where(fits, paths + weight, NEVER).clamp(min=NEVER)

    def _lattice(
        self, x0: Tensor, xt: Tensor, t: Tensor, editable: Tensor
    ) -> tuple[_Rows, _Rows, Tensor, Tensor, Tensor]:
        """What of x0 and xt is read, min(t, l), the table of their lattice, and `_end`."""
        clean, noisy = self._read(x0, editable, "x0"), self._read(xt, editable, "xt")
        edits = torch.minimum(t, clean.length)
        table = lattice_table(clean.things, noisy.things, self.steps, int(edits.max()))
        return clean, noisy, edits, table, self._end(clean, noisy, edits, table)

    def log_forward(self, x0: Tensor, xt: Tensor, t: Tensor, *, editable: Tensor | None = None) -> Tensor:
        """(B,) float64: log q(xt | x0), exactly; `hamming.NEVER` where no min(t, l) edits lead from x0 to xt."""
        *_, end = self._lattice(x0, xt, t, settled(xt, editable, None)[0])
        return end.flatten(1).logsumexp(dim=1)

    def invert_noise(
        self,
        x0: Tensor,
        xt: Tensor,
        t: Tensor,
        *,
        editable: Tensor | None = None,
        random: RowRandom | None = None,
    ) -> EditNoise:
        """Noise that carries x0 to xt by min(t, l) edits: a draw from its posterior.

        Raises:
            ValueError: where no so many edits lead from x0 to xt.
        """
        editable, random = settled(xt, editable, random)
        width = xt.shape[1]
        fresh = self.sample_noise(xt, editable=editable, random=random)
        walk, numbers, tie = random.uniform(2 * width), random.uniform(1), random.uniform(width)
        clean, noisy, edits, table, end = self._lattice(x0, xt, t, editable)
        total = end.flatten(1).logsumexp(dim=1)
        demand(total > NEVER / 2, "t is no number of edits that lead from x0 to xt; their edit distance is the least")
        heights = (end.flatten(1) - total[:, None]).exp().cumsum(dim=1)
        drawn = (numbers * heights[:, -1:] >= heights[:, :-1]).sum(dim=1)
        most = table.shape[2] - 1
        deleted, came = drawn // (most + 1), drawn % (most + 1)
        corner = clean.number, edits - deleted - came, deleted, came
        path = draw_alignment(table, clean.things, noisy.things, self.steps, corner, walk)

        def on_row(values: Tensor, elsewhere: int) -> Tensor:
            """What is said of the things of x0, at the positions where they stand."""
            spread = torch.full_like(values, elsewhere).scatter(1, clean.columns, values)
            return torch.where(clean.here, spread, elsewhere)

        token, kind = clean.letters >= 0, on_row(path.steps, KEEP)
        # an insertion belongs to a token that stays: the k-th of them, from the left, to the k-th of a random order
        waiting = ranks(tie.masked_fill(~(token & (kind == KEEP)), torch.inf))
        carries = token & (kind == KEEP) & (waiting < came[:, None])
        columns = (~path.inserted).long().argsort(dim=1, stable=True).gather(1, waiting)
        kind = torch.where(carries, INSERT, kind)
        # the fresh places that the path has need of, in the order of the path
        used = torch.cat(
            (fresh.places.masked_fill(~clean.here, torch.inf), fresh.insertions.masked_fill(~carries, torch.inf)), 1
        )
        rising = used.sort(dim=1).values
        places = torch.where(clean.here, rising.gather(1, on_row(path.place_a, 0)), fresh.places)
        insertions = torch.where(carries, rising.gather(1, path.place_b.gather(1, columns)), fresh.insertions)
        letters = torch.where(carries, noisy.things.gather(1, columns), fresh.letters)
        became = noisy.things.gather(1, on_row(path.partner, 0))
        was = on_row(clean.things, 0)
        shifts = torch.where(kind == SUBSTITUTE, (became - was) % self.num_tokens, fresh.shifts)
        # the smallest keys are those of the edits, in random order
        order = (random.uniform(width) + (kind == KEEP).double() + (~token).double()).argsort(dim=1)
        rising = fresh.keys.masked_fill(~token, torch.inf).sort(dim=1).values
        keys = torch.where(token, torch.empty_like(rising).scatter(1, order, rising), fresh.keys)
        kinds = torch.where(kind == KEEP, fresh.kinds, kind)
        return EditNoise(keys, fresh.coins, kinds, shifts, letters, places, insertions)

    def blend(self, noise: EditNoise, fresh: EditNoise, churn: float) -> EditNoise:
        """Each position's noise is replaced by fresh noise with probability churn in [0, 1]."""
        if not 0.0 <= churn <= 1.0:
            raise ValueError(f"churn must lie in [0, 1], got {churn}")
        swap = fresh.coins < churn
        return EditNoise(*(torch.where(swap, new, old) for new, old in zip(fresh, noise, strict=True)))

    def corrupted(self, xt: Tensor, x0: Tensor) -> Tensor:
        """(B, L) bool: where the rows differ; an edit moves what stands behind it, so they are no count of edits."""
        return xt != x0

    def losses(
        self, predict, rows, forbidden: Tensor, *, loss: str = "nelbo", kernel: str = "site", chunk: int | None = None
    ) -> Tensor:
        """As in `TokenProcess`, of loss "cross_entropy": that of one edit back, or of stopping (`edit_losses`)."""
        from .editing import network_losses

        if loss != "cross_entropy":
            raise ValueError(
                f"loss {loss!r} bounds -log p of texts, and a model of process 'edit' has no law of texts, since it "
                "repairs those it is given: take loss 'cross_entropy', or evaluate_repair"
            )
        return network_losses(predict, rows, forbidden, self)

    def check_training(self, loss: str, max_corruption: float, loss_chunk: int | None) -> None:
        """Raises ValueError for anything but the training of a repairer."""
        if max_corruption >= 1.0:
            raise ValueError(
                f"process 'edit' trains repairers, of texts most of which stands: give max_corruption below 1, as "
                f"0.15, got {max_corruption}"
            )
        if loss_chunk is not None:
            raise ValueError(
                f"loss_chunk={loss_chunk} is of losses that ask for a token at each position, and one of process "
                "'edit' weighs all tokens of a row: leave loss_chunk away"
            )

    def predictor(self, model, config, inputs, random: RowRandom, constraints):
        """An `EditPredictor`."""
        from .editing import EditPredictor

        return EditPredictor(model, self, config, inputs, random, constraints)

    def resolve_options(self, config, model_config) -> None:
        """Raises ValueError for anything but a repair of one edit a step."""
        if config.max_edits is None:
            raise ValueError(
                "a model of process 'edit' repairs texts and cannot write, continue or fill in one: give a text and "
                "max_edits, as max_edits=2"
            )
        for name, idle, why in (
            ("num_steps", (None,), "a step makes one edit"),
            ("churn", (0.0,), "a repair corrupts nothing"),
            ("allowed_tokens", (None, {}), "it names positions, and an edit moves what stands behind it"),
            ("guidance_scale", (None, 1), "all of the text is to be repaired"),
            ("cache_refresh", (None, 1), "an edit moves what stands behind it"),
        ):
            if (value := getattr(config, name)) not in idle:
                raise ValueError(
                    f"{name}={value} does not go with a repair by process 'edit', since {why}: leave it out"
                )

    def prior(self, x: Tensor, *, editable: Tensor | None = None, random: RowRandom | None = None) -> Tensor:
        """There is none: after l edits of a mixture some tokens of x0 still stand."""
        raise ValueError(
            "the edit process has no prior, a law to begin from, since l edits leave tokens of x0 in place; "
            "start from a text"
        )
