"""The quick tour and the how-to pages: one screen each, and their Python runs as it stands."""

import pytest
import torch

from tests.helpers import ROOT, write_shapes
from tests.models import COUNTS, make_udm, save_decoder, save_masked_lm
from tests.pages import blocks, run

PAGES = sorted((ROOT / "docs" / "how-to").glob("*.md"))
NAMES = (
    "LATIN GREEK SMALL CAPITAL LETTER A ALPHA OMEGA WITH GRAVE SMAKL red green blue small large circle square".split()
)
FEW = {"max_steps": "3", "per_device_train_batch_size": "8"}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with what the pages take to be there: models without training, a corpus, an encoder."""
    from udm_text.corpus import train_tokenizer
    from udm_text.framing import tokenizer_fields

    here = tmp_path_factory.mktemp("place")
    write_shapes(here / "corpus.txt")
    save_masked_lm(here / "path/to/encoder", "bert")
    save_decoder(here / "path/to/decoder", "llama")
    tokenizer = train_tokenizer("wordpiece", [" ".join(NAMES)] * 20, 200, separator=True)
    own = tokenizer_fields(tokenizer)
    kinds = {
        "unicode-names": ("mask", {}),
        "unicode-names-repair": ("substitute", {}),
        "blanks": ("mask", {"blank_widths": 8}),
        "answers": ("mask", {"separator_token_ids": [tokenizer.sep_token_id], "blank_widths": 8}),
    }
    for name, (process, more) in kinds.items():
        model = make_udm(process, vocab_size=len(tokenizer), length_counts=COUNTS, **{**own, **more})
        model.save_pretrained(here / "runs" / name)
        tokenizer.save_pretrained(here / "runs" / name)
    save_chat(here)
    save_digits(here)
    return here


def save_chat(here) -> None:
    """A model of chats without training."""
    from udm_text.corpus import train_tokenizer
    from udm_text.framing import tokenizer_fields

    tokenizer = train_tokenizer("wordpiece", ["red sun old sea"], 200, separator=True, chat=True)
    own = {"separator_token_ids": [tokenizer.sep_token_id], "blank_widths": 8, **tokenizer_fields(tokenizer)}
    make_udm("mask", vocab_size=len(tokenizer), length_counts=COUNTS, **own).save_pretrained(here / "runs" / "chat")
    tokenizer.save_pretrained(here / "runs" / "chat")


def save_digits(here) -> None:
    """Image models without training, hot and cold."""
    from continuous import Blur, ColdProcess, GaussianProcess, ImageConfig, ImageDenoiser, ImagePipeline

    network = {"kind": "mlp", "width": 16, "blocks": 1}
    for name, process in (("digits", GaussianProcess.vp("cosine", T=20)), ("blur", ColdProcess(Blur(T=4, std=2.0)))):
        how = {"network": network, "prediction": process.default_prediction}
        config = ImageConfig(process=process.to_dict(), image_shape=[1, 8, 8], **how)
        ImagePipeline(ImageDenoiser(config)).save_pretrained(here / "runs" / name)


@pytest.fixture
def hub(monkeypatch):
    """A push writes into a folder of the name, where the next line finds it."""
    from udm_text import UDMGenerationPipeline

    def push_to_hub(self, name, license=None):
        self.save_pretrained(name)

    monkeypatch.setattr(UDMGenerationPipeline, "push_to_hub", push_to_hub)


def test_the_quick_tour_trains_writes_pushes_and_loads_back(place, monkeypatch, hub, capsys):
    monkeypatch.setattr("udm_text.training.runs.require_matplotlib", lambda: None)
    left = run("docs/index.md", lambda block: True, place, monkeypatch, **FEW)
    assert left["report"]["steps"] == 3 and left["report"]["validation"]["bits_per_char"] > 0
    assert left["again"].model.config.process == "mask"
    weights = [dict(pipe.model.named_parameters()) for pipe in (left["pipe"], left["again"])]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert "GREEK" in capsys.readouterr().out


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_python_of_the_page_runs(page, place, monkeypatch, hub):
    run(f"docs/how-to/{page.name}", lambda block: True, place, monkeypatch)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_is_one_screen_shows_a_command_and_leads_on(page):
    text = page.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 65 and text.startswith("# ")
    assert blocks(page, "bash") and "](../" in text


def test_the_figures_of_when_and_of_the_pages_stand_where_they_were_measured():
    """A figure with its error, or a share, is one of docs/training.md, generation.md, benchmarks.md or study.md."""
    import re

    sources = "".join(
        (ROOT / "docs" / f"{name}.md").read_text() for name in ("training", "generation", "benchmarks", "study")
    )
    for page in (ROOT / "docs" / "when.md", *PAGES):
        text = page.read_text(encoding="utf-8")
        for figure in re.findall(r"\d+\.\d+ \+- \d+\.\d+|\b\d+\.\d+(?= %)", text):
            assert figure in sources, f"{page.name}: {figure}"
