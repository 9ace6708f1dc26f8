"""Int8 ONNX files: static quantisation by onnxruntime.

Weights of convolutions become int8, one scale per output channel; activations uint8. The range of
an activation is a moving average of the smallest and largest values seen on calibration images, as
a single extreme value would make all others coarse. On validation frames of CamVid,
MobileNetV2-OffSeg loses less that way than with the extremes themselves (on test frames it loses as
much), and more with ranges around zero or with depthwise convolutions left in float32. What is lost
is lost in the backbone: with int8 in the decoder alone the score stays the same.

In the file stand pairs of QuantizeLinear and DequantizeLinear around float operators (QDQ), which
onnxruntime fuses into integer ones. What is not a convolution (norms of images, softmax, offsets,
sampling, the classifier's products) stays float: it is where rounding hurts, and most of it has no
integer form.
"""

import dataclasses
import logging
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from detectron2.data import DatasetCatalog
from detectron2.utils.file_io import PathManager
from torch import Tensor

from offseg_d2.data import ensure_registered, read_image
from offseg_d2.export.check import Comparison, ExportMismatchError, compare
from offseg_d2.export.onnx_file import describe_model, write_model
from offseg_d2.export.requirements import require
from offseg_d2.export.runtime import OnnxSegmenter

OPERATORS = ("Conv",)
# Parts of the names of weights whose convolutions stay float: FreqFusion's kernels and positions.
# A precaution that costs little: on CamVid MobileNetV2-OffSeg is as accurate without it.
SENSITIVE = (".low_pass_encoder.", ".high_pass_encoder.", ".sampler.")
MIN_AGREEMENT = 0.8  # share of pixels; a file below it is broken, not merely coarse


def calibration_inputs(segmenter: OnnxSegmenter, dataset: str, count: int) -> list[Tensor]:
    """What the network sees of ``count`` images, evenly spread over a dataset.

    Args:
        segmenter: the float model.
        dataset: registered name, such as "camvid_train".
        count: number of images; all if the dataset has fewer.

    Returns:
        batches (B, 3, H, W), windows of images among them.

    Raises:
        ValueError: if ``count`` is below 1 or the dataset is unknown.
    """
    if count < 1:
        raise ValueError(f"`--calibration-images` must be at least 1, but is {count}.")
    ensure_registered([dataset])
    records = DatasetCatalog.get(dataset)
    step = max(len(records) / count, 1)
    chosen = [records[int(i * step)] for i in range(min(count, len(records)))]
    return [
        batch
        for record in chosen
        for batch in segmenter.network_inputs(read_image(record["file_name"]))
    ]


def quantise(
    float_path: str,
    path: str,
    inputs: Sequence[Tensor],
    *,
    excluded: Iterable[str] = SENSITIVE,
) -> Comparison:
    """Write the int8 form of an ONNX file.

    Args:
        float_path: a local file by :func:`offseg_d2.export.export_onnx`.
        path: of the int8 file; appears complete or not at all.
        inputs: calibration images as the network sees them.
        excluded: parts of the names of weights whose convolutions stay float.

    Returns:
        how far the int8 file is from the float one on a few of the calibration images.

    Raises:
        ExportMismatchError: if most labels differ; nothing is written then.
        OSError: if a package is not installed or a file cannot be written.
    """
    onnx = require("onnx")
    segmenter = OnnxSegmenter(float_path)
    with PathManager.open(float_path, "rb") as file:
        model = onnx.load(file)
    _unshare_parameters(model)
    parts = tuple(excluded)
    floats = [
        node.name
        for node in model.graph.node
        if node.op_type == "Conv" and any(part in node.input[1] for part in parts)
    ]
    with tempfile.TemporaryDirectory() as folder:
        target = os.path.join(folder, "int8.onnx")
        _quantise(model, target, inputs, floats)
        model = onnx.load(target)
    session = require("onnxruntime").InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    step = max(len(inputs) // 4, 1)
    comparison = compare(_runner(segmenter.session), _runner(session), list(inputs[::step]))
    if comparison.label_agreement < MIN_AGREEMENT:
        raise ExportMismatchError(f"`{path}` is not written, as it differs: {comparison}.")
    description = dataclasses.replace(segmenter.description, precision="int8")
    describe_model(model, comparison.recorded_in(description))
    write_model(model.SerializeToString(), path)
    return comparison


def _unshare_parameters(model: Any) -> None:
    """Give each convolution weights and biases of its own.

    The exporter writes equal ones, such as zero biases, once; but their scales are those of the
    convolution, and the quantiser would define one name twice.
    """
    initializers = {tensor.name: tensor for tensor in model.graph.initializer}
    used: set[str] = set()
    for node in model.graph.node:
        if node.op_type != "Conv":
            continue
        for place, name in list(enumerate(node.input))[1:]:
            if name in used and name in initializers:
                copy = model.graph.initializer.add()
                copy.CopyFrom(initializers[name])
                copy.name = node.input[place] = f"{name}_of_{node.output[0]}"
            used.add(name)


def _quantise(source: Any, target: str, inputs: Sequence[Tensor], excluded: list[str]) -> None:
    quantization = require("onnxruntime.quantization")

    class Reader(quantization.CalibrationDataReader):
        def __init__(self) -> None:
            self.batches: Iterator[Tensor] = iter(inputs)

        def get_next(self) -> dict | None:
            batch = next(self.batches, None)
            return None if batch is None else {"image": batch.numpy()}

    logging.disable(logging.WARNING)  # advice that folding has made void
    try:
        quantization.quantize_static(
            source,
            target,
            Reader(),
            quant_format=quantization.QuantFormat.QDQ,
            op_types_to_quantize=list(OPERATORS),
            per_channel=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            nodes_to_exclude=excluded,
            calibrate_method=quantization.CalibrationMethod.MinMax,
            extra_options={"CalibMovingAverage": True},
        )
    finally:
        logging.disable(logging.NOTSET)


def _runner(session):
    """A session with one output as a function that gives scores, if any, and labels."""

    def run(images: Tensor) -> tuple[Tensor, Tensor]:
        output = torch.from_numpy(session.run(None, {"image": images.numpy()})[0])
        if output.is_floating_point():
            return output, output.argmax(dim=1)
        return torch.zeros(1), output

    return run
