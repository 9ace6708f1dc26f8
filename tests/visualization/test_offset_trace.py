"""Terms of the offsets on an image, and the picture of them."""

import dataclasses

import cv2
import numpy as np
import pytest
import torch
from detectron2.data import Metadata
from detectron2.modeling import build_model
from torch import nn

from offseg_d2.commands import visualize_offsets
from offseg_d2.config import load_config
from offseg_d2.inference.offset_views import find_class, shown_pixel
from offseg_d2.modeling.offset_learning import OffsetLearning
from offseg_d2.visualization.misalignment import misalignment
from offseg_d2.visualization.offset_figure import (
    TracedImage,
    draw_offsets,
    offset_lengths,
    principal_plane,
)
from offseg_d2.visualization.offset_trace import OffsetTrace, offset_layer, trace_offsets
from tests.common import (
    ROOT,
    SMALL_OFFSEG,
    assert_close,
    build_offseg,
    offseg_config,
    seed_all,
    spread_weights,
)

NAMES = ["sky", "road", "car"]
METADATA = Metadata(stuff_classes=NAMES, stuff_colors=[(0, 0, 255), (90, 90, 90), (255, 0, 0)])
SMALL_MASKS = (
    *("MODEL.SEM_SEG_HEAD.CONVS_DIM", 32, "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES", 5),
    *("MODEL.MASK_FORMER.DEC_LAYERS", 2, "MODEL.MASK_FORMER.ENC_LAYERS", 1),
)


def sample(height: int = 64, width: int = 96) -> dict:
    generator = torch.Generator().manual_seed(1)
    return {"image": torch.randint(256, (3, height, width), generator=generator, dtype=torch.uint8)}


def by_hand(norm: nn.Module | None = None) -> OffsetTrace:
    """Two pixels, two classes, two channels; both projections double."""
    layer = OffsetLearning(2)
    with torch.no_grad():
        layer.class_offset_proj.weight.copy_(2 * torch.eye(2))
        layer.feature_offset_proj.weight.copy_(2 * torch.eye(2))
    pixels = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    classes = torch.tensor([[20.0, 0.0], [0.0, 20.0]])  # so alike that a softmax is 0 or 1
    return OffsetTrace(pixels, classes, layer, norm, (1, 2), (4, 8), (4, 8))


def test_terms_by_hand():
    trace = by_hand()
    assert_close(trace.coupled_similarity, torch.tensor([[20.0, 0.0], [0.0, 20.0]]))
    assert_close(trace.class_offset, torch.tensor([[2.0, 0.0], [0.0, 2.0]]))
    assert_close(trace.aligned_pixels, torch.tensor([[41.0, 0.0], [0.0, 41.0]]))
    assert_close(trace.relative_feature_offset(), torch.tensor([[40.0, 40.0]]))
    assert_close(trace.attention_to_pixels(0), torch.tensor([[1.0, 0.0]]))
    assert_close(trace.scores(), torch.tensor([[902.0, 0.0], [0.0, 902.0]]))
    assert_close(trace.scores(offsets=False), trace.coupled_similarity)
    assert torch.equal(trace.labels(), torch.tensor([[0] * 4 + [1] * 4] * 4))


def test_common_part_of_class_offsets_is_left_out_only_where_classes_are_compared():
    masks = dataclasses.replace(by_hand(), class_probabilities=torch.eye(2))
    whole, own = offset_lengths(masks)
    assert_close(whole, torch.tensor([0.1, 0.1]))
    assert_close(own, whole)
    for trace in (by_hand(), by_hand(nn.LayerNorm(2)), by_hand(nn.Identity())):
        whole, own = offset_lengths(trace)
        assert_close(whole, torch.tensor([0.1, 0.1]))
        assert_close(own, torch.full((2,), 2**0.5 / 20))  # (2, 0) less the mean (1, 1)


def test_angles_by_hand():
    queries = dataclasses.replace(by_hand(), class_probabilities=torch.eye(2))
    with torch.no_grad():  # the class offset turns each vector by 45 degrees
        queries.offset_learning.class_offset_proj.weight.copy_(torch.tensor([[0.0, 20], [20, 0]]))
    own = misalignment(queries, by_hand().labels())
    assert_close(own.before, torch.tensor([0.0, 0.0]))
    assert_close(own.after, torch.tensor([45.0, 45.0]))
    mixed = misalignment(queries, torch.zeros(4, 8, dtype=torch.int64))  # both pixels are class 0
    assert_close(mixed.before[:1], torch.tensor([45.0]))
    assert mixed.before[1].isnan()


def test_angles_leave_out_what_all_class_vectors_share():
    trace = by_hand()  # less their mean, the vectors are (10, -10) and (-10, 10)
    assert_close(misalignment(trace, trace.labels()).before, torch.tensor([45.0, 45.0]))
    shifted = dataclasses.replace(trace, representations=trace.representations + 7)
    assert_close(misalignment(shifted, trace.labels()).before, torch.tensor([45.0, 45.0]))


def test_common_part_of_the_class_offsets_by_hand():
    labels = by_hand().labels()
    shared = misalignment(by_hand(), labels).common  # (1, 1) of (2, 0) and (0)
    assert shared == pytest.approx(0.5)
    still = by_hand()
    torch.nn.init.zeros_(still.offset_learning.class_offset_proj.weight)
    assert np.isnan(misalignment(still, labels).common)


def test_angles_leave_out_padding_and_ignored_pixels():
    narrow = dataclasses.replace(by_hand(), image_size=(4, 4))  # the second feature is padding
    ones = torch.ones(4, 4, dtype=torch.uint8)
    assert misalignment(narrow, ones).before[1] == pytest.approx(135)
    ignored = torch.full((4, 8), 255, dtype=torch.uint8)
    assert misalignment(by_hand(), ignored).after.isnan().all()


def test_terms_give_the_logits_of_the_model():
    seed_all()
    model = spread_weights(build_offseg(*SMALL_OFFSEG)).eval()
    trace = trace_offsets(model, sample())
    with torch.no_grad():
        image = (sample()["image"].float() - model.pixel_mean) / model.pixel_std
        logits = model.sem_seg_head(model.backbone(image[None]))[0]
    assert_close(trace.scores().mT.reshape(logits.shape), logits)
    assert not torch.allclose(trace.scores(offsets=False), trace.scores(), atol=1e-3)


def test_terms_give_the_last_masks_of_the_queries():
    seed_all()
    cfg = offseg_config(*SMALL_OFFSEG, *SMALL_MASKS, model="mask2former_offseg_t")
    model = spread_weights(build_model(cfg)).eval()
    trace = trace_offsets(model, sample())
    with torch.no_grad():
        image = (sample()["image"].float() - model.pixel_mean) / model.pixel_std
        output = model.sem_seg_head(model.backbone(image[None]))
    masks, logits = output["pred_masks"][0], output["pred_logits"][0]
    assert_close(trace.scores().mT.reshape(masks.shape), masks)
    classes = logits.softmax(1)[:, :-1]
    assert_close(trace.class_scores(), masks.flatten(1).mT.sigmoid() @ classes)
    assert trace.row_of(1) == classes[:, 1].argmax()


def test_odd_sizes_are_padded_and_cut_again():
    seed_all()
    trace = trace_offsets(spread_weights(build_offseg(*SMALL_OFFSEG)).eval(), sample(50, 70))
    assert trace.padded_size == (64, 96)
    assert trace.labels().shape == (50, 70)


@pytest.mark.parametrize("size", [(64, 96), (50, 70), (20, 33)])
@pytest.mark.parametrize(
    ("host", "options"),
    [
        ("offseg_t", SMALL_OFFSEG),
        ("segformer_b0", ("MODEL.SEM_SEG_HEAD.NUM_CLASSES", 5)),
    ],
)
def test_labels_are_what_the_model_predicts_whatever_the_size(host, options, size):
    seed_all()
    model = spread_weights(build_offseg(*options, model=host)).eval()
    with torch.no_grad():
        predicted = model([sample(*size)])[0]["sem_seg"].argmax(dim=0)
    labels = trace_offsets(model, sample(*size)).labels()
    assert (labels == predicted).float().mean() > 0.995  # but for ties within rounding


def test_a_pixel_outside_the_file_is_refused_in_its_own_coordinates():
    assert shown_pixel((479, 0), (360, 480), (270, 360)) == (359, 0)
    with pytest.raises(ValueError, match=r"x below 480 and y below 360, but is \(480, 5\)"):
        shown_pixel((480, 5), (360, 480), (270, 360))
    with pytest.raises(ValueError, match=r"but is \(-1, 5\)"):
        shown_pixel((-1, 5), (360, 480), (270, 360))


def test_model_without_offsets_is_refused():
    model = build_offseg(*SMALL_OFFSEG, "MODEL.SEM_SEG_HEAD.CLASSIFIER", "plain")
    with pytest.raises(ValueError, match=r"`MODEL.SEM_SEG_HEAD.CLASSIFIER` must be 'offset'"):
        offset_layer(model)


def test_plane_holds_the_largest_variance():
    axes = torch.tensor([[0.0, 3.0, 0.0, 4.0], [1.0, 0.0, 0.0, 0.0]])
    steps = torch.tensor([[-10.0, 1.0], [0.0, -2.0], [10.0, 1.0]])
    plane, shares = principal_plane(steps @ axes)
    assert_close(plane[:, 0].abs(), torch.tensor([50.0, 0.0, 50.0]))
    assert_close(shares.sum(), torch.tensor(1.0))
    assert shares[0] > shares[1]


def draw(**options) -> np.ndarray:
    rgb = np.full((4, 8, 3), 128, dtype=np.uint8)
    return draw_offsets([TracedImage(rgb, by_hand(nn.LayerNorm(2)))], METADATA, **options)


def test_picture_depends_on_what_is_chosen():
    pictures = [draw(), draw(class_id=1), draw(pixel=(6, 1)), draw(pixel=(1, 1))]
    assert all(picture.shape == pictures[0].shape for picture in pictures)
    assert not np.array_equal(pictures[0], pictures[1])
    assert not np.array_equal(pictures[2], pictures[3])
    plain = np.ones((4, 8), dtype=np.int64)
    assert not np.array_equal(draw(plain_labels=plain), pictures[0])


def test_pixel_outside_the_image_is_refused():
    with pytest.raises(ValueError, match=r"`--pixel` must lie in the image, x below 8 and y below"):
        draw(pixel=(8, 0))


def test_class_is_found_by_name_and_by_number():
    assert find_class("road", METADATA) == find_class("1", METADATA) == 1
    with pytest.raises(ValueError, match=r"`--class` must name .* but is 'rode'. Did you mean ro"):
        find_class("rode", METADATA)


def test_command_draws_a_picture_and_reports_mistakes_in_one_line(tmp_path, capsys, loggers):
    config = ROOT / "configs/shapes/offseg_t_offset_demo.yaml"
    options = [*SMALL_OFFSEG[:-2], "INPUT.RESIZE.SCALE_TEST", [48, 32], "MODEL.DEVICE", "cpu"]
    seed_all()
    model = spread_weights(build_model(load_config(str(config), options)))
    torch.save({"model": model.state_dict()}, tmp_path / "model.pth")
    image = np.random.default_rng(0).integers(0, 256, (32, 48, 3), dtype=np.uint8)
    cv2.imwrite(str(tmp_path / "a.png"), image)

    def call(*arguments: str) -> int:
        command = ["--config-file", str(config), "--input", str(tmp_path / "a.png"), *arguments]
        command += ["--output", str(tmp_path / "out" / "offsets.png")]
        command += ["--opts", "MODEL.WEIGHTS", str(tmp_path / "model.pth")]
        with pytest.raises(SystemExit) as stop:
            visualize_offsets.main([*command, *map(str, options)])
        return stop.value.code or 0

    assert call("--class", "nonsense") == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: `--class` must name one of the 8")
    assert call("--pixel", "3", "4") == 0
    assert cv2.imread(str(tmp_path / "out" / "offsets.png")).shape[2] == 3
