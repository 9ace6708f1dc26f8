"""Exported files that several tests use; each export takes seconds."""

from pathlib import Path

import pytest

from offseg_d2.export import export_onnx, export_torch
from tests.export.tiny import prepared


def written(factory, export, **options):
    """A model of convolutions, its exported file and the comparison."""
    path: Path = factory.mktemp("exported") / "model"
    model, graph, description = prepared("convs", **options)
    return model, path, export(graph, description, str(path))


@pytest.fixture(scope="session")
def dynamic_torch(tmp_path_factory):
    """Exported file for any size and batch, with logits."""
    return written(tmp_path_factory, export_torch, output="logits")


@pytest.fixture(scope="session")
def dynamic_onnx(tmp_path_factory):
    """Exported file for any size and batch, with logits."""
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    return written(tmp_path_factory, export_onnx, output="logits")


@pytest.fixture(scope="session")
def fixed_onnx(tmp_path_factory):
    """Exported file for two images of 70 x 90 bytes, with label maps."""
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    return written(tmp_path_factory, export_onnx, input_type="uint8", size=(70, 90), batch=2)
