"""What a message advises can be done: an option that it names is one of the command that says it."""

import ast
import functools
import re
from pathlib import Path

import pytest
from typer.main import get_command

from continuous import train_image
from tests.helpers import ROOT
from udm_text.cli.commands import app
from udm_text.training import arguments
from udm_text.training.runs import RunArguments

TEXT, IMAGES = ("train",), ("image train",)
EVERYWHERE = ("generate", "repair", "evaluate", "push", "export")
HEARD = {  # where a message stands, a file or a function of it: the commands that say it
    "udm_text/card.py": (),
    "udm_text/run_report.py": (),
    "udm_text/chats.py": TEXT,
    "udm_text/common.py": (),
    "udm_text/framing.py": EVERYWHERE,
    "udm_text/corpus/files.py": ("train", "evaluate"),
    "udm_text/corpus/rows.py": ("train", "evaluate"),
    "udm_text/corpus/sources.py": ("train", "evaluate"),
    "udm_text/corpus/streaming.py": TEXT,
    "udm_text/corpus/tokenizers.py": TEXT,
    "udm_text/training/": (*TEXT, *IMAGES),
    "udm_text/training/arguments.py": TEXT,
    "udm_text/training/packing.py": TEXT,
    "udm_text/training/adapters.py": TEXT,
    "udm_text/training/causal.py": TEXT,
    "udm_text/cli/train_text.py": TEXT,
    "udm_text/cli/train_text.py:texts_of_split": ("evaluate",),
    "udm_text/cli/doctor.py": TEXT,
    "udm_text/cli/reports.py": TEXT,
    "udm_text/cli/scoring.py": ("evaluate",),
    "udm_text/cli/scoring.py:refuse_repairer": ("generate",),
    "udm_text/cli/texts.py": ("generate", "repair"),
    "udm_text/cli/terminal.py": ("generate", "repair", "evaluate"),
    "udm_text/cli/terminal.py:load_pipeline": ("generate",),
    "udm_text/cli/export.py": ("generate",),
    "udm_text/cli/commands.py:_pipeline": ("generate", "chat", "repair"),
    "udm_text/cli/commands.py:chat": ("chat",),
    "udm_text/cli/commands.py:page": ("app",),
    "udm_text/cli/page/": ("app",),
    "udm_text/cli/page/layout.py": (),  # names of colours
    "udm_text/cli/page/space.py": (),  # an option of pip
    "udm_text/cli/commands.py:train": TEXT,
    "udm_text/cli/commands.py:_options": (),
    "udm_text/generation_options.py": ("generate",),
    "continuous/train_image.py": IMAGES,
    "continuous/train_student.py": IMAGES,
    "continuous/train_image.py:load_splits_of": ("image evaluate",),
    "continuous/evaluation.py": ("image evaluate",),
    "continuous/data.py": ("image train", "image evaluate"),
    "continuous/networks.py": IMAGES,
    "continuous/cli.py:_targets": ("image restore", "image edit"),
}
NOT_SAID = ("cli/demo.py", "continuous/demo.py", "udm_text/__init__.py")
"""Files whose options are arguments that they give themselves."""
FIELDS = {
    name for name in arguments.DataArguments.__dataclass_fields__ if "_" in name
}  # as `row_length`: names that are no words


@functools.cache
def options_of(command: str) -> set[str]:
    """The options of a command, in any spelling."""
    kinds = {"train": arguments, "image train": train_image}
    if command in kinds:
        module = kinds[command]
        found = [module.DataArguments, module.ModelArguments, module.ObjectiveArguments, RunArguments]
        names = {name for kind in found for name in kind.__dataclass_fields__}
        return {f"--{name.replace('_', '-')}" for name in names} | {"--config", "--output", "--help", "--help-all"}
    node = get_command(app)
    for part in command.split():
        node = node.commands[part]
    return {option for parameter in node.params for option in parameter.opts} | {"--help"}


def literals(path: Path):
    """(function or "", text, line) of the strings of a file that are no docstrings; an f-string as one text."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    skipped = set()
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        for entry in body if isinstance(body, list) else []:
            if isinstance(entry, ast.Expr) and isinstance(entry.value, ast.Constant):
                skipped.add(entry.value)

    def walk(node, function):
        if node in skipped:
            return
        if isinstance(node, ast.FunctionDef) and not function:
            function = node.name
        if isinstance(node, ast.JoinedStr):
            parts = [part.value if isinstance(part, ast.Constant) else "{}" for part in node.values]
            yield function, "".join(map(str, parts)), node.lineno
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield function, node.value, node.lineno
        else:
            for child in ast.iter_child_nodes(node):
                yield from walk(child, function)

    yield from walk(tree, "")


def commands_that_say(file: str, function: str) -> tuple[str, ...] | None:
    for place in (f"{file}:{function}", file, f"{Path(file).parent}/"):
        if place in HEARD:
            return HEARD[place]
    if file in ("udm_text/cli/commands.py", "continuous/cli.py"):
        return (f"{'image ' * file.startswith('continuous')}{function}",) if function else ()  # declarations
    return None


FILES = [
    str(path.relative_to(ROOT))
    for folder in ("udm_text", "continuous")
    for path in sorted((ROOT / folder).rglob("*.py"))
    if not str(path).endswith(NOT_SAID)
]


@pytest.mark.parametrize("file", FILES)
def test_an_option_in_a_message_is_one_of_the_command_that_says_it(file):
    for function, text, line in literals(ROOT / file):
        where = f"{file}:{line}"
        for command, rest in re.findall(r"\budm ((?:image )?\w+)([^`]*)", text):  # a command line that is advised
            if command in ("train", "generate", "repair", "evaluate", "push", "export", "image train"):
                for option in re.findall(r"--[a-zA-Z][\w-]*", rest):
                    assert option.replace("_", "-") in options_of(command), f"{where}: udm {command} has no {option}"
        text = re.sub(r"`[^`]*`|\b(?:udm|hf) \w+.*", "", text)
        named = {option.replace("_", "-") for option in re.findall(r"(?<!\w)--[a-zA-Z][\w-]*", text)}
        if file.startswith("udm_text/corpus/"):
            named |= {f"--{name.replace('_', '-')}" for name in FIELDS if re.search(rf"\b{name}\b.* ", text)}
        if not named:
            continue
        commands = commands_that_say(file, function)
        assert commands is not None, f"{where} names {named}: say in HEARD which command says it"
        for command in commands:
            missing = named - options_of(command)
            assert not missing, f"{where}: {command} has no {', '.join(missing)}"
