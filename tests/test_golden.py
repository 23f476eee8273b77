"""Seeds give the texts, images, losses and bounds they always gave, and models saved long ago load."""

import json
from pathlib import Path

import pytest
import torch

from continuous import ImagePipeline
from tests.golden import record
from udm_text import UDMForMaskedGeneration

GOLDEN = Path(record.__file__).parent
FIGURES = json.loads((GOLDEN / "figures.json").read_text(encoding="utf-8"))


def same(found, known):
    """Whole numbers and words exactly, others up to the rounding of another processor."""
    if isinstance(known, dict):
        return found.keys() == known.keys() and all(same(found[name], known[name]) for name in known)
    if isinstance(known, list):
        return len(found) == len(known) and all(map(same, found, known))
    return found == (pytest.approx(known, rel=1e-4, abs=1e-4) if isinstance(known, float) else known)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return json.loads(json.dumps(record.record(tmp_path_factory.mktemp("golden"))))


@pytest.mark.parametrize("part", FIGURES)
def test_a_seed_gives_what_it_always_gave(found, part):
    assert found[part].keys() == FIGURES[part].keys()
    changed = [name for name, known in FIGURES[part].items() if not same(found[part][name], known)]
    assert not changed


def test_a_text_model_of_before_loads_and_writes_what_it_wrote():
    model = UDMForMaskedGeneration.from_pretrained(GOLDEN / "text")
    known = json.loads((GOLDEN / "text" / "written.json").read_text(encoding="utf-8"))
    assert model.generate(num_return_sequences=4, seed=0).tolist() == known
    assert model.generation_config.num_steps == 5 and model.config.step_curve == [0.5, 1.0, 2.0]


def test_an_image_model_of_before_loads_and_draws_what_it_drew():
    pipe = ImagePipeline.from_pretrained(GOLDEN / "image")
    known = json.loads((GOLDEN / "image" / "drawn.json").read_text(encoding="utf-8"))
    assert torch.allclose(record.draw(pipe), torch.tensor(known), atol=1e-4)
