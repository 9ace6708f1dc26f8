"""Models as ONNX files, checked against PyTorch before anything is written.

The exporter is that of PyTorch's ``torch.export`` (``dynamo=True``): it follows shapes as symbols,
so that a file is right for every size that it admits, while the older tracer would keep whatever a
Python integer was in the example. The price is that sizes are admitted by rule:

* fixed: one height and width, any numbers; padding to what the network needs is in the graph;
* dynamic: multiples of 32 (of more, if the model says so) from 64 on; whoever runs the file pads,
  with the mean colour, as :class:`offseg_d2.inference.onnx.OnnxSegmenter` does.

The batch is fixed or dynamic in both.
"""

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from offseg_d2.export.check import Comparison, compare, sample_images
from offseg_d2.export.description import KEY, ModelDescription
from offseg_d2.export.folding import fold
from offseg_d2.export.graph import SegmentationGraph
from offseg_d2.export.sessions import open_session, require
from offseg_d2.utils.io import write_atomically

OPSET = 18  # the oldest that the exporter writes without converting


def export_onnx(
    graph: SegmentationGraph,
    description: ModelDescription,
    path: str,
    *,
    batches: Sequence[Tensor] | None = None,
) -> Comparison:
    """Write an ONNX file, if onnxruntime computes with it what PyTorch computes.

    Args:
        graph: the model; pads inside exactly if the description has a size.
        description: becomes part of the file.
        path: of the file; appears complete or not at all.
        batches: images to compare on; by default two random ones, of two sizes where possible.

    Returns:
        how far the two are from each other.

    Raises:
        ExportMismatchError: if they disagree; nothing is written then.
        OSError: if a package is not installed or the file cannot be written.
    """
    model = build_onnx(graph, description)
    run = open_session(model.SerializeToString(), path).run
    comparison = compare(graph, run, batches or check_batches(description), graph.tolerance)
    comparison.check(path)
    keep_output(model, description.output)
    describe_model(model, comparison.recorded_in(description))
    write_atomically(path, model.SerializeToString())
    return comparison


def build_onnx(graph: SegmentationGraph, description: ModelDescription) -> Any:
    """Translate the graph: an ``onnx.ModelProto`` with the outputs "logits" and "labels"."""
    require("onnxscript")
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's remarks on itself
        program = torch.onnx.export(
            graph.eval(),
            (example_image(description),),
            dynamo=True,
            optimize=False,  # see offseg_d2.export.folding
            verbose=False,
            opset_version=OPSET,
            input_names=["image"],
            output_names=["logits", "labels"],
            dynamic_shapes=dynamic_shapes(description),
        )
    assert program is not None, "the exporter gives a program where dynamo is True"
    return fold(program.model_proto)


def example_image(description: ModelDescription) -> Tensor:
    """Images to follow through the model, of a size that no symbol is mistaken for a constant."""
    multiple = description.multiple
    size = description.size or (2 * multiple, 3 * multiple)
    return sample_images(description.batch or 2, size, input_dtype(description))


def check_batches(description: ModelDescription) -> list[Tensor]:
    """Random images: one as in the export and, where sizes may change, one of another size."""
    multiple = description.multiple
    sizes = [description.size or (2 * multiple, 3 * multiple)]
    if description.size is None:
        sizes.append((4 * multiple, 5 * multiple))
    batches = [description.batch or count for count in (1, 3)]
    pairs = [(batches[0], sizes[0]), (batches[1], sizes[-1])]
    return [
        sample_images(batch, size, input_dtype(description), seed=seed)
        for seed, (batch, size) in enumerate(pairs, start=1)
    ]


def input_dtype(description: ModelDescription) -> torch.dtype:
    return {"float32": torch.float32, "uint8": torch.uint8}[description.input_type]


def dynamic_shapes(description: ModelDescription) -> dict[str, dict] | None:
    """Axes whose length may change, for ``torch.export``."""
    axes: dict[int, object] = {}
    if description.batch is None:
        axes[0] = torch.export.Dim("batch", min=1, max=4096)
    if description.size is None:
        for axis, name in ((2, "rows"), (3, "columns")):
            axes[axis] = description.multiple * torch.export.Dim(name, min=2, max=4096)
    return {"image": axes} if axes else None


def keep_output(model: Any, name: str) -> None:
    """Remove the other output of a ``ModelProto``; what only it needs goes when it is loaded."""
    for output in list(model.graph.output):
        if output.name != name:
            model.graph.output.remove(output)


def describe_model(model: Any, description: ModelDescription) -> None:
    """Put the description into a ``ModelProto``, in place of what it says so far."""
    del model.metadata_props[:]
    entry = model.metadata_props.add()
    entry.key, entry.value = KEY, description.to_json()
    model.producer_name, model.producer_version = "offseg_d2", description.version
