"""A training run of images: what it writes, that it resumes bit by bit, and what it refuses before it begins."""

import json
import os
import shutil
import signal

import pytest
import torch

from continuous import train_image
from continuous.evaluation import evaluate_model
from continuous.modeling import ImageConfig, ImageDenoiser
from continuous.objectives import ImageObjective
from continuous.pipeline import ImagePipeline
from continuous.sampling import ColdPrior
from continuous.train_image import build_process, load_splits_of, main, parse
from tests.helpers import ROOT, assert_equal_weights, listing, python, weights_in
from udm_text.training import UDMTrainer, UDMTrainingArguments
from udm_text.training.checkpoints import digest_of
from udm_text.training.resuming import ResumeError
from udm_text.training.runs import evaluated_rows

QUIET = "--report_to none --disable_tqdm true --use_cpu --plot false --per_device_train_batch_size 32".split()
TINY = ["--network_options", '{"width": 24, "blocks": 1}', "--times", "50", "--learning_rate", "5e-3"]


def run(output, *more, steps=8):
    main(["--output", str(output), "--max_steps", str(steps), *QUIET, *TINY, *more])
    return output


def small_config(splits):
    network = {"kind": "mlp", "width": 16, "blocks": 1, "dropout": 0.0}
    return ImageConfig(image_shape=[1, 8, 8], levels=17, classes=splits.train.classes, network=network)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return run(
        tmp_path_factory.mktemp("run") / "hot", "--save_steps", "4", "--eval_strategy", "steps", "--eval_steps", "4"
    )


def test_a_run_writes_a_model_that_knows_its_process_images_and_every_figure(trained):
    names = {path.name for path in trained.iterdir()}
    assert {"config.json", "model.safetensors", "report.json", "samples.png", "README.md"} <= names
    assert not [name for name in names if name.endswith((".part", ".bin", ".pt"))]
    report = json.loads((trained / "report.json").read_text())
    assert report["steps"] == 8 and report["process"] == {
        "process": "gaussian",
        "family": "vp",
        "schedule": "cosine",
        "T": 50,
    }
    assert report["validation"]["loss_stderr"] > 0
    losses = [entry["eval_loss"] for entry in report["log"] if "eval_loss" in entry]
    assert losses[-1] == losses[-2] == report["validation"]["loss"]  # the written weights are the averaged ones
    pipe = ImagePipeline.from_pretrained(trained)
    assert pipe.denoiser.config.levels == 17 and pipe.denoiser.config.num_classes == 10


def test_a_resumed_run_ends_on_the_bits_of_the_uninterrupted_one(trained, tmp_path):
    half = tmp_path / "half"
    half.mkdir()
    shutil.copytree(trained / "checkpoint-4", half / "checkpoint-4")
    run(half, "--save_steps", "4", "--resume")
    assert_equal_weights(weights_in(trained), weights_in(half))


def test_a_run_that_an_older_package_began_goes_on_with_the_v_it_began_with(tmp_path, monkeypatch):
    flags = ["--process", "ve", "--save_steps", "4"]
    whole = run(tmp_path / "new", *flags)
    assert json.loads((whole / "config.json").read_text())["process"]["unit_v"] is True
    with monkeypatch.context() as patch:  # as it was: nothing was divided, and nothing said so
        patch.setattr("continuous.processes.GaussianProcess.ve.__func__.__defaults__", (1000, 0.01, 50.0, False))
        before = run(tmp_path / "before", *flags)
    half = tmp_path / "half"
    half.mkdir()
    shutil.copytree(before / "checkpoint-4", half / "checkpoint-4")
    older = json.loads((half / "checkpoint-4" / "config.json").read_text())
    assert older["process"].pop("unit_v") is False
    (half / "checkpoint-4" / "config.json").write_text(json.dumps(older))
    (half / "checkpoint-4" / "manifest.json").unlink()  # older ones have none
    run(half, *flags, "--resume")
    assert_equal_weights(weights_in(before), weights_in(half))
    assert json.loads((half / "report.json").read_text())["process"]["unit_v"] is False
    assert any(
        not torch.equal(a, b) for a, b in zip(weights_in(before).values(), weights_in(whole).values(), strict=True)
    )


def test_a_cold_run_ends_with_the_law_of_x_T_beside_the_weights(tmp_path):
    flags = ["--process", "cold", "--save_steps", "4", "--prior_rank", "30"]
    whole = run(tmp_path / "whole", *flags)
    pipe = ImagePipeline.from_pretrained(whole)
    assert pipe.denoiser.prior.means.shape == (11, 1, 8, 8) and pipe.denoiser.prior.basis.shape == (2, 30, 1, 8, 8)
    rows = load_splits_of(str(whole))[0].train
    expected = ColdPrior.fit(pipe.process, rows.images, rows.labels, 10, 30)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(pipe.denoiser.prior, expected, strict=True))
    report = json.loads((whole / "report.json").read_text())
    assert report["files"]["model.safetensors"] == digest_of(whole / "model.safetensors")
    assert not [name for name in weights_in(whole / "checkpoint-4") if name.startswith("prior")]
    half = tmp_path / "half"
    half.mkdir()
    shutil.copytree(whole / "checkpoint-4", half / "checkpoint-4")
    run(half, *flags, "--resume")
    assert_equal_weights(weights_in(whole), weights_in(half))


def die_at(monkeypatch, step, number):
    """The process is sent a signal at the beginning of a step."""

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == step:
            os.kill(os.getpid(), number)

    monkeypatch.setattr("udm_text.training.callbacks.StepNoise.on_step_begin", on_step_begin)


def test_a_run_that_is_stopped_has_a_checkpoint_and_a_report_and_no_model_yet(trained, tmp_path, monkeypatch, capsys):
    output = tmp_path / "stopped"
    with monkeypatch.context() as patch:
        die_at(patch, 5, signal.SIGTERM)
        run(output, "--save_steps", "4")
    assert "SIGTERM at step 6: a checkpoint is written, the model is not finished" in capsys.readouterr().out
    report = json.loads((output / "report.json").read_text())
    assert (report["stopped"], report["steps"]) == ("SIGTERM", 6) and "validation" not in report
    names = {path.name for path in output.iterdir()}
    assert names == {"checkpoint-4", "checkpoint-6", "report.json", "run.json"}
    run(output, "--save_steps", "4", "--resume")
    assert json.loads((output / "report.json").read_text())["stopped"] is None
    assert_equal_weights(weights_in(trained), weights_in(output))


def test_an_evaluation_on_the_way_is_of_some_images_evenly_spread_and_the_last_one_of_all(trained, tmp_path, capsys):
    output = run(tmp_path / "some", "--eval_rows", "20", "--eval_strategy", "steps", "--eval_steps", "4")
    said = capsys.readouterr().out
    assert "500 held out (20 of them measured on the way)" in said
    report = json.loads((output / "report.json").read_text())
    assert (report["held_out_rows"], report["eval_rows"]) == (500, 20)
    *way, last = [entry["eval_loss"] for entry in report["log"] if "eval_loss" in entry]
    whole = json.loads((trained / "report.json").read_text())
    assert report["validation"]["loss"] == last == whole["validation"]["loss"]
    splits, _ = load_splits_of(str(output))
    objective = ImageObjective(ImageConfig.from_pretrained(output), eval_batch_size=512)
    trainer = UDMTrainer(
        ImageDenoiser.from_pretrained(output),
        UDMTrainingArguments(output_dir=str(tmp_path / "x"), report_to="none", disable_tqdm=True, use_cpu=True),
        objective=objective,
        eval_dataset=splits.validation.take(torch.arange(0, 500, 25)),
    )
    assert way[-1] == trainer.evaluate()["eval_loss"] != last
    usual = parse(["--output", "x"])[-1]
    assert usual.eval_rows == 512 and evaluated_rows(usual, 500) == list(range(500))
    with pytest.raises(ValueError, match="eval_rows must be at least 1, got 0"):
        parse(["--output", "x", "--eval_rows", "0"])
    with pytest.raises(ResumeError, match="eval_rows"):
        run(output, "--eval_rows", "30", "--eval_strategy", "steps", "--eval_steps", "4", "--resume", steps=12)


def test_a_signal_ends_an_evaluation_between_two_batches(trained, tmp_path, monkeypatch):
    collate, seen = train_image.ImageObjective.collate, []

    def signalled(rows):
        seen.append(len(rows["images"]))
        os.kill(os.getpid(), signal.SIGTERM)
        return collate(rows)

    output, how = tmp_path / "run", ("--save_steps", "100", "--eval_strategy", "steps", "--eval_steps", "4")
    with monkeypatch.context() as patch:
        patch.setattr("continuous.objectives.collate_images", signalled)
        run(output, "--per_device_eval_batch_size", "100", *how)
    report = json.loads((output / "report.json").read_text())
    assert seen == [100] and (report["stopped"], report["steps"]) == ("SIGTERM", 4)
    assert {path.name for path in output.iterdir()} == {"checkpoint-4", "report.json", "run.json"}
    run(output, "--resume", *how)
    assert_equal_weights(weights_in(trained), weights_in(output))


def test_a_run_killed_before_its_first_checkpoint_begins_again(trained, tmp_path, monkeypatch, capsys):
    output, child = tmp_path / "killed", os.fork()
    if child == 0:
        die_at(monkeypatch, 2, signal.SIGKILL)
        run(output, "--save_steps", "4")
        os._exit(1)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    assert {path.name for path in output.iterdir()} == {"run.json", ".lock"}
    run(output, "--save_steps", "4", "--resume")
    assert "holds no whole checkpoint yet: the run starts from the beginning" in capsys.readouterr().out
    assert not (output / ".lock").exists()
    assert_equal_weights(weights_in(trained), weights_in(output))


def test_importance_and_learned_variance_resume_with_what_they_had_learned(tmp_path):
    more = ["--learned_variance", "--importance", "--times", "2", "--save_steps", "6", "--schedule", "cosine"]
    whole = run(tmp_path / "whole", *more, steps=12)
    half = tmp_path / "half"
    half.mkdir()
    shutil.copytree(whole / "checkpoint-6", half / "checkpoint-6")
    state = weights_in(half / "checkpoint-6", "importance.safetensors")
    assert state["seen"].min() >= 10 and state["square"].min() > 0  # no longer uniform
    assert "importance.safetensors" in json.loads((half / "checkpoint-6" / "manifest.json").read_text())["files"]
    run(half, *more, "--resume", steps=12)
    assert_equal_weights(weights_in(whole), weights_in(half))


def test_splitting_the_global_batch_changes_nothing_but_rounding(tmp_path):
    splits, _ = load_splits_of(str(tmp_path), "digits")
    losses = []
    for size, parts in ((16, 1), (4, 4)):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = ImageDenoiser(small_config(splits))
        args = UDMTrainingArguments(
            output_dir=str(tmp_path / f"{size}"),
            max_steps=4,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=parts,
            learning_rate=1e-3,
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
            logging_steps=1,
            save_strategy="no",
        )
        trainer = UDMTrainer(model, args, objective=ImageObjective(model.config), train_dataset=splits.train)
        trainer.train()
        losses.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4) and len(losses[0]) == 4


@pytest.mark.parametrize(
    "more", [[], ["--optim", "muon"], ["--network", "unet", "--network_options", '{"widths": [8, 16]}', "--flip"]]
)
def test_bfloat16_trains_and_writes_float32(tmp_path, more):
    run(tmp_path / "half", "--bf16", "--learned_variance", *more, steps=2)
    report = json.loads((tmp_path / "half" / "report.json").read_text())
    assert report["validation"]["loss"] > 0 and {p.dtype for p in weights_in(tmp_path / "half").values()} == {
        torch.float32
    }


@pytest.mark.slow
def test_two_processes_train_what_one_trains(tmp_path):
    flags = "--max_steps 12 --times 2 --learned_variance --importance --use_cpu --report_to none --plot false"
    flags += " --disable_tqdm true --logging_steps 1"
    options = [*flags.split(), "--network_options", '{"width": 24, "blocks": 1, "dropout": 0.0}']
    recipe = [str(ROOT / "recipes" / "train_image.py"), *options]
    launch = "-m accelerate.commands.launch --multi_gpu --num_processes 2".split()
    runs = {
        "one": [*recipe, "--per_device_train_batch_size", "16"],
        "two": [*launch, *recipe, "--per_device_train_batch_size", "8"],
    }
    for name, command in runs.items():
        python(*command, "--output", tmp_path / name, ACCELERATE_USE_CPU="true")
    one, two = (json.loads((tmp_path / name / "report.json").read_text()) for name in runs)
    assert one["rows_per_step"] == two["rows_per_step"] == 16
    assert one["validation"] == pytest.approx(two["validation"], rel=1e-5)
    a, b = (weights_in(tmp_path / name) for name in runs)
    assert all(torch.allclose(a[name], b[name], atol=1e-6) for name in a)


def overtrained(monkeypatch, least):
    """Held-out losses that rise from step `least` on, whatever the weights are."""
    real = ImageObjective.evaluate

    def evaluate(self, trainer, dataset):
        figures = real(self, trainer, dataset)
        return {**figures, "loss": 1.0 + abs(trainer.state.global_step - least)}

    monkeypatch.setattr(ImageObjective, "evaluate", evaluate)


@pytest.mark.parametrize("average", [True, False])
def test_the_weights_of_the_best_held_out_loss_are_written_also_after_a_resume(tmp_path, monkeypatch, capsys, average):
    flags = ["--eval_steps", "2", "--save_steps", "4"]
    if not average:
        monkeypatch.setitem(train_image.DEFAULTS, "ema_decay", None)
    last = run(tmp_path / "last", *flags, "--keep_best", "false")
    assert json.loads((last / "report.json").read_text())["best_step"] is None
    with monkeypatch.context() as patch:
        overtrained(patch, 2)
        best = run(tmp_path / "best", *flags)
        assert "the weights of step 2 are written" in capsys.readouterr().out
        half = tmp_path / "half"
        half.mkdir()
        shutil.copytree(best / "checkpoint-4", half / "checkpoint-4")
        run(half, *flags, "--resume")
    assert_equal_weights(weights_in(best), weights_in(half))
    assert json.loads((best / "report.json").read_text())["best_step"] == 2
    assert any(not torch.equal(a, b) for a, b in zip(weights_in(best).values(), weights_in(last).values(), strict=True))
    with monkeypatch.context() as patch:  # the last step is compared too, though no evaluation falls on it
        overtrained(patch, 8)
        assert_equal_weights(weights_in(run(tmp_path / "end", "--eval_steps", "3")), weights_in(last))


def test_what_is_written_is_no_worse_than_any_evaluation(tmp_path, capsys):
    run(tmp_path / "hot", "--eval_steps", "2", "--learning_rate", "1.0", "--warmup_steps", "0", "--max_seconds", "600")
    said = capsys.readouterr().out
    assert "measuring the written model, which comes on top of max_seconds" in said and "measured in " in said
    report = json.loads((tmp_path / "hot" / "report.json").read_text())
    losses = [entry["eval_loss"] for entry in report["log"] if "eval_loss" in entry]
    assert len(losses) == 5 and report["validation"]["loss"] == min(losses) == losses[-1]
    assert run(tmp_path / "none", "--eval_strategy", "no") and "best" not in capsys.readouterr().out


def test_the_optimal_variance_is_measured_on_the_images_of_training_where_it_is_asked_for(tmp_path):
    whole = run(tmp_path / "whole", "--optimal_variance", "--save_steps", "4")
    pipe, rows = ImagePipeline.from_pretrained(whole), load_splits_of(str(whole))[0].train
    assert torch.allclose(pipe.denoiser.variance[0], pipe.measure_variance(rows.images, rows.labels).float(), rtol=1e-4)
    assert pipe.generate(2, "all", sampler="ddpm_optimal", num_steps=3, seed=0).shape == (2, 1, 8, 8)
    assert not [name for name in weights_in(whole / "checkpoint-4") if "variance" in name]


def test_regions_are_trained_saved_and_resumed(tmp_path):
    flags = ["--regions", "0.5", "--save_steps", "4"]
    whole, half = run(tmp_path / "whole", *flags), tmp_path / "half"
    half.mkdir()
    shutil.copytree(whole / "checkpoint-4", half / "checkpoint-4")
    run(half, *flags, "--resume")
    assert_equal_weights(weights_in(whole), weights_in(half))
    pipe, known = ImagePipeline.from_pretrained(whole), load_splits_of(str(whole))[0].validation.images[:2]
    editable = torch.arange(8) < 4
    made = pipe.edit(known, editable, label="3", num_steps=3, seed=0, output_trajectory=True)
    assert pipe.denoiser.config.regions and torch.equal(made.trajectory[1][..., 4:], known[..., 4:])


def test_a_run_on_vectors_learns_generates_and_is_measured(tmp_path):
    from datasets import Dataset, Features, Sequence, Value
    from datasets import Image as ImageFeature
    from PIL import Image

    level = torch.arange(60) % 6
    pixels = [Image.fromarray(torch.full((4, 4), 40 * int(i), dtype=torch.uint8).numpy()) for i in level]
    kinds = Features({"image": ImageFeature(), "place": Sequence(Value("float32"))})
    rows = {"image": pixels, "place": [[float(i) / 6, 1.0] for i in level]}
    (tmp_path / "data").mkdir()
    Dataset.from_dict(rows, features=kinds).to_parquet(str(tmp_path / "data" / "train.parquet"))
    flags = [
        "--data",
        str(tmp_path / "data"),
        "--condition_columns",
        "place",
        "--optimal_variance",
        "--save_steps",
        "4",
    ]
    whole, half = run(tmp_path / "whole", *flags), tmp_path / "half"
    half.mkdir()
    shutil.copytree(whole / "checkpoint-4", half / "checkpoint-4")
    run(half, *flags, "--resume")
    assert_equal_weights(weights_in(whole), weights_in(half))
    pipe, (splits, _) = ImagePipeline.from_pretrained(whole), load_splits_of(str(whole))
    assert pipe.denoiser.config.condition_dim == 2 and splits.train.conditions.shape[1:] == (2,)
    assert pipe.generate(2, "[0.5, 1]", sampler="ddpm_optimal", num_steps=3, seed=0).shape == (2, 1, 4, 4)
    figures = evaluate_model(pipe, splits, num_steps=2, terms=2)
    assert figures["samples"]["label_accuracy"] is None and figures["bound"]["bits_per_dim"] > 0


def test_images_are_drawn_on_the_way_and_change_nothing(trained, tmp_path):
    flags = ["--save_steps", "4", "--eval_strategy", "steps", "--eval_steps", "2"]
    whole = run(tmp_path / "whole", *flags, "--sample_every", "2")
    assert sorted(path.name for path in whole.glob("samples*")) == ["samples-4.png", "samples-8.png", "samples.png"]
    assert_equal_weights(weights_in(trained / "checkpoint-4"), weights_in(whole / "checkpoint-4"))
    assert_equal_weights(weights_in(trained / "checkpoint-8"), weights_in(whole / "checkpoint-8"))
    half = tmp_path / "half"
    half.mkdir()
    shutil.copytree(whole / "checkpoint-4", half / "checkpoint-4")
    run(half, *flags, "--sample_every", "1", "--resume")  # evaluations are counted from the beginning
    assert sorted(path.name for path in half.glob("samples-*")) == ["samples-6.png", "samples-8.png"]
    assert (half / "samples-8.png").read_bytes() == (whole / "samples-8.png").read_bytes()
    with pytest.raises(ValueError, match="sample_every must be at least 1, got 0"):
        parse(["--output", "x", "--sample_every", "0"])
    with pytest.raises(ValueError, match="sample_every=1 counts evaluations of held-out rows, and this run makes none"):
        run(tmp_path / "none", "--sample_every", "1", "--eval_strategy", "no")


def test_training_learns_to_restore_blurred_digits_better_than_leaving_them(tmp_path):
    blur = ["--process", "cold", "--degradation", "blur", "--degradation_options", '{"T": 4, "std": 1.5}']
    at = TINY.index("--times")
    plain = [*TINY[:at], *TINY[at + 2 :]]
    main(["--output", str(tmp_path / "cold"), "--max_steps", "60", *QUIET, *plain, *blur, "--conditional", "false"])
    pipe = ImagePipeline.from_pretrained(tmp_path / "cold")
    splits, name = load_splits_of(str(tmp_path / "cold"))
    clean = splits.validation.images
    degraded = pipe.degrade(clean)
    before, after = (float((x - clean).square().mean().sqrt()) for x in (degraded, pipe.restore(degraded, num_steps=1)))
    assert name == "digits" and after < 0.9 * before


def test_a_folder_that_holds_a_run_is_refused_and_left_as_it_is(trained):
    before = listing(trained)
    with pytest.raises(FileExistsError, match="--resume"):
        run(trained)
    assert listing(trained) == before


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--process", "rf"], "process 'rf' in place of 'vp'"),
        (["--network_options", '{"width": 16}'], "network_options '{.*16}' in place of '{.*24, .*}'"),
        (["--weighting", "snr"], "weighting 'snr' in place of 'simple'"),
        (["--validation_share", "0.2"], "validation_share 0.2 in place of 0.05"),
        (["--seed", "7", "--ema_decay", "0.9"], "seed 7 in place of 42, ema_decay 0.9 in place of 0.999"),
    ],
)
def test_what_a_run_is_cannot_be_changed_when_it_is_resumed(trained, more, words):
    before = listing(trained)
    with pytest.raises(ResumeError, match=words):
        run(trained, "--save_steps", "4", "--resume", *more, steps=12)
    assert listing(trained) == before


def test_a_finished_run_is_left_as_it_is_by_resume(trained, capsys):
    before = listing(trained)
    run(trained, "--save_steps", "4", "--eval_strategy", "steps", "--eval_steps", "4", "--resume")
    assert "this run is finished after 8 steps, and nothing was changed" in capsys.readouterr().out
    assert listing(trained) == before


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--process", "hot"], "process must be 'vp', 've', 'rf', 'log_snr' or 'cold', got 'hot'"),
        (["--times", "0"], "T, the number of corruption steps, must be an integer of at least 1, got 0"),
        (["--schedule", "straight"], "schedule must be one of"),
        (["--prediction", "noise"], "prediction must be 'epsilon', 'x0', 'v' or 'score', got 'noise'"),
        (["--process", "rf", "--prediction", "epsilon"], "'epsilon' cannot tell x0 where a_t = 0"),
        (["--process", "cold", "--times", "4", "--prediction", "v"], "a cold process is learned with prediction 'x0'"),
        (["--process", "cold", "--degradation", "rust"], "degradation must be one of"),
        (["--sigma", "0.1"], "sigma belongs to process 'cold'"),
        (["--process", "cold", "--optimal_variance"], "optimal_variance is that of the steps of a Gaussian process"),
        (["--prior_rank", "8"], "prior_rank belongs to process 'cold', got it with 'vp'"),
        (["--process", "cold", "--prior_rank", "-1"], "prior_rank must be at least 0, got -1"),
        (["--network_options", "{width: 3}"], "network_options must be a JSON object"),
        (["--network", "unet", "--network_options", '{"widths": [8, 8, 8, 8, 8]}'], "divisible by 16"),
        (["--error", "l3"], "error must be 'l2'"),
        (["--regions", "1.5"], "regions must lie in"),
        (["--regions", "0.5", "--objective", "consistency"], "students learn whole images, of classes or none"),
        (["--process", "cold", "--regions", "0.5"], "regions are a clock for each pixel"),
        (["--regions", "0.5", "--learned_variance"], "regions have no terms of the bound"),
        (["--prediction", "score", "--error", "l1"], "prediction 'score' is a mean and goes with error 'l2', got 'l1'"),
        (["--process", "rf", "--prediction", "score"], "'score' cannot tell x0 where a_t = 0"),
        (["--weighting", "vlb", "--error", "l1"], "'vlb' is a bound"),
        (["--data", "no/such/images"], "data must be 'digits', a folder"),
    ],
)
def test_flags_that_cannot_be_are_refused_before_anything_is_written(tmp_path, more, words):
    with pytest.raises(ValueError, match=words):
        run(tmp_path / "out", *more)
    assert not (tmp_path / "out").exists()


def test_options_of_text_are_none_of_images(tmp_path):
    for option in ("--loss", "--max_corruption", "--time_law"):
        with pytest.raises(ValueError, match=f"udm image train takes no '{option}'"):
            run(tmp_path / "out", option, "1")
    assert not (tmp_path / "out").exists()


def test_a_recipe_gives_fields_and_the_command_line_overrides_them(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("times: 40\nprocess: ve\nlearning_rate: 1.0e-3\nmax-steps: 7\n")
    _, model, _, _, args = parse(["--config", str(recipe), "--output", "x", "--times", "30"])
    assert (model.times, model.process, args.learning_rate, args.max_steps) == (30, "ve", 1e-3, 7)
    assert (args.per_device_train_batch_size, args.ema_decay, args.save_steps) == (256, 0.999, 0.25)


def test_a_schedule_that_leaves_the_image_in_x_T_is_warned_of():
    _, model, *_ = parse(["--output", "x", "--schedule", "linear", "--times", "50"])
    with pytest.warns(UserWarning, match="x_T still shows x0"):
        build_process(model)
