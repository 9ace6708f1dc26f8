"""What the benchmarks share: what they ran on, and their JSON files."""

import json
from typing import Any

from detectron2.utils.file_io import PathManager

from offseg_d2.analysis import machine

__all__ = ["machine", "write_json"]


def write_json(path: str, content: dict[str, Any]) -> None:
    """Write the result of a benchmark."""
    with PathManager.open(path, "w") as file:
        json.dump(content, file, indent=1)
    print(f"wrote {path}")
