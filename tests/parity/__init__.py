"""Comparison with what the authors' code computes; see ``tests/parity_report.py``."""
