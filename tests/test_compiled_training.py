"""Training under torch.compile: the losses of the uncompiled run, and few graphs."""

import json

import pytest
import torch
from torch._dynamo.utils import counters

from tests.helpers import write_lines
from tests.models import MASK, make_rows, make_udm
from tests.training_helpers import VARIANTS, history, make_trainer
from udm_text.cli.train_text import main
from udm_text.objectives import CorruptedRows, asked_places, padded_count
from udm_text.positions import Positions
from udm_text.training.objective import is_compiled

ALIKE, VARIED = make_rows(96, shortest=12), make_rows(300, longest=36)
"""Rows of one length, by whole batches; rows of many, whose last batch is smaller."""
COMPILED = {"torch_compile": True, "torch_compile_backend": "eager"}


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def graphs():
    return counters["stats"]["unique_graphs"]


def losses(output, variant, rows, pack_length=None, **how):
    trainer = make_trainer(output, variant, rows=rows, max_steps=50, **how)
    trainer.objective.pack_length = pack_length
    trainer.train()
    return history(trainer, "loss", "grad_norm")


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("order, rows, most", [("random", ALIKE, 1), ("group_by_length", VARIED, 3)])
def test_fifty_steps_compile_at_most_twice_again_and_have_the_same_losses(tmp_path, variant, order, rows, most):
    how = {"train_sampling_strategy": order}
    expected = losses(tmp_path, variant, rows, **how)
    found = losses(tmp_path, variant, rows, **COMPILED, **how)
    assert len(found) == 50 and torch.allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert 1 <= graphs() <= most


def test_packed_rows_compile_at_most_twice_again(tmp_path):
    expected = losses(tmp_path, "mask", VARIED, pack_length=64)
    found = losses(tmp_path, "mask", VARIED, pack_length=64, **COMPILED)
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-5) and 1 <= graphs() <= 3


def test_logits_in_chunks_have_the_same_losses(tmp_path):
    expected = losses(tmp_path, "mask", ALIKE, loss_chunk=100)
    found = losses(tmp_path, "mask", ALIKE, loss_chunk=100, **COMPILED)
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-5) and graphs() <= 3


@pytest.mark.slow
def test_what_users_get_has_the_same_losses(tmp_path):
    """torch's own compiler, which makes machine code."""
    expected = losses(tmp_path, "mask", VARIED)
    found = losses(tmp_path, "mask", VARIED, torch_compile=True)
    assert torch.allclose(found, expected, rtol=1e-3, atol=1e-4) and 1 <= graphs() <= 3


def test_the_command_compiles_and_writes_a_model_like_any(tmp_path):
    data = write_lines(tmp_path / "toy.txt", ("red", "mat", "cat", "dog"), lines=60, longest=4)
    options = "--model tiny --max_steps 3 --per_device_train_batch_size 4 --use_cpu --report_to none --plot false"
    options += " --torch_compile --torch_compile_backend eager"
    main(["--data", str(data), "--output", str(tmp_path / "m"), *options.split()])
    assert graphs() and json.loads((tmp_path / "m" / "report.json").read_text())


def test_a_compiled_model_is_told_from_one_that_is_not():
    model = make_udm()
    assert not is_compiled(model) and is_compiled(torch.compile(model, backend="eager"))
    model.backbone.base_model.compile(backend="eager")
    assert is_compiled(model)


def test_numbers_of_positions_are_rounded_up_to_few_and_by_little():
    assert [padded_count(n) for n in (1, 64, 65, 1000, 1025, 4032, 4097)] == [64, 64, 128, 1024, 1152, 4096, 4608]
    assert all(n <= padded_count(n) < n + max(64, n / 8 + 1) for n in range(1, 20_000))
    assert len({padded_count(n) for n in range(1025, 16_385)}) == 32


def test_the_positions_stand_first_and_are_repeated_behind():
    xt = torch.full((2, 5), MASK)
    corrupted = torch.tensor([[0, 1, 1, 0, 0], [1, 0, 0, 0, 1]], dtype=torch.bool)
    t = corrupted.sum(dim=1)
    rows = CorruptedRows(xt, xt, corrupted, corrupted, t, t)
    positions = Positions.of(corrupted)
    assert asked_places(rows, positions) == positions.places
    places = asked_places(rows._replace(steady=True), positions)
    assert all(
        torch.equal(place[:4], own) and len(place) == 64 for place, own in zip(places, positions.places, strict=True)
    )
    assert corrupted[places].all()
    nowhere = Positions.of(torch.zeros_like(corrupted))
    assert all(len(place) == 0 for place in asked_places(rows._replace(steady=True), nowhere))
