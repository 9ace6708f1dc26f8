"""Commands, keys and links of the documentation exist."""

import ast
import importlib
import re
from pathlib import Path

import pytest

from offseg_d2.__main__ import ALIASES, COMMANDS
from offseg_d2.config import load_config
from offseg_d2.config.find import config_names
from tests.common import ROOT
from tests.docs.pages import PAGES, anchors, blocks, commands, links, name_of

ELSEWHERE = ("http://", "https://", "mailto:")
KEY = re.compile(r"[A-Z][A-Z0-9_]*(\.[A-Z0-9_]+)+|SEED|OUTPUT_DIR")


def script_of(words: list[str]) -> Path | None:
    """The project's script that a command calls."""
    if words[0] == "offseg":
        name = words[1].replace("_", "-")
        module, _ = COMMANDS.get(ALIASES.get(name, name), ("no_such_command", ""))
        return ROOT / f"offseg_d2/commands/{module}.py"
    target = words[1] if words[0] == "-m" else words[0]
    path = ROOT / (target.replace(".", "/") + ".py" if words[0] == "-m" else target)
    package = ROOT / target.replace(".", "/") / "__main__.py"
    if words[0] == "-m" and package.is_file():
        return package
    if path.is_file() or target.split("/")[0] in {"tools", "benchmarks", "tests"}:
        return path
    return None


def flags_of(script: Path) -> set[str]:
    """Flags that a command, a script, or a module of the project that it uses, defines."""
    if script.parent.name in ("tools", "commands"):
        parser = importlib.import_module(f"offseg_d2.commands.{script.stem}").make_parser()
        return {flag for action in parser._actions for flag in action.option_strings}
    text = script.read_text(encoding="utf-8")
    files = {script}
    found: set[str] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and node.module:
            module = ROOT / node.module.replace(".", "/")
            files |= {module.with_suffix(".py"), script.parent / f"{node.module}.py"}
            files |= set(module.glob("*.py"))
    for file in files:
        content = file.read_text(encoding="utf-8") if file.is_file() else ""
        found |= set(re.findall(r"""["'](--[\w-]+)["']""", content))
    return found


CASES = [(page, words) for page in PAGES for words in commands(page)]


def test_commands_are_found():
    assert len(CASES) > 25


@pytest.mark.parametrize(
    ("page", "words"), CASES, ids=[f"{name_of(p)}:{' '.join(w)[:50]}" for p, w in CASES]
)
def test_script_flags_files_and_keys_of_a_command_exist(page, words):
    script = script_of(words)
    if script is None:
        return
    assert script.is_file(), f"{words[0]} does not exist"
    flags = {word.split("=")[0] for word in words if word.startswith("--")}
    assert flags <= flags_of(script) | {"--help"}, flags - flags_of(script)
    last = ""
    for word in words:
        if word.startswith("configs/") and not re.search(r"NAME|DATASET|\.\.\.", word):
            assert (ROOT / word).is_file(), f"{word} does not exist"
        if last == "--config-file" and re.fullmatch(r"[a-z0-9_]+/[a-z0-9_]+", word):
            assert word in config_names(), f"{word} is no configuration"
        last = word
    keys = [word for word in words if KEY.fullmatch(word)]
    defaults = load_config("")
    for key in keys:
        node = defaults
        for part in key.split("."):
            assert part in node, f"`{key}` is no key"
            node = node[part]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_keys_in_the_text_exist(page):
    text = page.read_text(encoding="utf-8")
    defaults = load_config("")
    for quoted in re.findall(r"`([A-Z][A-Z0-9_]+(?:\.[A-Z0-9_]+)+)(?: [^`]*)?`", text):
        node = defaults
        for part in quoted.split("."):
            if quoted == "MODEL.X":  # how an error is worded
                break
            assert part in node, f"`{quoted}` is no key"
            node = node[part]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page):
    for link in links(page):
        if link.startswith(ELSEWHERE):
            continue
        target, _, anchor = link.partition("#")
        path = (page.parent / target).resolve() if target else page
        assert path.exists(), f"{link} does not exist"
        if anchor:
            assert anchor in anchors(path), f"{link} has no such heading"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_python_of_a_page_compiles_and_imports_what_there_is(page):
    import offseg_d2

    for body in blocks(page, ("python",)):
        for node in ast.walk(ast.parse(body)):
            if isinstance(node, ast.ImportFrom) and node.module == "offseg_d2":
                assert {alias.name for alias in node.names} <= set(dir(offseg_d2))


def test_every_command_is_mentioned_in_the_readme():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    missing = [name for name in COMMANDS if not re.search(rf"offseg {name}\b|`{name}`", text)]
    assert not missing
