"""tools/train_net.py with the tiny model, slow enough to be interrupted and able to fail.

``main`` is called by the tasks of a job, and by ``python -m tests.integration.tiny_train``.
"""

import importlib
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from detectron2.utils import comm

from offseg_d2 import engine
from tests.common import ROOT
from tests.engine.tiny import TinyTrainer

# Environment variables: seconds that an iteration takes; "rank:iteration" at which a process fails;
# how it fails, "raise" or the name of a signal.
SECONDS = "TINY_SECONDS"
FAIL_AT = "TINY_FAIL_AT"
FAILURE = "TINY_FAILURE"
# Files with the iterations and losses of a run, and made when it is about to fail.
LOSSES = "losses.txt"
FAILED = "failed"


class SlowTrainer(TinyTrainer):
    """Sleeps in each iteration, and notes each loss: those in metrics.json are smoothed."""

    def run_step(self) -> None:
        time.sleep(float(os.environ.get(SECONDS, 0)))
        if os.environ.get(FAIL_AT) == f"{comm.get_rank()}:{self.iter}":
            self._fail(os.environ.get(FAILURE, "raise"))
        super().run_step()
        if comm.is_main_process():
            loss = self.storage.history("total_loss").latest()
            with open(os.path.join(self.cfg.OUTPUT_DIR, LOSSES), "a", encoding="utf-8") as file:
                file.write(f"{self.iter} {loss!r}\n")

    def _fail(self, how: str) -> None:
        Path(self.cfg.OUTPUT_DIR, FAILED).touch()
        if how != "raise":
            os.kill(os.getpid(), signal.Signals[how])
        raise RuntimeError(f"process {comm.get_rank()} was asked to fail")


def take_over() -> None:
    """Make tools/train_net.py, which is not imported yet, use this trainer."""
    engine.Trainer = SlowTrainer
    sys.path.insert(0, str(ROOT / "tools"))


def main(arguments: Sequence[str] | None = None) -> Any:
    """tools/train_net.py's own."""
    take_over()
    return importlib.import_module("train_net").main(arguments)


if __name__ in ("__main__", "__mp_main__"):  # or a process that this one has started
    take_over()
if __name__ == "__main__":
    main()
