"""Every configuration key is documented where it is defined."""

import re
from pathlib import Path

from detectron2.config import get_cfg

from offseg_d2.config import add_offseg_config, defaults, keys_without_effect, load_config
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


def test_keys_of_detectron2_without_effect_are_named_where_they_are_set():
    assert keys_without_effect(load_config("")) == []
    every = load_config("")
    for key in defaults.WITHOUT_EFFECT:
        *groups, name = key.split(".")
        node = at(every, ".".join(groups)) if groups else every
        node[name] = "vertical" if node[name] == "horizontal" else (node[name] or 0, 1)
    assert len(keys_without_effect(every)) == len(defaults.WITHOUT_EFFECT)
    changed = load_config("", ["VIS_PERIOD", "5", "SOLVER.NESTEROV", "True"])
    assert keys_without_effect(changed) == [
        "`SOLVER.NESTEROV` has no effect here.",
        "`VIS_PERIOD` has no effect here; use `TEST.SEM_SEG.NUM_PICTURES`.",
    ]


def test_what_should_be_used_instead_is_a_key():
    known = set(keys_of(load_config("")))
    for other in defaults.WITHOUT_EFFECT.values():
        assert set(other.split(" and ") if other else []) <= known
