"""Rules of imports, checked in the source: no module is run."""

import ast
import itertools
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import offseg_d2
from offseg_d2 import _requirements
from tests.common import ROOT

PACKAGE = "offseg_d2"


def read_table() -> dict[str, set[str]]:
    """The table of docs/ARCHITECTURE.md: room (sub-package or module) -> rooms it may import."""
    rows: dict[str, set[str]] = {}
    lines = (ROOT / "docs/ARCHITECTURE.md").read_text(encoding="utf-8").splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("| room of `offseg_d2/`"))
    for line in itertools.takewhile(lambda line: line.startswith("|"), lines[start + 2 :]):
        rooms, _, imported = line.strip("|").rsplit("|", 2)
        for room in re.findall(r"`(\w+)`", rooms):
            rows[room] = set(re.findall(r"`(\w+)`", imported))
    return rows


ALLOWED = read_table()
# within modeling: unit -> units it may import, besides itself
ALLOWED_IN_MODELING: dict[str, set[str]] = {
    "offset_learning": set(),
    "classifiers": {"offset_learning"},
    "backbone": set(),
    "pixel_decoder": set(),
    "transformer_decoder": {"classifiers"},
    "losses": set(),
    "sem_seg_head": {"classifiers", "losses", "pixel_decoder", "transformer_decoder"},
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


@pytest.mark.parametrize("room", sorted({unit_of(dotted(path)) for path in FILES} - {"__init__"}))
def test_room_imports_only_what_its_row_names(room):
    assert room in ALLOWED, f"the table of docs/ARCHITECTURE.md must have a row for {room}"
    violations = [
        f"{dotted(path)}:{line} imports {name}"
        for path in FILES
        if unit_of(dotted(path)) == room
        for name, line in package_imports(path)
        if unit_of(name) not in ALLOWED[room] | {room, *_names_of_the_package(name)}
    ]
    assert not violations, violations


def test_rooms_import_only_rooms_above_them():
    rooms = list(ALLOWED)
    assert set(rooms) == {unit_of(dotted(path)) for path in FILES} - {"__init__"}
    for index, room in enumerate(rooms):
        assert ALLOWED[room] <= set(rooms[:index]), room


def module_graph() -> dict[str, set[str]]:
    """Module -> modules that it imports anywhere in its file, those of type checks too."""
    modules = {dotted(path).removesuffix(".__init__") for path in FILES}
    graph = {}
    for path in FILES:
        module = dotted(path).removesuffix(".__init__")
        names = {name for name, _ in package_imports(path)}
        known = {name if name in modules else name.rpartition(".")[0] for name in names}
        graph[module] = (known & modules) - {module, PACKAGE}
    return graph


def test_no_module_imports_itself_by_way_of_others():
    # Removes whatever imports nothing that is left; a circle would remain.
    graph = module_graph()
    while free := {module for module, imported in graph.items() if not imported}:
        graph = {m: imported - free for m, imported in graph.items() if m not in free}
    assert not graph, graph


PREDICTING = """
import sys
from offseg_d2 import Segmenter
loaded = {name for name in sys.modules if name.startswith("offseg_d2.")}
rooms = {name.split(".")[1] for name in loaded}
print(rooms & {"engine", "export", "web", "analysis", "distributed"})
print({"matplotlib", "tensorboard", "submitit"} & set(sys.modules))
"""


def test_predicting_does_not_import_training():
    result = subprocess.run([sys.executable, "-c", PREDICTING], capture_output=True, text=True)
    assert result.stdout.split("\n")[:2] == ["set()", "set()"], result.stdout + result.stderr


REGISTERED = """
import sys
{first}
{second}
print("ade20k_150_val" in DatasetCatalog, "PerPixelSegmentor" in META_ARCH_REGISTRY)
print("offseg_d2.engine" in sys.modules)
"""
OURS = (
    "import offseg_d2",
    "import offseg_d2.checkpoint",
    "from offseg_d2 import replace_classifier",
)
CATALOGS = (
    "from detectron2.data.catalog import DatasetCatalog\n"
    "from detectron2.modeling import META_ARCH_REGISTRY"
)


@pytest.mark.parametrize(
    ("first", "second"), [(OURS[0], CATALOGS), (OURS[1], CATALOGS), (OURS[2], CATALOGS),
                          (CATALOGS, OURS[0])],
)  # fmt: skip
def test_models_and_datasets_are_registered_after_the_import(first, second):
    code = REGISTERED.format(first=first, second=second)
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.split() == ["True", "True", "False"], result.stderr


def test_import_alone_loads_neither_torch_nor_detectron2():
    code = "import sys, offseg_d2; print({'torch', 'detectron2', 'numpy'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout == "set()\n", result.stderr


# What registers must not be needed by what it is made of: that would be a circle.
BELOW = """
import sys
from offseg_d2 import checkpoint, config, layers, solver
import offseg_d2.utils.io
print({"detectron2.data", "detectron2.modeling"} & set(sys.modules))
"""


def test_rooms_below_data_and_modeling_do_not_load_the_catalogs():
    result = subprocess.run([sys.executable, "-c", BELOW], capture_output=True, text=True)
    assert result.stdout == "set()\n", result.stderr


TORCH_ALONE = """
import sys
ABSENT = {"detectron2", "fvcore", "iopath", "yacs", "cv2", "PIL", "scipy", "torchvision",
          "matplotlib", "pycocotools", "submitit"}
class Blocker:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name.split(".")[0] in ABSENT:
            raise ModuleNotFoundError(name, name=name)
sys.meta_path.insert(0, Blocker)
import torch
from offseg_d2 import OffsetClassifier, OffsetLearning, replace_classifier
from offseg_d2.modeling import OffsetMaskPredictor
model = torch.nn.Sequential(torch.nn.Conv2d(6, 3, 1))
replace_classifier(model, "0")
print(type(model[0]).__name__, list(model(torch.rand(2, 6, 4, 5)).shape))
try:
    from offseg_d2 import Segmenter
except ImportError as error:
    print(str(error).split(";")[0])
try:
    from offseg_d2.modeling import build_model
except ImportError as error:
    print(str(error).split(";")[0])
"""


def test_offset_learning_needs_torch_alone():
    result = subprocess.run([sys.executable, "-c", TORCH_ALONE], capture_output=True, text=True)
    refusal = "offseg_d2 needs Detectron2, which is not installed here"
    assert result.stdout.splitlines() == ["OffsetClassifier [2, 3, 4, 5]", refusal, refusal], (
        result.stderr
    )


def test_detectron2_does_not_suffer_from_what_is_missing_here(monkeypatch):
    monkeypatch.setitem(sys.modules, "offseg_d2.absent_room", None)
    with pytest.warns(UserWarning, match=r"absent_room could not be registered with Detectron2"):
        _requirements._register("offseg_d2.absent_room")


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
