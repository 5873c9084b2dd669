"""Measures rdk against what a user would run instead: `python -m benchmarks` starts at __main__, `pytest` at test_speed."""

import os

# PyTorch's profiler, which counts memory on a CPU, announces every start and stop; it reads this when PyTorch is loaded
os.environ.setdefault("KINETO_LOG_LEVEL", "99")
