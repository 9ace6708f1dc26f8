"""Starting the page: models, gradio without everything that would reach out, a clean end."""

import importlib
import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, NoReturn

from detectron2.utils.file_io import PathManager

from offseg_d2.inference.segmenter import Segmenter
from offseg_d2.web.arguments import LOCAL_HOSTS, Arguments, free_port
from offseg_d2.web.downloads import file_stem
from offseg_d2.web.uploads import Limits, UploadError, read_upload
from offseg_d2.web.workbench import LoadedModel, Workbench

if TYPE_CHECKING:
    import gradio

SESSIONS = 32  # visitors whose last image is kept in memory


def require_gradio() -> ModuleType:
    """Import gradio, told to send nothing anywhere.

    Raises:
        OSError: if it is not installed; one sentence that says how to get it.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    try:
        return importlib.import_module("gradio")
    except ModuleNotFoundError as error:
        raise OSError(
            f"`{error.name}` must be installed for the web page; "
            "install it with: pip install -e '.[web]'"
        ) from None


def forbid_fetching() -> None:
    """Let gradio fetch nothing in this process.

    It would for visitors: ``/file=ADDRESS`` passes on whatever lies at a public address, and an
    address in place of an upload is downloaded, of any size.
    """

    async def refuse(*_: Any, **__: Any) -> NoReturn:
        raise ValueError("The page fetches nothing from other hosts.")

    safehttpx = importlib.import_module("safehttpx")
    safehttpx.get = safehttpx.async_validate_url = refuse


def local_only(host: str) -> list[Any]:
    """What refuses requests by another name than that of this machine, if ``host`` is its own.

    A page of somebody else, opened in the same browser, could otherwise let its own name stand for
    this machine and so use the server (DNS rebinding).

    Returns:
        middleware of Starlette.
    """
    if host not in LOCAL_HOSTS:
        return []
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    names = [*LOCAL_HOSTS, "[::1]", "["]  # Starlette's versions read "[::1]:7860" differently
    return [Middleware(TrustedHostMiddleware, allowed_hosts=names, www_redirect=False)]


def load_models(arguments: Arguments) -> Workbench:
    """Load the checkpoints.

    Raises:
        ValueError, OSError, CheckpointError: one cannot be used, or they do not go together.
    """
    names = ("Model",) if len(arguments.checkpoints) == 1 else ("A", "B")
    models = []
    for name, checkpoint in zip(names, arguments.checkpoints, strict=True):
        segmenter = Segmenter.from_checkpoint(
            checkpoint.weights,
            config_file=checkpoint.config_file,
            device=arguments.device,
            opts=arguments.opts,
        )
        models.append(LoadedModel(name, segmenter.predictor))
    return Workbench(models, arguments.limits)


def copy_examples(paths: Sequence[str], folder: Path, limits: Limits) -> list[str]:
    """Copy example images to where the page may show them; nothing else of the disk is served.

    Raises:
        ValueError: one is no image, or beyond the limits.
    """
    copies = []
    for path in paths:
        try:
            read_upload(PathManager.get_local_path(path), limits)
        except UploadError as error:
            raise ValueError(f"`--example` {path!r} cannot be used: {error}") from None
        place = Path(tempfile.mkdtemp(dir=folder))
        copy = place / (file_stem(path) + os.path.splitext(path)[1].lower())
        shutil.copyfile(PathManager.get_local_path(path), copy)
        copies.append(str(copy))
    return copies


def launch(
    workbench: Workbench, examples: Sequence[str], host: str, port: int, folder: str
) -> "gradio.Blocks":
    """Serve the page from a thread of its own.

    Args:
        workbench: the models.
        examples: image files to choose from.
        host: address to listen at.
        port: that is free.
        folder: for all files of the server and its visitors; the caller deletes it.

    Returns:
        the page; ``close()`` stops the server.
    """
    os.environ["GRADIO_TEMP_DIR"] = folder
    require_gradio()
    forbid_fetching()
    from offseg_d2.web.page import STYLE, build_page, theme

    page = build_page(workbench, copy_examples(examples, Path(folder), workbench.limits))
    page.queue(default_concurrency_limit=2, max_size=32, api_open=False)
    page.launch(
        server_name=host,
        server_port=port,
        prevent_thread_lock=True,
        quiet=True,
        share=False,
        show_error=False,
        inbrowser=False,
        max_file_size=workbench.limits.max_bytes,
        state_session_capacity=SESSIONS,
        enable_monitoring=False,
        run_history=False,
        footer_links=[],
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        theme=theme(),
        css_paths=[STYLE],
        app_kwargs={"middleware": local_only(host)},
    )
    return page


def serve(arguments: Arguments) -> None:
    """Load the models and serve the page until Ctrl-C or SIGTERM.

    Raises:
        ValueError, OSError, CheckpointError: a mistake of the user.
    """
    require_gradio()
    port = free_port(arguments.host, arguments.port)
    print("loading ...", flush=True)
    workbench = load_models(arguments)
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    with tempfile.TemporaryDirectory(prefix="offseg-web-") as folder:
        page = launch(workbench, arguments.examples, arguments.host, port, folder)
        if arguments.host not in LOCAL_HOSTS:
            print(f"everybody who reaches {arguments.host} can use the page; it has no password")
        print(f"the page is at http://{_in_url(arguments.host)}:{port} (Ctrl-C stops)", flush=True)
        stop.wait()
        page.close(verbose=False)


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host
