"""tools/export_model.py, and tools/demo.py with its files."""

import ast
import importlib.util
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from detectron2.data import MetadataCatalog
from detectron2.modeling import build_model
from PIL import Image

from offseg_d2.config import load_config
from offseg_d2.data.datasets import ShapesParams, register_shapes
from offseg_d2.export import RUNTIMES, export_onnx, load_torch
from offseg_d2.inference.onnx import OnnxSegmenter
from offseg_d2.inference.predictor import Predictor
from tests.common import ROOT, assert_close, seed_all, spread_weights
from tests.docs.pages import blocks
from tests.export.tiny import picture, prepared

CONFIG = ROOT / "configs/shapes/offseg_t_offset_demo.yaml"
SMALL = (
    *("MODEL.BACKBONE.NAME", "TinyConvs", "MODEL.DEVICE", "cpu"),
    *("MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME", "SegFormerPixelDecoder"),
    *("MODEL.SEM_SEG_HEAD.CONVS_DIM", 32, "INPUT.RESIZE.SCALE_TEST", [96, 64]),
)


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    """A checkpoint of the model of ``SMALL``."""
    path = tmp_path_factory.mktemp("weights") / "model.pth"
    seed_all()
    model = spread_weights(build_model(load_config(str(CONFIG), SMALL)))
    torch.save({"model": model.state_dict()}, path)
    return path


@pytest.fixture
def call(monkeypatch, capsys, loggers):
    """Calls a script of tools/; returns exit status, output and error text."""

    def run(script: str, *arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", [script, *map(str, arguments)])
        status = 0
        try:
            runpy.run_path(str(ROOT / "tools" / script), run_name="__main__")
        except SystemExit as stop:
            status = stop.code or 0
        printed = capsys.readouterr()
        return status, printed.out, printed.err

    return run


def test_an_exported_file_draws_what_the_checkpoint_draws(call, weights, tmp_path):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    images, file = tmp_path / "images", tmp_path / "model.onnx"
    images.mkdir()
    cv2.imwrite(str(images / "one.png"), picture(64, 96))
    # A window larger than the image: the model sees the whole image as the file does.
    opts = ("--opts", *SMALL, "MODEL.WEIGHTS", weights, "TEST.SEM_SEG.MODE", "slide")
    status, out, _ = call(
        *("export_model.py", "--config-file", CONFIG, "--output", file),
        *("--size", 64, 96, "--batch", 1, *opts),
    )
    assert status == 0 and "The file gives label maps of whole images" in out
    assert "against PyTorch: largest difference" in out and "same labels at 100.0000 %" in out
    common = ("--input", images, "--side-by-side", "--output")
    assert call("demo.py", "--config-file", CONFIG, *common, tmp_path / "of_model", *opts)[0] == 0
    expected = cv2.imread(str(tmp_path / "of_model/one.png"))
    for runtime in filter(importlib.util.find_spec, RUNTIMES):
        folder = tmp_path / runtime
        assert call("demo.py", "--onnx", file, "--runtime", runtime, *common, folder)[0] == 0
        assert np.array_equal(cv2.imread(str(folder / "one.png")), expected)
    assert "shapes_val" not in OnnxSegmenter(str(file)).metadata.name
    labels = OnnxSegmenter(str(file)).label_map(picture(64, 96))
    assert run_example(file, images / "one.png", tmp_path) == areas(labels)


def areas(labels: np.ndarray) -> dict[str, int]:
    """Pixels of each class of the drawn scenes that occurs."""
    names = MetadataCatalog.get("shapes_val").stuff_classes
    return {names[index]: int((labels == index).sum()) for index in np.unique(labels)}


def run_example(file: Path, image: Path, folder: Path) -> dict[str, int]:
    """Output of the page's example, which must not import PyTorch."""
    _, example, _ = blocks(ROOT / "docs/EXPORT.md", ("python",))
    example += "\nimport sys\nassert not {'torch', 'detectron2', 'offseg_d2'} & set(sys.modules)"
    shutil.copy(file, folder / "fixed.onnx")
    Image.open(image).save(folder / "street.jpg", "PNG")  # as PNG, so that no pixel changes
    ran = subprocess.run(
        [sys.executable, "-c", example], cwd=folder, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    return ast.literal_eval(ran.stdout)


def test_a_quantised_file_is_written_and_draws(call, weights, tmp_path, monkeypatch):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    register_shapes("of_tool", ShapesParams(num_train=3, num_val=1, size=(64, 96)))
    file = tmp_path / "int8.onnx"
    status, out, _ = call(
        *("export_model.py", "--config-file", CONFIG, "--output", file, "--format", "onnx_int8"),
        *("--calibration-dataset", "of_tool_train", "--calibration-images", 2),
        *("--size", 64, 96, "--batch", 1, "--opts", *SMALL, "MODEL.WEIGHTS", weights),
    )
    assert status == 0 and "int8 against float: same labels at" in out
    assert OnnxSegmenter(str(file)).description.precision == "int8"
    cv2.imwrite(str(tmp_path / "one.png"), picture(64, 96))
    arguments = ("--input", tmp_path / "one.png", "--output", tmp_path / "out")
    assert call("demo.py", "--onnx", file, *arguments)[0] == 0
    assert cv2.imread(str(tmp_path / "out/one.png")).shape == (64, 96, 3)


@torch.no_grad()
def test_an_archive_of_the_tool_gives_the_scores_of_the_model(call, weights, tmp_path):
    file = tmp_path / "model.pt2"
    status, out, _ = call(
        *("export_model.py", "--config-file", CONFIG, "--output", file),
        *("--format", "torch_export", "--predict", "logits"),
        *("--size", 70, 90, "--batch", 1, "--opts", *SMALL, "MODEL.WEIGHTS", weights),
    )
    assert status == 0 and "same labels at 100.0000 %" in out
    program, description = load_torch(str(file))
    cfg = load_config(str(CONFIG), [*SMALL, "MODEL.WEIGHTS", str(weights)])
    image = picture(70, 90)
    planes = torch.from_numpy(np.ascontiguousarray(image[..., ::-1].transpose(2, 0, 1)))
    expected = Predictor(cfg).model([{"image": planes}])[0]["sem_seg"]
    assert description.size == (70, 90)
    assert_close(program(planes[None].float())[0], expected)


@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [
        ("export_model.py", ("--format", "onnx_int8"), "`--calibration-dataset` must be"),
        (
            "export_model.py",
            ("--calibration-dataset", "x"),
            "`--calibration-dataset` must be given",
        ),
        ("export_model.py", ("--predict", "colours"), "invalid choice"),
        ("demo.py", ("--onnx", "x", "--opts", "SEED", 1), "`--opts` must be absent with `--onnx`"),
        ("demo.py", ("--weights", "x", "--runtime", "openvino"), "`--runtime` must be absent"),
    ],
)
def test_contradicting_arguments_are_refused(call, script, arguments, message):
    common = ("--config-file", CONFIG) if script == "export_model.py" else ("--input", "x")
    status, _, err = call(script, *common, "--output", "x", *arguments)
    assert status == 2 and message in err


def test_a_file_that_is_no_model_is_one_sentence(call, tmp_path):
    pytest.importorskip("onnxruntime")
    cv2.imwrite(str(tmp_path / "one.png"), picture(8, 8))
    (tmp_path / "model.onnx").write_bytes(b"no model")
    arguments = ("--input", tmp_path / "one.png", "--output", tmp_path / "out")
    status, _, err = call("demo.py", "--onnx", tmp_path / "model.onnx", *arguments)
    assert status == 2
    assert "model.onnx` must be an ONNX model" in err and len(err.strip().splitlines()) == 1


def test_a_missing_package_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    _, graph, description = prepared("convs")
    with pytest.raises(OSError, match=r"pip install 'offseg_d2\[export\]'"):
        export_onnx(graph, description, str(tmp_path / "model.onnx"))
