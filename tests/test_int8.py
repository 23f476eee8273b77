"""Weights of 8 bits: what they cost and save, and that they come back. Skipped where torchao is not installed."""

import os

import pytest
import torch
from transformers import pipeline

from continuous.data import ImageRows
from continuous.evaluation import bits_per_dim
from continuous.modeling import ImageConfig, ImageDenoiser
from continuous.pipeline import ImagePipeline
from continuous.pipeline import save_int8 as save_images
from continuous.processes import GaussianProcess
from tests.helpers import udm_here
from tests.models import MASK, ROWS, make_rows, make_tokenizer, make_udm, save_masked_lm
from tests.test_autoregressive import make_writer
from udm_text import UDMForMaskedGeneration
from udm_text.common import load_int8
from udm_text.evaluation.bounds import evaluate_bound, ratio_with_stderr, row_draws
from udm_text.hub import save_int8

PROCESSES = ("mask", "substitute", "uniform")


def quantised(model, tmp_path):
    pytest.importorskip("torchao")
    model.save_pretrained(tmp_path / "full")
    return save_int8(str(tmp_path / "full"), None, tmp_path / "int8")


def make_images():
    network = {"kind": "mlp", "width": 64, "blocks": 1}
    process = GaussianProcess.vp("cosine", 20).to_dict()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        denoiser = ImageDenoiser(
            ImageConfig(process=process, image_shape=[1, 4, 4], classes=["0", "1"], network=network)
        )
        for weights in denoiser.parameters():
            torch.nn.init.normal_(weights, std=0.1)
    return ImagePipeline(denoiser)


@pytest.mark.parametrize("images", [False, True])
def test_without_torchao_it_is_said_what_to_install(images, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torchao.quantization", None)
    (make_images() if images else make_udm()).save_pretrained(tmp_path / "full")
    with pytest.raises(ImportError, match=r"need torchao: pip install '.\[int8\]'"):
        if images:
            save_images(str(tmp_path / "full"), tmp_path / "int8")
        else:
            save_int8(str(tmp_path / "full"), None, tmp_path / "int8")
    assert not (tmp_path / "int8").exists()


@pytest.mark.parametrize("process", PROCESSES)
def test_the_bound_on_the_same_noise_moves_by_less_than_its_standard_error(process, tmp_path):
    model = make_udm(process, hidden_size=64)
    small, rows = quantised(model, tmp_path), make_rows(60, shortest=4)
    report = evaluate_bound(model, rows, draws=4)
    how = {"batch_size": 64, "draws": 4, "seed": 0, "kernel": model.config.kernel}
    nats = [row_draws(one, rows, range(len(rows)), **how) for one in (model, small)]
    lengths = nats[0].lengths.double()
    moved, _ = ratio_with_stderr((nats[1].nats - nats[0].nats).mean(dim=1), lengths)
    assert 0 < abs(moved) < report.nelbo_nats_per_token_stderr


def test_weights_are_off_by_half_a_unit_of_their_row_and_logits_by_less_than_3_per_cent(tmp_path):
    model = make_udm(hidden_size=64)
    small, tokens = quantised(model, tmp_path), torch.tensor([ROWS[0]])
    with torch.no_grad():
        full, rounded = model(input_ids=tokens).logits, small(input_ids=tokens).logits
    assert 0 < float((rounded - full).square().mean().sqrt() / full.std()) < 0.03
    name = "backbone.bert.encoder.layer.0.attention.self.query.weight"
    weight, stored = model.get_parameter(name).detach(), small.get_parameter(name).detach().dequantize()
    unit = weight.abs().amax(dim=1, keepdim=True) / 127
    assert bool(((stored - weight).abs() <= 0.51 * unit).all())


@pytest.mark.parametrize("make", [make_udm, make_writer])
def test_what_is_written_is_smaller_and_comes_back_bit_for_bit(make, tmp_path):
    model = make()
    small = quantised(model, tmp_path)
    back = UDMForMaskedGeneration.from_pretrained(tmp_path / "int8")
    tokens = torch.tensor([ROWS[0]])
    told = {"x0": tokens} if make is make_writer else {}
    with torch.no_grad():
        assert torch.equal(back(input_ids=tokens, **told).logits, small(input_ids=tokens, **told).logits)
    rows = back.generate(tokens, seed=0)
    assert torch.equal(rows, small.generate(tokens, seed=0)) and not bool((rows == MASK).any())
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("full", "int8")]
    assert sizes[1] < 0.7 * sizes[0]
    assert not [path for path in (tmp_path / "int8").iterdir() if path.suffix in (".bin", ".pt", ".pkl")]
    with pytest.raises(ValueError, match="is quantised already"):
        save_int8(str(tmp_path / "int8"), None, tmp_path / "again")


def test_the_command_writes_what_the_pipeline_reads(tmp_path):
    pytest.importorskip("torchao")
    folder = save_masked_lm(tmp_path / "plain", "bert")
    UDMForMaskedGeneration.from_pretrained(folder).save_pretrained(tmp_path / "udm")
    make_tokenizer("bert").save_pretrained(tmp_path / "udm")
    said = udm_here("export", tmp_path / "udm", tmp_path / "int8", "--int8").output
    assert "udm-generation" in said
    [record] = pipeline("udm-generation", model=str(tmp_path / "int8"))("the [MASK] sat", seed=0)
    assert record["generated_text"].startswith("the") and record["generated_text"].endswith("sat")


def test_images_of_int8_weights_have_the_bound_of_the_model_within_its_error_and_come_back_bit_for_bit(tmp_path):
    pytest.importorskip("torchao")
    pipe = make_images()
    pipe.save_pretrained(tmp_path / "full")
    said = udm_here("image", "export", tmp_path / "full", tmp_path / "int8", "--int8").output
    small = ImagePipeline.from_pretrained(tmp_path / "int8")
    assert "ImagePipeline.from_pretrained" in said and "README.md" in os.listdir(tmp_path / "int8")
    how = {"label": "all", "num_steps": 4, "seed": 0}
    rounded = ImagePipeline(load_int8(ImageDenoiser, str(tmp_path / "full")))
    assert torch.equal(small.generate(6, **how), rounded.generate(6, **how))
    images = make_images().generate(40, label="all", sampler="ddpm", seed=1)
    rows = ImageRows((8 * images).round() / 8, torch.arange(40) % 2, ["0", "1"], levels=17)
    bounds = [bits_per_dim(one, rows, terms=8, seed=0) for one in (pipe, small)]
    moved = abs(bounds[0]["bits_per_dim"] - bounds[1]["bits_per_dim"])
    assert 0 < moved < bounds[0]["bits_per_dim_stderr"]
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("full", "int8")]
    assert sizes[1] < 0.7 * sizes[0]
    with pytest.raises(ValueError, match="is quantised already"):
        save_images(str(tmp_path / "int8"), tmp_path / "more")
