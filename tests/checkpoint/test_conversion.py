"""Files of other projects as `MODEL.WEIGHTS` and through the conversion tool.

The logits of a model that was filled from a file equal those of one that was filled entry by entry.
"""

import functools
import importlib.util
import sys

import pytest
import torch
from detectron2.modeling import build_model
from torch import Tensor, nn

from offseg_d2.checkpoint import CheckpointError, load_checkpoint_file
from offseg_d2.checkpoint.key_tables import KEY_MAPS
from offseg_d2.engine import Trainer
from tests.checkpoint import external
from tests.common import MODEL_CONFIGS, ROOT, offseg_config
from tests.parity.case import ParityCase
from tests.parity.models import fill_model

WHOLE_MODELS = [
    "offseg_t_ade20k",
    "segformer_b0_ade20k",
    "segformer_b0_baseline_ade20k",
    "segnext_t_pascal59",
    "segnext_t_baseline_ade20k",
]


def our_model(name: str, *more) -> tuple[nn.Module, object]:
    model, opts = external.model_options(name)
    cfg = offseg_config(*opts, *more, model=model)
    return build_model(cfg).eval(), cfg


def load(model: nn.Module, cfg, path: str) -> nn.Module:
    """Load as a run does with `MODEL.WEIGHTS`."""
    Trainer.build_checkpointer(cfg, model).load(path, checkpointables=[])
    return model


def logits(model: nn.Module) -> Tensor:
    torch.manual_seed(3)
    with torch.no_grad():
        return model.forward_network(torch.randn(1, 3, 64, 96))


@functools.cache
def tool():
    spec = importlib.util.spec_from_file_location("tool", ROOT / "tools/convert_checkpoint.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run_tool(monkeypatch, *args) -> None:
    monkeypatch.setattr(sys, "argv", ["convert_checkpoint.py", *map(str, args)])
    tool().main()


@pytest.mark.parametrize("name", WHOLE_MODELS)
def test_authors_file_gives_the_logits_of_a_directly_filled_model(tmp_path, name):
    model, cfg = our_model(name)
    head = cfg.MODEL.SEM_SEG_HEAD
    fill_model(model, KEY_MAPS[head.PIXEL_DECODER_NAME, head.CLASSIFIER])
    expected = logits(model)
    path = external.write_mmengine(tmp_path / "authors.pth", external.authors_state(name))
    other, cfg = our_model(name)
    assert not torch.equal(logits(other), expected)
    assert torch.equal(logits(load(other, cfg, path)), expected)


def test_authors_file_gives_the_logits_of_the_authors_model(tmp_path):
    case = ParityCase(external.GOLDEN / "D_offseg_t_ade20k_512x512.npz")
    path = external.write_mmengine(
        tmp_path / "authors.pth", external.authors_state("offseg_t_ade20k")
    )
    model, cfg = our_model("offseg_t_ade20k")
    load(model, cfg, path)
    image = model.normalise(case.images()[0])
    with torch.no_grad():
        row = case.compare("logits", model.sem_seg_head(model.backbone(image[None])))
    assert row.passed, row


def test_log_reports_format_mapped_dropped_and_missing(tmp_path, caplog):
    path = external.write(
        tmp_path / "eformer.pth", {"model": external.efficientformer_v2_imagenet()}
    )
    model, cfg = our_model("offseg_t_cityscapes")
    with caplog.at_level("INFO"):
        load(model, cfg, path)
    for part in (
        "Recognised ImageNet weights of EfficientFormerV2: ",
        "7 dropped (belongs to the ImageNet classifier): norm.weight",
        "keep their initial values: ",
        "sem_seg_head.classifier.class_representations",
    ):
        assert part in caplog.text, part
    assert "not found in the checkpoint" not in caplog.text  # fvcore, name by name


@pytest.mark.parametrize(
    "name, make, model_name, inner",
    [
        ("mit", external.mit_openmmlab, "segformer_b0", "state_dict"),
        ("nvidia", external.mit_nvidia, "segformer_b0", None),
        ("mscan", external.mscan_openmmlab, "segnext_t", "state_dict"),
        ("eformer", external.efficientformer_v2_imagenet, "offseg_t", "model"),
    ],
)
def test_imagenet_backbone_has_the_features_of_the_whole_model(
    tmp_path, name, make, model_name, inner
):
    # Values depend on the names alone, so the authors' whole model holds the same backbone.
    whole = external.authors_state(f"{model_name}_ade20k")
    if name == "eformer":
        whole |= {k: torch.zeros(v.shape) for k, v in whole.items() if k.endswith("biases_seg")}
    model, cfg = our_model(f"{model_name}_ade20k")
    load(model, cfg, external.write(tmp_path / "whole.pth", {"state_dict": whole}))
    other, cfg = our_model(f"{model_name}_ade20k")
    entries = make() if inner is None else {inner: make()}
    load(other, cfg, external.write(tmp_path / f"{name}.pth", entries))
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected, actual = model.backbone(image), other.backbone(image)
    assert all(torch.equal(actual[key], expected[key]) for key in expected)


def test_mobilenet_weights_of_torchvision_fill_the_backbone(tmp_path):
    state = external.mobilenet_v2_imagenet()
    cfg = offseg_config(model="offseg_mobilenetv2")
    model = load(build_model(cfg), cfg, external.write(tmp_path / "mobilenet.pth", state))
    ours = model.backbone.features.state_dict()
    assert all(torch.equal(value, state[f"features.{key}"]) for key, value in ours.items())


def test_attention_biases_are_kept_by_the_configuration_key(tmp_path):
    path = external.write(
        tmp_path / "eformer.pth", {"model": external.efficientformer_v2_imagenet()}
    )
    for resize in (False, True):
        key = "MODEL.EFFICIENTFORMER_V2.RESIZE_ATTENTION_BIASES"
        model, cfg = our_model("offseg_t_ade20k", key, resize)
        load(model, cfg, path)
        assert model.backbone.downsamples[2].attn.bias.table.any().item() is resize


def test_own_weights_do_not_count_as_external(tmp_path, caplog):
    model, cfg = our_model("segformer_b0_ade20k")
    state = model.state_dict() | {"backbone.extra": torch.zeros(1)}
    with caplog.at_level("INFO"):
        load(model, cfg, external.write(tmp_path / "own.pth", {"model": state}))
    assert "Recognised" not in caplog.text
    assert "backbone.extra" in caplog.text


# ---------------------------------------------------------------------- mistakes of the user


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    "kind, message",
    [
        ("truncated", r"truncated, damaged or no checkpoint"),
        ("family", r"it holds the authors' SegFormer, which fits .* but this model has no"),
        ("classes", r"has the shape \(150, 256\) in the file, but \(11, 256\) in the model"),
        ("unknown", r"1 parameter names are not known to the authors' SegFormer: backbone.odd"),
        ("host", r"it holds the authors' Mask2Former, which fits .* MaskSegmentor, .* has no"),
    ],
)
def test_unfit_file_is_one_sentence_for_runs_and_for_the_tool(
    tmp_path, monkeypatch, capsys, kind, message
):
    state = external.authors_state("segformer_b0_ade20k")
    name, opts = "segformer_b0", []
    if kind == "family":
        name = "segnext_t"
    if kind == "classes":
        opts = ["MODEL.SEM_SEG_HEAD.NUM_CLASSES", 11]
    if kind == "unknown":
        state["backbone.odd"] = torch.zeros(1)
    if kind == "host":
        projection = "decode_head.offset_learning.cls_offset_proj.weight"
        state = {"decode_head.query_feat.weight": torch.zeros(1), projection: torch.zeros(1)}
    path = tmp_path / "authors.pth"
    external.write_mmengine(path, state)
    if kind == "truncated":
        truncate(path)
    cfg = offseg_config(*opts, model=name)
    model = build_model(cfg)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=message) as error:
        load(model, cfg, str(path))
    assert str(path) in str(error.value)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    with pytest.raises(SystemExit) as stop:
        config = ["--config-file", MODEL_CONFIGS / f"{name}.yaml", *opts]
        run_tool(monkeypatch, path, tmp_path / "out.pth", *config)
    assert stop.value.code == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(f"error: Checkpoint file `{path}`") and not captured.out
    assert len(captured.err.strip().splitlines()) == 1
    assert not (tmp_path / "out.pth").exists()


# ---------------------------------------------------------------------- the tool


@pytest.mark.parametrize("ending", [".pth", ".safetensors"])
@pytest.mark.parametrize("with_config", [True, False])
def test_tool_writes_weights_that_load_anywhere(tmp_path, monkeypatch, capsys, ending, with_config):
    name = "segformer_b0_ade20k"
    path = external.write_mmengine(tmp_path / "authors.pth", external.authors_state(name))
    out = tmp_path / f"ours{ending}"
    config = ["--config-file", MODEL_CONFIGS / "segformer_b0.yaml"] if with_config else []
    opts = ["MODEL.SEM_SEG_HEAD.NUM_CLASSES", 150] if with_config else []
    run_tool(monkeypatch, path, out, *config, *opts)
    printed = capsys.readouterr().out
    assert "Recognised the authors' SegFormer: 195 entries mapped" in printed
    assert "2 dropped (plain classifier that the authors' offset heads never use)" in printed
    if ending == ".pth":
        assert torch.load(out, weights_only=True).keys() == {"model"}
    direct, cfg = our_model(name)
    load(direct, cfg, path)
    converted, cfg = our_model(name)
    assert torch.equal(logits(load(converted, cfg, str(out))), logits(direct))


def test_tool_resets_the_classifier_on_request(tmp_path, monkeypatch, capsys):
    name = "segnext_t_ade20k"
    path = external.write_mmengine(tmp_path / "authors.pth", external.authors_state(name))
    config = ["--config-file", MODEL_CONFIGS / "segnext_t.yaml"]
    opts = ["MODEL.SEM_SEG_HEAD.NUM_CLASSES", 11]
    run_tool(monkeypatch, path, tmp_path / "out.pth", "--reset-classifier", *config, *opts)
    assert "3 dropped (the classifier is reset, as asked for)" in capsys.readouterr().out
    model, cfg = our_model(name, *opts)
    load(model, cfg, str(tmp_path / "out.pth"))
    saved = load_checkpoint_file(str(tmp_path / "out.pth"))["model"]
    proj = "sem_seg_head.classifier.offset_learning.class_offset_proj.weight"
    assert torch.equal(model.state_dict()[proj], saved[proj])
    assert not [key for key in saved if "class_representations" in key]


def test_failed_write_leaves_the_old_output(tmp_path, monkeypatch):
    path = external.write(tmp_path / "in.pth", external.mit_openmmlab())
    out = tmp_path / "out.pth"
    out.write_bytes(b"old")

    def fail(data, file):
        file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(SystemExit):
        run_tool(monkeypatch, path, out)
    assert out.read_bytes() == b"old"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.pth", "out.pth"]


@pytest.mark.parametrize(
    "args, message",
    [
        (["in.pth", "out.onnx"], "OUT must end with .pth or .safetensors, but is 'out.onnx'"),
        (["in.pth", "out.pth", "A", "1"], "KEY VALUE pairs need --config-file"),
        (["absent.pth", "out.pth"], "Checkpoint file `absent.pth` does not exist"),
        (["odd.pth", "out.pth"], "must be of a known format, but its names are of none"),
    ],
)
def test_wrong_arguments_are_one_sentence(tmp_path, monkeypatch, capsys, args, message):
    monkeypatch.chdir(tmp_path)
    external.write(tmp_path / "odd.pth", {"x.weight": torch.zeros(1)})
    with pytest.raises(SystemExit) as stop:
        run_tool(monkeypatch, *args)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err
