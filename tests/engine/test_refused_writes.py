"""A system that refuses to write (a full disk, a quota, a limit): one sentence, nothing else."""

import resource
import subprocess
import sys

import pytest

from tests.common import ROOT
from tests.engine.tiny import make_cfg

# Trains with a limit on the size of each file that is written.
SCRIPT = """
import resource, sys
import offseg_d2
from offseg_d2.utils.cli import report_user_errors
from tests.engine.tiny import TinyTrainer

resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]),) * 2)
report_user_errors(
    lambda: offseg_d2.train(sys.argv[1], {"SOLVER.MAX_ITER": 4}, trainer=TinyTrainer, num_gpus=0)
)
"""
# Bytes that may be written -> the first file for which they do not suffice.
LIMITS = {1_000: "config.yaml", 15_000: "model_"}


@pytest.mark.skipif(not hasattr(resource, "RLIMIT_FSIZE"), reason="no such limit on this system")
@pytest.mark.parametrize("limit", LIMITS)
def test_refused_writes_of_a_training(tmp_path, limit):
    folder = tmp_path / "run"
    config = tmp_path / "tiny.yaml"
    config.write_text(make_cfg(folder).dump())
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(config), str(limit)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 2, result.stderr
    assert "Traceback" not in result.stderr + result.stdout
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and "File too large" in errors[0] and LIMITS[limit] in errors[0]
    assert not [path for path in folder.iterdir() if path.name.startswith(".tmp")]
