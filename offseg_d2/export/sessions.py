"""Exported ONNX files, opened by onnxruntime or OpenVINO."""

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

RUNTIMES = {"onnxruntime": "export", "openvino": "openvino"}  # package -> extra of setup.py


@dataclass(frozen=True)
class Session:
    """An ONNX model that a runtime has opened.

    Attributes:
        run: images (B, 3, H, W) -> the outputs of the file, in its order.
        metadata: texts of the file by their keys.
    """

    run: Callable[[Tensor], list[Tensor]]
    metadata: Mapping[str, str]


def require(name: str, extra: str = "export") -> Any:
    """Import a module of an optional package.

    Args:
        name: dotted name of the module.
        extra: of setup.py that installs it.

    Raises:
        OSError: if it is not installed; one sentence that says how to get it.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise OSError(
            f"`{error.name}` must be installed to export models or to run exported ones; "
            f"install it with: pip install 'offseg_d2[{extra}]'"
        ) from None


def open_session(
    model: bytes,
    path: str,
    *,
    runtime: str = "onnxruntime",
    threads: int = 0,
    providers: Sequence[str] = ("CPUExecutionProvider",),
) -> Session:
    """Open an ONNX model for float32 arithmetic.

    Args:
        model: content of an ONNX file.
        path: of that file, for messages.
        runtime: one of ``RUNTIMES``; OpenVINO runs on the CPU.
        threads: within an operator; 0 leaves the choice to the runtime.
        providers: of onnxruntime, the preferred one first.

    Raises:
        OSError: if the runtime is not installed.
        ValueError: if it is not known or cannot run the content.
    """
    if runtime not in RUNTIMES:
        raise ValueError(f"`runtime` must be one of {sorted(RUNTIMES)}, but is {runtime!r}.")
    module = require(runtime, RUNTIMES[runtime])
    try:
        if runtime == "openvino":
            return _open_openvino(module, model, threads)
        return _open_onnxruntime(module, model, threads, providers)
    except Exception as error:  # the classes of the runtimes derive from nothing narrower
        reason = str(error).strip().splitlines()[-1]
        raise ValueError(f"`{path}` must be an ONNX model, but: {reason}") from None


def _open_onnxruntime(
    onnxruntime: Any, model: bytes, threads: int, providers: Sequence[str]
) -> Session:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(model, options, providers=list(providers))

    def run(images: Tensor) -> list[Tensor]:
        return [torch.from_numpy(x) for x in session.run(None, {"image": images.numpy()})]

    return Session(run, session.get_modelmeta().custom_metadata_map)


def _open_openvino(openvino: Any, model: bytes, threads: int) -> Session:
    core = openvino.Core()
    program = core.read_model(model)
    # Where a CPU has bfloat16 units, OpenVINO would round to it without being asked.
    hints: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32"}
    if threads:
        hints["INFERENCE_NUM_THREADS"] = threads
    compiled = core.compile_model(program, "CPU", hints)
    request = compiled.create_infer_request()

    def run(images: Tensor) -> list[Tensor]:
        results = request.infer({"image": images.numpy()})
        return [torch.from_numpy(results[output]) for output in compiled.outputs]

    texts = program.get_rt_info("framework").value if program.has_rt_info(["framework"]) else {}
    return Session(run, texts)
