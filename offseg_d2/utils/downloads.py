"""Files by address: each address has its own place in the cache, and changed files come again.

iopath's own handler names a cached file by the path of its address alone, so that two servers, or
two versions of a file, get mixed up.
"""

import contextlib
import email.message
import email.utils
import hashlib
import http.client
import json
import logging
import os
import shutil
import urllib.error
import urllib.parse
import urllib.request
from typing import Any, BinaryIO

from detectron2.utils.file_io import PathManager
from iopath.common.file_io import HTTPURLHandler, file_lock, get_cache_dir

logger = logging.getLogger(__name__)

TIMEOUT = 30.0  # seconds that a server may stay silent
# Headers that tell a file's version -> headers that ask for it only if that has changed.
_VALIDATORS = {"ETag": "If-None-Match", "Last-Modified": "If-Modified-Since"}


class AddressHandler(HTTPURLHandler):
    """Downloads files into the cache folder (``FVCORE_CACHE``), by their whole address.

    A cached file is used if the server says that it has not changed, or if the server cannot be
    reached; the log says so.
    """

    def _get_local_path(
        self, path: str, force: bool = False, cache_dir: str | None = None, **kwargs: Any
    ) -> str:
        """Path of the file of an address, downloaded if need be.

        Raises:
            OSError: the file is not there, or could not be read completely, and is not cached.
        """
        self._check_kwargs(kwargs)
        name = os.path.basename(urllib.parse.urlsplit(path).path)[-100:] or "file"
        digest = hashlib.sha256(path.encode()).hexdigest()[:16]
        folder = os.path.join(get_cache_dir(cache_dir), "addresses", digest)
        os.makedirs(folder, exist_ok=True)
        local = os.path.join(folder, name)
        with file_lock(local):
            try:
                if force or not os.path.isfile(local):
                    _download(path, local, {})
                else:
                    _refresh(path, local)
            except (OSError, http.client.HTTPException, ValueError) as error:
                reason = " ".join(str(error).split()) or type(error).__name__
                raise OSError(f"`{path}` could not be fetched: {reason}.") from None
        return local


def _refresh(address: str, local: str) -> None:
    """Download a cached file again if it has changed."""
    try:
        with open(_note_of(local), encoding="utf-8") as file:
            note = json.load(file)
        headers = {_VALIDATORS[key]: value for key, value in note.items()}
    except (OSError, ValueError, KeyError, AttributeError):
        headers = {}
    try:
        if _download(address, local, headers):
            return
        reason = "has not changed"
    except urllib.error.HTTPError as error:
        if error.code < 500:  # the server knows that this file is not there any more
            raise
        reason = f"cannot be asked for: {error}"
    except (OSError, http.client.HTTPException) as error:
        reason = f"cannot be asked for: {error}"
    logger.info("%s %s; its cached file %s is used.", address, reason, local)


def _download(address: str, local: str, headers: dict[str, str]) -> bool:
    """Fetch a file, unless the headers say that it is the cached one; returns whether it came."""
    request = urllib.request.Request(address, headers=headers)
    temporary = f"{local}.{os.getpid()}.part"
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
            logger.info("Downloading %s", address)
            with open(temporary, "wb") as file:
                _copy(response, file)
            note = _validators(response.headers)
        # Without a note the file is asked for again: it must not describe an older file.
        with contextlib.suppress(FileNotFoundError):
            os.remove(_note_of(local))
        os.replace(temporary, local)
        with open(_note_of(local), "w", encoding="utf-8") as text:
            json.dump(note, text)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == http.HTTPStatus.NOT_MODIFIED:
            return False
        raise
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.remove(temporary)
    return True


def _copy(response: Any, file: BinaryIO) -> None:
    shutil.copyfileobj(response, file, 1 << 20)
    declared = response.headers.get("Content-Length")
    if declared is not None and int(declared) != file.tell():
        raise OSError(
            f"it must have {declared} bytes, as its server says, but broke off after {file.tell()}"
        )


def _validators(headers: email.message.Message) -> dict[str, str]:
    """Headers by which a later change can be recognised."""
    found = {key: headers[key] for key in _VALIDATORS if headers.get(key)}
    # Times are whole seconds: a file of this very second may change without a trace.
    if "Last-Modified" in found and not _is_later(headers["Date"], found["Last-Modified"]):
        del found["Last-Modified"]
    return found


def _is_later(time: str | None, than: str) -> bool:
    try:
        return email.utils.parsedate_to_datetime(time or "") > email.utils.parsedate_to_datetime(
            than
        )
    except (TypeError, ValueError):
        return False


def _note_of(local: str) -> str:
    return f"{local}.version.json"


# Imported as soon as Detectron2's path manager is, see offseg_d2/_requirements.py.
PathManager.register_handler(AddressHandler(), allow_override=True)
