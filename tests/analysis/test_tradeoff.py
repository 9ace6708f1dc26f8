"""Pictures of accuracy against cost: which rows they show, and mistakes in files."""

import json
import re
import runpy
import sys

import cv2
import numpy as np
import pytest

from offseg_d2.analysis.tradeoff import plot_tradeoff, read_rows, select_rows
from tests.common import ROOT

ROWS = [
    {"model": "a", "family": "f", "miou": 40.0, "latency_ms": 10, "dataset": "x"},
    {"model": "b", "family": "f", "miou": 45.0, "latency_ms": 30},
    {"model": "c", "miou": 41.0, "macs_g": 3.0, "dataset": "y"},
]


def test_paper_holds_the_rows_of_offseg_as_printed():
    rows = select_rows(read_rows("paper"), "macs_g", "cityscapes")
    printed = {r["model"]: (r["macs_g"], r["miou"]) for r in rows if r["family"] == "OffSeg"}
    assert printed == {
        "OffSeg-T": (44.8, 78.9),
        "OffSeg-B": (86.5, 80.5),
        "OffSeg-L": (143.4, 81.6),
    }


def test_paper_holds_each_model_once_for_a_dataset():
    rows = read_rows("paper")
    assert len({(row["dataset"], row["model"]) for row in rows}) == len(rows)


def test_rows_of_other_datasets_and_without_the_axis_are_left_out():
    assert [row["model"] for row in select_rows(ROWS, "latency_ms", "x")] == ["a", "b"]
    assert [row["model"] for row in select_rows(ROWS, "macs_g")] == ["c"]


@pytest.mark.parametrize("suffix", ["json", "csv"])
def test_files_of_both_kinds_give_the_same_rows(suffix, tmp_path):
    path = tmp_path / f"rows.{suffix}"
    if suffix == "json":
        path.write_text(json.dumps({"rows": ROWS}))
    else:
        path.write_text("model,family,miou,latency_ms,dataset\na,f,40,10,x\nb,f,45,30,\nc,,41,,y\n")
    rows = select_rows(read_rows(str(path)), "latency_ms")
    assert [(r["model"], r["miou"], r["latency_ms"]) for r in rows] == [
        ("a", 40.0, 10.0),
        ("b", 45.0, 30.0),
    ]


@pytest.mark.parametrize("rows", [ROWS[:1], ROWS[:2], [ROWS[0]] * 9])
def test_picture_is_a_png_with_something_on_it(rows):
    picture = cv2.imdecode(
        np.frombuffer(plot_tradeoff(rows, "latency_ms", "title"), np.uint8), cv2.IMREAD_COLOR
    )
    assert picture.shape[2] == 3
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 10


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not JSON"),
        ('{"a": 1}', "must hold a list of objects"),
        ("[1]", "must hold a list of objects"),
        ('[{"model": "a", "miou": 40}]', 'must have "macs_g" and "miou"'),
        ('[{"model": "a", "miou": 40, "macs_g": "many"}]', "positive number, but is 'many'"),
        ('[{"model": "a", "miou": 40, "macs_g": -1}]', "positive number, but is -1"),
        ('[{"miou": 40, "macs_g": 1}]', 'must have a "model"'),
    ],
)
def test_mistakes_in_a_file_are_reported(content, message, tmp_path):
    path = tmp_path / "rows.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=message):
        select_rows(read_rows(str(path)), "macs_g")


def run_tool(monkeypatch, *arguments):
    """The tool in this process: a new one would spend its time on importing."""
    monkeypatch.setattr(sys, "argv", ["plot_tradeoff.py", *map(str, arguments)])
    runpy.run_path(str(ROOT / "tools" / "plot_tradeoff.py"), run_name="__main__")


def test_tool_draws_and_reports_mistakes_in_one_line(monkeypatch, capsys, tmp_path):
    output = tmp_path / "p.png"
    run_tool(monkeypatch, "--output", output, "--dataset", "ade20k")
    assert output.read_bytes().startswith(b"\x89PNG")
    assert capsys.readouterr().out == f"35 models: {output}\n"
    with pytest.raises(SystemExit) as stop:
        run_tool(monkeypatch, "--output", output, "--rows", "absent.json")
    assert stop.value.code == 2
    assert capsys.readouterr().err == "error: The file of rows absent.json does not exist.\n"


def test_rows_of_several_datasets_are_no_matter_of_one_picture(monkeypatch, capsys, tmp_path):
    with pytest.raises(SystemExit) as stop:
        run_tool(monkeypatch, "--output", tmp_path / "p.png")
    assert stop.value.code == 2
    message = r"error: `--dataset` must be one of \['ade20k', 'cityscapes', .*\] for these rows"
    assert re.match(message, capsys.readouterr().err)
