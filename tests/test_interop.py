"""Every type of masked LM of transformers as a backbone: a sample of ten in the fast tests, all in the slow ones."""

import pytest

from tests.helpers import ROOT
from tests.interop import CAUSAL, CHECKS, COLUMNS, DECODERS, REFUSED, TYPES, tiny_config, tiny_masked_lm, wrapped
from tests.interop import FIELDS as ALPHABET
from udm_text import UDMConfig, UDMForMaskedGeneration

SAMPLE = "albert deberta-v2 distilbert electra esm eurobert fnet mobilebert roberta-prelayernorm xlm".split()
"""Kinds of structure that differ, besides those of which other tests are full."""

USABLE = [kind for kind in TYPES if kind not in REFUSED]
EXCEPTIONS = {
    *(("ibert", check) for check in ("conditioned", "independent", "trains", "saves", "adapts")),
    ("longformer", "is_exported"),
    *(("reformer", check) for check in ("trains", "adapts")),
    ("squeezebert", "adapts"),
}
"""What single types do not do, and say so, in the words of torch.export or peft where these are at it."""


SLOW = {"is_exported", "adapts"}
OWN = [name if name not in SLOW else pytest.param(name, marks=pytest.mark.slow) for name in CHECKS if name != "fast"]


@pytest.mark.parametrize("check", OWN)
@pytest.mark.parametrize(
    "kind", [kind if kind in SAMPLE else pytest.param(kind, marks=pytest.mark.slow) for kind in USABLE]
)
def test_a_masked_lm_of_any_type_is_a_backbone(kind, check, tmp_path):
    if (kind, check) in EXCEPTIONS:
        with pytest.raises(Exception):  # noqa: B017
            CHECKS[check](kind, tmp_path)
    else:
        CHECKS[check](kind, tmp_path)


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_a_backbone_is_refused_by_its_type(kind):
    with pytest.raises(ValueError, match=f"model type '{kind}'"):
        UDMForMaskedGeneration(UDMConfig(text_config=tiny_config(kind), **ALPHABET))


@pytest.mark.parametrize("kind", CAUSAL)
def test_a_decoder_that_stays_causal_is_refused_when_it_is_given_too(kind):
    with pytest.raises(ValueError, match=f"given as backbone is a decoder of model type '{kind}', whose logits"):
        wrapped(tiny_masked_lm(kind))


@pytest.mark.slow
@pytest.mark.parametrize("check", ["loads", "independent", "trains", "saves", "exports"])
@pytest.mark.parametrize("kind", [kind for kind in DECODERS if kind not in CAUSAL])
def test_a_decoder_of_any_type_is_a_backbone(kind, check, tmp_path):
    CHECKS[check](kind, tmp_path)


def test_types_that_transformers_drops_are_noticed():
    assert set(SAMPLE) <= set(USABLE) and set(REFUSED) < set(TYPES)


def test_every_usable_type_has_its_row_in_the_table():
    page = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
    rows = {cells[1].strip(): cells[2:-1] for line in page.splitlines() if len(cells := line.split("|")) == 12}
    assert set(rows) - {"model type", "decoder", "---"} == {*USABLE, *DECODERS} - set(CAUSAL)
    no = {
        (kind, name) for kind in USABLE for name, cell in zip(COLUMNS, rows[kind], strict=True) if cell.strip() == "-"
    }
    assert {pair for pair in no if pair[1] != "fast"} == EXCEPTIONS
