"""Write docs/BENCHMARKS.md from the results that the benchmarks have recorded.

::

    python benchmarks/make_page.py [--results benchmarks/results] [--output docs/BENCHMARKS.md]

Every number on the page comes from a file of the results folder; see ``page.py`` for how a
benchmark gets its section. A result without a section is an error. A folder in that folder, such
as ``accuracy/``, is one result: name of each of its files -> content.
"""

import argparse
import importlib
import json
import sys
from pathlib import Path
from typing import Any

from detectron2.utils.file_io import PathManager
from page import SECTIONS, ordered_sections

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
HEAD = """\
# Benchmarks

<!-- Written by benchmarks/make_page.py from benchmarks/results/*.json; changes here get lost. -->

Every table names the command that records it and the machine on which that was done; ratios are
those of calls in turn, in one process unless told otherwise. `python benchmarks/make_page.py`
writes this page anew.
"""


def load_sections() -> None:
    """Import every ``page_*.py``, which registers its sections."""
    for path in sorted(HERE.glob("page_*.py")):
        importlib.import_module(path.stem)


def read_results(folder: str) -> dict[str, Any]:
    """Name of each JSON file, without its suffix -> its content; a folder of files likewise.

    Raises:
        FileNotFoundError: the folder does not exist.
        ValueError: a file is no JSON.
    """
    results = {}
    for name in sorted(PathManager.ls(folder)):
        path = f"{folder}/{name}"
        if PathManager.isdir(path):
            content = read_results(path)
            if content:
                results[name] = content
        elif name.endswith(".json"):
            results[name.removesuffix(".json")] = _read_json(path)
    return results


def _read_json(path: str) -> Any:
    with PathManager.open(path) as file:
        try:
            return json.load(file)
        except json.JSONDecodeError as error:
            raise ValueError(f"`{path}` must be JSON, but: {error}.") from error


def make_page(results: dict[str, Any]) -> str:
    """The page in Markdown.

    Raises:
        ValueError: a result has no section, or lacks what its section shows.
    """
    unknown = sorted(set(results) - set(SECTIONS))
    if unknown:
        raise ValueError(
            f"Every result must have a section in benchmarks/page_*.py, but {unknown} have none."
        )
    parts = [HEAD]
    for name, section in ordered_sections():
        if name not in results:
            continue
        try:
            paragraphs = list(section.write(results[name]))
        except (KeyError, IndexError, TypeError) as error:
            raise ValueError(
                f"`{name}.json` must hold what its section shows, but: {error!r}."
            ) from error
        parts += [f"## {section.title}\n", *(f"{paragraph}\n" for paragraph in paragraphs)]
    return "\n".join(parts)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", default=str(HERE / "results"), metavar="FOLDER")
    parser.add_argument("--output", default=str(ROOT / "docs" / "BENCHMARKS.md"), metavar="FILE")
    args = parser.parse_args()
    load_sections()
    try:
        page = make_page(read_results(args.results))
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    with PathManager.open(args.output, "w") as file:
        file.write(page)
    print(f"wrote {args.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
