"""Training and evaluation of a configuration, with the interface of Detectron2's DefaultTrainer."""

import contextlib
import logging
import os
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.engine import HookBase
from detectron2.engine.hooks import IterationTimer
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from torch import nn

from offseg_d2 import solver
from offseg_d2.checkpoint import SafeCheckpointer, build_checkpointer
from offseg_d2.config import ConfigError
from offseg_d2.data import (
    balance_class_weights,
    build_test_loader,
    build_train_loader,
    require_registered,
)
from offseg_d2.distributed.ranks import restarts
from offseg_d2.modeling import Segmentor, build_model

from .defaults import (
    autocast_dtype,
    broadcast_buffers,
    class_table,
    configure_batch_norm,
    create_ddp_model,
    default_writers,
    sizes_vary,
    software_versions,
    warn_of_unread_keys,
)
from .ema import WeightAverage, WeightAverageHook
from .evaluation import build_evaluator, check_folder_names, on_all_images, run_test
from .hooks import CheckpointHook, EvaluationHook, FirstStepHook, LearningRateHook
from .model_options import apply_model_options
from .progress import OffsetLengthHook, ProgressHook, ValidationPictures
from .run_length import fit_run_length
from .run_lock import RunLock
from .sampler_state import check_sampler, sampler_state
from .stopping import StopOnSignalHook
from .train_loop import Batch, GradScalerState, TrainLoop

logger = logging.getLogger(__name__)


class Trainer(TrainLoop):
    """Everything a training run consists of, built from the configuration.

    ::

        trainer = Trainer(cfg)
        trainer.resume_or_load(resume=args.resume)
        results = trainer.train()

    Attributes:
        cfg: configuration; its ``SEED`` is not negative any more.
        scheduler: learning-rate schedule.
        checkpointer: writes and reads ``OUTPUT_DIR/*.pth``.
        start_iter: iteration that :meth:`train` begins with.

    Raises:
        ValueError: if a key of the configuration has an impossible value.
    """

    def __init__(self, cfg: CfgNode) -> None:
        cfg = cfg.clone()
        if cfg.SEED < 0:
            cfg.defrost()
            cfg.SEED = comm.shared_random_seed()
            cfg.freeze()
        fit_run_length(cfg)
        balance_class_weights(cfg)
        device = torch.device(cfg.MODEL.DEVICE)
        model = apply_model_options(self.build_model(cfg), cfg)
        self.average = (
            WeightAverage(model, cfg.SOLVER.EMA.DECAY) if cfg.SOLVER.EMA.ENABLED else None
        )
        optimizer = solver.build_optimizer(cfg, model)
        super().__init__(
            create_ddp_model(model, device),
            optimizer,
            device=device,
            amp_dtype=autocast_dtype(cfg, device),
            accumulation_steps=cfg.SOLVER.ACCUMULATION_STEPS,
            clip_gradients=solver.build_gradient_clipper(cfg),
            seed=cfg.SEED,
            log_period=cfg.SOLVER.LOG_PERIOD,
        )
        self.cfg = cfg
        self.scheduler = solver.build_lr_scheduler(cfg, optimizer)
        self.start_iter, self.max_iter = 0, cfg.SOLVER.MAX_ITER
        self.checkpointer = self.build_checkpointer(
            cfg,
            self.model,
            optimizer=optimizer,
            scheduler=self.scheduler,
            grad_scaler=GradScalerState(self.grad_scaler),
            **({"ema": self.average} if self.average else {}),
        )
        self.last_results: Mapping[str, Any] = {}
        draws = cfg.DATASETS.TEST and cfg.TEST.SEM_SEG.NUM_PICTURES > 0
        self._pictures = ValidationPictures(cfg) if draws else None
        self._last_saved = ""
        self._resumes = False
        self._lock: RunLock | None = None
        self.register_hooks(self.build_hooks())

    # ------------------------------------------------------------------ parts, to be overridden

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        """The model of ``MODEL.META_ARCHITECTURE`` on ``MODEL.DEVICE``."""
        return configure_batch_norm(build_model(cfg), cfg)

    @classmethod
    def build_checkpointer(
        cls, cfg: CfgNode, model: nn.Module, **checkpointables: Any
    ) -> SafeCheckpointer:
        """Reads ``MODEL.WEIGHTS`` of any known origin, writes to ``OUTPUT_DIR``."""
        return build_checkpointer(cfg, model, **checkpointables)

    @classmethod
    def build_train_loader(cls, cfg: CfgNode, start_iter: int = 0) -> Iterable[Batch]:
        """Endless batches, the first one that of iteration ``start_iter``."""
        return build_train_loader(cfg, start_iter)

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> Iterable[Batch]:
        """Build the loader that gives each image of the dataset once, over all processes."""
        return build_test_loader(cfg, dataset_name)

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> DatasetEvaluator:
        """Evaluator of a data set registered in Detectron2's catalogs."""
        return build_evaluator(cfg, dataset_name)

    def build_hooks(self) -> list[HookBase]:
        """Hooks in the order of their action after an iteration."""
        cfg = self.cfg
        if cfg.SOLVER.LOG_PERIOD < 1:
            raise ValueError(
                f"`SOLVER.LOG_PERIOD` must be at least 1, but is {cfg.SOLVER.LOG_PERIOD!r}."
            )
        hooks = [
            IterationTimer(),
            LearningRateHook(self.optimizer, self.scheduler),
            *([] if cfg.MODEL.COMPILE else [self._offset_lengths()]),
            *([WeightAverageHook(self.average)] if self.average else []),
            CheckpointHook(self.save_checkpoint, cfg.SOLVER.CHECKPOINT_PERIOD),
            StopOnSignalHook(self.save_checkpoint),
            FirstStepHook(lambda: warn_of_unread_keys(cfg)),
        ]
        for name in cfg.DATASETS.TEST:  # now, not after hours at the first evaluation
            require_registered(name, "DATASETS.TEST")
        if cfg.DATASETS.TEST:
            best_metric = cfg.SOLVER.BEST_METRIC
            if best_metric and len(cfg.DATASETS.TEST) > 1:  # then the first one decides
                best_metric = f"{cfg.DATASETS.TEST[0]}/{best_metric}"
            hooks.append(
                EvaluationHook(
                    self._evaluate,
                    cfg.TEST.EVAL_PERIOD,
                    self.save_checkpoint,
                    best_metric,
                    cfg.OUTPUT_DIR,
                    patience=cfg.SOLVER.EARLY_STOPPING_PATIENCE,
                    subset=cfg.TEST.SUBSET,
                    evaluate_all=self._evaluate_all if cfg.TEST.SUBSET else None,
                )
            )
        elif cfg.SOLVER.EARLY_STOPPING_PATIENCE:
            raise ConfigError(
                "`SOLVER.EARLY_STOPPING_PATIENCE` must be 0 without `DATASETS.TEST`, but is "
                f"{cfg.SOLVER.EARLY_STOPPING_PATIENCE!r}."
            )
        if comm.is_main_process():
            writers = default_writers(cfg.OUTPUT_DIR, self.max_iter)
            hooks.append(ProgressHook(writers, period=cfg.SOLVER.LOG_PERIOD))
        return hooks

    # ------------------------------------------------------------------ run

    def _offset_lengths(self) -> HookBase:
        return OffsetLengthHook(self.checkpointer.model, self.cfg.SOLVER.LOG_PERIOD)

    def resume_or_load(self, resume: bool = True) -> None:
        """Continue the run in ``OUTPUT_DIR``, or load ``MODEL.WEIGHTS`` and begin at iteration 0.

        Args:
            resume: whether to look for a checkpoint; without one a new run begins. A run that
                its launcher has started again (a requeued job) always looks for one.

        Raises:
            FileNotFoundError, CheckpointError: if the file cannot be used.
        """
        self._lock_folder()
        self.checkpointer.clean_temporary_files()
        resume = resume or restarts(os.environ) > 0
        self._resumes = resume
        settings = solver.read_settings(self.optimizer)
        data = self.checkpointer.resume() if resume else None
        if data is None:
            if resume:
                logger.info("%s holds no checkpoint: a new run begins.", self.cfg.OUTPUT_DIR)
            self.checkpointer.load(self.cfg.MODEL.WEIGHTS, checkpointables=[])
            if self.average:
                self.average.restart()
            return
        self.start_iter = data["iteration"] + 1
        for change in solver.restore_settings(self.optimizer, self.scheduler, settings):
            logger.warning("The configuration changes the stored optimizer: %s", change)
        check_sampler(self.cfg, data)
        # The run's own seed, so that data and random numbers go on as they would have.
        self.seed = data.get("seed", self.seed)
        self.cfg.defrost()
        self.cfg.SEED = self.seed
        self.cfg.freeze()
        logger.info("Continuing at iteration %d with the seed %d", self.start_iter, self.seed)

    def train(self) -> Mapping[str, Any]:  # type: ignore[override]
        """Train to ``SOLVER.MAX_ITER`` and evaluate.

        Returns:
            results of the last evaluation, as :meth:`test` returns them.
        """
        self._check_test_sets()
        self._lock_folder()
        if self.start_iter == 0 and not self._resumes:
            comm.synchronize()  # all have loaded their weights, perhaps from the old run
            self.checkpointer.set_aside_old_run()
        if self.start_iter < self.max_iter:
            self.data_loader = self.build_train_loader(self.cfg, self.start_iter)
            if not isinstance(self.checkpointer.model, Segmentor):
                self.data_loader = _with_int64_labels(self.data_loader)
        else:
            logger.info("Training is complete already: %d iterations are done.", self.start_iter)
        try:
            super().train(self.start_iter, self.max_iter)
        finally:
            if self._lock:
                self._lock.release()
                self._lock = None
        return self.last_results

    def _lock_folder(self) -> None:
        """Refuse to disturb another training in ``OUTPUT_DIR``."""
        if self._lock is None and comm.is_main_process():
            self._lock = RunLock(self.cfg.OUTPUT_DIR)

    def _check_test_sets(self) -> None:
        """Make mistakes in what the evaluation needs show before the training, not after it."""
        check_folder_names(self.cfg.DATASETS.TEST)
        for name in self.cfg.DATASETS.TEST:
            self.build_test_loader(self.cfg, name)
            self.build_evaluator(self.cfg, name)

    def save_checkpoint(self, name: str, *, resumable: bool = True, **extra: Any) -> None:
        """Write ``OUTPUT_DIR/<name>.pth`` as the state after the current iteration."""
        if resumable and name == self._last_saved:
            return
        self.read_steps()  # raises after a loss that is not finite
        iteration = min(self.iter, self.max_iter - 1)
        with self._averaged(not resumable):  # a signal may come in the middle of an evaluation
            self.checkpointer.save(
                name,
                resumable=resumable,
                iteration=iteration,
                seed=self.seed,
                sampler=sampler_state(self.cfg, self.seed, iteration),
                cfg=self.cfg.dump(),
                classes=class_table(self.cfg),
                versions=software_versions(),
                **extra,
            )
        if resumable:
            self._last_saved = name

    def _averaged(self, wanted: bool) -> contextlib.AbstractContextManager[None]:
        """Context in which the model has its averaged weights, if there are any, or its own."""
        if self.average is None:
            return contextlib.nullcontext()
        return self.average.applied() if wanted else self.average.removed()

    def _evaluate_all(self) -> Mapping[str, Any]:
        """Evaluate on all images, unless `TEST.SUBSET` is all of them already."""
        sizes = [len(DatasetCatalog.get(name)) for name in self.cfg.DATASETS.TEST]
        if max(sizes) <= self.cfg.TEST.SUBSET:
            return self.last_results
        return self._evaluate(on_all_images(self.cfg))

    def _evaluate(self, cfg: CfgNode | None = None) -> Mapping[str, Any]:
        broadcast_buffers(self.model)
        with self._averaged(True), sizes_vary():
            self.last_results = self.test(cfg or self.cfg, self.checkpointer.model)
            if self._pictures is not None and comm.is_main_process():
                self._pictures.draw(self.checkpointer.model, self.storage)
        return self.last_results

    @classmethod
    def test(
        cls,
        cfg: CfgNode,
        model: nn.Module,
        evaluators: DatasetEvaluator | list[DatasetEvaluator] | None = None,
    ) -> OrderedDict[str, Any]:
        """Evaluate with this trainer's loaders and evaluators, see :func:`.evaluation.run_test`."""
        return run_test(
            cfg,
            model,
            evaluators,
            build_loader=cls.build_test_loader,
            build_evaluator=cls.build_evaluator,
        )


def _with_int64_labels(batches: Iterable[Batch]) -> Iterator[Batch]:
    """Batches as models of Detectron2 expect them; those of this package widen on the device."""
    for batch in batches:
        yield [
            {**sample, "sem_seg": sample["sem_seg"].long()} if "sem_seg" in sample else sample
            for sample in batch
        ]
