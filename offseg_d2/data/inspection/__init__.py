"""Inspection of datasets: which files are faulty, and how often the classes occur."""

from ..datasets import require_registered
from .check import ClassStatistics, DatasetReport, check_datasets
from .class_proposal import propose_class_file
from .faults import FAULTS, WARNINGS, Fault
from .listing import list_samples
from .report import format_json, format_report, plot_classes

__all__ = [
    "FAULTS",
    "WARNINGS",
    "ClassStatistics",
    "DatasetReport",
    "Fault",
    "check_datasets",
    "format_json",
    "format_report",
    "list_samples",
    "plot_classes",
    "propose_class_file",
    "require_registered",
]
