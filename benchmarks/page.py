"""The parts of docs/BENCHMARKS.md: what a benchmark writes to be shown there.

A benchmark that records ``benchmarks/results/NAME.json`` has a function in a module
``benchmarks/page_*.py`` (all of them are found by ``make_page.py``)::

    @section("NAME", "Title", order=30)
    def name(result: dict[str, Any]) -> Iterator[str]:
        yield "What was measured, in a few words."
        yield table(["model", "ms"], [[row["model"], row["ms"]] for row in result["rows"]])
        yield origin(result, "python benchmarks/NAME.py --output benchmarks/results/NAME.json")

Each string is a paragraph. Numbers come from the JSON alone. Without the file there is no section.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

Write = Callable[[Any], Iterable[str]]


class Section(NamedTuple):
    """One part of the page.

    Attributes:
        title: its heading.
        order: the smaller, the further up.
        write: content of the JSON file -> paragraphs in Markdown.
    """

    title: str
    order: int
    write: Write


SECTIONS: dict[str, Section] = {}  # name of the JSON file, without its suffix -> section


def section(name: str, title: str, *, order: int) -> Callable[[Write], Write]:
    """Register the function that writes the section of ``results/{name}.json``.

    Raises:
        ValueError: the file has a section already.
    """

    def register(write: Write) -> Write:
        if name in SECTIONS:
            raise ValueError(f"'{name}.json' must have one section, but has two.")
        SECTIONS[name] = Section(title, order, write)
        return write

    return register


def table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table in Markdown: the first column to the left, all others to the right.

    Args:
        header: titles of the columns.
        rows: strings or numbers, see :func:`number`; None is an empty cell.
    """
    lines = [list(header), ["---", *["---:"] * (len(header) - 1)]]
    lines += [[_cell(value) for value in row] for row in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def number(value: float) -> str:
    """Three digits that count, whole numbers as they are, thousands apart."""
    if isinstance(value, int) or abs(value) >= 100:
        return f"{value:,.0f}"
    digits = 2 if abs(value) < 10 else 1
    return f"{value:.{digits}f}" if abs(value) >= 0.01 or value == 0 else f"{value:.1e}"


def percent(share: float | None, digits: int = 0) -> str | None:
    """0.123 -> "12 %"; rounded down if it would read 100 though it is less."""
    if share is None:
        return None
    text = f"{100 * share:.{digits}f}"
    if share < 1 and float(text) == 100:
        text = f"{100 - 10**-digits:.{digits}f}"
        return f"over {text} %"
    return f"{text} %"


def origin(result: dict[str, Any], command: str) -> str:
    """Machine, versions, date and the command: the last paragraph of a section."""
    return f"`{command}`  \n{machine_line(result)}"


def machine_line(result: dict[str, Any]) -> str:
    """What ``offseg_d2.analysis.machine`` recorded, in one line."""
    where = [f"{result['processor']}, {_threads(result)}"]
    if "gpu" in result:
        where.append(result["gpu"])
    versions = [f"{key} {result[key]}" for key in ("python", "torch", "numpy") if key in result]
    load = f"load before it {result['load'][0]}" if result.get("load") else ""
    return "; ".join(filter(None, [result["date"], *where, ", ".join(versions), load])) + "."


def _threads(result: dict[str, Any]) -> str:
    threads, cores = result["threads"], result["cores"]
    return f"{threads} thread{'s' * (threads != 1)} on {cores} cores"


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return number(value)
    return str(value).replace("|", "\\|")


def ordered_sections() -> Iterator[tuple[str, Section]]:
    """Name and section, from top to bottom."""
    yield from sorted(SECTIONS.items(), key=lambda item: (item[1].order, item[0]))


def setting_line(group: dict[str, Any], batch: int) -> str:
    """Batch, size in pixels, type and threads of a group of results."""
    height, width = group["size"]
    threads = group["threads"]
    return f"{batch} × {height}×{width}, {group['dtype']}, {threads} thread{'s' * (threads != 1)}"
