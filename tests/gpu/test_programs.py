"""Trainings, resuming, evaluation and prediction on the GPU, as users start them."""

import pytest
import torch

import offseg_d2
from offseg_d2.config import load_config
from tests.common import ROOT

pytestmark = pytest.mark.gpu
CONFIG = str(ROOT / "configs" / "shapes" / "offseg_t_offset_demo.yaml")


def train(folder, scenes, device, *changes, **options):
    changes = [*scenes, "MODEL.DEVICE", device, "OUTPUT_DIR", str(folder), *changes]
    number = options.pop("num_gpus", int(device == "cuda"))
    return offseg_d2.train(CONFIG, changes, num_gpus=number, **options)


PRECISIONS = {
    "float32": (),
    "float16": ("SOLVER.AMP.ENABLED", True, "SOLVER.AMP.DTYPE", "float16"),
    "bfloat16": ("SOLVER.AMP.ENABLED", True, "SOLVER.AMP.DTYPE", "bfloat16"),
}


@pytest.mark.parametrize("precision", PRECISIONS)
def test_training_and_its_evaluation(tmp_path, scenes, device, precision):
    if precision == "float16" and device == "cpu":
        pytest.skip("a CPU has no training in float16")
    run = train(tmp_path, scenes, device, *PRECISIONS[precision])
    assert 0 <= run.results["sem_seg"]["mIoU"] <= 100
    segment = offseg_d2.Segmenter.from_checkpoint(run.last, device=device)
    assert segment(torch.zeros(60, 80, 3, dtype=torch.uint8).numpy()).labels.shape == (60, 80)


def test_a_resumed_training_ends_as_one_without_a_break(tmp_path, scenes, device):
    whole = train(tmp_path / "whole", scenes, device)
    train(tmp_path / "parts", scenes, device, "SOLVER.MAX_ITER", 2, "SOLVER.POLY_END_ITER", 4)
    parts = train(tmp_path / "parts", scenes, device, resume=True)
    expected, found = (torch.load(run.last, weights_only=True)["model"] for run in (whole, parts))
    for key, value in expected.items():  # atomic additions come in any order on a GPU
        torch.testing.assert_close(found[key], value, rtol=1e-2, atol=1e-2)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="NCCL needs CUDA")
@pytest.mark.parametrize("number", sorted({1, max(1, torch.cuda.device_count())}))
def test_training_with_nccl(tmp_path, scenes, device, number):
    train(tmp_path, scenes, device, "MODEL.BATCH_NORM", "SyncBN", num_gpus=number)
    assert (tmp_path / "model_final.pth").is_file()


@pytest.mark.parametrize("config", ["compiled"])
def test_compiled_training(tmp_path, scenes, device, config):
    train(tmp_path, scenes, device, "MODEL.COMPILE", True)
    assert (tmp_path / "model_final.pth").is_file()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA's allocator is asked")
def test_memory_of_a_label_map_stays_below_that_of_all_scores(device):
    from tests.gpu.test_models import build

    model = build("offseg_t", "offset", "MODEL.SEM_SEG_HEAD.NUM_CLASSES", 150).to(device)
    image = torch.zeros(3, 512, 512, dtype=torch.uint8)
    batch = [{"image": image, "height": 3000, "width": 4000}]
    model.predict_label_maps(batch)
    torch.cuda.reset_peak_memory_stats()
    model.predict_label_maps(batch)
    assert torch.cuda.max_memory_allocated() < 150 * 3000 * 4000 * 4 / 2


def test_the_recipe_names_a_device_that_is_there(device):
    assert load_config(CONFIG).MODEL.DEVICE in ("cpu", device)
