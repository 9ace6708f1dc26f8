"""Mistakes on the command line are reported in one line, with status 2."""

import socket
import subprocess
import sys

import pytest

from offseg_d2.web import app
from offseg_d2.web.app import free_port, main
from offseg_d2.web.options import parse
from tests.common import ROOT
from tests.web.common import write_drawn


def test_defaults_listen_on_this_machine_only():
    options = parse(["--weights", "a.pth"])
    assert (options.host, options.port, options.allow_host) == ("127.0.0.1", 7860, [])
    assert options.checkpoints == [("a.pth", "")]
    assert "up to 20 MB and 16 megapixels" in options.limits.describe()


def test_everything_can_be_set(tmp_path):
    images = [str(write_drawn(tmp_path / f"{i}.png")) for i in range(2)]
    words = "--weights a.pth --config-file a.yaml --compare b.pth --config-file2 b.yaml --example"
    more = "--max-size 1 --max-pixels 0.5 --device cpu --allow-host a.b TEST.SEM_SEG.MODE slide"
    options = parse([*words.split(), *images, *more.split()])
    assert options.checkpoints == [("a.pth", "a.yaml"), ("b.pth", "b.yaml")]
    assert options.example == images and options.opts == ["TEST.SEM_SEG.MODE", "slide"]
    assert options.allow_host == ["a.b"] and options.device == "cpu"
    assert (options.limits.max_bytes, options.limits.max_pixels) == (1_000_000, 500_000)


def test_examples_end_at_two_dashes(tmp_path):
    image = str(write_drawn(tmp_path / "0.png"))
    options = parse(["--weights", "a.pth", "--example", image, "--", "SEED", "3"])
    assert options.example == [image] and options.opts == ["SEED", "3"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--max-size", "0"], "`--max-size` must be in 0..10000, but is 0"),
        (["--max-pixels", "nan"], "`--max-pixels` must be"),
        (["--port", "70000"], "`--port` must be in 0..65535, but is 70000"),
        (["--config-file2", "b.yaml"], "`--config-file2` must come with `--weights2`"),
        (["--example", "absent.png"], "`--example` must name images, but 'absent.png' is none"),
        (["--example", "setup.py"], "'setup.py' is none: The file must be an image"),
        (["--host", "nowhere.invalid"], "`--host` must be an address of this machine"),
        ([], "absent.pth"),
        (["NO.SUCH.KEY", "1"], "NO.SUCH.KEY"),
        (["SEED"], "KEY VALUE pairs"),
    ],
)
def test_mistakes_are_reported_in_one_line(
    options, message, offset_checkpoint, capsys, monkeypatch
):
    pytest.importorskip("gradio")
    weights = "absent.pth" if not options else offset_checkpoint
    free = [] if "--port" in options else ["--port", "0"]
    monkeypatch.setattr(sys, "argv", ["offseg-web", "--weights", weights, *free, *options])
    with pytest.raises(SystemExit) as caught:
        main()
    error = capsys.readouterr().err.strip()
    assert caught.value.code == 2
    assert message in error and error.startswith("error: ")
    assert "Traceback" not in error and len(error.splitlines()) == 1


def test_port_in_use_is_reported():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(OSError, match=f"`--port` a free one, but 127.0.0.1 and {port} cannot"):
            free_port("127.0.0.1", port)
    assert free_port("127.0.0.1", 0) > 0


def test_interrupt_as_soon_as_the_page_is_there_ends_it_quietly(monkeypatch):
    """Programs that wait for the address send it before gradio waits for Ctrl-C."""

    class Page:
        closed = False

        def block_thread(self):
            raise KeyboardInterrupt

        def close(self, verbose):
            self.closed = True

    page = Page()
    monkeypatch.setattr(app, "require_gradio", lambda: None)
    monkeypatch.setattr(app, "load_models", lambda options: None)
    monkeypatch.setattr(app, "launch", lambda *arguments: page)
    monkeypatch.setattr(app.signal, "signal", lambda *arguments: None)
    app.run(["--weights", "x.pth", "--port", "0"])
    assert page.closed


def test_without_gradio_the_extra_is_named():
    code = (
        "import sys; sys.modules['gradio'] = None\n"
        "from offseg_d2.web.app import main\n"
        "sys.argv = ['offseg-web', '--weights', 'a.pth']\n"
        "main()"
    )
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 2
    error = ran.stderr.strip().splitlines()[-1]
    assert error.startswith("error: ") and "pip install 'offseg_d2[web]'" in error
    assert "Traceback" not in ran.stderr
