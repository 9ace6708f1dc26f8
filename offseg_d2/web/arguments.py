"""The command line of ``offseg-web``. Needs no gradio."""

import argparse
import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from detectron2.utils.file_io import PathManager

from offseg_d2.utils.cli import report_user_errors
from offseg_d2.web.uploads import Limits

LOCAL_HOSTS = ("127.0.0.1", "localhost", "::1")
_DESCRIPTION = """\
Show what a trained model sees, in the browser: http://127.0.0.1:7860 until Ctrl-C.

A checkpoint that this project trained carries its configuration; for others name it by
--config-file. A second checkpoint is compared with the first one. KEY VALUE pairs, after all else,
change the configuration of both.
"""


@dataclass(frozen=True)
class Checkpoint:
    """A model to load: its file, and its configuration if the file carries none."""

    weights: str
    config_file: str = ""


@dataclass(frozen=True)
class Arguments:
    """What the server is started with.

    Attributes:
        checkpoints: one, or two to compare.
        host: address to listen at.
        port: of the address.
        device: for the models; "" for that of the configuration.
        limits: of the uploads.
        examples: image files that visitors may choose.
        opts: KEY VALUE pairs.
    """

    checkpoints: tuple[Checkpoint, ...]
    host: str
    port: int
    device: str
    limits: Limits
    examples: tuple[str, ...]
    opts: tuple[str, ...]


def build_parser() -> argparse.ArgumentParser:
    """The options of ``offseg-web``."""
    parser = argparse.ArgumentParser(
        prog="offseg-web",
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
    add("--device", default="", help="cpu, cuda, ...; by default as configured, if it is there")
    add("--max-size", type=float, default=20, metavar="MB", help="of a file (default %(default)s)")
    add("--max-pixels", type=float, default=16, metavar="MILLIONS",
        help="of an image (default %(default)s)")  # fmt: skip
    add("--example", nargs="+", action="extend", default=[], metavar="IMAGE",
        help="images to choose from; end the list by another option or --")  # fmt: skip
    add("opts", nargs="*", metavar="KEY VALUE", help="changes of the configuration")
    return parser


def parse(argv: Sequence[str] | None = None) -> Arguments:
    """Read the command line.

    Raises:
        ValueError: an option cannot be used.
    """
    args = build_parser().parse_intermixed_args(argv)
    for name in ("max_size", "max_pixels"):
        if not 0 < getattr(args, name) <= 10_000:
            option = name.replace("_", "-")
            raise ValueError(f"`--{option}` must be in 0..10000, but is {getattr(args, name):g}.")
    if not 0 <= args.port < 65536:
        raise ValueError(f"`--port` must be in 0..65535, but is {args.port}.")
    if args.config_file2 and not args.weights2:
        raise ValueError("`--config-file2` must come with `--weights2`, but that is absent.")
    for path in args.example:
        if not PathManager.isfile(path):
            raise FileNotFoundError(f"`--example` must name image files, but {path!r} is none.")
    checkpoints = [Checkpoint(args.weights, args.config_file)]
    if args.weights2:
        checkpoints.append(Checkpoint(args.weights2, args.config_file2))
    limits = Limits(round(args.max_size * 1_000_000), round(args.max_pixels * 1_000_000))
    return Arguments(
        tuple(checkpoints),
        args.host,
        args.port,
        args.device,
        limits,
        tuple(args.example),
        tuple(args.opts),
    )


def free_port(host: str, port: int) -> int:
    """Make sure that a port can be listened at; 0 chooses one.

    Raises:
        OSError: it is in use, or the host is none of this machine.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except socket.gaierror:
        raise OSError(f"`--host` must be an address of this machine, but is {host!r}.") from None
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
        except OSError as error:
            raise OSError(
                f"`--port` must be free on {host}, but {port} cannot be used: {error.strerror}."
            ) from None
        return int(probe.getsockname()[1])


def run(argv: Sequence[str] | None = None) -> None:
    """Load the models and serve the page until the process is stopped.

    Raises:
        ValueError, OSError, CheckpointError: a mistake of the user.
    """
    arguments = parse(argv)
    from offseg_d2.web.server import serve  # reads gradio, which may be absent

    serve(arguments)


def main() -> None:
    """Entry point of ``offseg-web``."""
    report_user_errors(run, sys.argv[1:])


if __name__ == "__main__":
    main()
