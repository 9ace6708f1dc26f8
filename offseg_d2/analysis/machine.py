"""The machine of a measurement."""

import datetime
import os
import platform
from typing import Any

import numpy as np
import torch
from detectron2.utils.file_io import PathManager


def machine() -> dict[str, Any]:
    """Processor, GPU if there is one, versions and date, as a record of a measurement needs them.

    ``load`` is that of the last 1, 5 and 15 minutes: a machine that does something else measures
    too long times.
    """
    facts: dict[str, Any] = {
        "date": datetime.date.today().isoformat(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": [round(value, 1) for value in os.getloadavg()],
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "numpy": np.__version__,
    }
    if torch.cuda.is_available():
        facts.update(gpu=torch.cuda.get_device_name(), cuda=torch.version.cuda)
    return facts


def _processor() -> str:
    try:
        with PathManager.open("/proc/cpuinfo") as file:
            names = [line.split(":", 1)[1].strip() for line in file if "model name" in line]
    except OSError:
        names = []
    return names[0] if names else platform.processor()
