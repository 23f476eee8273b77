"""Folders, vocabularies and names that mean harm: no code runs unasked, nothing is written where it was not meant."""

import json
import subprocess
import sys

import pytest
from transformers import AutoTokenizer

from tests.helpers import ROOT, udm_here, udm_main, write_shapes
from tests.models import save_masked_lm, wake_time
from udm_text import UDMConfig, UDMForMaskedGeneration, register
from udm_text.card import make_card
from udm_text.cli.terminal import show, show_masks, visible
from udm_text.common import to_json
from udm_text.framing import load_tokenizer

register()
COUNTS = [0, 1, 2, 3]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A model as `udm train` leaves one."""
    root = tmp_path_factory.mktemp("trained")
    plain = save_masked_lm(root / "plain", "bert")
    model = UDMForMaskedGeneration.from_pretrained(plain, length_counts=COUNTS)
    wake_time(model).save_pretrained(root / "model")
    AutoTokenizer.from_pretrained(plain).save_pretrained(root / "model")
    return root / "model"


def copied(folder, target):
    """A folder of our own to spoil."""
    target.mkdir(parents=True)
    for path in folder.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    return target


def edit(file, **fields):
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


# --- code beside a model ---------------------------------------------------------------------------------------------

CODE = """
from transformers import PreTrainedTokenizerFast
open({marker!r}, "a").close()
class Evil(PreTrainedTokenizerFast):
    pass
"""


@pytest.fixture
def evil(trained, tmp_path):
    """(a model whose tokenizer is Python code in its folder, the file that this code writes when it runs)"""
    folder, marker = copied(trained, tmp_path / "evil"), tmp_path / "ran"
    (folder / "evil.py").write_text(CODE.format(marker=str(marker)))
    edit(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": [None, "evil.Evil"]}, tokenizer_class="Evil")
    return folder, marker


def command(*arguments):
    """The command with somebody who says yes to everything."""
    return subprocess.run(
        [sys.executable, "-m", "udm_text", *map(str, arguments)],
        cwd=ROOT,
        input="y\n" * 20,
        capture_output=True,
        text=True,
        timeout=280,
    )


def test_no_command_asks_whether_to_run_a_folders_code(evil, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_" + "a" * 34)
    folder, marker = evil
    corpus = write_shapes(tmp_path / "rows.txt")
    for arguments in (
        ["generate", folder],
        ["repair", folder, "the cat"],
        ["evaluate", folder, "--data", corpus],
        ["push", folder, "user/name"],
        ["export", folder, tmp_path / "out"],
        ["train", "--data", corpus, "--output", tmp_path / "run", "--model", folder, "--max_steps", "1"],
    ):
        code, out, said = udm_main(monkeypatch, arguments, b"y\n" * 20)  # somebody who says yes to everything
        assert code == 1 and "[y/N]" not in out, out + said
        last = said.splitlines()[-1]
        wanted = "never runs" if arguments[0] == "train" else "--trust-remote-code"
        assert last.startswith("udm: ") and "Python code of its own" in last and wanted in last, said
        assert not marker.exists() and not (tmp_path / "out").exists()


def test_the_flag_runs_the_code_of_a_folder_that_is_trusted(evil):
    folder, marker = evil
    result = command("generate", folder, "--seed", "0", "--trust-remote-code")
    assert result.returncode == 0 and marker.exists(), result.stderr


def test_the_library_asks_nothing_either(evil, monkeypatch, tmp_path):
    folder, marker = evil
    monkeypatch.setattr("builtins.input", lambda *question: pytest.fail(f"asked: {question}"))
    for trust in (None, False):
        with pytest.raises(ValueError, match="Python code of its own.* trust_remote_code=True"):
            load_tokenizer(folder, trust_remote_code=trust)
    assert UDMForMaskedGeneration.from_pretrained(folder).config.process == "mask"  # which needs no tokenizer
    plain = copied(folder, tmp_path / "plain")
    (plain / "config.json").write_text(json.dumps(UDMConfig.from_pretrained(folder).text_config.to_dict()))
    UDMConfig.from_pretrained(plain)  # of a known type: its own tokenizer class is there
    assert not marker.exists()


def test_a_command_that_loads_a_model_has_the_flag():
    for name in ("generate", "repair", "evaluate", "push", "export"):
        assert "--trust-remote-code" in udm_here(name, "--help").output


# --- sizes and damaged files -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_hidden_layers": 10**6}, "num_hidden_layers 1000000, and a model has 4096 at most"),
        ({"hidden_size": 10**9}, "hidden_size 1000000000, and a model has"),
        ({"vocab_size": 10**12}, "vocab_size 1000000000000, and a model has"),
        ({"num_hidden_layers": 4000, "hidden_size": 1024}, "num_hidden_layers 4000.*the checkpoint beside it holds"),
        ({"vocab_size": 60_000_000}, "vocab_size 60000000.*the checkpoint beside it holds"),
    ],
)
def test_an_absurd_size_is_refused_before_anything_is_built(trained, tmp_path, monkeypatch, fields, message):
    folder = copied(trained, tmp_path / "absurd")
    inner = json.loads((folder / "config.json").read_text())["text_config"]
    edit(folder / "config.json", text_config=inner | fields)
    monkeypatch.setattr("transformers.AutoModelForMaskedLM.from_config", lambda *a, **k: pytest.fail("built"))
    with pytest.raises(ValueError, match=message):
        UDMForMaskedGeneration.from_pretrained(folder)


def test_a_plain_checkpoint_of_absurd_vocabulary_is_refused_as_well(trained, tmp_path):
    folder = copied(trained.parent / "plain", tmp_path / "absurd")
    edit(folder / "config.json", vocab_size=10**12)
    with pytest.raises(ValueError, match="vocab_size must be an integer up to"):
        UDMForMaskedGeneration.from_pretrained(folder)


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: b"junk",
        lambda data: b"\xff" * 100,
        lambda data: data[:-7],
        lambda data: data[:50],
    ],
    ids=["empty", "junk", "long header", "truncated", "no data"],
)
def test_damaged_safetensors_are_refused_in_one_line_that_names_the_file(trained, tmp_path, damage):
    folder = copied(trained, tmp_path / "damaged")
    file = folder / "model.safetensors"
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(OSError, match="model.safetensors is .*damaged.*: |model.safetensors is damaged"):
        UDMForMaskedGeneration.from_pretrained(folder)


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/hostname", "a/b.safetensors", "..\\x", 3])
def test_an_index_names_no_file_outside_its_folder(trained, tmp_path, name):
    folder = copied(trained, tmp_path / "deep" / "index")
    (folder / "model.safetensors").rename(folder.parent / "model.safetensors")
    index = {"metadata": {}, "weight_map": {"backbone.cls.predictions.bias": name}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(OSError, match="does not lie beside it|is no index"):
        UDMForMaskedGeneration.from_pretrained(folder)


# --- what is shown ---------------------------------------------------------------------------------------------------

HOSTILE = "\x1b]0;owned\x07a\x9b31m\u202eb\r\n\tc"


def test_control_characters_are_escapes_on_a_terminal_and_themselves_elsewhere(monkeypatch, capsys):
    assert visible(HOSTILE) == "\\u001b]0;owned\\u0007a\\u009b31m\\u202eb\\u000d\n\tc"
    assert json.loads(visible(to_json(HOSTILE, ensure_ascii=False))) == HOSTILE
    for terminal in (True, False):
        for stream in (sys.stdout, sys.stderr):
            monkeypatch.setattr(stream, "isatty", lambda terminal=terminal: terminal)
        show(HOSTILE)
        show(HOSTILE, error=True)
        wanted = (visible(HOSTILE) if terminal else HOSTILE) + "\n"
        assert list(capsys.readouterr()) == [wanted, wanted]


def test_a_live_text_shows_escapes():
    class Hostile:
        pad_token_id, mask_token = 0, "[MASK]"

        def decode(self, ids, skip_special_tokens):
            return HOSTILE + self.mask_token

    assert show_masks(Hostile(), [1]) == visible(HOSTILE) + "░░"


@pytest.mark.parametrize(
    "name", ["<script>x</script>", "a|b", "![x](http://evil)", "`rm`", "a\n\n# Owned\n---", "\x1b[2J"]
)
def test_a_data_files_name_is_text_on_a_card_and_nothing_else(trained, name):
    model = UDMForMaskedGeneration.from_pretrained(trained)
    bound = {"rows": 3, "nelbo_nats_per_token": 1.0, "length_included": True}
    report = {"data": f"/data/{name}", "process": "mask", "validation": bound, "model_arguments": {"model": f"/{name}"}}
    body = make_card(model, "user/name", report=report).split("\n---\n", 1)[1]
    plain = make_card(model, "user/name", report=report | {"data": "/data/x", "model_arguments": {"model": "/x"}})
    assert len(body.splitlines()) == len(plain.split("\n---\n", 1)[1].splitlines())
    for markup in ("<script>", "a|b", "![x](", "`rm`", "\n# Owned", "\x1b"):
        assert markup not in body
