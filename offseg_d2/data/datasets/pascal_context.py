"""Pascal Context: 59 frequent classes (60 with background) on 10 103 images of Pascal VOC 2010.

Mottaghi et al., "The Role of Context for Object Detection and Semantic Segmentation in the Wild",
CVPR 2014. Label files hold 0 for background and 1..59, the ranks of the kept categories' original
ids; ``datasets/prepare_pascal_context.py`` makes them of ``trainval_merged.json``. The 59-class
form ignores the background.
"""

from .colors import distinct_colors
from .folder import LabelKind, Layout, SemSegFolder, register_split

# (original id, name), by the value in the label files
CATEGORIES = (
    (0, "background"), (2, "aeroplane"), (9, "bag"), (18, "bed"), (19, "bedclothes"),
    (22, "bench"), (23, "bicycle"), (25, "bird"), (31, "boat"), (33, "book"), (34, "bottle"),
    (44, "building"), (45, "bus"), (46, "cabinet"), (59, "car"), (65, "cat"), (68, "ceiling"),
    (72, "chair"), (80, "cloth"), (85, "computer"), (98, "cow"), (104, "cup"), (105, "curtain"),
    (113, "dog"), (115, "door"), (144, "fence"), (158, "floor"), (159, "flower"), (162, "food"),
    (187, "grass"), (189, "ground"), (207, "horse"), (220, "keyboard"), (232, "light"),
    (258, "motorbike"), (259, "mountain"), (260, "mouse"), (284, "person"), (295, "plate"),
    (296, "platform"), (308, "pottedplant"), (324, "road"), (326, "rock"), (347, "sheep"),
    (349, "shelves"), (354, "sidewalk"), (355, "sign"), (360, "sky"), (366, "snow"),
    (368, "sofa"), (397, "table"), (415, "track"), (416, "train"), (420, "tree"), (424, "truck"),
    (427, "tvmonitor"), (440, "wall"), (445, "water"), (454, "window"), (458, "wood"),
)  # fmt: skip
_CLASSES = tuple((n, c) for (_, n), c in zip(CATEGORIES, distinct_colors(60), strict=True))
_BACKGROUND_COLOR = (0, 0, 0)
PASCAL_CONTEXT_60_CLASSES = (("background", _BACKGROUND_COLOR), *_CLASSES[1:])
PASCAL_CONTEXT_59_CLASSES = PASCAL_CONTEXT_60_CLASSES[1:]

PASCAL_CONTEXT_60_LABEL_MAP = {**{value: value for value in range(60)}, 255: 255}
PASCAL_CONTEXT_59_LABEL_MAP = {0: 255, **{v: v - 1 for v in range(1, 60)}, 255: 255}

TOP_DIRS = ("VOCdevkit/VOC2010", "VOC2010")
IMAGE_DIR = "JPEGImages"
LABEL_DIR = "SegmentationClassContext"
LIST_DIR = "ImageSets/SegmentationContext"


def register_pascal_context() -> None:
    """Register ``pascal_context_{59,60}_train`` and ``pascal_context_{59,60}_val``."""
    forms = (
        (59, PASCAL_CONTEXT_59_CLASSES, PASCAL_CONTEXT_59_LABEL_MAP),
        (60, PASCAL_CONTEXT_60_CLASSES, PASCAL_CONTEXT_60_LABEL_MAP),
    )
    for number, classes, label_map in forms:
        for split in ("train", "val"):
            lists = f"{LIST_DIR}/{split}.txt"
            layouts = [Layout(top, IMAGE_DIR, LABEL_DIR, lists) for top in TOP_DIRS]
            kinds = [LabelKind(".png", label_map)]
            name = f"pascal_context_{number}_{split}"
            register_split(SemSegFolder(name, layouts, kinds), classes)
