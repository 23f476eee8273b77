"""Rotary positions under autocast: their type, how little it changes, and that nothing changes without it."""

import pytest
import torch

from tests.models import FIRST, VOCAB, make_udm
from tests.training_helpers import make_trainer
from udm_text.training.precision import narrow_angles

ROTARY = ("nomic_bert", "modernbert", "llama", "qwen3", "gemma3_text")


def angles_of(model):
    """What its rotary modules give out, collected call by call."""
    found = []
    for module in model.modules():
        if type(module).__name__.endswith("RotaryEmbedding"):
            module.register_forward_hook(lambda module, inputs, outputs: found.append(outputs))
    return found


def logits(model, ids, autocast=True):
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        return model(input_ids=ids).logits.float()


@pytest.mark.parametrize("family", ROTARY)
def test_angles_have_the_type_of_autocast_and_change_little(family):
    model, ids = make_udm(family=family), torch.arange(FIRST, VOCAB).view(1, -1).repeat(2, 1)
    exact, rounded = logits(model, ids, autocast=False), logits(model, ids)
    assert narrow_angles(model) == narrow_angles(model) == 1
    angles = angles_of(model)
    assert torch.equal(logits(model, ids, autocast=False), exact)
    assert {part.dtype for both in angles for part in both} == {torch.float32}
    angles.clear()
    narrow = logits(model, ids)
    assert {part.dtype for both in angles for part in both} == {torch.bfloat16}
    # as far from float32 as bfloat16 is already, by twice at most
    off, was = (narrow - exact).pow(2).mean().sqrt(), (rounded - exact).pow(2).mean().sqrt()
    assert 0.0 < off < 2.0 * was


def test_learned_positions_have_no_angles():
    assert narrow_angles(make_udm()) == 0


def test_a_trainer_narrows_the_angles_of_what_it_trains(tmp_path):
    trainer = make_trainer(tmp_path, model=make_udm(family="nomic_bert"))
    angles = angles_of(trainer.model)
    logits(trainer.model, torch.tensor([[FIRST, FIRST + 1]]))
    assert angles[0][0].dtype == torch.bfloat16
