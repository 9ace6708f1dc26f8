"""OffSeg, offset learning for efficient semantic segmentation, on Detectron2.

The public names below are imported when they are first used, so that ``import offseg_d2`` is
quick and ``python -m offseg_d2.doctor`` runs in a broken environment too.
"""

import importlib
import warnings
from typing import Any

from offseg_d2._requirements import require_detectron2
from offseg_d2.version import __version__

require_detectron2()

# fvcore and Detectron2 compile a few functions, none of them used here, when they are imported.
warnings.filterwarnings(
    "ignore", r"`torch\.jit\.script` is deprecated", FutureWarning, r"torch\.jit\._script"
)

# public name -> module that defines it
_PUBLIC_NAMES: dict[str, str] = {
    "OffsetClassifier": "offseg_d2.modeling.classifiers",
    "OffsetLearning": "offseg_d2.modeling.offset_learning",
    "Segmenter": "offseg_d2.inference.segmenter",
    "SemSegEvaluator": "offseg_d2.evaluation",
    "Trainer": "offseg_d2.engine",
    "add_offseg_config": "offseg_d2.config",
    "load_config": "offseg_d2.config",
    "replace_classifier": "offseg_d2.modeling.replace_classifier",
}

__all__ = ["__version__", *_PUBLIC_NAMES]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC_NAMES:
        raise AttributeError(f"module `offseg_d2` has no attribute {name!r}.")
    return getattr(importlib.import_module(_PUBLIC_NAMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC_NAMES})
