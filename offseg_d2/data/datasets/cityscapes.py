"""Cityscapes, 19 classes: 5000 finely labelled images of 2048x1024 from a driving car.

Cordts et al., "The Cityscapes Dataset for Semantic Urban Scene Understanding" (arXiv 1604.01685).
The downloads ``leftImg8bit_trainvaltest`` and ``gtFine_trainvaltest`` are used as they are: the ids
of ``*_gtFine_labelIds.png`` become train ids while they are read. The test split can be predicted,
but not evaluated.
"""

from detectron2.data.datasets.builtin_meta import CITYSCAPES_CATEGORIES

from .folder import LabelKind, Layout, SemSegFolder, register_split

# (name, colour), by train id; Detectron2 lists them in this order
CITYSCAPES_CLASSES = tuple((c["name"], tuple(c["color"])) for c in CITYSCAPES_CATEGORIES)

_NUM_IDS = 34  # 0..33; licence plates, -1, are never drawn
CITYSCAPES_LABEL_IDS = {
    **dict.fromkeys(range(_NUM_IDS), 255),
    **{c["id"]: c["trainId"] for c in CITYSCAPES_CATEGORIES},
    255: 255,
}
CITYSCAPES_TRAIN_IDS = {**{i: i for i in range(len(CITYSCAPES_CLASSES))}, 255: 255}


def register_cityscapes() -> None:
    """Register ``cityscapes_19_train``, ``cityscapes_19_val`` and ``cityscapes_19_test``."""
    # The second is what cityscapesScripts makes of the first. Both hold the same, and the first
    # one that is there is taken; every download has `labelIds`.
    kinds = [
        LabelKind("_gtFine_labelIds.png", CITYSCAPES_LABEL_IDS),
        LabelKind("_gtFine_labelTrainIds.png", CITYSCAPES_TRAIN_IDS),
    ]
    for split in ("train", "val", "test"):
        # The labels of the test split are not public: its files hold none of the 19 classes.
        label_dir = None if split == "test" else f"gtFine/{split}"
        register_split(
            SemSegFolder(
                f"cityscapes_19_{split}",
                [Layout("cityscapes", f"leftImg8bit/{split}", label_dir)],
                kinds,
                image_suffixes=("_leftImg8bit.png",),
            ),
            CITYSCAPES_CLASSES,
        )
