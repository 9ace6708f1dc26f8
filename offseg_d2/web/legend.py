"""Tables and lines of text of the page, as HTML."""

from collections.abc import Sequence
from html import escape

import numpy as np
from detectron2.data import Metadata

from offseg_d2.visualization.classes import class_colors, class_names
from offseg_d2.web.pictures import Heat

_MAGMA = "linear-gradient(90deg,#000004,#3b0f70,#8c2981,#de4968,#fe9f6d,#fcfdbf)"


def areas(labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Pixels of each class: (H, W) -> (K,)."""
    return np.bincount(labels.ravel(), minlength=num_classes)[:num_classes]


def legend_html(
    label_maps: Sequence[np.ndarray],
    metadata: Metadata,
    *,
    chosen: Sequence[str] = (),
    class_offsets: np.ndarray | None = None,
) -> str:
    """The classes that are in an image, the largest first.

    Args:
        label_maps: (H, W) of one model, or of two that are compared.
        metadata: names and colours.
        chosen: classes that are drawn; the others are greyed. None are, if there are none.
        class_offsets: (K,) lengths of the class offsets, for one more column.
    """
    names, colors = class_names(metadata), class_colors(metadata)
    counts = np.stack([areas(labels, len(names)) for labels in label_maps])
    size = label_maps[0].size
    present = [int(i) for i in np.argsort(-counts.max(axis=0), kind="stable") if counts[:, i].any()]
    rows = []
    for index in present:
        shares = 100 * counts[:, index] / size
        if len(shares) == 1:
            cells = [_share_cell(shares[0], colors[index]), _cell(_grouped(counts[0, index]))]
        else:
            cells = [_cell(_percent(share)) for share in shares]
            cells.append(_cell(_signed(shares[1] - shares[0])))
        if class_offsets is not None:
            cells.append(_cell(f"{100 * class_offsets[index]:.0f} %"))
        dim = " class=dim" if chosen and names[index] not in chosen else ""
        rows.append(f"<tr{dim}>{_name_cell(names[index], colors[index])}{''.join(cells)}</tr>")
    heads = ["Class", "Area", "Pixels"] if len(label_maps) == 1 else ["Class", "A", "B", "B − A"]
    if class_offsets is not None:
        heads.append("Offset" if len(label_maps) == 1 else "Offset (A)")
    head = "".join(f"<th scope=col>{text}</th>" for text in heads)
    caption = f"{len(present)} of {len(names)} classes are in the image"
    if len(label_maps) > 1:
        caption += "; B − A in percentage points"
    if class_offsets is not None:
        caption += "; offset: how far a class vector is moved, over its length"
    return (
        f"<div class='scroll shown' role=region aria-label='Classes' tabindex=0>"
        f"<table class=legend><caption>{caption}</caption>"
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _name_cell(name: str, color: np.ndarray) -> str:
    shown = escape(name).replace("_", "_<wbr>")
    return f"<th scope=row><div>{_swatch(color)}<span>{shown}</span></div></th>"


def _share_cell(share: float, color: np.ndarray) -> str:
    bar = f"<span class=bar style='width:{share:.1f}%;background:{_css(color)}'></span>"
    return (
        f"<td class=share><div><span class=track aria-hidden=true>{bar}</span>"
        f"<span class=value>{_percent(share)}</span></div></td>"
    )


def _cell(text: str) -> str:
    return f"<td>{text}</td>"


def _percent(share: float) -> str:
    return f"{share:.1f} %" if share >= 0.05 or not share else "&lt; 0.1 %"


def _signed(points: float) -> str:
    rounded = round(float(points), 1)
    return f"{rounded:+.1f}".replace("-", "\u2212") if rounded else "0.0"


def _swatch(color: np.ndarray) -> str:
    return f"<span class=swatch style='background:{_css(color)}' aria-hidden=true></span>"


def _css(color: np.ndarray) -> str:
    return "#" + "".join(f"{int(value):02x}" for value in color)


def _grouped(number: int) -> str:
    return f"{int(number):,}".replace(",", "\u202f")


def scale_html(heat: Heat, name: str = "") -> str:
    """The colours of a heat map with their ends."""
    low, high = heat.ends
    lead = f"{escape(name)}: " if name else ""
    return (
        f"<figure class='scale shown'><figcaption>{lead}{escape(heat.title)}</figcaption>"
        f"<div class=ramp><span>{low}</span>"
        f"<span class=colors style='background:{_MAGMA}'></span><span>{high}</span></div></figure>"
    )


def status_html(parts: Sequence[str]) -> str:
    """A line that tells what was done."""
    items = "".join(f"<span>{escape(part)}</span>" for part in parts)
    return f"<div class='status shown' role=status>{items}</div>"


def message_html(message: str) -> str:
    """A line that tells what went wrong; empty for no message."""
    if not message:
        return ""
    return f"<div class='problem shown' role=alert>{escape(message)}</div>"


def note_html(text: str) -> str:
    """A line that helps."""
    return f"<p class='note shown'>{escape(text)}</p>" if text else ""


def pixel_html(pixel: tuple[int, int], names: Sequence[str], colors: Sequence[np.ndarray]) -> str:
    """What lies at a pixel, by each model."""
    found = []
    for index, (name, color) in enumerate(zip(names, colors, strict=True)):
        lead = f"{'AB'[index]}: " if len(names) > 1 else ""
        found.append(f"<span>{lead}{_swatch(color)}<b>{escape(name)}</b></span>")
    place = f"<span>Pixel {pixel[0]}, {pixel[1]}</span>"
    return f"<div class='status pixel shown' role=status>{place}{''.join(found)}</div>"
