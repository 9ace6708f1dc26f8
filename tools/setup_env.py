"""Make the project's Python environment: ``python3 tools/setup_env.py`` (or ``make setup``).

Standard library only. Does nothing, at once, when the environment is complete; finishes or
makes anew what an interrupted set-up left behind.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from environment.problems import SetupError, check_python
from environment.runner import Runner, fail
from environment.steps import Environment

ROOT = Path(__file__).resolve().parent.parent
LOG_NAME = ".setup.log"
LOCK_NAME = ".setup.lock"


def set_up(environment: Environment) -> None:
    """Bring ``environment`` up, step by step; the finished state is written last."""
    started = time.monotonic()
    runner = Runner(ROOT / LOG_NAME, steps=5)
    runner.hold_lock(ROOT / LOCK_NAME)
    if environment.is_ready():  # another set-up may have ended while this one waited
        return
    step = f"virtual environment {environment.venv}"
    runner.begin(step)
    environment.make(runner, step)

    step = "requirements (torch among them: some GB, several minutes)"
    runner.begin(step)
    environment.install_requirements(runner, step)

    step = "Detectron2"
    runner.begin(step)
    environment.install_detectron2(runner, step)

    step = "offseg_d2 itself"
    runner.begin(step)
    environment.install_package(runner, step)

    step = "check that everything fits together"
    runner.begin(step)
    runner.run(step, [str(environment.python), "-m", "offseg_d2.doctor"], ROOT)
    environment.write_state(environment.fingerprint())
    print(f"The environment is complete after {time.monotonic() - started:.0f} s.", flush=True)


def add_detectron2_here() -> None:
    """Install Detectron2 into the environment of the running Python, and nothing else."""
    environment = Environment(ROOT, Path(sys.prefix))
    environment.python = Path(sys.executable)
    runner = Runner(ROOT / LOG_NAME, steps=1)
    runner.hold_lock(ROOT / LOCK_NAME)
    runner.begin("Detectron2")
    environment.install_detectron2(runner, "Detectron2")


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the Python environment of offseg_d2.")
    parser.add_argument("--venv", type=Path, default=ROOT / ".venv", help="folder to make")
    parser.add_argument(
        "--detectron2-here",
        action="store_true",
        help="only add Detectron2 to the environment of the Python that runs this",
    )
    args = parser.parse_args()
    try:
        check_python(sys.version_info[:3])
        if args.detectron2_here:
            add_detectron2_here()
            return
        environment = Environment(ROOT, args.venv.absolute())
        if not environment.is_ready():
            set_up(environment)
    except SetupError as error:
        fail(error)
    except KeyboardInterrupt:
        fail("Interrupted. Run the same command again to finish the set-up.")


if __name__ == "__main__":
    main()
