"""Set-up: states of the environment, its steps and their messages."""

import runpy
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from offseg_d2.commands import setup_env

ROOT = Path(__file__).resolve().parent.parent


class Machine:
    """A clone of files alone: records the steps of a set-up instead of running them.

    Attributes:
        commands: (step, command) of all of them.
        fails_at: step that fails.
        found: modules of the environment.
    """

    def __init__(self, folder: Path) -> None:
        self.venv = folder / ".venv"
        self.commands: list[tuple[str, tuple[str, ...]]] = []
        self.fails_at = ""
        self.platform = setup_env.LOCKED_FOR
        self.found = set(setup_env.NEEDED)

    def run(self, step: str, *command: str) -> None:
        self.commands.append((step.split()[0], command))
        if step.split()[0] == self.fails_at:
            raise setup_env.SetupError(step)
        if "venv" in command:
            (self.venv / "bin").mkdir(parents=True, exist_ok=True)
            for name in ("pyvenv.cfg", "bin/python"):
                (self.venv / name).touch()

    def probe(self, python: Path, *modules: str) -> tuple[str, Path, set[str]]:
        return self.platform, self.venv / "lib", self.found & set(modules)

    def set_up(self, fails_at: str = "") -> list[str]:
        """Steps of one set-up."""
        self.commands, self.fails_at = [], fails_at
        if fails_at:
            with pytest.raises(setup_env.SetupError, match=fails_at):
                setup_env.make_environment(self.venv)
        else:
            setup_env.make_environment(self.venv)
        return [step for step, _ in self.commands]


@pytest.fixture
def machine(tmp_path, monkeypatch) -> Machine:
    machine = Machine(tmp_path)
    (tmp_path / "requirements").mkdir()
    for name in ("setup.py", *(f"requirements/{n}.txt" for n in ("base", "build", "detectron2"))):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    monkeypatch.setattr(setup_env, "ROOT", tmp_path)
    monkeypatch.setattr(setup_env, "REQUIREMENTS", tmp_path / "requirements")
    monkeypatch.setattr(setup_env, "run", machine.run)
    monkeypatch.setattr(setup_env, "probe", machine.probe)
    return machine


ALL = ["environment", "build", "requirements", "offseg_d2", "check"]


def test_a_complete_environment_is_left_alone_until_a_requirement_changes(machine):
    assert machine.set_up() == ALL
    assert machine.set_up() == []
    with (machine.venv.parent / "requirements" / "base.txt").open("a") as file:
        file.write("# changed\n")
    assert machine.set_up() == ALL[1:]
    assert machine.set_up() == []


def test_a_removed_package_is_installed_again(machine):
    machine.set_up()
    machine.found.remove("torch")
    assert machine.set_up() == ALL[1:]


@pytest.mark.parametrize("step", ALL)
def test_a_set_up_that_ended_at_a_step_is_made_again_from_scratch(machine, step):
    machine.set_up(fails_at=step)
    assert machine.set_up() == ALL
    assert "--clear" in machine.commands[0][1]
    assert machine.set_up() == []


def test_an_update_that_was_interrupted_is_made_again_from_scratch(machine):
    machine.set_up()
    (machine.venv.parent / "setup.py").write_text("# changed")
    machine.set_up(fails_at="requirements")
    assert machine.set_up() == ALL


def test_an_environment_that_was_moved_is_made_again(machine):
    machine.set_up()
    stamp = machine.venv / setup_env.STAMP
    stamp.write_text(stamp.read_text().replace(str(machine.venv), "/elsewhere/.venv"))
    assert machine.set_up() == ALL


def test_an_environment_made_by_the_user_is_completed_and_never_deleted(machine):
    machine.run("by hand", "python", "-m", "venv")
    assert machine.set_up(fails_at="requirements") == ["build", "requirements"]
    assert machine.set_up() == ALL[1:]


def test_a_folder_that_is_no_environment_is_refused(machine):
    machine.venv.mkdir()
    (machine.venv / "notes.txt").touch()
    with pytest.raises(setup_env.SetupError, match=r"`--venv` must be a new folder or an envir"):
        setup_env.make_environment(machine.venv)
    assert machine.commands == []


@pytest.mark.parametrize(
    ("platform", "expected"),
    [(setup_env.LOCKED_FOR, "base.txt"), ("CPython 3.12 linux aarch64", "base.in")],
)
def test_hashes_are_required_where_the_lock_fits(machine, platform, expected):
    machine.platform = platform
    machine.set_up()
    commands = dict(machine.commands)
    assert commands["requirements"][-1].endswith(expected)
    assert ("--require-hashes" in commands["requirements"]) == (expected == "base.txt")
    assert "--require-hashes" in commands["build"]


# --- Detectron2


def write_wheel(folder: Path) -> None:
    with zipfile.ZipFile(folder / "sal_detectron2-0.7.2-cp310.whl", "w") as archive:
        for name in ("detectron2", "tools", "sal_detectron2-0.7.2.dist-info"):
            archive.writestr(f"{name}/new", "")


def test_detectron2_leaves_the_tools_folder_of_its_wheel_behind(tmp_path):
    write_wheel(tmp_path)
    packages = tmp_path / "site-packages"
    for name in ("detectron2", "tools", "sal_detectron2-0.7.1.dist-info"):
        (packages / name).mkdir(parents=True)
        (packages / name / "old").touch()
    setup_env.unpack_detectron2(tmp_path, packages, "sal_detectron2-0.7.2.dist-info")
    found = {path.relative_to(packages).as_posix() for path in packages.glob("*/*")}
    assert found == {"detectron2/new", "sal_detectron2-0.7.2.dist-info/new", "tools/old"}


@pytest.mark.parametrize(
    ("found", "metadata", "is_downloaded"),
    [
        (True, "sal_detectron2-0.7.2.dist-info", False),
        (True, "", False),  # another build, such as the official one
        (True, "sal_detectron2-0.7.1.dist-info", True),
        (False, "sal_detectron2-0.7.2.dist-info", True),
        (False, "", True),
    ],
)
def test_detectron2_is_downloaded_with_its_hash_unless_it_is_there(
    machine, monkeypatch, found, metadata, is_downloaded
):
    machine.found = {"detectron2"} if found else set()
    packages = machine.venv / "lib"
    (packages / metadata).mkdir(parents=True)
    unpacked = []
    monkeypatch.setattr(setup_env, "unpack_detectron2", lambda *args: unpacked.append(args[1:]))
    setup_env.install_detectron2(machine.venv / "bin" / "python")
    assert unpacked == [(packages, "sal_detectron2-0.7.2.dist-info")] * is_downloaded
    assert all("--require-hashes" in command for _, command in machine.commands)
    assert len(machine.commands) == is_downloaded


# --- commands and messages


def test_a_failed_command_names_its_step_and_what_to_do(capfd):
    with pytest.raises(setup_env.SetupError) as caught:
        setup_env.run("requirements", sys.executable, "-c", "print('why'); raise SystemExit(3)")
    lines = str(caught.value).splitlines()
    assert lines[0] == "Set-up failed at the step: requirements (exit status 3)."
    assert lines[1].startswith(f"  Command: {sys.executable} -c ")
    assert "run the same command again" in lines[2]
    assert "why" in capfd.readouterr().out
    with pytest.raises(setup_env.SetupError, match="exit status 127"):
        setup_env.run("step", "/no/such/program")


def test_an_interpreter_reports_its_platform_packages_and_modules(tmp_path):
    platform, packages, found = setup_env.probe(Path(sys.executable), "torch", "no_such_module")
    assert platform.startswith("CPython 3.")
    assert (packages / "torch").is_dir()
    assert found == {"torch"}
    assert setup_env.probe(tmp_path / "missing", "torch") == ("", Path(), set())


def test_an_old_python_is_refused_with_how_to_name_another(monkeypatch):
    monkeypatch.setattr(sys, "version_info", (3, 9, 2))
    with pytest.raises(SystemExit, match=r"must be 3\.10 or newer.* make setup PYTHON=python3\.11"):
        runpy.run_path(str(ROOT / "tools/setup_env.py"), run_name="__main__")


def test_an_installed_package_only_adds_detectron2(monkeypatch):
    added = []
    monkeypatch.setattr(setup_env, "IS_CLONE", False)
    monkeypatch.setattr(setup_env, "install_detectron2", added.append)
    with pytest.raises(SystemExit, match="is made in a clone of offseg_d2"):
        setup_env.main([])
    setup_env.main(["--detectron2-here"])
    assert added == [Path(sys.executable)]


def test_a_second_set_up_waits_for_the_first_one_and_what_it_left_running(tmp_path):
    code = (
        "import pathlib, subprocess, sys; from offseg_d2.commands import setup_env;"
        f"setup_env.ROOT = pathlib.Path({str(tmp_path)!r}); lock = setup_env.lock_clone();"
        "print('held', flush=True);"
    )
    child = "subprocess.run(['cat'], close_fds=False)"  # ends with the input
    options = {"cwd": ROOT, "stdout": subprocess.PIPE, "text": True}
    first = subprocess.Popen([sys.executable, "-c", code + child], stdin=subprocess.PIPE, **options)
    with first:
        assert first.stdout.readline() == "held\n"
        with subprocess.Popen([sys.executable, "-c", code], **options) as second:
            assert "waiting" in second.stdout.readline()
            first.kill()
            first.stdin.close()
            assert second.stdout.readline() == "held\n"
