"""Measurements that are no part of the package: run them as `python -m benchmarks.NAME`."""
