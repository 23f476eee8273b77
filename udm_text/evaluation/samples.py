"""Figures of texts that a model has drawn, each beside the same figure of held-out texts and of texts trained on.

No figure says alone whether texts are good. Perplexity under another model falls for texts that repeat themselves, so
it never stands without the entropy of their words; distinct words and BLEU among the texts tell of their variety, known
n-grams of their grammar, and the nearest training text of what was learnt by heart. What is wanted is the figure of the
held-out texts, not a large or a small one. All figures but those of a judge are of words: runs of letters and digits,
and every other character that is no white space by itself.

Sources: distinct-n, Li et al. 1510.03055; self-BLEU, Zhu et al. 1802.01886 with the BLEU of Papineni et al. (2002),
smoothed as sacrebleu does it; repetition, Welleck et al. 1908.04319; perplexity beside entropy, Zheng et al.
2409.02908; frontiers of both, Caccia et al. 1811.02549; MAUVE, Pillutla et al. 2102.01454.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..common import check_whole, eval_mode, watched
from ..configuration_udm import longest_readable_row
from .bounds import ratio_with_stderr
from .context import evenly
from .features import check_vocabulary, count_cut, mauve

_WORD = re.compile(r"\w+|[^\w\s]")
ORDERS = (1, 2, 3, 4)
"""Lengths of n-grams that BLEU is made of."""
GRAM = 3
"""Words of the n-grams that are looked up in the training texts, and whose repetition is counted."""
MOST_TRAINING = 20_000
"""Training texts that samples are looked up in, at most."""


def words(text: str) -> tuple[str, ...]:
    """The words of a text, case kept."""
    return tuple(_WORD.findall(text))


def grams(sequence: Sequence[Any], n: int) -> list[tuple[Any, ...]]:
    """The n-grams of a sequence, from left to right."""
    return [tuple(sequence[i : i + n]) for i in range(len(sequence) - n + 1)]


def unigram_entropy(texts: Iterable[Sequence[Any]]) -> float:
    """The entropy in nats of the frequencies of all tokens of some texts together; 0 where there is none."""
    counts = torch.tensor(list(Counter(token for text in texts for token in text).values()), dtype=torch.float64)
    return float(torch.special.entr(counts / counts.sum()).sum()) if len(counts) else 0.0


def distinct(texts: Iterable[Sequence[Any]], n: int) -> float | None:
    """The share of different ones among all n-grams of some texts; None where there are none.

    It falls with the number of texts, so that only as many can be compared.
    """
    every = [gram for text in texts for gram in grams(text, n)]
    return len(set(every)) / len(every) if every else None


def repetition(texts: Iterable[Sequence[Any]], n: int = GRAM) -> float | None:
    """The share of n-grams that stand in the same text before; None where there are no n-grams."""
    pairs = [(len(found), len(set(found))) for text in texts if (found := grams(text, n))]
    return 1.0 - sum(different for _, different in pairs) / sum(every for every, _ in pairs) if pairs else None


def bleu(candidate: Sequence[Any], references: Sequence[Sequence[Any]]) -> float:
    """BLEU of one text against others, in [0, 1]: 1 where it is one of them, 0 where it shares no word.

    The geometric mean of the clipped precisions of its n-grams, n up to 4 or as long as the text is, times
    exp(1 - r/c) where the reference nearest in length, r, is longer than the text, c. The k-th precision that is
    nothing counts as 1 / (2^k m), m the n-grams there are.
    """
    return _bleu(candidate, [_most(references, n) for n in ORDERS], sorted(map(len, references)))


def _most(references: Sequence[Sequence[Any]], n: int) -> dict[Any, tuple[int, int, int]]:
    """Of every n-gram: how often it stands in the reference that has it most, which that is, and the second most."""
    found: dict[Any, tuple[int, int, int]] = {}
    for number, reference in enumerate(references):
        for gram, count in Counter(grams(reference, n)).items():
            best, owner, second = found.get(gram, (0, -1, 0))
            found[gram] = (count, number, best) if count > best else (best, owner, max(second, count))
    return found


def _bleu(
    candidate: Sequence[Any], most: Sequence[dict[Any, tuple[int, int, int]]], lengths: list[int], own: int = -2
) -> float:
    """`bleu` from `_most` of each order. own: which of the references the candidate is, and so does not count."""
    logs, nothing = [], 0
    for n, known in zip(ORDERS, most, strict=True):
        counts = Counter(grams(candidate, n))
        total = sum(counts.values())
        if not total:
            break
        hits = 0
        for gram, count in counts.items():
            best, owner, second = known.get(gram, (0, -1, 0))
            hits += min(count, second if owner == own else best)
        if n == 1 and not hits:
            return 0.0
        nothing += not hits
        logs.append(math.log(hits / total) if hits else -math.log(2**nothing * total))
    if not logs or not lengths:
        return 0.0
    size = len(candidate)
    nearest = min(lengths, key=lambda length: (abs(length - size), length))
    return math.exp(sum(logs) / len(logs) + min(0.0, 1.0 - nearest / size))


def self_bleu(texts: Sequence[Sequence[Any]]) -> float | None:
    """The mean BLEU of each text against all others; near 1 they are all alike. None for fewer than two texts."""
    if len(texts) < 2:
        return None
    most, lengths = [_most(texts, n) for n in ORDERS], sorted(map(len, texts))
    scores = []
    for number, text in enumerate(texts):
        others = list(lengths)
        others.remove(len(text))
        scores.append(_bleu(text, most, others, number))
    return sum(scores) / len(scores)


def length_distance(texts: Sequence[Sequence[Any]], others: Sequence[Sequence[Any]]) -> float:
    """The Wasserstein distance of the lengths of two collections, in words: how far a text would have to grow or shrink
    in the mean."""
    a, b = (torch.tensor(sorted(map(len, each)), dtype=torch.float64) for each in (texts, others))
    every = torch.cat((a, b)).sort().values
    shares = [torch.searchsorted(each, every[:-1], right=True).double() / len(each) for each in (a, b)]
    return float(((shares[0] - shares[1]).abs() * every.diff()).sum())


def gram_distance(texts: Iterable[Sequence[Any]], others: Iterable[Sequence[Any]], n: int = 2) -> float | None:
    """The Jensen-Shannon divergence of the frequencies of n-grams of two collections, in bits: 0 where they are alike,
    1 where they share none; None where either has none."""
    counts = [Counter(gram for text in each for gram in grams(text, n)) for each in (texts, others)]
    if not all(counts):
        return None
    every = list(counts[0] | counts[1])
    p, q = (torch.tensor([each[gram] for gram in every], dtype=torch.float64) for each in counts)
    p, q = p / p.sum(), q / q.sum()
    mixed, own = torch.special.entr((p + q) / 2).sum(), torch.special.entr(torch.stack((p, q))).sum() / 2
    return float((mixed - own).clamp(min=0.0)) / math.log(2)


def valid_share(texts: Sequence[str], valid: Callable[[str], Any]) -> dict[str, float | None]:
    """The share of texts of which valid(text) is true, and one standard error; None for one text.

    Raises:
        ValueError: valid raises an exception or ends the process, or says something that is neither true nor false,
            naming the text.
    """
    found = []
    for text in texts:
        try:
            answer = valid(text)
        except (Exception, SystemExit) as error:
            raise ValueError(f"validity failed on {text[:80]!r}: {type(error).__name__}: {error}") from error
        if not isinstance(answer, bool) and answer not in (0, 1):
            raise ValueError(f"validity must say True or False of a text, of {text[:80]!r} it said {answer!r}")
        found.append(float(answer))
    share = sum(found) / len(found)
    stderr = math.sqrt(share * (1.0 - share) / (len(found) - 1)) if len(found) > 1 else None
    return {"valid": share, "valid_stderr": stderr}


class TrainingTexts:
    """Texts that were trained on, to look others up in.

    Args:
        texts: as words. n: of the n-grams they are looked up by.
    """

    def __init__(self, texts: Sequence[Sequence[Any]], n: int = GRAM):
        self.n, self.texts = n, [tuple(text) for text in texts]
        self.whole = Counter(self.texts)
        self.places: dict[Any, list[int]] = {}
        for number, text in enumerate(self.texts):
            for gram in set(grams(text, n)):
                self.places.setdefault(gram, []).append(number)

    def figures(self, texts: Sequence[Sequence[Any]], own: Sequence[int] | None = None) -> dict[str, float | None]:
        """copies: the share of texts that were trained on, word for word. known_grams: of their n-grams, those that
        stand in any training text. nearest: of the n-grams of a text, those that stand in the one training text that
        has most of them, in the mean; a text by heart has 1.

        own: the number of each text among those trained on, where it is one: it is not compared with itself.
        """
        copies, known, total, nearest = 0, 0, 0, []
        for place, text in enumerate(texts):
            me = -1 if own is None else own[place]
            copies += self.whole[tuple(text)] > (own is not None)
            found = set(grams(text, self.n))
            if not found:
                continue
            where = [[i for i in self.places.get(gram, ()) if i != me] for gram in found]
            known, total = known + sum(map(bool, where)), total + len(found)
            votes = Counter(i for numbers in where for i in numbers)
            nearest.append(max(votes.values(), default=0) / len(found))
        return {
            "copies": copies / len(texts) if texts else None,
            "known_grams": known / total if total else None,
            "nearest": sum(nearest) / len(nearest) if nearest else None,
        }


@torch.no_grad()
def judged(model: Any, tokenizer: Any, texts: Sequence[str], batch_size: int = 16) -> dict[str, Any]:
    """What a causal language model thinks of texts: perplexity of its tokens, and beside it their unigram entropy.

    Each token is scored given all before it, from the tokenizer's first token (bos) on, or else from the text's second
    token. Of a text that is longer than the judge reads its beginning is scored, and what stands behind is not;
    judge_cut counts such texts. Nats per token have the standard error of the choice of texts. None: no token is
    scored.

    Args:
        model: of `AutoModelForCausalLM`. tokenizer: its own.
    """
    bos = tokenizer.bos_token_id
    every = tokenizer(list(texts), verbose=False)["input_ids"]
    rows = [ids if bos is None or ids[:1] == [bos] else [bos, *ids] for ids in every]
    limit = longest_readable_row(model.config)
    cut = 0 if limit is None else sum(len(row) > limit for row in rows)
    rows = [row[:limit] for row in rows if len(row) > 1]
    nats, counts = torch.zeros(len(rows), dtype=torch.float64), torch.zeros(len(rows), dtype=torch.float64)
    device = model.get_input_embeddings().weight.device
    with eval_mode(model):
        for start in watched(range(0, len(rows), batch_size), "judge"):
            batch = rows[start : start + batch_size]
            nats[start : start + len(batch)] = _nats(model, batch, device)
            counts[start : start + len(batch)] = torch.tensor([len(row) - 1.0 for row in batch])
    if not rows:
        names = ("perplexity", "nats_per_token", "nats_per_token_stderr", "token_entropy")
        return {**dict.fromkeys(names), "judge_cut": cut}
    per_token, error = ratio_with_stderr(nats, counts)
    return {
        "perplexity": math.exp(per_token),
        "nats_per_token": per_token,
        "nats_per_token_stderr": error if math.isfinite(error) else None,
        "token_entropy": unigram_entropy(row[1:] for row in rows),
        "judge_cut": cut,
    }


def check_judge(model: Any, tokenizer: Any, name: str = "judge") -> None:
    """Raises ValueError for a model that is no judge: its tokenizer is of another vocabulary, or it sees what comes.

    name: of the argument that gave it, with what was given.
    """
    check_vocabulary(model, tokenizer, name)
    special = set(tokenizer.all_special_ids)
    ordinary = [i for i in range(len(tokenizer)) if i not in special][:2]
    if len(ordinary) < 2:
        raise ValueError(f"{name}: its tokenizer has no two tokens that are not special, so it reads no text")
    one, other = ordinary
    device = model.get_input_embeddings().weight.device
    with eval_mode(model), torch.no_grad():
        logits = model(input_ids=torch.tensor([[one, one, one], [one, one, other]], device=device)).logits.float()
    if not torch.allclose(logits[0, :2], logits[1, :2], atol=1e-3):
        raise ValueError(f"{name}: what it says of a token depends on the tokens behind it, so it is no causal model")


def measure_frontier(
    draw: Callable[[float, int], Sequence[str]],
    judge: tuple[Any, Any],
    temperatures: Sequence[float],
    steps: Sequence[int],
) -> list[dict[str, Any]]:
    """Perplexity under a judge beside entropy, of the texts of each temperature and number of steps.

    Either alone is bought with the other, so that samplers are compared by the curves: "temperature", "num_steps",
    "texts" and the figures of `judged`, with "word_entropy", for each pair, the temperatures of a number of steps
    beside each other.

    Args:
        draw: called as draw(temperature, num_steps), gives texts; the same number each time, or entropies do not
            compare.
        judge: a causal model and its tokenizer.
    """
    for name, values in (("temperatures", temperatures), ("steps", steps)):
        if not len(values) or len(set(values)) < len(values):
            raise ValueError(f"{name} must hold different numbers, at least one, got {list(values)}")
    if not all(math.isfinite(value) and value >= 0 for value in temperatures):
        raise ValueError(f"temperatures must be at least 0, got {list(temperatures)}")
    for count in steps:
        check_whole(1, steps=count)
    points = []
    for count in steps:
        for temperature in temperatures:
            texts = list(draw(temperature, count))
            entropy = unigram_entropy(words(text) for text in texts)
            said = {**judged(*judge, texts), "word_entropy": entropy}
            points.append({"temperature": temperature, "num_steps": count, "texts": len(texts), **said})
    return points


def _nats(model: Any, rows: Sequence[Sequence[int]], device: Any) -> Tensor:
    """(R,) float64: -log p of rows of tokens given their first."""
    pad = torch.nn.utils.rnn.pad_sequence
    tokens = pad([torch.tensor(row) for row in rows], batch_first=True).to(device)
    mask = pad([torch.ones(len(row), dtype=torch.int64) for row in rows], batch_first=True).to(device)
    logits = model(input_ids=tokens, attention_mask=mask).logits[:, :-1]
    each = logits.float().log_softmax(dim=-1).gather(2, tokens[:, 1:, None])[..., 0]
    return -(each.double() * mask[:, 1:]).sum(dim=1).cpu()


def compare_samples(
    samples: Sequence[str],
    held_out: Sequence[str],
    training: Sequence[str],
    *,
    judge: tuple[Any, Any] | None = None,
    featuriser: tuple[Any, Any] | None = None,
    valid: Callable[[str], Any] | None = None,
) -> dict[str, Any]:
    """The figures of samples, of held-out and of training texts: "samples", "held_out", "training", each a dict.

    Of the others as many texts as there are samples are taken, in even steps, since variety depends on their number;
    n-grams are looked up in at most `MOST_TRAINING` training texts. A training text is not compared with itself.
    gram_distance and mauve compare `compared` texts of each with as many held-out texts apart: every other one of
    these; they are None where there is one held-out text alone, and mauve where there are fewer than four. Of these
    texts featuriser_cut are longer than the featuriser reads, as judge_cut of all are longer than the judge reads, and
    count by their beginnings.

    Args:
        judge: a causal model and its tokenizer; None: no figure of it. featuriser: a model that gives hidden states and
            its tokenizer, for MAUVE (`features.mauve`); None: none.
        valid: says of a text whether it is valid (`valid_share`); None: no such figure.

    Raises:
        ValueError: where there are no samples, or no texts to compare with.
    """
    for name, texts in (("samples", samples), ("held_out", held_out), ("training", training)):
        if not len(texts):
            raise ValueError(f"{name} must hold at least one text, got none")
    known = _evenly(training, MOST_TRAINING)
    looked_up = TrainingTexts([words(text) for text in known])
    own = [i * len(known) // min(len(known), len(samples)) for i in range(min(len(known), len(samples)))]
    held_words = [words(text) for text in held_out]
    parts = {
        "samples": (list(samples), None),
        "held_out": (_evenly(held_out, len(samples)), None),
        "training": ([known[i] for i in own], own),
    }
    sources = {"samples": samples, "held_out": list(held_out)[::2], "training": known}
    compared = min(len(held_out) // 2, *map(len, sources.values()))
    apart = _evenly(list(held_out)[1::2], compared)
    beside = {name: _evenly(source, compared) for name, source in sources.items()}
    likeness: dict[str, dict[str, Any]] = {name: {} for name in parts}
    if featuriser is not None:
        scores = mauve(*featuriser, list(beside.values()), apart) if compared > 1 else [None] * len(parts)
        likeness = {
            name: {"mauve": score, "featuriser_cut": count_cut(*featuriser, beside[name])}
            for name, score in zip(parts, scores, strict=True)
        }
    found: dict[str, Any] = {}
    for name, (texts, numbers) in parts.items():
        each = [words(text) for text in texts]
        found[name] = {
            "texts": len(texts),
            **({} if judge is None else judged(*judge, texts)),
            **({} if valid is None else valid_share(texts, valid)),
            "word_entropy": unigram_entropy(each),
            "distinct_1": distinct(each, 1),
            "distinct_2": distinct(each, 2),
            "self_bleu": self_bleu(each),
            "repetition": repetition(each),
            "mean_length": sum(map(len, each)) / len(each),
            "length_distance": length_distance(each, held_words),
            "gram_distance": gram_distance(map(words, beside[name]), map(words, apart)),
            **likeness[name],
            "compared": compared,
            **looked_up.figures(each, numbers),
        }
    return found


def _evenly(texts: Sequence[str], most: int) -> list[str]:
    return [str(text) for text in evenly(list(texts), most)]
