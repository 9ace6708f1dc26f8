"""What the page does on each event, without gradio: sessions and choices to pictures and texts."""

import contextlib
import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from offseg_d2.visualization.classes import class_colors
from offseg_d2.web.downloads import write_label_map, write_overlay
from offseg_d2.web.legend import (
    areas,
    legend_html,
    message_html,
    note_html,
    pixel_html,
    scale_html,
    status_html,
)
from offseg_d2.web.offset_maps import SIMILARITY, offset_map, own_offsets
from offseg_d2.web.pictures import (
    OFFSETS,
    OVERLAY,
    draw_difference,
    draw_heat,
    draw_labels,
    pixel_of_click,
    resize,
    screen_size,
)
from offseg_d2.web.uploads import UploadError
from offseg_d2.web.workbench import Session, Workbench, difference

Pixel = tuple[int, int]
WELCOME = "Choose an image. Then click on the result to learn which class lies there."


@dataclass(frozen=True)
class Choices:
    """What a visitor chose.

    Attributes:
        view: one of :data:`.pictures.VIEWS`.
        opacity: of the colours in percent.
        classes: those that are drawn; all, if there are none.
        offset_map: one of :data:`.offset_maps.MAPS`.
        offset_class: of the similarity.
    """

    view: str = OVERLAY
    opacity: float = 50
    classes: Sequence[str] = ()
    offset_map: str = SIMILARITY
    offset_class: str | None = None


@dataclass(frozen=True)
class Picture:
    """A picture of the page, (H, W, 3) uint8 RGB, and what it shows."""

    pixels: np.ndarray | None
    label: str


@dataclass(frozen=True)
class Drawing:
    """All that changes with the choices: pictures, and HTML below them."""

    pictures: tuple[Picture, ...]
    scale: str
    legend: str


class Actions:
    """The events of the page.

    Args:
        workbench: the models.
    """

    def __init__(self, workbench: Workbench) -> None:
        self.workbench = workbench
        self._compares = len(workbench.models) > 1

    def analyse(self, file: tuple[str, str] | None) -> tuple[Session | None, str, str]:
        """Run the models on an uploaded file.

        Args:
            file: its path, and what it was called; None if the image was taken away.

        Returns:
            the session (None without result), HTML of a message and of the status.
        """
        if file is None:
            return None, "", note_html(WELCOME)
        try:
            session = self.workbench.analyse(*file)
        except UploadError as error:
            return None, message_html(str(error)), ""
        return session, "", status_html(self._status(session))

    def _status(self, session: Session) -> list[str]:
        height, width = session.size
        parts = [f"{width} × {height} pixels"]
        for model, result in zip(self.workbench.models, session.results, strict=True):
            parts.append(f"{model.name}: {result.seconds:.2f} s")
        differs = difference(session)
        if differs is not None:
            parts.append(f"A and B differ in {100 * differs.mean():.1f} % of the pixels")
        return [*parts, *session.upload.notes]

    def largest_class(self, session: Session) -> str:
        """Name of the class with most pixels."""
        counts = areas(session.results[0].labels, len(self.workbench.classes))
        return self.workbench.classes[int(counts.argmax())]

    def draw(self, session: Session | None, pixel: Pixel | None, choices: Choices) -> Drawing:
        """Draw the view that was chosen; runs a model only for offsets that are not kept."""
        if session is None:
            names = ("A", "B", "Where A and B differ") if self._compares else ("Result",)
            return Drawing(tuple(Picture(None, name) for name in names), "", "")
        image = resize(session.upload.image, screen_size(*session.size))
        pictures, notes = [], ""
        for index in range(len(session.results)):
            picture, note = self._draw_model(session, index, image, pixel, choices)
            pictures.append(picture)
            notes += note
        differs = difference(session)
        if differs is not None:
            label = f"Where A and B differ: {100 * differs.mean():.1f} %"
            pictures.append(Picture(draw_difference(image, differs), label))
        return Drawing(tuple(pictures), notes, self._legend(session, choices))

    def _draw_model(
        self, session: Session, index: int, image: np.ndarray, pixel: Pixel | None, choices: Choices
    ) -> tuple[Picture, str]:
        model, opacity = self.workbench.models[index], choices.opacity / 100
        lead = f"{model.name}: " if self._compares else ""
        if choices.view == OFFSETS and model.has_offsets:
            try:
                return self._draw_offsets(session, index, image, pixel, choices)
            except UploadError as error:
                return Picture(None, f"{lead}{OFFSETS}"), message_html(str(error))
        view = OVERLAY if choices.view == OFFSETS else choices.view
        pixels = draw_labels(
            image,
            session.results[index].labels,
            model.metadata,
            view,
            opacity=opacity,
            classes=choices.classes,
        )
        note = ""
        if choices.view == OFFSETS:
            who = f"Model {model.name}" if self._compares else "This model"
            note = note_html(
                f"{who} has a plain classifier, so it has no offsets. Its overlay is shown."
            )
        return Picture(pixels, f"{lead}{view}"), note

    def _draw_offsets(
        self, session: Session, index: int, image: np.ndarray, pixel: Pixel | None, choices: Choices
    ) -> tuple[Picture, str]:
        model = self.workbench.models[index]
        name = choices.offset_class or self.largest_class(session)
        (rows, columns), (height, width) = image.shape[:2], session.size
        share = None if pixel is None else ((pixel[0] + 0.5) / width, (pixel[1] + 0.5) / height)
        heat = offset_map(
            self.workbench.offsets(session, index),
            choices.offset_map,
            class_id=self.workbench.classes.index(name),
            class_name=name,
            pixel=share,
        )
        mark = None if share is None else (int(share[0] * columns), int(share[1] * rows))
        pixels = draw_heat(image, heat, opacity=choices.opacity / 100, pixel=mark)
        lead = f"{model.name}: " if self._compares else ""
        label = f"{lead}{choices.offset_map}"
        return Picture(pixels, label), scale_html(
            heat, f"Model {model.name}" if self._compares else ""
        )

    def _legend(self, session: Session, choices: Choices) -> str:
        offsets = None
        if choices.view == OFFSETS and self.workbench.models[0].has_offsets:
            with contextlib.suppress(UploadError):  # the picture's place says it already
                offsets = own_offsets(self.workbench.offsets(session, 0))
        return legend_html(
            [result.labels for result in session.results],
            self.workbench.metadata,
            chosen=choices.classes,
            class_offsets=offsets,
        )

    def click(
        self, session: Session | None, click: Pixel, view: str
    ) -> tuple[Pixel | None, str, str | None]:
        """What lies where a picture was clicked at.

        Returns:
            pixel of the image, HTML, name of its class (of the first model).
        """
        if session is None:
            return None, "", None
        pixel = pixel_of_click(click, view, session.size)
        return (None, "", None) if pixel is None else self.find(session, pixel)

    def find(
        self, session: Session | None, pixel: tuple[float, float]
    ) -> tuple[Pixel | None, str, str | None]:
        """As :meth:`click`, for (x, y) in the image."""
        if session is None:
            return None, note_html("Choose an image first."), None
        (height, width), (x, y) = session.size, (int(pixel[0] or 0), int(pixel[1] or 0))
        if not (0 <= x < width and 0 <= y < height):
            text = f"The pixel must have x in 0..{width - 1} and y in 0..{height - 1}."
            return None, message_html(text), None
        ids = [int(result.labels[y, x]) for result in session.results]
        names = [self.workbench.classes[index] for index in ids]
        colors = class_colors(self.workbench.metadata)
        return (x, y), pixel_html((x, y), names, [colors[index] for index in ids]), names[0]

    def write(
        self,
        folder: str,
        session: Session,
        index: int,
        overlay: bool,
        opacity: float = 50,
        classes: Sequence[str] = (),
    ) -> str:
        """Write a file of the image's own size to take home.

        Args:
            folder: to write into.
            session: image and results.
            index: of the model.
            overlay: the overlay as chosen; otherwise the label map of all classes.
            opacity: in percent.
            classes: those that are drawn.

        Returns:
            path of the PNG.
        """
        model, labels = self.workbench.models[index], session.results[index].labels
        name = f"_{model.name}" if self._compares else ""
        kind = "overlay" if overlay else "labels"
        path = os.path.join(folder, f"{session.upload.stem}_{kind}{name}.png")
        if overlay:
            picture = draw_labels(
                session.upload.image,
                labels,
                model.metadata,
                OVERLAY,
                opacity=opacity / 100,
                classes=classes,
            )
            write_overlay(path, picture)
        else:
            write_label_map(path, labels, model.metadata)
        return path
