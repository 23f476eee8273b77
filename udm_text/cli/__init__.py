"""The `udm` command."""

from __future__ import annotations

import os
import sys

_MENDABLE = ("SafetensorError", "StrictDataclassError")
"""Errors of other libraries, by name, that a user's files or disk bring about."""


def main() -> None:
    """Run the command; what a user can mend ends in one line and exit code 1 (UDM_TRACEBACK=1 shows it all)."""
    # Idle OpenMP threads spin, by default so long that a training step beside one busy process takes 30 times longer.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    from ..common import is_connection_error
    from .commands import app
    from .terminal import show

    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # what the locale cannot show is an escape, not an error
    try:
        for number, argument in enumerate(sys.argv[1:], start=1):
            try:
                argument.encode()
            except UnicodeEncodeError:
                raise ValueError(f"argument {number} is not UTF-8: {os.fsencode(argument)!r}") from None
        app()
    except Exception as error:
        broken = is_connection_error(error) or any(kind.__name__ in _MENDABLE for kind in type(error).__mro__)
        ours = ValueError | OSError | ImportError | RuntimeError | OverflowError | MemoryError
        if os.environ.get("UDM_TRACEBACK") or not (broken or isinstance(error, ours)):
            raise
        said = " ".join(filter(None, map(str.strip, str(error).splitlines())))  # one line, whoever wrote it
        show(f"udm: {said or type(error).__name__}", error=True)
        raise SystemExit(1) from None
