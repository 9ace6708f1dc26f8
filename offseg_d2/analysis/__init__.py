"""Costs of a model: parameters, multiply-accumulates, memory, time."""

from offseg_d2.analysis.complexity import Macs, count_macs, count_parameters
from offseg_d2.analysis.latency import Timing, gemm_peaks, measure_interleaved, speedup
from offseg_d2.analysis.machine import machine
from offseg_d2.analysis.memory import measure_memory
from offseg_d2.analysis.network import InputSpec, Network, build_network
from offseg_d2.analysis.tasks import DTYPES, TASKS, Subject, analyze, check_tasks, format_results

__all__ = [
    "DTYPES",
    "TASKS",
    "InputSpec",
    "Macs",
    "Network",
    "Subject",
    "Timing",
    "analyze",
    "build_network",
    "check_tasks",
    "count_macs",
    "count_parameters",
    "format_results",
    "gemm_peaks",
    "machine",
    "measure_interleaved",
    "measure_memory",
    "speedup",
]
