"""Residual blocks that stay in shared memory: what the cuda backend chooses, over the CPU stand-in. No GPU has run them.

Training steps and exact results of all kernels together are in test_cuda_backend.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import cuda_build
import pytest
import torch
from test_cuda_backend import BLOCK, BLOCKS, dilated, problem, replaced_by
from torch import Tensor

import rdk
from rdk.backends import cuda as cuda_backend
from rdk.backends.base import StageSpec
from rdk.backends.cuda import CudaBackend
from rdk.backends.cuda_kernels import Kernels
from rdk.testing import step

R = rdk.RecurrentResidual
RECALL_STAGES = (StageSpec(relu=False), StageSpec(), StageSpec(skip=1))


@pytest.fixture(scope="module")
def standin() -> CudaBackend:
    """The backend over the stand-in, as if on a device of 3 multiprocessors."""
    torch.ops.load_library(str(cuda_build.standin_library()))
    return CudaBackend(Kernels(cuda_build.NAMESPACE, "cpu", multiprocessors=3))


@pytest.fixture
def chosen(standin: CudaBackend) -> Iterator[None]:
    with replaced_by(standin):
        yield


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"stages": BLOCKS}, None),
        ({"stages": RECALL_STAGES}, None),
        ({"shape": (50, 128, 16, 16)}, None),
        ({"shape": (50, 128, 13, 13), "stages": BLOCKS}, None),
        ({"shape": (50, 128, 32, 32), "stages": BLOCK}, "two maps exceed the shared memory"),
        ({"shape": (50, 128, 32, 32), "stages": dilated(BLOCK, 2)}, None),
        (
            {"shape": (50, 128, 32, 32), "stages": BLOCKS[:2] + dilated(BLOCKS[2:], 2)},
            "two maps exceed the shared memory",
        ),
        ({"shape": (50, 128, 18, 18), "stages": BLOCK}, "272 positions"),
        ({"shape": (50, 64, 24, 24), "stages": BLOCK}, "544 positions"),
        ({"shape": (2, 144, 8, 8)}, "128 channels"),
        ({"stages": 9 * BLOCK}, "16 stages, and an iteration has 18"),
        ({"stages": (StageSpec(), StageSpec(), StageSpec(skip=0))}, "a skip reaches further back"),
        ({"tied": False}, "tied"),
        ({"stages": (StageSpec(norm=True),)}, "BatchNorm"),
    ],
)
def test_which_blocks_stay_in_shared_memory(standin: CudaBackend, changes: dict[str, Any], words: str | None) -> None:
    reason = standin.kernels.not_residual(problem(**changes))
    assert reason is None if words is None else reason is not None and words in reason


def test_blocks_run_in_one_launch(standin: CudaBackend, chosen: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The forward, its tapes and those of the backward come from the resident blocks, never from single convolutions."""
    torch.manual_seed(0)
    launches: list[int] = []
    residual = standin.kernels.residual

    def counted(call: Any, state: Tensor, stage_count: int, **kw: Any) -> None:
        launches.append(stage_count)
        residual(call, state, stage_count, **kw)

    monkeypatch.setattr(standin.kernels, "residual", counted)
    module = R(32, 4, blocks=1, backend="cuda", checkpoint="sqrt").bfloat16()
    x = torch.randn(2, 32, 5, 6).bfloat16().requires_grad_()
    with monkeypatch.context() as patch:
        patch.setattr(Kernels, "conv", lambda *a, **k: pytest.fail("a convolution of its own was launched"))
        y = module(x)
        assert launches == [8]
    y.sum().backward()
    # two segments of two iterations: the inner state of each, and a tape of one stage for each iteration
    assert sorted(launches) == [1, 1, 1, 1, 2, 2, 8]


@pytest.mark.parametrize("checkpoint, kw", [("none", {"return_states": True}), ("none", {}), (2, {})])
def test_same_bits_from_several_launches(
    chosen: None, monkeypatch: pytest.MonkeyPatch, checkpoint: str | int, kw: dict[str, Any]
) -> None:
    torch.manual_seed(0)
    module = R(16, 5, recall=True, blocks=1, backend="cuda", checkpoint=checkpoint).bfloat16()
    x, u = torch.randn(2, 16, 5, 6).bfloat16(), torch.randn(2, 16, 5, 6).bfloat16()
    whole = step(module, x, u, **kw)
    monkeypatch.setattr(cuda_backend, "MAX_LAUNCH_ITERATIONS", 2)
    parts = step(module, x, u, **kw)
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_operator_names_what_was_wrong(standin: CudaBackend) -> None:
    ops = standin.kernels.ops
    x = torch.zeros(1, 16, 4, 4, dtype=torch.bfloat16).contiguous(memory_format=torch.channels_last)
    packed = ops.cuda_pack(torch.zeros(16, 16, 3, 3, dtype=torch.bfloat16), 64, False)

    def residual(
        stages: int = 2, stage_count: int = 4, keep: tuple[int, ...] = (), skip: bool = False, **kw: Any
    ) -> None:
        given = {"weights": [packed] * stages, "tape_first": 2, "tapes": None} | kw
        ops.cuda_residual(
            x, given["weights"], [], None, [1] * stages, [True] * stages, [skip] + [True] * (stages - 1), stage_count,
            list(keep), given["tape_first"], 3, None, given["tapes"], torch.empty_like(x),
        )  # fmt: skip

    residual()
    with pytest.raises(RuntimeError, match="no skip at the first"):
        residual(skip=True)
    with pytest.raises(RuntimeError, match="expected 1 to 16 stages"):
        residual(stages=17, stage_count=17, tape_first=1)
    with pytest.raises(RuntimeError, match="or one stage less, got 6"):
        residual(stages=4, stage_count=6)
    with pytest.raises(RuntimeError, match="ascending iterations below 2"):
        residual(keep=(2,))
    with pytest.raises(RuntimeError, match="room for 1 kept maps"):
        residual(keep=(1,))
    with pytest.raises(RuntimeError, match="room for 1 tape maps"):
        residual(tape_first=1)
    with pytest.raises(RuntimeError, match="weights from cuda_pack for 16 channels"):
        residual(weights=[packed, packed.float()])
