"""Write docs/BENCHMARKS.md and docs/ACCURACY.md from the results that the benchmarks recorded.

::

    python benchmarks/make_page.py [--results benchmarks/results] [--output docs]

Every number comes from a file of the results folder; ``page.py`` describes how a file gets its
section. A result without a section is an error. ``results/accuracy/`` makes a page of its own
(``accuracy_page.py``).
"""

import argparse
import importlib
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accuracy_page import accuracy_page
from page import SECTIONS

HERE = Path(__file__).resolve().parent
HEAD = """\
# Benchmarks

<!-- Written by benchmarks/make_page.py from benchmarks/results/*.json; changes here get lost. -->

This page is on speed and memory; [ACCURACY](ACCURACY.md) is on the accuracy with offsets. Each
section ends with the command that measured it and the machine. Ratios compare calls in turn,
in one process unless a section says otherwise. `python benchmarks/make_page.py` writes both pages
again.
"""


def read_results(folder: Path) -> dict[str, Any]:
    """Name of each JSON file, without its suffix -> its content.

    Raises:
        ValueError: a file is no JSON.
    """
    results = {}
    for path in sorted(folder.glob("*.json")):
        try:
            results[path.stem] = json.loads(path.read_text(encoding="utf-8"))
        except json.JSONDecodeError as error:
            raise ValueError(f"`{path}` must be JSON, but: {error}.") from error
    return results


def benchmarks_page(results: Mapping[str, Any]) -> str:
    """The page on speed and memory in Markdown.

    Raises:
        ValueError: a result has no section, or lacks what its section shows.
    """
    for path in sorted(HERE.glob("page_*.py")):
        importlib.import_module(path.stem)
    if unknown := sorted(set(results) - set(SECTIONS)):
        raise ValueError(
            f"Every result must have a section in benchmarks/page_*.py, but {unknown} have none."
        )
    parts = [HEAD]
    for name in sorted(results, key=lambda name: (SECTIONS[name].order, name)):
        try:
            paragraphs = list(SECTIONS[name].write(results[name]))
        except (KeyError, IndexError, TypeError) as error:
            raise ValueError(
                f"`{name}.json` must hold what its section shows, but: {error!r}."
            ) from error
        parts += [f"## {SECTIONS[name].title}\n", *(f"{paragraph}\n" for paragraph in paragraphs)]
    return "\n".join(parts)


def make_pages(results: Path) -> dict[str, str]:
    """Name of each page -> its text, from a folder of results."""
    return {
        "BENCHMARKS.md": benchmarks_page(read_results(results)),
        "ACCURACY.md": accuracy_page(read_results(results / "accuracy")),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=HERE / "results", metavar="FOLDER")
    parser.add_argument("--output", type=Path, default=HERE.parent / "docs", metavar="FOLDER")
    args = parser.parse_args()
    try:
        pages = make_pages(args.results)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    for name, text in pages.items():
        (args.output / name).write_text(text, encoding="utf-8")
        print(f"wrote {args.output / name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
