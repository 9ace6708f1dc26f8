"""MobileNetV2 of torchvision as a backbone.

Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks", CVPR 2018
(arXiv:1801.04381). The network is torchvision's, without its classifier; each level is the last
layer of its stride. A file with torchvision's weights works as `MODEL.WEIGHTS`.
"""

from itertools import pairwise

from detectron2.config import CfgNode, configurable
from detectron2.modeling import BACKBONE_REGISTRY, ShapeSpec
from torch import Tensor, nn
from torchvision.models import mobilenet_v2

from offseg_d2.modeling.backbone.freezing import FreezableBackbone

STEM_LAYERS = 2  # at stride 2
# Level -> (index of its last layer, stride, channels).
MOBILENET_V2_LEVELS = {
    "res2": (3, 4, 24),
    "res3": (6, 8, 32),
    "res4": (13, 16, 96),
    "res5": (18, 32, 1280),
}


@BACKBONE_REGISTRY.register()
class TorchvisionMobileNetV2(FreezableBackbone):
    """MobileNetV2, width 1.0, with random weights.

    Args:
        freeze_at: first parts that are not trained, see :meth:`.FreezableBackbone.freeze`.
    """

    @configurable
    def __init__(self, *, freeze_at: int = 0) -> None:
        super().__init__()
        self.features = mobilenet_v2(weights=None).features
        self._out_features = list(MOBILENET_V2_LEVELS)
        self._out_feature_strides = {k: stride for k, (_, stride, _) in MOBILENET_V2_LEVELS.items()}
        self._out_feature_channels = {k: dim for k, (_, _, dim) in MOBILENET_V2_LEVELS.items()}
        self.freeze(freeze_at)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict:
        return {"freeze_at": cfg.MODEL.BACKBONE.FREEZE_AT}

    def parts(self) -> list[list[nn.Module]]:
        """The layers of stride 2, then those of each level."""
        ends = [last + 1 for last, _, _ in MOBILENET_V2_LEVELS.values()]
        layers = list(self.features)
        return [layers[a:b] for a, b in pairwise([0, STEM_LAYERS, *ends])]

    @property
    def size_divisibility(self) -> int:
        """Images are padded to a multiple of this, so that the levels halve exactly."""
        return 32

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """(B, 3, H, W), normalised, of multiples of 32 -> "res2".."res5" at strides 4 to 32."""
        names = {index: name for name, (index, _, _) in MOBILENET_V2_LEVELS.items()}
        outputs = {}
        features = image
        for index, layer in enumerate(self.features):
            features = layer(features)
            if index in names:
                outputs[names[index]] = features
        return outputs
