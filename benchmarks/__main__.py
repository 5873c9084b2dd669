"""The command line: `python -m benchmarks run|report|profile|gpu|dispatch|list`; hands everything to cli."""

from __future__ import annotations

import os
import sys

# PyTorch's profiler, which counts memory on a CPU, announces every start and stop; it reads this when PyTorch is loaded
os.environ.setdefault("KINETO_LOG_LEVEL", "99")

from benchmarks.cli import main

sys.exit(main())
