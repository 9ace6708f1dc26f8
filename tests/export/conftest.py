"""Exported files that several tests use; each export takes seconds."""

import logging
from pathlib import Path

import pytest
from detectron2.utils.logger import setup_logger

from offseg_d2.export import export_onnx
from tests.export.tiny import prepared


@pytest.fixture(scope="session")
def dynamic_onnx(tmp_path_factory):
    """A model for any size and batch, logits: the model, its file and the comparison."""
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    path: Path = tmp_path_factory.mktemp("onnx") / "dynamic.onnx"
    model, graph, description = prepared("convs", output="logits")
    return model, path, export_onnx(graph, description, str(path))


@pytest.fixture(scope="session")
def fixed_onnx(tmp_path_factory):
    """A model for two images of 70 x 90 bytes, label maps: the model, its file, the comparison."""
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    path: Path = tmp_path_factory.mktemp("onnx") / "fixed.onnx"
    options = {"input_type": "uint8", "size": (70, 90), "batch": 2}
    model, graph, description = prepared("convs", **options)
    return model, path, export_onnx(graph, description, str(path))


@pytest.fixture
def loggers():
    """Leaves the loggers as they were; the scripts set them up for their process."""
    names = ("fvcore", "detectron2", "offseg_d2")
    before = {name: list(logging.getLogger(name).handlers) for name in names}
    setup_logger.cache_clear()
    yield
    setup_logger.cache_clear()
    for name in names:
        logging.getLogger(name).handlers = before[name]
        logging.getLogger(name).propagate = True
