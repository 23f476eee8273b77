"""The edit process of small worlds, enumerated from its definition in docs/mathematics.md; nothing of the package is
used.

A text is a tuple of tokens 0..V-1, and of WALL between one segment and the next, which is no token. An edit of a
text, forward or back, is one of

    ("substitute", i, v)    token i becomes v
    ("delete", i)           token i goes away
    ("insert", g, v)        v comes into gap g, left of token g (g = m: behind the last of m tokens)

and ("stop",) leaves it. Numbers may be fractions: what is given as `Fraction` is computed exactly.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import product as cartesian
from math import factorial, log

Text = tuple[int, ...]
Edit = tuple
WALL = -1
FREE, FIXED, GONE = "free", "fixed", "gone"
KINDS = ("substitute", "delete", "insert")
STOP = ("stop",)


def apply(text: Text, edit: Edit) -> Text:
    """The text after an edit."""
    kind, *where = edit
    if kind == "stop":
        return text
    i = where[0]
    if kind == "substitute":
        return (*text[:i], where[1], *text[i + 1 :])
    if kind == "delete":
        return (*text[:i], *text[i + 1 :])
    return (*text[:i], where[1], *text[i:])


def canonical(text: Text, edit: Edit) -> Edit:
    """The first of the edits of `text` that give the same text."""
    return next(other for other in every_edit(text, max((0, *text, *edit[2:])) + 1) if same(text, edit, other))


def same(text: Text, edit: Edit, other: Edit) -> bool:
    return edit[0] == other[0] and apply(text, edit) == apply(text, other)


def every_edit(text: Text, num_tokens: int) -> Iterator[Edit]:
    """Every edit that changes the text, places in rising order."""
    for i in range(len(text)):
        yield from (("substitute", i, v) for v in range(num_tokens) if v != text[i])
    yield from (("delete", i) for i in range(len(text)))
    yield from (("insert", g, v) for g in range(len(text) + 1) for v in range(num_tokens))


def canonical_edits(text: Text, num_tokens: int) -> list[Edit]:
    """One edit for each text that one edit leads to."""
    found: dict[Text, Edit] = {}
    for edit in every_edit(text, num_tokens):
        found.setdefault(apply(text, edit), edit)
    return list(found.values())


def multiplicity(text: Text, edit: Edit) -> int:
    """d: how many places of the noisier `text` or of the cleaner one the same step of texts could be about."""
    if edit[0] == "delete":  # which of a run had been inserted
        return sum(same(text, edit, ("delete", i)) for i in range(len(text)))
    if edit[0] == "insert":  # which of a run had been deleted
        cleaner = apply(text, edit)
        return sum(apply(cleaner, ("delete", i)) == text for i in range(len(cleaner)))
    return 1


def undo(x0: Text, edit: tuple) -> Edit:
    """The edit of xt that undoes one of an alignment."""
    kind, i, j = edit
    if kind == "substitute":
        return ("substitute", j, x0[i])
    return ("insert", j, x0[i]) if kind == "delete" else ("delete", j)


def texts_of(num_tokens: int, *lengths: int) -> list[Text]:
    return [text for length in lengths for text in cartesian(range(num_tokens), repeat=length)]


@dataclass(frozen=True, eq=False)
class EditWorld:
    """A law of texts and the process. data: text -> chance; shares: of (substitute, delete, insert), sum 1."""

    num_tokens: int
    shares: tuple
    data: dict[Text, object]

    def forward_steps(self, items: tuple) -> Iterator[tuple]:
        """One more edit of a text whose tokens are (token, state): (chance, the edit back, ghosts, the items after it).

        state: FREE, FIXED once it has been edited (or is a wall), or GONE: a deleted token leaves a ghost, and the gaps
        beside it are two. ghosts: how many of them lie in the gap of the text that an insertion goes into.
        """
        a_sub, a_del, a_ins = self.shares
        free = [i for i, (_, state) in enumerate(items) if state == FREE]

        def place(i):
            return sum(state != GONE for _, state in items[:i])

        for i in free:
            token = items[i][0]
            for v in range(self.num_tokens):
                if v != token and a_sub:
                    after = (*items[:i], (v, FIXED), *items[i + 1 :])
                    yield a_sub / len(free) / (self.num_tokens - 1), ("substitute", place(i), token), 0, after
            if a_del:
                yield a_del / len(free), ("insert", place(i), token), 0, (*items[:i], (token, GONE), *items[i + 1 :])
        gaps = [place(g) for g in range(len(items) + 1)]
        for g, where in enumerate(gaps):
            for v in range(self.num_tokens):
                if a_ins:
                    after = (*items[:g], (v, FIXED), *items[g:])
                    yield a_ins / len(gaps) / self.num_tokens, ("delete", where), gaps.count(where) - 1, after

    def paths(self, x0: Text, t: int) -> Iterator[tuple]:
        """Every way to make t edits one after the other: (chance, [x_0, .., x_t], edits, ghosts).

        edits: those back, from x_1, .., from x_t. ghosts: of each, see `forward_steps`.
        """

        def walk(chance, items, texts, edits, ghosts):
            if len(edits) == t:
                yield chance, texts, edits, ghosts
                return
            for p, edit, near, after in self.forward_steps(items):
                text = tuple(v for v, state in after if state != GONE)
                yield from walk(chance * p, after, [*texts, text], [*edits, edit], [*ghosts, near])

        yield from walk(1, tuple((v, FIXED if v == WALL else FREE) for v in x0), [x0], [], [])

    @cached_property
    def _forward(self):
        return {}

    def forward(self, x0: Text, t: int) -> dict[Text, object]:
        """q(x_t | x0), as the sum over the paths."""
        if (x0, t) not in self._forward:
            law = defaultdict(int)
            for chance, texts, *_ in self.paths(x0, t):
                law[texts[-1]] += chance
            self._forward[x0, t] = dict(law)
        return self._forward[x0, t]

    def alignments(self, x0: Text, xt: Text, t: int) -> Iterator[tuple]:
        """Every way to lay x0 beside xt with t edits: (its chance given x0, [(kind, i, j) of each edit]).

        (kind, i, j): i things of x0 and j of xt lie before it. The chance is the closed formula, for l tokens of n
        things: t! a^n (V-1)^-n_s V^-n_i (l - t + n_i)! n! / (n + n_i)! / l!.
        """
        number, length = len(x0), sum(v >= 0 for v in x0)
        one = self.shares[0] * 0 + 1  # a Fraction where the shares are

        def lay(i, j, edits):
            if len(edits) > t:
                return
            if i == number and j == len(xt):
                if len(edits) == t:
                    yield edits
                return
            above, beside = (x0[i] if i < number else None), (xt[j] if j < len(xt) else None)
            if above is not None and above == beside:
                yield from lay(i + 1, j + 1, edits)
            elif above is not None and beside is not None and above >= 0 and beside >= 0:
                yield from lay(i + 1, j + 1, [*edits, ("substitute", i, j)])
            if above is not None and above >= 0:
                yield from lay(i + 1, j, [*edits, ("delete", i, j)])
            if beside is not None and beside >= 0:
                yield from lay(i, j + 1, [*edits, ("insert", i, j)])

        for edits in lay(0, 0, []):
            n_sub, n_del, n_ins = (sum(edit[0] == kind for edit in edits) for kind in KINDS)
            if t > length:
                continue
            chance = one * factorial(t) * factorial(length - t + n_ins) * factorial(number)
            chance /= factorial(number + n_ins) * factorial(length)
            for n, share, alternatives in zip(
                (n_sub, n_del, n_ins), self.shares, (self.num_tokens - 1, 1, self.num_tokens), strict=True
            ):
                chance *= (share / alternatives) ** n
            if chance:
                yield chance, edits

    def reverse(self, x0: Text, xt: Text, t: int) -> dict[Edit, object]:
        """q(the step back | x_t, x0) by canonical edits: one of the t edits of a posterior alignment, uniformly."""
        law, total = defaultdict(int), 0
        for chance, edits in self.alignments(x0, xt, t):
            total += chance
            for edit in edits:
                law[canonical(xt, undo(x0, edit))] += chance / t
        return {edit: p / total for edit, p in law.items()}

    def marginal(self, t: int) -> dict[Text, object]:
        """q(x_t)."""
        law = defaultdict(int)
        for x0, weight in self.data.items():
            for xt, p in self.forward(x0, t).items():
                law[xt] += weight * p
        return dict(law)

    def exact_predictor(self, t: int) -> dict[Text, dict[Edit, object]]:
        """p(canonical edit | x_t) at known t, of the law of the data."""
        law: dict = defaultdict(lambda: defaultdict(int))
        total = self.marginal(t)
        for x0, weight in self.data.items():
            for xt, p in self.forward(x0, t).items():
                if t == 0:
                    law[xt][STOP] += weight * p / total[xt]
                    continue
                for edit, r in self.reverse(x0, xt, t).items():
                    law[xt][edit] += weight * p * r / total[xt]
        return {xt: dict(edits) for xt, edits in law.items()}

    def untold_predictor(self, count_law: list) -> dict[Text, dict[Edit, object]]:
        """p(canonical edit or stop | x), x corrupted by t edits with chance count_law[t]: for who is not told t."""
        law: dict = defaultdict(lambda: defaultdict(int))
        total = defaultdict(int)
        for t, rho in enumerate(count_law):
            marginal = self.marginal(t)
            for xt, edits in self.exact_predictor(t).items():
                total[xt] += rho * marginal[xt]
                for edit, p in edits.items():
                    law[xt][edit] += rho * marginal[xt] * p
        return {xt: {edit: p / total[xt] for edit, p in edits.items()} for xt, edits in law.items()}


def step_law(law: dict[Text, object], predictor: dict[Text, dict[Edit, object]]) -> dict[Text, object]:
    """The law of the texts after one edit each, drawn from the predictor."""
    after = defaultdict(int)
    for text, weight in law.items():
        for edit, p in predictor[text].items():
            after[apply(text, edit)] += weight * p
    return dict(after)


def distance(p: dict, q: dict) -> float:
    """Total variation."""
    return sum(abs(p.get(x, 0) - q.get(x, 0)) for x in {*p, *q}) / 2


def entropy_of(law: dict) -> float:
    return -sum(float(p) * log(p) for p in law.values() if p)
