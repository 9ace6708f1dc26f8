"""One file per dataset: classes, colours, layout, registration (on import, reading nothing)."""

from .ade20k import ADE20K_CLASSES, register_ade20k
from .camvid import CAMVID_CLASSES, register_camvid
from .cityscapes import CITYSCAPES_CLASSES, register_cityscapes
from .class_file import ClassTable, read_class_file
from .coco_stuff import COCO_STUFF_CLASSES, register_coco_stuff
from .folder import (
    IncompleteDatasetError,
    LabelKind,
    Layout,
    SemSegFolder,
    datasets_root,
    register_sem_seg,
    register_split,
)
from .own_data import adapt_to_folders, ensure_registered, register_folder, require_registered
from .pascal_context import (
    PASCAL_CONTEXT_59_CLASSES,
    PASCAL_CONTEXT_60_CLASSES,
    register_pascal_context,
)
from .shapes import (
    SHAPES_CLASSES,
    ShapesParams,
    generate_scene,
    register_shapes,
    register_within_class_shapes,
    within_class_params,
)

__all__ = [
    "ADE20K_CLASSES",
    "CAMVID_CLASSES",
    "CITYSCAPES_CLASSES",
    "COCO_STUFF_CLASSES",
    "PASCAL_CONTEXT_59_CLASSES",
    "PASCAL_CONTEXT_60_CLASSES",
    "SHAPES_CLASSES",
    "ClassTable",
    "IncompleteDatasetError",
    "LabelKind",
    "Layout",
    "SemSegFolder",
    "ShapesParams",
    "adapt_to_folders",
    "datasets_root",
    "ensure_registered",
    "generate_scene",
    "read_class_file",
    "register_ade20k",
    "register_camvid",
    "register_cityscapes",
    "register_coco_stuff",
    "register_folder",
    "register_pascal_context",
    "register_sem_seg",
    "register_shapes",
    "register_split",
    "register_within_class_shapes",
    "require_registered",
    "within_class_params",
]

register_ade20k()
register_camvid()
register_cityscapes()
register_coco_stuff()
register_pascal_context()
register_shapes()
register_within_class_shapes()
