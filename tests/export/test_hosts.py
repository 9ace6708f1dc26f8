"""Every host through both exporters, at a fixed and at any size."""

import pytest

from offseg_d2.export import export_onnx, export_torch
from tests.export.tiny import prepared


@pytest.mark.slow
@pytest.mark.parametrize("export", [export_onnx, export_torch])
@pytest.mark.parametrize(("size", "output"), [(None, "logits"), ((70, 90), "labels")])
@pytest.mark.parametrize(
    "name", ["offseg", "segformer", "segnext", "mobilenet_v2", "mask_query", "swin"]
)
def test_every_host_is_exported(name, size, output, export, tmp_path):
    if name == "swin" and size is None:
        pytest.skip("Swin is exported for one size and batch only")
    if export is export_onnx:
        pytest.importorskip("onnxruntime")
        pytest.importorskip("onnxscript")
    batch = 1 if name == "swin" else None
    _, graph, description = prepared(name, size=size, batch=batch, output=output)
    assert export(graph, description, str(tmp_path / "model")).is_close
