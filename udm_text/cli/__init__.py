"""The `udm` command."""

from __future__ import annotations

import os
import sys


def main() -> None:
    """Run the command; what a user can mend ends in one line and exit code 1 (UDM_TRACEBACK=1 shows it all)."""
    # Idle OpenMP threads spin, by default so long that a training step beside one busy process takes 30 times longer.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    from .commands import app

    try:
        app()
    except Exception as error:
        broken = type(error).__module__.split(".")[0] in ("httpx", "httpx2")  # the connection to the Hub
        mendable = broken or isinstance(error, ValueError | OSError | ImportError | RuntimeError)
        if os.environ.get("UDM_TRACEBACK") or not mendable:
            raise
        from .terminal import show

        show(f"udm: {error}", error=True)
        raise SystemExit(1) from None
