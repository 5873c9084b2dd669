"""Training steps by the compiled kernels on an sm_90 device: the stand-in's cases and the workloads' shapes. No GPU has run them.

Each case runs as the device is and as if it had three multiprocessors, where a block takes several tiles, images or grids in
turn. What the cases reach is computed from the plans here, without a GPU.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import cuda_build
import pytest
import torch
from test_cuda_backend import CASES, C, R, compare, replaced_by

from rdk import functional, preview
from rdk.backends.base import Problem
from rdk.backends.cuda import BACKEND, CudaBackend
from rdk.backends.cuda_kernels import ROWS, Kernels

FEW = 3  # multiprocessors
H100 = 132
# W1 to W7 (benchmarks/workloads.py) with fewer images and iterations
WORKLOADS: dict[str, dict[str, Any]] = {
    "W1": {"cls": C, "channels": 64, "iterations": 5, "shape": (4, 64, 28, 28)},
    "W2": {"cls": R, "channels": 512, "iterations": 1, "shape": (2, 512, 16, 16)},
    "W3": {"cls": R, "channels": 256, "iterations": 2, "shape": (2, 256, 16, 16), "norm": "batch"},
    "W4": {"cls": R, "channels": 128, "iterations": 2, "shape": (2, 128, 32, 32)},
    "W4s 9x9": {"cls": R, "channels": 128, "iterations": 2, "shape": (4, 128, 9, 9)},
    "W4s 11x11": {"cls": R, "channels": 128, "iterations": 2, "shape": (4, 128, 11, 11)},
    "W4s 13x13": {"cls": R, "channels": 128, "iterations": 2, "shape": (4, 128, 13, 13)},
    "W5": {"cls": R, "channels": 128, "iterations": 2, "shape": (2, 128, 32, 32), "dilation": 2},
    "W6": {"cls": R, "channels": 128, "iterations": 2, "shape": (2, 128, 32, 32), "recall": True, "inject": True},
    "W7": {"cls": R, "channels": 512, "iterations": 1, "shape": (1, 512, 28, 28)},
}
# tiles that neither those nor the stand-in's cases reach, and a ring of two buffers
TILES: dict[str, dict[str, Any]] = {
    "conv of 64 rows, 512 positions": {
        "cls": C,
        "channels": 32,
        "iterations": 2,
        "shape": (1, 32, 32, 32),
        "dilation": 2,
    },
    "conv of 128 rows, 128 positions": {"cls": C, "channels": 256, "iterations": 2, "shape": (1, 256, 8, 8)},
    "conv of 128 rows, 192 positions": {"cls": C, "channels": 80, "iterations": 2, "shape": (1, 80, 20, 20)},
    "resident of 512 positions": {"cls": C, "channels": 64, "iterations": 2, "shape": (1, 64, 20, 20)},
    "residual of 64 rows, 288 positions": {"cls": R, "channels": 64, "iterations": 1, "shape": (1, 64, 16, 16)},
    "residual of 64 rows, 544 positions": {"cls": R, "channels": 64, "iterations": 1, "shape": (1, 64, 22, 22)},
    "widest dilated row": {"cls": C, "channels": 32, "iterations": 2, "shape": (1, 32, 3, 159), "dilation": 2},
}
ALL = CASES | WORKLOADS | TILES


@pytest.fixture(scope="module")
def standin() -> CudaBackend:
    torch.ops.load_library(str(cuda_build.standin_library()))
    return CudaBackend(Kernels(cuda_build.NAMESPACE, "cpu", multiprocessors=FEW))


@pytest.mark.gpu
@pytest.mark.parametrize("multiprocessors", [None, FEW])
@pytest.mark.parametrize("name", ALL)
def test_training_step(name: str, multiprocessors: int | None) -> None:
    reason = BACKEND.unavailable()
    if reason is not None:
        pytest.skip(reason)
    with replaced_by(CudaBackend(Kernels(multiprocessors=multiprocessors))):
        compare(**ALL[name], device="cuda")


@pytest.mark.slow
@pytest.mark.parametrize("name", TILES)
def test_training_step_over_the_stand_in(name: str, standin: CudaBackend) -> None:
    with replaced_by(standin):
        compare(**TILES[name])


# ---- what the cases reach


def problem_of(
    cls: type, channels: int, iterations: int, shape: tuple[int, ...], dtype: torch.dtype = torch.bfloat16,
    inject: bool = False, call: dict[str, Any] | None = None, **kw: Any,
) -> Problem:  # fmt: skip
    module = cls(channels, iterations, **kw)
    return functional.problem_of(
        preview._training_step(module, shape, dtype, iterations, inject, bool(call), "none", None)
    )


def reached(multiprocessors: int) -> Iterator[tuple[str, tuple[int, int], int]]:
    """Kernel, (output channels, positions) of its tile and how many of these a block takes in turn, of each case's launches."""
    kernels = Kernels(cuda_build.NAMESPACE, "cpu", multiprocessors=multiprocessors)
    for case in ALL.values():
        problem = problem_of(**case)
        shape, dilations = problem.shape, tuple([stage.dilation for stage in problem.stages])
        if kernels.not_resident(problem) is None:
            plan = kernels.resident_plan(shape, dilations[0], multiprocessors)
            yield "resident", (plan.rows, plan.positions), plan.turns
            continue
        if kernels.not_residual(problem) is None:
            plan = kernels.residual_plan(shape, dilations, multiprocessors)
            yield "residual", (plan.rows, plan.positions), plan.turns
        for dilation in dilations:  # of the backward at least
            conv = kernels.conv_plan(shape, dilation, multiprocessors)
            yield "conv", (conv.rows, conv.positions), -(-conv.tiles // conv.blocks)


def tiles_of(kernel: str) -> set[tuple[int, int]]:
    """(Output channels, positions) of each tile that csrc/cuda/tables.h lists for the kernel."""
    text = (cuda_build.SOURCE / "tables.h").read_text()
    found = re.search(rf"#define RDK_{kernel.upper()}_TILES\(X\)((?: *\\?\s*X\([\d, ]+\))+)", text)
    assert found is not None
    tiles = set()
    for numbers in re.findall(r"X\(([\d, ]+)\)", found[1]):
        *rows, first, second = [int(number) for number in numbers.split(",")] + ([0] if kernel == "conv" else [])
        m = rows[0] if rows else 1
        tiles.add((ROWS * m, (first + second) * 2 // m))
    return tiles


def test_cases_reach_every_tile(standin: CudaBackend) -> None:
    found = [*reached(FEW), *reached(H100)]
    for kernel in ("conv", "resident", "residual"):
        missing = tiles_of(kernel) - {tile for name, tile, _ in found if name == kernel}
        assert not missing, f"no case on a GPU runs these tiles of {kernel}: {missing}"
        assert max(turns for name, _, turns in found if name == kernel) > 1, f"no block of {kernel} takes a second turn"
