"""``torch.export`` archives, loaded back, against the model."""

import zipfile

import pytest
import torch

import offseg_d2.export.torch_program
from offseg_d2.export import (
    Comparison,
    ExportMismatchError,
    export_torch,
    load_torch,
    sample_images,
)
from tests.common import assert_close
from tests.export.tiny import prepared


@torch.no_grad()
def test_a_loaded_archive_is_the_model_at_other_sizes(tmp_path):
    path = tmp_path / "model.pt2"
    model, graph, description = prepared("convs", output="logits")
    comparison = export_torch(graph, description, str(path))
    program, loaded = load_torch(str(path))
    assert loaded.classes == description.classes
    assert loaded.label_agreement == comparison.label_agreement == 1.0
    for batch, size in ((1, (64, 160)), (3, (96, 64))):
        images = sample_images(batch, size, torch.float32, seed=7)
        expected = torch.stack([x["sem_seg"] for x in model([{"image": i} for i in images])])
        assert_close(program(images), expected)


def test_an_archive_that_disagrees_is_not_written(tmp_path, monkeypatch):
    bad = Comparison(max_difference=1.0, max_score=1.0, label_agreement=0.5, images=1)
    monkeypatch.setattr(offseg_d2.export.torch_program, "compare", lambda *_: bad)
    _, graph, description = prepared("convs", size=(64, 64), batch=1)
    with pytest.raises(ExportMismatchError, match=r"model\.pt2` is not written, as it differs"):
        export_torch(graph, description, str(tmp_path / "model.pt2"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["text", "zip"])
def test_other_archives_are_refused_unopened(kind, tmp_path, monkeypatch):
    path = tmp_path / "other.pt2"
    path.write_bytes(b"no archive")
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data/sample_inputs/model.pt", b"what would run")
    monkeypatch.setattr(torch.export, "load", lambda *_: pytest.fail("it was loaded"))
    with pytest.raises(ValueError, match=r"other\.pt2` must be an archive by tools/export_model"):
        load_torch(str(path))
