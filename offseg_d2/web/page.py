"""The page: its components, and what happens on each event. Needs gradio."""

import tempfile
from collections.abc import Sequence
from typing import Any

import gradio as gr

from offseg_d2.web.results import DIFFERENT, Models, Result
from offseg_d2.web.uploads import UploadError

SECONDS_KEPT = 3600  # of files and of the results of a visitor
WELCOME = "Choose an image. Then click on it to learn which class lies there."
CLASSES, OFFSETS = "Classes", "Offsets"
STYLE = """
footer { display: none !important; }
.result .mask:not(.inactive) { opacity: var(--mask-opacity, .5) !important; }
#upload img { cursor: crosshair; }
"""
_SET_OPACITY = "x => document.documentElement.style.setProperty('--mask-opacity', x / 100)"
Pixel = tuple[int, int]
_QUIET: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
# One model runs at a time, whoever asks; other visitors wait in gradio's queue.
_RUNS_MODEL: dict[str, Any] = {
    "api_visibility": "private",
    "concurrency_limit": 1,
    "concurrency_id": "model",
}


def theme() -> gr.themes.Base:
    """Return colours and fonts; no font is loaded."""
    fonts = ("ui-sans-serif", "system-ui", "sans-serif")
    return gr.themes.Base(
        primary_hue="teal", neutral_hue="slate", font=fonts, font_mono=("ui-monospace", "monospace")
    )


class Page:
    """The components of the page and its events.

    Args:
        models: one, or two to compare.
        examples: image files that visitors may choose.
    """

    def __init__(self, models: Models, examples: Sequence[str] = ()) -> None:
        self.models = models
        with gr.Blocks(
            title="OffSeg",
            analytics_enabled=False,
            delete_cache=(SECONDS_KEPT // 2, SECONDS_KEPT),
        ) as self.blocks:
            lines = [f"**{name}**: {models.describe(i)}" for i, name in enumerate(models.names)]
            gr.Markdown("# OffSeg\nSemantic segmentation with offset learning\n\n"
                        + "  \n".join(lines))  # fmt: skip
            self.result = gr.State(None, time_to_live=SECONDS_KEPT)
            self.pixel = gr.State(None, time_to_live=SECONDS_KEPT)
            with gr.Row():
                with gr.Column(scale=1, min_width=280):
                    self._add_inputs(examples)
                with gr.Column(scale=3, min_width=280):
                    self._add_outputs()
            self._connect()

    def _add_inputs(self, examples: Sequence[str]) -> None:
        self.upload = gr.Image(
            label="Image", sources=["upload", "clipboard", "webcam"], buttons=[], elem_id="upload"
        )
        gr.Markdown(self.models.limits.describe())
        if examples:
            gr.Examples(
                [[path] for path in examples],
                self.upload,
                elem_id="examples",
                api_visibility="private",
            )
        self.view = gr.Radio([CLASSES, OFFSETS], value=CLASSES, label="View", elem_id="view")
        self.opacity = gr.Slider(0, 100, 50, step=1, label="Opacity of the colours, percent",
                                 elem_id="opacity", buttons=[])  # fmt: skip
        self.chosen = gr.Dropdown(
            self.models.classes, value=None, label="Class of the offsets", visible=False,
            elem_id="class",
        )  # fmt: skip

    def _add_outputs(self) -> None:
        names = self.models.names
        compares = len(names) > 1
        self.status = gr.Markdown(WELCOME, elem_id="status")
        self.found = gr.Markdown(elem_id="found")
        with gr.Column() as self.class_view:
            with gr.Row():
                self.pictures = [
                    gr.AnnotatedImage(
                        label=label,
                        color_map={**self.models.colors, DIFFERENT: "#d62768"},
                        elem_id=f"picture-{number}",
                        elem_classes="result",
                        min_width=260,
                    )
                    for number, label in enumerate([*names, DIFFERENT] if compares else ["Result"])
                ]
            headers = ["Class", "A, %", "B, %", "B − A"] if compares else ["Class", "%", "Pixels"]
            self.areas = gr.Dataframe(
                headers=headers,
                datatype=["str", *["number"] * (len(headers) - 1)],
                label="Areas of the classes",
                interactive=False,
                wrap=True,  # long names
                elem_id="areas",
            )
        self.maps: dict[int, gr.Image] = {}  # index of a model -> picture of its offsets
        with gr.Column(visible=False) as self.offset_view:
            self.message = gr.Markdown()
            for index, name in enumerate(names):
                title = f"Model {name}" if compares else "The model"
                if self.models.has_offsets(index):
                    if compares:
                        gr.Markdown(title)
                    self.maps[index] = gr.Image(
                        label="Offsets", show_label=False, interactive=False,
                        buttons=["fullscreen"], elem_id=f"offsets-{index}",
                    )  # fmt: skip
                else:
                    gr.Markdown(f"{title} has a plain classifier, so it has no offsets.")
        self.write = gr.Button("Prepare downloads", size="sm", interactive=False)
        self.files = gr.File(label="Downloads", file_count="multiple", interactive=False,
                             visible=False, elem_id="files")  # fmt: skip

    def _connect(self) -> None:
        maps = [self.message, *self.maps.values()]
        shown = [self.result, self.view, self.chosen, self.pixel]
        # `preprocess=False`: the file comes as it is; gradio would decode one of any size.
        self.upload.change(
            self._predict,
            self.upload,
            [self.result, self.status, self.write, self.areas, *self.pictures, self.files,
             self.pixel, self.found, self.chosen],
            preprocess=False,
            trigger_mode="always_last",
            show_progress_on=self.pictures,
            **_RUNS_MODEL,
        ).then(self._draw_offsets, shown, maps, **_RUNS_MODEL)  # fmt: skip
        self.view.input(
            lambda view: [
                gr.update(visible=view == CLASSES),
                *[gr.update(visible=view == OFFSETS)] * 2,
            ],
            self.view,
            [self.class_view, self.offset_view, self.chosen],
            queue=False,
            **_QUIET,
        ).then(self._draw_offsets, shown, maps, **_RUNS_MODEL)
        self.chosen.input(self._draw_offsets, shown, maps, **_RUNS_MODEL)
        self.upload.select(
            self._find, self.result, [self.pixel, self.found, self.chosen], **_QUIET
        ).then(self._draw_offsets, shown, maps, **_RUNS_MODEL)
        self.opacity.input(None, self.opacity, None, js=_SET_OPACITY)
        self.write.click(
            self._write, [self.result, self.opacity], self.files, api_visibility="private"
        )

    def _predict(self, file: dict[str, Any] | None) -> list[Any]:
        """Return the values of all outputs for an uploaded file; None if it was taken away."""
        if file is None:
            return self._shown(None, WELCOME)
        try:
            result = self.models.predict(file["path"])
        except UploadError as error:
            return self._shown(None, f"**{error}**")
        return self._shown(result, self.models.status(result))

    def _shown(self, result: Result | None, message: str) -> list[Any]:
        areas: list[Any] | None = None
        pictures: list[Any] = [None] * len(self.pictures)
        if result is not None:
            areas, pictures = self.models.areas(result), self.models.annotated(result)
        write, files = gr.update(interactive=bool(result)), gr.update(value=None, visible=False)
        return [result, message, write, areas, *pictures, files, None, "", None]

    def _draw_offsets(
        self, result: Result | None, view: str, name: str | None, pixel: Pixel | None
    ) -> list[Any]:
        """Return a message and the picture of each model, if the offsets are looked at."""
        if view != OFFSETS:
            return [gr.skip()] * (1 + len(self.maps))
        message = ""
        pictures: list[Any] = [None] * len(self.maps)
        if result is not None:
            try:
                pictures = [self.models.draw_offsets(result, i, name, pixel) for i in self.maps]
            except UploadError as error:
                message = f"**{error}**"
        return [message, *pictures]

    def _find(self, result: Result | None, event: gr.SelectData) -> list[Any]:
        """Return pixel, text and class at a click on the image."""
        if result is None:
            return [None, "", None]
        (height, width), (x, y) = result.upload.image.shape[:2], event.index
        pixel = min(max(int(x), 0), width - 1), min(max(int(y), 0), height - 1)
        classes = self.models.classes_at(result, pixel)
        found = classes[0] if len(classes) == 1 else f"{classes[0]} (A), {classes[1]} (B)"
        return [pixel, f"Pixel {pixel[0]}, {pixel[1]}: {found}", classes[0]]

    def _write(self, result: Result | None, opacity: float) -> Any:
        if result is None:
            return gr.skip()
        folder = tempfile.mkdtemp(dir=self.blocks.GRADIO_CACHE)
        paths = self.models.write_files(result, folder, opacity / 100)
        return gr.update(value=paths, visible=True)
