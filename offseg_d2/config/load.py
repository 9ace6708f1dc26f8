"""Configurations from YAML files, checkpoints and the command line, with one-sentence errors."""

import contextlib
import difflib
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from detectron2.config import CfgNode as CN
from detectron2.config import get_cfg

from .defaults import add_offseg_config
from .errors import ConfigError
from .find import find_config
from .yaml_chain import parse_yaml, read_yaml_chain

Changes = Mapping[str, Any] | Sequence[Any]


def load_config(config_file: str | os.PathLike[str], opts: Changes = ()) -> CN:
    """Defaults of Detectron2 and offseg_d2, then the file (and its `_BASE_`), then ``opts``.

    Args:
        config_file: path of a YAML file, or the name of one of the package, such as
            "camvid/offseg_t_offset_cpu". Only plain YAML is accepted, no Python tags. "" uses the
            defaults alone.
        opts: keys with their values, as a dictionary or as KEY VALUE pairs of a command line.

    Returns:
        a configuration that is not frozen yet.

    Raises:
        ConfigError: for an absent or malformed file, an unknown key (naming the nearest ones) or
            a value of the wrong type.
    """
    path = find_config(os.fspath(config_file)) if config_file else ""
    loaded = read_yaml_chain(path) if path else {}
    return _build(loaded, f" of {path}", opts)


def load_config_text(text: str, source: str, opts: Changes = ()) -> CN:
    """Load a configuration from its whole text, which checkpoints carry; see :func:`load_config`.

    Args:
        text: plain YAML.
        source: where it comes from, for messages.
        opts: as of :func:`load_config`.

    Raises:
        ConfigError: as :func:`load_config`.
    """
    loaded = parse_yaml(text, f"The configuration in {source}")
    if not isinstance(loaded, dict):
        raise ConfigError(
            f"The configuration in {source} must be a mapping, but is {repr(loaded)[:100]}."
        )
    return _build(loaded, f" in {source}", opts)


def _build(loaded: dict[str, Any], where: str, opts: Changes) -> CN:
    cfg = get_cfg()
    add_offseg_config(cfg)
    _merge(cfg, loaded, where)
    if isinstance(opts, Mapping):
        opts = [part for pair in opts.items() for part in pair]
    if len(opts) % 2:
        raise ConfigError(f"Options must be KEY VALUE pairs, but are {len(opts)}: {list(opts)}.")
    for key, value in zip(opts[::2], opts[1::2], strict=True):
        _set(cfg, key, value, " on the command line")
    return cfg


def _merge(cfg: CN, loaded: dict[str, Any], where: str) -> None:
    for key, value in _leaves(loaded):
        _set(cfg, key, value, where)


def _set(cfg: CN, key: str, value: Any, where: str) -> None:
    """Set one key; ``value`` may be text as on the command line."""
    _check_known(cfg, key, where)
    old = dict(_leaves(cfg))[key]
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    # "1" and "6e-5" are numbers as well, though YAML disagrees.
    if isinstance(old, float) and not isinstance(value, bool):
        with contextlib.suppress(TypeError, ValueError):
            value = float(value)
    try:
        cfg.merge_from_list([key, value])
        if old is not None and dict(_leaves(cfg))[key] is None:  # yacs lets an empty value pass
            raise ValueError
    except (ValueError, AssertionError):
        raise ConfigError(
            f"`{key}`{where} must be of type {type(old).__name__}, such as {old!r}, "
            f"but is {value!r}."
        ) from None


def _leaves(node: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _check_known(cfg: CN, key: str, where: str) -> None:
    known = [name for name, _ in _leaves(cfg)]
    if key in known:
        return
    if any(name.startswith(f"{key}.") for name in known):
        raise ConfigError(f"`{key}`{where} is a group of keys and cannot be set as a whole.")
    nearest = difflib.get_close_matches(key, known, n=3)
    if not nearest:  # the same last name elsewhere
        last = key.rsplit(".", 1)[-1]
        nearest = [name for name in known if name.rsplit(".", 1)[-1] == last][:3]
    hint = f" Did you mean {', '.join(f'`{name}`' for name in nearest)}?" if nearest else ""
    raise ConfigError(f"`{key}`{where} is not a configuration key.{hint}")
