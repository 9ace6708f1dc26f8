"""Configurations that expand, refer to themselves or are too deep are refused at once."""

import re

import pytest

from offseg_d2.config import ConfigError, load_config, load_config_text
from offseg_d2.config.yaml_chain import MAX_BYTES, MAX_FILES, parse_yaml

LAUGHS = "a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 10)}]\n"
    for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
HOSTILE = {
    "aliases that expand": LAUGHS,
    "mappings that expand": LAUGHS.replace("[", "{x: ").replace("]", "}").replace(", ", ", y: "),
    "a mapping that holds itself": "SOLVER: &a\n  MAX_ITER: *a\n",
    "a list that holds itself": "DATASETS:\n  TRAIN: &a [*a]\n",
    "deep lists": f"SEED: {'[' * 5000}{']' * 5000}\n",
    "deep mappings": "".join(f"{' ' * i}A{i}:\n" for i in range(400)),
    "a large file": "SEED: 1\n" + "# long\n" * (MAX_BYTES // 7 + 1),
    "a large value": f"OUTPUT_DIR: '{'x' * MAX_BYTES}'\n",
    "many values": f"SEED: [{', '.join(['1'] * 30000)}]\n",
}


@pytest.mark.parametrize("kind", HOSTILE)
@pytest.mark.parametrize("carried", [False, True], ids=["file", "checkpoint"])
def test_file_beyond_the_limits_is_refused_at_once(tmp_path, kind, carried):
    path = tmp_path / "hostile.yaml"
    path.write_text(HOSTILE[kind])
    with pytest.raises(ConfigError) as caught:
        if carried:
            load_config_text(HOSTILE[kind], "model.pth")
        else:
            load_config(str(path))
    message = str(caught.value)
    assert ("model.pth" if carried else str(path)) in message
    assert len(message) < 500 and "\n" not in message


def test_files_that_name_each_other_twice_are_read_once(tmp_path, monkeypatch):
    for i in range(24):
        base = f"_BASE_: [f{i + 1}.yaml, f{i + 1}.yaml]\n" if i < 23 else ""
        (tmp_path / f"f{i}.yaml").write_text(f"{base}SEED: {i}\n")
    parsed = []

    def counting(text, source):
        parsed.append(source)
        return parse_yaml(text, source)

    monkeypatch.setattr("offseg_d2.config.yaml_chain.parse_yaml", counting)
    assert load_config(str(tmp_path / "f0.yaml")).SEED == 0
    assert len(parsed) == 24


def test_chain_of_too_many_files_is_refused(tmp_path):
    for i in range(MAX_FILES + 5):
        (tmp_path / f"f{i}.yaml").write_text(f"_BASE_: f{i + 1}.yaml\n")
    (tmp_path / f"f{MAX_FILES + 5}.yaml").write_text("SEED: 1\n")
    with pytest.raises(ConfigError, match=r"`_BASE_` of .*f0\.yaml must name at most"):
        load_config(str(tmp_path / "f0.yaml"))


@pytest.mark.parametrize("base", ["http://127.0.0.1:9/a.yaml", "s3://bucket/a.yaml"])
def test_address_as_base_is_refused_and_not_fetched(tmp_path, base):
    (tmp_path / "a.yaml").write_text(f"_BASE_: {base}\n")
    with pytest.raises(ConfigError, match=re.escape(f"must name local files, but names '{base}'")):
        load_config(str(tmp_path / "a.yaml"))


def test_bases_merge_in_order_and_stay_apart(tmp_path):
    (tmp_path / "one.yaml").write_text("SOLVER: {MAX_ITER: 10, BASE_LR: 0.1}\n")
    (tmp_path / "two.yaml").write_text("_BASE_: one.yaml\nSOLVER: {MAX_ITER: 20}\n")
    (tmp_path / "top.yaml").write_text("_BASE_: [two.yaml, one.yaml]\nSEED: 3\n")
    cfg = load_config(str(tmp_path / "top.yaml"))
    assert (cfg.SOLVER.MAX_ITER, cfg.SOLVER.BASE_LR, cfg.SEED) == (10, 0.1, 3)
    (tmp_path / "top.yaml").write_text("_BASE_: [one.yaml]\nSOLVER: 5\n")
    with pytest.raises(ConfigError, match=r"top\.yaml"):
        load_config(str(tmp_path / "top.yaml"))


def test_address_as_configuration_is_refused():
    with pytest.raises(ConfigError, match=r"must be a local file, but is 'https://x/a\.yaml'"):
        load_config("https://x/a.yaml")
