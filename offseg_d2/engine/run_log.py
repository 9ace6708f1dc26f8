"""The log of a run: what its user follows on the terminal, all of it in ``OUTPUT_DIR/log.txt``."""

import logging
import sys

from detectron2.utils.logger import setup_logger

NAMES = ("fvcore", "detectron2", "offseg_d2")
# For logger.info(..., extra=FILE_ONLY): hundreds of lines that would push all else off the screen.
FILE_ONLY = {"file_only": True}
_handlers: list[logging.Handler] = []


def open_run_log(output_dir: str, rank: int) -> None:
    """Log to ``output_dir``, and in the main process to the terminal.

    The log of an earlier run of this process is left, so that no line is written twice.
    """
    setup_logger.cache_clear()
    # Three lines about serializing each time that a data set is used.
    logging.getLogger("detectron2.data.common").setLevel(logging.WARNING)
    for name in NAMES:
        logger = logging.getLogger(name)
        logger.handlers = [handler for handler in logger.handlers if handler not in _handlers]
        before = list(logger.handlers)
        setup_logger(output_dir, distributed_rank=rank, name=name)
        for handler in logger.handlers:
            if handler not in before:
                _handlers.append(handler)
                handler.handleError = _stop_writing  # type: ignore[method-assign]
                if getattr(handler, "stream", None) is sys.stdout:
                    handler.addFilter(lambda record: not getattr(record, "file_only", False))


def _stop_writing(record: logging.LogRecord) -> None:
    """What a log does that cannot be written (a full disk): say so once; the run goes on."""
    error = sys.exc_info()[1]
    if error is not None and not _refused:
        _refused.append(str(error))
        print(f"warning: the log cannot be written: {error}.", file=sys.stderr)


_refused: list[str] = []
