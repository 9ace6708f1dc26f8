"""Models as ``torch.export`` archives (.pt2): for PyTorch, without this package.

Loading such an archive may run code that it brings along, whoever loads it: ``torch.export.load``
unpickles objects and evaluates expressions of sizes. It is for files whose origin is trusted, and
no tool of this project loads one.
"""

import io
import zipfile

import torch
from detectron2.utils.file_io import PathManager

from offseg_d2.export.check import Comparison, compare
from offseg_d2.export.description import ModelDescription
from offseg_d2.export.graph import OneOutput, SegmentationGraph
from offseg_d2.export.onnx_file import check_batches, dynamic_shapes, example_image
from offseg_d2.utils.io import write_atomically

DESCRIPTION_FILE = "offseg_d2.json"


def export_torch(graph: SegmentationGraph, description: ModelDescription, path: str) -> Comparison:
    """Write a ``torch.export`` archive, if read back it computes what the model computes.

    Args:
        graph: the model; pads inside exactly if the description has a size.
        description: becomes part of the archive.
        path: of the file; appears complete or not at all.

    Returns:
        how far the two are from each other.

    Raises:
        ExportMismatchError: if they disagree; nothing is written then.
        OSError: if the file cannot be written.
    """
    module = OneOutput(graph, description.output).eval()
    with torch.no_grad():
        program = torch.export.export(
            module, (example_image(description),), dynamic_shapes=dynamic_shapes(description)
        )
    loaded = torch.export.load(_saved(program, description)).module()  # what was just saved
    comparison = compare(module, loaded, check_batches(description), graph.tolerance)
    comparison.check(path)
    write_atomically(path, _saved(program, comparison.recorded_in(description)).getvalue())
    return comparison


def load_torch(path: str) -> tuple[torch.nn.Module, ModelDescription]:
    """Read an archive by :func:`export_torch`.

    Args:
        path: of a file **whose origin is trusted**: reading it may run code.

    Returns:
        the model, images (B, 3, H, W) RGB 0..255 -> labels or logits; and its description.

    Raises:
        ValueError: if it has no description by this package; nothing in it is run then.
    """
    with PathManager.open(path, "rb") as file:
        content = io.BytesIO(file.read())
    description = _read_description(content, path)  # what is not ours is refused unopened
    content.seek(0)
    return torch.export.load(content).module(), description


def _read_description(archive: io.BytesIO, path: str) -> ModelDescription:
    """The extra file of an archive, without loading the archive."""
    try:
        with zipfile.ZipFile(archive) as members:
            (name,) = (x for x in members.namelist() if x.endswith(f"/extra/{DESCRIPTION_FILE}"))
            text = members.read(name).decode("utf-8")
    except (ValueError, zipfile.BadZipFile):
        raise ValueError(
            f"`{path}` must be an archive by `offseg export`, but describes no classes."
        ) from None
    return ModelDescription.from_json(text, path)


def _saved(program: torch.export.ExportedProgram, description: ModelDescription) -> io.BytesIO:
    buffer = io.BytesIO()
    torch.export.save(program, buffer, extra_files={DESCRIPTION_FILE: description.to_json()})
    buffer.seek(0)
    return buffer
