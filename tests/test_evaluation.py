"""The reported bound is the bound: equal to full enumeration, and its standard error is one."""

import dataclasses
import json
import math
from itertools import combinations, product

import pytest
import torch
from transformers.modeling_outputs import MaskedLMOutput

from tests.models import CLS, FIRST, PAD, SEP, UNK, make_rows, make_udm
from udm_text.corpus import collate
from udm_text.evaluation import evaluate_bound, evaluate_token_repair, ratio_with_stderr, row_draws
from udm_text.kernels import KERNELS


@torch.no_grad()
def exact_bound(model, ids, kernel=None) -> float:
    """NELBO of one row in nats by summing over every corruption; written from the formulas, not from the package."""
    config, x0 = model.config, torch.tensor(ids)
    places = [i for i, token in enumerate(ids) if token not in config.special_token_ids]
    tokens = [i for i in range(config.vocab_size) if i not in config.special_token_ids]
    length, kernel = len(places), kernel or config.kernel
    total = 0.0 if config.process != "substitute" else length * math.log(len(tokens) / (len(tokens) - 1))
    for t in range(1, length + 1):
        sets = list(combinations(places, t))
        for chosen in sets:
            if config.process == "mask":
                fillings = [(config.mask_token_id,) * t]
            else:
                same = config.process == "uniform"
                fillings = list(product(*([token for token in tokens if same or token != ids[i]] for i in chosen)))
            rows = x0.repeat(len(fillings), 1)
            rows[:, list(chosen)] = torch.tensor(fillings)
            share = torch.full((len(rows),), t)
            logits = model(rows, t=share, num_editable=torch.full((len(rows),), length)).logits.double()
            p = logits[..., tokens].softmax(-1)[:, places]
            target = torch.stack([p[:, places.index(i), tokens.index(ids[i])] for i in chosen], dim=1)
            chance = 1.0 / (len(sets) * len(fillings))
            if config.process == "mask":
                total += chance / t * -target.log().sum().item()
                continue
            now = torch.tensor([[tokens.index(int(row[i])) for i in places] for row in rows])
            change = 1 - p.gather(2, now[..., None])[..., 0]
            if config.process == "uniform":
                total += chance * sum(
                    uniform_cost(change[n], target[n], rows[n] != x0, chosen, t) for n in range(len(rows))
                )
                continue
            for n in range(len(rows)):
                for k, i in enumerate(chosen):
                    rate = kernel_rate(kernel, change[n], places.index(i), t)
                    total += chance * (-math.log(t) - math.log(float(target[n, k]) * rate)) / t
    return total


def uniform_cost(change, target, differs, chosen, t):
    """KL of the step back, in nats: each differing position by 1/t, and rest for the others of the t."""
    total = float(change.sum())
    rest, cost = max(t - total, 1e-3), 0.0
    for k, i in enumerate(chosen):
        if differs[i]:
            cost += math.log((total + rest) / t / float(target[k])) / t
    right = 1 - int(differs.sum()) / t
    return cost + (right * math.log(right * (total + rest) / rest) if right else 0.0)


def kernel_rate(kernel, change, i, t):
    """p(i -> v) / p_i(v) by summing over every pattern of changes. change: (l,) r_i."""
    if kernel == "site":
        return 1.0 / float(change.sum())
    others = [float(r) for k, r in enumerate(change) if k != i]
    law = [0.0] * (len(others) + 1)
    for pattern in product((0, 1), repeat=len(others)):
        law[sum(pattern)] += math.prod(r if b else 1 - r for r, b in zip(others, pattern, strict=True))
    if kernel == "free":
        return sum(p / (1 + k) for k, p in enumerate(law))
    r = float(change[i])
    exactly = r * law[t - 1] + ((1 - r) * law[t] if t < len(law) else 0.0)
    return law[t - 1] / exactly / t


CASES = [("mask", "site"), *(("substitute", kernel) for kernel in KERNELS), ("uniform", "uniform")]


@pytest.mark.parametrize(("process", "kernel"), CASES)
def test_the_bound_of_a_row_equals_the_sum_over_all_corruptions(process, kernel):
    model = make_udm(vocab_size=9, process=process, kernel=kernel)
    ids = [CLS, 5, 8, UNK, 6, SEP]
    exact = exact_bound(model, ids)
    report = evaluate_bound(model, [{"input_ids": ids}] * 3000, batch_size=1000, draws=3)
    stderr = report.nelbo_nats_per_token_stderr  # equal rows: of the noise alone
    assert stderr < 0.01 * exact / 3
    assert abs(report.nelbo_nats_per_token - exact / 3) < 4 * stderr


@pytest.mark.parametrize("kernel", list(KERNELS))
def test_a_kernel_may_be_chosen_for_the_evaluation(kernel):
    other = next(name for name in KERNELS if name != kernel)
    model, same = (make_udm("substitute", kernel=k) for k in (other, kernel))
    rows = make_rows(6)
    assert evaluate_bound(model, rows, kernel=kernel) == evaluate_bound(same, rows)
    assert evaluate_bound(model, rows).nelbo_nats_per_token != evaluate_bound(same, rows).nelbo_nats_per_token


def test_one_stratum_for_each_count_sums_the_counts_exactly():
    """With l draws a row of length l sees every t once; where S does not matter the estimate is then exact."""
    model = make_udm("mask")
    ids = [CLS, 9, SEP]
    report = evaluate_bound(model, [{"input_ids": ids}] * 5, draws=1)
    assert report.nelbo_nats_per_token == pytest.approx(exact_bound(model, ids), rel=1e-6)
    assert report.nelbo_nats_per_token_stderr == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize(("process", "kernel"), CASES)
def test_figures_do_not_depend_on_the_batch_size_or_the_order_of_batches(process, kernel):
    model, rows = make_udm(process, kernel=kernel, scale=0.25), make_rows(17, seed=2)
    reports = [evaluate_bound(model, rows, batch_size=size, draws=2).to_dict() for size in (1, 5, 64)]
    for report in reports[1:]:
        for name, value in reports[0].items():
            assert report[name] == (value if isinstance(value, str | None) else pytest.approx(value, rel=1e-5)), name


def test_a_rows_noise_is_its_own():
    model, rows = make_udm(scale=0.25), make_rows(8, seed=2)
    how = {"batch_size": 4, "draws": 2, "seed": 3, "kernel": "site"}
    whole = row_draws(model, rows, range(8), **how).nats.mean(dim=1)
    part = row_draws(model, rows[5:7], [5, 6], **how).nats.mean(dim=1)
    torch.testing.assert_close(part, whole[5:7], rtol=1e-5, atol=1e-5)


def test_the_seed_repeats_the_figures_and_another_changes_them():
    model, rows = make_udm(scale=0.25), make_rows(8)
    assert evaluate_bound(model, rows, seed=1) == evaluate_bound(model, rows, seed=1)
    assert evaluate_bound(model, rows, seed=1) != evaluate_bound(model, rows, seed=2)


@pytest.mark.parametrize(("process", "kernel"), [("mask", "site"), ("substitute", "hamming")])
def test_the_standard_error_is_the_spread_of_repeated_evaluations(process, kernel):
    """Each repetition draws its rows and its noise afresh."""
    model = make_udm(process, kernel=kernel)
    reports = [
        evaluate_bound(model, make_rows(30, longest=8, seed=100 + seed), draws=1, seed=seed) for seed in range(100)
    ]
    for name in ("nelbo_nats_per_token", "bits_per_char", "perplexity_bound"):
        values = torch.tensor([getattr(r, name) for r in reports], dtype=torch.float64)
        claimed = torch.tensor([getattr(r, f"{name}_stderr") for r in reports], dtype=torch.float64)
        ratio = float(values.std() / claimed.square().mean().sqrt())
        assert 0.8 < ratio < 1.25, (name, ratio)  # 100 repetitions: 7 % is one standard error of this ratio


def test_more_draws_make_the_error_smaller_and_keep_the_mean():
    model, rows = make_udm(), [{"input_ids": [CLS, 5, 8, 6, 7, 9, SEP]}] * 400
    few, many = (evaluate_bound(model, rows, draws=draws) for draws in (1, 8))
    assert many.nelbo_nats_per_token_stderr < few.nelbo_nats_per_token_stderr / 2
    assert abs(few.nelbo_nats_per_token - many.nelbo_nats_per_token) < 4 * few.nelbo_nats_per_token_stderr


def test_lengths_are_counted_exactly_as_minus_log_of_their_probability():
    counts = [0, 1, 5, 2, 9]
    lengths = (1, 3, 4, 7)
    rows = [{"input_ids": [CLS, *range(FIRST, FIRST + length), SEP], "num_chars": 2 * length} for length in lengths]
    without = evaluate_bound(make_udm(), rows)
    included = evaluate_bound(make_udm(length_counts=counts), rows)
    assert (without.length_included, included.length_included) == (False, True)
    assert without.length_nats_per_token == 0.0
    law = [(counts[n] if n < len(counts) else 0) + 1 / 8 for n in range(1, 9)]  # one more row, spread over 1..2 Lmax
    nats = [-math.log(law[n - 1] / sum(law)) for n in lengths]
    assert included.length_nats_per_token == pytest.approx(sum(nats) / 15, rel=1e-12)
    assert included.nelbo_nats_per_token == pytest.approx(without.nelbo_nats_per_token + sum(nats) / 15, rel=1e-6)
    assert included.bits_per_char == pytest.approx(
        without.bits_per_char + sum(nats) / math.log(2) / without.chars, rel=1e-6
    )


def test_a_row_longer_than_any_length_of_the_model_has_an_infinite_bound_and_valid_json():
    report = evaluate_bound(make_udm(length_counts=[0, 3]), make_rows(4, shortest=9))
    assert report.nelbo_nats_per_token == math.inf
    fields = report.to_dict()
    assert fields["nelbo_nats_per_token"] is None
    json.dumps(fields, allow_nan=False)


def test_bits_per_character_and_perplexity_are_the_same_nats_in_other_units():
    rows = make_rows(13, seed=3)
    report = evaluate_bound(make_udm(scale=0.25), rows)
    tokens = sum(token >= FIRST for row in rows for token in row["input_ids"])
    assert (report.rows, report.tokens, report.chars) == (13, tokens, sum(row["num_chars"] for row in rows))
    nats = report.nelbo_nats_per_token * tokens
    assert report.bits_per_char == pytest.approx(nats / math.log(2) / report.chars, rel=1e-12)
    assert report.perplexity_bound == pytest.approx(math.exp(report.nelbo_nats_per_token), rel=1e-12)
    slope = report.perplexity_bound * report.nelbo_nats_per_token_stderr
    assert report.perplexity_bound_stderr == pytest.approx(slope, rel=1e-12)


def test_bits_per_character_need_the_characters_of_every_row():
    rows = make_rows(4)
    del rows[2]["num_chars"]
    report = evaluate_bound(make_udm(), rows)
    assert report.chars is report.bits_per_char is report.bits_per_char_stderr is None


def test_rows_with_nothing_to_score_are_left_out_and_change_no_other_row():
    model, rows = make_udm(), make_rows(6)
    blank = {"input_ids": [CLS, UNK, UNK, SEP], "num_chars": 9}
    assert evaluate_bound(model, [*rows, blank]) == evaluate_bound(model, rows)


@pytest.mark.parametrize("rows", [[], [{"input_ids": [CLS, UNK, SEP]}], iter(())])
def test_no_row_to_evaluate_raises(rows):
    with pytest.raises(ValueError, match="no row with an editable token"):
        evaluate_bound(make_udm(), rows)


@pytest.mark.parametrize(
    ("how", "error"),
    [
        ({"draws": 0}, "draws must be at least 1, got 0"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"draws": True}, "draws must be an integer of 64 bits, got True"),
        ({"draws": "8"}, "draws must be an integer of 64 bits, got '8'"),
        ({"batch_size": 10**30}, "batch_size must be an integer of 64 bits"),
        ({"num_steps": 2.0}, "num_steps must be an integer of 64 bits"),
        ({"seed": None}, "seed must be an integer of 64 bits, got None"),
        ({"kernel": "sight"}, "kernel must be 'site', 'hamming' or 'free', got 'sight'"),
    ],
)
def test_wrong_arguments_are_refused(how, error):
    with pytest.raises(ValueError, match=error):
        evaluate_bound(make_udm(), make_rows(3), **how)


@pytest.mark.parametrize("training", [True, False])
def test_dropout_is_off_and_the_models_mode_is_restored(training):
    model = make_udm(dropout=0.5).train(training)
    assert evaluate_bound(model, make_rows(5)) == evaluate_bound(make_udm(dropout=0.5), make_rows(5))
    assert model.training == training


def test_one_row_has_no_standard_error():
    report = evaluate_bound(make_udm(), make_rows(1))
    assert math.isnan(report.nelbo_nats_per_token_stderr)
    assert report.to_dict()["nelbo_nats_per_token_stderr"] is None


def test_the_report_names_everything_it_was_made_with():
    report = evaluate_bound(make_udm("substitute"), make_rows(3), draws=5, seed=9, kernel="free")
    assert (report.process, report.kernel, report.draws, report.seed) == ("substitute", "free", 5, 9)
    assert evaluate_bound(make_udm(), make_rows(3)).kernel is None
    assert set(report.to_dict()) == {field.name for field in dataclasses.fields(report)}


def test_a_ratio_of_sums_and_its_error_by_the_delta_method():
    a, b = torch.tensor([1.0, 4.0, 2.0, 5.0]).double(), torch.tensor([1.0, 2.0, 2.0, 3.0]).double()
    ratio, stderr = ratio_with_stderr(a, b)
    assert ratio == 12 / 8
    assert stderr == pytest.approx(math.sqrt(sum((x - 1.5 * y) ** 2 for x, y in zip(a, b, strict=True)) / 3 * 4) / 8)


# --- collate ---------------------------------------------------------------------------------------------------------


def test_collate_pads_on_the_right_and_says_which_tokens_are_editable():
    config = make_udm().config
    rows = [{"input_ids": [CLS, 9, SEP], "num_chars": 3}, {"input_ids": [CLS, 7, UNK, 8, SEP]}]
    batch = collate(rows, PAD, config.editable)
    assert {name: value.tolist() for name, value in batch.items()} == {
        "input_ids": [[CLS, 9, SEP, PAD, PAD], [CLS, 7, UNK, 8, SEP]],
        "attention_mask": [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]],
        "editable": [[False, True, False, False, False], [False, True, False, True, False]],
    }
    assert [value.dtype for value in batch.values()] == [torch.int64, torch.int64, torch.bool]


def test_collate_takes_tensors_and_tuples():
    config = make_udm().config
    rows = [{"input_ids": torch.tensor([CLS, 9, SEP])}, {"input_ids": (CLS, SEP)}]
    assert collate(rows, PAD, config.editable)["input_ids"].tolist() == [[CLS, 9, SEP], [CLS, SEP, PAD]]


def test_collate_without_padding_token_takes_rows_of_one_length_only():
    config = make_udm().config
    same = [{"input_ids": [CLS, 9, SEP]}, {"input_ids": [CLS, 8, SEP]}]
    assert collate(same, None, config.editable)["attention_mask"].all()
    with pytest.raises(ValueError, match="pad_token_id"):
        collate([*same, {"input_ids": [9]}], None, config.editable)


# --- repair ----------------------------------------------------------------------------------------------------------


class _Sorted(torch.nn.Module):
    """A perfect predictor of rows in which every token is the same: the most frequent token of the row, everywhere."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, input_ids=None, positions=None, **_):
        vocab = self.model.config.vocab_size
        counts = torch.nn.functional.one_hot(input_ids, vocab).sum(1).float()
        return MaskedLMOutput(logits=(8 * counts)[:, None].expand(*input_ids.shape, vocab)[positions])


def test_token_repair_rates_are_one_where_the_predictor_knows_the_rows(monkeypatch):
    model = make_udm("substitute")
    monkeypatch.setattr(model, "forward", _Sorted(model).forward)
    rows = [{"input_ids": [CLS, *[FIRST + i % 5] * (4 + i % 3), SEP]} for i in range(20)]
    report = evaluate_token_repair(model, rows, batch_size=7)
    assert (report.restored, report.left_alone, report.rows, report.errors) == (1.0, 1.0, 20, 1)
    assert report.restored_stderr == 0.0


def test_token_repair_rates_do_not_depend_on_the_batch_and_a_seed_repeats_them():
    model = make_udm("substitute").double()
    reports = [evaluate_token_repair(model, make_rows(30, shortest=2), batch_size=size, seed=3) for size in (4, 30)]
    assert reports[0] == reports[1]
    assert reports[0].restored < 0.5  # random weights know nothing


def test_token_repair_rates_choose_rows_evenly_and_refuse_what_cannot_be():
    model = make_udm("substitute")
    assert evaluate_token_repair(model, make_rows(30, shortest=2), max_rows=7).rows == 7
    with pytest.raises(ValueError, match="substitute"):
        evaluate_token_repair(make_udm(), make_rows(3))
    with pytest.raises(ValueError, match="errors"):
        evaluate_token_repair(model, make_rows(3), errors=0)
    with pytest.raises(ValueError, match="at least 99"):
        evaluate_token_repair(model, make_rows(3), errors=99)
