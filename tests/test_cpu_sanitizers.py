"""csrc/cpu under AddressSanitizer and UndefinedBehaviorSanitizer: its own C++ program against a double-precision convolution."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

SOURCES = ["kernels_avx512", "kernels_avx2", "isa", "bands", "plan", "convolve", "parameter_sums"]
SOURCES += ["forward", "forward_bands", "backward", "backward_bands"]
FOLDER = Path(__file__).parent.parent / "csrc" / "cpu"


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no g++ on this machine")
def test_address_and_undefined_behaviour_sanitizers_find_nothing(tmp_path: Path) -> None:
    program = tmp_path / "check_runs"
    flags = ["-O1", "-g", "-std=c++20", "-Wall", "-Wextra", "-Werror", "-fsanitize=address,undefined"]
    sources = ["tests/check_runs.cpp", *(f"{name}.cpp" for name in SOURCES)]
    command = ["g++", *flags, "-fno-sanitize-recover=all", "-pthread", *sources, "-o", str(program)]
    built = subprocess.run(command, cwd=FOLDER, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    done = subprocess.run([program], capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "ok" in done.stdout
