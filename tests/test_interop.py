"""Every type of masked LM of transformers as a backbone: a sample of ten in the fast tests, all in the slow ones."""

import pytest

from tests.interop import CHECKS, REFUSED, TYPES, tiny_config
from tests.interop import FIELDS as ALPHABET
from udm_text import UDMConfig, UDMForMaskedGeneration

SAMPLE = "albert deberta-v2 distilbert electra esm eurobert fnet mobilebert roberta-prelayernorm xlm".split()
"""Kinds of structure that differ, besides those of which other tests are full."""

USABLE = [kind for kind in TYPES if kind not in REFUSED]
EXCEPTIONS = {
    ("ibert", "conditioned"),
    ("ibert", "trains"),
    ("ibert", "saves"),
    ("ibert", "independent"),
    ("reformer", "trains"),
}
"""What single types do not do, and say so."""


@pytest.mark.parametrize("check", [name for name in CHECKS if name != "fast"])
@pytest.mark.parametrize(
    "kind", [kind if kind in SAMPLE else pytest.param(kind, marks=pytest.mark.slow) for kind in USABLE]
)
def test_a_masked_lm_of_any_type_is_a_backbone(kind, check, tmp_path):
    if (kind, check) in EXCEPTIONS:
        with pytest.raises(ValueError):
            CHECKS[check](kind, tmp_path)
    else:
        CHECKS[check](kind, tmp_path)


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_a_backbone_is_refused_by_its_type(kind):
    with pytest.raises(ValueError, match=f"model type '{kind}'"):
        UDMForMaskedGeneration(UDMConfig(text_config=tiny_config(kind), **ALPHABET))


def test_types_that_transformers_drops_are_noticed():
    assert set(SAMPLE) <= set(USABLE) and set(REFUSED) < set(TYPES)
