"""Inference of few images over all multiprocessors: what the cuda backend chooses, and results over the CPU stand-in."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import cuda_build
import pytest
import torch
from test_cuda_backend import dilated, problem, replaced_by
from test_cuda_gpu import problem_of
from torch import Tensor

import rdk
from rdk.backends import cuda as cuda_backend
from rdk.backends.base import StageSpec
from rdk.backends.cuda import BACKEND, CudaBackend
from rdk.backends.cuda_kernels import Kernels
from rdk.testing import UNIT, plain_eager, relative

C, R = rdk.RecurrentConv, rdk.RecurrentResidual


@pytest.fixture(scope="module")
def standin() -> CudaBackend:
    """The backend over the stand-in, as if on a device of 4 multiprocessors."""
    torch.ops.load_library(str(cuda_build.standin_library()))
    return CudaBackend(Kernels(cuda_build.NAMESPACE, "cpu", multiprocessors=4))


@pytest.fixture
def launches(standin: CudaBackend, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Inside, backend="cuda" means the stand-in; iterations of every launch of the roll-out."""
    counted: list[int] = []
    rollout = standin.kernels.rollout

    def count(call: Any, state: Tensor, iterations: int, **kw: Any) -> None:
        counted.append(iterations)
        rollout(call, state, iterations, **kw)

    monkeypatch.setattr(standin.kernels, "rollout", count)
    with replaced_by(standin):
        yield counted


def blocks(count: int, *first: StageSpec) -> tuple[StageSpec, ...]:
    """Residual blocks of two stages each, after other stages."""
    begin = len(first)
    pairs = [(StageSpec(), StageSpec(skip=begin + 2 * number)) for number in range(count)]
    return (*first, *(stage for block in pairs for stage in block))


BLOCKS = blocks(2)
MAZE = {"shape": (1, 128, 32, 32), "stages": BLOCKS, "iterations": 100, "needs_grad": False}


@pytest.mark.parametrize(
    "changes, words",
    [
        ({}, None),
        ({"shape": (2, 128, 32, 32)}, None),  # two patches for each multiprocessor
        ({"shape": (3, 128, 32, 32)}, "two patches of 8x8 pixels"),
        ({"shape": (9, 128, 13, 13)}, "two patches of 8x8 pixels"),
        ({"shape": (8, 64, 28, 28), "stages": (StageSpec(),)}, None),
        ({"stages": blocks(2, StageSpec(relu=False))}, None),
        ({"stages": dilated(BLOCKS, 2)}, None),
        ({"stages": blocks(1, StageSpec(dilation=17))}, "exceed the shared memory"),
        ({"stages": blocks(3)}, "exceed the shared memory"),
        ({"shape": (1, 64, 32, 32), "stages": blocks(5)}, None),
        ({"shape": (1, 256, 16, 16)}, "exceed the shared memory"),
        ({"stages": blocks(1, StageSpec(dilation=30000))}, "exceed the shared memory"),
        ({"iterations": 4}, None),
        ({"iterations": 3}, "16 convolutions"),
        ({"needs_grad": True}, "inference"),
        ({"tied": False}, "tied"),
        ({"stages": (StageSpec(norm=True),)}, "BatchNorm"),
        ({"stages": (StageSpec(), StageSpec(), StageSpec(skip=0))}, "a skip reaches further back"),
    ],
)
def test_which_problems_are_spread_over_the_device(
    standin: CudaBackend, changes: dict[str, Any], words: str | None
) -> None:
    kernels = Kernels(standin.kernels.namespace, "cpu", multiprocessors=132)
    reason = kernels.not_rollout(problem(**MAZE | changes))
    assert reason is None if words is None else reason is not None and words in reason


CASES: dict[str, dict[str, Any]] = {
    "residual": {"cls": R, "channels": 32, "iterations": 4, "shape": (1, 32, 7, 13)},
    "one convolution": {"cls": C, "channels": 64, "iterations": 17, "shape": (1, 64, 8, 6), "dtype": torch.float16},
    "recall": {"cls": R, "channels": 16, "iterations": 4, "shape": (2, 16, 9, 8), "recall": True, "inject": True},
    "dilated": {"cls": R, "channels": 48, "iterations": 8, "shape": (1, 48, 12, 5), "blocks": 1, "dilation": 2},
}


def pair(
    cls: type,
    channels: int,
    iterations: int,
    shape: tuple[int, ...],
    dtype: torch.dtype = torch.bfloat16,
    inject: bool = False,
    **kw: Any,
) -> tuple[Any, dict[str, Tensor]]:
    """A module of the cuda backend and its arguments."""
    torch.manual_seed(3)
    module = cls(channels, iterations, backend="cuda", **kw).to(dtype)
    inputs = {"x": torch.randn(shape).to(dtype)}
    if inject:
        inputs["inject"] = torch.randn(shape).to(dtype)
    return module, inputs


def run(module: Any, inputs: dict[str, Tensor], **kw: Any) -> Any:
    with torch.no_grad():
        return module(inputs["x"], **{name: given for name, given in inputs.items() if name != "x"}, **kw)


@pytest.mark.parametrize("name", CASES)
def test_against_float64(name: str, launches: list[int]) -> None:
    module, inputs = pair(**CASES[name])
    assert_right(run(module, inputs), module, inputs)
    assert launches == [module.iterations]


# over all multiprocessors of an H100
WHOLE: dict[str, dict[str, Any]] = {
    "maze": {"cls": R, "channels": 128, "iterations": 100, "shape": (1, 128, 32, 32)},
    "two mazes": {"cls": R, "channels": 128, "iterations": 10, "shape": (2, 128, 32, 32)},  # two patches a block
    "eight maps": {"cls": C, "channels": 64, "iterations": 16, "shape": (8, 64, 28, 28)},
}
# on an sm_90 device, and as if it had 4 multiprocessors
ON_A_GPU = [(name, multiprocessors) for name in CASES for multiprocessors in (None, 4)] + [
    (name, None) for name in WHOLE
]


@pytest.mark.gpu
@pytest.mark.parametrize("name, multiprocessors", ON_A_GPU)
def test_on_a_gpu(name: str, multiprocessors: int | None) -> None:
    """The same by the compiled kernels on an sm_90 device, and maps of 32x32 over all of it."""
    reason = BACKEND.unavailable()
    if reason is not None:
        pytest.skip(reason)
    module, inputs = pair(**(CASES | WHOLE)[name])
    plain = plain_eager(module)
    there = {key: given.cuda() for key, given in inputs.items()}
    with replaced_by(CudaBackend(Kernels(multiprocessors=multiprocessors))):
        got, states = run(module.cuda(), there), run(module, there, return_states=True)
    assert_right(got.cpu(), plain, inputs)
    assert_right(states.cpu(), plain, inputs, return_states=True)
    assert torch.equal(states[-1], got)


def test_cases_on_a_gpu_reach_every_tile(standin: CudaBackend) -> None:
    rows = set()
    for name, multiprocessors in ON_A_GPU:
        kernels = Kernels(standin.kernels.namespace, "cpu", multiprocessors=multiprocessors or 132)
        plan = kernels._rollout_plan_of(problem_of(**(CASES | WHOLE)[name]))
        assert not plan.refusal, name
        rows.add(plan.rows)
    assert rows == {16, 32, 64}


def assert_right(got: Tensor, module: Any, inputs: dict[str, Tensor], **kw: Any) -> None:
    """As near to float64 as eager in the same type, or nearly; with return_states, every state."""
    exact = run(plain_eager(module).double(), {key: given.double() for key, given in inputs.items()}, **kw)
    eager = run(plain_eager(module), inputs, **kw)
    many = kw.get("return_states", False)
    for one, right, plain in zip(*((t if many else t[None]) for t in (got, exact, eager)), strict=True):
        assert relative(one, right) <= max(1.5 * relative(plain, right), 4 * UNIT[got.dtype])


@pytest.mark.parametrize("name", ["residual", "recall"])
def test_states_and_several_launches(name: str, launches: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    module, inputs = pair(**CASES[name])
    last, states = run(module, inputs), run(module, inputs, return_states=True)
    assert launches == [4, 4]
    assert_right(states, module, inputs, return_states=True)
    monkeypatch.setattr(cuda_backend, "MAX_LAUNCH_ITERATIONS", 3)
    assert torch.equal(run(module, inputs), last)
    assert launches[2:] == [3, 1]
    again = run(module, inputs, return_states=True)
    assert torch.equal(states, again) and torch.equal(states[-1], last)


def test_training_takes_another_kernel(launches: list[int]) -> None:
    module, inputs = pair(**CASES["residual"])
    module(inputs["x"]).sum().backward()
    assert launches == []


def test_nothing_is_written_but_the_output(launches: list[int]) -> None:
    module, inputs = pair(**CASES["recall"])
    before = [tensor.clone() for tensor in (*inputs.values(), *module.parameters())]
    run(module, inputs)
    assert launches and all(
        torch.equal(a, b) for a, b in zip((*inputs.values(), *module.parameters()), before, strict=True)
    )


def test_operator_names_what_was_wrong(standin: CudaBackend) -> None:
    ops = standin.kernels.ops
    x = torch.ones(1, 16, 4, 4, dtype=torch.bfloat16).contiguous(memory_format=torch.channels_last)
    packed = ops.cuda_pack(torch.zeros(16, 16, 3, 3, dtype=torch.bfloat16), 16, False)
    maps = torch.empty(2, 1, 4, 4, 16, dtype=torch.bfloat16).permute(0, 1, 4, 2, 3)

    def rollout(stages: int = 2, iterations: int = 2, keep: tuple[int, ...] = (), **kw: Any) -> None:
        given = {
            "weights": [packed] * stages,
            "skip": [False] + [True] * (stages - 1),
            "workspace": maps,
            "arrivals": torch.ones(1, dtype=torch.int32),
            "kept": None,
            "out": torch.empty_like(x),
            "dilation": 1,
        } | kw
        ops.cuda_rollout(
            x, given["weights"], [], None, [given["dilation"]] * stages, [True] * stages, given["skip"], iterations,
            list(keep), 4, given["workspace"], given["arrivals"], given["kept"], given["out"],
        )  # fmt: skip

    rollout()
    with pytest.raises(RuntimeError, match="no skip at the first"):
        rollout(skip=[True, True])
    with pytest.raises(RuntimeError, match="expected 1 to 16 stages"):
        rollout(stages=17)
    with pytest.raises(RuntimeError, match="dilations"):
        rollout(dilation=0)
    with pytest.raises(RuntimeError, match="1 to 1024 iterations, got 1025"):
        rollout(iterations=1025)
    with pytest.raises(RuntimeError, match="ascending iterations below 2"):
        rollout(keep=(2,))
    with pytest.raises(RuntimeError, match="room for 1 kept maps"):
        rollout(keep=(0,))
    with pytest.raises(RuntimeError, match="expected an output"):
        rollout(out=None)
    with pytest.raises(RuntimeError, match="expected an output"):
        rollout(keep=(1,), kept=maps[:1])
    with pytest.raises(RuntimeError, match="room for 2 workspace maps"):
        rollout(workspace=maps[:1])
    with pytest.raises(RuntimeError, match="one int32 value"):
        rollout(arrivals=torch.zeros(1))
    with pytest.raises(RuntimeError, match="exceed the shared memory"):
        rollout(dilation=60)
    with pytest.raises(RuntimeError, match="weights from cuda_pack for 16 channels in blocks of 16 rows"):
        rollout(weights=[packed, packed.float()])
