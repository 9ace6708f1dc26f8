"""The program ``offseg``: its commands, their help, and the scripts of the same names."""

import dataclasses
import importlib
import subprocess
import sys

import pytest

from offseg_d2 import __main__ as program
from offseg_d2 import __version__, analysis, export
from offseg_d2.analysis import tradeoff
from offseg_d2.commands import (
    analyze_model,
    demo,
    export_model,
    plot_tradeoff,
    submit_slurm,
    visualize_offsets,
)
from offseg_d2.distributed.slurm import Resources
from offseg_d2.inference.predictor import MAX_PIXELS
from offseg_d2.visualization import drawing
from tests.common import ROOT

SCRIPTS = sorted(path.stem for path in (ROOT / "tools").glob("*.py"))
# Each help in turn, in one process that has imported nothing yet.
HELP = """
import contextlib, io, runpy, sys
from offseg_d2.__main__ import COMMANDS, main
for name in COMMANDS:
    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
        main([name, "--help"])
    assert text.getvalue().startswith(f"usage: offseg {name} "), text.getvalue()[:80]
for script in sys.stdin.read().split():
    sys.argv = [f"tools/{script}.py", "--help"]
    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
        runpy.run_path(sys.argv[0], run_name="__main__")
    assert text.getvalue().startswith(f"usage: {script}.py "), text.getvalue()[:80]
loaded = {name.split(".")[0] for name in sys.modules}
print(loaded & {"torch", "detectron2", "numpy", "cv2", "matplotlib", "submitit", "gradio"})
"""


def call(*words: str) -> int | str | None:
    """Exit status of the program."""
    with pytest.raises(SystemExit) as stop:
        program.main(words)
    return stop.value.code


def test_help_of_every_command_and_script_loads_nothing_heavy():
    result = subprocess.run(
        [sys.executable, "-c", HELP], input=" ".join(SCRIPTS), cwd=ROOT, capture_output=True,
        text=True,
    )  # fmt: skip
    assert (result.stdout, result.returncode) == ("set()\n", 0), result.stderr


def test_every_script_is_a_command_by_its_own_name():
    assert {script.replace("_", "-") for script in SCRIPTS} <= set(program.ALIASES)


@pytest.mark.parametrize("name", ["plot-runs", "plot_runs", "train-net", "train_net", "train"])
def test_command_gets_its_arguments(name, monkeypatch):
    seen = []
    command = "plot_runs" if "plot" in name else "train_net"
    module = importlib.import_module(f"offseg_d2.commands.{command}")
    monkeypatch.setattr(module, "run", lambda args: seen.append(vars(args)))
    monkeypatch.setattr(sys, "argv", ["offseg"])
    program.main([name, *(["a"] if "plot" in name else ["--config-file", "a"])])
    assert "a" in (seen[0].get("config_file"), *seen[0].get("folders", []))
    assert sys.argv[0] == ("offseg plot-runs" if "plot" in name else "offseg train")


def test_help_names_every_command_and_version_is_printed(capsys):
    assert call("--help") == 0
    text = capsys.readouterr().out
    assert all(f"  {name} " in text for name in program.COMMANDS)
    assert call() == 2
    program.main(["--version"])
    assert __version__ in capsys.readouterr().out


@pytest.mark.parametrize(
    ("word", "hint"), [("trian", "train"), ("check_datasets", "check-dataset")]
)
def test_misspelt_command_is_answered_with_the_nearest(word, hint, capsys):
    assert call(word) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and f"{word!r}; did you mean {hint}" in error


def test_choices_of_the_command_lines_are_those_of_the_package():
    assert set(analyze_model.TASKS) == set(analysis.TASKS)
    assert set(analyze_model.DTYPES) == set(analysis.DTYPES)
    assert set(demo.RUNTIMES) == set(export.RUNTIMES)
    assert set(demo.STYLES) == set(drawing.STYLES)
    assert set(export_model.OUTPUTS) == set(export.OUTPUTS)
    assert set(export_model.INPUT_TYPES) == set(export.INPUT_TYPES)
    assert (set(plot_tradeoff.AXES), plot_tradeoff.PAPER) == (set(tradeoff.AXES), tradeoff.PAPER)
    fields = {
        f"--{f.name.replace('_', '-')}": type(f.default) for f in dataclasses.fields(Resources)
    }
    assert fields == submit_slurm.RESOURCES


def test_missing_detectron2_is_one_line_for_a_command():
    command = [sys.executable, "-E", "-S", "-m", "offseg_d2", "train", "--config-file", "a.yaml"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 2
    assert result.stderr.startswith("error: offseg_d2 needs Detectron2, which is not installed")
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("command", [demo, visualize_offsets])
def test_limit_of_pixels_is_that_of_the_predictor(command):
    assert command.make_parser().get_default("max_pixels") == MAX_PIXELS / 1e6
