"""The commands and links of the documentation."""

import re
import shlex
from pathlib import Path

from tests.common import ROOT

PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/*.md"),
                ROOT / "datasets/README.md"])  # fmt: skip
_FENCED = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)

_PROGRAMS = {"python", ".venv/bin/python", "pip", "make", "offseg", "ssh", "apt-get", "srun",
             "source"}  # fmt: skip


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks(page: Path, kinds: tuple[str, ...]) -> list[str]:
    """Contents of the fenced blocks of these kinds; "" are those without one."""
    text = page.read_text(encoding="utf-8")
    return [body for kind, body in _FENCED.findall(text) if kind in kinds]


def commands(page: Path) -> list[list[str]]:
    """Calls of the project's programs in fenced blocks, as lists of words."""
    found = []
    for body in blocks(page, ("", "bash")):
        for line in body.replace("\\\n", " ").splitlines():
            words = shlex.split(line.strip(), comments=True) if "'" not in line else _split(line)
            if "python" in words[:3]:
                found.append(words[words.index("python") + 1 :])
            elif "offseg" in words[:2] and len(words) > 1:
                found.append(words[words.index("offseg") :])
    return found


def command_lines(page: Path) -> list[str]:
    """Command lines of fenced and indented blocks, joined where they go on, without comments."""
    found = []
    text = _FENCED.sub("", page.read_text(encoding="utf-8"))
    indented = "".join(re.findall(r"^    .*\n", text, re.MULTILINE))
    for body in (*blocks(page, ("", "bash")), indented):
        for line in body.replace("\\\n", " ").splitlines():
            words = line.split(" #")[0].split()
            if words and words[0] in _PROGRAMS:
                found.append(" ".join(words))
    return found


def _split(line: str) -> list[str]:
    try:
        return shlex.split(line.strip(), comments=True)
    except ValueError:  # prose with an apostrophe
        return []


def anchors(page: Path) -> set[str]:
    """Names that GitHub gives to the headings of a page."""
    text = _FENCED.sub("", page.read_text(encoding="utf-8"))
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def links(page: Path) -> list[str]:
    """Targets of the links and pictures of a page."""
    text = _FENCED.sub("", page.read_text(encoding="utf-8"))
    return re.findall(r"\]\(([^)\s]+)\)", text)
