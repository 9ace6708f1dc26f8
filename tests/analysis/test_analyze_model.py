"""The tool that analyses models, from the command line to JSON, and its tasks."""

import json
import re
import runpy
import sys

import pytest
import torch

from offseg_d2.analysis import InputSpec, Network, Subject, analyze, measure_memory
from offseg_d2.analysis.memory import run_step
from offseg_d2.analysis.profiling import REST, profile_parts
from tests.common import MODEL_CONFIGS, ROOT, SMALL_OFFSEG, build_offseg, offseg_config

CONFIG = str(MODEL_CONFIGS / "offseg_t.yaml")
OPTS = [str(value) for value in SMALL_OFFSEG]
FAST = ["--size", "64", "96", "--seconds", "0.01", "--threads", "1"]


def run_tool(monkeypatch, *arguments):
    """The tool in this process: a new one would spend its time on importing."""
    monkeypatch.setattr(sys, "argv", ["analyze_model.py", *arguments])
    runpy.run_path(str(ROOT / "tools" / "analyze_model.py"), run_name="__main__")


def test_tasks_reach_screen_and_json(monkeypatch, capfd, tmp_path):
    output = tmp_path / "analysis.json"
    tasks = ["parameters", "macs", "fvcore", "latency", "profile"]
    arguments = ["--config-file", CONFIG, *FAST, "--output", str(output)]
    run_tool(monkeypatch, *arguments, "--tasks", *tasks, *OPTS)
    content = json.loads(output.read_text())
    assert list(content) == ["setting", *tasks]
    assert content["setting"]["machine"]["torch"] == torch.__version__
    assert content["setting"]["size"] == [64, 96]
    model = build_offseg(*SMALL_OFFSEG)
    total, *parts = content["parameters"]
    assert total["parameters"] == sum(p.numel() for p in model.parameters())
    assert total["parameters"] == sum(part["parameters"] for part in parts)
    whole, *parts = content["macs"]
    assert whole["all"] == pytest.approx(sum(part["all"] for part in parts), abs=0.002)
    assert 0 < whole["convolution"] < whole["as in paper"] < whole["all"]
    (convolutions,) = (row["G"] for row in content["fvcore"] if row["operator"] == "conv")
    assert convolutions == pytest.approx(whole["convolution"], rel=0.01)
    assert [row["to"] for row in content["latency"]] == ["logits", "label maps"]
    assert all(row["p10_ms"] <= row["median_ms"] <= row["p90_ms"] for row in content["latency"])
    assert content["latency"][0]["GFLOP/s"] > 0
    by_part = [row for row in content["profile"] if row["by"] == "part"]
    assert sum(row["share, %"] for row in by_part) == pytest.approx(100, abs=0.1)
    assert len(by_part) < len(content["profile"])
    screen = capfd.readouterr().out
    for word in ("total", "of GEMM peak", "normalisation", "sem_seg_head.classifier"):
        assert word in screen


def test_training_needs_more_memory_than_inference():
    inputs = InputSpec(256, 256)  # large enough for what libraries load by the way not to count
    sizes = {}
    for step in ("inference", "training"):
        sizes[step] = run_step(offseg_config(*SMALL_OFFSEG), step, inputs)
        assert 0 < sizes[step]["before_mb"] <= sizes[step]["peak_mb"]
    assert sizes["training"]["step_mb"] > 1.5 * sizes["inference"]["step_mb"], sizes


@pytest.mark.slow
def test_memory_is_measured_in_processes_of_its_own(monkeypatch, capfd):
    run_tool(monkeypatch, "--config-file", CONFIG, *FAST, "--tasks", "memory", *OPTS)
    pattern = r"^offseg_t +model +(\w+) +([\d,]+) +([\d,]+) +([\d,]+)$"
    rows = re.findall(pattern, capfd.readouterr().out, re.MULTILINE)
    sizes = {step: [int(size.replace(",", "")) for size in row] for step, *row in rows}
    assert set(sizes) == {"inference", "training"}
    assert all(before + step == pytest.approx(peak, abs=1) for before, peak, step in sizes.values())
    assert sizes["training"][1] > sizes["inference"][1] > sizes["inference"][2] > 0


def test_unknown_step_is_refused():
    with pytest.raises(ValueError, match=r"`step` must be one of .*, but is 'sleeping'"):
        measure_memory(offseg_config(*SMALL_OFFSEG), "sleeping", InputSpec())


def test_several_models_are_compared_in_one_table(monkeypatch, capsys):
    other = str(MODEL_CONFIGS / "segformer_b0.yaml")
    run_tool(monkeypatch, "--config-file", CONFIG, "--config-file", other, "--tasks", "parameters")
    table = capsys.readouterr().out
    assert re.search(r"offseg_t +total +6,1\d\d,\d+\n", table)
    assert re.search(r"segformer_b0 +total +3,8\d\d,\d+\n", table)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tasks", "macs", "speed"], r"`--tasks` must be among \['parameters', .*'speed'\]"),
        (["--config-file", "absent.yaml"], "The configuration file absent.yaml does not exist"),
        (["--size", "0", "64"], "`height` must be positive, but is 0"),
        (["--threads", "0"], "`--threads` must be positive, but is 0"),
        (["--depth", "0"], "`--depth` must be positive, but is 0"),
        (["--tasks", "macs", "MODEL.NOTHING", "1"], "`MODEL.NOTHING` on the command line"),
        (["--tasks", "macs", "MODEL.WEIGHTS", "absent.pth"], "absent.pth"),
        (["--device", "cuda"], "`MODEL.DEVICE` must be 'cpu' without CUDA, but is 'cuda'"),
    ],
)
def test_mistakes_are_reported_in_one_line(arguments, message, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as stop:
        run_tool(monkeypatch, "--config-file", CONFIG, *arguments)
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert re.search(message, line)


def test_deployed_form_is_counted_and_timed_beside_the_model():
    pytest.importorskip("offseg_d2.deploy")
    config = offseg_config(*SMALL_OFFSEG)
    subject = Subject("small", config, InputSpec(64, 64), deploy=True, seconds=0.01)
    result = analyze([subject], ["macs", "latency"])
    totals = {row["form"]: row["all"] for row in result["macs"] if row["part"] == "total"}
    assert totals["deployed"] == pytest.approx(totals["model"], rel=0.2)
    assert [row["form"] for row in result["latency"]] == ["model"] * 2 + ["deployed"] * 2


@pytest.mark.slow
def test_half_precision_is_measured_as_well():
    config = offseg_config(*SMALL_OFFSEG)
    subject = Subject("small", config, InputSpec(64, 64), dtype="bfloat16", seconds=0.01)
    assert all(row["median_ms"] > 0 for row in analyze([subject], ["latency"])["latency"])


def test_times_of_the_parts_leave_no_hooks_and_name_the_rest():
    model = build_offseg(*SMALL_OFFSEG)
    samples = InputSpec(64, 64).samples(5)
    parts = profile_parts(model, lambda: model.predict_label_maps(samples), repeats=1)
    assert {REST, "backbone", "sem_seg_head.pixel_decoder"} < set(parts)
    assert all(seconds > 0 for seconds in parts.values())
    assert not any(module._forward_hooks for module in model.modules())


def test_images_have_the_size_that_the_network_needs():
    model = build_offseg(*SMALL_OFFSEG)
    assert InputSpec(65, 20, 2).images(model).shape == (2, 3, 96, 32)
    assert Network(model)(InputSpec(65, 20).images(model)).shape == (1, 5, 24, 8)


def test_mask_query_models_are_counted_and_trained():
    config = offseg_config(
        *("MODEL.EFFICIENTFORMER_V2.VARIANT", "s0"),
        *("MODEL.MASK_FORMER.DEC_LAYERS", 1),
        *("MODEL.MASK_FORMER.ENC_LAYERS", 1),
        model="mask2former_offseg_t",
    )
    subject = Subject("masks", config, InputSpec(64, 64))
    parts = {row["part"] for row in analyze([subject], ["macs"])["macs"]} - {"total"}
    assert parts == {"backbone", "sem_seg_head.pixel_decoder", "sem_seg_head.predictor"}
    losses = subject.model.train()(subject.inputs.samples(config.MODEL.SEM_SEG_HEAD.NUM_CLASSES))
    assert all(torch.isfinite(loss) for loss in losses.values())
