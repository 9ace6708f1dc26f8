"""Every configuration key is documented where it is defined."""

import re
from pathlib import Path

import pytest
from detectron2.config import get_cfg

from offseg_d2.config import (
    add_offseg_config,
    defaults,
    load_config,
    reads,
    trace_reads,
    unread_keys,
)
from tests.config.test_load import at, keys_of


def documented_keys() -> dict[str, str]:
    """Key -> the comment directly above its assignment in the source."""
    aliases = {"cfg": "", "head": "MODEL.SEM_SEG_HEAD."}
    found: dict[str, str] = {}
    comment = ""
    for line in Path(defaults.__file__).read_text(encoding="utf-8").splitlines():
        match = re.fullmatch(r"    (cfg|head)\.([A-Z0-9_.]+) = (.+)", line)
        if line.startswith("    # "):
            comment = f"{comment} {line.strip(' #')}"
            continue
        if match and match[3] != "CN()":
            found[aliases[match[1]] + match[2]] = comment
        if not (match and match[3] == "CN()"):  # a group may stand between comment and key
            comment = ""
    return found


def test_every_new_key_has_a_line_of_meaning():
    cfg, base = get_cfg(), set(keys_of(get_cfg()))
    add_offseg_config(cfg)
    new = set(keys_of(cfg)) - base
    documented = documented_keys()
    assert new <= documented.keys(), new - documented.keys()
    undocumented = [key for key in sorted(new) if len(documented[key].split()) < 2]
    assert not undocumented, undocumented


def test_changed_defaults_of_detectron2_are_the_documented_ones():
    cfg, base = get_cfg(), get_cfg()
    add_offseg_config(cfg)
    changed = {k for k in keys_of(base) if at(cfg, k) != at(base, k)}
    listed = set(re.findall(r"cfg\.([A-Z0-9_.]+) =", _source_of("_change_defaults"))) | {
        "INPUT.CROP.SINGLE_CATEGORY_MAX_AREA",
        "SOLVER.POLY_LR_POWER",
    }
    assert changed <= listed, changed - listed


def _source_of(function: str) -> str:
    source = Path(defaults.__file__).read_text(encoding="utf-8")
    return source.split(f"def {function}")[1].split("\ndef ")[0]


def test_changed_keys_that_nothing_reads_are_named():
    cfg = trace_reads(load_config("", ["SOLVER.NESTEROV", "True", "VIS_PERIOD", "5"]))
    assert unread_keys(cfg) == [
        "`SOLVER.NESTEROV`",
        "`VIS_PERIOD` (use `TEST.SEM_SEG.NUM_PICTURES`)",
    ]
    assert cfg.SOLVER.NESTEROV  # a read
    assert unread_keys(cfg) == ["`VIS_PERIOD` (use `TEST.SEM_SEG.NUM_PICTURES`)"]


def test_reads_through_copies_and_parts_count():
    cfg = trace_reads(load_config("", ["MODEL.RESNETS.DEPTH", "101", "MODEL.MIT.VARIANT", "b1"]))
    other = cfg.clone()
    assert other.MODEL.RESNETS.DEPTH == 101
    assert unread_keys(cfg) == unread_keys(other) == ["`MODEL.MIT.VARIANT`"]
    part = cfg.MODEL.MIT.clone()
    assert part.VARIANT == "b1"
    assert unread_keys(cfg) == []


def test_a_traced_configuration_is_the_same_one():
    cfg = load_config("", ["MODEL.MIT.VARIANT", "b1"])
    traced = trace_reads(cfg)
    assert traced == cfg and traced.dump() == cfg.dump() and traced.is_frozen() == cfg.is_frozen()
    traced.defrost()
    traced.merge_from_list(["MODEL.MIT.VARIANT", "b2"])
    assert cfg.MODEL.MIT.VARIANT == "b1"
    with pytest.raises(AttributeError):
        traced.MODEL.ABSENT  # noqa: B018
    assert unread_keys(cfg) == []  # nobody has traced this one


def test_a_configuration_from_a_file_of_all_keys_has_changed_none(tmp_path):
    (tmp_path / "config.yaml").write_text(load_config("").dump())
    assert unread_keys(trace_reads(load_config(tmp_path / "config.yaml"))) == []


def test_an_evaluation_looks_at_the_keys_of_model_and_test_alone():
    training = ["SOLVER.NESTEROV", "True", "TEST.EVAL_PERIOD", "50"]
    cfg = trace_reads(load_config("", [*training, "TEST.AUG.FLIP", "False"]))
    assert unread_keys(cfg, eval_only=True) == ["`TEST.AUG.FLIP` (use `TEST.SEM_SEG.TTA.FLIP`)"]


def test_an_evaluation_does_not_name_what_only_a_training_reads():
    keys = ("MODEL.COMPILE", "MODEL.CHANNELS_LAST", "MODEL.BACKBONE.ACTIVATION_CHECKPOINTING")
    options = [text for key in keys for text in (key, "True")]
    cfg = trace_reads(load_config("", options))
    assert unread_keys(cfg, eval_only=True) == []
    assert set(unread_keys(cfg)) == {f"`{key}`" for key in keys}


def test_a_traced_configuration_is_merged_as_any_other_and_a_merge_is_no_read():
    cfg = trace_reads(load_config("", ["SOLVER.NESTEROV", "True"]))
    other = load_config("", ["MODEL.MIT.VARIANT", "b3", "SOLVER.NESTEROV", "True"])
    cfg.merge_from_other_cfg(other)
    cfg.merge_from_list(["VIS_PERIOD", "7"])
    assert dict(cfg.MODEL.MIT)["VARIANT"] == "b3"
    names = {name.split("`")[1] for name in unread_keys(cfg)}
    assert names == {"SOLVER.NESTEROV", "MODEL.MIT.VARIANT", "VIS_PERIOD"}
    assert type(cfg)({"A": 1}).A == 1


def test_what_should_be_used_instead_is_a_key():
    known = set(keys_of(load_config("")))
    assert {*reads._INSTEAD, *reads._INSTEAD.values()} <= known
