"""The command line of ``offseg web``."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from offseg_d2.web.uploads import Limits

LOCAL_HOSTS = ("127.0.0.1", "localhost", "::1")
_DESCRIPTION = """\
Show what a trained model sees, in the browser: http://127.0.0.1:7860 until Ctrl-C.

A checkpoint that this project trained carries its configuration; for others name it by
--config-file. A second checkpoint is compared with the first one. KEY VALUE pairs, after all else,
change the configuration of both.
"""


@dataclass(frozen=True)
class Options:
    """Choices of the command line, by the names of its options.

    Attributes:
        weights: checkpoint.
        config_file: its configuration, if it carries none.
        weights2: checkpoint to compare with, or None.
        config_file2: configuration of that one.
        host: address to listen at.
        port: of the address; 0 for a free one.
        allow_host: names of a proxy by which the page may be called.
        device: for the models; "" for that of the configuration.
        max_size: of a file, in MB.
        max_pixels: of an image, in millions.
        example: image files that visitors may choose.
        opts: KEY VALUE pairs.
    """

    weights: str
    config_file: str
    weights2: str | None
    config_file2: str
    host: str
    port: int
    allow_host: list[str]
    device: str
    max_size: float
    max_pixels: float
    example: list[str]
    opts: list[str]

    @property
    def checkpoints(self) -> list[tuple[str, str]]:
        """Checkpoint and configuration file of each model."""
        first = [(self.weights, self.config_file)]
        return first + ([(self.weights2, self.config_file2)] if self.weights2 else [])

    @property
    def limits(self) -> "Limits":
        """Limits of the uploads."""
        from offseg_d2.web.uploads import Limits

        return Limits(round(self.max_size * 1_000_000), round(self.max_pixels * 1_000_000))


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of ``offseg web``."""
    parser = argparse.ArgumentParser(
        prog="offseg web",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--weights", required=True, metavar="FILE", help="checkpoint")
    add("--config-file", default="", metavar="FILE", help="its configuration")
    add("--weights2", "--compare", metavar="FILE", help="checkpoint to compare with")
    add("--config-file2", default="", metavar="FILE", help="configuration of the second one")
    add("--host", default="127.0.0.1", help="address to listen at (default %(default)s)")
    add("--port", type=int, default=7860, help="default %(default)s; 0 takes a free one")
    add("--allow-host", action="append", default=[], metavar="NAME",
        help="name of a proxy before the page, such as demo.example; repeatable")  # fmt: skip
    add("--device", default="", help="cpu, cuda, ...; by default as configured, if it is there")
    add("--max-size", type=float, default=20, metavar="MB", help="of a file (default %(default)s)")
    add("--max-pixels", type=float, default=16, metavar="MILLIONS",
        help="of an image (default %(default)s)")  # fmt: skip
    add("--example", nargs="+", action="extend", default=[], metavar="IMAGE",
        help="images to choose from; end the list by another option or --")  # fmt: skip
    add("opts", nargs="*", metavar="KEY VALUE", help="changes of the configuration")
    return parser


def parse(argv: Sequence[str] | None = None) -> Options:
    """Read the command line.

    Raises:
        ValueError: an option cannot be used.
    """
    from detectron2.utils.file_io import PathManager

    from offseg_d2.web.uploads import UploadError, read_upload

    options = Options(**vars(build_parser().parse_intermixed_args(argv)))
    for name in ("max_size", "max_pixels"):
        value, option = getattr(options, name), name.replace("_", "-")
        if not 0 < value <= 10_000:
            raise ValueError(f"`--{option}` must be in 0..10000, but is {value:g}.")
    if not 0 <= options.port < 65536:
        raise ValueError(f"`--port` must be in 0..65535, but is {options.port}.")
    if options.config_file2 and not options.weights2:
        raise ValueError("`--config-file2` must come with `--weights2`, but that is absent.")
    for path in options.example:
        try:
            read_upload(PathManager.get_local_path(path), options.limits)
        except UploadError as error:
            raise ValueError(
                f"`--example` must name images, but {path!r} is none: {error}"
            ) from None
    return options
