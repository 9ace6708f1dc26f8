"""Which process of a run this is, read from what the launcher left in the environment."""

import dataclasses
import re
from collections.abc import Mapping

from offseg_d2.config import ConfigError


@dataclasses.dataclass(frozen=True)
class Place:
    """One process among those of a run.

    Attributes:
        launcher: what started the processes, for messages.
        rank, world_size: which of how many processes.
        local_rank, local_size: the same among those of this machine.
        address, port: where the processes meet.
        holds_store: whether the store of the meeting point is to be opened by this process.
        attempt: how often the run was started again; old processes must not be met.
    """

    launcher: str
    rank: int
    world_size: int
    local_rank: int
    local_size: int
    address: str
    port: int
    holds_store: bool
    attempt: int = 0


def find_place(environ: Mapping[str, str]) -> Place | None:
    """The place that torchrun, submitit's local executor or SLURM gives this process.

    Args:
        environ: environment variables.

    Returns:
        None for a process that was started by hand.

    Raises:
        ConfigError: if the variables do not fit together.
    """
    for find in (_torchrun, _submitit_local, _slurm):
        place = find(environ)
        if place is not None:
            return place
    return None


def restarts(environ: Mapping[str, str]) -> int:
    """How often the launcher has started this run again: by requeuing, or after a failure."""
    names = ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT")
    return max(int(environ.get(name) or 0) for name in names)


def _torchrun(environ: Mapping[str, str]) -> Place | None:
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    if any(name not in environ for name in names):
        return None
    rank, world_size, local_rank, local_size = (int(environ[name]) for name in names[:4])
    in_agent = environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    return Place(
        launcher="torchrun",
        rank=rank,
        world_size=world_size,
        local_rank=local_rank,
        local_size=local_size,
        address=environ["MASTER_ADDR"],
        port=int(environ["MASTER_PORT"]),
        holds_store=rank == 0 and not in_agent,
        attempt=restarts(environ),
    )


def _submitit_local(environ: Mapping[str, str]) -> Place | None:
    if environ.get("SUBMITIT_EXECUTOR") != "local":
        return None
    prefix = "SUBMITIT_LOCAL_"
    rank = int(environ[f"{prefix}GLOBALID"])
    return Place(
        launcher="submitit",
        rank=rank,
        world_size=int(environ[f"{prefix}NTASKS"]),
        local_rank=int(environ[f"{prefix}LOCALID"]),
        local_size=int(environ[f"{prefix}NTASKS"]),
        address="127.0.0.1",
        port=_port(environ[f"{prefix}JOB_ID"], 0),
        holds_store=rank == 0,
    )


def _slurm(environ: Mapping[str, str]) -> Place | None:
    # srun alone sets the number of tasks of a step. The script of a batch job, which runs once for
    # all tasks, has SLURM_PROCID and SLURM_NTASKS as well.
    if "SLURM_STEP_NUM_TASKS" not in environ or "SLURM_PROCID" not in environ:
        return None
    rank, local_rank = int(environ["SLURM_PROCID"]), int(environ["SLURM_LOCALID"])
    world_size = int(environ["SLURM_STEP_NUM_TASKS"])
    num_nodes = int(environ.get("SLURM_STEP_NUM_NODES") or environ["SLURM_NNODES"])
    local_size, rest = divmod(world_size, num_nodes)
    if rest or rank != int(environ["SLURM_NODEID"]) * local_size + local_rank:
        raise ConfigError(
            f"The {world_size} tasks of the SLURM step must lie on {num_nodes} nodes in blocks of "
            "equal size, but do not: use --ntasks-per-node and --distribution=block."
        )
    attempt = restarts(environ)
    return Place(
        launcher="SLURM",
        rank=rank,
        world_size=world_size,
        local_rank=local_rank,
        local_size=local_size,
        address=first_host(environ.get("SLURM_STEP_NODELIST") or environ["SLURM_JOB_NODELIST"]),
        port=_port(f"{environ['SLURM_JOB_ID']}.{environ.get('SLURM_STEP_ID', 0)}", attempt),
        holds_store=rank == 0,
        attempt=attempt,
    )


def first_host(node_list: str) -> str:
    """The first host of a SLURM node list: ``"gpu[017-020,31],login1"`` -> ``"gpu017"``."""
    first = re.match(r"(?:\[[^\]]*\]|[^,\[])*", node_list)
    assert first is not None  # it matches nothing at least
    return re.sub(r"\[([^\],-]*)[^\]]*\]", r"\1", first.group())


def _port(job: str, attempt: int) -> int:
    """A port that all processes of a job know; other jobs of the machine have others, mostly."""
    number = sum(int(part) * factor for part, factor in zip(re.findall(r"\d+", job), (7, 3, 1)))  # noqa: B905
    return 10000 + (number + 1009 * attempt) % 10000
