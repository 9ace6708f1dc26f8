"""COCO-Stuff-164k, 171 classes: 80 things and 91 kinds of stuff in all images of COCO 2017.

Caesar et al., "COCO-Stuff: Thing and Stuff Classes in Context" (arXiv 1612.03716). The download
``stuffthingmaps_trainval2017`` is used as it is: its maps hold COCO's category id less one, 0..181
with gaps, and 255 for no label.
"""

import itertools

from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES

from .colors import distinct_colors
from .folder import LabelKind, Layout, SemSegFolder, register_split

_NUM_RAW_IDS = 182
# Raw ids of the eleven categories that COCO has named but never labelled.
UNUSED_RAW_IDS = (11, 25, 28, 29, 44, 65, 67, 68, 70, 82, 90)
_RAW_IDS = [raw_id for raw_id in range(_NUM_RAW_IDS) if raw_id not in UNUSED_RAW_IDS]
COCO_STUFF_LABEL_MAP = {
    **{raw_id: train_id for train_id, raw_id in enumerate(_RAW_IDS)},
    255: 255,
}
COCO_STUFF_TRAIN_IDS = {**{train_id: train_id for train_id in range(len(_RAW_IDS))}, 255: 255}

# Raw ids 91..181
_STUFF_NAMES = (
    "banner", "blanket", "branch", "bridge", "building-other", "bush", "cabinet", "cage",
    "cardboard", "carpet", "ceiling-other", "ceiling-tile", "cloth", "clothes", "clouds",
    "counter", "cupboard", "curtain", "desk-stuff", "dirt", "door-stuff", "fence",
    "floor-marble", "floor-other", "floor-stone", "floor-tile", "floor-wood", "flower", "fog",
    "food-other", "fruit", "furniture-other", "grass", "gravel", "ground-other", "hill", "house",
    "leaves", "light", "mat", "metal", "mirror-stuff", "moss", "mountain", "mud", "napkin",
    "net", "paper", "pavement", "pillow", "plant-other", "plastic", "platform", "playingfield",
    "railing", "railroad", "river", "road", "rock", "roof", "rug", "salad", "sand", "sea",
    "shelf", "sky-other", "skyscraper", "snow", "solid-other", "stairs", "stone", "straw",
    "structural-other", "table", "tent", "textile-other", "towel", "tree", "vegetable",
    "wall-brick", "wall-concrete", "wall-other", "wall-panel", "wall-stone", "wall-tile",
    "wall-wood", "water-other", "waterdrops", "window-blind", "window-other", "wood",
)  # fmt: skip


def _classes() -> tuple[tuple[str, tuple[int, int, int]], ...]:
    """Names and colours by train id; Detectron2 knows those of all things and of most stuff."""
    things = [c for c in COCO_CATEGORIES if c["isthing"]]
    # Its stuff is that of panoptic segmentation, where several kinds are merged into one.
    stuff_colors = {
        c["name"].removesuffix("-merged"): c["color"] for c in COCO_CATEGORIES if not c["isthing"]
    }
    spare = itertools.filterfalse(
        [c["color"] for c in COCO_CATEGORIES].__contains__, distinct_colors(len(_RAW_IDS))
    )
    stuff = [(name, stuff_colors.get(name) or next(spare)) for name in _STUFF_NAMES]
    named = [(c["name"], c["color"]) for c in things] + stuff
    return tuple((name, tuple(color)) for name, color in named)


COCO_STUFF_CLASSES = _classes()


def _layouts(split: str) -> list[Layout]:
    subset = f"{split}2017"
    in_coco = [
        Layout("coco", f"{images}{subset}", f"{labels}/{subset}")
        for labels in ("stuffthingmaps", "stuffthingmaps_trainval2017", "annotations")
        for images in ("", "images/")
    ]
    mmsegmentation = Layout("coco_stuff164k", f"images/{subset}", f"annotations/{subset}")
    return [mmsegmentation, *in_coco]


def register_coco_stuff() -> None:
    """Register ``coco_stuff_171_train`` and ``coco_stuff_171_val``."""
    # The second is what mmsegmentation makes of the first; both hold the same, and the first one
    # that is there is taken.
    kinds = [
        LabelKind(".png", COCO_STUFF_LABEL_MAP),
        LabelKind("_labelTrainIds.png", COCO_STUFF_TRAIN_IDS),
    ]
    for split in ("train", "val"):
        folder = SemSegFolder(f"coco_stuff_171_{split}", _layouts(split), kinds)
        register_split(folder, COCO_STUFF_CLASSES)
