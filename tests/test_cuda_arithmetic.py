"""Index, descriptor and schedule functions of csrc/cuda against plain loops, by the program csrc/cuda/standin/arithmetic*.cpp."""

from __future__ import annotations

import subprocess

import cuda_build


def test_functions_against_plain_loops() -> None:
    done = subprocess.run([cuda_build.arithmetic_program()], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout
    assert done.stdout.count(": right") == 14
