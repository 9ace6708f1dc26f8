"""What the served page refuses, asked without a browser."""

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from offseg_d2.web.arguments import free_port
from offseg_d2.web.server import launch, local_only
from tests.web.common import workbench


@pytest.fixture(scope="module")
def url(tmp_path_factory, offset_checkpoint) -> Iterator[str]:
    pytest.importorskip("gradio")
    port = free_port("127.0.0.1", 0)
    # One folder for all servers: gradio has one for a process.
    files = os.environ.get("GRADIO_TEMP_DIR") or str(tmp_path_factory.mktemp("files"))
    Path(files).mkdir(exist_ok=True)
    page = launch(workbench(offset_checkpoint), [], "127.0.0.1", port, files)
    yield f"http://127.0.0.1:{port}"
    page.close(verbose=False)


def test_addresses_that_visitors_name_are_not_fetched(url, monkeypatch):
    import httpx
    import safehttpx
    from gradio.processing_utils import async_ssrf_protected_download

    sent = []

    async def note(self, request):
        sent.append(str(request.url))
        return httpx.Response(200, content=b"fetched")

    monkeypatch.setattr(httpx.AsyncHTTPTransport, "handle_async_request", note)
    monkeypatch.setattr(safehttpx, "is_public_ip", lambda address: True)
    for address in ("http://127.0.0.1:9/picture.png", "http://localhost:9/picture.png"):
        assert httpx.get(f"{url}/gradio_api/file={address}").status_code == 403
        with pytest.raises(ValueError, match="fetches nothing"):
            asyncio.run(async_ssrf_protected_download(address, os.environ["GRADIO_TEMP_DIR"]))
    assert sent == []


@pytest.mark.parametrize(
    ("name", "status"),
    [("127.0.0.1", 200), ("localhost:8000", 200), ("[::1]:7860", 200), ("other.example", 400)],
)
def test_only_names_of_this_machine_are_answered(url, name, status):
    import httpx

    assert httpx.get(f"{url}/config", headers={"Host": name}).status_code == status


def test_a_server_for_the_network_answers_by_any_name():
    assert local_only("0.0.0.0") == []
