"""Keys of a configuration that a run was given, but that nothing reads.

Detectron2's configuration has many keys for other tasks, and a key may belong to a part that this
run does not have. :func:`trace_reads` notes each key that is read, :func:`unread_keys` names those
that were changed for nothing.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

from detectron2.config import CfgNode, get_cfg

from .defaults import add_offseg_config

# Keys that people of Detectron2 set -> what has their effect here.
_INSTEAD = {
    "INPUT.RANDOM_FLIP": "INPUT.FLIP_PROBABILITY",
    "INPUT.MIN_SIZE_TEST": "INPUT.RESIZE.SCALE_TEST",
    "INPUT.MAX_SIZE_TEST": "INPUT.RESIZE.SCALE_TEST",
    "SOLVER.MOMENTUM": "SOLVER.BETAS",
    "SOLVER.BIAS_LR_FACTOR": "SOLVER.PARAM_GROUPS",
    "SOLVER.WEIGHT_DECAY_BIAS": "SOLVER.PARAM_GROUPS",
    "SOLVER.WEIGHT_DECAY_NORM": "SOLVER.PARAM_GROUPS",
    "SOLVER.REFERENCE_WORLD_SIZE": "SOLVER.IMS_PER_BATCH",
    "TEST.AUG.ENABLED": "TEST.SEM_SEG.TTA.ENABLED",
    "TEST.AUG.MIN_SIZES": "TEST.SEM_SEG.TTA.RATIOS",
    "TEST.AUG.FLIP": "TEST.SEM_SEG.TTA.FLIP",
    "VIS_PERIOD": "TEST.SEM_SEG.NUM_PICTURES",
}
# Keys of model and test that only a training reads; an evaluation is often given that of one.
_TRAINING_ONLY = (
    *("TEST.EVAL_PERIOD", "MODEL.COMPILE", "MODEL.CHANNELS_LAST"),
    "MODEL.BACKBONE.ACTIVATION_CHECKPOINTING",
)


class _Reads(set):
    """Names of the keys that were read; one for all copies of a configuration."""

    def __deepcopy__(self, memo: dict[int, Any]) -> "_Reads":
        return self


class _TracedNode(CfgNode):  # type: ignore[misc]  # Detectron2 has no types
    """A node that notes which of its keys are read, by ``cfg.KEY`` or ``cfg["KEY"]``."""

    def __getattr__(self, name: str) -> Any:
        if name in self:
            return self[name]
        raise AttributeError(name)

    def __getitem__(self, name: str) -> Any:
        value = super().__getitem__(name)
        if not isinstance(value, CfgNode) and "reads" in self.__dict__:
            reads, prefix = self.__dict__["reads"]
            reads.add(prefix + name)
        return value

    # A merge looks at the old value of each key, and wants nodes of one type on both sides.
    def merge_from_other_cfg(self, cfg_other: CfgNode) -> None:
        with self._unnoticed():
            super().merge_from_other_cfg(_traced(cfg_other, "", _Reads()))

    def merge_from_list(self, cfg_list: list[Any]) -> None:
        with self._unnoticed():
            super().merge_from_list(cfg_list)

    @contextlib.contextmanager
    def _unnoticed(self) -> Iterator[None]:
        reads, _ = self.__dict__["reads"]
        before = set(reads)
        yield
        reads.intersection_update(before)


def trace_reads(cfg: CfgNode) -> CfgNode:
    """Copy a configuration so that it, and its copies, note which keys are read."""
    return _traced(cfg, "", _Reads())


def _traced(cfg: CfgNode, prefix: str, reads: _Reads) -> _TracedNode:
    node = _TracedNode.__new__(_TracedNode)
    for name, value in cfg.clone().items():
        inner = isinstance(value, CfgNode)
        node[name] = _traced(value, f"{prefix}{name}.", reads) if inner else value
    node.__dict__.update(cfg.__dict__, reads=(reads, prefix))
    return node


def unread_keys(cfg: CfgNode, *, eval_only: bool = False) -> list[str]:
    """Names of keys that differ from their defaults, but that nothing has read so far.

    Keys that only an evaluation reads are left out: it may come later. Of an evaluation alone only
    the model's and the test's keys are looked at, as its configuration is that of the training.

    Args:
        cfg: as :func:`trace_reads` returned it, or a copy; any other has no unread keys.
        eval_only: nothing is trained in this run.

    Returns:
        a name for each, some with the key to use instead: "`A.B` (use `C.D`)".
    """
    if not isinstance(cfg, _TracedNode):
        return []
    reads, _ = cfg.__dict__["reads"]
    base, ours = dict(_leaves(get_cfg())), get_cfg()
    add_offseg_config(ours)
    defaults = dict(_leaves(ours))
    names = []
    for key, value in _leaves(cfg):
        late = key.startswith("TEST.") and key not in base
        tests = key.startswith(("MODEL.", "TEST.")) and key not in _TRAINING_ONLY
        looked_at = tests or not eval_only
        changed = key in defaults and _as_tuples(value) != _as_tuples(defaults[key])
        if changed and looked_at and not late and key not in reads:
            names.append(f"`{key}`" + (f" (use `{_INSTEAD[key]}`)" if key in _INSTEAD else ""))
    return names


def _as_tuples(value: Any) -> Any:
    """A value with tuples in place of lists, into which a file turns them."""
    return tuple(map(_as_tuples, value)) if isinstance(value, list | tuple) else value


def _leaves(node: CfgNode, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in node.items():
        if isinstance(value, CfgNode):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value
