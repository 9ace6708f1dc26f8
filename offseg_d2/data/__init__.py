"""Datasets, augmentation and loaders. Importing it registers the datasets in Detectron2."""

from . import datasets
from .augmentation import build_augmentations, crop_size
from .build import SampleLoader, build_test_loader, build_train_loader
from .class_weights import balance_class_weights
from .dataset_mapper import SemSegDatasetMapper, build_mapper, to_planes
from .datasets import (
    adapt_to_folders,
    ensure_registered,
    register_folder,
    require_registered,
)
from .image_io import DataFileError, ImageReader, read_image
from .image_settings import ImageSettings
from .label_map import (
    IGNORE_LABEL,
    LabelLut,
    build_lut,
    describe_label_map,
    label_lut_of,
    label_map_of,
    read_label_map,
)
from .sampler import TrainingBatchSampler

__all__ = [
    "IGNORE_LABEL",
    "DataFileError",
    "ImageReader",
    "ImageSettings",
    "LabelLut",
    "SampleLoader",
    "SemSegDatasetMapper",
    "TrainingBatchSampler",
    "adapt_to_folders",
    "balance_class_weights",
    "build_augmentations",
    "build_lut",
    "build_mapper",
    "build_test_loader",
    "build_train_loader",
    "crop_size",
    "datasets",
    "describe_label_map",
    "ensure_registered",
    "label_lut_of",
    "label_map_of",
    "read_image",
    "read_label_map",
    "register_folder",
    "require_registered",
    "to_planes",
]
