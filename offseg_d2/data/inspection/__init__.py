"""Datasets under inspection: which files are faulty, and how often the classes occur."""

from ..datasets import require_registered
from .check import ClassStatistics, DatasetReport, check_datasets
from .faults import FAULTS, WARNINGS, Fault, title
from .listing import list_records
from .output import file_stem, require_writable_folder, write_file
from .report import class_table, format_json, format_report, plot_classes, report_to_dict
from .workers import WorkerDeath, WorkersError, run_in_workers

__all__ = [
    "FAULTS",
    "WARNINGS",
    "ClassStatistics",
    "DatasetReport",
    "Fault",
    "WorkerDeath",
    "WorkersError",
    "check_datasets",
    "class_table",
    "file_stem",
    "format_json",
    "format_report",
    "list_records",
    "plot_classes",
    "report_to_dict",
    "require_registered",
    "require_writable_folder",
    "run_in_workers",
    "title",
    "write_file",
]
