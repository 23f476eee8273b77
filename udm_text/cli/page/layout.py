"""How the page looks, in Gradio: tabs, sliders and buttons around what `work.py` does. gradio is imported inside."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from ...pipeline_udm import BLANK, MASK
from . import markup
from .work import (
    MOST_BYTES,
    MOST_CHARACTERS,
    MOST_EDITS,
    MOST_IMAGE_STEPS,
    MOST_IMAGES,
    MOST_SAMPLES,
    MOST_STEPS,
    MOST_TOKENS,
    Frame,
    Painter,
    Settings,
    Writer,
    fresh_seed,
)

Model = Writer | Painter

WAITING = 20
"""Requests that wait for the model at most; one more is told that the page is busy."""
FONTS = ["system-ui", "Segoe UI", "Helvetica Neue", "Arial", "sans-serif"]
MONO = ["ui-monospace", "SFMono-Regular", "Menlo", "DejaVu Sans Mono", "monospace"]

STYLE = """
.gradio-container{max-width:960px!important;margin:0 auto!important}
.head h1{font-size:1.9rem;margin:.4rem 0 .2rem;font-weight:700}
.head p{margin:.1rem 0;opacity:.85}.head .model{font-size:.85rem;opacity:.6}
.card{font-size:1.08rem;line-height:1.75;padding:.7rem 1rem;margin:.45rem 0;border-radius:.6rem;min-height:3.2rem;
 border:1px solid var(--border-color-primary);background:var(--background-fill-secondary);
 white-space:pre-wrap;overflow-wrap:anywhere;unicode-bidi:isolate}
.card.done{border-left:4px solid var(--color-accent)}
.card.empty{opacity:.45}
.mask{display:inline-block;width:2.1em;height:.95em;border-radius:.25em;vertical-align:-.1em;margin:0 .08em;
 background:var(--border-color-primary)}
.card mark{background:#ffe08a;color:#1a1a1a;border-radius:.2em;padding:0 .1em}
.card del{background:#ffd7d5;color:#82071e;text-decoration:line-through;border-radius:.2em;padding:0 .1em}
.card ins{background:#ccf5d3;color:#0a5023;text-decoration:none;border-radius:.2em;padding:0 .1em;margin-left:.15em}
.problem{padding:.7rem 1rem;border-radius:.6rem;border-left:4px solid #cf222e;background:#ffebe9;color:#82071e;
 overflow-wrap:anywhere}
.note{font-size:.9rem;opacity:.75;min-height:1.4rem}
figure{margin:.5rem 0}figure img{image-rendering:pixelated;max-width:100%;border-radius:.4rem}
figcaption{font-size:.85rem;opacity:.7}
"""

ABOUT = (
    "Text by diffusion: all positions begin as blanks, and a network fills them in step by step, looking at both "
    "sides. Press a button and watch."
)
ABOUT_IMAGES = "Images by diffusion: from noise, or from a blurred image, to a clear one, step by step."


def build(models: Sequence[Model], title: str = "udm-text") -> Any:
    """The page for these models, as `gradio.Blocks`; several have a tab each around those of what they do."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    import gradio as gr

    with gr.Blocks(title=title, analytics_enabled=False, delete_cache=(600, 3600)) as page:
        about = ABOUT if any(isinstance(model, Writer) for model in models) else ABOUT_IMAGES
        gr.HTML(f'<div class="head"><h1>{markup.escaped(title)}</h1><p>{about}</p></div>')
        if len(models) == 1:
            _place(models[0])
        else:
            with gr.Tabs():
                for model in models:
                    with gr.Tab(model.name):
                        _place(model)
    page.queue(max_size=WAITING, default_concurrency_limit=1, api_open=False)
    return page


def launch(page: Any, host: str | None, port: int | None, **how: Any) -> Any:
    """Serves a page: on this machine alone unless `host` says otherwise; no file of it can be asked for.

    host: None leaves it to GRADIO_SERVER_NAME, as a Space sets it. how: of `gradio.Blocks.launch`.
    """
    import gradio as gr

    theme = gr.themes.Soft(primary_hue="indigo", font=FONTS, font_mono=MONO)
    return page.launch(
        server_name=host,
        server_port=port,
        share=False,
        allowed_paths=[],
        max_file_size=MOST_BYTES,
        state_session_capacity=200,
        footer_links=[],
        enable_monitoring=False,
        ssr_mode=False,
        mcp_server=False,
        pwa=False,
        theme=theme,
        css=STYLE,
        **how,
    )


def _place(model: Model) -> None:
    """The tabs of what a model does."""
    import gradio as gr

    gr.HTML(f'<div class="head"><p class="model">{markup.escaped(model.describe())}</p></div>')
    with gr.Tabs():
        if isinstance(model, Painter):
            tabs: list[tuple[str, bool, Callable[..., None]]] = [
                ("Draw", model.draws, _draw_tab),
                ("Restore", model.restores, _restore_tab),
            ]
        else:
            tabs = [
                ("Write", model.writes, _write_tab),
                ("Fill in", model.fills, _fill_tab),
                ("Repair", model.repairs, _repair_tab),
                ("Compare", model.writes, _compare_tab),
            ]
        for name, there, place in tabs:
            if there:
                with gr.Tab(name):
                    place(model)


# what tabs share -----------------------------------------------------------------------------------------------------


def _runs(button: Any, stop: Any, work: Callable[..., Any], inputs: Any, outputs: Any, shown: Any) -> None:
    """`button` starts work on the model, which is done for one person at a time, and `stop` ends it."""
    how: dict[str, Any] = {"show_progress": "minimal", "show_progress_on": shown}
    how |= {"concurrency_id": "model", "concurrency_limit": 1, "api_visibility": "private"}
    event = button.click(work, inputs, outputs, **how)
    stop.click(None, None, None, cancels=[event], api_visibility="private")


def _buttons(name: str) -> tuple[Any, Any]:
    import gradio as gr

    with gr.Row():
        start = gr.Button(name, variant="primary", scale=3)
        return start, gr.Button("Stop", scale=1)


def _seed_row() -> tuple[Any, Any]:
    """The seed, and whether a press of the button takes a fresh one."""
    import gradio as gr

    with gr.Row():
        seed = gr.Number(0, label="Seed", precision=0, minimum=0, maximum=2**31, info="the same seed, the same result")
        fresh = gr.Checkbox(True, label="a fresh seed each time")
    return seed, fresh


def _settings(writer: Writer, at_first: int = 0) -> list[Any]:
    """Steps, order and temperature: what `Settings` takes. at_first: so many steps."""
    import gradio as gr

    steps = gr.Slider(
        0, min(64, MOST_STEPS), at_first, step=1, label="Steps", info="0: one token a step; fewer are faster"
    )
    order = gr.Dropdown(
        writer.orders or ["random"],
        value="random",
        label="Order",
        info="which blank is filled in first",
        visible=bool(writer.orders),
    )
    heat = gr.Slider(0, 2, 1, step=0.05, label="Temperature", info="0: always the likeliest token")
    return [steps, order, heat]


def _number(value: int = 3) -> Any:
    import gradio as gr

    return gr.Slider(1, MOST_SAMPLES, value, step=1, label="Samples")


def _length(writer: Writer) -> Any:
    import gradio as gr

    least, info = (0, "in tokens; 0: as in training") if writer.knows_lengths else (1, "in tokens")
    return gr.Slider(least, MOST_TOKENS, 0 if writer.knows_lengths else 16, step=1, label="Length", info=info)


def _note(text: str = "") -> str:
    return f'<div class="note">{markup.escaped(text)}</div>'


def _output() -> tuple[Any, Any]:
    import gradio as gr

    empty = '<div class="card empty">What comes to be is shown here.</div>'
    return gr.HTML(empty, elem_classes="result"), gr.HTML(_note(), elem_classes="said")


def _walked(frames: Callable[[int], Iterator[Frame]], seed: float | None, fresh: bool) -> Iterator[tuple[Any, ...]]:
    """What a walk shows: HTML, note, the seed that it took, its states, and the slider that leads back to them."""
    import gradio as gr

    taken = fresh_seed() if fresh else int(seed or 0)
    states: list[str] = []
    for frame in frames(taken):
        states.append(frame.html)
        yield frame.html, _note(frame.note), taken, gr.skip(), gr.skip()
    last = max(1, len(states) - 1)
    slider = gr.Slider(maximum=last, value=last, visible=len(states) > 2)
    yield states[-1], _note(frame.note), taken, states, slider


def _look_back(shown: Any) -> tuple[Any, Any]:
    """The states of the last walk, of this person alone, and a slider that shows one of them."""
    import gradio as gr

    states = gr.State([])
    slider = gr.Slider(0, 1, 1, step=1, label="Look back", info="the state after each step", visible=False)
    slider.input(
        lambda step, held: held[min(int(step), len(held) - 1)] if held else "",
        [slider, states],
        shown,
        queue=False,
        show_progress="hidden",
        api_visibility="private",
    )
    return states, slider


# tabs ----------------------------------------------------------------------------------------------------------------


def _write_tab(writer: Writer) -> None:
    import gradio as gr

    prompted = writer.config.prompted
    text = gr.Textbox(
        label="Prompt" if prompted else "How it begins",
        placeholder="a prompt like those it was trained on" if prompted else "leave this empty for a text from nothing",
        lines=2,
        max_length=MOST_CHARACTERS,
    )
    if examples := writer.examples() if prompted else []:
        gr.Examples([[example] for example in examples], [text])
    start, stop = _buttons("Write")
    shown, note = _output()
    states, slider = _look_back(shown)
    with gr.Accordion("Settings", open=False):
        with gr.Row():
            number, length = _number(), _length(writer)
        with gr.Row():
            settings = _settings(writer)
        price = gr.HTML(_note(writer.price(0, Settings())), elem_classes="price")
        seed, fresh = _seed_row()

    def work(text: str, number: int, length: int, *rest: Any) -> Iterator[tuple[Any, ...]]:
        *chosen, seed, fresh = rest
        yield from _walked(lambda own: writer.write(text or "", length, Settings(*chosen), number, own), seed, fresh)

    def tell(length: int, *chosen: Any) -> str:
        return _note(writer.price(length, Settings(*chosen)))

    _runs(start, stop, work, [text, number, length, *settings, seed, fresh], [shown, note, seed, states, slider], note)
    for one in (length, *settings):
        one.change(tell, [length, *settings], price, queue=False, show_progress="hidden", api_visibility="private")


def _fill_tab(writer: Writer) -> None:
    import gradio as gr

    wide = f", or {BLANK} for any number of words" * writer.takes_blanks
    text = gr.Textbox(
        label="A text with gaps",
        info=f"{MASK} stands for one missing word or piece of a word{wide}",
        lines=2,
        max_length=MOST_CHARACTERS,
    )
    example = gr.Button("An example", size="sm")
    start, stop = _buttons("Fill in")
    shown, note = _output()
    states, slider = _look_back(shown)
    with gr.Accordion("Settings", open=False):
        with gr.Row():
            number = _number()
            settings = _settings(writer)
        seed, fresh = _seed_row()

    def work(text: str, number: int, *rest: Any) -> Iterator[tuple[Any, ...]]:
        *chosen, seed, fresh = rest
        yield from _walked(lambda own: writer.fill(text or "", Settings(*chosen), number, own), seed, fresh)

    _runs(start, stop, work, [text, number, *settings, seed, fresh], [shown, note, seed, states, slider], note)
    _runs(example, stop, lambda: writer.blanked(fresh_seed()), None, text, text)


def _repair_tab(writer: Writer) -> None:
    import gradio as gr

    text = gr.Textbox(label="A text with errors", lines=2, max_length=MOST_CHARACTERS)
    if examples := writer.examples():
        gr.Examples([[example] for example in examples], [text])
    with gr.Row():
        most = gr.Slider(1, MOST_EDITS, 3, step=1, label="Edits at most")
        sure = gr.Slider(0, 1, 0, step=0.05, label="How sure", info="only edits that are at least so probable")
    start, stop = _buttons("Repair")
    shown, note = _output()
    kept = gr.CheckboxGroup([], label="Edits", visible=False, elem_classes="edits")
    repaired = gr.State(("", ()))

    def choices(before: str, edits: tuple[markup.Edit, ...]) -> list[str]:
        return [markup.describe_edit(number, before, edit) for number, edit in enumerate(edits, start=1)]

    def work(text: str, most: int, sure: float) -> Iterator[tuple[Any, ...]]:
        for frame in writer.repair(text or "", most, sure):
            made = choices(text or "", frame.edits)
            box = gr.CheckboxGroup(choices=made, value=made, visible=bool(made))
            yield frame.html, _note(frame.note), box, (text, frame.edits)

    def undo(chosen: list[str], held: tuple[str, Any]) -> str:
        before, edits = held
        wanted = zip(choices(before, edits), edits, strict=True)
        return writer.show_edits(before, tuple(edit for said, edit in wanted if said in chosen))

    _runs(start, stop, work, [text, most, sure], [shown, note, kept, repaired], note)
    kept.input(undo, [kept, repaired], shown, queue=False, show_progress="hidden", api_visibility="private")


def _compare_tab(writer: Writer) -> None:
    import gradio as gr

    text = gr.Textbox(
        label="Prompt" if writer.config.prompted else "How both begin", lines=1, max_length=MOST_CHARACTERS
    )
    with gr.Row():
        number, length = _number(), _length(writer)
    sides = []
    with gr.Row():
        for side, steps in (("A", 0), ("B", 3)):
            with gr.Column():
                gr.HTML(f'<div class="head"><h3>Settings {side}</h3></div>')
                sides.append((_settings(writer, steps), gr.HTML(_note(writer.price(0, Settings(steps))))))
    start, stop = _buttons("Compare")
    with gr.Row():
        first, second = (_column() for _ in "AB")
    seed, fresh = _seed_row()

    def work(text: str, number: int, length: int, *rest: Any) -> Iterator[tuple[Any, ...]]:
        *chosen, seed, fresh = rest
        own = fresh_seed() if fresh else int(seed or 0)
        both = Settings(*chosen[:3]), Settings(*chosen[3:])
        for a, b in writer.compare(text or "", length, both, number, own):
            yield a.html, _note(a.note), b.html, _note(b.note), own

    def tell(length: int, *chosen: Any) -> str:
        return _note(writer.price(length, Settings(*chosen)))

    for settings, price in sides:
        for one in (length, *settings):
            one.change(tell, [length, *settings], price, queue=False, show_progress="hidden", api_visibility="private")
    both = [*sides[0][0], *sides[1][0]]
    _runs(start, stop, work, [text, number, length, *both, seed, fresh], [*first, *second, seed], first[1])


def _column() -> tuple[Any, Any]:
    import gradio as gr

    with gr.Column():
        return _output()


def _draw_tab(painter: Painter) -> None:
    import gradio as gr

    with gr.Row():
        number = gr.Slider(1, MOST_IMAGES, 16, step=1, label="Images")
        steps = gr.Slider(1, MOST_IMAGE_STEPS, painter.pipe.usual_steps, step=1, label="Steps")
        label = gr.Dropdown(
            ["", "all", *painter.labels] if painter.labels else [""],
            value="",
            label="Class",
            info="empty: none in particular",
            visible=bool(painter.labels),
        )
    start, stop = _buttons("Draw")
    shown, note = _output()
    states, slider = _look_back(shown)
    seed, fresh = _seed_row()

    def work(number: int, steps: int, label: str, seed: float, fresh: bool) -> Iterator[tuple[Any, ...]]:
        yield from _walked(lambda own: painter.draw(label or "", number, steps, own), seed, fresh)

    _runs(start, stop, work, [number, steps, label, seed, fresh], [shown, note, seed, states, slider], note)


def _restore_tab(painter: Painter) -> None:
    import gradio as gr

    last = painter.pipe.process.T
    with gr.Row():
        file = gr.Image(type="filepath", image_mode=None, sources=["upload"], label="An image", height=220, buttons=[])
        with gr.Column():
            degrade = gr.Checkbox(True, label="it is clear: degrade it first")
            t = gr.Slider(1, last, (last + 1) // 2, step=1, label="How far it is degraded")
    start, stop = _buttons("Restore")
    shown, note = _output()
    states, slider = _look_back(shown)
    seed, fresh = _seed_row()

    def work(file: str | None, degrade: bool, t: int, seed: float, fresh: bool) -> Iterator[tuple[Any, ...]]:
        yield from _walked(lambda own: painter.restore(file, degrade, t, own), seed, fresh)

    _runs(start, stop, work, [file, degrade, t, seed, fresh], [shown, note, seed, states, slider], note)
