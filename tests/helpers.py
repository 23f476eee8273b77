"""Commands in processes of their own, folders compared, and small corpora: what more than one test file asks for."""

from __future__ import annotations

import io
import os
import random
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

ROOT = Path(__file__).resolve().parents[1]

# --- processes -------------------------------------------------------------------------------------------------------


def python(
    *arguments: object,
    cwd: Path | None = ROOT,
    code: int = 0,
    timeout: float | None = 280,
    environment: Mapping[str, str] | None = None,
    **more: str,
) -> subprocess.CompletedProcess[str]:
    """A fresh Python that finds our code; it must end with `code`, or the error shows what it printed.

    Its environment is ours, or the one given, with `more` in it.
    """
    result = subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=cwd,
        env={**(os.environ if environment is None else environment), "PYTHONPATH": str(ROOT), **more},
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert result.returncode == code, result.stdout[-4000:] + result.stderr[-8000:]
    return result


def udm(*arguments: object, code: int = 0, timeout: float | None = None) -> subprocess.CompletedProcess[str]:
    """The `udm` command, run as a person runs it."""
    return python("-m", "udm_text", *arguments, code=code, timeout=timeout)


def udm_here(*arguments: object, code: int = 0, stdin: str | bytes | None = None):
    """The `udm` command inside this process: faster, and monkeypatches reach it."""
    from udm_text.cli.commands import app

    result = CliRunner().invoke(app, [str(argument) for argument in arguments], input=stdin)
    assert result.exit_code == code, (result.output, result.exception)
    return result


class Stream(io.TextIOWrapper):
    """Standard output or error of a command that runs in this process."""

    def __init__(self) -> None:
        super().__init__(io.BytesIO(), encoding="utf-8", write_through=True)

    def text(self) -> str:
        return self.buffer.getvalue().decode()


def udm_main(monkeypatch, words: Sequence[object], given: bytes = b""):
    """(exit code or the exception that came out, stdout, stderr) of the `udm` command, all of it, in this process."""
    from udm_text.cli import main

    out, err = Stream(), Stream()
    with monkeypatch.context() as patch:
        patch.setattr(sys, "argv", ["udm", *map(str, words)])
        patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(given), encoding="utf-8"))
        patch.setattr(sys, "stdout", out)
        patch.setattr(sys, "stderr", err)
        try:
            main()
            code = 0
        except SystemExit as end:
            code = end.code or 0
        except BaseException as error:
            code = error
    return code, out.text(), err.text()


# --- folders and weights ---------------------------------------------------------------------------------------------


def listing(folder: Path) -> dict[str, tuple[int, bytes | bool]]:
    """Every path in a folder, when it was written and what it holds."""
    return {str(p): (p.stat().st_mtime_ns, p.is_file() and p.read_bytes()) for p in folder.rglob("*")}


def weights_in(folder: Path, name: str = "model.safetensors") -> dict[str, torch.Tensor]:
    """The weights that a folder stores."""
    return load_file(folder / name)


def assert_equal_weights(a: Mapping[str, torch.Tensor], b: Mapping[str, torch.Tensor]) -> None:
    """The same names, and bit for bit the same values."""
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []


def assert_close_weights(a: Mapping[str, torch.Tensor], b: Mapping[str, torch.Tensor], atol: float) -> None:
    """Every value of `a` has its name in `b`, and differs by `atol` at most."""
    for name, value in a.items():
        torch.testing.assert_close(b[name], value, rtol=0, atol=atol, msg=name)


# --- corpora ---------------------------------------------------------------------------------------------------------


def write_lines(path: Path, words: Sequence[str], lines: int, longest: int) -> Path:
    """`lines` lines of 1 to `longest` words, the same at every call."""
    source = random.Random(0)
    text = (" ".join(source.choices(words, k=source.randint(1, longest))) + "\n" for _ in range(lines))
    path.write_text("".join(text), encoding="utf-8")
    return path


def write_shapes(path: Path) -> Path:
    """210 lines of three different words out of seven."""
    words = ["red", "green", "blue", "small", "large", "circle", "square"]
    rows = [f"{a} {b} {c}" for a in words for b in words for c in words if len({a, b, c}) == 3]
    path.write_text("\n".join(rows), encoding="utf-8")
    return path
