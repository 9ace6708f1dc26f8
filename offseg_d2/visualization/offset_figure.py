"""One picture of what the offsets of a trained model do, see :mod:`.offset_trace`."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from detectron2.data import Metadata
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from offseg_d2.utils.fonts import fold, plot_with_names, shorten
from offseg_d2.visualization.classes import class_colors, class_names, color_map
from offseg_d2.visualization.misalignment import misalignment
from offseg_d2.visualization.offset_trace import OffsetTrace
from offseg_d2.visualization.overlay import overlay

_MOST_CLASSES = 12  # in bars and legends
_MAP = "magma"


@dataclass(frozen=True)
class TracedImage:
    """An image and what the offsets do to it.

    Attributes:
        rgb: (H, W, 3) uint8, as the network saw it.
        trace: the terms of the method.
    """

    rgb: np.ndarray
    trace: OffsetTrace


def draw_offsets(
    images: Sequence[TracedImage],
    metadata: Metadata,
    *,
    class_id: int | None = None,
    pixel: tuple[int, int] | None = None,
    plain_labels: np.ndarray | None = None,
) -> np.ndarray:
    """Draw the offsets of the first image, and the class vectors of all of them.

    Args:
        images: the first one is shown; all take part in the picture of the class vectors.
        metadata: names and colours of the classes.
        class_id: class whose similarity and attention are shown; by default the pixel's, or the
            largest one of the image.
        pixel: (x, y) in the first image; by default the middle of the largest region of the class.
        plain_labels: (H, W) prediction of a model without offsets; by default that of the same
            model with its offsets set to zero.

    Returns:
        (H', W', 3) uint8 RGB.

    Raises:
        ValueError: the pixel lies outside the image, or there is no such class.
    """
    trace = images[0].trace
    labels = trace.labels().cpu().numpy()
    class_id, pixel = _choose(labels, class_id, pixel, len(class_names(metadata)))
    with plot_with_names(class_names(metadata)):
        figure = Figure(figsize=(17.5, 10.4), dpi=110, layout="constrained")
        figure.get_layout_engine().set(h_pad=0.09, w_pad=0.06)
        canvas = FigureCanvasAgg(figure)
        top, middle, bottom = figure.subfigures(3, 1, height_ratios=[1.0, 1.0, 1.35])
        _draw_predictions(top.subplots(1, 4), images[0].rgb, trace, labels, metadata, plain_labels)
        _draw_maps(middle.subplots(1, 4), trace, class_id, pixel, metadata)
        axes = bottom.subplots(1, 4, width_ratios=[1.0, 1.0, 1.0, 2.0])
        _draw_class_offsets(axes[0], trace, labels, metadata)
        _draw_angles(axes[1], images, metadata)
        _draw_pixel_scores(axes[2], trace, pixel, metadata)
        _draw_class_vectors(axes[3], images, metadata)
        canvas.draw()
        return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _choose(
    labels: np.ndarray, class_id: int | None, pixel: tuple[int, int] | None, num_classes: int
) -> tuple[int, tuple[int, int]]:
    height, width = labels.shape
    if pixel is not None and not (0 <= pixel[0] < width and 0 <= pixel[1] < height):
        raise ValueError(
            f"`--pixel` must lie in the image, x below {width} and y below {height}, "
            f"but is {pixel}."
        )
    if class_id is not None and not 0 <= class_id < num_classes:
        raise ValueError(f"`--class` must be below {num_classes}, but is {class_id}.")
    if class_id is None:
        at = labels[pixel[1], pixel[0]] if pixel is not None else np.bincount(labels.ravel())
        class_id = int(at if pixel is not None else at.argmax())
    if pixel is None:
        mask = labels == class_id if (labels == class_id).any() else np.ones_like(labels)
        rows, columns = np.nonzero(mask)
        middle = np.hypot(rows - np.median(rows), columns - np.median(columns)).argmin()
        pixel = (int(columns[middle]), int(rows[middle]))
    return class_id, pixel


def _show(axis: Axes, picture: np.ndarray, title: str, **options: object) -> None:
    shown = axis.imshow(picture, **options)
    axis.set_title(title, fontsize=11)
    axis.set_axis_off()
    if picture.ndim == 2:
        axis.figure.colorbar(shown, ax=axis, fraction=0.04, pad=0.02)


def _draw_predictions(
    axes: Sequence[Axes],
    rgb: np.ndarray,
    trace: OffsetTrace,
    labels: np.ndarray,
    metadata: Metadata,
    plain_labels: np.ndarray | None,
) -> None:
    what = "offsets set to zero" if plain_labels is None else "plain model"
    if plain_labels is None:
        plain_labels = trace.labels(offsets=False).cpu().numpy()
    differs = labels != plain_labels
    # Over grey the colours are those of the classes, whatever the image's are.
    grey = np.repeat(rgb.mean(axis=2, keepdims=True), 3, axis=2).astype(np.uint8)
    faded = (grey * 0.3 + 178).astype(np.uint8)
    difference = np.where(differs[..., None], color_map(labels, metadata), faded)
    _show(axes[0], rgb, "image")
    _show(axes[1], overlay(grey, plain_labels, metadata), what)
    _show(axes[2], overlay(grey, labels, metadata), "with offsets")
    share = 100 * differs.mean()
    _show(axes[3], difference, f"where they differ ({share:.1f} %)")


def _draw_maps(
    axes: Sequence[Axes],
    trace: OffsetTrace,
    class_id: int,
    pixel: tuple[int, int],
    metadata: Metadata,
) -> None:
    name = shorten(class_names(metadata)[class_id], 30)
    row = trace.row_of(class_id)
    if trace.class_probabilities is not None:
        name = f"{name} (query {row})"
    similarity = trace.to_image(trace.coupled_similarity[:, row].view(trace.size))
    _show(axes[0], similarity.cpu().numpy(), f"coupled similarity A\nwith {name}", cmap=_MAP)
    attention = trace.to_image(trace.attention_to_pixels(row))
    relative = attention / attention.mean().clamp_min(1e-30)
    title = f"pixels that move the vector of {name}\n(share of each, 1 = the mean)"
    _show(axes[1], relative.cpu().numpy(), title, cmap=_MAP)
    features = trace.pixel_features
    at = features[_feature_index(trace, pixel)]
    cosine = torch.nn.functional.cosine_similarity(features, at[None]).view(trace.size)
    title = "features like that of\nthe marked pixel (cosine)"
    _show(axes[2], trace.to_image(cosine).cpu().numpy(), title, cmap=_MAP)
    for axis in axes[:3]:
        axis.plot(*pixel, marker="+", markersize=16, markeredgewidth=2.5, color="cyan")
    moved = trace.to_image(100 * trace.relative_feature_offset()).cpu().numpy()
    _show(axes[3], moved, "feature offset,\n% of the feature's length", cmap=_MAP)


def _feature_index(trace: OffsetTrace, pixel: tuple[int, int]) -> int:
    """Row of X at a pixel of the image."""
    (rows, columns), (height, width) = trace.size, trace.padded_size
    return (pixel[1] * rows // height) * columns + pixel[0] * columns // width


def _folded(metadata: Metadata, class_ids: Sequence[int]) -> list[str]:
    """Names of classes, long ones in several lines."""
    return [fold(class_names(metadata)[i], 24) for i in class_ids]


def _classes_by_area(labels: np.ndarray) -> list[int]:
    areas = np.bincount(labels.ravel())
    return [int(i) for i in areas.argsort()[::-1] if areas[i]][:_MOST_CLASSES]


def _draw_class_offsets(
    axis: Axes, trace: OffsetTrace, labels: np.ndarray, metadata: Metadata
) -> None:
    present = _classes_by_area(labels)[::-1]
    rows = [trace.row_of(index) for index in present]
    whole, own = (x.cpu().numpy()[rows] for x in offset_lengths(trace))
    colors = class_colors(metadata)[present] / 255
    if trace.compares_classes:
        axis.barh(range(len(present)), whole, color="0.85")
    axis.barh(range(len(present)), own, color=colors, edgecolor="0.3")
    axis.set_yticks(range(len(present)), _folded(metadata, present))
    title = "class offset / class vector, lengths"
    own_part = "grey: whole; coloured: less what all share"
    axis.set_title(title + (f"\n{own_part}" if trace.compares_classes else ""), fontsize=11)


def _draw_angles(axis: Axes, images: Sequence[TracedImage], metadata: Metadata) -> None:
    """Angle between each class vector and the mean of its pixels, mean over the images."""
    angles = [misalignment(image.trace, image.trace.labels()) for image in images]
    before, after = (
        torch.stack(values).nanmean(dim=0).cpu()
        for values in ([a.before for a in angles], [a.after for a in angles])
    )
    present = before.isfinite().nonzero().flatten().tolist()[:_MOST_CLASSES][::-1]
    colors = class_colors(metadata)[present] / 255
    rows = np.arange(len(present))
    axis.barh(rows + 0.2, before[present], 0.4, color="0.75")
    axis.barh(rows - 0.2, after[present], 0.4, color=colors, edgecolor="0.3")
    axis.set_yticks(rows, _folded(metadata, present))
    title = "degrees from class vector to mean feature"
    axis.set_title(f"{title}\ngrey: before the offsets; coloured: after", fontsize=11)


def offset_lengths(trace: OffsetTrace) -> tuple[Tensor, Tensor]:
    """Length of each class offset over that of its class vector, whole and without the common part.

    What moves all class vectors alike changes all scores of a pixel alike, which neither the norm
    of the class scores nor a comparison of the scores sees. Masks are not compared with each
    other, so that the mask-query form has no common part.

    Returns:
        two (K,) tensors.
    """
    lengths = trace.representations.norm(dim=1).clamp_min(1e-12)
    offset = trace.class_offset
    own = offset - offset.mean(dim=0) if trace.compares_classes else offset
    return offset.norm(dim=1) / lengths, own.norm(dim=1) / lengths


def _draw_pixel_scores(
    axis: Axes, trace: OffsetTrace, pixel: tuple[int, int], metadata: Metadata
) -> None:
    index = _feature_index(trace, pixel)
    scores = [trace.class_scores(offsets=offsets)[index].cpu().numpy() for offsets in (False, True)]
    best = scores[1].argsort()[-_MOST_CLASSES:]
    for shift, values, color, label in (
        (0.2, scores[0], "0.75", "offsets set to zero"),
        (-0.2, scores[1], "tab:blue", "with offsets"),
    ):
        axis.barh(np.arange(len(best)) + shift, values[best], 0.4, color=color, label=label)
    axis.set_yticks(range(len(best)), _folded(metadata, best))
    axis.set_ylim(-0.6 - 0.2 * len(best), len(best) - 0.4)  # below the bars: room for the legend
    axis.legend(fontsize=9, loc="lower right")
    axis.set_title(f"scores at the marked pixel {pixel}", fontsize=11)


def _draw_class_vectors(axis: Axes, images: Sequence[TracedImage], metadata: Metadata) -> None:
    """PCA of class vectors before (crosses) and after the class offset (a dot for each image)."""
    present = [_classes_by_area(image.trace.labels().cpu().numpy()) for image in images]
    shown = sorted({index for classes in present for index in classes})
    pairs = list(zip(images, present, strict=True))
    before = torch.cat([_vectors(image.trace, classes, False) for image, classes in pairs])
    after = torch.cat([_vectors(image.trace, classes, True) for image, classes in pairs])
    owners = np.concatenate(present)
    plane, shares = principal_plane(torch.cat([before, after]))
    start, end = (plane[: len(before)].numpy(), plane[len(before) :].numpy())
    colors = class_colors(metadata) / 255
    for index in shown:
        mine = owners == index
        for a, b in zip(start[mine], end[mine], strict=True):
            axis.plot([a[0], b[0]], [a[1], b[1]], color=colors[index], linewidth=0.6, alpha=0.6)
        axis.scatter(*end[mine].T, color=colors[index], s=45, edgecolors="0.2", linewidths=0.6,
                     label=_folded(metadata, [index])[0])  # fmt: skip
        axis.scatter(*start[mine].T, color="black", marker="x", s=30, zorder=3)
    axis.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    what = "without their mean, " if images[0].trace.compares_classes else ""
    axis.set_title(
        f"class vectors before (x) and after the offset, one dot for each image\n"
        f"({what}PCA, {100 * shares.sum():.0f} % of the variance; images: {len(images)})",
        fontsize=11,
    )


def _vectors(trace: OffsetTrace, classes: Sequence[int], moved: bool) -> Tensor:
    vectors = trace.aligned_classes if moved else trace.representations
    if trace.compares_classes:  # see offset_lengths
        vectors = vectors - vectors.mean(dim=0)
    return vectors[[trace.row_of(index) for index in classes]].detach().cpu()


def principal_plane(vectors: Tensor) -> tuple[Tensor, Tensor]:
    """Coordinates of (M, C) vectors in the plane of their largest variance: (M, 2).

    Returns:
        the coordinates, and the share of the variance along each axis (2,).
    """
    centred = vectors - vectors.mean(dim=0)
    _, lengths, axes = torch.linalg.svd(centred, full_matrices=False)
    variances = lengths.square()
    return centred @ axes[:2].mT, variances[:2] / variances.sum().clamp_min(1e-30)
