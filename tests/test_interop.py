"""Every type of masked LM of transformers as a backbone: a sample of ten in the fast tests, all in the slow ones."""

import pytest

from tests.helpers import ROOT
from tests.interop import (
    CAUSAL,
    CHECKS,
    COLUMNS,
    DECODERS,
    REFUSED,
    TYPES,
    ask,
    is_taken,
    tiny_masked_lm,
    wrapped,
)

SAMPLE = "albert deberta-v2 distilbert electra esm eurobert fnet mobilebert roberta-prelayernorm xlm".split()
"""Kinds of structure that differ, besides those of which other tests are full."""

USABLE = [kind for kind in TYPES if kind not in REFUSED]
BIDIRECTIONAL = [kind for kind in DECODERS if kind not in CAUSAL]
EXCEPTIONS = {
    *(("ibert", check) for check in ("conditioned", "independent", "trains", "saves", "quantises", "adapts")),
    ("ibert", "quantises_by_torchao"),
    *(("longformer", check) for check in ("compiles", "is_exported", "is_onnx")),
    *(("reformer", check) for check in ("compiles", "is_onnx")),
    ("funnel", "is_onnx"),
    *((kind, "maps_devices") for kind in ("mobilebert", "neomme", "reformer")),
    *((kind, "quantises") for kind in ("mobilebert", "neomme")),
    *((kind, "quantises_by_torchao") for kind in ("mobilebert", "falcon")),
    *(("reformer", check) for check in ("trains", "adapts")),
    *((kind, "adapts") for kind in ("squeezebert", "falcon", "gpt2")),
}
"""What single types do not do, and say so, in the words of torch or peft where these are at it."""
PAGE = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
ROWS = {
    cells[1].strip(): dict(zip(COLUMNS, map(str.strip, cells[2:-1]), strict=True))
    for line in PAGE.splitlines()
    if len(cells := line.split("|")) == len(COLUMNS) + 3
}
"""The table as the page has it: by type and check `yes` or `-`."""

SLOW = {"adapts", "compiles", "is_exported"}
PACKAGES = {"is_onnx": ("onnx", "onnxscript", "onnxruntime"), "quantises_by_torchao": ("torchao",)}
"""Checks that need more than the tests install; slow ones."""


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "check",
    [name if name not in SLOW | PACKAGES.keys() else pytest.param(name, marks=pytest.mark.slow) for name in CHECKS],
)
@pytest.mark.parametrize(
    "kind",
    [kind if kind in SAMPLE else pytest.param(kind, marks=pytest.mark.slow) for kind in (*USABLE, *BIDIRECTIONAL)],
)
def test_a_type_does_what_the_table_says(kind, check):
    for name in PACKAGES.get(check, ()):
        pytest.importorskip(name)
    answer = ask(CHECKS[check], kind)
    assert (answer == "yes") == (ROWS[kind].get(check, "yes") == "yes"), answer


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_a_backbone_is_refused_by_its_type_in_the_words_of_the_page(kind):
    answer = ask(is_taken, kind)
    assert answer.startswith("ValueError: ") and f"model type '{kind}'" in answer
    assert f"| {kind} | {answer.removeprefix('ValueError: ')} |" in PAGE


@pytest.mark.parametrize("kind", CAUSAL)
def test_a_decoder_that_stays_causal_is_refused_when_it_is_given_too(kind):
    with pytest.raises(ValueError, match=f"given as backbone is a decoder of model type '{kind}', whose logits"):
        wrapped(tiny_masked_lm(kind))


def test_types_that_transformers_drops_are_noticed():
    assert set(SAMPLE) <= set(USABLE) and set(REFUSED) < set(TYPES)


def test_every_type_has_its_row_in_the_table_and_does_what_is_not_excepted():
    """What a type does not do is said twice: a `-` that a failure would leave behind is noticed here."""
    assert set(ROWS) - {"model type", "decoder", "---"} == {*USABLE, *BIDIRECTIONAL}
    no = {(kind, name) for kind in ROWS for name, cell in ROWS[kind].items() if cell == "-" and name != "fast"}
    assert no == EXCEPTIONS and {cell for kind in BIDIRECTIONAL for cell in ROWS[kind].values()} == {"yes", "-"}
