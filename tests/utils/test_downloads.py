"""Tests of files by address, with servers on this machine."""

import email.utils
import http.server
import logging
import threading

import pytest
import torch
from detectron2.utils.file_io import PathManager
from torch import nn

from offseg_d2.checkpoint import SafeCheckpointer
from offseg_d2.utils import downloads


class Server(http.server.ThreadingHTTPServer):
    """Serves ``content`` at any path, and records the status of each answer."""

    def __init__(self, content=b"first", etag=None, modified=None, declared=None) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content, self.etag, self.modified, self.declared = content, etag, modified, declared
        self.status = 200
        self.answers = []
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def address(self, path="model.bin"):
        return f"http://127.0.0.1:{self.server_port}/{path}"

    def stop(self):
        self.shutdown()
        self.server_close()


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        server, asked = self.server, self.headers
        same = (server.etag and asked["If-None-Match"] == server.etag) or (
            server.modified and asked["If-Modified-Since"] == server.modified
        )
        status = 304 if same else server.status
        server.answers.append(status)
        self.send_response(status)
        if server.etag:
            self.send_header("ETag", server.etag)
        if server.modified:
            self.send_header("Last-Modified", server.modified)
        body = b"" if status != 200 else server.content
        self.send_header("Content-Length", str(server.declared or len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


@pytest.fixture
def serve(tmp_path, monkeypatch):
    """Starts servers; downloads go to a folder of this test."""
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "cache"))
    servers = []

    def start(**options):
        servers.append(Server(**options))
        return servers[-1]

    yield start
    for server in servers:
        server.stop()


def fetch(address):
    with PathManager.open(address, "rb") as file:
        return file.read()


@pytest.mark.parametrize("path", ["model.bin", "a/model.bin", "model.bin?version=2"])
def test_the_whole_address_names_the_cached_file(serve, path):
    first, second = serve(content=b"first", etag='"1"'), serve(content=b"second", etag='"1"')
    assert fetch(first.address(path)) == b"first"
    assert fetch(second.address(path)) == b"second"
    assert fetch(first.address(path)) == b"first"
    assert first.answers == [200, 304]


def test_addresses_that_differ_in_their_query_only(serve):
    server = serve()
    fetch(server.address("model.bin?v=1"))
    server.content = b"second"
    assert fetch(server.address("model.bin?v=2")) == b"second"


YESTERDAY = email.utils.formatdate(1_700_000_000, usegmt=True)
TODAY = email.utils.formatdate(1_700_086_400, usegmt=True)


@pytest.mark.parametrize(
    ("header", "old", "new"), [("etag", '"1"', '"2"'), ("modified", YESTERDAY, TODAY)]
)
def test_a_changed_file_is_fetched_again(serve, header, old, new, caplog):
    server = serve(**{header: old})
    assert fetch(server.address()) == b"first"
    with caplog.at_level(logging.INFO, downloads.__name__):
        assert fetch(server.address()) == b"first"
    assert "has not changed; its cached file" in caplog.text
    server.content = b"second, longer"
    setattr(server, header, new)
    assert fetch(server.address()) == b"second, longer"
    assert server.answers == [200, 304, 200]


@pytest.mark.parametrize("modified", [None, email.utils.formatdate(4_000_000_000, usegmt=True)])
def test_without_a_way_to_recognise_changes_a_file_is_always_fetched(serve, modified):
    server = serve(modified=modified)
    assert fetch(server.address()) == b"first"
    server.content = b"other"
    assert fetch(server.address()) == b"other"


def test_the_cache_serves_where_the_server_cannot(serve, caplog):
    server = serve(etag='"1"')
    address = server.address()
    fetch(address)
    server.etag, server.status = None, 503
    with caplog.at_level(logging.INFO, downloads.__name__):
        assert fetch(address) == b"first"
        server.stop()
        assert fetch(address) == b"first"
    assert caplog.text.count("cannot be asked for") == 2
    assert "503" in caplog.text


@pytest.mark.parametrize("cached", [False, True])
def test_a_file_that_is_not_there(serve, cached):
    server = serve(etag='"1"')
    if cached:
        fetch(server.address())
    server.etag, server.status = None, 404
    with pytest.raises(OSError, match=r"`http://127.*/model.bin` could not be fetched: .*404"):
        fetch(server.address())


def test_a_download_that_breaks_off_leaves_nothing(serve, tmp_path):
    server = serve(declared=1000)
    with pytest.raises(OSError, match=r"`http.*` could not be fetched: .* 1000 bytes"):
        fetch(server.address())
    assert not [p for p in tmp_path.rglob("*") if p.is_file() and p.suffix != ".lock"]
    server.declared = None
    assert fetch(server.address()) == b"first"


def test_weights_of_two_servers(serve, tmp_path):
    for value, query in ((1.0, ""), (2.0, ""), (3.0, "?token=a")):
        file = tmp_path / "model.pth"
        torch.save({"model": {"weight": torch.full((1, 1), value)}}, file)
        server = serve(content=file.read_bytes(), etag='"1"')
        model = nn.Linear(1, 1, bias=False)
        SafeCheckpointer(model).load(server.address(f"model.pth{query}"), checkpointables=[])
        assert model.weight.item() == value
