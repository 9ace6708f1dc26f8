"""Every host learns four drawn images by heart, plain and with offsets.

Everything takes part that does in a run: mapper's instances, losses (and matching), parameter
groups, clipping, schedule, and inference at the end.
"""

from typing import Any

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import nn

from offseg_d2.data.dataset_mapper import class_instances
from offseg_d2.solver import build_gradient_clipper, build_lr_scheduler, build_optimizer
from tests.common import offseg_config, seed_all

SIZE, CLASSES = 64, 4
COLOURS = np.array([[200, 60, 60], [60, 200, 60], [60, 60, 200], [200, 200, 60]])
COMMON = {
    "MODEL.SEM_SEG_HEAD.NUM_CLASSES": CLASSES,
    "MODEL.SEM_SEG_HEAD.CONVS_DIM": 64,
    "MODEL.SEM_SEG_HEAD.DROPOUT": 0.0,
    "MODEL.EFFICIENTFORMER_V2.VARIANT": "s0",
    "MODEL.EFFICIENTFORMER_V2.LAYER_SCALE_INIT": 0.1,
    "MODEL.EFFICIENTFORMER_V2.DROP_PATH_RATE": 0.0,
    "MODEL.MIT.DROP_PATH_RATE": 0.0,
    "MODEL.MSCAN.DROP_PATH_RATE": 0.0,
    "INPUT.CROP.SIZE": [SIZE, SIZE],
    "SOLVER.BASE_LR": 3e-3,
    "SOLVER.HEAD_LR_FACTOR": 1.0,
    "SOLVER.LR_SCHEDULER_NAME": "WarmupPoly",
    "SOLVER.MAX_ITER": 40,
    "SOLVER.WARMUP_ITERS": 0,
}
HOSTS: dict[str, dict[str, Any]] = {
    "offseg_t": {"MODEL.OFFSEG.LEVEL_CHANNELS": [32, 32, 32, 64]},
    "segformer_b0": {},
    "segnext_t": {"MODEL.LIGHT_HAM.CHANNELS": 64},
    "mask2former_offseg_t": {
        "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES": 8,
        "MODEL.MASK_FORMER.NHEADS": 4,
        "MODEL.MASK_FORMER.ENC_LAYERS": 1,
        "MODEL.MASK_FORMER.ENC_DIM_FEEDFORWARD": 64,
        "MODEL.MASK_FORMER.DEC_LAYERS": 2,
        "MODEL.MASK_FORMER.DIM_FEEDFORWARD": 64,
        "MODEL.MASK_FORMER.TRAIN_NUM_POINTS": 512,
        "SOLVER.PARAM_GROUPS": "mask_query",
        "SOLVER.BASE_LR": 2e-3,
        "SOLVER.BACKBONE_LR_FACTOR": 1.0,
        "SOLVER.MAX_ITER": 32,
        "SOLVER.POLY_LR_POWER": 0.9,
        "SOLVER.CLIP_GRADIENTS.ENABLED": True,
        "SOLVER.CLIP_GRADIENTS.CLIP_TYPE": "full_model",
        "SOLVER.CLIP_GRADIENTS.CLIP_VALUE": 0.01,
    },
}


def draw_image(index: int) -> dict[str, Any]:
    """Rectangles of three classes on a background of the fourth, with noise; the rim is ignored."""
    rng = np.random.default_rng(index)
    labels = np.full((SIZE, SIZE), index % CLASSES)
    for _ in range(4):
        y, x = rng.integers(4, SIZE - 24, 2)
        height, width = rng.integers(12, 24, 2)
        labels[y : y + height, x : x + width] = rng.integers(CLASSES)
    image = COLOURS[labels] + rng.normal(0, 20, (SIZE, SIZE, 3))
    labels[:2] = 255
    sem_seg = torch.from_numpy(labels)
    return {
        "image": torch.from_numpy(image.clip(0, 255).astype(np.uint8)).permute(2, 0, 1),
        "sem_seg": sem_seg,
        "instances": class_instances(sem_seg),
    }


def small_config(host: str, classifier: str) -> CfgNode:
    """The host with the smallest backbone and few layers."""
    opts = COMMON | HOSTS[host] | {"MODEL.SEM_SEG_HEAD.CLASSIFIER": classifier}
    return offseg_config(*(part for pair in opts.items() for part in pair), model=host)


def train(cfg: CfgNode, model: nn.Module, batch: list[dict[str, Any]]) -> list[float]:
    """Total losses of the iterations."""
    optimizer = build_optimizer(cfg, model)
    scheduler = build_lr_scheduler(cfg, optimizer)
    clip = build_gradient_clipper(cfg)
    totals = []
    for _ in range(cfg.SOLVER.MAX_ITER):
        total = sum(model(batch).values())
        optimizer.zero_grad()
        total.backward()
        if clip is not None:
            clip(model.parameters())
        optimizer.step()
        scheduler.step()
        totals.append(total.item())
    return totals


@pytest.mark.parametrize("classifier", ["offset", "plain"])
@pytest.mark.parametrize(
    "host",  # SegNeXt takes 15 s
    [pytest.param(x, marks=[pytest.mark.slow] if x == "segnext_t" else []) for x in sorted(HOSTS)],
)
def test_four_images_are_learnt_by_heart(host, classifier):
    torch.set_num_threads(1)
    seed_all()
    cfg = small_config(host, classifier)
    model = build_model(cfg).train()
    batch = [draw_image(index) for index in range(4)]
    totals = train(cfg, model, batch)
    # After the zero-initialised parts have moved, nothing is left without a gradient.
    silent = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    # On a coarsest map of 2 x 2 pixels no pixel has a neighbour two steps away.
    expected = ["sem_seg_head.pixel_decoder.fusions.0.sampler.lr_offset.weight"]
    assert silent == (expected if host == "offseg_t" else [])
    for module in model.modules():  # their running statistics lag behind so few steps
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
            module.reset_running_stats()
    with torch.no_grad():
        model(batch)
        results = model.eval()([{"image": sample["image"]} for sample in batch])
    predicted = torch.stack([result["sem_seg"].argmax(0) for result in results])
    expected = torch.stack([sample["sem_seg"] for sample in batch])
    accuracy = (predicted == expected)[expected != 255].double().mean().item()
    print(f"{host} {classifier}: loss {totals[0]:.1f} -> {totals[-1]:.1f}, accuracy {accuracy:.3f}")
    assert totals[-1] < 0.3 * totals[0]
    # At stride 8 more pixels lie between two classes.
    assert accuracy > (0.93 if host.startswith("seg") else 0.95)
