"""Any feature pyramid of timm as a backbone, by its name in timm.

timm (pip install timm) is an optional requirement; it is imported when such a backbone is built.
The network and its weights are timm's; this module only picks the levels and names them.

Shapes: B batch, C channels.
"""

from types import ModuleType

from detectron2.config import CfgNode
from detectron2.modeling import BACKBONE_REGISTRY, ShapeSpec
from torch import Tensor, nn

from offseg_d2.checkpoint import load_state_dict_file
from offseg_d2.modeling.backbone.freezing import FreezableBackbone

LEVELS = {4: "res2", 8: "res3", 16: "res4", 32: "res5"}
SIZE_DIVISIBILITY = 32


class TimmBackbone(FreezableBackbone):
    """A network of timm that gives features at strides 4, 8, 16 and 32.

    Args:
        name: name in timm, such as "convnext_tiny"; `name.tag` picks one of its weights.
        pretrained: load timm's own weights of that name, which it downloads.
        checkpoint: local file with weights of that network in timm's names (classifier included
            or not), read without executing anything; "" for none.
        image_size: (height, width) in pixels, passed to networks that are built for one input
            size, such as Swin; empty for all others.
        freeze_at: first parts that are not trained, see :meth:`.FreezableBackbone.freeze`.

    Raises:
        ValueError: if timm is not installed, has no such network, or this lacks one of the strides.
    """

    def __init__(
        self,
        name: str,
        *,
        pretrained: bool = False,
        checkpoint: str = "",
        image_size: tuple[int, ...] = (),
        freeze_at: int = 0,
    ) -> None:
        super().__init__()
        if pretrained and checkpoint:
            raise ValueError(
                "`MODEL.TIMM.PRETRAINED` must be False where `MODEL.TIMM.CHECKPOINT` is given, but "
                f"that is {checkpoint!r}."
            )
        options: dict = {"pretrained": pretrained, "features_only": True}
        if image_size:
            options["img_size"] = tuple(image_size)
        if checkpoint:
            # As timm does with its own: the classifier is left out, old names are renewed.
            weights = load_state_dict_file(checkpoint)
            options["pretrained"] = True
            options["pretrained_cfg_overlay"] = {"state_dict": weights}
        network = _create_model(name, options)
        if checkpoint:
            weights.clear()  # the network keeps a reference
        reductions = list(network.feature_info.reduction())
        # The deepest feature of each stride.
        self.positions = {stride: i for i, stride in enumerate(reductions) if stride in LEVELS}
        missing = sorted(set(LEVELS) - set(self.positions))
        if missing:
            raise ValueError(
                f"`MODEL.TIMM.NAME` must be a network with features at strides {list(LEVELS)}, but "
                f"{name!r} has them at {reductions}."
            )
        self.network: nn.Module = network
        # Some networks of timm carry their channels last.
        fmt = getattr(network, "output_fmt", "NCHW")
        self.channels_last = getattr(fmt, "value", fmt) == "NHWC"
        channels = network.feature_info.channels()
        self._out_features = list(LEVELS.values())
        self._out_feature_channels = {LEVELS[s]: channels[self.positions[s]] for s in LEVELS}
        self._out_feature_strides = {level: stride for stride, level in LEVELS.items()}
        self.freeze(freeze_at)

    def parts(self) -> list[list[nn.Module]]:
        """What comes before the modules of "res2", then what each further level adds.

        Networks of timm define their modules in the order in which these compute.

        Raises:
            ValueError: if timm does not say in which module a level ends.
        """
        modules = dict(self.network.named_modules())
        names, start = list(modules), 1  # the first one is the network itself
        parts: list[list[nn.Module]] = []
        for stride in LEVELS:
            level = self._module_of_level(self.positions[stride], names)
            end = names.index(level)
            before = [
                modules[name] for name in names[start:end] if not level.startswith(f"{name}.")
            ]
            parts += [[*before, modules[level]]] if parts else [before, [modules[level]]]
            start = end + 1
        return parts

    def _module_of_level(self, position: int, names: list[str]) -> str:
        name = self.network.feature_info.module_name(position)
        # Under which name depends on how timm takes the features out of a network.
        for candidate in (name, name.replace(".", "_"), f"model.{name}"):
            if candidate in names:
                return candidate
        raise ValueError(
            "`MODEL.BACKBONE.FREEZE_AT` must be 0 for this network of timm, whose stages are not "
            "known."
        )

    @property
    def size_divisibility(self) -> int:
        """Images are padded to a multiple of this, so that the levels halve exactly."""
        return SIZE_DIVISIBILITY

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """(B, 3, H, W), normalised, of multiples of 32 -> "res2".."res5" at strides 4 to 32."""
        features = self.network(image)
        outputs = {level: features[self.positions[stride]] for stride, level in LEVELS.items()}
        if self.channels_last:
            outputs = {level: x.permute(0, 3, 1, 2).contiguous() for level, x in outputs.items()}
        return outputs


@BACKBONE_REGISTRY.register()
def build_timm_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> TimmBackbone:
    """The network that `MODEL.TIMM.NAME` names."""
    keys = cfg.MODEL.TIMM
    return TimmBackbone(
        keys.NAME,
        pretrained=keys.PRETRAINED,
        checkpoint=keys.CHECKPOINT,
        image_size=tuple(keys.IMAGE_SIZE),
        freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT,
    )


def _create_model(name: str, options: dict) -> nn.Module:
    timm = _import_timm()
    base_name = name.split(".")[0]
    if not name or not timm.is_model(base_name):
        similar = timm.list_models(f"*{base_name}*")[:3] if name else []
        hint = f" Did you mean {', '.join(similar)}?" if similar else ""
        raise ValueError(f"`MODEL.TIMM.NAME` must be a network of timm, but is {name!r}.{hint}")
    try:
        return timm.create_model(name, **options)
    except (RuntimeError, AttributeError, TypeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"`MODEL.TIMM.NAME` {name!r} cannot be built as a feature pyramid: {reason}"
        ) from error


def _import_timm() -> ModuleType:
    try:
        import timm
    except ImportError as error:
        raise ValueError(
            "`MODEL.BACKBONE.NAME` build_timm_backbone needs the package timm: pip install timm."
        ) from error
    return timm
