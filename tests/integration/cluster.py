"""A throw-away SLURM cluster of this machine, for the tests."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("slurm_local.sh")
PACKAGES = "munge slurm-client slurmctld slurmd slurmdbd mariadb-server-core"
# Where this variable is set, absent programs are a failure instead of a reason to skip.
REQUIRED = "OFFSEG_REQUIRE_SLURM"


def call(command: str, directory: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "SLURM_LOCAL_DIR": directory}
    return subprocess.run(
        [str(SCRIPT), command], env=environment, capture_output=True, text=True, timeout=120
    )


def running_cluster() -> Iterator[dict[str, str]]:
    """Start a cluster of two nodes; yields the variables that lead to it, and stops it."""
    # /tmp: the path of a socket may not be long
    directory = tempfile.mkdtemp(prefix="slurm-", dir="/tmp")
    if call("missing", directory).returncode:
        shutil.rmtree(directory)
        reason = f"SLURM is not installed: apt-get install -y --no-install-recommends {PACKAGES}"
        if os.environ.get(REQUIRED):
            pytest.fail(reason)
        pytest.skip(reason)
    try:
        started = call("start", directory)
        assert started.returncode == 0, f"SLURM did not start:\n{started.stderr[-4000:]}"
        lines = [line.removeprefix("export ") for line in started.stdout.splitlines()]
        yield dict(line.split("=", 1) for line in lines)
    finally:
        call("stop", directory)
        shutil.rmtree(directory, ignore_errors=True)
