"""`udm image`, as a person uses it, and the demo in small."""

import dataclasses
import inspect
import io
import json
import re
import shutil
import sys

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from typer.testing import CliRunner

from continuous.cli import evaluate
from continuous.data import digits, folder_rows, read_image, to_bytes
from continuous.degradations import DEGRADATIONS
from continuous.demo import FEW
from continuous.pipeline import ImagePipeline
from continuous.schedules import SCHEDULES
from continuous.train_image import main
from tests.helpers import ROOT
from udm_text.cli import main as command
from udm_text.cli.commands import app

QUIET = "--report_to none --disable_tqdm true --use_cpu --plot false --save_strategy no --max_steps 6".split()
TINY = ["--network_options", '{"width": 24, "blocks": 1}']


def udm(*arguments, error=None):
    result = CliRunner().invoke(app, ["image", *map(str, arguments)])
    if error is not None:
        assert isinstance(result.exception, (ValueError, OSError)), result.output
        assert error in str(result.exception)
    else:
        assert result.exception is None, (result.output, result.exception)
    return result.stdout


@pytest.fixture(scope="module")
def hot(tmp_path_factory):
    output = tmp_path_factory.mktemp("cli") / "hot"
    udm("train", "--output", output, *QUIET, *TINY, "--times", 30)
    return output


@pytest.fixture(scope="module")
def cold(tmp_path_factory):
    output = tmp_path_factory.mktemp("cli") / "cold"
    blur = ["--process", "cold", "--degradation", "pool", "--conditional", "false"]
    main(["--output", str(output), *QUIET, *TINY, *blur])
    return output


def two_files(folder):
    files = [folder / "0.png", folder / "1.png"]
    for path, image in zip(files, to_bytes(digits().validation.images), strict=False):
        Image.fromarray(image[0].numpy()).save(path)
    return files


def size(path):
    with Image.open(path) as image:
        return image.size, image.mode


def test_generate_writes_a_grid_and_a_strip_that_a_seed_reproduces(hot, tmp_path):
    call = ["generate", hot, "-n", 6, "--label", "all", "--num-steps", 4, "--seed", 1, "--quiet", "--columns", 3]
    strips = ["--strip", tmp_path / "strip.png", "--x0-strip", tmp_path / "x0.png"]
    printed = udm(*call, "-o", tmp_path / "a.png", *strips)
    assert printed.split() == [str(tmp_path / name) for name in ("a.png", "strip.png", "x0.png")]
    assert size(tmp_path / "x0.png") == ((4 * 68 + 4, 6 * 68 + 4), "L")  # 4 steps of 6 images
    same = ["--strip", tmp_path / "x.png", "--x0-strip", tmp_path / "x.png"]
    udm(*call, "-o", tmp_path / "c.png", *same, error="would take the place of")
    udm(*call, "-o", tmp_path / "b.png", "--batch-size", 4)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert size(tmp_path / "a.png") == ((3 * 68 + 4, 2 * 68 + 4), "L")
    assert size(tmp_path / "strip.png") == ((5 * 68 + 4, 6 * 68 + 4), "L")  # 5 states of 6 images
    assert not list(tmp_path.glob(".*"))


def test_a_cold_model_generates_too_unless_its_law_was_not_kept(cold, tmp_path):
    call = ["-n", 6, "--seed", 1, "--quiet", "--columns", 3, "--strip", tmp_path / "strip.png"]
    udm("generate", cold, *call, "-o", tmp_path / "a.png")
    assert size(tmp_path / "a.png") == ((3 * 68 + 4, 2 * 68 + 4), "L")
    assert size(tmp_path / "strip.png") == ((4 * 68 + 4, 6 * 68 + 4), "L")  # 4 states: T is 3
    udm("generate", cold, *call, "-o", tmp_path / "b.png", "--jitter", 0.3, "--sampler", "naive")
    assert (tmp_path / "a.png").read_bytes() != (tmp_path / "b.png").read_bytes()
    udm("generate", cold, *call, "-o", tmp_path / "b.png", "--sampler", "ddpm", error="'improved' or 'naive'")
    more = ["--process", "cold", "--degradation", "pool", "--conditional", "false", "--prior_rank", "0"]
    main(["--output", str(tmp_path / "older"), *QUIET, *TINY, *more])
    udm("generate", tmp_path / "older", *call, "-o", tmp_path / "c.png", error="keeps no law of x_T to draw from")


def test_restore_reads_files_and_writes_before_and_after(cold, tmp_path):
    clean, files = digits().validation.images[:2], two_files(tmp_path)
    udm("restore", cold, *files, "-o", tmp_path / "three.png", "--degrade", "--quiet")
    assert size(tmp_path / "three.png") == ((2 * 68 + 4, 3 * 68 + 4), "L")
    udm("restore", cold, *files, "-o", tmp_path / "two.png", "--t", 2, "--quiet")
    assert size(tmp_path / "two.png") == ((2 * 68 + 4, 2 * 68 + 4), "L")
    with Image.open(tmp_path / "two.png") as page:  # the first row is what was given
        row = torch.frombuffer(bytearray(page.tobytes()), dtype=torch.uint8).view(140, 140)
    assert torch.equal(row[4:68:8, 4:68:8], to_bytes(clean)[0, 0])


def test_a_part_of_images_is_made_anew_where_a_mask_is_white(hot, cold, tmp_path):
    files, mask, out = two_files(tmp_path), tmp_path / "mask.png", tmp_path / "edited"
    half = torch.zeros(8, 8, dtype=torch.uint8)
    half[:, 4:] = 255
    Image.fromarray(half.numpy()).save(mask)
    call = ["edit", hot, *files, "--mask", mask, "--num-steps", 3, "--corrections", 2, "--temperature", 0.5, "--quiet"]
    printed = udm(*call, "--label", "3", "-o", tmp_path / "page.png", "--output-dir", out)
    assert printed.split() == [str(tmp_path / "page.png"), str(out / "0.png"), str(out / "1.png")]
    assert size(tmp_path / "page.png") == ((2 * 68 + 4, 3 * 68 + 4), "L")
    pipe, clean = ImagePipeline.from_pretrained(hot), torch.stack([read_image(path, "it") for path in files])
    how = {"label": 3, "num_steps": 3, "corrections": 2, "temperature": 0.5, "seed": 0}
    made, found = to_bytes(pipe.edit(clean, half > 0, **how)), to_bytes(folder_rows(out).images)
    assert torch.equal(found, made) and torch.equal(found[..., :4], to_bytes(clean)[..., :4])
    assert not torch.equal(made, to_bytes(pipe.edit(clean, half > 0, **(how | {"temperature": 1.0}))))
    udm(*call, "-o", mask, error="would take the place of")
    udm(*call, "-o", tmp_path / "page.png", "--mode", "clean", error="needs a model trained with regions")
    udm("edit", cold, *files, "--mask", mask, "-o", tmp_path / "page.png", error="needs a model of a Gaussian process")
    Image.fromarray(half[:4].numpy()).save(mask)
    udm(*call, "-o", tmp_path / "page.png", error="mask must be 8 x 8, as the model's images are, got 4 x 8")
    Image.fromarray((half * 0).numpy()).save(mask)
    udm(*call, "-o", tmp_path / "page.png", error="is black all over")


def test_images_are_inverted_and_joined_from_their_files(hot, cold, tmp_path, monkeypatch):
    files = two_files(tmp_path)
    page, noise = tmp_path / "page.png", tmp_path / "noise.safetensors"
    call = ["invert", hot, *files, "--label", "3", "--num-steps", 4]
    assert udm(*call, "-o", page, "--noise", noise).split() == [str(page), str(noise)]
    assert size(page) == ((2 * 68 + 4, 3 * 68 + 4), "L")
    pipe, clean = ImagePipeline.from_pretrained(hot), torch.stack([read_image(path, "it") for path in files])
    assert torch.equal(load_file(noise)["noise"], pipe.encode(clean, "3", num_steps=4))
    with monkeypatch.context() as patch:
        asked: list = []
        patch.setattr(ImagePipeline, "decode", lambda self, x, label, **how: asked.append(label) or x)
        udm(*call, "-o", page)
        udm(*call, "-o", page, "--to", "8")
    assert asked == ["3", "8"]
    udm("interpolate", hot, *files, "-o", tmp_path / "way.png", "-n", 5, "--num-steps", 3)
    assert size(tmp_path / "way.png") == ((5 * 68 + 4, 68 + 4), "L")
    udm(*call, "-o", files[0], error="would take the place of")
    udm(*call, "-o", page, "--noise", tmp_path / "noise.pt", error="noise must be a .safetensors file")
    udm("invert", cold, *files, "-o", page, error="this needs a model of a Gaussian process")


def test_restored_images_are_written_one_by_one_too(cold, tmp_path):
    files = two_files(tmp_path)
    out = tmp_path / "restored"
    printed = udm("restore", cold, *files, "--output-dir", out, "--t", 2, "--quiet")
    assert printed.split() == [str(out / "0.png"), str(out / "1.png")]
    found = folder_rows(out).images
    assert found.shape == (2, 1, 8, 8)
    clean = torch.stack([read_image(path, "it") for path in files])
    pipe = ImagePipeline.from_pretrained(cold)
    assert torch.equal(to_bytes(found), to_bytes(pipe.restore(clean, 2, seed=0)))
    udm("restore", cold, *files, "--output-dir", tmp_path, error="would take the place of")
    udm("restore", cold, *files, "--output-dir", tmp_path / "no" / "here", error=f"no directory {tmp_path / 'no'}")
    udm("restore", cold, *files, "--output-dir", files[0], error="it is a file")
    udm("restore", cold, files[0], out / "0.png", "--output-dir", tmp_path / "x", error="would both be written as")
    udm("restore", cold, *files, error="give --output FILE.png, --output-dir DIR or both")
    assert not (tmp_path / "x").exists()


def test_degrading_goes_half_way_unless_told_how_far(cold, tmp_path, monkeypatch):
    Image.fromarray(to_bytes(digits().validation.images[0])[0].numpy()).save(tmp_path / "a.png")
    seen = []
    monkeypatch.setattr(ImagePipeline, "degrade", lambda self, images, t, seed: seen.append(t) or images)
    for more in ([], ["--t", 3]):
        udm("restore", cold, tmp_path / "a.png", "-o", tmp_path / "b.png", "--degrade", "--quiet", *more)
    assert seen == [2, 3] and ImagePipeline.from_pretrained(cold).process.T == 3


def test_evaluate_prints_the_samples_beside_the_references_and_the_bound(hot, cold):
    printed = udm("evaluate", hot, "--num-steps", 4, "-n", 40, "--terms", 4)
    for words in ("dpm_solver, 4 steps", "memoriser", "matched Gaussian", "bits/dim"):
        assert words in printed
    figures = json.loads(udm("evaluate", cold, "--json"))
    restored, samples = figures["restorations"], figures["samples"]
    assert restored.keys() == {"degraded", "direct", "naive", "improved"} and restored["degraded"]["rmse"] > 0.3
    assert samples["sampler"] == "improved" and samples["number"] == 500 and "bound" not in figures
    printed = udm("evaluate", cold, "--sampler", "naive")
    for words in ("RMSE", "(500 held-out images, from D_T)", "naive, 3 steps", "memoriser"):
        assert words in printed


def test_a_run_in_a_folder_named_digits_is_measured_on_the_digits(hot, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    main(["--output", "digits", *QUIET, *TINY, "--times", "30"])
    report = json.loads((tmp_path / "digits" / "report.json").read_text())
    assert report["data"] == "digits"
    few = ["--num-steps", 2, "-n", 20, "--terms", 0, "--json"]
    assert json.loads(udm("evaluate", "digits", *few))["data"] == "digits"
    older = {**report, "data": str(tmp_path / "digits")}
    (tmp_path / "digits" / "report.json").write_text(json.dumps(older))
    assert json.loads(udm("evaluate", "digits", *few))["data"] == "digits"
    udm("evaluate", "digits", "--data", hot, *few, error="is a model, and no data set")
    for text, words in (("[]", "is not the report of a run on images"), ("{", "is not readable as JSON")):
        (tmp_path / "digits" / "report.json").write_text(text)
        udm("evaluate", "digits", *few, error=words)


def test_evaluate_says_what_it_is_about_to_do_and_shows_bars_on_a_terminal(hot, cold, monkeypatch):
    call = ["image", "evaluate", str(hot), "--num-steps", "4", "-n", "40", "--terms", "4", "--json"]
    result = CliRunner().invoke(app, call)
    note, _, rest = result.stderr.partition("\n")
    assert rest == "" and note == (
        "note: 40 samples of 4 steps are drawn, and compared with 500 held-out images and 1297 to train on; the bound "
        "takes 8 calls for each held-out image"
    )
    first = CliRunner().invoke(app, ["image", "evaluate", str(cold), "--json"]).stderr
    assert first.startswith(
        "note: 500 held-out images are degraded and restored in 3 ways; 500 samples of 3 steps are drawn, and compared"
    )

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr("sys.stderr", screen := Terminal())
    evaluate(str(hot), None, None, None, "dpm_solver", 4, 1.0, 40, 4, None, 0, None, True)
    shown = set(re.findall(r"([a-z ]+): +\d+%\|", screen.getvalue()))
    assert shown == {"classifier", "nearest images", "bound"} and "step/s" in screen.getvalue()


def test_what_cannot_be_done_is_said_in_one_line(hot, cold, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out.png"
    (tmp_path / "torn.png").write_bytes(b"\x89PNG\r\n")
    udm("generate", hot, "-o", tmp_path / "out.gif", error="written as .png")
    udm("generate", hot, "-o", tmp_path / "no" / "out.png", error="existing directory")
    udm("generate", hot, "-o", out, "--label", "ten", "--quiet", error="label must be 'all' or one of")
    udm("generate", hot, "-o", out, "--num-steps", 31, "--quiet", error="num_steps must be an integer in 1..30")
    udm("generate", cold, "-o", out, "--quiet", "--spacing", "snr", error="'snr' needs a GaussianProcess")
    udm("generate", "./no/model", "-o", out, error="there is no model directory ./no/model")
    udm("restore", cold, tmp_path / "torn.png", "-o", out, error="torn.png cannot be read as an image")
    udm("train", "--output", hot, *QUIET, error="--resume")
    assert not out.exists()
    monkeypatch.setattr(sys, "argv", ["udm", "image", "generate", "./no/model", "-o", str(out)])
    with pytest.raises(SystemExit) as stop:
        command()
    assert stop.value.code == 1 and capsys.readouterr().err == "udm: there is no model directory ./no/model\n"


@pytest.mark.parametrize("device", ["cuda", "cuda:7", "gpu", "meta"])
def test_a_device_that_is_not_there_is_refused_in_one_line(hot, cold, tmp_path, device):
    if device == "cuda" and torch.cuda.is_available():
        pytest.skip("there is one")
    words = f"device '{device}' cannot be used here ("
    udm("generate", hot, "-o", tmp_path / "a.png", "--device", device, error=words)
    udm("evaluate", cold, "--device", device, error=words)
    udm("restore", cold, tmp_path / "none.png", "-o", tmp_path / "a.png", "--device", device, error=words)
    with pytest.raises(ValueError) as caught:
        ImagePipeline.from_pretrained(hot, device)
    assert "\n" not in str(caught.value)


def test_an_output_that_cannot_be_written_is_found_before_the_work(hot, cold, tmp_path, monkeypatch):
    monkeypatch.setattr(ImagePipeline, "from_pretrained", lambda *_: pytest.fail("a model was loaded"))
    missing, taken = tmp_path / "no" / "a.png", tmp_path / "taken.png"
    taken.mkdir()
    udm("generate", hot, "-o", missing, error=f"there is no directory {tmp_path / 'no'}")
    udm("generate", hot, "-o", tmp_path / "a.png", "--strip", missing, error=f"there is no directory {tmp_path / 'no'}")
    udm("generate", hot, "-o", taken, error="taken.png is a directory")
    udm("generate", hot, "-o", tmp_path / "a.png", "--strip", tmp_path / "a.png", error="would take the place of")
    udm("restore", cold, tmp_path / "a.png", "-o", tmp_path / "a.png", error="would take the place of")
    udm("generate", hot, "-o", tmp_path / ("a" * 250 + ".png"), error="cannot be written: File name too long")
    assert [path.name for path in tmp_path.iterdir()] == ["taken.png"]


def test_an_evaluation_that_cannot_be_is_refused_before_samples_are_drawn(hot, cold, monkeypatch, tmp_path):
    monkeypatch.setattr(ImagePipeline, "generate", lambda *_, **__: pytest.fail("samples were drawn"))
    udm("evaluate", hot, "--terms", 1, error="terms must be 0, for no bound, or at least 2, got 1")
    udm("evaluate", cold, "--variance", "fixed", error="variance is that of the steps of a Gaussian process")
    udm("evaluate", hot, "--variance", "wide", error="variance must be 'fixed', 'learned' or 'optimal', got 'wide'")
    for i, image in enumerate(to_bytes(digits().train.images[:5])):
        Image.fromarray(image[0].numpy()).save(tmp_path / f"{i}.png")
    udm("evaluate", hot, "--data", tmp_path, error="at least 2 held-out images and 4 to train on, got 1 and 4")


def test_the_snippets_of_the_documentation_run_one_after_the_other(hot, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cold = ["--process", "cold", "--degradation_options", '{"T": 3}', "--conditional", "false"]
    main(["--output", "runs/blur", *QUIET, *TINY, *cold])
    shutil.copytree(hot, "runs/digits")
    text = (ROOT / "docs" / "images.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    names: dict = {}
    for block in blocks:
        exec(compile(block.replace("num_steps=50", "num_steps=5"), "docs/images.md", "exec"), names)
    assert len(blocks) >= 2 and (tmp_path / "grid.png").exists() and names["restored"].shape[1:] == (1, 8, 8)
    for name, kind in DEGRADATIONS.items():  # every degradation stands in the table, with every parameter and default
        if kind.__module__ != "continuous.degradations":
            continue
        [line] = [line for line in text.splitlines() if line.startswith(f"| `{name}` |")]
        for field in dataclasses.fields(kind):
            default = list(field.default) if isinstance(field.default, tuple) else field.default
            assert f'"{field.name}": {json.dumps(default)}' in line
    for name, make in SCHEDULES.items():
        [line] = [line for line in text.splitlines() if line.startswith(f"| `{name}` | `{{")]
        options = {key: one.default for key, one in inspect.signature(make).parameters.items() if key != "T"}
        assert json.loads(re.search(r"\{.*?\}", line)[0]) == options


@pytest.mark.slow
def test_the_demo_in_small_writes_its_images_and_its_table(tmp_path):
    printed = udm("demo", "--output", tmp_path, "--steps", 30, "--number", 40)
    for words in (
        "memoriser",
        "matched Gaussian",
        "ddpm 1000",
        "dpm_solver 10",
        "paired seeds",
        "improved",
        "bits/dim",
        "student, 1 step",
        "samples in latents",
        "blurred digits drawn",
    ):
        assert words in printed, printed
    for name in ("digits/grid.png", "digits/strip.png", "digits-blur/restored.png", "digits/loss.png"):
        assert (tmp_path / name).stat().st_size > 1000
    for name in ("digits-student/few-steps.png", "digits-latent/latent.png", "digits-blur/made.png"):
        assert (tmp_path / name).stat().st_size > 1000
    report = json.loads((tmp_path / "digits" / "report.json").read_text())
    assert report["samples"]["memoriser"]["nearest"] == 0.0 and len(report["paired"]) == 3
    assert report["student"].keys() == FEW.keys() and report["cold_samples"]["number"] == 40
    assert "is there already" in udm("demo", "--output", tmp_path, "--number", 40)
