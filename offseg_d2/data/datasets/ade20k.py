"""ADE20K, the 150 classes of the scene parsing challenge: 20 210 images, 2000 for validation.

Zhou et al., "Scene Parsing through ADE20K Dataset", CVPR 2017. The download
``ADEChallengeData2016`` is used as it is: its label files hold 1..150, and 0 for everything else,
which is ignored.
"""

from .colors import distinct_colors
from .folder import LabelKind, Layout, SemSegFolder, register_split

# By train id: the first of the names that objectInfo150.txt gives each class, to the letter (there
# is a blank behind "bed").
_NAMES = (
    "wall", "building", "sky", "floor", "tree", "ceiling", "road", "bed ", "windowpane", "grass",
    "cabinet", "sidewalk", "person", "earth", "door", "table", "mountain", "plant", "curtain",
    "chair", "car", "water", "painting", "sofa", "shelf", "house", "sea", "mirror", "rug",
    "field", "armchair", "seat", "fence", "desk", "rock", "wardrobe", "lamp", "bathtub",
    "railing", "cushion", "base", "box", "column", "signboard", "chest of drawers", "counter",
    "sand", "sink", "skyscraper", "fireplace", "refrigerator", "grandstand", "path", "stairs",
    "runway", "case", "pool table", "pillow", "screen door", "stairway", "river", "bridge",
    "bookcase", "blind", "coffee table", "toilet", "flower", "book", "hill", "bench",
    "countertop", "stove", "palm", "kitchen island", "computer", "swivel chair", "boat", "bar",
    "arcade machine", "hovel", "bus", "towel", "light", "truck", "tower", "chandelier", "awning",
    "streetlight", "booth", "television", "airplane", "dirt track", "apparel", "pole", "land",
    "bannister", "escalator", "ottoman", "bottle", "buffet", "poster", "stage", "van", "ship",
    "fountain", "conveyer belt", "canopy", "washer", "plaything", "swimming pool", "stool",
    "barrel", "basket", "waterfall", "tent", "bag", "minibike", "cradle", "oven", "ball", "food",
    "step", "tank", "trade name", "microwave", "pot", "animal", "bicycle", "lake", "dishwasher",
    "screen", "blanket", "sculpture", "hood", "sconce", "vase", "traffic light", "tray",
    "ashcan", "fan", "pier", "crt screen", "plate", "monitor", "bulletin board", "shower",
    "radiator", "glass", "clock", "flag",
)  # fmt: skip
# The scene parsing challenge's own colours are not part of the download.
ADE20K_CLASSES = tuple(zip(_NAMES, distinct_colors(len(_NAMES)), strict=True))

# The labels of the challenge, and 255 as tools that add nothing to the ids may mark no label.
ADE20K_LABEL_MAP = {0: 255, **{raw_id: raw_id - 1 for raw_id in range(1, 151)}, 255: 255}

_TOP_DIRS = ("ADEChallengeData2016", "ade/ADEChallengeData2016")
_SPLITS = {"train": "training", "val": "validation"}


def register_ade20k() -> None:
    """Register ``ade20k_150_train`` and ``ade20k_150_val``."""
    for split, folder in _SPLITS.items():
        layouts = [Layout(top, f"images/{folder}", f"annotations/{folder}") for top in _TOP_DIRS]
        kinds = [LabelKind(".png", ADE20K_LABEL_MAP)]
        register_split(SemSegFolder(f"ade20k_150_{split}", layouts, kinds), ADE20K_CLASSES)
