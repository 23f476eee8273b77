"""Manners of the command: a help that one can read, a stop that says what it did, a folder that is not blocked."""

import logging
import re
import warnings

import pytest

from continuous import train_image
from tests.helpers import udm_here, write_shapes
from tests.models import save_masked_lm
from udm_text import UDMForMaskedGeneration, register
from udm_text.cli import commands, terminal, train_text
from udm_text.training import arguments
from udm_text.training.locks import LOCK
from udm_text.training.runs import OutputExistsError, refuse_output

register()

# --- help ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("module", [arguments, train_image])
def test_help_tells_of_what_people_change_in_groups_with_defaults(module, capsys):
    with pytest.raises(SystemExit) as end:
        module.parse(["--help"])
    text = capsys.readouterr().out
    assert end.value.code == 0
    shown = re.findall(r"^  --(\w[\w-]*)", text, re.MULTILINE)
    named = [name for fields in module.GROUPS.values() for name in fields]
    assert shown == [{"output_dir": "output"}.get(name, name) for name in named] + ["config", "help-all"]
    assert 20 <= len(shown) <= 32 and len(text.splitlines()) < 90
    assert [line[:-1] for line in text.splitlines() if re.fullmatch(r"\w.*:", line)] == [*module.GROUPS, "Elsewhere"]
    size = module.DEFAULTS["per_device_train_batch_size"]  # none: by a rule
    said = r"more\s+of\s+short\s+rows\." if size is None else rf"Default:\s+{size}\."
    assert re.search(rf"on each device[;.].*{said}", text, re.DOTALL)


def test_help_all_tells_of_every_field(capsys):
    for spelling in ("--help-all", "--help_all"):
        with pytest.raises(SystemExit):
            arguments.parse(["--output", "x", spelling])
        text = capsys.readouterr().out
        assert "--adam_beta2" in text and "--fsdp" in text and "--prompt_column" in text


def test_help_of_a_recipe_that_is_not_there_is_still_help(capsys):
    with pytest.raises(SystemExit) as end:
        arguments.parse(["--config", "gone.yaml", "--help"])
    assert end.value.code == 0 and "--config FILE" in capsys.readouterr().out


# --- Ctrl-C ----------------------------------------------------------------------------------------------------------


def stopped(*arguments, **more):
    result = udm_here(*arguments, code=130, **more)
    (line,) = result.stderr.splitlines()
    return line


@pytest.fixture
def interrupt(monkeypatch):
    """Ctrl-C where a model is loaded."""

    def press(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(commands, "_pipeline", press)
    monkeypatch.setattr(UDMForMaskedGeneration, "from_pretrained", press)
    monkeypatch.setattr(train_text, "train_text", press)


def test_a_stopped_command_says_in_one_line_what_it_did(interrupt, tmp_path):
    nothing = "udm: stopped; nothing was written"
    shapes = write_shapes(tmp_path / "shapes.txt")
    (folder := tmp_path / "m").mkdir()
    assert stopped("generate", folder) == stopped("repair", folder, "a") == nothing
    assert stopped("evaluate", folder, "--data", shapes) == stopped("export", folder, tmp_path / "o") == nothing
    assert "not confirmed" in stopped("push", folder, "user/name")
    assert stopped("train", "--data", shapes, "--output", tmp_path / "o") == "udm: stopped"


def test_what_was_written_before_is_named(monkeypatch, tmp_path):
    class Pipe:
        tokenizer = None

        def __call__(self, inputs, **how):
            return [[{"generated_text": "a", "trajectory": ["a"]}] for _ in inputs]

    def press(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(commands, "_pipeline", lambda *args: Pipe())
    monkeypatch.setattr(commands, "readable", lambda tokenizer, state: state)
    monkeypatch.setattr(commands, "write_texts", press)
    page = tmp_path / "out.html"
    said = stopped("generate", "m", "a", "--save", page, "--output", tmp_path / "out.txt")
    assert said == f"udm: stopped; {page} was written" and page.exists()


# --- watching --------------------------------------------------------------------------------------------------------


def test_the_pace_of_watching_is_what_was_asked_for(monkeypatch):
    paces = []

    class Live:
        def __init__(self, tokenizer, pause):
            paces.append(pause)

        def __enter__(self):
            return self

        def __exit__(self, *exception):
            pass

    class Pipe:
        tokenizer = None

        def __call__(self, text, streamer, **how):
            return [{"generated_text": "a"}]

    monkeypatch.setattr(commands, "_pipeline", lambda *args: Pipe())
    monkeypatch.setattr(commands, "LiveText", Live)
    udm_here("generate", "m", "--watch", "--watch-delay", "0")
    udm_here("generate", "m", "--watch", "--watch-delay", "1.5")
    udm_here("generate", "m", "--watch")
    assert paces[:2] == [0.0, 1.5] and 0.05 <= paces[2] <= 0.3
    udm_here("generate", "m", "--watch", "--watch-delay=-1", code=2)


# --- a folder of a run that died -------------------------------------------------------------------------------------


def test_a_run_that_died_in_its_first_step_blocks_nothing_and_what_was_trained_stays(tmp_path):
    logs = tmp_path / "runs" / "Nov26"
    logs.mkdir(parents=True)
    (tmp_path / "run.json").write_text("{}")
    (tmp_path / LOCK).write_text("")
    (logs / "events.out.tfevents.1.host").write_text("")
    refuse_output(tmp_path, resume=False)
    refuse_output(tmp_path, resume=True)
    for name in ("report.json", "model.safetensors", "checkpoint-1", "notes.txt", "runs/model.safetensors"):
        (tmp_path / name).mkdir() if name == "checkpoint-1" else (tmp_path / name).write_text("")
        with pytest.raises(OutputExistsError, match="is not empty: give --resume"):
            refuse_output(tmp_path, resume=False)
        (tmp_path / name).rmdir() if name == "checkpoint-1" else (tmp_path / name).unlink()
    refuse_output(tmp_path, resume=False)


def test_a_new_run_starts_where_one_died_in_its_first_step(tmp_path, monkeypatch):
    shapes = write_shapes(tmp_path / "shapes.txt")
    options = "--model tiny --max_steps 2 --per_device_train_batch_size 8 --use_cpu --report_to none --plot false"
    call = ["--data", str(shapes), "--output", str(tmp_path / "out"), *options.split(), "--disable_tqdm=true"]

    def dies(*args, **kwargs):
        raise RuntimeError("of the network")

    with monkeypatch.context() as patch:
        patch.setattr(UDMForMaskedGeneration, "forward", dies)
        with pytest.raises(RuntimeError, match="of the network"):
            train_text.train_text(*train_text.parse(call))
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"run.json"}
    assert train_text.train_text(*train_text.parse([*call, "--seed", "7"]))["steps"] == 2
    with pytest.raises(OutputExistsError, match="is not empty"):
        train_text.train_text(*train_text.parse(call))


# --- warnings --------------------------------------------------------------------------------------------------------


def test_a_warning_that_is_not_true_is_hidden_and_its_neighbours_are_not(caplog):
    logger = logging.getLogger("transformers.modeling_utils")
    terminal.hide_untrue_warnings()
    terminal.hide_untrue_warnings()
    assert logger.filters.count(terminal._is_true) == 1
    records = [
        logging.LogRecord(logger.name, logging.WARNING, "f", 1, text, (), None)
        for text in ("This checkpoint seem corrupted. The tied weights mapping for", "Some weights", "This checkpoint")
    ]
    assert [bool(logger.filter(record)) for record in records] == [False, True, True]
    with warnings.catch_warnings(record=True) as seen:
        terminal.hide_untrue_warnings()
        warnings.warn("`is_gradient_checkpointing` is deprecated and will be removed", FutureWarning, stacklevel=1)
        warnings.warn("another is deprecated", FutureWarning, stacklevel=1)
    assert [str(warning.message) for warning in seen] == ["another is deprecated"]


def test_a_prompt_that_is_too_long_is_refused_and_not_warned_of(tmp_path, caplog):
    from transformers import AutoTokenizer, pipeline

    plain = save_masked_lm(tmp_path / "plain", "bert")
    tokenizer = AutoTokenizer.from_pretrained(plain)
    pipe = pipeline("udm-generation", model=UDMForMaskedGeneration.from_pretrained(plain), tokenizer=tokenizer)
    with pytest.raises(ValueError, match="the model reads at most"):
        pipe("the cat " * 100 + "[MASK]")
    assert "longer than the specified maximum" not in caplog.text
