"""The tool that analyses models, from the command line to JSON, and its tasks."""

import json
import re
import runpy
import sys

import pytest
import torch

from offseg_d2.analysis import InputSpec, Network, Subject, analyze, measure_memory, profile_parts
from offseg_d2.analysis.memory import run_step
from offseg_d2.analysis.profiling import REST
from tests.common import MODEL_CONFIGS, ROOT, SMALL_OFFSEG, build_offseg, offseg_config

CONFIG = str(MODEL_CONFIGS / "offseg_t.yaml")
OPTS = [str(value) for value in SMALL_OFFSEG]
FAST = ["--size", "64", "96", "--seconds", "0.01", "--threads", "1"]


def run_tool(monkeypatch, *arguments):
    """The tool in this process: a new one would spend its time on importing."""
    monkeypatch.setattr(sys, "argv", ["analyze_model.py", *arguments])
    monkeypatch.setattr(sys, "path", list(sys.path))
    runpy.run_path(str(ROOT / "tools" / "analyze_model.py"), run_name="__main__")


def test_tasks_reach_screen_and_json(monkeypatch, capfd, tmp_path):
    output = tmp_path / "analysis.json"
    tasks = ["parameters", "macs", "latency", "profile"]
    arguments = ["--config-file", CONFIG, *FAST, "--authors-order", "--output", str(output)]
    run_tool(monkeypatch, *arguments, "--tasks", *tasks, *OPTS)
    content = json.loads(output.read_text())
    assert content["machine"]["torch"] == torch.__version__
    (result,) = content["models"]
    assert list(result) == ["model", *tasks]
    model = build_offseg(*SMALL_OFFSEG)
    assert result["parameters"]["total"] == sum(p.numel() for p in model.parameters())
    ours, theirs = (result["macs"]["forms"][form] for form in ("model", "authors' order"))
    assert ours["convolutions"] == theirs["convolutions"] < ours["all"] < theirs["all"]
    assert result["latency"]["input"] == [1, 3, 64, 96]
    for timed in result["latency"]["forms"].values():
        assert timed["label_map"]["p10_ms"] <= timed["label_map"]["median_ms"]
        assert timed["gflops"] > 0
    assert sum(row["share"] for row in result["profile"]["parts"]) == pytest.approx(1, abs=0.01)
    screen = capfd.readouterr().out
    for word in ("total", "of the GEMM peak", "mean and variance", "authors' order"):
        assert word in screen


def test_training_needs_more_memory_than_inference():
    inputs = InputSpec(256, 256)  # large enough for what libraries load by the way not to count
    peaks = {}
    for step in ("inference", "training"):
        peaks[step] = run_step(offseg_config(*SMALL_OFFSEG), step, inputs)
        assert 0 < peaks[step].before <= peaks[step].peak
    beyond = {step: peak.peak - peak.before for step, peak in peaks.items()}
    assert beyond["training"] > 1.5 * beyond["inference"], beyond


@pytest.mark.slow
def test_memory_is_measured_in_processes_of_its_own(monkeypatch, capfd):
    run_tool(monkeypatch, "--config-file", CONFIG, *FAST, "--tasks", "memory", *OPTS)
    rows = re.findall(r"^model, (\w+) +(\d+) +(\d+)$", capfd.readouterr().out, re.MULTILINE)
    peaks = {step: [int(size) for size in sizes] for step, *sizes in rows}
    assert set(peaks) == {"inference", "training"}
    assert peaks["training"][0] > peaks["inference"][0] > peaks["inference"][1] > 0


def test_unknown_step_is_refused():
    with pytest.raises(ValueError, match=r"`step` must be one of .*, but is 'sleeping'"):
        measure_memory(offseg_config(*SMALL_OFFSEG), "sleeping", InputSpec())


def test_several_models_are_compared_in_one_table(monkeypatch, capsys):
    other = str(MODEL_CONFIGS / "segformer_b0.yaml")
    run_tool(monkeypatch, "--config-file", CONFIG, "--config-file", other, "--tasks", "parameters")
    table = capsys.readouterr().out.split("overview\n")[1]
    assert re.search(r"offseg_t +model +6\.1\d+\n", table)
    assert re.search(r"segformer_b0 +model +3\.8\d+\n", table)


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
    ],
)
def test_mistakes_are_told_in_one_line(arguments, message, monkeypatch, capsys):
    with pytest.raises(SystemExit) as stop:
        run_tool(monkeypatch, "--config-file", CONFIG, *arguments)
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert re.search(message, line)


@pytest.mark.parametrize("device", ["cuda"])
def test_missing_device_is_told(device, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as stop:
        run_tool(monkeypatch, "--config-file", CONFIG, "--device", device)
    assert stop.value.code == 2
    assert "`MODEL.DEVICE` must be 'cpu' without CUDA, but is 'cuda'" in capsys.readouterr().err


def test_deployed_form_is_counted_and_timed_beside_the_model():
    pytest.importorskip("offseg_d2.deploy")
    subject = Subject("small", offseg_config(*SMALL_OFFSEG), InputSpec(64, 64), deploy=True)
    subject.seconds = 0.01
    result = analyze(subject, ["macs", "latency"])
    assert set(result["macs"]["forms"]) == set(result["latency"]["forms"]) == {"model", "deployed"}
    model, deployed = (result["macs"]["forms"][form] for form in ("model", "deployed"))
    assert deployed["all"] == pytest.approx(model["all"], rel=0.2)


@pytest.mark.slow
def test_half_precision_is_measured_as_well():
    subject = Subject("small", offseg_config(*SMALL_OFFSEG), InputSpec(64, 64), dtype="bfloat16")
    subject.seconds = 0.01
    assert analyze(subject, ["latency"])["latency"]["dtype"] == "bfloat16"


def test_times_of_the_parts_leave_no_hooks_and_name_the_rest():
    model = build_offseg(*SMALL_OFFSEG)
    records = InputSpec(64, 64).records(5)
    parts = profile_parts(model, lambda: model.predict_label_maps(records), repeats=1)
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
    parts = analyze(subject, ["macs"])["macs"]["forms"]["model"]["parts"]
    assert set(parts) == {"backbone", "sem_seg_head.pixel_decoder", "sem_seg_head.predictor"}
    losses = subject.model.train()(subject.inputs.records(config.MODEL.SEM_SEG_HEAD.NUM_CLASSES))
    assert all(torch.isfinite(loss) for loss in losses.values())
