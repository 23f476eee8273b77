"""The help of a command with hundreds of options: those that people change, in groups; all of them elsewhere."""

from __future__ import annotations

import argparse
import shutil
import textwrap
from collections.abc import Mapping

Groups = Mapping[str, Mapping[str, str | None]]
"""Heads of groups; in each, fields in the order of their help, with words of our own or None for the option's."""

_MARGIN = 34


def asked_for(given: list[str]) -> str | None:
    """The help that arguments ask for: "--help", "--help-all" or None."""
    if {"--help-all", "--help_all"} & set(given):
        return "--help-all"
    return "--help" if {"--help", "-h"} & set(given) else None


def short_help(parser: argparse.ArgumentParser, groups: Groups, command: str) -> str:
    """The options of some groups with their defaults, and where the others are."""
    actions = {action.dest: action for action in parser._actions}
    width = max(60, shutil.get_terminal_size().columns)
    lines = [f"usage: {command} --output DIR [options]", ""]
    for head, fields in groups.items():
        lines.append(f"{head}:")
        for name, words in fields.items():
            action = actions[name]
            option = "--output" if "--output" in action.option_strings else f"--{name}"
            default = parser.get_default(name)
            value = f" {name.split('_')[-1].upper()}"
            if isinstance(default, bool):
                value = " false" if default else ""
            text = (words if words is not None else action.help or "").replace("%%", "%")
            if default is not None and "efault" not in text:
                text += f" Default: {str(default).lower() if isinstance(default, bool) else default}."
            lines += _entry(f"{option}{value}", text, width)
        lines.append("")
    lines.append("Elsewhere:")
    lines += _entry(
        "--config FILE", "Options from a YAML file, `field: value` a line; the command line goes before.", width
    )
    lines += _entry("--help-all", "Every option, all fields of transformers' TrainingArguments among them.", width)
    return "\n".join(lines)


def _entry(option: str, text: str, width: int) -> list[str]:
    inside = " " * _MARGIN
    body = textwrap.wrap(text, width, initial_indent=inside, subsequent_indent=inside) or [inside]
    head = f"  {option}"
    if len(head) < _MARGIN - 1:
        body[0] = head.ljust(_MARGIN) + body[0][_MARGIN:]
        return body
    return [head, *body]
