"""Measurements; `python -m benchmarks` is the harness of docs/performance.md."""
