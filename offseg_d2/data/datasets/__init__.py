"""One file per dataset: classes, colours, layout, registration (on import, reading nothing)."""

from .camvid import CAMVID_CLASSES, register_camvid
from .folder import SemSegFolder, datasets_root, register_sem_seg
from .shapes import SHAPES_CLASSES, ShapesParams, generate_scene, register_shapes

__all__ = [
    "CAMVID_CLASSES",
    "SHAPES_CLASSES",
    "SemSegFolder",
    "ShapesParams",
    "datasets_root",
    "generate_scene",
    "register_camvid",
    "register_sem_seg",
    "register_shapes",
]

register_camvid()
register_shapes()
