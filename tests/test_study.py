"""The study at toy size: its runs, what is not run again, its page; and masks by coins beside exact counts."""

import importlib
import json
import sys

import pytest
import torch
from PIL import Image

from tests.helpers import ROOT, udm_here, write_lines
from tests.models import make_udm
from udm_text.cli import train_text
from udm_text.corpus.rows import collate
from udm_text.training.objective import TextObjective

WORDS = "red green blue small large circle square".split()


@pytest.fixture
def benchmark(monkeypatch):
    """Benchmarks import what they share by its bare name."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    yield importlib.import_module
    for path in (ROOT / "benchmarks").glob("*.py"):
        sys.modules.pop(path.stem, None)


@pytest.fixture
def trained(benchmark, monkeypatch):
    """The study with its runs in this process; what was trained is listed."""
    study, bernoulli, runs = benchmark("study"), benchmark("bernoulli"), []

    def train_model(options, output, program=()):
        runs.append(output.name)
        by_coins = "bernoulli" in str(program)
        monkeypatch.setattr(train_text, "TextObjective", bernoulli.BernoulliObjective if by_coins else TextObjective)
        quiet = [word for word in benchmark("common").QUIET if word != "1000000" and word != "--max_steps"]
        udm_here("train", *quiet, *options, "--output", output)
        return json.loads((output / "report.json").read_text())

    monkeypatch.setattr(study, "train_model", train_model)
    return study, runs


@pytest.fixture
def toy(tmp_path):
    """What is given to a study of a few lines: its names and its verse, two steps a run."""
    (tmp_path / "names" / "data").mkdir(parents=True)
    for name, lines in (("train", 60), ("validation", 20)):
        write_lines(tmp_path / "names" / "data" / f"{name}.txt", WORDS, lines, 4)
        poems = ("".join("春江花月夜山水"[(i + i * j) % 7] for j in range(40)) for i in range(1, lines))
        (tmp_path / f"verse-{name}.txt").write_text("\n".join(poems), encoding="utf-8")
    given = f"{tmp_path} --results {tmp_path}/found.jsonl --page {tmp_path}/study.md --seeds 1 --steps 2 --model tiny "
    return (given + "--samples 4 --race-rows 20 20000 --eval-steps 1 --batch-size 8").split()


def test_the_study_runs_goes_on_where_it_was_and_writes_its_page(trained, toy, tmp_path):
    study, runs = trained
    assert study.main([*toy, "--parts", "counts"]) == 0
    lines = (tmp_path / "found.jsonl").read_text()
    assert runs == ["steps-weights-of-the-bound-0", "steps-Bernoulli-masks-0"]
    assert study.main([*toy, "--parts", "counts", "race", "kernels"]) == 0
    found = (tmp_path / "found.jsonl").read_text()
    assert found.startswith(lines) and len(runs) == 7  # two racers, twice, and the substitute model
    lines = [json.loads(line) for line in found.splitlines()]
    assert len(lines) == 7 + 6 and all(line["machine"] and line["model"] == "tiny" for line in lines)
    page = (tmp_path / "study.md").read_text()
    for words in (
        "Exact counts and Bernoulli masks, equal steps",
        "Unicode names, tiny, 2 steps of 8 rows each, bits a character held out:",
        "20 rows, 1 seed (tiny, steps of 8 rows, measured every 1, patience",
        "all 60 rows there are, 1 seed (tiny, steps of 8 rows, measured every 10, patience",
        "| 20,000 rows, or all there are: diffusion less its twin |",
        "| hamming |",
        "Kernels of substitution, equal calls, entropy of words in bits, a call a token:",
        "(one seed: no error bar)",
        "](images/study-race.png)",
    ):
        assert words in page
    assert (
        "## Not run at full size" in page
        and "* The law of t in training, equal steps: no run of Unicode names (`mask`, `uniform t`, `clipped t`)"
        in page
    )
    drawing = (tmp_path / "images" / "study-race.png").read_bytes()
    assert study.main([*toy, "--parts"]) == 0 and (tmp_path / "study.md").read_text() == page
    assert len(runs) == 7 and (tmp_path / "images" / "study-race.png").read_bytes() == drawing


@pytest.mark.slow
def test_every_part_runs_and_nothing_is_drawn_twice(trained, toy, tmp_path):
    study, runs = trained
    verse = [str(tmp_path / f"verse-{name}.txt") for name in ("train", "validation")]
    asked = [*toy, "--tang", *verse, "--parts", *(part for part in study.PARTS if part != study.RACE)]
    assert study.main(asked) == 0
    found = {line["run"]: line for line in map(json.loads, (tmp_path / "found.jsonl").read_text().splitlines())}
    trainings = [run for run in found if run.split("/")[0] in ("train", "steps")]
    assert len(trainings) == len(runs) == 2 * (4 + 5)
    for corpus in ("names", "tang"):
        same = {**found[f"drawn/{corpus}/substitute/all/0"], "run": ""}
        assert same == {**found[f"kernels/{corpus}/site/all/0"], "run": ""}
    for part, ways in study.DRAWN.items():
        assert all(f"{part}/{corpus}/{way}/quarter/0" in found for way in ways for corpus in ("names", "tang"))
    assert study.main(asked) == 0 and len(runs) == len(trainings)


def test_every_way_to_draw_is_one_that_the_models_take(benchmark):
    for part in benchmark("study_parts").DRAWN.values():
        for way, how in part.values():
            assert make_udm(way).generate(length=3, seed=0, num_steps=2, **how).shape == (1, 5)


def test_samples_are_judged_as_their_corpus_can_be(benchmark):
    study = benchmark("study")
    assert study.sound_share("names", ["GREEK SMALL", "GREEK XYZ", "SMALL"], ["GREEK SMALL LETTER"]) == 2 / 3
    pytest.importorskip("rdkit", reason="needs udm-text[molecules]")
    assert study.sound_share("molecules", ["CCO", "C(C", "C1CC1", "F=C=F"], []) == 0.5


def test_a_corpus_that_is_asked_for_and_not_given_is_named(benchmark, tmp_path, capsys):
    with pytest.raises(SystemExit):
        benchmark("study").main([str(tmp_path), "--corpora", "names", "tang"])
    assert "--corpora tang needs --tang TRAIN HELD_OUT" in capsys.readouterr().err


def test_the_summary_sets_ways_beside_the_first_of_their_model(benchmark):
    done = {}
    for seed in range(3):
        done[f"steps/names/mask/{seed}"] = {"bits_per_char": 1.0}
        done[f"steps/names/uniform t/{seed}"] = {"bits_per_char": 0.9 + 0.001 * seed}
        done[f"churn/molecules/uniform, churn 0/all/{seed}"] = {"valid": 0.5}
        done[f"churn/molecules/uniform, churn 0.5/all/{seed}"] = {"valid": 0.6}
        done[f"churn/tang/uniform, churn 0.5/all/{seed}"] = {"known_grams": 0.6}  # of verse nothing is sound
    done["race/tang/2000/diffusion/0"], done["race/tang/2000/twin/0"] = {"bits_per_char": 9.0}, {"bits_per_char": 8.0}
    lines = list(benchmark("study_page").summary_lines(done))
    assert "| uniform t less mask | -0.0990 +- 0.0006, fewer bits |  |  |" in lines
    assert "| uniform, churn 0.5 less uniform, churn 0 |  | +0.1000 +- 0.0000, more |  |" in lines
    assert "| 2,000 rows: diffusion less its twin |  |  | +1.0000 (one seed: no error bar) |" in lines
    assert sum(line.startswith("| ") and "less" in line for line in lines) == 3
    for corpus, bits in (("names", 2.0), ("molecules", 3.0)):
        for seed in range(3):
            done[f"drawn/{corpus}/mask/all/{seed}"] = {"word_entropy": bits}
            done[f"drawn/{corpus}/uniform/all/{seed}"] = {"word_entropy": bits + 0.5 + 0.1 * seed * (corpus == "names")}
    page = benchmark("study_page")
    assert [table[-2] for table in page.differences("drawn", done)] == [
        "| uniform less mask | +0.6000 +- 0.0577, higher | +0.5000 +- 0.0000, higher |  |"
    ]
    assert page.told_apart(done).startswith("Of the 4 differences on this page 4 are told apart; at 95 %, 0 would")


def test_what_is_said_of_differences_and_of_passing(benchmark):
    study = benchmark("study_page")
    assert "fewer bits" in study.said_of([-0.10, -0.11, -0.09])
    assert "not told apart" in study.said_of([-0.10, 0.11, -0.09]) and "more bits" in study.said_of([0.5, 0.51, 0.5])
    curves = {"diffusion": [[(1, 3.0), (5, 1.9), (9, 1.5)], [(1, 3.0)]], "twin": [[(1, 2.0), (2, 2.5)]] * 2}
    lines = {name: [{"curve": curve} for curve in some] for name, some in curves.items()}
    assert study.passing(lines).endswith("by seed: 5, never.")


def test_the_race_is_drawn_with_a_panel_for_each_number_of_rows(benchmark, tmp_path):
    curves = {"diffusion": [(1, 3.0), (10, 2.2), (20, 1.5)], "twin": [(1, 2.5), (2, 2.0), (3, 9.0)]}
    done = {f"race/names/{rows}/{name}/0": {"curve": curve} for rows in (2000, 20000) for name, curve in curves.items()}
    benchmark("study_page").draw_race(done, tmp_path / "race.png")
    with Image.open(tmp_path / "race.png") as image:
        blue = [color[2] - color[0] for _, color in image.convert("RGB").getcolors()]
        assert image.size == (920, 300) and max(blue) > 60 and min(blue) < -60  # one racer blue, one red
    benchmark("study_page").draw_race({}, tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()


def test_the_page_in_the_docs_is_the_page_of_the_results(benchmark):
    study = benchmark("study_page")
    page, results = ROOT / "docs" / "study.md", ROOT / "benchmarks" / "study.jsonl"
    done = {line["run"]: line for line in map(json.loads, results.read_text(encoding="utf-8").splitlines())}
    assert page.read_text(encoding="utf-8") == study.page(done)


def test_masks_by_coins_have_the_mean_of_exact_counts_and_vary_where_these_do_not(benchmark, monkeypatch):
    """A network that gives every token the same chance: each row costs l log V, whatever is hidden."""
    model = make_udm("mask", prefix_token_ids=[], suffix_token_ids=[])
    rows = [{"input_ids": [7] * 6}] * 64

    def forward(input_ids, positions, **how):
        return type("Said", (), {"logits": torch.zeros(len(positions[0]), 24), "gap_logits": None})()

    monkeypatch.setattr(model, "forward", forward)
    means = {}
    for kind in (TextObjective, benchmark("bernoulli").BernoulliObjective):
        objective = kind(model.config)
        inputs = {**collate(rows, 0, model.config.editable), "num_editable": [6] * 64}
        how = {"row_index": torch.arange(64), "total": 64, "seed": 3}
        means[kind] = torch.cat([objective.row_terms(model, inputs, step=step, **how) for step in range(60)]).double()
    exact, coins = means.values()
    assert exact.std() < 1e-4 and coins.std() > 0.1 * exact.mean()
    assert abs(coins.mean() - exact.mean()) < 4 * coins.std() / len(coins) ** 0.5
