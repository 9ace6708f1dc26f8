"""The analyses of a model, each a task with a name; what ``offseg analyze`` runs.

A task takes a :class:`Subject` and gives the rows of a table, which go to the screen, with the
task's docstring above them, and to JSON.
"""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import torch
from detectron2.config import CfgNode
from fvcore.nn import FlopCountAnalysis
from tabulate import tabulate
from torch import nn

from offseg_d2.analysis.complexity import Macs, count_macs, count_parameters
from offseg_d2.analysis.latency import gemm_peaks, measure_interleaved
from offseg_d2.analysis.mac_rules import KINDS
from offseg_d2.analysis.memory import STEPS, measure_memory
from offseg_d2.analysis.network import InputSpec, Network, autocast, build_network
from offseg_d2.analysis.profiling import profile_operators, profile_parts
from offseg_d2.config import ConfigError

GIGA = 10**9
MODEL, DEPLOYED = "model", "deployed"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
Rows = list[dict[str, Any]]


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
        seconds: of each measurement of time.
        depth: how deep parts are divided.

    Raises:
        ConfigError: the type is unknown, or the depth is not positive.
    """

    name: str
    cfg: CfgNode
    inputs: InputSpec = field(default_factory=InputSpec)
    dtype: str = "float32"
    deploy: bool = False
    seconds: float = 5.0
    depth: int = 1
    _counted: dict[str, Macs] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if self.depth < 1:
            raise ConfigError(f"`--depth` must be positive, but is {self.depth}.")
        if self.dtype not in DTYPES:
            raise ConfigError(f"`--dtype` must be one of {list(DTYPES)}, but is {self.dtype!r}.")

    @cached_property
    def model(self) -> nn.Module:
        return build_network(self.cfg)

    @cached_property
    def forms(self) -> dict[str, nn.Module]:
        """The model and, if asked for, its deployed form."""
        forms = {MODEL: self.model}
        if self.deploy:
            forms[DEPLOYED] = _optimized(self.model).eval()
        return forms

    @cached_property
    def peak(self) -> float:
        """Floating-point operations per second of a matrix product, with the threads of now."""
        return max(gemm_peaks(DTYPES[self.dtype], self.model.device).values())

    def count(self, form: str) -> Macs:
        """MACs of one image, from the network's input to the logits."""
        if form not in self._counted:
            network, images = Network(self.forms[form]), self.one_image
            # The deployed form has operators of the processor, and tables that outlive the model.
            self._counted[form] = count_macs(network, images, fake=form != DEPLOYED)
        return self._counted[form]

    @property
    def one_image(self) -> torch.Tensor:
        return InputSpec(self.inputs.height, self.inputs.width).images(self.model)

    def rate(self, macs: int, seconds: float) -> dict[str, float]:
        """Achieved floating-point operations per second, two a MAC, and their share of the peak."""
        achieved = 2 * macs * self.inputs.batch / seconds
        share = round(100 * achieved / self.peak, 1)
        return {"GFLOP/s": round(achieved / GIGA, 1), "of GEMM peak, %": share}

    def call(self, form: str, to: str) -> Callable[[], Any]:
        """One prediction as a function, "to logits" or "to label maps", in ``self.dtype``."""
        model, dtype = self.forms[form], DTYPES[self.dtype]
        if to == "logits":
            run = partial(Network(model), self.inputs.images(model))
        else:
            samples = self.inputs.samples(self.cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES)
            run = partial(model.predict_label_maps, samples)

        def call() -> Any:
            own_dtype = torch.float32 if form == DEPLOYED else dtype
            with torch.inference_mode(), autocast(self.model.device, own_dtype):
                return run()

        return call


def _optimized(model: nn.Module) -> nn.Module:
    from offseg_d2.deploy import optimize

    return optimize(model)


def parameters(subject: Subject) -> Rows:
    """Number of parameters, by part."""
    counts = count_parameters(subject.model, subject.depth)
    return [{"part": part or "total", "parameters": count} for part, count in counts.items()]


def macs(subject: Subject) -> Rows:
    """Billions of multiply-accumulates of one image, from the network's input to its logits.

    "as in paper" are convolutions with their biases; "all" is divided by kind and by part. What
    counts as one: offseg_d2/analysis/mac_rules.py.
    """
    rows = []
    for form in subject.forms:
        counted = subject.count(form)
        kinds = counted.by_kind()
        amounts = {"as in paper": counted.as_in_paper, "all": counted.all}
        amounts |= {kind: kinds[kind] for kind in KINDS}
        rows.append({"form": form, "part": "total", **{k: _giga(n) for k, n in amounts.items()}})
        for part, count in counted.by_part(subject.depth).items():
            rows.append({"form": form, "part": part or "(rest)", "all": _giga(count)})
    return rows


def fvcore(subject: Subject) -> Rows:
    """Billions of multiply-accumulates of one image as fvcore counts them, by operator."""
    counter = FlopCountAnalysis(Network(subject.model), subject.one_image)
    counter.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    counts = {"total": counter.total(), **counter.by_operator()}
    return [{"operator": name, "G": _giga(count)} for name, count in counts.items()]


def _giga(count: float) -> float:
    return round(count / GIGA, 3)


def latency(subject: Subject) -> Rows:
    """Time to logits and to label maps: median, 10th and 90th percentile, all forms in turn.

    GFLOP/s are two per multiply-accumulate (all operations) over the time to logits; the GEMM peak
    is that of the best large matrix product, measured now.
    """
    calls = {
        (form, to): subject.call(form, to)
        for form in subject.forms
        for to in ("logits", "label maps")
    }
    rows = []
    for (form, to), timing in measure_interleaved(calls, seconds=subject.seconds).items():
        rate = subject.rate(subject.count(form).all, timing.median) if to == "logits" else {}
        rows.append({"form": form, "to": to, **timing.as_dict(), **rate})
    return rows


def memory(subject: Subject) -> Rows:
    """Peak memory, of a process of its own (CPU) or on the device (CUDA); 1 MB = 2^20 bytes.

    "before" is with the model loaded, "step" what an inference or a training step adds.
    """
    dtype = DTYPES[subject.dtype]
    rows = []
    for form in (MODEL, DEPLOYED) if subject.deploy else (MODEL,):
        settings = {"threads": torch.get_num_threads(), "dtype": dtype}
        if form == DEPLOYED:
            settings["transform"] = _optimized
        for step in STEPS if form == MODEL else STEPS[:1]:  # the deployed form cannot be trained
            peak = measure_memory(subject.cfg, step, subject.inputs, **settings)
            rows.append({"form": form, "step": step, **peak})
    return rows


def profile(subject: Subject) -> Rows:
    """Time from image to label map, by part and by operator (slower, as each is recorded).

    (rest) is normalising the image, and from logits to the label map.
    """
    form = list(subject.forms)[-1]
    call = subject.call(form, "label maps")
    seconds = profile_parts(subject.forms[form], call, depth=subject.depth)
    counted = subject.count(form).by_part(subject.depth)
    rows = []
    for part, time in seconds.items():
        row = {"form": form, "by": "part", "name": part, "ms": round(1000 * time, 2)}
        row["share, %"] = round(100 * time / sum(seconds.values()), 2)
        rows.append({**row, **(subject.rate(counted[part], time) if part in counted else {})})
    return rows + [{"form": form, "by": "operator", **row} for row in profile_operators(call)]


TASKS: dict[str, Callable[[Subject], Rows]] = {
    task.__name__: task for task in (parameters, macs, fvcore, latency, memory, profile)
}


def check_tasks(tasks: Sequence[str]) -> None:
    """Refuse unknown tasks, before anything takes its time.

    Raises:
        ConfigError: one of them is unknown.
    """
    unknown = [task for task in tasks if task not in TASKS]
    if unknown or not tasks:
        raise ConfigError(f"`--tasks` must be among {list(TASKS)}, but is {list(tasks)}.")


def analyze(subjects: Sequence[Subject], tasks: Sequence[str]) -> dict[str, Rows]:
    """Run the named tasks, in their order, on each model.

    Returns:
        task -> rows of all models.

    Raises:
        ConfigError: a task is unknown.
    """
    check_tasks(tasks)
    return {
        task: [
            {"model": subject.name, **row} for subject in subjects for row in TASKS[task](subject)
        ]
        for task in tasks
    }


def format_results(results: dict[str, Rows]) -> str:
    """A table of each task.

    Args:
        results: as :func:`analyze` gives them.
    """
    sections = []
    for task, rows in results.items():
        keys = list(dict.fromkeys(key for row in rows for key in row))
        table = tabulate([[row.get(key) for key in keys] for row in rows], keys, intfmt=",")
        sections.append(f"{task}: {inspect.getdoc(TASKS[task])}\n\n{table}")
    return "\n\n".join(sections)
