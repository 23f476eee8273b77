"""`udm app`: a page in the browser on which models are tried; `space.py` writes the same page as a Space of the Hub."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...common import check_place

LOOPBACK = ("127.0.0.1", "localhost", "::1")


def check_host(host: str) -> None:
    """ValueError for an address that others could reach."""
    if host not in LOOPBACK:
        raise ValueError(
            f"--host {host} would let others in, and this page has no password: it binds to {LOOPBACK[0]} alone. From "
            "another machine reach it by `ssh -L 7860:127.0.0.1:7860`; for everyone --export-space writes a Space"
        )


def check_extra() -> None:
    """ImportError where the extra `app` is not installed, before anything is loaded."""
    from importlib.util import find_spec

    if find_spec("gradio") is None:
        raise ImportError("the page needs Gradio: pip install 'udm-text[app]'")


def is_image_model(name: str, revision: str | None = None) -> bool:
    """Whether a model, in a folder or on the Hub, makes images."""
    from transformers import PreTrainedConfig

    check_place(name, revision=revision)
    return PreTrainedConfig.get_config_dict(name, revision=revision)[0].get("model_type") == "udm-image"


def load(name: str, load_text: Any, device: str | None = None, revision: str | None = None) -> Any:
    """A `Writer` or a `Painter` of a model. load_text: called with the name of a model of texts; gives its pipeline.

    A folder is called by the last part of its path: where it lies is nothing to those who look at the page.
    """
    from ...hub import find_file
    from ...run_report import read_report
    from .work import Painter, Writer

    called = Path(name).resolve().name if Path(name).exists() else name
    if not is_image_model(name, revision):
        report = find_file(name, "report.json")
        return Writer(load_text(name), called, report={} if report is None else read_report(report))
    from continuous.pipeline import ImagePipeline

    pipe = ImagePipeline.from_pretrained(name, device, revision=revision)
    if pipe.shape[0] not in (1, 3):
        raise ValueError(f"the page shows images of 1 or 3 channels, and {name} makes images of {pipe.shape[0]}")
    return Painter(pipe, called)


def serve(models: Sequence[Any], host: str | None = None, port: int | None = None, **how: Any) -> None:
    """Serves the page of models that `load` gave, until it is stopped. For the arguments see `layout.launch`."""
    from .layout import build, launch

    page = build(models)
    _, address, _ = launch(page, host, port, prevent_thread_lock=True, quiet=True, **how)
    print(f"{address} (Ctrl-C ends it)", flush=True)
    page.block_thread()


def serve_space(names: Sequence[str]) -> None:
    """What app.py of a Space calls: the page of the models in these folders, or of these names on the Hub."""
    from ... import register
    from ..terminal import hide_loading_bars, load_pipeline

    register()
    hide_loading_bars()
    serve([load(name, load_pipeline) for name in names])
