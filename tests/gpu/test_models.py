"""Every host on the GPU against float64 on the CPU: label maps, losses, gradients; mixed precision.

Networks compute in float32 on the GPU, without TF32. How far float32 may be from float64 depends on
the network, so the error of float32 on the CPU is the measure.
"""

import copy

import pytest
import torch

from offseg_d2.layers import DropPath
from tests.common import build_offseg, random_batch, seed_all, spread_weights

pytestmark = pytest.mark.gpu

HOSTS = ("offseg_t", "segformer_b0", "segnext_t", "mask2former_offseg_t")
PER_PIXEL = HOSTS[:3]
CLASSIFIERS = ("plain", "offset")
CLASSES = 19


def build(host, classifier, *changes):
    changes = (
        *("MODEL.SEM_SEG_HEAD.CLASSIFIER", classifier, "MODEL.SEM_SEG_HEAD.NUM_CLASSES", CLASSES),
        *("MODEL.SEM_SEG_HEAD.DROPOUT", 0.0, "MODEL.BATCH_NORM", "BN"),
        *changes,
    )
    model = build_offseg(*changes, model=host)
    # The matrix decomposition of SegNeXt overflows with such weights.
    return model if host == "segnext_t" else spread_weights(model)


def make_batch():
    return random_batch([(128, 160)] * 2, CLASSES)


def error_of(found, expected):
    """Relative error in the Euclidean norm."""
    return float((found.double() - expected).norm() / expected.norm())


def allowed(error):
    """Relative error that is allowed where float32 on the CPU has this one."""
    return 5 * error + 1e-5


@pytest.fixture(autouse=True)
def _exact():
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


@pytest.mark.parametrize("classifier", CLASSIFIERS)
@pytest.mark.parametrize("host", HOSTS)
def test_scores_and_label_maps(host, classifier, device):
    model = build(host, classifier)
    batch = [{"image": x["image"], "height": 200, "width": 300} for x in random_batch([(128, 160)])]
    with torch.no_grad():
        expected = copy.deepcopy(model).double()(batch)[0]["sem_seg"]
        on_cpu = error_of(model(batch)[0]["sem_seg"], expected)
        model = model.to(device)
        scores = model(batch)[0]["sem_seg"].cpu()
        labels = model.predict_label_maps(batch)[0]["sem_seg"].cpu()
    assert error_of(scores, expected) <= allowed(on_cpu)
    # Where float64 is sure of the best class, float32 finds it too.
    best, second = expected.topk(2, dim=0).values
    sure = best - second > 10 * (scores.double() - expected).abs().max()
    assert sure.float().mean() > 0.1
    assert torch.equal(labels.long()[sure], expected.argmax(0)[sure])


@pytest.mark.parametrize("classifier", CLASSIFIERS)
@pytest.mark.parametrize("host", PER_PIXEL)
def test_loss_and_gradients(host, classifier, device):
    model = build(host, classifier)
    model.train()
    for module in model.modules():  # no chance: the two are compared
        if isinstance(module, DropPath):
            module.rate = 0.0
    batch = make_batch()
    results = []
    models = copy.deepcopy(model).double(), copy.deepcopy(model), model.to(device)
    for copied, place in zip(models, ("cpu", "cpu", device), strict=True):
        seed_all()
        loss = sum(copied(batch).values())
        loss.backward()
        assert loss.device.type == place
        values = [loss.detach(), *(p.grad for p in copied.parameters())]
        results.append(torch.cat([value.flatten().cpu().double() for value in values]))
    expected, on_cpu, found = results
    for part in (slice(0, 1), slice(1, None)):  # the loss, the gradients
        error = error_of(on_cpu[part], expected[part])
        assert error_of(found[part], expected[part]) <= allowed(error)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("classifier", CLASSIFIERS)
@pytest.mark.parametrize("host", PER_PIXEL)
def test_mixed_precision_is_near_single_precision(host, classifier, dtype, device):
    model = build(host, classifier).to(device).train()
    batch = make_batch()
    losses = []
    for enabled in (False, True):
        seed_all()
        with torch.autocast(device, dtype, enabled=enabled):
            losses.append(sum(model(batch).values()).item())
    assert abs(losses[1] - losses[0]) < 0.1 * losses[0]
