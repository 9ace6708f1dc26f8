"""The page itself: what it consists of, and what happens on which event. Needs gradio."""

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from offseg_d2.web.actions import WELCOME, Actions, Choices, Drawing
from offseg_d2.web.downloads import file_stem, write_jpeg
from offseg_d2.web.legend import note_html
from offseg_d2.web.offset_maps import MAPS, SIMILARITY
from offseg_d2.web.pictures import OFFSETS, OVERLAY, VIEWS
from offseg_d2.web.uploads import FORMATS
from offseg_d2.web.workbench import Session, Workbench

STYLE = Path(__file__).with_name("page.css")
SECONDS_KEPT = 3600  # of files and of the results of a visitor
_CLICK_HIDDEN_LINK = (
    "() => document.querySelector('#file a, #file button, a#file, button#file').click()"
)


def theme() -> gr.themes.Base:
    """Colours and fonts; no font is loaded."""
    fonts = ("ui-sans-serif", "system-ui", "sans-serif")
    base = gr.themes.Base(
        primary_hue="teal", neutral_hue="slate", font=fonts, font_mono=("ui-monospace", "monospace")
    )
    # Gradio's own grey is too pale to be read easily.
    return base.set(
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_300",
        block_label_text_color="*neutral_600",
        block_title_text_color="*neutral_700",
    )


def file_of(payload: Any) -> tuple[str, str] | None:
    """Path of an uploaded file on the server, and what the visitor called it."""
    if payload is None or payload.path is None:
        return None
    return payload.path, file_stem(payload.orig_name or payload.path)


@dataclass(frozen=True)
class Widgets:
    """What events read and write."""

    session: gr.State
    pixel: gr.State
    upload: gr.Image
    view: gr.Radio
    opacity: gr.Slider
    classes: gr.Dropdown
    offset_group: gr.Column
    offset_map: gr.Radio
    offset_class: gr.Dropdown
    message: gr.HTML
    status: gr.HTML
    pictures: tuple[gr.Image, ...]
    scale: gr.HTML
    found: gr.HTML
    x: gr.Number
    y: gr.Number
    look_up: gr.Button
    legend: gr.HTML
    downloads: tuple[gr.Button, ...]
    file: gr.DownloadButton

    @property
    def choices(self) -> list[gr.components.Component]:
        """Inputs of :class:`.actions.Choices`."""
        return [self.view, self.opacity, self.classes, self.offset_map, self.offset_class]


def build_page(workbench: Workbench, examples: Sequence[str] = ()) -> gr.Blocks:
    """Lay out the page and connect its events.

    Args:
        workbench: the models.
        examples: image files that gradio may serve.
    """
    with gr.Blocks(
        title="OffSeg",
        analytics_enabled=False,
        delete_cache=(SECONDS_KEPT // 2, SECONDS_KEPT),
    ) as page:
        widgets = _lay_out(workbench, examples)
        _connect(widgets, Actions(workbench))
    return page


def _lay_out(workbench: Workbench, examples: Sequence[str]) -> Widgets:
    gr.HTML(_header(workbench), elem_id="head", padding=False)
    parts: dict[str, Any] = {
        "session": gr.State(None, time_to_live=SECONDS_KEPT),
        "pixel": gr.State(None, time_to_live=SECONDS_KEPT),
    }
    with gr.Row(elem_id="workspace"):
        with gr.Column(elem_id="input", min_width=280):
            parts |= _input_column(workbench, examples)
        with gr.Column(elem_id="settings", min_width=280):
            parts |= _settings_column(workbench)
        with gr.Column(elem_id="output", min_width=280):
            parts |= _output_column(workbench)
    return Widgets(**parts)


def _header(workbench: Workbench) -> str:
    lines = "".join(
        f"<li><b>{escape(model.name)}</b> {escape(model.describe())}</li>"
        for model in workbench.models
    )
    return f"<h1>OffSeg</h1><p>Semantic segmentation with offset learning</p><ul>{lines}</ul>"


def _input_column(workbench: Workbench, examples: Sequence[str]) -> dict[str, Any]:
    upload = gr.Image(
        label="Image",
        sources=["upload", "clipboard", "webcam"],
        height=230,
        buttons=[],
        elem_id="upload",
    )
    # The file reaches the server as it is; gradio would open and convert it without limits. A
    # subclass would do, but gradio writes a file beside the source of each.
    upload.preprocess = file_of
    kinds = ", ".join(FORMATS)
    gr.HTML(note_html(f"{kinds}; {workbench.limits.describe()}"), elem_id="kinds", padding=False)
    if examples:
        _offer(examples, upload)
    return {"upload": upload}


def _offer(examples: Sequence[str], upload: gr.Image) -> None:
    """Small pictures, of which one is chosen as if it were uploaded."""
    samples = gr.Dataset(
        components=[gr.Image(render=False)],
        samples=[[path] for path in examples],
        type="index",
        label="Examples",
        samples_per_page=12,
        elem_id="examples",
    )
    # Not gr.Examples: it makes the upload anew, which then would lose `file_of`.
    samples.click(
        lambda index: examples[index],
        samples,
        upload,
        api_visibility="private",
        show_progress="hidden",
    )


def _settings_column(workbench: Workbench) -> dict[str, Any]:
    parts: dict[str, Any] = {
        "view": gr.Radio(list(VIEWS), value=OVERLAY, label="View", elem_id="view"),
        "opacity": gr.Slider(0, 100, value=50, step=1, label="Opacity of the colours, percent",
                             elem_id="opacity", buttons=[]),
        "classes": gr.Dropdown(workbench.classes, value=[], multiselect=True, elem_id="classes",
                               label="Only these classes (none chosen: all)"),
    }  # fmt: skip
    with gr.Column(visible=False, elem_id="offset-settings") as group:
        parts["offset_map"] = gr.Radio(
            list(MAPS), value=SIMILARITY, label="Map of the offsets", elem_id="offset-map"
        )
        parts["offset_class"] = gr.Dropdown(
            workbench.classes, value=None, label="Class of the similarity", elem_id="offset-class"
        )
    return parts | {"offset_group": group}


def _output_column(workbench: Workbench) -> dict[str, Any]:
    compares = len(workbench.models) > 1
    parts: dict[str, Any] = {
        "message": gr.HTML(elem_id="message", padding=False),
        "status": gr.HTML(note_html(WELCOME), elem_id="status", padding=False),
    }
    captions = ["A", "B", "Where A and B differ"] if compares else ["Result"]
    with gr.Row(elem_id="pictures", elem_classes="compare" if compares else []):
        parts["pictures"] = tuple(
            gr.Image(
                label=caption,
                interactive=False,
                buttons=["fullscreen"],
                min_width=260,
                elem_id=f"picture-{number}",
                elem_classes="picture",
                alt_text=caption,
            )
            for number, caption in enumerate(captions)
        )
        with gr.Column(elem_id="words", min_width=260):
            parts["scale"] = gr.HTML(elem_id="scale", padding=False)
            parts["found"] = gr.HTML(elem_id="found", padding=False)
            parts["legend"] = gr.HTML(elem_id="legend", padding=False)
    with gr.Accordion("Look up a pixel by its coordinates", open=False, elem_id="coordinates"):
        with gr.Row():
            parts["x"] = gr.Number(0, label="x, from the left", precision=0, minimum=0)
            parts["y"] = gr.Number(0, label="y, from the top", precision=0, minimum=0)
        parts["look_up"] = gr.Button("Which class is there?", size="sm")
    with gr.Row(elem_id="downloads"):
        parts["downloads"] = tuple(
            gr.Button(f"Download {what}{f' {model.name}' if compares else ''}", size="sm",
                      interactive=False, elem_classes="download")
            for model in workbench.models
            for what in ("label map", "overlay")
        )  # fmt: skip
    parts["file"] = gr.DownloadButton("File", visible="hidden", elem_id="file")
    return parts


def _connect(widgets: Widgets, actions: Actions) -> None:
    pictures = [*widgets.pictures, widgets.scale, widgets.legend, widgets.offset_group]
    inputs = [widgets.session, widgets.pixel, *widgets.choices]
    quiet: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}

    # In the order of the events: an older drawing must not replace a newer one.
    drawing_events: dict[str, Any] = {**quiet, "concurrency_id": "draw", "concurrency_limit": 1}

    def show(session: Session | None, pixel: tuple[int, int] | None, *choices: Any) -> list[Any]:
        drawing = actions.draw(session, pixel, Choices(*choices))
        return _shown(drawing, choices[0] == OFFSETS, _cache(widgets.pictures[0]))

    def analyse(file: tuple[str, str] | None) -> list[Any]:
        session, message, status = actions.analyse(file)
        ready = [gr.update(interactive=session is not None)] * len(widgets.downloads)
        largest = None if session is None else actions.largest_class(session)
        return [session, None, message, status, "", largest, *ready]

    analysed = widgets.upload.change(
        analyse,
        widgets.upload,
        [widgets.session, widgets.pixel, widgets.message, widgets.status, widgets.found,
         widgets.offset_class, *widgets.downloads],
        api_visibility="private",
        concurrency_limit=1,
        concurrency_id="model",
        trigger_mode="always_last",
        show_progress="full",
        show_progress_on=widgets.pictures[0],
    )  # fmt: skip
    analysed.then(show, inputs, pictures, **drawing_events)
    gr.on(
        [widgets.view.input, widgets.opacity.input, widgets.classes.input,
         widgets.offset_map.input, widgets.offset_class.input],
        show, inputs, pictures, trigger_mode="always_last", **drawing_events,
    )  # fmt: skip

    def find(session: Session | None, x: float, y: float, view: str) -> list[Any]:
        pixel, text, name = actions.find(session, (x, y))
        return [pixel, text, name if view == OFFSETS and name else gr.skip()]

    def click(session: Session | None, view: str, event: gr.SelectData) -> list[Any]:
        pixel, text, name = actions.click(session, tuple(event.index), view)
        return [pixel, text, name if view == OFFSETS and name else gr.skip()]

    found = [widgets.pixel, widgets.found, widgets.offset_class]
    for picture in widgets.pictures:
        clicked = picture.select(click, [widgets.session, widgets.view], found, **quiet)
        clicked.then(show, inputs, pictures, **drawing_events)
    asked = widgets.look_up.click(
        find, [widgets.session, widgets.x, widgets.y, widgets.view], found, **quiet
    )
    asked.then(show, inputs, pictures, **drawing_events)
    _connect_downloads(widgets, actions, quiet)


def _shown(drawing: Drawing, offsets: bool, folder: str) -> list[Any]:
    """Values of the widgets for a drawing; pictures are written to a folder of gradio's."""
    pictures = []
    for picture in drawing.pictures:
        path = None
        if picture.pixels is not None:
            path = os.path.join(tempfile.mkdtemp(dir=folder), "picture.jpg")
            write_jpeg(path, picture.pixels)
        pictures.append(gr.update(value=path, label=picture.label, alt_text=picture.label))
    return [*pictures, drawing.scale, drawing.legend, gr.update(visible=offsets)]


def _connect_downloads(widgets: Widgets, actions: Actions, quiet: dict[str, Any]) -> None:
    def write(number: int, session: Session | None, opacity: float, classes: list[str]) -> Any:
        if session is None:
            return gr.skip()
        folder = tempfile.mkdtemp(dir=_cache(widgets.file))
        return actions.write(folder, session, number // 2, number % 2 == 1, opacity, classes)

    for number, button in enumerate(widgets.downloads):
        written = button.click(
            lambda *values, number=number: write(number, *values),
            [widgets.session, widgets.opacity, widgets.classes],
            widgets.file,
            **quiet,
        )
        written.success(None, None, None, js=_CLICK_HIDDEN_LINK, **quiet)


def _cache(component: gr.components.Component) -> str:
    os.makedirs(component.GRADIO_CACHE, exist_ok=True)
    return component.GRADIO_CACHE
