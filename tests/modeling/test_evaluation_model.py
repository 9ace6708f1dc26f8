"""Label maps and test-time augmentation of whole models, against scores and slow loops."""

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from detectron2.data.transforms import ResizeTransform
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from offseg_d2.data import build_augmentations
from offseg_d2.evaluation import count_confusion, metrics_from_confusion
from offseg_d2.modeling import (
    AugmentedModel,
    InferenceSettings,
    LabelMapModel,
    build_evaluation_model,
)
from offseg_d2.modeling.meta_arch import AugmentationSettings
from tests.common import (
    SMALL_OFFSEG,
    assert_close,
    build_offseg,
    offseg_config,
    random_batch,
    seed_all,
    spread_weights,
)

SETTINGS = [
    InferenceSettings("whole"),
    InferenceSettings("slide", (64, 64), (40, 48), window_batch=3),
    InferenceSettings("slide", (64, 96), (64, 64), window_batch=2, size_divisibility=64),
]
TTA = "TEST.SEM_SEG.TTA."


def small_offseg(*opts: object) -> nn.Module:
    seed_all()
    return spread_weights(build_offseg(*SMALL_OFFSEG, *opts)).eval()


def interpolate(scores: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(scores[None], size=size, mode="bilinear", align_corners=False)[0]


# ------------------------------------------------------------ label maps


@pytest.mark.parametrize("classifier", ["offset", "plain"])
@pytest.mark.parametrize("settings", SETTINGS, ids=["whole", "slide", "slide, padded"])
def test_label_maps_are_the_argmax_of_the_scores(classifier, settings):
    model = small_offseg("MODEL.SEM_SEG_HEAD.CLASSIFIER", classifier)
    model.inference = settings
    batch = random_batch([(70, 100), (96, 64), (70, 100), (33, 45)])
    batch[0] |= {"height": 210, "width": 163}
    batch[1] |= {"height": 41, "width": 50}
    with torch.no_grad():
        scores = [result["sem_seg"] for result in model(batch)]
    labels = [result["sem_seg"] for result in model.predict_label_maps(batch)]
    for ours, expected in zip(labels, scores, strict=True):
        assert ours.dtype == torch.uint8
        assert torch.equal(ours, expected.argmax(0).byte())
    assert len(torch.cat([x.flatten() for x in labels]).unique()) > 2


def test_label_maps_of_a_batch_are_those_of_its_images_alone():
    model = small_offseg().double()
    model.inference = SETTINGS[1]
    batch = random_batch([(70, 100), (64, 64), (70, 100), (70, 100)])
    together = model.predict_label_maps(batch)
    for sample, result in zip(batch, together, strict=True):
        alone = model.predict_label_maps([sample])[0]
        assert torch.equal(result["sem_seg"], alone["sem_seg"])


class LargestResult(TorchDispatchMode):
    """Remembers how many values the largest tensor held that any operation made."""

    def __init__(self) -> None:
        super().__init__()
        self.values = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, Tensor):
                self.values = max(self.values, tensor.untyped_storage().nbytes() // 4)
        return result


@pytest.mark.parametrize("mode", ["whole", "slide"])
def test_scores_of_all_classes_never_exist_at_the_images_size(mode, monkeypatch):
    monkeypatch.setattr("offseg_d2.modeling.meta_arch.scores.BAND_BYTES", 1 << 18)
    model, (sample,) = small_offseg("MODEL.SEM_SEG_HEAD.NUM_CLASSES", 40), random_batch([(64, 160)])
    model.inference = InferenceSettings(mode, (64, 64), (48, 48), window_batch=1)
    sample |= {"height": 400, "width": 1000}
    values = 40 * 400 * 1000
    with LargestResult() as plain, torch.no_grad():
        model([sample])
    assert plain.values >= values
    with LargestResult() as blocks:
        model.predict_label_maps([sample])
    assert blocks.values < values / 8


def test_label_maps_need_no_gradients():
    model, batch = small_offseg(), random_batch([(64, 64)])
    assert model(batch)[0]["sem_seg"].requires_grad
    assert not model.predict_label_maps(batch)[0]["sem_seg"].requires_grad


# ------------------------------------------------------------ wrappers


def test_models_are_wrapped_as_the_configuration_says():
    model, other = small_offseg(), nn.Identity()
    plain, augmented = offseg_config(), offseg_config(TTA + "ENABLED", True)
    assert isinstance(build_evaluation_model(plain, model), LabelMapModel)
    assert build_evaluation_model(plain, other) is other
    wrapped = build_evaluation_model(augmented, model)
    assert isinstance(wrapped, AugmentedModel) and wrapped.model is model
    assert wrapped.settings == AugmentationSettings((0.5, 0.75, 1.0, 1.25, 1.5, 1.75), True)
    assert build_evaluation_model(augmented, wrapped) is wrapped
    with pytest.raises(ValueError, match=r"`TEST.SEM_SEG.TTA.ENABLED` must be False for Identity"):
        build_evaluation_model(augmented, other)


@pytest.mark.parametrize("training", [True, False])
def test_a_wrapper_is_in_the_mode_of_its_model(training):
    # Detectron2's inference_on_dataset puts the wrapper back into the mode it finds it in.
    model = small_offseg().train(training)
    wrapped = build_evaluation_model(offseg_config(), model)
    assert wrapped.training == training
    wrapped.eval()
    assert not model.training
    wrapped.train(training)
    assert model.training == training


def test_images_are_not_resized_before_augmentation():
    cfg = offseg_config("INPUT.RESIZE.SCALE_TEST", [40, 30])
    assert len(build_augmentations(cfg, is_train=False)) == 1
    cfg.merge_from_list([TTA + "ENABLED", True])
    assert build_augmentations(cfg, is_train=False) == []
    assert len(build_augmentations(cfg, is_train=True)) > 1


@pytest.mark.parametrize("ratios", [[], [0.5, 0.0], [-1.0], [float("nan")], [float("inf")]])
def test_impossible_ratios_are_refused(ratios):
    with pytest.raises(ValueError, match=r"`TEST.SEM_SEG.TTA.RATIOS` must be positive numbers"):
        AugmentationSettings(tuple(ratios))


# ------------------------------------------------------------ test-time augmentation


def slow_probabilities(model: nn.Module, image: Tensor, ratios: list[float]) -> Tensor:
    """View by view as the specification says."""
    height, width = image.shape[1:]
    views = []
    for ratio in ratios:
        size = (int(width * ratio + 0.5), int(height * ratio + 0.5))
        for flip in (False, True):
            view = cv2.resize(image.permute(1, 2, 0).numpy(), size)
            view = torch.from_numpy(view.copy()).permute(2, 0, 1)
            view = view.flip(2) if flip else view
            with torch.no_grad():
                scores = model([{"image": view, "height": height, "width": width}])[0]["sem_seg"]
            views.append((scores.flip(2) if flip else scores).softmax(0))
    return torch.stack(views).mean(0)


@pytest.mark.parametrize("settings", SETTINGS[:2], ids=["whole", "slide"])
def test_augmentation_is_the_mean_of_the_views_probabilities(settings):
    model = small_offseg().double()
    model.inference = settings
    ratios = [0.5, 1.0, 1.75]
    augmented = AugmentedModel(model, AugmentationSettings(tuple(ratios)))
    (sample,) = random_batch([(47, 81)])  # halves of odd sizes are rounded up
    expected = slow_probabilities(model, sample["image"], ratios)
    assert_close(augmented.mean_probabilities(sample), expected, 1e-9)
    (result,) = augmented([sample])
    assert torch.equal(result["sem_seg"], expected.argmax(0).byte())


def test_augmentation_without_flip_at_the_images_size_changes_nothing():
    model, batch = small_offseg(), random_batch([(64, 96), (40, 33)])
    augmented = AugmentedModel(model, AugmentationSettings((1.0,), flip=False))
    for ours, plain in zip(augmented(batch), model.predict_label_maps(batch), strict=True):
        assert torch.equal(ours["sem_seg"], plain["sem_seg"])


def test_augmented_predictions_of_a_mirrored_image_are_mirrored():
    model, (sample,) = small_offseg().double(), random_batch([(40, 70)])
    augmented = AugmentedModel(model, AugmentationSettings((0.75, 1.25)))
    mirrored = augmented.mean_probabilities({"image": sample["image"].flip(2)})
    assert_close(mirrored.flip(2), augmented.mean_probabilities(sample), 1e-9)


def test_views_have_the_sizes_of_the_specification():
    settings = AugmentationSettings((0.5, 1.0, 1.25))
    assert settings.sizes(5, 683) == [(3, 342), (5, 683), (6, 854)]
    assert AugmentationSettings((0.1,)).sizes(2, 3) == [(1, 1)]


def test_augmentation_refuses_images_that_are_not_of_8_bits():
    augmented = AugmentedModel(small_offseg(), AugmentationSettings())
    with pytest.raises(ValueError, match=r"`image` must be of uint8 .* but is torch.float32"):
        augmented([{"image": torch.zeros(3, 8, 8)}])


# ------------------------------------------------------------ resizing images


def stripes(height: int = 300, width: int = 420) -> np.ndarray:
    """(H, W, 3) uint8: grey areas, and areas of thin stripes whose mean is another class's grey."""
    image = np.full((height, width, 3), 40, dtype=np.uint8)
    image[:, width // 2 :] = 130
    image[height // 3 :, ::3] = 250
    image[2 * height // 3 :, : width // 2] = 250
    return image


def labels_of(image: np.ndarray, size: tuple[int, int]) -> Tensor:
    """A classifier of greys (dark, middle, bright), at another size than the image's."""
    grey = torch.from_numpy(image.copy())[..., 0].double()
    scores = torch.stack([-(grey - value).abs() for value in (40, 130, 250)])
    return interpolate(scores, size).argmax(0)


def test_antialiased_images_would_change_the_miou():
    # What Pillow resizes (as Detectron2's own transforms do) is smoothed first; the published
    # results are of images that OpenCV resized without that.
    image = stripes()
    height, width = image.shape[:2]
    truth = labels_of(image, (height, width))
    new_size = (height // 3, width // 3)
    (ours,) = build_augmentations(
        offseg_config("INPUT.RESIZE.SCALE_TEST", [width // 3, height // 3]), is_train=False
    )
    opencv = ours.get_transform(image).apply_image(image)
    pillow = ResizeTransform(height, width, *new_size).apply_image(image)
    assert opencv.shape == pillow.shape == (*new_size, 3)
    # OpenCV's rule is that of F.interpolate: half-pixel centres, two neighbours.
    exact = interpolate(torch.from_numpy(image).permute(2, 0, 1).double(), new_size)
    assert np.abs(opencv.transpose(2, 0, 1) - exact.numpy()).max() <= 0.5 + 1e-6
    miou = {}
    for name, small in (("opencv", opencv), ("pillow", pillow)):
        prediction = labels_of(small, (height, width))
        counts = count_confusion(truth.numpy(), prediction.numpy(), 3, 255)
        miou[name] = 100 * metrics_from_confusion(counts).miou
    assert (opencv != pillow).any(-1).mean() > 0.3
    assert abs(miou["opencv"] - miou["pillow"]) > 5, miou
