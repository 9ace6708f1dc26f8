"""Requests that the server refuses: those of other sites, and those that are too large."""

import json
import os
from collections.abc import Awaitable, Callable, Collection, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

_MAX_JSON = 1_000_000  # bytes of an event of the page
_MULTIPART_EXTRA = 100_000  # bytes of a form around its file


class _Refused(ValueError):
    """Ends a request with a status and one sentence."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


@dataclass
class Guard:
    """ASGI middleware around the page.

    A page of another site, opened in the same browser, could otherwise send requests to a server
    of this machine, or let its own name stand for this machine (DNS rebinding).

    Attributes:
        app: the application that is guarded.
        hosts: names by which the server may be called; none for any name.
        proxies: names of proxies whose pages may send requests too.
        folder: for all files of the page; requests may name no others.
        max_bytes: of an uploaded file.
        max_total: bytes of all files in the folder, after which uploads are refused.
    """

    app: Callable[[Message, Receive, Send], Awaitable[None]]
    hosts: Collection[str]
    proxies: Collection[str]
    folder: str
    max_bytes: int
    max_total: int

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer that it is refused."""
        if scope["type"] == "http":
            try:
                headers = {key.decode(): value.decode("latin-1") for key, value in scope["headers"]}
                self._check_origin(scope["method"], headers)
                if "://" in scope["path"]:  # gradio's /file=ADDRESS
                    raise _Refused(403, "The page fetches nothing from other hosts.")
                if scope["method"] == "POST":
                    receive = await self._check_body(headers, receive)
            except _Refused as refused:
                await _answer(send, refused.status, str(refused))
                return
        elif scope["type"] != "lifespan":
            return
        await self.app(scope, receive, send)

    def _check_origin(self, method: str, headers: dict[str, str]) -> None:
        host = headers.get("host", "")
        if self.hosts and _hostname(f"//{host}") not in self.hosts:
            raise _Refused(400, "The page has another name; `--allow-host` adds one.")
        origin = headers.get("origin", f"http://{host}")
        is_own = origin.partition("://")[2] == host
        follows_link = method == "GET" and headers.get("sec-fetch-mode") == "navigate"
        comes_from = headers.get("sec-fetch-site", "none")
        if not (is_own or _hostname(origin) in self.proxies) or (
            comes_from not in ("none", "same-origin") and not follows_link
        ):
            raise _Refused(403, "Requests of other sites are refused.")

    async def _check_body(self, headers: dict[str, str], receive: Receive) -> Receive:
        size = headers.get("content-length", "")
        is_form = headers.get("content-type", "").lower().startswith("multipart/form-data")
        if not size.isdecimal() or "transfer-encoding" in headers:
            raise _Refused(411, "The request must state its size.")
        if int(size) > (self.max_bytes + _MULTIPART_EXTRA if is_form else _MAX_JSON):
            raise _Refused(413, "The request is too large.")
        if is_form:
            if _folder_bytes(self.folder) + int(size) > self.max_total:
                raise _Refused(507, "There is no room for more files; please try again later.")
            return receive
        return await self._check_paths(receive)

    async def _check_paths(self, receive: Receive) -> Receive:
        """Refuse events with a file that was not uploaded; gradio would download an address."""
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message.get("body", b""), message.get("more_body", False)

        def check(value: dict[str, Any]) -> None:
            path = value.get("path")
            if path is not None and not str(path).startswith(os.path.join(self.folder, "")):
                raise _Refused(403, "Only uploaded files can be used.")

        try:
            json.loads(body or b"{}", object_hook=check)
        except (UnicodeDecodeError, json.JSONDecodeError, RecursionError):
            raise _Refused(400, "The request must be JSON.") from None
        messages = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay() -> Message:
            return messages.pop() if messages else await receive()

        return replay


def _hostname(address: str) -> str | None:
    try:
        return urlsplit(address).hostname
    except ValueError:
        return None


def _folder_bytes(folder: str) -> int:
    return sum(os.path.getsize(path) for path in Path(folder).rglob("*") if path.is_file())


async def _answer(send: Send, status: int, text: str) -> None:
    headers = [(b"content-type", b"text/plain; charset=utf-8")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": text.encode()})
