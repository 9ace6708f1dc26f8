"""Accuracy lost and speed gained by int8: two exported files of one model.

::

    offseg export --config-file F --output float.onnx --size 360 480 --batch 1 \
        --opts MODEL.WEIGHTS W
    offseg export --config-file F --output int8.onnx --size 360 480 --batch 1 \
        --format onnx_int8 --calibration-dataset camvid_train --calibration-images 32 \
        --opts MODEL.WEIGHTS W
    python benchmarks/quantisation.py accuracy --files float.onnx int8.onnx --model NAME
    python benchmarks/quantisation.py speed --files float.onnx int8.onnx --model NAME

``accuracy`` evaluates both on all images of a dataset, whole images as the files take them.
``speed`` lets them take turns on one input; reported are medians and the median of the rounds'
ratios. Each adds its part to the JSON file, under the name of the model.
"""

import argparse
import json
import os
import time

import numpy as np
from common import machine, write_json
from detectron2.data import DatasetCatalog, MetadataCatalog

from offseg_d2.data import ensure_registered, read_image, read_label_map
from offseg_d2.evaluation import count_confusion, metrics_from_confusion
from offseg_d2.inference.onnx import OnnxSegmenter


def accuracy(segmenters: list[OnnxSegmenter], dataset: str) -> dict:
    """mIoU of each, and the share of pixels with the same label."""
    ensure_registered([dataset])
    metadata = MetadataCatalog.get(dataset)
    num_classes = len(metadata.stuff_classes)
    counts = np.zeros((2, num_classes + 1, num_classes + 1), dtype=np.int64)
    equal = total = 0
    samples = DatasetCatalog.get(dataset)
    for sample in samples:
        image = read_image(sample["file_name"])
        label = read_label_map(sample["sem_seg_file_name"], metadata.label_map)
        predictions = [segmenter.label_map(image) for segmenter in segmenters]
        for count, prediction in zip(counts, predictions, strict=True):
            count += count_confusion(label, prediction, num_classes, metadata.ignore_label)
        equal += int((predictions[0] == predictions[1]).sum())
        total += label.size
    float_miou, int8_miou = (metrics_from_confusion(count).miou for count in counts)
    return {
        "dataset": dataset,
        "images": len(samples),
        "float_mIoU": round(100 * float_miou, 2),
        "int8_mIoU": round(100 * int8_miou, 2),
        "label_agreement": round(equal / total, 5),
    }


def speed(segmenters: list[OnnxSegmenter], image: np.ndarray, rounds: int) -> dict:
    """Milliseconds of the networks alone, in turn."""
    inputs = [segmenter.network_inputs(image)[0] for segmenter in segmenters]
    times = np.zeros((2, rounds + 3))
    for number in range(rounds + 3):
        for index, segmenter in enumerate(segmenters):
            begin = time.perf_counter()
            segmenter.session.run(inputs[index])
            times[index, number] = 1000 * (time.perf_counter() - begin)
    times = times[:, 3:]
    float_ms, int8_ms = np.median(times, axis=1)
    return {
        "input": list(inputs[0].shape),
        "rounds": rounds,
        "float_ms": round(float(float_ms), 1),
        "int8_ms": round(float(int8_ms), 1),
        "float_ms_quartiles": [round(float(x), 1) for x in np.percentile(times[0], (25, 75))],
        "int8_ms_quartiles": [round(float(x), 1) for x in np.percentile(times[1], (25, 75))],
        "ratio": round(float(np.median(times[0] / times[1])), 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=("accuracy", "speed"))
    parser.add_argument("--files", nargs=2, required=True, metavar=("FLOAT", "INT8"))
    parser.add_argument("--model", required=True, metavar="NAME", help="heading of the results")
    parser.add_argument("--dataset", default="camvid_test")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--output", default="benchmarks/results/quantisation.json", metavar="FILE")
    args = parser.parse_args()
    segmenters = [OnnxSegmenter(path, threads=args.threads) for path in args.files]
    if args.part == "accuracy":
        part = accuracy(segmenters, args.dataset)
    else:
        ensure_registered([args.dataset])
        image = read_image(DatasetCatalog.get(args.dataset)[0]["file_name"])
        part = speed(segmenters, image, args.rounds)
    print(json.dumps(part))
    content: dict = {"models": {}}
    if os.path.exists(args.output):
        with open(args.output) as file:
            content = json.load(file)
    entry = content["models"].setdefault(args.model, {})
    sizes = [os.path.getsize(path) for path in args.files]
    entry["file_bytes"] = dict(zip(("float", "int8"), sizes, strict=True))
    entry[args.part] = {**part, "machine": {**machine(), "threads": args.threads}}
    write_json(args.output, content)


if __name__ == "__main__":
    main()
