"""The command line: `python -m benchmarks run|dispatch|profile|gpu|worker|report|tidy|list`; hands everything to cli."""

from __future__ import annotations

import sys

from benchmarks.cli import main

sys.exit(main())
