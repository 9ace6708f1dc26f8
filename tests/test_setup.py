"""Set-up: states of the environment, its steps and their messages."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))

from environment import problems, runner, steps  # noqa: E402


class FakeRunner:
    """Records commands; ``-m venv`` leaves a stand-in, anything else raises ``error``, if any."""

    def __init__(self, error: problems.SetupError | None = None) -> None:
        self.commands: list[list[str]] = []
        self.error = error

    def run(self, step: str, command: list[str], cwd: Path) -> str:
        self.commands.append(command)
        if "venv" in command:
            write_python(Path(command[-1]), exit_status=0)
        elif self.error is not None:
            raise self.error
        return ""


def write_python(venv: Path, exit_status: int) -> None:
    """A stand-in for ``venv/bin/python`` that only ends with ``exit_status``."""
    program = venv / "bin" / "python"
    program.parent.mkdir(parents=True, exist_ok=True)
    program.write_text(f"#!/bin/sh\nexit {exit_status}\n")
    program.chmod(0o755)


@pytest.fixture
def environment(tmp_path, monkeypatch) -> steps.Environment:
    """An environment of a clone that has only its requirement files; the disk has room."""
    monkeypatch.setattr(steps, "check_disk", lambda folder: None)
    for name in steps.FINGERPRINT_FILES:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    return steps.Environment(tmp_path, tmp_path / ".venv")


def finish(environment: steps.Environment) -> None:
    write_python(environment.venv, exit_status=0)
    environment.write_state(environment.fingerprint())


# --- states of the environment


def test_a_finished_environment_is_ready_and_a_missing_one_is_not(environment):
    assert not environment.is_ready()
    finish(environment)
    assert environment.is_ready()


@pytest.mark.parametrize("name", steps.FINGERPRINT_FILES)
def test_any_changed_requirement_file_makes_the_environment_stale_but_usable(environment, name):
    finish(environment)
    with (environment.root / name).open("a") as file:
        file.write("# changed\n")
    assert not environment.is_ready()
    assert environment.why_unusable() == ""


def test_removed_packages_or_a_broken_python_make_the_environment_not_ready(environment):
    finish(environment)
    write_python(environment.venv, exit_status=1)
    assert not environment.is_ready()
    assert environment.why_unusable() == "its pip does not work"
    environment.python.unlink()
    assert not environment.is_ready()
    assert environment.why_unusable() == "its pip does not work"


def test_an_environment_without_one_needed_module_is_not_ready():
    command = [sys.executable, "-I", "-c", steps._FIND_MODULES]
    assert runner.quiet([*command, "torch", "detectron2"]).returncode == 0
    assert runner.quiet([*command, "torch", "no_such_module"]).returncode == 1


@pytest.mark.parametrize("step", ["venv", "requirements"])
def test_an_environment_interrupted_at_a_step_is_made_anew(environment, step, capsys):
    finish(environment)
    environment.mark(interrupted=step)
    leftover = environment.venv / "half_copied_package"
    leftover.touch()
    fake = FakeRunner()
    environment.make(fake, "virtual environment")
    assert not leftover.exists()
    assert fake.commands == [[sys.executable, "-m", "venv", str(environment.venv)]]
    assert f"interrupted at the step: {step}" in capsys.readouterr().out


def test_a_stop_while_the_folder_is_created_is_noticed(environment):
    class Killed(Exception):
        pass

    class KilledRunner(FakeRunner):
        def run(self, step: str, command: list[str], cwd: Path) -> str:
            raise Killed

    with pytest.raises(Killed):
        environment.make(KilledRunner(), "virtual environment")
    assert environment.venv.is_dir()
    write_python(environment.venv, exit_status=0)
    assert "interrupted at the step: virtual environment" in environment.why_unusable()


def test_a_damaged_state_file_and_a_moved_clone_make_it_anew(environment):
    finish(environment)
    (environment.venv / steps.STATE_FILE).write_text('{"place": ')
    assert environment.why_unusable() == "it was made for another folder or half made"
    environment.write_state({**environment.fingerprint(), "place": "/elsewhere/.venv"})
    assert environment.why_unusable() == "it was made for another folder or half made"


def test_an_environment_made_by_the_user_is_kept_and_never_marked(environment):
    write_python(environment.venv, exit_status=0)
    fake = FakeRunner()
    environment.make(fake, "virtual environment")
    environment.install_requirements(fake, "requirements")
    assert not any("venv" in command for command in fake.commands)
    assert environment.state() is None
    assert environment.why_unusable() == ""


@pytest.mark.parametrize(
    ("output", "usable"),
    [
        ("Collecting torch\nERROR: Could not find a version", True),
        ("Installing collected packages: torch\nNo space left on device", False),
    ],
)
def test_a_failed_pip_spoils_the_environment_only_once_it_copied_files(environment, output, usable):
    finish(environment)
    error = problems.SetupError("failed", output)
    with pytest.raises(problems.SetupError):
        environment.install_requirements(FakeRunner(error), "requirements")
    assert not environment.is_ready()
    assert (environment.why_unusable() == "") is usable


def test_hashes_are_required_where_the_lock_fits_and_the_open_list_serves_elsewhere(
    environment, monkeypatch, capsys
):
    finish(environment)
    fake = FakeRunner()
    environment.install_requirements(fake, "requirements")  # the stand-in tells no platform
    assert fake.commands[-1][-2:] == ["-r", str(environment.root / "requirements/base.in")]
    assert "--require-hashes" not in fake.commands[-1]
    assert "without hashes" in capsys.readouterr().out
    monkeypatch.setattr(steps, "LOCKED_PLATFORM", "")
    environment.install_requirements(fake, "requirements")
    assert fake.commands[-1][-1] == str(environment.root / "requirements/base.txt")
    assert "--require-hashes" in fake.commands[-1]


def test_detectron2_is_moved_without_the_wheels_tools_folder_and_others_tools_stay(tmp_path):
    staging, purelib = tmp_path / "staging", tmp_path / "site-packages"
    for folder in ("detectron2", "tools", "sal_detectron2-0.7.2.dist-info"):
        (staging / folder).mkdir(parents=True)
        (staging / folder / "new").touch()
    for folder in ("detectron2", "tools", "sal_detectron2-0.7.1.dist-info"):
        (purelib / folder).mkdir(parents=True)
        (purelib / folder / "old").touch()
    steps.move_detectron2(staging, purelib)
    found = {path.relative_to(purelib).as_posix() for path in purelib.glob("*/*")}
    assert found == {"detectron2/new", "sal_detectron2-0.7.2.dist-info/new", "tools/old"}


@pytest.mark.parametrize(
    ("distribution", "version", "expected"),
    [("sal_detectron2", "0.7.2", "pinned"), ("detectron2", "0.6", "other"), ("", "", "absent")],
)
def test_a_detectron2_that_is_there_is_told_from_the_pinned_wheel(
    tmp_path, distribution, version, expected
):
    if distribution:
        (tmp_path / "detectron2").mkdir()
        (tmp_path / "detectron2" / "__init__.py").touch()
        metadata = tmp_path / f"{distribution}-{version}.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text(f"Name: {distribution}\nVersion: {version}\n")
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n{steps._FIND_DETECTRON2}"
    result = runner.quiet([sys.executable, "-I", "-S", "-c", code, "0.7.2"])
    assert result.stdout.strip() == expected, result.stderr


# --- commands and messages


def test_a_failed_step_tells_step_command_last_lines_and_remedy(tmp_path):
    run = runner.Runner(tmp_path / "log", steps=1)
    run.hold_lock(tmp_path / "lock")
    code = "print(*range(100), 'No space left on device', sep='\\n'); raise SystemExit(3)"
    with pytest.raises(problems.SetupError) as caught:
        run.run("requirements", [sys.executable, "-c", code], tmp_path)
    lines = str(caught.value).splitlines()
    assert lines[0] == "Set-up failed at the step: requirements (exit status 3)."
    assert lines[1].startswith(f"  Command: {sys.executable} -c ")
    assert "    | 99" in lines
    assert "    | 10" not in lines
    assert "  What to do: The disk is full: free some space." in lines
    assert lines[-1] == f"  The whole output is in {tmp_path / 'log'}."
    assert len((tmp_path / "log").read_text().splitlines()) == 101


def test_a_program_that_cannot_start_is_a_failed_step(tmp_path):
    run = runner.Runner(tmp_path / "log", steps=1)
    run.hold_lock(tmp_path / "lock")
    with pytest.raises(problems.SetupError, match="exit status 127"):
        run.run("step", [str(tmp_path / "missing")], tmp_path)


@pytest.mark.parametrize(
    ("output", "remedy"),
    [
        ("created successfully because ensurepip is not available", "install -y python3-venv"),
        ("/usr/bin/python3: No module named venv", "install -y python3-venv"),
        ("ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM", "not the one that was locked"),
        ("[Errno -3] Temporary failure in name resolution", "check the network"),
        ("ERROR: No matching distribution found for x", "check the network"),
        ("OSError: [Errno 28] No space left on device", "free some space"),
        ("something new", "run the same command again"),
    ],
)
def test_advice_fits_the_cause(output, remedy):
    assert remedy in problems.advice(output)


def test_an_old_python_is_refused_with_what_to_install():
    problems.check_python((3, 10, 0))
    with pytest.raises(problems.SetupError, match=r"must be 3\.10 or newer.* is 3\.9\.2"):
        problems.check_python((3, 9, 2))


def test_too_little_disk_space_is_refused_with_the_folder_and_the_need(tmp_path, monkeypatch):
    monkeypatch.setattr(problems, "NEEDED_GB", 1e9)
    with pytest.raises(problems.SetupError, match="check disk space") as caught:
        problems.check_disk(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_a_second_setup_waits_for_the_first_one(tmp_path):
    holder_code = (
        "import sys, time; from pathlib import Path; from environment.runner import Runner;"
        f"folder = Path({str(tmp_path)!r}); run = Runner(folder / 'log', 1);"
        "run.hold_lock(folder / 'lock'); print('held', flush=True); {rest}"
    )
    options = {"cwd": ROOT / "tools", "stdout": subprocess.PIPE, "text": True}
    first_code = holder_code.format(rest="sys.stdin.read()")
    with subprocess.Popen(
        [sys.executable, "-c", first_code], stdin=subprocess.PIPE, **options
    ) as first:
        assert first.stdout.readline() == "held\n"
        with subprocess.Popen(
            [sys.executable, "-c", holder_code.format(rest="")], **options
        ) as second:
            assert "waiting" in second.stdout.readline()
            first.stdin.close()
            assert second.stdout.readline() == "held\n"


def test_setup_check_of_a_ready_environment_takes_below_a_second(environment):
    finish(environment)
    before = os.times().elapsed
    assert environment.is_ready()
    assert os.times().elapsed - before < 1.0


def test_state_file_is_replaced_in_one_move(environment):
    finish(environment)
    environment.write_state({"place": "x"})
    assert json.loads((environment.venv / steps.STATE_FILE).read_text()) == {"place": "x"}
    assert [path.name for path in environment.venv.glob("*.new")] == []


def test_pinned_version_is_read_past_comments_and_hashes(tmp_path):
    path = tmp_path / "one.txt"
    path.write_text("# not==this\nname==1.2.3 \\\n    --hash=sha256:00\n")
    assert steps.pinned_version(path) == "1.2.3"
