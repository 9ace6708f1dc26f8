"""Cases of single modules: offset learning (A), CARAFE and FreqFusion (B), metrics (J)."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

from offseg_d2.checkpoint.key_tables import OFFSEG_OFFSET
from offseg_d2.evaluation.confusion import count_confusion, metrics_from_confusion
from offseg_d2.layers import FreqFusion, carafe
from offseg_d2.layers.freq_fusion import sample_with_offsets
from offseg_d2.modeling.classifiers import OffsetClassifier
from offseg_d2.modeling.offset_learning import OffsetLearning
from tests.golden import parity_rules
from tests.parity.case import ParityCase, Row, reference_weight

CLASSIFIER_PREFIX = "sem_seg_head.classifier."


def fill(module: nn.Module, prefix: str) -> dict[str, str]:
    """Give ``module`` the reference's weights.

    Args:
        module: a part of our model.
        prefix: its name in our model, with a trailing dot.

    Returns:
        for each parameter, the authors' name.
    """
    names = {}
    for name, tensor in module.state_dict().items():
        theirs = OFFSEG_OFFSET.name_to_theirs(prefix + name)
        shape = tuple(tensor.shape)
        shape = (1, *shape) if theirs.endswith("cls_repr") else shape
        value = reference_weight(theirs, shape)
        tensor.copy_(value.reshape(tensor.shape))
        names[name] = theirs
    return names


def offset_classifier(case: ParityCase) -> Iterator[Row]:
    """A: the per-pixel classifier, in its fast form, with gradients."""
    classes, shape = case.shape("out")[1], case.shape("grad_x")
    classifier = OffsetClassifier(shape[1], classes)
    names = fill(classifier, CLASSIFIER_PREFIX)
    pixels = case.tensor("x", shape).requires_grad_()
    out = classifier(pixels)
    yield case.compare("out", out)
    (out * case.tensor("fixed", tuple(out.shape))).sum().backward()
    yield case.compare("grad_x", _gradient(pixels))
    for name, parameter in classifier.named_parameters():
        key = "grad." + names[name].removeprefix("decode_head.offset_learning.")
        gradient = _gradient(parameter)
        yield case.compare(key, gradient[None] if key == "grad.cls_repr" else gradient)


def offset_masks(case: ParityCase) -> Iterator[Row]:
    """A: offsets between mask embeddings and mask features, readable and fast form."""
    queries_shape, features_shape = case.shape("grad_mask_embed"), case.shape("grad_mask_features")
    size = features_shape[2:]
    learning = OffsetLearning(features_shape[1])
    names = fill(learning, CLASSIFIER_PREFIX + "offset_learning.")
    for form in ("readable", "fast"):
        learning.zero_grad()
        queries = case.tensor("mask_embed", queries_shape, 0.1).requires_grad_()
        features = case.tensor("mask_features", features_shape).requires_grad_()
        pixels = features.flatten(2).mT
        if form == "readable":
            aligned_pixels, aligned_queries = learning(pixels, queries)
            yield case.compare("aligned_cls_repr", aligned_queries)
            yield case.compare("aligned_img_feat", aligned_pixels.mT.unflatten(2, size))
            scores = aligned_pixels @ aligned_queries.mT
        else:
            scores = learning.scores(pixels, queries)
        masks = scores.mT.unflatten(2, size)
        tolerance = _scaled(case, "mask_pred")
        yield _remark(case.compare("mask_pred", masks, tolerance), form)
        (masks * case.tensor("fixed", tuple(masks.shape), 0.1)).sum().backward()
        gradients = {"grad_mask_embed": queries, "grad_mask_features": features}
        for name, parameter in learning.named_parameters():
            gradients["grad." + names[name].removeprefix("decode_head.offset_learning.")] = (
                parameter
            )
        for key, source in gradients.items():
            yield _remark(case.compare(key, _gradient(source), _scaled(case, key)), form)


def _scaled(case: ParityCase, key: str) -> float:
    """The default tolerance for values of order 1, for larger ones in proportion."""
    return 2e-5 * max(1.0, float(case.data[f"{key}__stats"][2]))


def _remark(row: Row, remark: str) -> Row:
    return Row(row.case, row.tensor, row.difference, row.tolerance, remark)


def _gradient(tensor: Tensor) -> Tensor:
    assert tensor.grad is not None
    return tensor.grad


def carafe_cases(case: ParityCase) -> Iterator[Row]:
    """B: CARAFE against a literal loop, groups included, and its gradients."""
    for key in sorted(k.removesuffix("__params") for k in case.data if k.endswith("__params")):
        n, channels, h, w, k, groups, scale = (int(v) for v in case.data[f"{key}__params"])
        name = key.replace("case", "carafe")
        features = _tensor(f"{name}/feat", (n, channels, h, w)).requires_grad_()
        shape = (n, k * k * groups, h * scale, w * scale)
        kernels = _tensor(f"{name}/mask", shape).requires_grad_()
        # Ours has one kernel for all channels, as the models do: groups are folded into the batch.
        out = carafe(
            features.reshape(n * groups, -1, h, w),
            kernels.reshape(n * groups, k * k, h * scale, w * scale),
            k,
            scale,
        ).reshape(n, channels, h * scale, w * scale)
        yield case.compare(key, out)
        if f"{key}_grad_feat" in case:
            (out * _tensor(f"{name}/fixed", tuple(out.shape))).sum().backward()
            yield case.compare(f"{key}_grad_feat", _gradient(features))
            yield case.compare(f"{key}_grad_mask", _gradient(kernels))


def _tensor(name: str, shape: tuple[int, ...]) -> Tensor:
    return torch.from_numpy(parity_rules.tensor(name, shape))


def freq_fusion(case: ParityCase) -> Iterator[Row]:
    """B: one FreqFusion stage with intermediates and gradients."""
    hr_channels, lr_channels, compressed, batch, h, w = (int(v) for v in case.data["params"])
    stage = case.name.split("_")[2][1:]  # such as "0" of B_freqfusion_t0
    fusion = FreqFusion(hr_channels, lr_channels, compressed)
    names = fill(fusion, f"sem_seg_head.pixel_decoder.fusions.{stage}.")
    hr = case.tensor("hr", (batch, hr_channels, 2 * h, 2 * w)).requires_grad_()
    lr = case.tensor("lr", (batch, lr_channels, h, w)).requires_grad_()
    with torch.no_grad():
        hr_compressed, lr_compressed, low_pass, _ = fusion.predict_kernels(hr, lr)
        upsampled = carafe(lr, low_pass, 5, scale=2)
        offsets = fusion.sampler(hr_compressed, lr_compressed)
        yield case.compare("mask_lr", low_pass)
        yield case.compare("lr_before_dysample", upsampled)
        yield case.compare("offset", offsets)
        zero = fusion.sampler.init_positions.expand_as(offsets)
        identity = (sample_with_offsets(upsampled, zero) - upsampled).abs().max().item()
        yield Row(case.name, "zero offsets are the identity", identity, 2e-5)
    hr_out, lr_out = fusion(hr, lr)
    yield case.compare("hr_out", hr_out)
    yield case.compare("lr_out", lr_out)
    loss = (hr_out * case.tensor("fixed_hr", tuple(hr_out.shape))).sum()
    loss = loss + (lr_out * case.tensor("fixed_lr", tuple(lr_out.shape))).sum()
    loss.backward()
    yield case.compare("grad_hr", _gradient(hr), _scaled(case, "grad_hr"))
    yield case.compare("grad_lr", _gradient(lr), _scaled(case, "grad_lr"))
    prefix = f"decode_head.freqfusions.{stage}."
    for name, parameter in fusion.named_parameters():
        key = "gradnorm." + names[name].removeprefix(prefix)
        norm = _gradient(parameter).double().norm().item()
        yield case.compare_relative(key, norm, float(case.data[key]), 1e-5)


def iou_metric(case: ParityCase) -> Iterator[Row]:
    """J: mIoU, accuracies and their summaries."""
    for name in sorted(k.removesuffix("_params") for k in case.data if k.endswith("_params")):
        num_classes, num_images = (int(v) for v in case.data[f"{name}_params"][:2])
        matrix = np.zeros((num_classes + 1, num_classes + 1), np.int64)
        for i in range(num_images):
            label, prediction = parity_rules.iou_pair(name, i)
            matrix += count_confusion(
                torch.from_numpy(label), torch.from_numpy(prediction), num_classes, ignore_value=255
            )
        metrics = metrics_from_confusion(matrix, absent_classes="zero")
        for ours, theirs in (("iou", "IoU"), ("acc", "Acc")):
            expected = case.data[f"{name}_{theirs}"].astype(np.float64)
            actual = getattr(metrics, ours)
            if not np.array_equal(np.isnan(expected), np.isnan(actual)):
                yield Row(case.name, f"{name}_{theirs}", float("nan"), 0.0, "NaNs differ")
                continue
            difference = float(np.nanmax(np.abs(expected - actual)))
            yield Row(case.name, f"{name}_{theirs}", difference, 1e-6)
        summary = {"aAcc": metrics.pacc, "mIoU": metrics.miou, "mAcc": metrics.macc}
        for key, value in summary.items():
            expected = float(case.data[f"{name}_summary_{key}"])
            difference = abs(round(100 * value, 2) - round(expected, 2))
            yield Row(case.name, f"{name}_{key} (rounded percent)", difference, 1e-9)
