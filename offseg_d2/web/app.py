"""Starting the page: models, the server with its guard, a clean end."""

import importlib
import os
import signal
import socket
import sys
import tempfile
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

from detectron2.utils.file_io import PathManager

from offseg_d2.inference.segmenter import Segmenter
from offseg_d2.utils.cli import report_user_errors
from offseg_d2.web.guard import Guard
from offseg_d2.web.options import LOCAL_HOSTS, Options, parse
from offseg_d2.web.results import Models

if TYPE_CHECKING:
    import gradio

VISITORS = 32  # whose last result is kept in memory


def require_gradio() -> None:
    """Import gradio, so that it sends nothing anywhere.

    Raises:
        OSError: it is not installed; one sentence that says how to get it.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    try:
        importlib.import_module("gradio")
    except ModuleNotFoundError as error:
        raise OSError(
            f"`{error.name}` must be installed for the web page; "
            "install it with: pip install 'offseg_d2[web]'"
        ) from None


def free_port(host: str, port: int) -> int:
    """Make sure that a port can be listened at; 0 chooses one.

    Raises:
        OSError: it is in use, or the host is none of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.create_server((host, port), family=family) as probe:
            return int(probe.getsockname()[1])
    except OSError as error:
        reason = str(error.strerror).partition(" (")[0]
        raise OSError(
            "`--host` must be an address of this machine and `--port` a free one, "
            f"but {host} and {port} cannot be used: {reason}."
        ) from None


def accepted_names(host: str, proxies: Collection[str]) -> set[str]:
    """Return the names by which the server may be called; none for any name.

    A server for the network may have any name, unless ``--allow-host`` says which.
    """
    if host not in LOCAL_HOSTS and not proxies:
        return set()
    return {*LOCAL_HOSTS, host.lower(), *proxies}


def load_models(options: Options) -> Models:
    """Load the checkpoints.

    Raises:
        ValueError, OSError, CheckpointError: one cannot be used, or they do not go together.
    """
    segmenters = [
        Segmenter.from_checkpoint(
            weights, config_file=config_file, device=options.device, opts=options.opts
        )
        for weights, config_file in options.checkpoints
    ]
    return Models(segmenters, options.limits)


def launch(
    models: Models,
    examples: Sequence[str],
    host: str,
    port: int,
    folder: str,
    allow_host: Sequence[str] = (),
) -> "gradio.Blocks":
    """Serve the page from a thread of its own.

    Args:
        models: one, or two to compare.
        examples: image files to choose from.
        host: address to listen at.
        port: a free one.
        folder: for all files of the server and its visitors; the caller deletes it.
        allow_host: names of proxies before the page.

    Returns:
        the page; ``close()`` stops the server.
    """
    os.environ["GRADIO_TEMP_DIR"] = folder = os.path.realpath(folder)
    require_gradio()
    from starlette.middleware import Middleware

    from offseg_d2.web.page import STYLE, Page, theme

    proxies = {name.lower() for name in allow_host}
    guard: Any = Middleware(
        Guard,
        hosts=accepted_names(host, proxies),
        proxies=proxies,
        folder=folder,
        max_bytes=models.limits.max_bytes,
        max_total=models.limits.max_total,
    )
    page = Page(models, examples).blocks
    page.queue(default_concurrency_limit=2, max_size=32, api_open=False)
    page.launch(
        server_name=host,
        server_port=port,
        prevent_thread_lock=True,
        quiet=True,
        share=False,
        max_file_size=models.limits.max_bytes,
        state_session_capacity=VISITORS,
        enable_monitoring=False,
        run_history=False,
        footer_links=[],
        ssr_mode=False,
        mcp_server=False,
        theme=theme(),
        css=STYLE,
        app_kwargs={"middleware": [guard]},
    )
    return page


def run(argv: Sequence[str] | None = None) -> None:
    """Load the models and serve the page until Ctrl-C or SIGTERM.

    Raises:
        ValueError, OSError, CheckpointError: a mistake of the user.
    """
    options = parse(argv)
    require_gradio()
    host, port = options.host, free_port(options.host, options.port)
    print("loading ...", flush=True)
    models = load_models(options)
    examples = [PathManager.get_local_path(path) for path in options.example]
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with tempfile.TemporaryDirectory(prefix="offseg-web-") as folder:
        page = launch(models, examples, host, port, folder, options.allow_host)
        if host not in LOCAL_HOSTS:
            print(f"everybody who reaches {host} can use the page; it has no password")
        address = f"[{host}]" if ":" in host else host
        try:
            print(f"the page is at http://{address}:{port} (Ctrl-C stops)", flush=True)
            page.block_thread()
        except KeyboardInterrupt:  # before gradio waits for it
            page.close(verbose=False)


def main() -> None:
    """Entry point of ``offseg web``."""
    report_user_errors(run, sys.argv[1:])
