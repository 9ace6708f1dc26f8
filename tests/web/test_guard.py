"""Requests that the served page refuses, sent without a browser."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from offseg_d2.web.app import accepted_names
from offseg_d2.web.uploads import Limits
from tests.web.common import load, served

httpx = pytest.importorskip("httpx", reason="gradio brings it")
PROXY = "demo.example"
LIMITS = Limits(max_bytes=20_000)


@pytest.fixture(scope="module")
def url(tmp_path_factory, offset_checkpoint) -> Iterator[str]:
    pytest.importorskip("gradio")
    models = load(offset_checkpoint, limits=LIMITS)
    with served(models, tmp_path_factory.mktemp("files"), allow_host=[PROXY]) as address:
        yield address


def upload(url: str, headers: dict[str, str] | None = None, size: int = 100) -> httpx.Response:
    files = {"files": ("image.png", b"x" * size)}
    return httpx.post(f"{url}/gradio_api/upload", files=files, headers=headers)


@pytest.mark.parametrize(
    ("name", "status"),
    [
        *(("127.0.0.1", 200), ("localhost:8000", 200), ("[::1]:7860", 200), (PROXY, 200)),
        *(("other.example", 400), (f"{PROXY}.other.example", 400), ("[", 400)),
    ],
)
def test_only_names_of_this_machine_and_its_proxy_are_answered(url, name, status):
    assert httpx.get(f"{url}/config", headers={"Host": name}).status_code == status


def test_a_server_for_the_network_answers_by_any_name_unless_some_are_allowed():
    assert accepted_names("0.0.0.0", []) == set()
    assert accepted_names("0.0.0.0", [PROXY]) >= {PROXY, "127.0.0.1"}
    assert accepted_names("127.0.0.1", []) == {"127.0.0.1", "localhost", "::1"}


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Origin": "http://127.0.0.1:7860", "Host": "127.0.0.1:7860"}, 200),
        ({"Origin": f"https://{PROXY}"}, 200),
        ({"Sec-Fetch-Site": "same-origin"}, 200),
        ({"Origin": "https://other.example"}, 403),
        ({"Origin": "http://127.0.0.1:3000", "Host": "127.0.0.1:7860"}, 403),
        ({"Origin": "null"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "navigate"}, 403),
    ],
)
def test_uploads_of_other_sites_are_refused(url, headers, status):
    assert upload(url, headers).status_code == status


def test_a_link_on_another_site_leads_to_the_page(url):
    headers = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
    assert httpx.get(url, headers=headers).status_code == 200
    headers["Sec-Fetch-Mode"] = "no-cors"
    assert httpx.get(url, headers=headers).status_code == 403


def test_size_of_uploads_is_bounded(url):
    assert upload(url, size=LIMITS.max_bytes + 1).status_code == 413  # by gradio
    assert upload(url, size=LIMITS.max_bytes + 200_000).status_code == 413
    without_size = httpx.post(f"{url}/gradio_api/upload", content=iter([b"x"]))
    assert without_size.status_code == 411
    filler = Path(os.environ["GRADIO_TEMP_DIR"]) / "filler"
    filler.write_bytes(b"x" * LIMITS.max_total)
    assert upload(url).status_code == 507
    filler.unlink()
    assert upload(url).status_code == 200


@pytest.mark.parametrize("key", ["fn_index", "nested"])
def test_addresses_that_visitors_name_are_not_fetched(url, key, monkeypatch):
    import safehttpx

    monkeypatch.setattr(safehttpx, "is_public_ip", lambda address: True)
    address = f"{url}/config"  # would be answered
    for path in (f"file={address}", f"file/{address}"):
        assert httpx.get(f"{url}/gradio_api/{path}").status_code == 403
    file = {"path": address, "meta": {"_type": "gradio.FileData"}}
    data = [file] if key == "fn_index" else [{"a": [file]}]
    event = {"data": data, "fn_index": 0, "session_hash": "a"}
    refused = httpx.post(f"{url}/gradio_api/queue/join", json=event)
    assert refused.status_code == 403 and "Only uploaded files" in refused.text
    assert httpx.post(f"{url}/gradio_api/queue/join", content=b"{").status_code == 400
    uploaded = upload(url).json()[0]
    event["data"] = [{**file, "path": uploaded}]
    assert httpx.post(f"{url}/gradio_api/queue/join", json=event).status_code == 200


def test_nothing_but_the_servers_own_files_is_served(url, offset_checkpoint):
    for path in ("/etc/hostname", offset_checkpoint, "setup.py"):
        assert httpx.get(f"{url}/gradio_api/file={path}").status_code in (403, 404)
    config = httpx.get(f"{url}/config").json()
    assert config["analytics_enabled"] is False and not config["footer_links"]
    assert offset_checkpoint not in str(config)
