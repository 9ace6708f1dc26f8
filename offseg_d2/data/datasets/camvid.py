"""CamVid, the 11-class split: 701 frames of 480x360 from a driving car.

Brostow et al., "Semantic object classes in video: a high-definition ground truth database",
Pattern Recognition Letters 2009; the 11 classes and the split of 367 / 101 / 233 frames are those
of Badrinarayanan et al., "SegNet" (arXiv 1511.00561). Results are quoted on the test split: the
validation frames are one sequence that the training frames also hold.

Layout below ``camvid/``: ``images/{split}/*.jpg``, ``annotations/{split}/*.png`` (value = class,
11 = void) and ``{split}.txt`` (one name a line).
"""

from .folder import LabelKind, Layout, SemSegFolder, register_split

# (name, colour), by train id
CAMVID_CLASSES = (
    ("sky", (128, 128, 128)),
    ("building", (128, 0, 0)),
    ("pole", (192, 192, 128)),
    ("road", (128, 64, 128)),
    ("pavement", (60, 40, 222)),
    ("tree", (128, 128, 0)),
    ("sign_symbol", (192, 128, 128)),
    ("fence", (64, 64, 128)),
    ("car", (64, 0, 128)),
    ("pedestrian", (64, 64, 0)),
    ("bicyclist", (0, 128, 192)),
)
CAMVID_VOID = 11
CAMVID_SPLITS = ("train", "val", "test")


def register_camvid() -> None:
    """Register ``camvid_train``, ``camvid_val`` and ``camvid_test``."""
    label_map = {train_id: train_id for train_id in range(len(CAMVID_CLASSES))}
    label_map[CAMVID_VOID] = 255
    for split in CAMVID_SPLITS:
        layout = Layout("camvid", f"images/{split}", f"annotations/{split}", f"{split}.txt")
        folder = SemSegFolder(f"camvid_{split}", [layout], [LabelKind(".png", label_map)])
        register_split(folder, CAMVID_CLASSES)
