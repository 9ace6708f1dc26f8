"""Writing checkpoints so that none is ever broken, and reading them back.

Differences from Detectron2's ``DetectionCheckpointer``, whose interface stays:

* a file is written under a temporary name, forced to the disk and then renamed, so that whatever
  kills the process, each ``*.pth`` is either the old file or the complete new one; the file
  ``last_checkpoint`` follows only afterwards, in the same way;
* files are read by :func:`.safe_load.load_checkpoint_file`, which executes nothing;
* a shape that does not fit is an error instead of a warning;
* :meth:`SafeCheckpointer.resume` steps back to an older file where the last one is damaged;
* a new run moves the files of the one before it aside.
"""

import contextlib
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any
from urllib.parse import urlsplit

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager
from torch import Tensor, nn
from torch.optim import Optimizer

from offseg_d2.utils.io import remove_temporary_files, write_atomically

from .class_names import check_class_names
from .conversion import convert_for_model
from .entries import check_entries, check_optimizer
from .last_layer import check_last_layer
from .published import describe_missing_weights
from .run_folder import (
    PERIODIC_NAME,
    resumable_checkpoints,
    set_aside_old_run,
    tag_last_checkpoint,
)
from .safe_load import (
    CheckpointError,
    CorruptCheckpointError,
    check_is_file,
    load_checkpoint_file,
)
from .state_dicts import averages_of, check_fit, to_state_dict, with_model

logger = logging.getLogger(__name__)

# Renames the entries of an external state dict to those of the model; its own stay.
StateDictConverter = Callable[[dict[str, Tensor], nn.Module], dict[str, Tensor]]


class SafeCheckpointer(DetectionCheckpointer):
    """Checkpointer with atomic writes, safe reads and a fall-back on resuming.

    Args:
        model: model, also one wrapped in DistributedDataParallel.
        save_dir: local directory of the run.
        save_to_disk: whether this process writes; None means the main process only.
        keep: number of periodic checkpoints (``model_0000123.pth``) to keep, 0 for all.
        prefer_average: load the moving average of the weights from files that hold one ("ema").
        convert_state_dict: called with external weights and the model before they are loaded.
        checkpointables: further objects with ``state_dict`` and ``load_state_dict``; their states
            must consist of tensors, numbers, text and containers.
        datasets: names of data sets whose classes a file should have, see ``check_class_names``.
    """

    def __init__(
        self,
        model: nn.Module,
        save_dir: str = "",
        *,
        save_to_disk: bool | None = None,
        keep: int = 0,
        prefer_average: bool = False,
        convert_state_dict: StateDictConverter | None = None,
        datasets: Sequence[str] = (),
        **checkpointables: Any,
    ) -> None:
        super().__init__(model, save_dir, save_to_disk=save_to_disk, **checkpointables)
        if keep < 0:
            raise ValueError(f"`SOLVER.KEEP_CHECKPOINTS` must be at least 0, but is {keep!r}.")
        self.logger = logger  # fvcore's would log under another name
        self.keep = keep
        self.prefer_average = prefer_average
        self.convert_state_dict = convert_state_dict
        self.datasets = datasets
        self._path = ""  # of the file that `load` is at
        self._complete = False  # whether that file must hold all weights
        self._periodic: list[str] = []  # names of this run's periodic checkpoints, oldest first

    # ------------------------------------------------------------------ writing

    def save(self, name: str, *, resumable: bool = True, **kwargs: Any) -> None:
        """Write ``<save_dir>/<name>.pth``.

        Args:
            name: file name without its ending.
            resumable: write the state of all checkpointables too, and make this file the one that
                ``last_checkpoint`` names; otherwise only the model and ``kwargs``.
            kwargs: further entries: tensors, numbers, text and containers.

        Raises:
            CheckpointError: if the file cannot be written (a full disk); an older one stays valid.
        """
        if not self.save_dir or not self.save_to_disk:
            return
        data: dict[str, Any] = {"model": self.model.state_dict()}
        if resumable:
            data |= {key: obj.state_dict() for key, obj in self.checkpointables.items()}
        data |= kwargs
        basename = f"{name}.pth"
        path = os.path.join(self.save_dir, basename)
        os.makedirs(self.save_dir, exist_ok=True)
        try:
            write_atomically(path, lambda file: torch.save(data, file))
        except OSError as error:
            raise CheckpointError(
                f"Checkpoint file `{path}` cannot be written: {error}."
            ) from error
        self.logger.info("Saved checkpoint %s", path)
        if resumable:
            self.tag_last_checkpoint(basename)
            self._forget_old(basename)

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Make ``last_checkpoint`` name this file."""
        tag_last_checkpoint(self.save_dir, last_filename_basename)

    def _forget_old(self, basename: str) -> None:
        """Count ``basename`` among the periodic checkpoints and delete the oldest beyond `keep`."""
        if not PERIODIC_NAME.fullmatch(basename):
            return
        self._periodic = [*(name for name in self._periodic if name != basename), basename]
        while self.keep and len(self._periodic) > self.keep:
            with contextlib.suppress(FileNotFoundError):
                os.remove(os.path.join(self.save_dir, self._periodic.pop(0)))

    def clean_temporary_files(self) -> None:
        """Delete what a killed run left half-written; call before a run starts to write."""
        if not self.save_to_disk or not os.path.isdir(self.save_dir):
            return
        for name in remove_temporary_files(self.save_dir):
            self.logger.info("Deleted the half-written checkpoint file %s", name)

    def set_aside_old_run(self) -> None:
        """Move what an earlier run saved into ``<save_dir>/previous``; call before a new one."""
        if not self.save_to_disk:
            return
        number, folder = set_aside_old_run(self.save_dir)
        if number:
            self.logger.warning("Moved %d checkpoints of an earlier run to %s", number, folder)

    # ------------------------------------------------------------------ resuming

    def resume(self) -> dict[str, Any] | None:
        """Load the last checkpoint of ``save_dir`` with everything a run needs to go on.

        A damaged file is reported and the one before it is taken.

        Returns:
            entries of the file beyond the model and the checkpointables, "iteration" (0-based
            index of the last finished iteration) among them; None if there is no checkpoint.

        Raises:
            CheckpointError: if all are damaged, or if one is readable but incomplete or does not
                fit the model.
        """
        paths = resumable_checkpoints(self.save_dir)
        data = None
        for path in paths:
            try:
                data = load_checkpoint_file(path)
                break
            except CorruptCheckpointError as error:
                self.logger.warning("%s Going back to the checkpoint before it.", error)
        if data is None and paths:
            raise CorruptCheckpointError(
                f"None of the {len(paths)} checkpoints in `{self.save_dir}` can be read: the run "
                "cannot be resumed. Start a new run without --resume."
            )
        chosen = comm.all_gather(path if data is not None else "")
        if len(set(chosen)) > 1:
            raise CheckpointError(
                f"All processes must resume from one checkpoint, but they see {sorted(set(chosen))}"
                f" in `{self.save_dir}`; is it a directory that all machines share?"
            )
        return None if data is None else self._restore(path, data)

    def _restore(self, path: str, data: dict[str, Any]) -> dict[str, Any]:
        required = ["model", "iteration", *self.checkpointables]
        missing = [key for key in required if key not in data]
        if missing:
            raise CheckpointError(
                f"Checkpoint file `{path}` must hold {', '.join(required)} to be resumed from, "
                f"but lacks {', '.join(missing)}; use it as `MODEL.WEIGHTS` instead."
            )
        if not isinstance(data["model"], Mapping):
            raise CheckpointError(
                f"Checkpoint file `{path}` must hold weights by name in its entry `model`, but "
                f"holds a {type(data['model']).__name__}."
            )
        check_entries(path, data)
        weights = to_state_dict(path, data["model"])
        check_fit(path, weights, self.model.state_dict(), strict=True)
        check_class_names(path, data, self.datasets, must_agree=True)
        self.logger.info("Resuming from %s", path)
        del data["model"]
        self.model.load_state_dict(weights)
        for key, checkpointable in self.checkpointables.items():
            try:
                checkpointable.load_state_dict(data.pop(key))
            except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
                raise CheckpointError(
                    f"Checkpoint file `{path}` must be of this configuration to be resumed from, "
                    f"but its entry `{key}` does not fit: {error}.{self._frozen_hint(key)}"
                ) from error
            if isinstance(checkpointable, Optimizer):
                check_optimizer(path, key, checkpointable)
        names = (PERIODIC_NAME.fullmatch(name) for name in sorted(os.listdir(self.save_dir)))
        self._periodic = [
            match.group() for match in names if match and int(match[1]) <= data["iteration"]
        ]
        return data

    def _frozen_hint(self, key: str) -> str:
        if key != "optimizer" or all(p.requires_grad for p in self.model.parameters()):
            return ""
        return (
            " A part of the backbone is frozen. Older versions ignored "
            "`MODEL.BACKBONE.FREEZE_AT`: to continue a run of theirs, set it to 0."
        )

    def resume_or_load(self, path: str, *, resume: bool = True) -> dict[str, Any]:
        """Resume if asked to and there is a checkpoint; otherwise load weights from ``path``."""
        data = self.resume() if resume else None
        return self.load(path, checkpointables=[]) if data is None else data

    # ------------------------------------------------------------------ loading weights

    def load(
        self, path: str, checkpointables: list[str] | None = None, *, complete: bool = False
    ) -> dict[str, Any]:
        """Load weights (and the named checkpointables) from a file or address.

        Args:
            path: file or address; "" keeps the initial weights.
            checkpointables: names; None means all that the file holds.
            complete: whether every weight of the model must be in the file, as for an evaluation.

        Raises:
            FileNotFoundError: if there is no such file.
            CheckpointError: if it is damaged, unsafe, incomplete or does not fit the model.
        """
        if path and "://" not in path:
            local_path = path.split("?")[0]
            if not os.path.exists(local_path):
                raise FileNotFoundError(describe_missing_weights(path, complete))
            check_is_file(path, local_path)
        if not path and complete:
            raise FileNotFoundError("`MODEL.WEIGHTS` must name a file of weights, but is ''.")
        if not path:
            self.logger.info("`MODEL.WEIGHTS` is empty: the weights are the model's initial ones.")
            return {}
        address = urlsplit(path)
        if address.netloc and address.query and "matching_heuristics" not in address.query:
            path = PathManager.get_local_path(path)  # Detectron2 would cut off the query
        self._path, self._complete = path, complete
        return super().load(path, checkpointables=checkpointables)

    def _load_file(self, filename: str) -> dict[str, Any]:
        data = with_model(
            self._path, load_checkpoint_file(filename), is_pickle=filename.endswith(".pkl")
        )
        averages = averages_of(self._path, data) if self.prefer_average else {}
        if averages:
            self.logger.info("Taking the moving average of the weights")
        return {**data, "model": {**data["model"], **averages}}

    def _load_model(self, checkpoint: dict[str, Any]) -> Any:
        state_dict = source = to_state_dict(self._path, checkpoint["model"])
        model_state = self.model.state_dict()
        if self.convert_state_dict is not None and not model_state.keys() >= source.keys():
            state_dict = self._convert(self.convert_state_dict, source)
        heuristics = checkpoint.get("matching_heuristics", False) and state_dict is source
        if not heuristics:
            check_fit(self._path, state_dict, model_state, strict=False)
            check_class_names(self._path, checkpoint, self.datasets)
        incompatible = super()._load_model(
            {**checkpoint, "model": state_dict, "matching_heuristics": heuristics}
        )
        check_last_layer(
            self._path,
            state_dict,
            incompatible.missing_keys,
            incompatible.unexpected_keys,
            complete=self._complete,
        )
        if state_dict is not source:  # the report of the conversion has named what it lacks
            incompatible = incompatible._replace(missing_keys=[])
        return incompatible

    def _convert(
        self, convert: StateDictConverter, state_dict: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        try:
            return convert(state_dict, self.model)
        except (KeyError, ValueError) as error:  # they name what is unknown or does not fit
            raise CheckpointError(f"Checkpoint file `{self._path}`: {error.args[0]}") from error


def build_checkpointer(cfg: CfgNode, model: nn.Module, **checkpointables: Any) -> SafeCheckpointer:
    """Build what reads ``MODEL.WEIGHTS`` of any known origin and writes to ``OUTPUT_DIR``.

    Args:
        cfg: configuration.
        model: model, also one wrapped in DistributedDataParallel.
        checkpointables: see :class:`SafeCheckpointer`.
    """
    return SafeCheckpointer(
        model,
        cfg.OUTPUT_DIR,
        keep=cfg.SOLVER.KEEP_CHECKPOINTS,
        prefer_average=cfg.SOLVER.EMA.ENABLED,
        datasets=[*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST],
        convert_state_dict=partial(
            convert_for_model,
            resize_attention_biases=cfg.MODEL.EFFICIENTFORMER_V2.RESIZE_ATTENTION_BIASES,
        ),
        **checkpointables,
    )
