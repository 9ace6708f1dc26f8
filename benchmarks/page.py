"""Parts of the generated pages: sections, tables, numbers, and the line on the machine.

A file ``benchmarks/results/NAME.json`` gets its section of docs/BENCHMARKS.md by a function in a
module ``benchmarks/page_*.py`` (``make_page.py`` imports all of them)::

    @section("NAME", "Title", order=30)
    def name(result: dict[str, Any]) -> Iterator[str]:
        yield "What was measured, in a few words."
        yield columns_table(result["rows"], {"model": "model", "ms": "ms"})
        yield origin(result, "python benchmarks/NAME.py --output benchmarks/results/NAME.json")

Each string is a paragraph. Numbers come from the JSON alone. Without the file there is no section.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

Write = Callable[[Any], Iterable[str]]
Column = str | Callable[[dict[str, Any]], Any]


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
    """Register the function that writes the section of ``results/{name}.json``."""

    def register(write: Write) -> Write:
        SECTIONS[name] = Section(title, order, write)
        return write

    return register


def columns_table(rows: Iterable[dict[str, Any]], columns: Mapping[str, Column]) -> str:
    """A table in Markdown of rows of a result.

    Args:
        rows: of the result.
        columns: title -> key of a row, or what makes a cell of a row.
    """
    makers = [
        (lambda row, key=column: row[key]) if isinstance(column, str) else column
        for column in columns.values()
    ]
    return table(list(columns), [[make(row) for make in makers] for row in rows])


def table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table in Markdown: the first column to the left, all others to the right.

    Args:
        header: titles of the columns.
        rows: strings or numbers, see :func:`number`; None is an empty cell.
    """
    lines = [list(header), ["---", *["---:"] * (len(header) - 1)]]
    lines += [[_cell(value) for value in row] for row in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return number(value)
    return str(value).replace("|", "\\|")


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
    """The fields of ``offseg_d2.analysis.machine`` in one line."""
    threads, cores = result["threads"], result["cores"]
    where = [f"{result['processor']}, {threads} thread{'s' * (threads != 1)} on {cores} cores"]
    if "gpu" in result:
        where.append(result["gpu"])
    versions = [f"{key} {result[key]}" for key in ("python", "torch", "numpy") if key in result]
    load = f"load before it {result['load'][0]}" if result.get("load") else ""
    return "; ".join(filter(None, [result["date"], *where, ", ".join(versions), load])) + "."


def setting_line(group: dict[str, Any], batch: int) -> str:
    """Batch, size in pixels, type and threads of a group of results."""
    height, width = group["size"]
    threads = group["threads"]
    return f"{batch} × {height}×{width}, {group['dtype']}, {threads} thread{'s' * (threads != 1)}"
