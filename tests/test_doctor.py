"""The doctor and the import sentence, also where nothing is installed."""

import importlib.metadata
import subprocess
import sys
import types
from pathlib import Path

import pytest

from offseg_d2 import doctor
from offseg_d2._requirements import has_module

ROOT = Path(__file__).resolve().parent.parent


def run_without_packages(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Python without site-packages, in the clone: no torch, no Detectron2."""
    command = [sys.executable, "-E", "-S", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(
    "code",
    [
        "import offseg_d2; offseg_d2.Trainer",
        "from offseg_d2 import load_config",
        "import offseg_d2.config",
        "import offseg_d2.checkpoint.formats",
    ],
)
def test_import_without_detectron2_ends_with_one_sentence_and_the_install_command(code):
    result = run_without_packages("-c", code)
    assert result.returncode == 1
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: offseg_d2 needs Detectron2, which is not installed here;")
    assert last.endswith("python -m offseg_d2 setup-env --detectron2-here")
    assert "ModuleNotFoundError" not in result.stderr
    assert "During handling" not in result.stderr


def test_doctor_runs_without_any_package_and_names_what_is_missing():
    result = run_without_packages("-m", "offseg_d2.doctor")
    assert result.returncode == 1
    assert result.stderr == ""
    for name in ("torch", "torchvision", "numpy", "detectron2"):
        lines = [line for line in result.stdout.splitlines() if line.split()[:2][-1:] == [name]]
        assert [line.split()[0] for line in lines] == ["PROBLEM"], name
    assert "--detectron2-here" in result.stdout


def test_doctor_finds_no_problem_in_this_environment(capsys):
    assert doctor.main() == 0
    output = capsys.readouterr().out
    assert output.endswith("All is well.\n")
    assert "PyTorch" in output  # Detectron2's description of the environment


def test_one_problem_makes_the_exit_status_1_and_shows_its_remedy(monkeypatch, capsys):
    broken = doctor.Finding(doctor.PROBLEM, "torch", "does not import", "install it again")
    monkeypatch.setattr(doctor, "CHECKS", (lambda: iter([broken]),))
    assert doctor.main() == 1
    output = capsys.readouterr().out
    assert "PROBLEM  torch  does not import" in output
    assert "-> install it again" in output
    assert "1 problem(s)" in output


def test_a_bare_folder_named_like_a_package_is_not_taken_for_the_package(tmp_path, monkeypatch):
    (tmp_path / "bare_folder_package").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    assert not has_module("bare_folder_package")
    (tmp_path / "bare_folder_package" / "__init__.py").touch()
    assert has_module("bare_folder_package")


@pytest.mark.parametrize(
    ("version", "level"), [((3, 10, 0), doctor.OK), ((3, 13), doctor.OK), ((3, 14), doctor.WARNING)]
)
def test_python_that_was_not_tried_is_a_warning(version, level, monkeypatch):
    monkeypatch.setattr(doctor.sys, "version_info", version)
    (finding,) = doctor.check_python()
    assert (finding.level, finding.name) == (level, "Python")


def test_old_python_is_refused_in_one_sentence():
    code = "import sys; sys.version_info = (3, 9, 2, 'final', 0); import offseg_d2.doctor"
    result = run_without_packages("-c", code)
    assert result.returncode == 1
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: offseg_d2 needs Python 3.10 or newer, but ")


def test_torchvision_that_does_not_fit_torch_is_a_problem_with_a_remedy(monkeypatch):
    def nms(*_args: object) -> None:
        raise RuntimeError("operator torchvision::nms does not exist\nlong explanation")

    monkeypatch.setattr("torchvision.ops.nms", nms)
    (finding,) = doctor.check_torchvision()
    assert finding.level == doctor.PROBLEM
    assert finding.text.endswith("RuntimeError: operator torchvision::nms does not exist")
    assert "pip install --upgrade torch torchvision" in finding.remedy


def test_a_package_that_fails_to_import_is_a_problem_with_the_first_line_of_its_error(
    tmp_path, monkeypatch
):
    (tmp_path / "broken_wheel.py").write_text("raise OSError('libfoo.so: not found\\nmore')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(doctor, "MODULES", {"broken_wheel": ("broken-wheel",)})
    (finding,) = doctor.check_modules()
    assert finding.level == doctor.PROBLEM
    assert finding.text.endswith("does not import: OSError: libfoo.so: not found")


# --- versions


@pytest.fixture
def versions(monkeypatch) -> dict[str, str]:
    """Distribution -> version of all that is installed; empty at first."""
    found: dict[str, str] = {}

    def version(name: str) -> str:
        if name not in found:
            raise importlib.metadata.PackageNotFoundError(name)
        return found[name]

    monkeypatch.setattr(doctor.importlib.metadata, "version", version)
    return found


def check_versions(monkeypatch, *requirements: str) -> list[doctor.Finding]:
    monkeypatch.setattr(doctor.importlib.metadata, "requires", lambda name: list(requirements))
    return list(doctor.check_versions())


@pytest.mark.parametrize(
    ("requirement", "version", "is_problem"),
    [
        ("torch>=2.6", "2.5.1+cpu", True),  # executes checkpoints
        ("torch>=2.6", "2.6.0", False),
        ("torch>=2.6", "2.14.1+cu130", False),
        ("setuptools<81", "82.0.0", True),  # no pkg_resources
    ],
)
def test_versions_that_setup_does_not_allow_are_problems(
    monkeypatch, versions, requirement, version, is_problem
):
    name = requirement[: len("torch" if "torch" in requirement else "setuptools")]
    versions[name] = version
    findings = check_versions(monkeypatch, requirement)
    expected = [(doctor.PROBLEM, f'pip install "{requirement}"')] if is_problem else []
    assert [(finding.level, finding.remedy) for finding in findings] == expected


def test_absent_and_old_extras_are_notes_and_a_gpu_build_will_do(monkeypatch, versions):
    versions |= {"onnxruntime-gpu": "1.3", "gradio": "5.9.1"}
    extras = ('onnxruntime; extra == "export"', 'gradio>=6; extra == "web"', 'ruff; extra == "dev"')
    findings = check_versions(monkeypatch, *extras, 'torch-ms-deform-attn; extra == "deformable"')
    assert [(f.level, f.name, f.text) for f in findings] == [
        (doctor.NOTE, "extra web", "lacks gradio>=6 (5.9.1)"),
        (doctor.NOTE, "extra deformable", "lacks torch-ms-deform-attn (not installed)"),
    ]
    assert "pip install 'offseg_d2[web]'" in findings[0].remedy
    assert "--no-build-isolation" in findings[1].remedy


def test_a_clone_that_is_not_installed_is_a_note(monkeypatch):
    def requires(name: str) -> list[str]:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(doctor.importlib.metadata, "requires", requires)
    (finding,) = doctor.check_versions()
    assert (finding.level, finding.name) == (doctor.NOTE, "versions")


def test_two_opencv_packages_are_reported_with_the_command_that_leaves_one(versions):
    versions |= {"opencv-python-headless": "5.0", "opencv-python": "4.9"}
    (finding,) = doctor.check_opencv()
    assert finding.level == doctor.WARNING
    assert finding.remedy.startswith("pip uninstall -y opencv-python-headless opencv-python &&")


# --- datasets and devices


def test_dataset_folders_are_found_below_the_root_and_missing_ones_named(tmp_path, monkeypatch):
    for folder in ("camvid", "ade/ADEChallengeData2016", "VOCdevkit/VOC2010"):
        (tmp_path / folder).mkdir(parents=True)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    found = {finding.name: finding for finding in doctor.check_datasets()}
    assert found["CamVid"].text == "camvid"
    assert found["ADE20K"].text == "ade/ADEChallengeData2016"
    assert found["Pascal Context"].level == doctor.OK
    assert found["COCO-Stuff"].text == "not found (coco_stuff164k or coco)"
    assert found["Cityscapes"].level == doctor.NOTE


def test_a_missing_dataset_root_is_a_note_that_names_the_variable(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "nowhere"))
    (finding,) = doctor.check_datasets()
    assert finding.level == doctor.NOTE
    assert "DETECTRON2_DATASETS" in finding.text
    assert "nowhere" in finding.text


@pytest.mark.parametrize("device_count", [0, 2])
def test_cuda_finding_names_devices_or_why_a_driver_sees_none(monkeypatch, device_count):
    cuda = types.SimpleNamespace(
        is_available=lambda: device_count > 0,
        device_count=lambda: device_count,
        get_device_name=lambda index: f"GPU{index}",
    )
    monkeypatch.setattr("torch.cuda", cuda)
    monkeypatch.setattr(doctor.shutil, "which", lambda name: "/usr/bin/nvidia-smi")
    (finding,) = doctor.check_cuda()
    if device_count:
        assert finding.level == doctor.OK
        assert finding.text.endswith("2 device(s): GPU0, GPU1")
    else:
        assert finding.level == doctor.WARNING
        assert "driver" in finding.remedy
