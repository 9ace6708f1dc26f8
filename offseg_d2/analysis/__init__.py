"""What a model needs: parameters, multiply-accumulates, memory, time."""

from offseg_d2.analysis.complexity import Macs, count_macs, count_parameters
from offseg_d2.analysis.latency import (
    Timing,
    gemm_peak,
    gemm_peaks,
    measure,
    measure_interleaved,
    speedup,
)
from offseg_d2.analysis.machine import machine
from offseg_d2.analysis.memory import PeakMemory, measure_memory
from offseg_d2.analysis.network import InputSpec, Network, build_network
from offseg_d2.analysis.profiling import profile_operators, profile_parts
from offseg_d2.analysis.tables import format_results
from offseg_d2.analysis.tasks import DTYPES, TASKS, Subject, analyze, check_tasks

__all__ = [
    "DTYPES",
    "TASKS",
    "InputSpec",
    "Macs",
    "Network",
    "PeakMemory",
    "Subject",
    "Timing",
    "analyze",
    "build_network",
    "check_tasks",
    "count_macs",
    "count_parameters",
    "format_results",
    "gemm_peak",
    "gemm_peaks",
    "machine",
    "measure",
    "measure_interleaved",
    "measure_memory",
    "profile_operators",
    "profile_parts",
    "speedup",
]
