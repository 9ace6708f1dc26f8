"""Colours for classes whose dataset gives them none."""

import colorsys

_GOLDEN_RATIO = 0.6180339887498949
# (saturation, value), taken in turn: neighbours in the list differ in more than hue.
_TONES = ((0.85, 0.90), (0.55, 0.70), (0.95, 0.55), (0.45, 0.95), (0.70, 0.80))


def distinct_colors(count: int) -> list[list[int]]:
    """Return ``count`` different RGB colours, 0..255; the first ones do not depend on ``count``."""
    colors = []
    for index in range(count):
        # Multiples of the golden ratio spread evenly round the circle, however many there are.
        rgb = colorsys.hsv_to_rgb((index * _GOLDEN_RATIO) % 1.0, *_TONES[index % len(_TONES)])
        colors.append([round(255 * channel) for channel in rgb])
    return colors
