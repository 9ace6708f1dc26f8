"""Drawing of the shapes dataset: colours, textures, outlines, lighting.

Coordinates are (x, y) in pixels; images are (H, W, 3) float32 RGB, 0..1.
"""

import dataclasses
from collections.abc import Callable

import cv2
import numpy as np


@dataclasses.dataclass(frozen=True)
class Look:
    """A class's appearance in one image."""

    colors: np.ndarray  # (2, 3) RGB, 0..1
    texture: str
    period: float
    angle: float
    phase: np.ndarray  # (2,)


def hsv_to_rgb(hue: float, saturation: float, value: float) -> np.ndarray:
    """HSV (hue cyclic, the others clipped to a range in which they are visible) -> RGB, 0..1."""
    saturation, value = np.clip(saturation, 0.05, 0.95), np.clip(value, 0.2, 1.0)
    ramp = np.abs((hue * 6.0 + np.array([0.0, 4.0, 2.0])) % 6.0 - 3.0) - 1.0
    return value * (1.0 - saturation + saturation * np.clip(ramp, 0.0, 1.0))


def _circle(radius: float = 1.0) -> np.ndarray:
    angles = np.arange(48) * (2 * np.pi / 48)
    return radius * np.stack([np.cos(angles), np.sin(angles)], axis=-1)


def _cross() -> np.ndarray:
    arm, half = 1.0, 0.33
    quarter = np.array([(half, half), (half, arm), (-half, arm)])
    turns = [np.array([[0, 1], [-1, 0]])] * 3
    parts = [quarter]
    for turn in turns:
        parts.append(parts[-1] @ turn)
    return np.concatenate(parts)[None]


CONTOURS: tuple[Callable[[], np.ndarray], ...] = (
    lambda: _circle(0.9)[None],
    lambda: np.array([[(-0.85, -0.8), (0.85, -0.8), (0.85, 0.8), (-0.85, 0.8)]]),
    lambda: np.array([[(0.0, -1.0), (1.0, 0.85), (-1.0, 0.85)]]),
    lambda: np.stack([_circle(1.0), _circle(0.55)]),
    _cross,
)


def paint(
    rng: np.random.RandomState,
    look: Look,
    contours: np.ndarray,
    class_id: int,
    image: np.ndarray,
    label: np.ndarray,
) -> None:
    """Paint one object with a soft shadow and rounded shading into image and label, in place."""
    height, width = label.shape
    margin = 6
    low = np.maximum(np.floor(contours.min((0, 1))) - margin, 0).astype(int)
    high = np.minimum(np.ceil(contours.max((0, 1))) + margin + 1, (width, height)).astype(int)
    window = slice(low[1], high[1]), slice(low[0], high[0])
    cover = np.zeros((high[1] - low[1], high[0] - low[0]), dtype=np.uint8)
    points = np.round((contours - low) * 16).astype(np.int32)  # 4 fractional bits
    cv2.fillPoly(cover, list(points), 255, lineType=cv2.LINE_AA, shift=4)
    label[window][cover >= 128] = class_id

    alpha = cover.astype(np.float32) / 255.0
    soft = cv2.GaussianBlur(alpha, (0, 0), 2.5)
    shadow = np.zeros_like(soft)
    shadow[3:, 3:] = soft[:-3, :-3]
    center = contours.mean((0, 1))
    scale = np.float32(192 / height)
    x = (np.arange(low[0], high[0], dtype=np.float32) - np.float32(center[0])) * scale
    y = (np.arange(low[1], high[1], dtype=np.float32) - np.float32(center[1])) * scale
    x, y = np.broadcast_arrays(x[None], y[:, None])
    color = mix(look, texture_blend(rng, look, x, y)) * (0.55 + 0.5 * soft[..., None])
    behind = image[window] * (1.0 - 0.35 * shadow[..., None])
    image[window] = behind + alpha[..., None] * (color - behind)


_WAVES: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "stripes": lambda u, v: np.sin(u),
    "furrows": lambda u, v: 0.8 * np.sin(u),
    "checker": lambda u, v: 2.0 * np.sin(u) * np.sin(v),
    "dots": lambda u, v: np.cos(u) + np.cos(v) - 0.4,
}


def texture_blend(
    rng: np.random.RandomState, look: Look, x: np.ndarray, y: np.ndarray
) -> np.ndarray:
    """Return the share of the second colour, 0..1, at pixel coordinates (x, y)."""
    k = np.float32(2 * np.pi / look.period)
    cos, sin = np.float32(np.cos(look.angle)), np.float32(np.sin(look.angle))
    first, second = (np.float32(p) for p in look.phase)
    if look.texture == "clouds":
        return _clouds(rng, look.period, x.shape)
    if look.texture == "plain":
        return np.zeros_like(x)
    if look.texture == "spokes":
        wave = np.sin(10.0 * np.arctan2(y, x) + first)
    else:
        u, v = k * (cos * x + sin * y) + first, k * (cos * y - sin * x) + second
        wave = _WAVES[look.texture](u, v)
    return np.clip(0.5 + 1.5 * wave, 0.0, 1.0)


def _clouds(rng: np.random.RandomState, period: float, shape: tuple[int, int]) -> np.ndarray:
    """Return smooth noise of two octaves, 0..1."""
    noise = np.full(shape, -0.4, dtype=np.float32)
    for octave, weight in ((1.0, 1.2), (2.5, 0.6)):
        cells = [int(side * octave * 2.0 / period) + 3 for side in shape]
        cells[1] = max(cells[1] // 2, 3)  # longer than high
        grid = rng.uniform(0, weight, cells).astype(np.float32)
        noise += cv2.resize(grid, shape[::-1], interpolation=cv2.INTER_CUBIC)
    return np.clip(noise, 0.0, 1.0)


def mix(look: Look, blend: np.ndarray) -> np.ndarray:
    """(H, W) share of the second colour -> (H, W, 3) RGB."""
    first, second = look.colors.astype(np.float32)
    return cv2.merge([first[c] + blend * (second[c] - first[c]) for c in range(3)])


def light(rng: np.random.RandomState, image: np.ndarray, variation: float) -> np.ndarray:
    """Light the scene from one side in one tint, and add sensor noise."""
    height, width = image.shape[:2]
    angle, strength = rng.uniform(0, 2 * np.pi), 0.35 * variation * rng.uniform()
    across = np.linspace(-1, 1, width, dtype=np.float32)[None] * np.float32(np.cos(angle))
    down = np.linspace(-1, 1, height, dtype=np.float32)[:, None] * np.float32(np.sin(angle))
    gain = np.float32(1.0 + variation * rng.uniform(-0.25, 0.15))
    tint = (1.0 + 0.12 * variation * rng.uniform(-1, 1, 3)).astype(np.float32)
    shade = gain * (1.0 + np.float32(strength) * (across + down))
    # The sum of four uniform numbers is close enough to a normal one, and cheaper.
    noise = rng.randint(0, 256, (4, height, width), dtype=np.uint8).sum(0, dtype=np.int32)
    amplitude = np.float32(0.008 + 0.016 * variation * rng.uniform())
    noise = (noise.astype(np.float32) - 510.0) * (amplitude / np.float32(148.0))
    return image * cv2.merge([shade * factor for factor in tint]) + noise[..., None]
