"""Configurations by path and by name."""

from pathlib import Path

import pytest

from offseg_d2.config import ConfigError, find, load_config
from tests.common import ROOT

NAME = "camvid/offseg_t_offset_cpu"
PATH = ROOT / f"configs/{NAME}.yaml"


@pytest.mark.parametrize(
    "name",
    [NAME, f"{NAME}.yaml", f"configs/{NAME}", f"configs/{NAME}.yaml", PATH, PATH.with_suffix("")],
    ids=str,
)
def test_name_means_the_same_as_the_path_wherever_it_is_used(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load_config(name) == load_config(str(PATH))


def test_names_are_those_of_the_files():
    files = {path.relative_to(ROOT / "configs") for path in (ROOT / "configs").rglob("*.yaml")}
    assert {Path(f"{name}.yaml") for name in find.config_names()} == files


def test_own_file_goes_before_a_name_of_the_package(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "camvid").mkdir()
    (tmp_path / f"{NAME}.yaml").write_text("SEED: 77\n")
    assert load_config(NAME).SEED == 77


def test_own_file_may_be_based_on_a_path(tmp_path):
    (tmp_path / "own.yaml").write_text(f"_BASE_: {PATH}\nSEED: 78\n")
    cfg = load_config(tmp_path / "own")
    assert (cfg.SEED, cfg.DATASETS.TRAIN) == (78, load_config(NAME).DATASETS.TRAIN)


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("camvid/offseg_t_ofset_cpu", NAME),
        ("offseg_t_offset_cpu", NAME),
        ("configs/camvid/offseg_t_offset_cpu.yml", NAME),
        ("camvid", "camvid/"),
        ("camvid/", "camvid/"),
    ],
)
def test_wrong_name_is_answered_with_the_nearest(name, nearest):
    with pytest.raises(
        ConfigError, match=rf"file {name} does not exist.*Did you mean .*`{nearest}"
    ):
        load_config(name)


@pytest.mark.parametrize("name", ["../setup", "base/../camvid/offseg_t_offset_cpu", "zzzzzz"])
def test_name_is_one_of_the_names_and_no_way_out_of_the_folder(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="does not exist"):
        load_config(name)


def test_changes_are_a_dictionary_or_pairs():
    changes = {"SOLVER.MAX_ITER": 5, "DATASETS.TRAIN": ("a", "b"), "OUTPUT_DIR": Path("run")}
    words = ["SOLVER.MAX_ITER", "5", "DATASETS.TRAIN", "('a', 'b')", "OUTPUT_DIR", "run"]
    assert load_config(NAME, changes) == load_config(NAME, words)
    assert load_config(NAME, changes).DATASETS.TRAIN == ("a", "b")
    with pytest.raises(ConfigError, match=r"`SOLVER.MAX_ITRE`.*Did you mean `SOLVER.MAX_ITER`"):
        load_config(NAME, {"SOLVER.MAX_ITRE": 5})
