"""The generated pages say what the recorded files say."""

import copy
import json
from pathlib import Path
from typing import Any

import page
import pytest
from make_page import benchmarks_page, main, make_pages, read_results

from tests.common import ROOT

RESULTS = ROOT / "benchmarks" / "results"


def label_map_result() -> dict[str, Any]:
    row = {"scores": "noise", "classes": "innermost", "agreement": 0.9999999, "ratio": 4.0}
    machine = {"date": "2001-02-03", "processor": "Abacus", "cores": 4, "threads": 1}
    rows = [{**row, "everything_ms": 812.0, "blocks_ms": 203.0}]
    return {"rows": rows, **machine, "load": [0.1, 0.2, 0.3], "torch": "9.8"}


@pytest.mark.parametrize("name", ["BENCHMARKS.md", "ACCURACY.md"])
def test_committed_page_is_what_the_recorded_files_give(name: str) -> None:
    written = (ROOT / "docs" / name).read_text(encoding="utf-8")
    assert written == make_pages(RESULTS)[name], (
        f"run `python benchmarks/make_page.py` and commit docs/{name}"
    )


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*.json")), ids=lambda path: path.stem)
def test_absent_results_have_no_section(path: Path) -> None:
    results = read_results(RESULTS)
    text = benchmarks_page(results)
    heading = f"\n## {page.SECTIONS[path.stem].title}\n"
    assert heading in text
    del results[path.stem]
    assert heading not in benchmarks_page(results)


def test_numbers_of_a_file_and_its_machine_are_on_the_page() -> None:
    text = benchmarks_page({"label_map": label_map_result()})
    assert "| noise, innermost | 812 | 203 | 4.00 | over 99.9999 % |" in text
    assert "2001-02-03; Abacus, 1 thread on 4 cores; torch 9.8; load before it 0.1" in text


def test_page_changes_with_every_number_of_a_row() -> None:
    result = label_map_result()
    before = benchmarks_page({"label_map": result})
    for key in ("everything_ms", "blocks_ms", "ratio", "agreement"):
        changed = copy.deepcopy(result)
        changed["rows"][0][key] *= 0.5
        assert benchmarks_page({"label_map": changed}) != before, key


def test_results_without_a_section_or_with_gaps_are_refused() -> None:
    with pytest.raises(ValueError, match=r"section in benchmarks/page_\*\.py, but \['unheard'\]"):
        benchmarks_page({"unheard": {}})
    result = label_map_result()
    del result["rows"][0]["ratio"]
    with pytest.raises(ValueError, match=r"`label_map\.json` must hold .* KeyError\('ratio'\)"):
        benchmarks_page({"label_map": result})


def test_command_writes_both_pages_and_names_a_broken_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "label_map.json").write_text(json.dumps(label_map_result()))
    arguments = ["make_page.py", "--results", str(tmp_path), "--output", str(tmp_path)]
    monkeypatch.setattr("sys.argv", arguments)
    assert main() == 0
    for name, text in make_pages(tmp_path).items():
        assert (tmp_path / name).read_text() == text
    (tmp_path / "label_map.json").write_text("{")
    assert main() == 1
    assert "label_map.json` must be JSON" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("value", "text"),
    [(7056, "7,056"), (203.4, "203"), (16.64, "16.6"), (4.0, "4.00"), (0.00015, "1.5e-04")],
)
def test_numbers_keep_three_digits(value: float, text: str) -> None:
    assert page.number(value) == text


def test_shares_below_one_never_read_as_all() -> None:
    assert page.percent(0.9999999, 4) == "over 99.9999 %"
    assert page.percent(1.0, 4) == "100.0000 %"
    assert page.percent(None) is None
