"""Who may import whom, read off the source: no module is run."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import offseg_d2
from tests.common import ROOT

PACKAGE = "offseg_d2"
SMALL = {"config", "version", "_requirements"}  # leaves that everything may use
INDEPENDENT = {"data", "solver", "checkpoint", "evaluation"}
LOWER = SMALL | INDEPENDENT | {"layers", "modeling"}
# unit (sub-package or module) -> units it may import, besides itself
ALLOWED: dict[str, set[str]] = {
    "_requirements": set(),
    "version": set(),
    "config": set(),
    "__init__": {"_requirements", "version"},
    "doctor": {"_requirements", "version"},
    "layers": set(),
    "modeling": {"layers"},
    **{unit: SMALL for unit in INDEPENDENT},
    "evaluation": SMALL | {"visualization"},
    "engine": LOWER | {"deploy", "visualization", "offset_trace"},
    "analysis": LOWER | {"deploy"},
    "deploy": LOWER,
    "export": LOWER,
    "visualization": SMALL,
    "cli": {"checkpoint"},
    "dataset_views": {"data", "visualization", "predictor"},
    "run_curves": set(),
    "predictor": LOWER | {"engine", "visualization"},
    "video": {"data"},
    "batching": set(),
    "drawing": {"visualization"},
    "demo": {"batching", "data", "drawing", "predictor", "video", "visualization"},
    "segmenter": {"checkpoint", "config", "data", "predictor", "visualization"},
    "offset_trace": {"modeling"},
    "offset_figure": {"offset_trace", "visualization"},
    "offset_views": {
        "config",
        "data",
        "offset_figure",
        "offset_trace",
        "predictor",
        "visualization",
    },
    "web": {
        *("cli", "config", "data", "drawing", "offset_figure", "offset_trace", "offset_views"),
        *("predictor", "segmenter", "visualization"),
    },
}
# module -> what it may import against the rule: a timm network's own file is read safely as well,
# pictures and reports are written as atomically as checkpoints
EXCEPTIONS = {
    "offseg_d2.modeling.backbone.timm_backbone": {"checkpoint"},
    "offseg_d2.evaluation.pictures": {"checkpoint"},
    "offseg_d2.evaluation.report": {"checkpoint"},
    "offseg_d2.evaluation.submission": {"checkpoint"},
}
# within modeling: unit -> units it may import, besides itself
ALLOWED_IN_MODELING: dict[str, set[str]] = {
    "offset_learning": set(),
    "classifiers": {"offset_learning"},
    "backbone": set(),
    "pixel_decoder": set(),
    "transformer_decoder": {"classifiers"},
    "sem_seg_head": {"classifiers", "pixel_decoder", "transformer_decoder"},
    "matcher": set(),
    "criterion": {"matcher"},
    "meta_arch": {"sem_seg_head", "criterion"},
}


def python_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*.py") if "__pycache__" not in path.parts)


def dotted(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def imports(path: Path) -> Iterator[tuple[str, int]]:
    """Every imported dotted name of a file with its line; relative ones resolved."""
    package = dotted(path).split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *((node.module or "").split(".") if node.module else [])])
            for alias in node.names:
                yield f"{module}.{alias.name}", node.lineno


def unit_of(name: str, depth: int = 1) -> str:
    """offseg_d2.modeling.x.y -> modeling (depth 1), x (depth 2)."""
    parts = name.split(".")
    return parts[depth] if len(parts) > depth else "__init__"


def package_imports(path: Path) -> Iterator[tuple[str, int]]:
    for name, line in imports(path):
        if name.split(".")[0] == PACKAGE:
            yield name, line


FILES = python_files(ROOT / PACKAGE)


def test_package_is_found():
    assert len(FILES) > 30
    assert {unit_of(dotted(path)) for path in FILES} >= {"layers", "modeling", "engine", "data"}


@pytest.mark.parametrize("unit", sorted({unit_of(dotted(path)) for path in FILES}))
def test_unit_imports_only_what_lies_below_it(unit):
    assert unit in ALLOWED, f"say in ALLOWED what {unit} may import"
    violations = [
        f"{dotted(path)}:{line} imports {name}"
        for path in FILES
        if unit_of(dotted(path)) == unit
        for name, line in package_imports(path)
        if unit_of(name) not in ALLOWED[unit] | {unit, *_names_of_the_package(name)}
        if unit_of(name) not in EXCEPTIONS.get(dotted(path), set())
    ]
    assert not violations, violations


def _names_of_the_package(name: str) -> set[str]:
    """`from offseg_d2 import solver` names a unit, `... import Trainer` a public name."""
    last = name.split(".")[1] if name.count(".") == 1 else ""
    defined_in = offseg_d2._PUBLIC_NAMES.get(last)
    return set() if defined_in is None else {last} & {unit_of(defined_in)}


@pytest.mark.parametrize("unit", sorted(ALLOWED_IN_MODELING))
def test_modeling_is_layered(unit):
    prefix = f"{PACKAGE}.modeling."
    violations = [
        f"{dotted(path)}:{line} imports {name}"
        for path in python_files(ROOT / PACKAGE / "modeling")
        if unit_of(dotted(path), 2) == unit
        for name, line in package_imports(path)
        if name.startswith(prefix) and unit_of(name, 2) not in ALLOWED_IN_MODELING[unit] | {unit}
    ]
    assert not violations, violations


def test_layers_know_neither_configuration_nor_detectron2():
    violations = [
        f"{dotted(path)}:{line} imports {name}"
        for path in python_files(ROOT / PACKAGE / "layers")
        for name, line in imports(path)
        if name.split(".")[0] in {"detectron2", "fvcore", "iopath", "yacs", "yaml"}
    ]
    assert not violations, violations


def test_modeling_does_not_read_the_catalogs():
    violations = [
        f"{dotted(path)}:{line} imports {name}"
        for path in python_files(ROOT / PACKAGE / "modeling")
        for name, line in imports(path)
        if name.startswith("detectron2.data") or name.split(".")[-1].endswith("Catalog")
    ]
    assert not violations, violations


def test_nothing_in_the_package_imports_tools_or_tests():
    violations = [
        f"{dotted(path)}:{line} imports {name}"
        for path in FILES
        for name, line in imports(path)
        if name.split(".")[0] in {"tools", "tests"}
    ]
    assert not violations, violations


@pytest.mark.parametrize("path", sorted((ROOT / "tools").glob("*.py")), ids=lambda path: path.stem)
def test_tools_use_public_names_only(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    violations = [name for name, _ in package_imports(path) if "._" in name]
    imported = {name.split(".")[-1] for name, _ in package_imports(path)} | {PACKAGE}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr.startswith("_"):
            root = node.value
            while isinstance(root, ast.Attribute | ast.Call):
                root = root.func if isinstance(root, ast.Call) else root.value
            if isinstance(root, ast.Name) and root.id in imported:
                violations.append(f"line {node.lineno}: {root.id}...{node.attr}")
    assert not violations, violations


def test_no_evaluation_of_text_and_no_unsafe_loading():
    forbidden = {"eval", "exec", "compile", "__import__"}
    violations = []
    for path in [*FILES, *python_files(ROOT / "tools")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            where = f"{dotted(path)}:{node.lineno}"
            if isinstance(node.func, ast.Name) and node.func.id in forbidden:
                violations.append(f"{where} {node.func.id}")
            text = ast.unparse(node.func)
            if text in {"yaml.load", "yaml.unsafe_load", "yaml.full_load", "pickle.load"}:
                violations.append(f"{where} {text}")
            keywords = {k.arg: ast.unparse(k.value) for k in node.keywords}
            if text == "torch.load" and keywords.get("weights_only") != "True":
                violations.append(f"{where} torch.load without weights_only=True")
            if text.endswith(".load") and keywords.get("allow_pickle") == "True":
                violations.append(f"{where} allow_pickle")
    assert not violations, violations


def test_every_public_name_can_be_imported():
    assert len(offseg_d2.__all__) == len(set(offseg_d2.__all__))
    for name in offseg_d2.__all__:
        assert getattr(offseg_d2, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'Offset'"):
        _ = offseg_d2.Offset


def test_the_rules_would_notice_a_violation(tmp_path, monkeypatch):
    # The reader itself: relative, nested and plain imports of a made-up module.
    folder = tmp_path / PACKAGE / "data"
    folder.mkdir(parents=True)
    path = folder / "bad.py"
    path.write_text(
        "import offseg_d2.engine.trainer\n"
        "from ..modeling import classifiers\n"
        "from . import sampler\n"
        "def f():\n"
        "    from offseg_d2 import solver\n"
    )
    monkeypatch.setattr("tests.test_imports.ROOT", tmp_path)
    units = [unit_of(name) for name, _ in package_imports(path)]
    assert units == ["engine", "modeling", "data", "solver"]


@pytest.mark.parametrize("tool", sorted((ROOT / "tools").glob("*.py")), ids=lambda path: path.stem)
def test_tools_import_the_package_before_what_warns(tool):
    names = [
        name
        for node in ast.parse(tool.read_text()).body
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in (
            [node.module] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names]
        )
    ]
    quiet = ("detectron2.config", "detectron2.utils")
    loud = [i for i, name in enumerate(names)
            if name.startswith("detectron2") and not name.startswith(quiet)]  # fmt: skip
    own = [i for i, name in enumerate(names) if name.startswith(PACKAGE)]
    assert not loud or min(own) < min(loud)
