"""The forms of the training step that are timed do the same work on the same weights."""

import json
from pathlib import Path

import pytest
import training_step
from torch.testing import assert_close

ROOT = Path(__file__).resolve().parents[2]
CONFIG = str(ROOT / "configs/base/models/segformer_b0.yaml")


@pytest.fixture(scope="module")
def forms():
    model = training_step.build(CONFIG)
    return {form: training_step.in_form(model, form) for form in training_step.FORMS}


def test_all_forms_have_the_same_loss_and_gradients(forms):
    samples = training_step.make_batch(batch=2, size=64)
    losses = {name: training_step.step(model, samples)[1] for name, model in forms.items()}
    assert losses["ours"] == pytest.approx(losses["baseline"], rel=1e-4)
    assert losses["frugal"] == pytest.approx(losses["ours"], rel=1e-6)
    pairs = zip(forms["ours"].parameters(), forms["frugal"].parameters(), strict=True)
    for a, b in pairs:
        assert_close(b.grad, a.grad, rtol=1e-4, atol=1e-6)


def test_blocks_are_computed_again_in_the_frugal_form_alone(forms):
    kinds = {
        name: {type(m).__name__ for m in model.backbone.modules()} for name, model in forms.items()
    }
    again = {
        name: any(k.startswith("Checkpointed") for k in found) for name, found in kinds.items()
    }
    assert again == {"baseline": False, "ours": False, "frugal": True}


def test_ratios_are_of_the_baseline_over_ours_for_time_and_the_reverse_for_memory():
    base = {"seconds": 4.0, "peak_mb": 1100, "libraries_mb": 100}
    ours = {"seconds": 1.6, "peak_mb": 600, "libraries_mb": 120}
    assert training_step.compare(base, ours) == {
        "times_faster": 2.5,
        "memory_ratio": 0.545,
        "memory_ratio_beyond_libraries": 0.48,
    }


@pytest.mark.slow
def test_script_measures_every_form_and_adds_the_row(monkeypatch, tmp_path):
    output = tmp_path / "steps.json"
    options = [
        "--size",
        "64",
        "--rounds",
        "1",
        "--threads",
        "1",
        "--processes",
        "1",
        "--output",
        str(output),
    ]
    monkeypatch.setattr("sys.argv", ["training_step.py", "--config-file", CONFIG, *options])
    training_step.main()
    (row,) = json.loads(output.read_text())["rows"]
    assert row["model"] == "segformer_b0"
    for form in training_step.FORMS:
        assert row[form]["seconds"] > 0
        assert row[form]["peak_mb"] >= row[form]["libraries_mb"] > 0
