"""Fonts that have the characters of class names, and text that fits its place.

matplotlib is imported where it is needed: predicting does without.
"""

import contextlib
import functools
import itertools
import logging
import os
import textwrap
from collections.abc import Iterator, Sequence

from PIL import ImageFont

logger = logging.getLogger(__name__)


def load_font(size: int, text: str = "") -> ImageFont.FreeTypeFont:
    """Font of a size in pixels that has the characters of a text."""
    return ImageFont.truetype(font_file(frozenset(text)), size)


def wrap_to(text: str, font: ImageFont.FreeTypeFont, width: float) -> list[str]:
    """Break a text into lines of at most ``width`` pixels, between words where that is possible."""
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and font.getlength(longer) <= width:
            lines[-1] = longer
            continue
        while (end := _fitting_length(word, font, width)) < len(word):
            lines.append(word[:end])
            word = word[end:]
        lines.append(word)
    return lines or [""]


def cut_to(text: str, font: ImageFont.FreeTypeFont, width: float) -> str:
    """Cut a text at its end, so that it has at most ``width`` pixels."""
    if font.getlength(text) <= width:
        return text
    return text[: _fitting_length(text, font, width - font.getlength("…"))] + "…"


def _fitting_length(text: str, font: ImageFont.FreeTypeFont, width: float) -> int:
    """Number of the text's first characters that fit; at least 1."""
    return next((n for n in range(len(text), 1, -1) if font.getlength(text[:n]) <= width), 1)


def shorten(text: str, length: int) -> str:
    """Cut a text at its end, so that it has at most ``length`` characters."""
    return text if len(text) <= length else f"{text[: length - 1]}…"


def fold(text: str, length: int) -> str:
    """Break a text into lines of at most ``length`` characters."""
    return textwrap.fill(text, length) or text


@contextlib.contextmanager
def plot_with_names(names: Sequence[str]) -> Iterator[None]:
    """Have matplotlib draw names as they are: in a font that has them, "$" without a meaning."""
    import matplotlib
    from matplotlib import font_manager

    path = font_file(frozenset("".join(names)))
    font_manager.fontManager.addfont(path)
    families = [font_manager.get_font(path).family_name, "DejaVu Sans"]
    with matplotlib.rc_context({"font.sans-serif": families, "text.parse_math": False}):
        yield


@functools.cache
def font_file(characters: frozenset[str]) -> str:
    """File of a font with these characters: matplotlib's own, else one of the system.

    A warning names the characters that no font has; they are drawn as boxes.
    """
    import matplotlib
    from matplotlib import font_manager

    own = os.path.join(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")
    for path in itertools.chain([own], sorted(font_manager.findSystemFonts())):
        if not _lacking(path, characters):
            return path
    logger.warning(
        "No font on this system has the characters %s of class names: they are drawn as boxes. "
        "Install one that has, such as Debian's package fonts-noto-cjk.",
        "".join(sorted(_lacking(own, characters)))[:50],
    )
    return own


def _lacking(path: str, characters: frozenset[str]) -> set[str]:
    """Characters that a font file has no glyph for; all if it cannot be read."""
    from matplotlib import font_manager

    try:
        glyphs = font_manager.get_font(path).get_charmap()
    except (OSError, RuntimeError):  # a bitmap font, for one
        return set(characters) or {"a"}
    return {character for character in characters if ord(character) not in glyphs}
