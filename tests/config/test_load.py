"""Loading configurations: composition, friendly errors, no code in files."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from detectron2.config import get_cfg

from offseg_d2.config import ConfigError, add_offseg_config, load_config
from tests.common import MODEL_CONFIGS, ROOT


def write(folder: Path, text: str, name: str = "config.yaml") -> str:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return str(path)


def keys_of(node: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in node.items():
        if isinstance(value, dict):
            yield from keys_of(value, f"{prefix}{key}.")
        else:
            yield prefix + key


def at(node: dict[str, Any], key: str) -> Any:
    for part in key.split("."):
        node = node[part]
    return node


def lists(value: Any) -> Any:
    """YAML knows no tuples."""
    return [lists(x) for x in value] if isinstance(value, list | tuple) else value


# ------------------------------------------------------------- composition


def test_later_bases_win_and_the_file_itself_wins_over_all(tmp_path):
    write(tmp_path, "SEED: 1\nSOLVER: {MAX_ITER: 10, BASE_LR: 0.1}", "first.yaml")
    write(tmp_path, "SEED: 2\nSOLVER: {MAX_ITER: 20}", "second.yaml")
    path = write(tmp_path, "_BASE_: [first.yaml, second.yaml]\nSEED: 3")
    cfg = load_config(path)
    assert (cfg.SEED, cfg.SOLVER.MAX_ITER, cfg.SOLVER.BASE_LR) == (3, 20, 0.1)


def test_base_paths_are_relative_to_the_file_that_names_them(tmp_path):
    (tmp_path / "base" / "deep").mkdir(parents=True)
    write(tmp_path, "SEED: 5", "base/deep/lowest.yaml")
    write(tmp_path, "_BASE_: deep/lowest.yaml\nVIS_PERIOD: 6", "base/middle.yaml")
    cfg = load_config(write(tmp_path, "_BASE_: base/middle.yaml"))
    assert (cfg.SEED, cfg.VIS_PERIOD) == (5, 6)


def test_command_line_wins_over_the_file(tmp_path):
    path = write(tmp_path, "SEED: 1\nOUTPUT_DIR: here")
    cfg = load_config(path, ["SEED", "7", "MODEL.SEM_SEG_HEAD.CLASSIFIER", "plain"])
    assert (cfg.SEED, cfg.OUTPUT_DIR) == (7, "here")
    assert cfg.MODEL.SEM_SEG_HEAD.CLASSIFIER == "plain"


def test_no_file_means_the_defaults():
    cfg, expected = load_config(""), get_cfg()
    add_offseg_config(expected)
    assert cfg == expected and not cfg.is_frozen()


def test_one_configuration_does_not_leak_into_the_next(tmp_path):
    path = write(tmp_path, "MODEL: {OFFSEG: {LEVEL_CHANNELS: [32, 32]}}")
    load_config(path).MODEL.OFFSEG.LEVEL_CHANNELS.append(1)
    assert load_config(path).MODEL.OFFSEG.LEVEL_CHANNELS == [32, 32]
    assert load_config("").MODEL.OFFSEG.LEVEL_CHANNELS == [32, 32, 64, 128]


def test_loaded_configuration_survives_its_own_dump(tmp_path):
    cfg = load_config(str(MODEL_CONFIGS / "offseg_b.yaml"), ["SEED", 3])
    again = load_config(write(tmp_path, cfg.dump()))
    assert set(keys_of(again)) == set(keys_of(cfg))
    different = [key for key in keys_of(cfg) if lists(at(again, key)) != lists(at(cfg, key))]
    assert not different, different
    assert again.MODEL.OFFSEG.LEVEL_CHANNELS == [32, 64, 128, 256] and again.SEED == 3


# ------------------------------------------------------------------ errors


def refused(match: str):
    return pytest.raises(ConfigError, match=match)


def test_unknown_key_of_a_file_names_the_nearest_and_the_file(tmp_path):
    path = write(tmp_path, "MODEL: {SEM_SEG_HEAD: {CLASIFIER: plain}}")
    with refused(
        r"`MODEL.SEM_SEG_HEAD.CLASIFIER` of .*config.yaml is not a configuration key\. Did"
    ):
        load_config(path)
    with refused("Did you mean `MODEL.SEM_SEG_HEAD.CLASSIFIER`"):
        load_config(path)


def test_unknown_key_on_the_command_line_names_the_nearest():
    with refused(r"`SOLVER.MAX_ITERS` on the command line is not .* `SOLVER.MAX_ITER`"):
        load_config("", ["SOLVER.MAX_ITERS", "5"])


def test_key_in_the_wrong_group_is_found_by_its_last_name():
    with refused(r"`CLASSIFIER` on the command line .*`MODEL.SEM_SEG_HEAD.CLASSIFIER`"):
        load_config("", ["CLASSIFIER", "plain"])


def test_key_like_no_other_gets_no_suggestion():
    with refused(r"`XYZZY.QWERTZ` on the command line is not a configuration key\.$"):
        load_config("", ["XYZZY.QWERTZ", "1"])


def test_a_group_cannot_be_set_as_a_whole(tmp_path):
    for text in ("SOLVER: 5", "MODEL:\n  OFFSEG: [1]", "MODEL:"):
        with refused("is a group of keys and cannot be set as a whole"):
            load_config(write(tmp_path, text))
    with refused(r"`SOLVER` on the command line is a group"):
        load_config("", ["SOLVER", "5"])


def test_a_key_below_a_value_is_unknown(tmp_path):
    with refused(r"`SEED.DATA` of .* is not a configuration key"):
        load_config(write(tmp_path, "SEED: {DATA: 1}"))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("SOLVER.MAX_ITER", "many"),
        ("SOLVER.MAX_ITER", "1.5"),
        ("SOLVER.BASE_LR", "fast"),
        ("SOLVER.BASE_LR", "true"),
        ("SOLVER.AMP.ENABLED", "3"),
        ("MODEL.OFFSEG.LEVEL_CHANNELS", "32"),
        ("MODEL.SEM_SEG_HEAD.CLASSIFIER", "[offset]"),
        ("SEED", "null"),
        ("OUTPUT_DIR", ""),
    ],
)
def test_a_value_of_the_wrong_type_names_key_and_value(tmp_path, key, value):
    nested = "".join(f"{' ' * i}{part}:\n" for i, part in enumerate(key.split(".")))
    path = write(tmp_path, f"{nested.rstrip()} {value}\n")
    with refused(rf"^`{re.escape(key)}` of {re.escape(path)} "):
        load_config(path)


@pytest.mark.parametrize(
    ("key", "value"), [("SOLVER.MAX_ITER", "many"), ("SOLVER.BASE_LR", "True"), ("SEED", "None")]
)
def test_a_value_of_the_wrong_type_on_the_command_line(key, value):
    with refused(rf"^`{re.escape(key)}` on the command line .*{value}"):
        load_config("", [key, value])


@pytest.mark.parametrize(("text", "number"), [("1", 1.0), ("6e-5", 6e-5), ("2.5e3", 2500.0)])
def test_numbers_are_accepted_however_they_are_written(tmp_path, text, number):
    for cfg in (
        load_config(write(tmp_path, f"SOLVER: {{BASE_LR: {text}}}")),
        load_config("", ["SOLVER.BASE_LR", text]),
    ):
        assert number == cfg.SOLVER.BASE_LR and isinstance(cfg.SOLVER.BASE_LR, float)


def test_half_a_pair_is_refused():
    with refused("Options must be KEY VALUE pairs, but are 3"):
        load_config("", ["SEED", "1", "OUTPUT_DIR"])


def test_absent_file_is_named(tmp_path):
    for path in (tmp_path / "absent.yaml", tmp_path):
        with refused(f"The configuration file {re.escape(str(path))} does not exist"):
            load_config(str(path))


@pytest.mark.parametrize("base", ["absent.yaml", "[absent.yaml]"])
def test_absent_base_is_named_with_its_file(tmp_path, base):
    path = write(tmp_path, f"_BASE_: {base}")
    with refused(rf"`_BASE_` of {re.escape(path)} names an absent file: .*absent\.yaml"):
        load_config(path)


def test_base_that_leads_back_to_itself_is_refused(tmp_path):
    write(tmp_path, "_BASE_: config.yaml", "other.yaml")
    path = write(tmp_path, "_BASE_: other.yaml")
    with refused(rf"`_BASE_` of {re.escape(path)} leads back to the file itself"):
        load_config(path)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "5",
        "just words",
        "- SEED",
        "SEED: [1",
        "SEED: 1\n SOLVER: 2",
        "_BASE_: 5",
        "_BASE_: [5]",
        "_BASE_: {a: 1}",
        "_BASE_: [.]",
        "SEED: !unknown 1",
        "\x00",
    ],
)
def test_what_is_no_mapping_of_keys_is_refused_with_the_file_name(tmp_path, text):
    path = write(tmp_path, text)
    with refused(re.escape(path)):
        load_config(path)


def test_text_in_another_encoding_is_refused_with_the_file_name(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_bytes(b"OUTPUT_DIR: \xff\xfe\xfa")
    with refused(re.escape(str(path))):
        load_config(str(path))


PYTHON_TAGS = (
    "!!python/object/apply:os.mkdir [{target}]",
    "!!python/object/apply:subprocess.check_call [[touch, {target}]]",
    "!!python/object/new:os.mkdir [{target}]",
    "!!python/tuple [1, 2]",
    "!!python/name:os.system",
)


@pytest.mark.parametrize("tag", PYTHON_TAGS)
@pytest.mark.parametrize("in_base", [False, True])
def test_python_tags_are_refused_and_not_executed(tmp_path, tag, in_base):
    target = tmp_path / "executed"
    path = write(tmp_path, f"OUTPUT_DIR: {tag.format(target=target)}")
    if in_base:
        path = write(tmp_path, "_BASE_: [config.yaml]", "leaf.yaml")
    with refused("is not a plain YAML configuration"):
        load_config(path)
    assert not target.exists()


@pytest.mark.parametrize(
    "value", ["__import__('os').mkdir('{target}')", "(lambda: open('{target}', 'w'))()"]
)
def test_expressions_stay_text(tmp_path, value):
    target = tmp_path / "executed"
    text = value.format(target=target)
    assert text == load_config("", ["OUTPUT_DIR", text]).OUTPUT_DIR
    assert not target.exists()


def test_error_is_one_sentence_at_the_command_line(tmp_path):
    command = [
        sys.executable,
        str(ROOT / "tools/train_net.py"),
        "--config-file",
        str(tmp_path / "absent.yaml"),
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 2
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: The configuration file") and "Traceback" not in done.stderr
    assert "FutureWarning" not in done.stderr


def test_file_of_another_kind_is_reported_in_one_line(tmp_path):
    path = tmp_path / "notes.md"
    path.write_text("# Notes\n\n**This** is no configuration: *at all*\n")
    with pytest.raises(ConfigError, match="is not a plain YAML configuration") as caught:
        load_config(str(path))
    assert len(str(caught.value).splitlines()) == 1
