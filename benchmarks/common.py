"""What the benchmarks share: what they ran on, and their JSON files."""

import datetime
import json
import os
import platform
from typing import Any

import numpy as np
import torch
from detectron2.utils.file_io import PathManager


def machine() -> dict[str, Any]:
    """Processor, versions and date."""
    return {
        "date": datetime.date.today().isoformat(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": [round(value, 1) for value in os.getloadavg()],
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "numpy": np.__version__,
    }


def _processor() -> str:
    try:
        with PathManager.open("/proc/cpuinfo") as file:
            names = [line.split(":", 1)[1].strip() for line in file if "model name" in line]
    except OSError:
        names = []
    return names[0] if names else platform.processor()


def write_json(path: str, content: dict[str, Any]) -> None:
    """Write the result of a benchmark."""
    with PathManager.open(path, "w") as file:
        json.dump(content, file, indent=1)
    print(f"wrote {path}")
