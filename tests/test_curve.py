"""The curve is the price of a token, the price of a grid is a bound, and generation takes the steps it is told to."""

import json
import math
import os
from itertools import combinations, pairwise

import numpy as np
import pytest
import torch

from tests.helpers import udm_here as udm
from tests.models import CLS, MASK, PAD, SEP, TEXTS, make_rows, make_tokenizer, make_udm, save_masked_lm
from tests.oracle.chains import mask_sampler_law, mask_term_means
from tests.oracle.outcomes import MASK as MASK_DIGIT
from tests.oracle.outcomes import Board
from tests.oracle.world import all_rows, entropy, make_world, random_predictor
from tests.training_helpers import make_trainer
from udm_text import UDMConfig, UDMForMaskedGeneration, UDMGenerationConfig
from udm_text.cli.terminal import describe_prices
from udm_text.evaluation import evaluate_bound, fit_curve, measure_curve, price_table, store_curve
from udm_text.processes import MaskProcess
from udm_text.schedules import SCHEDULES, counts, step_costs

EXACT = 1e-12


def all_grids(length):
    for k in range(length):
        for inner in combinations(range(1, length), k):
            yield [length, *reversed(inner), 0]


def column(grid):
    return torch.tensor(grid)[:, None]


# --- the price is a bound ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("sure", [None, 1, 4])
def test_the_price_of_every_grid_bounds_the_sampler_that_walks_it(sure):
    """-log p of the K-step sampler by enumeration, for every sequence and every grid; any predictor."""
    world, board = make_world(2, 4), Board(2, 4)
    predictor = world.mask_predictor
    if sure is not None:
        p = random_predictor(len(world.masked_sequences), 4, 2, seed=1) ** sure
        predictor = {t: p / p.sum(-1, keepdims=True) for t in range(5)}.__getitem__
    curves = mask_term_means(world, predictor) / world.length  # (x0, t): mean CE of a masked token
    for grid in all_grids(4):
        law = mask_sampler_law(MaskProcess(MASK_DIGIT), board, predictor, grid)
        bound = np.array([step_costs(column(grid), curve.tolist()).item() for curve in curves])
        assert (bound + np.log(law)).min() > -EXACT


@pytest.mark.parametrize("correlated", [True, False])
@pytest.mark.parametrize(("num_tokens", "length"), [(3, 4), (4, 3)])
def test_with_the_exact_curve_the_price_of_one_token_a_step_is_the_entropy_and_no_grid_is_cheaper(
    num_tokens, length, correlated
):
    world = make_world(num_tokens, length, 0, correlated)
    curve = (world.data @ mask_term_means(world, world.mask_predictor) / length).tolist()
    assert all(a <= b + EXACT for a, b in pairwise(curve))  # less seen, dearer
    price = {tuple(grid): step_costs(column(grid), curve).item() for grid in all_grids(length)}
    assert price[tuple(range(length, -1, -1))] == pytest.approx(entropy(world.data), abs=EXACT)
    assert min(price.values()) > entropy(world.data) - EXACT
    for steps in range(1, length + 1):
        best = step_costs(counts("optimal", torch.tensor([length]), steps, curve), curve).item()
        assert best == pytest.approx(min(v for grid, v in price.items() if len(grid) == steps + 1), abs=1e-9)
        for schedule in SCHEDULES:
            assert best <= step_costs(counts(schedule, torch.tensor([length]), steps, curve), curve).item() + 1e-9


# --- measuring ---------------------------------------------------------------------------------------------------

VOCAB = 9  # four words
WORDS = [5, 6, 7, 8]
IDS = [CLS, 5, 8, 6, 7, SEP]


@pytest.fixture(scope="module")
def model():
    """Its curve is all but flat: where all is masked a row's price has no noise, and what the fit pulls neighbours
    together by, which a steep curve shows, is in no standard error."""
    return make_udm(vocab_size=VOCAB, scale=0.2)


@pytest.fixture(scope="module")
def truth(model):
    """The exact curve of the row IDS, and the model as a predictor of its world: ((V + 1)^l, l, V)."""
    states = torch.from_numpy(all_rows(5, 4))
    rows = torch.tensor([CLS, 0, 0, 0, 0, SEP]).repeat(len(states), 1)
    rows[:, 1:5] = torch.tensor([*WORDS, model.config.mask_token_id])[states]
    with torch.no_grad():
        p = model(rows).logits.double()[:, 1:5, WORDS].softmax(-1).numpy()
    world = make_world(4, 4)
    x0 = [0, 3, 1, 2]
    number = int(np.array(x0) @ 4 ** np.arange(4)[::-1])
    return (mask_term_means(world, lambda t: p)[number] / 4).tolist(), p, number


def test_the_measured_curve_is_that_of_the_sum_over_all_corruptions(model, truth):
    exact, _, _ = truth
    report = measure_curve(model, [{"input_ids": IDS}] * 1500, draws=4, batch_size=500)
    assert len(report.curve) == report.length == 4
    for got, error, want in zip(report.curve, report.curve_stderr, exact, strict=True):
        assert 0 < error < 0.05 * want and abs(got - want) < 4.5 * error
    for schedule in SCHEDULES:
        for steps in (1, 2, 3, 4):
            value, error = report.price(schedule, steps)
            grid = counts(schedule, torch.tensor([4]), steps, report.curve)
            assert abs(value - step_costs(grid, exact).item() / 4) < 4.5 * error


def test_the_price_of_one_token_a_step_is_the_bound_of_the_same_draws(model):
    rows = make_rows(40, vocab_size=VOCAB, longest=6, shortest=6)  # 6 draws of 6 tokens: every t once
    report = measure_curve(model, rows, draws=6, seed=3)
    bound = evaluate_bound(model, rows, draws=6, seed=3)
    assert report.nelbo_nats_per_token == pytest.approx(bound.nelbo_nats_per_token, abs=1e-6)
    for schedule in SCHEDULES:
        for steps in (6, 7, None):
            assert report.price(schedule, steps)[0] == pytest.approx(report.nelbo_nats_per_token, abs=1e-9)


def test_the_bound_of_l_steps_is_the_bound_digit_for_digit(model):
    rows = make_rows(30, vocab_size=VOCAB, longest=7)
    plain = evaluate_bound(model, rows, draws=3, seed=1).to_dict()
    for schedule in ("linear", "cosine"):
        stepped = evaluate_bound(model, rows, draws=3, seed=1, num_steps=7, schedule=schedule).to_dict()
        assert stepped == {**plain, "num_steps": 7, "schedule": schedule}


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_bound_of_few_steps_is_measured_without_bias(model, truth, schedule, monkeypatch):
    exact, p, number = truth
    monkeypatch.setattr(model.config, "step_curve", exact)
    report = evaluate_bound(model, [{"input_ids": IDS}] * 1500, draws=4, num_steps=2, schedule=schedule)
    grid = counts(schedule, torch.tensor([4]), 2, exact)
    error = report.nelbo_nats_per_token_stderr
    assert abs(report.nelbo_nats_per_token - step_costs(grid, exact).item() / 4) < 4.5 * error
    law = mask_sampler_law(MaskProcess(MASK_DIGIT), Board(4, 4), lambda t: p, grid[:, 0].tolist())
    assert report.nelbo_nats_per_token * 4 > -math.log(law[number]) - 4 * 4.5 * error


def test_the_curve_depends_on_the_seed_alone(model):
    rows = make_rows(30, vocab_size=VOCAB, longest=8)
    first, other = (measure_curve(model, rows, draws=3, seed=5, batch_size=size) for size in (30, 7))
    assert first.curve == pytest.approx(other.curve, rel=1e-4)
    assert first.curve != pytest.approx(measure_curve(model, rows, draws=3, seed=6).curve, rel=1e-4)


def test_the_fit_keeps_the_sum_of_the_draws_and_fills_what_was_not_drawn():
    torch.manual_seed(0)
    weight = torch.rand(50, 3, dtype=torch.float64)
    basis = torch.stack((weight, torch.zeros_like(weight), 1 - weight), dim=2)  # nothing at the second point
    mass, price = torch.rand(50, 3, dtype=torch.float64) + 0.1, torch.randn(50, 3, dtype=torch.float64) + 4
    fit, covariance = fit_curve(basis, mass, price)
    assert float((mass * (basis @ fit)).sum()) == pytest.approx(float((mass * price).sum()), rel=1e-12)
    assert fit.min() <= fit[1] <= fit.max()
    assert torch.linalg.eigvalsh(covariance).min() > -1e-9


def test_the_error_of_a_price_covers_what_other_noise_gives(model):
    rows = make_rows(24, vocab_size=VOCAB, longest=6)
    reports = [measure_curve(model, rows * 4, draws=2, seed=seed) for seed in range(12)]
    for steps in (1, 3, None):
        found = torch.tensor([report.price("linear", steps)[0] for report in reports])
        claimed = sum(report.price("linear", steps)[1] for report in reports) / len(reports)
        assert found.std() < 2 * claimed


def test_the_table_runs_from_one_token_a_step_to_one_step(model):
    rows = make_rows(60, vocab_size=VOCAB, longest=9, shortest=9)
    report = measure_curve(model, rows, draws=9)
    table = price_table(report)
    assert [row["num_steps"] for row in table] == [9, 4, 2, 1] == [row["calls"] for row in table]
    for row in (table[0], table[-1]):  # here all schedules are one
        assert row["linear"] == pytest.approx(row["cosine"], abs=1e-12) == pytest.approx(row["optimal"], abs=1e-12)
    assert json.loads(json.dumps({**report.to_dict(), "prices": table}))["prices"] == table


def test_one_row_has_a_curve_without_an_error(model):
    report = measure_curve(model, [{"input_ids": IDS}], draws=2)
    assert math.isnan(report.price("optimal", 2)[1]) and price_table(report)[0]["linear_stderr"] is None
    assert report.to_dict()["curve_stderr"] == [None] * 4


def test_what_cannot_be_measured_is_refused_by_name(model):
    rows = [{"input_ids": IDS}]
    substitute = make_udm(vocab_size=VOCAB, process="substitute")
    for call, word in (
        (lambda: measure_curve(model, rows, draws=0), "draws"),
        (lambda: measure_curve(model, rows, points=0), "points"),
        (lambda: measure_curve(substitute, rows), "process 'substitute'"),
        (lambda: evaluate_bound(substitute, rows, num_steps=2), "num_steps"),
        (lambda: evaluate_bound(model, rows, num_steps=0), "num_steps"),
        (lambda: evaluate_bound(model, rows, schedule="cosine"), "give num_steps"),
        (
            lambda: evaluate_bound(model, rows, num_steps=2, schedule="square"),
            "schedule must be 'linear', 'cosine' or 'optimal'",
        ),
        (lambda: evaluate_bound(model, rows, num_steps=2, schedule="optimal"), "--curve"),
    ):
        with pytest.raises(ValueError, match=word):
            call()


# --- stored with the model -----------------------------------------------------------------------------------------

CURVE = [0.5, 1.0, 1.5, 4.0]


def test_the_curve_stays_with_the_model_until_it_is_trained(tmp_path):
    made = make_udm(step_curve=CURVE)
    made.save_pretrained(tmp_path / "a")
    again = UDMForMaskedGeneration.from_pretrained(tmp_path / "a")
    assert again.config.step_curve == CURVE
    other = UDMForMaskedGeneration.from_pretrained(tmp_path / "a", process="substitute")
    assert other.config.step_curve is None
    trainer = make_trainer(tmp_path / "run", model=again, max_steps=1)
    trainer.train()
    assert again.config.step_curve is None


def test_storing_changes_the_curve_alone_and_is_whole_or_nothing(tmp_path, monkeypatch):
    make_udm().save_pretrained(tmp_path)
    before = json.loads((tmp_path / "config.json").read_text())
    store_curve(tmp_path, CURVE)
    assert json.loads((tmp_path / "config.json").read_text()) == {**before, "step_curve": CURVE}
    assert UDMConfig.from_pretrained(tmp_path).step_curve == CURVE

    def fail(*_):
        raise OSError("no space left")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="no space left"):
        store_curve(tmp_path, [9.0])
    assert UDMConfig.from_pretrained(tmp_path).step_curve == CURVE
    assert sorted(path.name for path in tmp_path.iterdir() if "part" in path.name) == []


@pytest.mark.parametrize("curve", [[], [-1.0], [math.inf]])
def test_a_curve_holds_prices(curve):
    with pytest.raises(ValueError, match="step_curve"):
        UDMConfig(text_config={"model_type": "bert"}, step_curve=curve)


# --- generating ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def generator():
    return make_udm(length_counts=[0, 1, 2, 3, 4, 5, 6], step_curve=CURVE).double()


def generate(model, *args, **how):
    return model.generate(*args, **{"seed": 1, "return_dict_in_generate": True, **how})


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_steps_of_a_schedule_are_those_of_its_grid(generator, schedule):
    output = generate(
        generator, length=12, num_return_sequences=3, num_steps=4, schedule=schedule, output_trajectory=True
    )
    grid = counts(schedule, torch.tensor([12]), 4, CURVE)[:, 0]
    masks = [int((xt[0] == MASK).sum()) for xt in output.trajectory]
    assert masks == grid.tolist() and output.num_calls == 4 and output.steps.tolist() == [4] * 3
    assert output.expected_nats.tolist() == pytest.approx([step_costs(grid[:, None], CURVE).item() / 12] * 3)


def test_the_expected_price_falls_with_the_steps_and_optimal_is_the_lowest(generator):
    price = {
        (k, schedule): generate(generator, length=12, num_steps=k, schedule=schedule).expected_nats.item()
        for k in (1, 3, 6, 12)
        for schedule in SCHEDULES
    }
    for schedule in SCHEDULES:
        assert price[1, schedule] > price[3, schedule] > price[6, schedule] > price[12, schedule]
    for k in (3, 6):
        assert price[k, "optimal"] < min(price[k, "linear"], price[k, "cosine"])


def test_a_row_is_priced_by_its_own_share_of_masks_whatever_its_neighbours(generator):
    rows = [[CLS, 7, MASK, 9, MASK, SEP, PAD, PAD], [CLS, MASK, MASK, MASK, MASK, MASK, 8, SEP]]
    both = generate(generator, torch.tensor(rows), num_steps=2, schedule="optimal")
    for i, row in enumerate(rows):
        alone = generate(
            generator, torch.tensor([row]), num_steps=2, schedule="optimal", sample_index=torch.tensor([i])
        )
        assert torch.equal(alone.sequences[0], both.sequences[i])
        assert alone.expected_nats[0] == both.expected_nats[i]
        assert alone.steps[0] == both.steps[i]
    two_of_four = counts("optimal", torch.tensor([2]), 2, CURVE, torch.tensor([4]))
    assert both.expected_nats[0].item() == pytest.approx(step_costs(two_of_four, CURVE, torch.tensor([4])).item() / 2)


@pytest.mark.parametrize(
    "how",
    [{"order": "confidence"}, {"order": "left_to_right"}, {"churn": 0.5}, {"temperature": 0.5}, {"top_k": 3}]
    + [{"top_p": 0.9}, {"threshold": 0.5}, {"forbidden_tokens": [9]}],
)
def test_what_the_curve_does_not_price_has_no_expected_price(generator, how):
    assert generate(generator, length=5, num_steps=2, **how).expected_nats is None
    assert generate(make_udm().double(), length=5).expected_nats is None  # nor what has no curve


def revealed_at_each_step(output, row):
    for before, after in pairwise(xt[row] for xt in output.trajectory):
        opened = (before == MASK) & (after != MASK)
        if opened.any():
            yield before, after, opened


def test_a_threshold_reveals_what_is_surer_and_at_least_one(generator):
    output = generate(generator, length=10, num_return_sequences=6, threshold=0.3, output_trajectory=True)
    special = generator.config.special_token_ids
    sizes = []
    for row in range(6):
        for before, after, opened in revealed_at_each_step(output, row):
            logits = generator(before[None]).logits[0]
            logits[:, special] = -torch.inf
            p = logits.softmax(-1).gather(1, after[:, None])[opened, 0]
            sizes.append(len(p))
            assert len(p) == 1 or (p > 0.3).all()
        assert sum(1 for _ in revealed_at_each_step(output, row)) == output.steps[row]
    assert 1 < max(sizes) and output.num_calls == int(output.steps.max()) < 10
    assert len(output.trajectory) == output.num_calls + 1


def test_a_threshold_that_none_or_all_exceed(generator):
    one_each = generate(generator, length=7, order="confidence")
    none = generate(generator, length=7, threshold=1 - 1e-12)
    assert torch.equal(none.sequences, one_each.sequences) and none.num_calls == 7
    assert generate(generator, length=7, threshold=1e-12).num_calls == 1


def test_a_threshold_with_num_steps_takes_at_most_so_many(generator):
    for schedule in SCHEDULES:
        how = {"length": 9, "num_steps": 3, "schedule": schedule}
        grid = generate(generator, **how, order="confidence")
        capped = generate(generator, **how, threshold=1 - 1e-12)
        assert torch.equal(grid.sequences, capped.sequences) and capped.num_calls == 3
        assert generate(generator, **how, threshold=0.2).num_calls <= 3


def test_with_a_threshold_neighbours_do_not_matter(generator):
    rows = [[CLS, 7, MASK, 9, MASK, SEP, PAD, PAD], [CLS, MASK, MASK, MASK, MASK, MASK, 8, SEP]]
    both = generate(generator, torch.tensor(rows), threshold=0.3)
    for i, row in enumerate(rows):
        alone = generate(generator, torch.tensor([row]), threshold=0.3, sample_index=torch.tensor([i]))
        assert torch.equal(alone.sequences[0], both.sequences[i]) and alone.steps[0] == both.steps[i]


def test_with_a_threshold_the_callback_hears_the_counts_that_came_about(generator):
    heard = []

    def listen(model, step, s, tensors):
        heard.append((step, int(s[0])))
        assert int((tensors["xt"] == MASK).sum()) == int(s[0])

    output = generate(generator, length=9, threshold=0.3, callback_on_step_end=listen)
    assert [step for step, _ in heard] == list(range(output.num_calls)) and heard[-1][1] == 0


def test_pairs_that_cannot_work_are_refused_by_name(generator):
    substitute, bare = make_udm("substitute"), make_udm()
    for model, how, word in (
        (bare, {"schedule": "optimal"}, "udm evaluate MODEL --curve"),
        (substitute, {"schedule": "optimal"}, "'linear' or 'cosine'"),
        (substitute, {"threshold": 0.5}, "threshold is of the mask process"),
        (generator, {"threshold": 0.5, "order": "margin"}, "order must be 'confidence'"),
        (generator, {"threshold": 0.5, "order": "left_to_right"}, "order must be 'confidence'"),
        (generator, {"threshold": 0.5, "churn": 0.1}, "churn"),
        (generator, {"schedule": "square"}, "schedule must be 'linear', 'cosine' or 'optimal'"),
        (generator, {"schedule": None}, "schedule must be"),
        *((generator, {"threshold": value}, "threshold must be") for value in (0, 1, -0.5, 2.0, "0.5", True)),
        *((generator, {"speculate": 2, **how}, "speculate") for how in ({"schedule": "cosine"}, {"threshold": 0.5})),
    ):
        with pytest.raises(ValueError, match=word):
            model.generate(length=4, **how)


def test_substitute_models_take_linear_and_cosine_grids():
    model = make_udm("substitute")
    for schedule, want in (("linear", [9, 6, 3, 0]), ("cosine", [9, 7, 4, 0])):
        heard: list[int] = []

        def listen(model, step, count, tensors, heard=heard):
            heard.append(int(count))

        generate(model, length=9, num_steps=3, schedule=schedule, callback_on_step_end=listen)
        assert [9, *heard] == want


def test_the_settings_are_saved(tmp_path):
    UDMGenerationConfig(schedule="cosine", threshold=0.9).save_pretrained(tmp_path)
    again = UDMGenerationConfig.from_pretrained(tmp_path)
    assert (again.schedule, again.threshold) == ("cosine", 0.9)


# --- the command ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    path = tmp_path_factory.mktemp("command")
    save_masked_lm(path / "plain", "bert")
    UDMForMaskedGeneration.from_pretrained(path / "plain").save_pretrained(path / "model")
    make_tokenizer("bert").save_pretrained(path / "model")
    (path / "rows.txt").write_text("\n".join(f"{a} {b}" for a in TEXTS for b in TEXTS if a != b), encoding="utf-8")
    return path


def test_the_command_measures_stores_and_prints_and_then_prices_what_it_generates(directory):
    model, data = directory / "model", ["--data", directory / "rows.txt", "--split", "train", "--draws", 2]
    measured = json.loads(udm("evaluate", model, *data, "--curve", "--json").stdout)
    assert UDMConfig.from_pretrained(model).step_curve == measured["curve"]
    steps = [row["num_steps"] for row in measured["prices"]]
    assert steps[0] == measured["length"] and steps[-1] == 1
    text = udm("evaluate", model, *data, "--curve").stdout
    assert "bound NELBO_K" in text and all(schedule in text for schedule in SCHEDULES)
    figures = json.loads(udm("evaluate", model, *data, "--num-steps", 2, "--schedule", "optimal", "--json").stdout)
    assert figures["num_steps"] == 2 and figures["nelbo_nats_per_token"] > 0

    call = ["generate", model, "a red", "the", "--max-new-tokens", 6, "--num-steps", 3, "--schedule", "optimal"]
    result = udm(*call, "--seed", 0, "--verbose", "--json", "--batch-size", 1)
    records = [record for group in json.loads(result.stdout) for record in group["generated"]]
    assert all(record["steps"] == record["num_calls"] == 3 and record["num_tokens"] == 6 for record in records)
    assert all(record["expected_nats"] > 0 for record in records)
    assert "12 tokens" in result.stderr and "6 network calls" in result.stderr and "a bound" in result.stderr
    result = udm("generate", model, "a red", "--max-new-tokens", 4, "--threshold", "0.4", "--verbose")
    assert "no expected price" in result.stderr and "expected" not in result.stdout


def test_prices_are_printed_as_a_table_whose_rows_are_whole_in_80_columns(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    prices = {name: 3.14159 for name in SCHEDULES} | {f"{name}_stderr": 0.01 for name in SCHEDULES}
    row = {"num_steps": 128, "calls": 128, **prices, f"{SCHEDULES[0]}_stderr": None}
    text = describe_prices({"length": 128, "rows": 40, "draws": 2, "prices": [row]})
    (line,) = (line for line in text.splitlines() if line.startswith("│"))
    expected = ["128", "3.1416 +- unknown", *["3.1416 +- 0.0100"] * (len(SCHEDULES) - 1)]
    assert [cell.strip() for cell in line.strip("│").split("│")] == expected
    assert "a row of 128 tokens" in text and "40 rows, 2 draws each" in text and "\x1b" not in text


def test_the_command_refuses_what_the_curve_does_not_use(directory):
    corpus = ["--data", directory / "rows.txt", "--split", "train"]
    result = udm("evaluate", directory / "model", *corpus, "--curve", "--num-steps", 2, code=1)
    assert "--num-steps" in str(result.exception)
