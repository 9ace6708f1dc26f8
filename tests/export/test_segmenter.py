"""``OnnxSegmenter``: images of any size through an exported file, in each runtime."""

import dataclasses
import sys

import numpy as np
import pytest
import torch

from offseg_d2.export.description import KEY
from offseg_d2.export.sessions import RUNTIMES
from offseg_d2.inference.onnx import OnnxSegmenter
from tests.common import assert_close
from tests.export.tiny import picture, prepared, sample

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

ROUNDING = {"tolerance": 1e-4, "reason": "the runtimes sum in other orders"}
WINDOW = {"mode": "slide", "crop_size": (64, 64), "stride": (40, 48), "test_scale": (140, 100)}


@pytest.fixture(params=RUNTIMES)
def runtime(request) -> str:
    pytest.importorskip(request.param)
    return request.param


@torch.no_grad()
def test_scores_of_any_size_are_those_of_the_model(dynamic_onnx, runtime):
    model, path, _ = dynamic_onnx
    segmenter = OnnxSegmenter(str(path), runtime=runtime, threads=1)
    image = picture(64, 96)
    assert_close(segmenter(image), model([sample(image)])[0]["sem_seg"], **ROUNDING)
    # The file takes multiples of 32 only: what the model does if it has to pad so.
    padding, _, _ = prepared("convs", "TEST.SEM_SEG.SIZE_DIVISIBILITY", 32, output="logits")
    padding.load_state_dict(model.state_dict())
    image = picture(64, 90)
    scores = segmenter(image)
    assert_close(scores, padding([sample(image)])[0]["sem_seg"], **ROUNDING)
    assert np.array_equal(segmenter.label_map(image), scores.argmax(0).numpy())
    assert segmenter(picture(129, 181)).shape == (5, 129, 181)
    assert segmenter.label_map(picture(20, 9)).shape == (20, 9)


def test_label_maps_of_a_fixed_batch_are_those_of_the_model(fixed_onnx, runtime):
    model, path, _ = fixed_onnx
    segmenter = OnnxSegmenter(str(path), runtime=runtime)
    image = picture(70, 90)
    expected = model.predict_label_maps([sample(image)])[0]["sem_seg"].numpy()
    assert np.mean(segmenter.label_map(image) == expected) > 0.9999
    labels = segmenter.label_map(np.kron(image, np.ones((2, 2, 1), dtype=np.uint8)))
    assert labels.shape == (140, 180)
    assert np.mean(labels[::2, ::2] == expected) > 0.98
    with pytest.raises(ValueError, match="must be 'logits' to give scores, but is 'labels'"):
        segmenter(image)


@torch.no_grad()
def test_windows_slide_as_in_the_model(dynamic_onnx):
    model, path, _ = dynamic_onnx
    segmenter = OnnxSegmenter(str(path))
    segmenter.description = dataclasses.replace(segmenter.description, **WINDOW)
    slides, _, _ = prepared(
        "convs",
        *("TEST.SEM_SEG.MODE", "slide", "TEST.SEM_SEG.CROP_SIZE", [64, 64]),
        *("TEST.SEM_SEG.STRIDE", [40, 48]),
        output="logits",
    )
    slides.load_state_dict(model.state_dict())
    image = picture(100, 140)
    expected = slides([sample(image)])[0]["sem_seg"]
    assert_close(segmenter(image), expected, **ROUNDING)
    assert (expected - model([sample(image)])[0]["sem_seg"]).abs().max() > 1e-3
    assert len(torch.cat(segmenter.network_inputs(image))) == 6


@pytest.mark.parametrize(
    ("file", "changes", "sizes", "runs"),
    [
        ("dynamic_onnx", {}, [(64, 90), (40, 90)], (4, 2)),
        ("fixed_onnx", {}, [(64, 90), (40, 90)], (4, 3)),  # a batch of two
        ("dynamic_onnx", WINDOW, [(100, 140), (140, 100)], (24, 24)),  # one by one
    ],
)
def test_images_of_one_size_share_a_batch(file, changes, sizes, runs, request):
    segmenter = OnnxSegmenter(str(request.getfixturevalue(file)[1]))
    segmenter.description = dataclasses.replace(segmenter.description, **changes)
    first, other = (picture(*size) for size in sizes)
    images = [first, other, first[::-1].copy(), first]
    run, batches = segmenter.session.run, []
    segmenter.session = dataclasses.replace(
        segmenter.session, run=lambda x: batches.append(len(x)) or run(x)
    )
    one_by_one = [segmenter.label_map(image) for image in images]
    alone = len(batches)
    together = segmenter.label_maps(images)
    assert (alone, len(batches) - alone) == runs
    assert [labels.shape for labels in together] == [image.shape[:2] for image in images]
    for labels, expected in zip(together, one_by_one, strict=True):
        assert np.mean(labels == expected) > 0.999
    assert segmenter.label_maps([]) == []


@pytest.mark.parametrize("kind", ["text", "undescribed", "absent"])
def test_other_files_are_refused(kind, tmp_path, fixed_onnx, runtime):
    path = tmp_path / "other.onnx"
    if kind == "text":
        path.write_bytes(b"no model")
    if kind == "undescribed":
        model = onnx.load(fixed_onnx[1])
        assert model.metadata_props[0].key == KEY
        del model.metadata_props[:]
        path.write_bytes(model.SerializeToString())
    error, message = {
        "text": (ValueError, r"other\.onnx` must be an ONNX model"),
        "undescribed": (ValueError, r"other\.onnx` must be a model by `offseg export`"),
        "absent": (OSError, "other"),
    }[kind]
    with pytest.raises(error, match=message):
        OnnxSegmenter(str(path), runtime=runtime)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_missing_runtime_is_one_sentence(runtime, fixed_onnx, monkeypatch):
    monkeypatch.setitem(sys.modules, runtime, None)
    with pytest.raises(OSError, match=rf"pip install 'offseg_d2\[{RUNTIMES[runtime]}\]'"):
        OnnxSegmenter(str(fixed_onnx[1]), runtime=runtime)
    with pytest.raises(ValueError, match=r"`runtime` must be one of \['onnxruntime', 'openvino'\]"):
        OnnxSegmenter(str(fixed_onnx[1]), runtime="other")
