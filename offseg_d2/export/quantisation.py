"""Int8 ONNX files: static quantisation by onnxruntime.

Weights of convolutions become int8, one scale per output channel; activations become uint8. The
loss of accuracy comes from the backbone: with int8 in the decoder alone the score stays the same.
"""

import dataclasses
import logging
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from detectron2.data import DatasetCatalog
from detectron2.utils.file_io import PathManager
from torch import Tensor

from offseg_d2.data import ensure_registered, read_image
from offseg_d2.export.check import INT8, Comparison, compare
from offseg_d2.export.description import KEY, ModelDescription
from offseg_d2.export.onnx_file import describe_model
from offseg_d2.export.sessions import open_session, require
from offseg_d2.utils.io import write_atomically


def calibration_images(
    dataset: str, count: int, read: Callable[[str], np.ndarray] = read_image
) -> Iterator[np.ndarray]:
    """``count`` images, evenly spread over a dataset.

    Args:
        dataset: registered name, such as "camvid_train".
        count: number of images; all if the dataset has fewer.
        read: reads an image file, (H, W, 3) uint8 BGR.

    Yields:
        (H, W, 3) uint8 BGR.

    Raises:
        ValueError: if ``count`` is below 1 or the dataset is unknown.
    """
    if count < 1:
        raise ValueError(f"`--calibration-images` must be at least 1, but is {count}.")
    ensure_registered([dataset])
    samples = DatasetCatalog.get(dataset)
    step = max(len(samples) / count, 1)
    for i in range(min(count, len(samples))):
        yield read(samples[int(i * step)]["file_name"])


def quantise(float_path: str, path: str, inputs: Sequence[Tensor]) -> Comparison:
    """Write the int8 form of an ONNX file.

    Args:
        float_path: a local file by :func:`offseg_d2.export.export_onnx`.
        path: of the int8 file; appears complete or not at all.
        inputs: calibration images as the network sees them, batches (B, 3, H, W).

    Returns:
        how far the int8 file is from the float one on a few of the calibration images.

    Raises:
        ExportMismatchError: if most labels differ; nothing is written then.
        OSError: if a package is not installed or a file cannot be written.
    """
    onnx = require("onnx")
    with PathManager.open(float_path, "rb") as file:
        content = file.read()
    original = open_session(content, float_path)
    description = ModelDescription.from_json(original.metadata[KEY], float_path)
    model = onnx.load_from_string(content)
    _unshare_parameters(model)
    with tempfile.TemporaryDirectory() as folder:
        target = os.path.join(folder, "int8.onnx")
        _quantise(model, target, inputs)
        model = onnx.load(target)
    quantised = open_session(model.SerializeToString(), path)
    step = max(len(inputs) // 4, 1)
    comparison = compare(original.run, quantised.run, inputs[::step], INT8)
    comparison.check(path)
    description = dataclasses.replace(description, precision="int8")
    describe_model(model, comparison.recorded_in(description))
    write_atomically(path, model.SerializeToString())
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
        for index, name in list(enumerate(node.input))[1:]:
            if name in used and name in initializers:
                copy = model.graph.initializer.add()
                copy.CopyFrom(initializers[name])
                copy.name = node.input[index] = f"{name}_of_{node.output[0]}"
            used.add(name)


def _quantise(source: Any, target: str, inputs: Sequence[Tensor]) -> None:
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
            # Pairs of QuantizeLinear and DequantizeLinear around float operators, which onnxruntime
            # fuses into integer ones.
            quant_format=quantization.QuantFormat.QDQ,
            # The rest (norms of images, softmax, offsets, sampling, the classifier's products)
            # stays float: it is where rounding hurts, and most of it has no integer form.
            op_types_to_quantize=["Conv"],
            per_channel=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            calibrate_method=quantization.CalibrationMethod.MinMax,
            # A moving average of the smallest and largest values: a single extreme would make all
            # others coarse. On validation frames of CamVid, MobileNetV2-OffSeg loses less so than
            # with the extremes (on test frames as much), and more with ranges around zero or with
            # depthwise convolutions left in float32.
            extra_options={"CalibMovingAverage": True},
        )
    finally:
        logging.disable(logging.NOTSET)
