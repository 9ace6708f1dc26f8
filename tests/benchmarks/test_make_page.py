"""The page of benchmarks says what the recorded files say."""

import copy
import json
from pathlib import Path
from typing import Any

import page
import pytest
from make_page import load_sections, main, make_page, read_results

from tests.common import ROOT

RESULTS = ROOT / "benchmarks" / "results"
MACHINE = {
    "date": "2001-02-03",
    "processor": "Abacus",
    "cores": 4,
    "threads": 1,
    "load": [0.1, 0.2, 0.3],
    "torch": "9.8",
}


@pytest.fixture(autouse=True, scope="module")
def _sections() -> None:
    load_sections()


def inference_row(ms: float, times: float, **names: str) -> dict[str, Any]:
    return {
        **names,
        "ms": ms,
        "p10_ms": ms - 1,
        "p90_ms": ms + 1,
        "rounds": 5,
        "times_as_fast": times,
        "label_agreement": 0.999994,
    }


def inference_result() -> dict[str, Any]:
    setting = {"size": [512, 640], "batch": 3, **MACHINE}
    forms = {
        "model": "offseg_t",
        "rows": [
            inference_row(812.0, 1.0, form="authors' order"),
            inference_row(203.0, 4.0, form="deployed"),
        ],
        "deployed_to_best_runtime": 1.37,
        **setting,
    }
    row = inference_row(77.0, 1.0, model="OffSeg-T", library="offseg_d2, deployed")
    return {"groups": [forms, {"model": "peers", "rows": [row], **setting}]}


def test_committed_page_is_what_the_recorded_files_give() -> None:
    written = (ROOT / "docs" / "BENCHMARKS.md").read_text(encoding="utf-8")
    assert written == make_page(read_results(str(RESULTS))), (
        "run `python benchmarks/make_page.py` and commit docs/BENCHMARKS.md"
    )


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*.json")), ids=lambda path: path.stem)
def test_absent_results_have_no_section(path: Path) -> None:
    results = read_results(str(RESULTS))
    heading = f"\n## {page.SECTIONS[path.stem].title}\n"
    assert heading in make_page(results)
    del results[path.stem]
    assert heading not in make_page(results)


def test_numbers_of_a_file_and_its_machine_are_on_the_page() -> None:
    text = make_page({"inference": inference_result()})
    assert "### 3 × 512×640, 1 thread" in text
    assert "offseg_t, deployed | 203 | 202 to 204 | 4.00 | 99.999 % |" in text
    assert "| offseg_t, 3 × 512×640, 1 thread | 1.37 |" in text
    assert "| OffSeg-T | offseg_d2, deployed | 77.0 |" in text
    assert "2001-02-03; Abacus, 1 thread on 4 cores; torch 9.8; load before it 0.1" in text


def test_page_changes_with_every_number_of_a_row() -> None:
    result = inference_result()
    before = make_page({"inference": result})
    for key in ("ms", "p10_ms", "p90_ms", "times_as_fast", "label_agreement"):
        changed = copy.deepcopy(result)
        changed["groups"][0]["rows"][1][key] *= 1.5
        assert make_page({"inference": changed}) != before, key


def test_results_without_a_section_or_with_gaps_are_refused() -> None:
    with pytest.raises(ValueError, match=r"section in benchmarks/page_\*\.py, but \['unheard'\]"):
        make_page({"unheard": {}})
    result = inference_result()
    del result["groups"][0]["rows"][0]["ms"]
    with pytest.raises(ValueError, match=r"`inference\.json` must hold .* KeyError\('ms'\)"):
        make_page({"inference": result})


def test_files_of_a_folder_are_one_result(tmp_path: Path) -> None:
    (tmp_path / "accuracy").mkdir()
    (tmp_path / "notes.txt").write_text("not a result")
    (tmp_path / "empty").mkdir()
    for name in ("shapes", "camvid"):
        (tmp_path / "accuracy" / f"{name}.json").write_text(json.dumps({"name": name}))
    expected = {"accuracy": {name: {"name": name} for name in ("camvid", "shapes")}}
    assert read_results(str(tmp_path)) == expected


def test_a_file_has_one_section() -> None:
    with pytest.raises(ValueError, match=r"'inference\.json' must have one section"):
        page.section("inference", "Again", order=0)(lambda result: [])


def test_command_writes_the_page_and_names_a_broken_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "inference.json").write_text(json.dumps(inference_result()))
    target = tmp_path / "PAGE.md"
    arguments = ["make_page.py", "--results", str(tmp_path), "--output", str(target)]
    monkeypatch.setattr("sys.argv", arguments)
    assert main() == 0
    assert target.read_text() == make_page({"inference": inference_result()})
    (tmp_path / "inference.json").write_text("{")
    assert main() == 1
    assert "inference.json` must be JSON" in capsys.readouterr().err


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
