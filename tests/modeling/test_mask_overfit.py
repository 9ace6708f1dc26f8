"""A small mask-query model learns four drawn images by heart, plain and with offsets.

Everything takes part that does in a run: mapper's instances, matching, losses of all layers,
parameter groups, clipping, schedule, and inference at the end.
"""

from typing import Any

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model

from offseg_d2.data.dataset_mapper import class_instances
from offseg_d2.solver import build_gradient_clipper, build_lr_scheduler, build_optimizer
from tests.common import offseg_config, seed_all

SIZE, CLASSES, STEPS = 64, 4, 32
COLOURS = np.array([[200, 60, 60], [60, 200, 60], [60, 60, 200], [200, 200, 60]])


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


def small_config(classifier: str) -> CfgNode:
    """Mask-query OffSeg with the smallest backbone, one encoder and two decoder layers."""
    opts = {
        "MODEL.SEM_SEG_HEAD.CLASSIFIER": classifier,
        "MODEL.SEM_SEG_HEAD.NUM_CLASSES": CLASSES,
        "MODEL.SEM_SEG_HEAD.CONVS_DIM": 64,
        "MODEL.EFFICIENTFORMER_V2.VARIANT": "s0",
        "MODEL.EFFICIENTFORMER_V2.LAYER_SCALE_INIT": 0.1,
        "MODEL.EFFICIENTFORMER_V2.DROP_PATH_RATE": 0.0,
        "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES": 8,
        "MODEL.MASK_FORMER.NHEADS": 4,
        "MODEL.MASK_FORMER.ENC_LAYERS": 1,
        "MODEL.MASK_FORMER.ENC_DIM_FEEDFORWARD": 64,
        "MODEL.MASK_FORMER.DEC_LAYERS": 2,
        "MODEL.MASK_FORMER.DIM_FEEDFORWARD": 64,
        "MODEL.MASK_FORMER.TRAIN_NUM_POINTS": 512,
        "INPUT.CROP.SIZE": [SIZE, SIZE],
        "SOLVER.PARAM_GROUPS": "mask_query",
        "SOLVER.BASE_LR": 2e-3,
        "SOLVER.BACKBONE_LR_FACTOR": 1.0,
        "SOLVER.LR_SCHEDULER_NAME": "WarmupPoly",
        "SOLVER.MAX_ITER": STEPS,
        "SOLVER.WARMUP_ITERS": 0,
        "SOLVER.POLY_LR_POWER": 0.9,
        "SOLVER.CLIP_GRADIENTS.ENABLED": True,
        "SOLVER.CLIP_GRADIENTS.CLIP_TYPE": "full_model",
        "SOLVER.CLIP_GRADIENTS.CLIP_VALUE": 0.01,
    }
    flat = [part for pair in opts.items() for part in pair]
    return offseg_config(*flat, model="mask2former_offseg_t")


@pytest.mark.parametrize("classifier", ["offset", "plain"])
def test_four_images_are_learnt_by_heart(classifier):
    torch.set_num_threads(1)
    seed_all()
    cfg = small_config(classifier)
    model = build_model(cfg).train()
    optimizer = build_optimizer(cfg, model)
    scheduler = build_lr_scheduler(cfg, optimizer)
    clip = build_gradient_clipper(cfg)
    batch = [draw_image(index) for index in range(4)]
    totals = []
    for _ in range(STEPS):
        losses = model(batch)
        total = sum(losses.values())
        optimizer.zero_grad()
        total.backward()
        clip(model.parameters())
        optimizer.step()
        scheduler.step()
        totals.append(total.item())
    # After the zero-initialised parts have moved, nothing is left without a gradient.
    assert all(parameter.grad is not None for parameter in model.parameters())
    silent = [name for name, parameter in model.named_parameters() if not parameter.grad.any()]
    assert not silent, silent
    assert len(losses) == 9  # three losses of three predictions
    model.eval()
    with torch.no_grad():
        results = model([{"image": record["image"]} for record in batch])
    predicted = torch.stack([result["sem_seg"].argmax(0) for result in results])
    expected = torch.stack([record["sem_seg"] for record in batch])
    labelled = expected != 255
    accuracy = (predicted == expected)[labelled].double().mean().item()
    print(f"{classifier}: loss {totals[0]:.1f} -> {totals[-1]:.1f}, accuracy {accuracy:.3f}")
    assert totals[-1] < 0.3 * totals[0]
    assert accuracy > 0.95
