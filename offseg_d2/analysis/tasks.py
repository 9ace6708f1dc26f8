"""The analyses of a model, each a task with a name; what ``tools/analyze_model.py`` runs.

A task takes a :class:`Subject` and gives a dictionary for JSON; ``tables.py`` prints it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import torch
from detectron2.config import CfgNode
from torch import nn

from offseg_d2.analysis.complexity import Macs, count_macs, count_parameters
from offseg_d2.analysis.latency import gemm_peak, measure_interleaved
from offseg_d2.analysis.mac_rules import COUNTED
from offseg_d2.analysis.memory import STEPS, measure_memory
from offseg_d2.analysis.network import InputSpec, Network, autocast, build_network
from offseg_d2.analysis.profiling import profile_operators, profile_parts
from offseg_d2.config import ConfigError

GIGA = 10**9
MODEL, DEPLOYED, REFERENCE = "model", "deployed", "authors' order"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
Transform = Callable[[nn.Module], nn.Module]


@dataclass
class Subject:
    """A model under analysis and how it is looked at.

    Attributes:
        name: of the model, for tables.
        cfg: configuration; the weights are random without `MODEL.WEIGHTS`.
        inputs: size and number of images.
        dtype: a key of ``DTYPES``; a half type means automatic mixed precision, except for the
            deployed form, which computes in float32.
        deploy: measure the form that ``offseg_d2.deploy.optimize`` gives as well.
        reference: gives the model in the order of operations to compare with; MACs are counted of
            both. None where there is no such form.
        time_reference: measure time and memory of the reference as well.
        seconds: of each measurement of time.
        depth: how deep parts are divided.
    """

    name: str
    cfg: CfgNode
    inputs: InputSpec = field(default_factory=InputSpec)
    dtype: str = "float32"
    deploy: bool = False
    reference: Transform | None = None
    time_reference: bool = False
    seconds: float = 5.0
    depth: int = 1
    _counted: dict[str, Macs] = field(default_factory=dict, repr=False)

    @cached_property
    def model(self) -> nn.Module:
        return build_network(self.cfg)

    @cached_property
    def peak(self) -> float:
        """Floating-point operations per second of a matrix product, with the threads of now."""
        return gemm_peak(DTYPES[self.dtype], self.model.device)

    def count(self, form: str, model: nn.Module) -> Macs:
        """MACs of one image, from the network's input to the logits."""
        if form not in self._counted:
            images = InputSpec(self.inputs.height, self.inputs.width).images(model)
            # The deployed form has operators of the processor, and tables that outlive the model.
            self._counted[form] = count_macs(Network(model), images, fake=form != DEPLOYED)
        return self._counted[form]

    def transforms(self, *, with_reference: bool) -> dict[str, Transform | None]:
        """The forms of the model that are asked for, and what makes them of it."""
        forms: dict[str, Transform | None] = {MODEL: None}
        if self.deploy:
            forms[DEPLOYED] = _optimized
        if with_reference and self.reference is not None:
            forms[REFERENCE] = self.reference
        return forms

    def forms(self, *, with_reference: bool) -> dict[str, nn.Module]:
        """The same as models; a reference that does not know this model is left out."""
        models = {}
        for name, transform in self.transforms(with_reference=with_reference).items():
            try:
                models[name] = self.model if transform is None else transform(self.model).eval()
            except ValueError:
                if name != REFERENCE or self.time_reference:
                    raise
        return models


def _optimized(model: nn.Module) -> nn.Module:
    from offseg_d2.deploy import optimize

    return optimize(model)


def parameters(subject: Subject) -> dict[str, Any]:
    """Parameters by part."""
    counts = count_parameters(subject.model, subject.depth)
    return {"total": counts.pop(""), "parts": counts}


def macs(subject: Subject) -> dict[str, Any]:
    """MACs of one image, from the network's input to the logits, of each form of the model."""
    forms = {}
    for name, model in subject.forms(with_reference=True).items():
        counted = subject.count(name, model)
        parts = counted.by_part(subject.depth)
        forms[name] = {
            "convolutions": counted.convolutions,
            "convolutions_with_bias": counted.as_in_paper,
            "all": counted.all,
            "kinds": counted.by_kind(),
            "parts": {part: of_part.all for part, of_part in parts.items()},
            "not_counted": counted.uncounted,
        }
    size = subject.inputs.padded_size(subject.model)
    return {"input": [1, 3, *size], "counted": COUNTED, "forms": forms}


def latency(subject: Subject) -> dict[str, Any]:
    """Time to logits and to label maps of each form, all in turn, and the share of the peak."""
    inputs = subject.inputs
    calls: dict[str, Callable[[], Any]] = {}
    models = subject.forms(with_reference=subject.time_reference)
    for name, model in models.items():
        calls[f"{name}: logits"] = _call(subject, name, _logits(model, inputs))
        calls[f"{name}: label map"] = _call(subject, name, _label_maps(subject, model))
    timings = measure_interleaved(calls, seconds=subject.seconds)
    forms = {}
    for name, model in models.items():
        forms[name] = {
            "logits": timings[f"{name}: logits"].as_dict(),
            "label_map": timings[f"{name}: label map"].as_dict(),
            **_roofline(subject, subject.count(name, model), timings[f"{name}: logits"].median),
        }
    return {
        "device": str(subject.model.device),
        "threads": torch.get_num_threads(),
        "dtype": subject.dtype,
        "input": [inputs.batch, 3, *inputs.padded_size(subject.model)],
        "label_map_mode": subject.cfg.TEST.SEM_SEG.MODE,
        "gemm_peak_gflops": round(subject.peak / GIGA, 1),
        "forms": forms,
    }


def _roofline(subject: Subject, counted: Macs, seconds: float) -> dict[str, float]:
    """Achieved floating-point operations per second, and their share of the peak."""
    achieved = 2 * counted.all * subject.inputs.batch / seconds
    return {"gflops": round(achieved / GIGA, 1), "share_of_peak": round(achieved / subject.peak, 3)}


def memory(subject: Subject) -> dict[str, Any]:
    """Peak memory of an inference and of a training step, each in a process of its own."""
    measure = partial(
        measure_memory,
        subject.cfg,
        inputs=subject.inputs,
        threads=torch.get_num_threads(),
        dtype=DTYPES[subject.dtype],
    )
    forms: dict[str, Any] = {}
    for name, transform in subject.transforms(with_reference=subject.time_reference).items():
        steps = STEPS if name != DEPLOYED else STEPS[:1]  # which cannot be trained
        forms[name] = {step: measure(step, transform=transform).as_dict() for step in steps}
    return {"device": subject.cfg.MODEL.DEVICE, "batch": subject.inputs.batch, "forms": forms}


def profile(subject: Subject) -> dict[str, Any]:
    """Time and share of the peak by part, and time by operator, from image to label map."""
    name, model = list(subject.forms(with_reference=False).items())[-1]
    call = _call(subject, name, _label_maps(subject, model))
    seconds = profile_parts(model, call, depth=subject.depth)
    counted = subject.count(name, model).by_part(subject.depth)
    total = sum(seconds.values())
    rows = []
    for part, time in seconds.items():
        row = {"part": part, "ms": round(1000 * time, 2), "share": round(time / total, 4)}
        if part in counted:
            row |= _roofline(subject, counted[part], time)
        rows.append(row)
    return {"form": name, "parts": rows, "operators": profile_operators(call)}


def _logits(model: nn.Module, inputs: InputSpec) -> Callable[[], Any]:
    network, images = Network(model), inputs.images(model)
    return lambda: network(images)


def _label_maps(subject: Subject, model: nn.Module) -> Callable[[], Any]:
    records = subject.inputs.records(subject.cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES)
    return lambda: model.predict_label_maps(records)


def _call(subject: Subject, form: str, call: Callable[[], Any]) -> Callable[[], Any]:
    """``call`` without gradients, in the type that is asked for."""
    dtype = torch.float32 if form == DEPLOYED else DTYPES[subject.dtype]

    def run() -> Any:
        with torch.inference_mode(), autocast(subject.model.device, dtype):
            return call()

    return run


TASKS: dict[str, Callable[[Subject], dict[str, Any]]] = {
    "parameters": parameters,
    "macs": macs,
    "latency": latency,
    "memory": memory,
    "profile": profile,
}


def analyze(subject: Subject, tasks: Sequence[str]) -> dict[str, Any]:
    """Run the named tasks, in their order.

    Returns:
        "model", and the result of each task under its name.

    Raises:
        ConfigError: a task or the type is unknown, or the depth is not positive.
    """
    check_tasks(tasks)
    if subject.depth < 1:
        raise ConfigError(f"`--depth` must be positive, but is {subject.depth}.")
    if subject.dtype not in DTYPES:
        raise ConfigError(f"`--dtype` must be one of {list(DTYPES)}, but is {subject.dtype!r}.")
    return {"model": subject.name, **{task: TASKS[task](subject) for task in tasks}}


def check_tasks(tasks: Sequence[str]) -> None:
    """Refuse unknown tasks, before anything takes its time.

    Raises:
        ConfigError: one of them is unknown.
    """
    unknown = [task for task in tasks if task not in TASKS]
    if unknown or not tasks:
        raise ConfigError(f"`--tasks` must be among {list(TASKS)}, but is {list(tasks)}.")
