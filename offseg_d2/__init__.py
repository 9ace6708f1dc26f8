"""OffSeg, offset learning for efficient semantic segmentation, on Detectron2.

Models and datasets are registered in Detectron2 from here on. The public names below are imported
when they are first used, so that ``import offseg_d2`` is quick, ``OffsetClassifier``,
``OffsetLearning`` and ``replace_classifier`` need nothing but torch, and ``offseg doctor`` runs in
a broken environment too.
"""

import sys

if sys.version_info < (3, 10):  # noqa: UP036
    raise ImportError(
        f"offseg_d2 needs Python 3.10 or newer, but {sys.executable} is {sys.version.split()[0]}."
    )

import importlib
import warnings
from typing import Any

from offseg_d2._requirements import register_with_detectron2
from offseg_d2.version import __version__

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
    "train": "offseg_d2.engine",
}

__all__ = ["__version__", *_PUBLIC_NAMES]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC_NAMES:
        raise AttributeError(f"module `offseg_d2` has no attribute {name!r}.")
    return getattr(importlib.import_module(_PUBLIC_NAMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC_NAMES})


register_with_detectron2()
