"""The doctor and the import sentence, also where nothing is installed."""

import re
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


def findings_by_name(findings: object) -> dict[str, doctor.Finding]:
    return {finding.name: finding for finding in findings}  # type: ignore[attr-defined]


def test_import_without_detectron2_ends_with_one_sentence_and_the_install_command():
    result = run_without_packages("-c", "import offseg_d2")
    assert result.returncode == 1
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: offseg_d2 needs Detectron2, which is not installed here;")
    assert last.endswith("tools/setup_env.py --detectron2-here")
    assert "ModuleNotFoundError" not in result.stderr
    assert "During handling" not in result.stderr


def test_importing_a_submodule_without_detectron2_gives_the_same_sentence():
    result = run_without_packages("-c", "import offseg_d2.config")
    assert result.stderr.strip().splitlines()[-1].startswith("ImportError: offseg_d2 needs Detec")


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
    assert capsys.readouterr().out.endswith("All is well.\n")


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


def test_torchvision_that_does_not_fit_torch_is_a_problem_with_a_remedy(monkeypatch):
    def nms(*_args: object) -> None:
        raise RuntimeError("operator torchvision::nms does not exist\nlong explanation")

    monkeypatch.setattr("torchvision.ops.nms", nms)
    (finding,) = doctor.check_torchvision_ops()
    assert finding.level == doctor.PROBLEM
    assert finding.text.endswith("RuntimeError: operator torchvision::nms does not exist")
    assert "pip install --upgrade torch torchvision" in finding.remedy


def test_two_opencv_packages_are_reported_with_the_command_that_leaves_one(monkeypatch):
    installed = [("opencv-python-headless", "5.0"), ("opencv-python", "4.9")]
    monkeypatch.setattr(doctor, "REQUIRED", {"cv2": doctor.REQUIRED["cv2"]})
    monkeypatch.setattr(doctor, "_versions", lambda names: installed)
    finding = findings_by_name(doctor.check_packages())["OpenCV"]
    assert finding.level == doctor.WARNING
    assert finding.remedy.startswith("pip uninstall -y opencv-python-headless opencv-python &&")


def test_setuptools_without_pkg_resources_is_a_problem(monkeypatch):
    monkeypatch.setattr(doctor, "has_module", lambda name: name != "pkg_resources")
    monkeypatch.setattr(doctor, "_versions", lambda names: [("setuptools", "82.0.0")])
    (finding,) = doctor.check_pkg_resources()
    assert (finding.level, finding.remedy) == (doctor.PROBLEM, 'pip install "setuptools<81"')
    assert finding.text.startswith("82.0.0: has no pkg_resources")


def test_a_package_that_fails_to_import_is_a_problem_with_the_first_line_of_its_error(
    tmp_path, monkeypatch
):
    (tmp_path / "broken_wheel.py").write_text("raise OSError('libfoo.so: not found\\nmore')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(doctor, "REQUIRED", {"broken_wheel": ("broken-wheel",)})
    (finding,) = doctor.check_packages()
    assert finding.level == doctor.PROBLEM
    assert finding.text.endswith("does not import: OSError: libfoo.so: not found")


def test_dataset_folders_are_found_below_the_root_and_missing_ones_named(tmp_path, monkeypatch):
    for folder in ("camvid", "ade/ADEChallengeData2016", "VOCdevkit/VOC2010"):
        (tmp_path / folder).mkdir(parents=True)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    found = findings_by_name(doctor.check_datasets())
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
def test_cuda_finding_tells_devices_or_why_a_driver_sees_none(monkeypatch, device_count):
    cuda = types.SimpleNamespace(
        is_available=lambda: device_count > 0,
        device_count=lambda: device_count,
        get_device_name=lambda index: f"GPU{index}",
    )
    monkeypatch.setattr("torch.cuda", cuda)
    monkeypatch.setattr(doctor.shutil, "which", lambda name: "/usr/bin/nvidia-smi")
    finding = findings_by_name(doctor.check_devices())["CUDA"]
    if device_count:
        assert finding.level == doctor.OK
        assert finding.text.endswith("2 device(s): GPU0, GPU1")
    else:
        assert finding.level == doctor.WARNING
        assert "driver" in finding.remedy


def test_importing_the_doctor_needs_nothing_but_the_standard_library():
    code = (
        "import sys; sys.modules['detectron2'] = type(sys)('detectron2');"
        "sys.modules['detectron2'].__spec__ = "
        "__import__('importlib.machinery').machinery.ModuleSpec('detectron2', None, origin='x');"
        "before = set(sys.modules); import offseg_d2.doctor;"
        "print(*sorted({m.split('.')[0] for m in set(sys.modules) - before}"
        " - set(sys.stdlib_module_names)))"
    )
    result = run_without_packages("-c", code)
    assert result.stdout.split() == ["offseg_d2"], result.stderr


@pytest.mark.parametrize(("version", "problems"), [("2.5.1+cpu", 1), ("2.6.0", 0), ("2.14.1", 0)])
def test_torch_that_executes_checkpoints_is_a_problem(monkeypatch, version, problems):
    monkeypatch.setattr(doctor, "_versions", lambda names: [("torch", version)])
    assert len(list(doctor.check_torch_age())) == problems


def test_extras_are_those_of_setup():
    setup = (ROOT / "setup.py").read_text()
    for extra, (_, packages) in doctor.EXTRAS.items():
        line = next(line for line in setup.splitlines() if f'"{extra}": [' in line)
        asked = re.findall(r'"([\w-]+)(?:>=(\d+))?"', line.split("[", 1)[1])
        assert [name for name, _ in asked] == [names[0] for names in packages]
        for name, least in asked:
            assert doctor.LEAST_MAJOR.get(name, 0) == int(least or 0)


def test_absent_and_old_extras_are_notes(monkeypatch):
    known = {"onnx": "1.2", "onnxruntime-gpu": "1.3", "onnxscript": "0.1", "gradio": "5.9.1"}
    monkeypatch.setattr(doctor, "_versions", lambda ds: [(d, known[d]) for d in ds if d in known])
    found = findings_by_name(doctor.check_extras())
    assert found["extra export"].level == doctor.OK
    assert found["extra export"].text.startswith("onnx 1.2, onnxruntime-gpu 1.3, onnxscript 0.1: ")
    assert found["extra timm"].level == found["extra web"].level == doctor.NOTE
    assert found["extra timm"].text == "timm not installed: backbones of timm"
    assert found["extra web"].text.startswith("gradio 5.9.1 is older than 6: ")
    assert "pip install -e '.[timm]'" in found["extra timm"].remedy
    assert "--no-build-isolation" in found["extra deformable"].remedy
