"""Make the project's Python environment: ``python3 tools/setup_env.py`` (or ``make setup``).

The same as ``offseg setup-env``, for a Python in which nothing is installed yet.
"""

import sys
from pathlib import Path

if sys.version_info < (3, 10):  # noqa: UP036
    sys.exit(
        f"Set-up failed: Python must be 3.10 or newer, but {sys.executable} is "
        f"{sys.version.split()[0]}. Name another one: make setup PYTHON=python3.11"
    )
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from offseg_d2.commands.setup_env import main

if __name__ == "__main__":
    main()
