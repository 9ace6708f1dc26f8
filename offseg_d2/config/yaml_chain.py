"""Plain YAML files with their `_BASE_`, within limits of size, so that no file takes minutes.

Detectron2's own loader falls back to one that executes Python tags, reads a file as often as it is
named, fetches addresses, and follows aliases however large they make the result.
"""

import os
from typing import Any

import yaml
from detectron2.utils.file_io import PathManager

from offseg_d2.utils.io import decode_text

from .errors import ConfigError

BASE = "_BASE_"
MAX_BYTES = 1 << 20  # of a file; a whole configuration has about 20 kB
MAX_VALUES = 20_000  # of a file, aliases followed
MAX_DEPTH = 30
MAX_FILES = 100


def read_yaml_chain(path: str) -> dict[str, Any]:
    """Read a configuration file: its bases in their order, later ones win, then its own entries.

    Args:
        path: of a YAML file; `_BASE_` in it is a path, or a list of paths, relative to the file.

    Raises:
        ConfigError: a file is absent, malformed or too large, or the chain leads back to a file.
    """
    if "://" in path:
        raise ConfigError(f"The configuration must be a local file, but is '{path}'.")
    return _Chain(path).read(path, ())


def parse_yaml(text: str, source: str) -> Any:
    """Parse plain YAML of limited size.

    Args:
        text: a document.
        source: names it in messages.

    Raises:
        ConfigError: it is not plain YAML, refers to itself, or is too large or too deep.
    """
    if len(text) > MAX_BYTES:
        raise ConfigError(
            f"{source} must have at most {MAX_BYTES} characters, but has {len(text)}."
        )
    try:
        loader = yaml.SafeLoader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            _check_size(node, source)
            return loader.construct_document(node)
        finally:
            loader.dispose()
    except RecursionError:
        raise ConfigError(f"{source} must be nested at most {MAX_DEPTH} deep.") from None
    # A value such as a date that does not exist is a ValueError.
    except (yaml.YAMLError, ValueError, TypeError, AttributeError) as error:
        if isinstance(error, ConfigError):
            raise
        reason = " ".join(str(error).split()).rstrip(".")[:300]  # PyYAML's are of several lines
        raise ConfigError(f"{source} is not a plain YAML configuration: {reason}.") from None


def _check_size(node: yaml.Node, source: str) -> None:
    """Count the values as if aliases were written out, without doing so."""
    counts: dict[int, int] = {}

    def count(node: yaml.Node, depth: int) -> int:
        if depth > MAX_DEPTH:
            raise ConfigError(
                f"{source} must be nested at most {MAX_DEPTH} deep and not refer to itself."
            )
        if id(node) not in counts:
            children = node.value if isinstance(node, yaml.CollectionNode) else []
            if isinstance(node, yaml.MappingNode):
                children = [part for pair in children for part in pair]
            counts[id(node)] = 1 + sum(count(child, depth + 1) for child in children)
        return counts[id(node)]

    if count(node, 0) > MAX_VALUES:
        raise ConfigError(
            f"{source} must hold at most {MAX_VALUES} values, but holds more once its aliases are "
            f"followed."
        )


class _Chain:
    """The files of one chain, each of which is read once."""

    def __init__(self, top: str) -> None:
        self.top = top
        self.done: dict[str, dict[str, Any]] = {}

    def read(self, path: str, above: tuple[str, ...]) -> dict[str, Any]:
        """Entries of a file with those of its bases; ``above`` are the files that lead to it."""
        key = os.path.realpath(path)
        if key in above:
            itself = "itself" if key == os.path.realpath(self.top) else path
            raise ConfigError(f"`{BASE}` of {self.top} leads back to the file {itself}.")
        if key in self.done:
            return self.done[key]
        if len(self.done) + len(above) >= MAX_FILES:
            raise ConfigError(f"`{BASE}` of {self.top} must name at most {MAX_FILES} files.")
        own = self._parse(path)
        merged: dict[str, Any] = {}
        for base in self._bases(path, own):
            _merge(self.read(base, (*above, key)), merged, path)
        _merge({name: value for name, value in own.items() if name != BASE}, merged, path)
        self.done[key] = merged
        return merged

    def _parse(self, path: str) -> dict[str, Any]:
        if not PathManager.isfile(path):
            if path == self.top:
                raise ConfigError(f"The configuration file {path} does not exist.")
            raise ConfigError(f"`{BASE}` of {self.top} names an absent file: '{path}'.")
        try:
            with PathManager.open(path, "rb") as file:
                text = decode_text(file.read(4 * MAX_BYTES))
        except (OSError, UnicodeError) as error:
            raise ConfigError(f"{path} cannot be read as text: {error}.") from None
        content = parse_yaml(text, path)
        if not isinstance(content, dict):
            raise ConfigError(
                f"{path} must hold a mapping of keys, but holds {repr(content)[:100]}."
            )
        return content

    def _bases(self, path: str, own: dict[str, Any]) -> list[str]:
        named = own.get(BASE, [])
        bases = named if isinstance(named, list) else [named]
        for base in bases:
            if not isinstance(base, str) or "://" in base:
                raise ConfigError(
                    f"`{BASE}` of {path} must name local files, but names {repr(base)[:100]}."
                )
        folder = os.path.dirname(path)
        return [os.path.join(folder, os.path.expanduser(base)) for base in bases]


def _merge(entries: dict[str, Any], into: dict[str, Any], path: str) -> None:
    """Merge nested entries; those given win. The given ones stay as they are."""
    for key, value in entries.items():
        if not isinstance(value, dict):
            into[key] = value
            continue
        below = into.setdefault(key, {})
        if not isinstance(below, dict):
            raise ConfigError(
                f"`{key}` of {path} is a group of keys, but a value in a file that it is based on."
            )
        _merge(value, below, path)
