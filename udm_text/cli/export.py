"""Trajectories as files to look at: a page of HTML that needs nothing else, or an animated GIF."""

from __future__ import annotations

import html
import os
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..common import written_whole
from ..showing import marked

SUFFIXES = (".html", ".gif")
MAX_GIF_FRAMES = 240
"""A GIF of a longer walk leaves out steps, evenly; its first and last state are always there."""

_COLUMNS, _SIZE, _MARGIN = 76, 18, 18  # characters of a line; pixels
_MILLISECONDS, _LAST = 120, 2500  # how long a frame stays
_BACKGROUND, _TEXT, _DIM, _BAR = 250, 20, 120, 180  # shades of grey

_STYLE = """
body{font:16px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:60rem;padding:0 1rem}
body{color:#1a1a1a;background:#fafafa}
header{display:flex;gap:1rem;align-items:center;position:sticky;top:0;background:#fafafa;padding:.5rem 0}
input{flex:1}output{min-width:6rem;font-variant-numeric:tabular-nums}
ol{padding-left:2rem}pre{margin:.3rem 0;white-space:pre-wrap;overflow-wrap:anywhere;font-size:15px}
mark{background:#ffe08a;color:inherit}.live pre{display:none}.live pre.now{display:block}
body:not(.live) header{display:none}
@media(prefers-color-scheme:dark){body,header{background:#16181d;color:#e6e6e6}mark{background:#6b5413}}
"""

_SCRIPT = """
const slider = document.getElementById("step"), said = document.getElementById("said");
const play = document.getElementById("play");
const texts = [...document.querySelectorAll("ol > li")].map(text => [...text.querySelectorAll("pre")]);
let timer = null;
function show() {
  const step = Number(slider.value);
  for (const steps of texts)
    steps.forEach((one, i) => one.classList.toggle("now", i === Math.min(step, steps.length - 1)));
  said.textContent = `step ${step} / ${slider.max}`;
}
function stop() { clearInterval(timer); timer = null; play.textContent = "Play"; }
play.onclick = () => {
  if (timer !== null) return stop();
  if (slider.value === slider.max) slider.value = 0;
  play.textContent = "Pause";
  show();
  timer = setInterval(() => { slider.stepUp(); show(); if (slider.value === slider.max) stop(); }, 150);
};
slider.oninput = () => { stop(); show(); };
document.body.classList.add("live");
show();
"""


def check_target(path: str | Path) -> Path:
    """The path, if a trajectory can be written there; raises before anything is computed for it."""
    path = Path(path)
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"--save must end in .html or .gif, got {str(path)!r}")
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise ValueError(f"--save must be a file in an existing directory, got {str(path)!r}")
    if not os.access(path.absolute().parent, os.W_OK | os.X_OK):
        raise ValueError(f"--save must be a file in a directory that may be written to, got {str(path)!r}")
    if path.suffix.lower() == ".gif":
        _pillow()
    return path


def save_trajectories(path: str | Path, tracks: Sequence[Sequence[str]], title: str = "udm-text") -> None:
    """Write how texts came to be.

    Args:
        path: ends in .html or .gif; a file that is there is replaced, at once and only by a complete one.
        tracks: for each text its states, from the first to the last, at least one; a shorter track waits at its end.
    """
    path = check_target(path)
    if not tracks or not all(tracks):
        raise ValueError("tracks must hold at least one text, each with at least one state")
    with written_whole(path) as part:
        if path.suffix.lower() == ".html":
            part.write_text(as_html(tracks, title), encoding="utf-8")
        else:
            frames = gif_frames(tracks)
            times = [_MILLISECONDS] * (len(frames) - 1) + [_LAST]
            how: dict[str, Any] = {"save_all": True, "append_images": frames[1:], "duration": times, "loop": 0}
            frames[0].save(part, format="GIF", **how)


def as_html(tracks: Sequence[Sequence[str]], title: str) -> str:
    """One page: a slider over the steps, what a step changed marked; without scripts, all steps below each other."""
    texts = "\n".join(
        "<li>"
        + "".join(f"<pre>{marked(a, b)}</pre>" for a, b in zip([track[0], *track], track, strict=False))
        + "</li>"
        for track in tracks
    )
    last, name = max(map(len, tracks)) - 1, html.escape(title)
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{name}</title>\n'
        f'<meta name="viewport" content="width=device-width">\n<style>{_STYLE}</style>\n</head>\n<body>\n'
        f'<header><strong>{name}</strong><button id="play" type="button">Play</button>'
        f'<input id="step" type="range" min="0" max="{last}" value="{last}" aria-label="step">'
        f'<output id="said"></output></header>\n<ol>\n{texts}\n</ol>\n<script>{_SCRIPT}</script>\n</body>\n</html>\n'
    )


def gif_frames(tracks: Sequence[Sequence[str]]) -> list[Any]:
    """One image (Pillow, shades of grey) for each step, all of one size, with a bar that shows how far it is."""
    image, draw_on = _pillow()
    font = _font()
    last = max(map(len, tracks)) - 1
    count = min(last + 1, MAX_GIF_FRAMES)
    steps = sorted({round(i * last / max(count - 1, 1)) for i in range(count)})
    pages = [_lines([track[min(step, len(track) - 1)] for track in tracks]) for step in steps]
    line = int(_SIZE * 1.45)
    width = int(max((font.getlength(text) for page in pages for text in page), default=0)) + 2 * _MARGIN
    width, height = max(width, 240), max(map(len, pages)) * line + 2 * _MARGIN + line
    frames = []
    for step, page in zip(steps, pages, strict=True):
        frame = image.new("L", (width, height), _BACKGROUND)
        draw = draw_on(frame)
        for i, text in enumerate(page):
            draw.text((_MARGIN, _MARGIN + i * line), text, fill=_TEXT, font=font)
        draw.text((_MARGIN, height - _MARGIN - line // 2), f"step {step} / {last}", fill=_DIM, font=font)
        draw.rectangle((0, height - 5, int((width - 1) * step / max(last, 1)), height - 1), fill=_BAR)
        frames.append(frame)
    return frames


def _lines(texts: list[str]) -> list[str]:
    """Texts as lines of a page, a blank line between two of them."""
    page: list[str] = []
    for text in texts:
        page += [""] if page else []
        for part in text.splitlines() or [""]:
            page += textwrap.wrap(part, _COLUMNS, drop_whitespace=False) or [""]
    return page


def _pillow() -> tuple[Any, Any]:
    try:
        from PIL import Image, ImageDraw
    except ImportError:
        raise ImportError("a GIF needs Pillow: pip install pillow (matplotlib brings it), or --save a .html") from None
    return Image, ImageDraw.Draw


def _font() -> Any:
    """DejaVu Sans Mono, which matplotlib brings (Latin, Greek, Cyrillic, blocks), else Pillow's own (Latin)."""
    from PIL import ImageFont

    try:
        import matplotlib

        return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSansMono.ttf", _SIZE)
    except (ImportError, OSError):
        return ImageFont.load_default(_SIZE)
