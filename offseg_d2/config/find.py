"""Configuration files by path or by the name of one that the package brings along."""

import difflib
from pathlib import Path

from detectron2.utils.file_io import PathManager

from .errors import ConfigError

_PACKAGE = Path(__file__).resolve().parents[1]


def config_folder() -> Path:
    """Folder of the configurations: in the installed package, or beside it in a clone."""
    installed = _PACKAGE / "configs"
    return installed if installed.is_dir() else _PACKAGE.parent / "configs"


def config_names() -> list[str]:
    """Names such as "camvid/offseg_t_offset_cpu"; "base/" has parts of configurations."""
    folder = config_folder()
    return sorted(
        path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.yaml")
    )


def find_config(name: str) -> str:
    """Path of a configuration.

    Args:
        name: path of a file, or a name of :func:`config_names`; with or without ``configs/``
            before it and ``.yaml`` behind it.

    Raises:
        ConfigError: there is none; the nearest names are in the message.
    """
    for path in (name, f"{name}.yaml"):
        if "://" in name or PathManager.isfile(path):  # an address is refused where it is read
            return path
    names = config_names()
    wanted = name.removeprefix("./").removeprefix("configs/").removesuffix(".yaml").rstrip("/")
    if wanted in names:
        return str(config_folder() / f"{wanted}.yaml")
    hint = ", ".join(f"`{near}`" for near in _nearest(wanted, names))
    raise ConfigError(
        f"The configuration file {name} does not exist, and none of the package has this name."
        + (f" Did you mean {hint}?" if hint else "")
    )


def _nearest(wanted: str, names: list[str]) -> list[str]:
    whole = [name for name in names if not name.startswith("base/")]
    nearest = difflib.get_close_matches(wanted, whole, n=3)
    if not nearest:  # the name without its folder, or the folder alone
        last = wanted.rsplit("/", 1)[-1]
        by_last = {name.rsplit("/", 1)[-1]: name for name in whole}
        nearest = [by_last[near] for near in difflib.get_close_matches(last, by_last, n=3)]
        nearest = nearest or [name for name in whole if last and name.startswith(f"{last}/")][:3]
    return nearest
