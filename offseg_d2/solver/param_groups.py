"""Parameter groups of the optimizer as an ordered table of rules.

A rule is a full pattern on parameter names. The first rule that matches decides alone; parameters
without a rule get the base learning rate and weight decay. A rule that matches no parameter is an
error.

The tables "per_pixel" reproduce the groups of the authors' training runs: everything in the head,
its norms and biases included, learns faster with the usual weight decay; so do the talking heads
of EfficientFormerV2; layers of the backbone that are named norm have no weight decay.

The table "mask_query" is Mask2Former's (arXiv:2112.01527, section 4.1): the backbone learns slower
than the head; norms (those of the backbone by the type of their module), position tables and the
queries' embeddings have no weight decay, but the level embedding of the pixel decoder has, as in
the authors' training run.
"""

import logging
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

logger = logging.getLogger(__name__)

BASE_GROUP = "base"
NORM_TYPES = (nn.LayerNorm, nn.GroupNorm, _NormBase)  # the last: all batch and instance norms


@dataclass(frozen=True)
class ParamGroupRule:
    """One row of a table.

    Attributes:
        name: name of the group in logs and metrics.
        pattern: regular expression that has to match the whole dotted parameter name.
        lr_factor: factor on the base learning rate: a number, or the name of a key in
            ``cfg.SOLVER`` that holds it.
        weight_decay: weight decay of the group; None means the base one.
        optional: whether the rule may match nothing.
        norms: whether the rule also fits the parameters of norm modules below ``backbone.``,
            whatever their names.
    """

    name: str
    pattern: str
    lr_factor: float | str = 1.0
    weight_decay: float | None = None
    optional: bool = False
    norms: bool = False


HEAD_RULE = ParamGroupRule("head", r"sem_seg_head\..+", lr_factor="HEAD_LR_FACTOR")
BACKBONE_NORM_RULE = ParamGroupRule(
    "backbone_norm",
    # Layers *named* norm; batch norms with other names (bn, members of a sequence) have the usual
    # weight decay, as in the authors' runs.
    r"backbone\.(.+\.)?(norm|norm1|norm2|mid_norm)\.(weight|bias)",
    weight_decay=0.0,
)
TALKING_HEAD_RULE = ParamGroupRule(
    "talking_heads",
    r"backbone\..+\.talking_head[12]\.(weight|bias)",
    lr_factor="HEAD_LR_FACTOR",
)


def offset_rule(lr_factor: float) -> ParamGroupRule:
    """The projections of offset learning, where they learn at another rate than their head.

    A pixel feature has many positive channels, so a step of a class offset's projection moves all
    class vectors much further than an equal step of the vectors themselves.

    Args:
        lr_factor: factor on the base learning rate.
    """
    pattern = r"sem_seg_head\..+\.(class|feature)_offset_proj\.weight"
    return ParamGroupRule("offsets", pattern, lr_factor=lr_factor, optional=True)  # a plain model


# For external backbones, whose norms may have any name.
DEFAULT_RULES: tuple[ParamGroupRule, ...] = (HEAD_RULE, replace(BACKBONE_NORM_RULE, optional=True))

# Tables of backbones that need another one than DEFAULT_RULES, by MODEL.BACKBONE.NAME.
PARAM_GROUP_RULES: dict[str, tuple[ParamGroupRule, ...]] = {
    "MiT": (HEAD_RULE, BACKBONE_NORM_RULE),
    "MSCAN": (HEAD_RULE, BACKBONE_NORM_RULE),
    "EfficientFormerV2": (HEAD_RULE, TALKING_HEAD_RULE, BACKBONE_NORM_RULE),
}

# The last names of modules that normalise but are none of NORM_TYPES, as external networks define
# them; and of those that are, where only names are known.
_NORM_NAMES = r"(norm\d*|mid_norm|bn\d*|out_ln|layer_norm\d*)"
_SLOW = "BACKBONE_LR_FACTOR"
MASK_QUERY_RULES: tuple[ParamGroupRule, ...] = (
    ParamGroupRule(
        "backbone_norms",
        rf"backbone\.(.+\.)?{_NORM_NAMES}\.(weight|bias)",
        lr_factor=_SLOW,
        weight_decay=0.0,
        optional=True,  # frozen ones have no parameters
        norms=True,
    ),
    ParamGroupRule(
        "backbone_positions",
        r"backbone\.(.+\.)?(relative_position_bias_table|bias\.table|absolute_pos_embed|pos_embed)",
        lr_factor=_SLOW,
        weight_decay=0.0,
        optional=True,
    ),
    ParamGroupRule("backbone", r"backbone\..+", lr_factor=_SLOW),
    ParamGroupRule(
        "head_norms",
        r"sem_seg_head\.(.+\.(norm\d?|decoder_norm)|pixel_decoder\.input_proj\.\d+\.1)"
        r"\.(weight|bias)",
        weight_decay=0.0,
    ),
    ParamGroupRule(
        "embeddings",
        r"sem_seg_head\.predictor\.(query_feat|query_embed|level_embed)\.weight",
        weight_decay=0.0,
    ),
)


def rules_of(table: str, backbone_name: str) -> tuple[ParamGroupRule, ...]:
    """The table that `SOLVER.PARAM_GROUPS` names, for the backbone registered as a name.

    Raises:
        ValueError: if there is no such table.
    """
    tables = {"per_pixel": rules_for_backbone(backbone_name), "mask_query": MASK_QUERY_RULES}
    if table not in tables:
        raise ValueError(
            f"`SOLVER.PARAM_GROUPS` must be one of {sorted(tables)}, but is {table!r}."
        )
    return tables[table]


def rules_for_backbone(backbone_name: str) -> tuple[ParamGroupRule, ...]:
    """Table "per_pixel" of the backbone registered as ``backbone_name``."""
    return PARAM_GROUP_RULES.get(backbone_name, DEFAULT_RULES)


def assign_rules(
    names: Iterable[str],
    rules: Sequence[ParamGroupRule],
    *,
    norm_names: Collection[str] = frozenset(),
) -> dict[str, ParamGroupRule | None]:
    """The rule that decides for each parameter name; None where the base values hold.

    Args:
        names: dotted parameter names.
        rules: ordered table, first match wins.
        norm_names: those that are of norm modules, see :func:`norm_parameter_names`; without them
            all rules go by the names alone.

    Raises:
        ValueError: if a rule that is not optional matches none of the names, or decides for none
            because rules above it take all it matches.
    """
    backbone_norms = {name for name in norm_names if name.startswith("backbone.")}

    def fits(rule: ParamGroupRule, name: str) -> bool:
        return (rule.norms and name in backbone_norms) or bool(re.fullmatch(rule.pattern, name))

    assigned = {name: next((rule for rule in rules if fits(rule, name)), None) for name in names}
    used = {rule.name for rule in assigned.values() if rule is not None}
    for rule in rules:
        # A misspelt pattern would otherwise go unnoticed for a whole training run.
        if rule.name not in used and not rule.optional:
            raise ValueError(
                f"Parameter group rule {rule.name!r} must decide for at least one parameter, "
                f"but its pattern {rule.pattern!r} decides for none."
            )
    return assigned


def norm_parameter_names(model: nn.Module) -> frozenset[str]:
    """Dotted names of the parameters of all modules of :data:`NORM_TYPES`."""
    return frozenset(
        f"{prefix}.{name}" if prefix else name
        for prefix, module in model.named_modules()
        if isinstance(module, NORM_TYPES)
        for name, _ in module.named_parameters(recurse=False)
    )


def build_param_groups(
    model: nn.Module,
    rules: Sequence[ParamGroupRule],
    *,
    base_lr: float,
    weight_decay: float,
    lr_factors: Mapping[str, float] | None = None,
) -> list[dict[str, Any]]:
    """Split the trainable parameters of ``model`` into optimizer groups, each in exactly one.

    Args:
        model: model whose parameter names the rules are about.
        rules: ordered table, first match wins.
        base_lr: learning rate that the rules' factors multiply.
        weight_decay: weight decay of rules that name none, and of parameters without a rule.
        lr_factors: values of the factors that rules refer to by name.

    Returns:
        Groups with keys ``name``, ``params``, ``lr`` and ``weight_decay``, the base group first,
        then in the order of the table; groups without trainable parameters are left out.
    """
    parameters = dict(model.named_parameters())
    assigned = assign_rules(parameters, rules, norm_names=norm_parameter_names(model))
    groups: dict[str, dict[str, Any]] = {
        BASE_GROUP: {"params": [], "lr": base_lr, "weight_decay": weight_decay}
    }
    for rule in rules:
        groups[rule.name] = {
            "params": [],
            "lr": base_lr * _lr_factor(rule, lr_factors or {}),
            "weight_decay": weight_decay if rule.weight_decay is None else rule.weight_decay,
        }
    for name, parameter in parameters.items():
        if parameter.requires_grad:
            decided = assigned[name]
            groups[BASE_GROUP if decided is None else decided.name]["params"].append(parameter)
    result = [{"name": name, **group} for name, group in groups.items() if group["params"]]
    _log_groups(result, frozen=sum(not p.requires_grad for p in parameters.values()))
    return result


def _lr_factor(rule: ParamGroupRule, lr_factors: Mapping[str, float]) -> float:
    if not isinstance(rule.lr_factor, str):
        return rule.lr_factor
    if rule.lr_factor not in lr_factors:
        known = sorted(key for key in lr_factors if key.endswith("_LR_FACTOR"))
        raise ValueError(
            f"Learning-rate factor of parameter group rule {rule.name!r} must be a number or one "
            f"of {known}, but is {rule.lr_factor!r}."
        )
    return float(lr_factors[rule.lr_factor])


def _log_groups(groups: list[dict[str, Any]], frozen: int) -> None:
    lines = [
        f"  {group['name']}: {len(group['params'])} tensors, "
        f"{sum(p.numel() for p in group['params'])} values, "
        f"lr {group['lr']:g}, weight decay {group['weight_decay']:g}"
        for group in groups
    ]
    if frozen:
        lines.append(f"  not trained: {frozen} tensors")
    logger.info("Parameter groups:\n%s", "\n".join(lines))
