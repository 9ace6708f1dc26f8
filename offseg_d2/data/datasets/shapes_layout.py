"""Positions of landscape and objects in the shapes dataset, whatever the looks of the classes."""

import numpy as np

from .shapes_drawing import CONTOURS

# Train id of the first class that is an object.
FIRST_OBJECT = 3
MOST_OBJECTS = 11  # of a scene
# Usual height of an object's centre, as a part of the image's height, and its spread.
_OBJECT_ROWS = ((0.35, 0.18), (0.70, 0.12), (0.62, 0.15), (0.40, 0.20), (0.60, 0.18))
_OBJECT_TURNS = (np.pi, 0.35, 0.35, np.pi, 0.6)  # largest turn in radians


def lay_out_landscape(
    rng: np.random.RandomState, size: tuple[int, int]
) -> tuple[np.ndarray, float]:
    """Return (H, W) uint8 of sky, hills and ground, and the horizon's row."""
    height, width = size
    horizon = rng.uniform(0.42, 0.62) * height
    columns = np.arange(width) / width * 2 * np.pi
    waves = sum(
        rng.uniform(0.2, 1.0) / k * np.sin(k * columns + rng.uniform(0, 2 * np.pi))
        for k in (1, 2, 3, 5)
    )
    ridge = horizon - height * (rng.uniform(0.10, 0.20) + 0.055 * waves)
    edge = horizon + height * 0.012 * np.sin(columns * 1.5 + rng.uniform(0, 2 * np.pi))
    rows = np.arange(height)[:, None]
    label = (rows >= ridge).astype(np.uint8) + (rows >= np.maximum(edge, ridge)).astype(np.uint8)
    return label, horizon


def lay_out_objects(
    rng: np.random.RandomState, size: tuple[int, int], kinds: list[int] | None = None
) -> list[tuple[int, np.ndarray]]:
    """Place up to eleven objects that hardly overlap; far (high) ones come first.

    Args:
        rng: numbers of the image.
        size: (height, width) in pixels.
        kinds: ``MOST_OBJECTS`` of them, the form being the remainder by five; by default one of
            the five forms is drawn for each object.

    Returns:
        Class id and contours, (contours, points, 2) as (x, y), of each.
    """
    height, width = size
    placed: list[tuple[float, float, float, int]] = []
    for number in range(rng.randint(6, MOST_OBJECTS + 1)):
        kind = rng.randint(len(_OBJECT_ROWS)) if kinds is None else kinds[number]
        mean, spread = _OBJECT_ROWS[kind % len(_OBJECT_ROWS)]
        y = np.clip(rng.normal(mean, spread), 0.08, 0.92) * height
        x = rng.uniform(0.04, 0.96) * width
        radius = rng.uniform(0.09, 0.19) * height
        if all(np.hypot(y - p[0], x - p[1]) > 0.85 * (radius + p[2]) for p in placed):
            placed.append((y, x, radius, kind))
    return [
        (FIRST_OBJECT + kind, _outline(rng, kind % len(CONTOURS), radius) + np.array([x, y]))
        for y, x, radius, kind in sorted(placed)
    ]


def _outline(rng: np.random.RandomState, kind: int, radius: float) -> np.ndarray:
    """Return the contours of an object around (0, 0), stretched and turned."""
    contours = CONTOURS[kind]() * radius * np.array([1.0, rng.uniform(0.8, 1.2)])
    turn = _OBJECT_TURNS[kind] * rng.uniform(-1, 1)
    cos, sin = np.cos(turn), np.sin(turn)
    return contours @ np.array([[cos, sin], [-sin, cos]])
