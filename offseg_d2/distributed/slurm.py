"""Jobs on a SLURM cluster, through submitit: what they ask for, submitting and following them."""

import dataclasses
import os
import re
import shlex
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import submitit
from submitit.core.utils import environment_variables

from offseg_d2.config import ConfigError

from .slurm_job import SOURCE_ROOT, TrainingJob

# submitit counts time-outs and gives up at this number; preemptions are not counted.
_MAX_TIMEOUTS = 10_000
_TIME = re.compile(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?")


@dataclasses.dataclass(frozen=True)
class Resources:
    """Resources that a job asks the cluster for.

    Attributes:
        nodes: machines.
        gpus_per_node: GPUs, and processes, of each machine; 0 trains on the CPU.
        processes_per_node: processes of each machine where ``gpus_per_node`` is 0.
        time: limit as SLURM writes it: ``MINUTES``, ``HH:MM:SS``, ``D-HH``, ...
        signal_seconds: how long before the limit the job is asked to save.
        partition, constraint, account, comment: as of ``sbatch``; "" leaves them out.
        cpus_per_task: processors of each process, for its data-loader workers.

    Raises:
        ConfigError: if a number is out of range.
    """

    nodes: int = 1
    gpus_per_node: int = 1
    processes_per_node: int = 1
    time: str = "24:00:00"
    signal_seconds: int = 120
    partition: str = ""
    constraint: str = ""
    account: str = ""
    comment: str = ""
    cpus_per_task: int = 8
    name: str = "offseg"

    def __post_init__(self) -> None:
        least = {"nodes": 1, "gpus_per_node": 0, "processes_per_node": 1, "cpus_per_task": 1}
        for name, minimum in {**least, "signal_seconds": 0}.items():
            if getattr(self, name) < minimum:
                raise ConfigError(
                    f"`--{name.replace('_', '-')}` must be at least {minimum}, "
                    f"but is {getattr(self, name)}."
                )
        # The job would be asked to save as soon as it starts, and be queued again for ever.
        if self.signal_seconds >= 60 * minutes(self.time):
            raise ConfigError(
                f"`--signal-seconds` must be less than the time limit `--time` {self.time}, "
                f"but is {self.signal_seconds}."
            )

    @property
    def tasks_per_node(self) -> int:
        return self.gpus_per_node or self.processes_per_node

    def parameters(self) -> dict[str, Any]:
        """Parameters of submitit's SLURM executor."""
        texts = ("partition", "constraint", "account", "comment")
        optional = {key: getattr(self, key) for key in texts if getattr(self, key)}
        if self.gpus_per_node:
            optional["gpus_per_node"] = self.gpus_per_node
        return {
            "job_name": self.name,
            "nodes": self.nodes,
            "ntasks_per_node": self.tasks_per_node,
            "cpus_per_task": self.cpus_per_task,
            "time": minutes(self.time),
            "signal_delay_s": self.signal_seconds,
            "setup": [
                # the program that submitted, whatever is installed
                f"export PYTHONPATH={shlex.quote(str(SOURCE_ROOT))}${{PYTHONPATH:+:$PYTHONPATH}}",
                "export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}",
            ],
            # Since SLURM 22.05 the tasks do not inherit the number of processors from the job.
            "srun_args": [f"--cpus-per-task={self.cpus_per_task}", "--kill-on-bad-exit=1"],
            "additional_parameters": {"requeue": True},
            **optional,
        }


def minutes(text: str) -> int:
    """A time limit of SLURM in whole minutes, rounded up: ``"1-06:30:00"`` -> 1830.

    Raises:
        ConfigError: if the text is not one of SLURM's forms.
    """
    match = _TIME.fullmatch(text)
    if match is None:
        raise ConfigError(f"`--time` must be like 90, 24:00:00 or 1-12, but is {text!r}.")
    days, *parts = match.groups()
    numbers = [int(part) for part in parts if part is not None]
    if days is not None:  # D-HH[:MM[:SS]]
        factors = (3600, 60, 1)
    else:  # MM, MM:SS or HH:MM:SS
        factors = {1: (60,), 2: (60, 1), 3: (3600, 60, 1)}[len(numbers)]
    total = sum(n * factor for n, factor in zip(numbers, factors, strict=False))
    seconds = int(days or 0) * 86400 + total
    if seconds < 60:
        raise ConfigError(f"`--time` must be at least a minute, but is {text!r}.")
    return -(-seconds // 60)


class _Executor(submitit.SlurmExecutor):
    """submitit's, which can show its script where there is no SLURM."""

    @classmethod
    def affinity(cls) -> int:
        return 1

    def script(self) -> str:
        return self._make_submission_file_text(self._submitit_command_str, "job")


def submission_script(folder: Path, resources: Resources) -> str:
    """The batch script that :func:`submit` would hand to ``sbatch``."""
    return _slurm_executor(folder, resources).script()


def _slurm_executor(folder: Path, resources: Resources) -> _Executor:
    executor = _Executor(folder=folder, max_num_timeout=_MAX_TIMEOUTS)
    executor.update_parameters(**resources.parameters())
    return executor


def submit(
    folder: Path, resources: Resources, jobs: Sequence[TrainingJob], *, cluster: str = "slurm"
) -> list[submitit.Job]:
    """Queue the jobs, several as one job array.

    Args:
        folder: of the scripts and logs, seen by all machines.
        resources: of each job.
        jobs: what to run.
        cluster: "slurm", or "local" for processes of this machine.

    Raises:
        ConfigError: if there is no such cluster here, or it is one machine and not enough.
    """
    if cluster == "local" and resources.nodes > 1:
        raise ConfigError(f"`--nodes` must be 1 with --cluster local, but is {resources.nodes}.")
    if cluster == "local":
        executor: Any = submitit.LocalExecutor(folder=folder, max_num_timeout=_MAX_TIMEOUTS)
        executor.update_parameters(
            timeout_min=minutes(resources.time),
            tasks_per_node=resources.tasks_per_node,
            signal_delay_s=resources.signal_seconds,
        )
        if resources.gpus_per_node:
            executor.update_parameters(gpus_per_node=resources.gpus_per_node)
    elif submitit.SlurmExecutor.affinity() > 0:
        executor = _slurm_executor(folder, resources)
    else:
        raise ConfigError("`--cluster` must be local where SLURM's srun is not installed.")
    # Local tasks inherit this; through a shell, as set-up lines, they would not get signals.
    path = os.pathsep.join([str(SOURCE_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    with environment_variables(PYTHONPATH=path):
        if len(jobs) == 1:
            return [executor.submit(jobs[0])]
        with executor.batch():
            submitted = [executor.submit(job) for job in jobs]
    return submitted


def follow(job: submitit.Job, write: Callable[[str], Any], *, seconds: float = 2.0) -> Any:
    """Write the log of the main process as it grows, until the job is over.

    Returns:
        what the job returned in the main process.

    Raises:
        FailedJobError: with the traceback of the process that failed.
        UncompletedJobError: if the job was cancelled or killed.
    """
    log, position = job.task(0).paths.stdout, 0
    over = False
    while not over:
        over = job.done()
        if log.exists():
            with open(log, "rb") as file:
                file.seek(position)
                text = file.read()
            position += len(text)
            if text:
                write(text.decode(errors="replace"))
        if not over:
            time.sleep(seconds)
    tasks = [job.task(rank) for rank in range(job.num_tasks)]
    # The first to fail is the cause: the others fail because they wait for it, or are killed.
    tasks.sort(key=lambda task: _end_time(task.paths.result_pickle))
    for task in tasks:
        if (error := task.exception()) is not None:
            raise error
    return job.task(0).result()


def _end_time(result: Path) -> float:
    return result.stat().st_mtime if result.exists() else float("inf")
