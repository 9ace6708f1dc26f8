"""The pages as a site; MkDocs is an optional package."""

import re
import subprocess
import sys

import pytest

from tests.common import ROOT

pytest.importorskip("mkdocs", reason="the extra `docs` is not installed")


def test_site_is_built_without_a_warning_and_its_links_stay_in_it(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    pages = list(tmp_path.rglob("index.html"))
    assert len(pages) == 14
    zoo = (tmp_path / "docs/MODEL_ZOO/index.html").read_text(encoding="utf-8")
    configurations = re.findall(r'href="([^"]+\.yaml)"', zoo)
    assert len(configurations) > 40
    for link in configurations:
        assert (tmp_path / "docs/MODEL_ZOO" / link).is_file(), link
    assert not re.search(r'(src|href)="https?://[^"]*\.(css|js|woff2?)"', zoo)
