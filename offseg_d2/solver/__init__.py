"""Optimizer, parameter groups, learning-rate schedule and gradient clipping."""

from .build import GradientClipper, build_gradient_clipper, build_lr_scheduler, build_optimizer
from .lr_schedule import WarmupPolyLR, linear_warmup_factor, poly_factor, warmup_poly_factor
from .param_groups import (
    DEFAULT_RULES,
    MASK_QUERY_RULES,
    PARAM_GROUP_RULES,
    ParamGroupRule,
    assign_rules,
    build_param_groups,
    norm_parameter_names,
    rules_for_backbone,
    rules_of,
)
from .settings import read_settings, restore_settings

__all__ = [
    "DEFAULT_RULES",
    "MASK_QUERY_RULES",
    "PARAM_GROUP_RULES",
    "GradientClipper",
    "ParamGroupRule",
    "WarmupPolyLR",
    "assign_rules",
    "build_gradient_clipper",
    "build_lr_scheduler",
    "build_optimizer",
    "build_param_groups",
    "linear_warmup_factor",
    "norm_parameter_names",
    "poly_factor",
    "read_settings",
    "restore_settings",
    "rules_for_backbone",
    "rules_of",
    "warmup_poly_factor",
]
