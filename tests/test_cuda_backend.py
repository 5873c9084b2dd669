"""Training steps on the cuda backend over the CPU stand-in, against float64 eager. No GPU has run these kernels."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import cuda_build
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from memory_cases import held_maps
from torch import Tensor

import rdk
from rdk import budget, dispatch
from rdk.backends.base import Problem, StageSpec
from rdk.backends.cuda import BACKEND, CudaBackend
from rdk.backends.cuda_kernels import Kernels
from rdk.testing import UNIT, assert_close, plain_eager, relative, step

C, R = rdk.RecurrentConv, rdk.RecurrentResidual


@pytest.fixture(scope="module")
def standin() -> CudaBackend:
    """The backend over the stand-in, as if on a device of 3 multiprocessors."""
    torch.ops.load_library(str(cuda_build.standin_library()))
    return CudaBackend(Kernels(cuda_build.NAMESPACE, "cpu", multiprocessors=3))


@contextmanager
def replaced_by(standin: CudaBackend) -> Iterator[None]:
    """Inside, backend="cuda" means the stand-in."""
    find = dispatch.backend_named
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CudaBackend, "unavailable", lambda self: None)
        patch.setattr(dispatch, "backend_named", lambda name: standin if name == "cuda" else find(name))
        budget.forget()
        yield
    budget.forget()


@pytest.fixture
def chosen(standin: CudaBackend) -> Iterator[None]:
    with replaced_by(standin):
        yield


def compare(
    cls: type,
    channels: int,
    iterations: int,
    shape: tuple[int, ...],
    dtype: torch.dtype = torch.bfloat16,
    inject: bool = False,
    call: dict[str, Any] | None = None,
    device: str = "cpu",
    **kw: Any,
) -> Any:
    """One training step against float64 with the same rounded parameters, beside eager's own error in `dtype`."""
    torch.manual_seed(3)
    module = cls(channels, iterations, **kw).to(dtype)
    x = torch.randn(shape).to(dtype)
    u = torch.randn(shape).to(dtype) if inject else None
    exact = step(plain_eager(module).double(), x.double(), None if u is None else u.double(), **call or {})
    eager = step(plain_eager(module), x, u, **call or {})
    module = module.to(device)
    module.backend = "cuda"
    found = step(module, x.to(device), None if u is None else u.to(device), **call or {})
    got = {name: tensor.cpu() for name, tensor in found.items()}
    assert got["output"].dtype == dtype
    allowed = max(1.5 * relative(eager["output"], exact["output"]), 4 * UNIT[dtype])
    assert relative(got["output"], exact["output"]) <= allowed
    # a flipped ReLU mask moves a gradient by more than rounding does, in eager too; the exact tests below have no such doubt
    assert_close(got, exact, max(1.5 * max(relative(eager[name], exact[name]) for name in exact), 16 * UNIT[dtype]))
    return module


RECALL = {"cls": R, "channels": 32, "iterations": 3, "shape": (2, 32, 6, 7), "recall": True, "inject": True}
CASES: dict[str, dict[str, Any]] = {
    "resident": {"cls": C, "channels": 32, "iterations": 5, "shape": (4, 32, 7, 9)},
    "resident fp16": {"cls": C, "channels": 64, "iterations": 3, "shape": (2, 64, 9, 8), "dtype": torch.float16},
    "resident inject": {"cls": C, "channels": 16, "iterations": 4, "shape": (2, 16, 6, 5), "inject": True},
    "resident without bias": {"cls": C, "channels": 48, "iterations": 10, "shape": (2, 48, 5, 6), "bias": False},
    "resident dilated": {"cls": C, "channels": 32, "iterations": 2, "shape": (2, 32, 9, 8), "dilation": 2},
    "resident states": {
        "cls": C,
        "channels": 32,
        "iterations": 10,
        "shape": (2, 32, 6, 7),
        "call": {"return_states": True},
    },
    "resident sqrt": {"cls": C, "channels": 32, "iterations": 10, "shape": (2, 32, 6, 7), "checkpoint": "sqrt"},
    "resident revolve": {"cls": C, "channels": 32, "iterations": 7, "shape": (2, 32, 6, 7), "checkpoint": 2},
    "untied": {"cls": C, "channels": 32, "iterations": 3, "shape": (2, 32, 6, 7), "tied": False},
    "widest row": {"cls": C, "channels": 16, "iterations": 2, "shape": (1, 16, 2, 322)},
    "map too large to stay": {"cls": C, "channels": 32, "iterations": 2, "shape": (1, 32, 31, 33)},
    "residual": {"cls": R, "channels": 32, "iterations": 2, "shape": (2, 32, 7, 6)},
    "residual of 80 channels": {"cls": R, "channels": 80, "iterations": 2, "shape": (1, 80, 7, 6)},
    "residual dilated": {"cls": R, "channels": 32, "iterations": 2, "shape": (2, 32, 9, 8), "dilation": 2},
    "residual of mixed dilations": {
        "cls": R,
        "channels": 32,
        "iterations": 2,
        "shape": (2, 32, 9, 8),
        "dilation": [1, 2, 2, 4],
    },
    "residual in four grids": {
        "cls": R,
        "channels": 16,
        "iterations": 2,
        "shape": (1, 16, 25, 24),
        "blocks": 1,
        "dilation": 2,
    },
    "residual that is kept whole": {
        "cls": R,
        "channels": 16,
        "iterations": 3,
        "shape": (2, 16, 5, 6),
        "checkpoint": "none",
    },
    "residual too large to stay": {"cls": R, "channels": 32, "iterations": 2, "shape": (1, 32, 31, 33), "blocks": 1},
    "convolution of 128 channels": {"cls": C, "channels": 128, "iterations": 5, "shape": (2, 128, 6, 7)},
    "residual sqrt": {"cls": R, "channels": 32, "iterations": 5, "shape": (2, 32, 5, 6), "checkpoint": "sqrt"},
    "recall": RECALL,
    "recall states": RECALL | {"call": {"return_states": True}},
    "norm": {"cls": C, "channels": 32, "iterations": 2, "shape": (3, 32, 6, 7), "norm": "batch"},
    "residual norm": {"cls": R, "channels": 32, "iterations": 2, "shape": (3, 32, 6, 7), "norm": "batch"},
}


@pytest.mark.parametrize("name", CASES)
def test_training_step(name: str, chosen: None) -> None:
    compare(**CASES[name])


def test_float16_training_step_needs_no_more_than_rounding(chosen: None) -> None:
    compare(C, 32, 1, (2, 32, 6, 7), dtype=torch.float16)


# ---- exact: small integers, so that no rounding anywhere can hide a wrong index or flip a mask


def integer_step(module: torch.nn.Module, x: Tensor, inject: Tensor | None, states: bool) -> dict[str, Tensor]:
    """Output and gradients for an upstream gradient of ones and minus ones."""
    module.zero_grad()
    x = x.clone().requires_grad_()
    kw: dict[str, Any] = {"return_states": states}
    if inject is not None:
        inject = inject.clone().requires_grad_()
        kw["inject"] = inject
    y = module(x, **kw)
    y.backward((torch.arange(y.numel()).reshape(y.shape) % 3 - 1).to(y.dtype))
    found = {"output": y.detach(), "input": x.grad}
    if inject is not None:
        found["inject"] = inject.grad
    return found | {name: p.grad for name, p in module.named_parameters()}


def sparse_integers(module: torch.nn.Module) -> None:
    """One or two weights of each row are 1 or -1, biases are -1, 0 or 1."""
    for p in module.parameters():
        if p.dim() == 4:
            p.data.zero_()
            for _ in range(2):
                place = torch.randint(p[0].numel(), (len(p), 1))
                p.data.view(len(p), -1).scatter_(1, place, torch.randint(0, 2, (len(p), 1)).to(p.dtype) * 2 - 1)
        else:
            p.data.copy_(torch.randint(-1, 2, p.shape))


@settings(max_examples=10)
@given(
    kind=st.sampled_from(["conv", "untied", "residual", "recall"]),
    channels=st.sampled_from([16, 32, 48, 64, 80]),
    batch=st.integers(1, 4),
    height=st.integers(1, 12),
    width=st.integers(1, 12),
    dilation=st.integers(1, 3),
    iterations=st.integers(1, 5),
    half=st.sampled_from([torch.bfloat16, torch.float16]),
    schedule=st.sampled_from(["none", "sqrt", 1]),
    states=st.booleans(),
    inject=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_exact_on_small_integers(
    standin: CudaBackend, kind: str, channels: int, batch: int, height: int, width: int, dilation: int, iterations: int,
    half: torch.dtype, schedule: str | int, states: bool, inject: bool, seed: int,
) -> None:  # fmt: skip
    torch.manual_seed(seed)
    kw: dict[str, Any] = {"checkpoint": schedule, "dilation": dilation}
    if kind in ("residual", "recall"):
        iterations = min(iterations, 2)
        module: Any = R(channels, iterations, recall=kind == "recall", blocks=1, **kw)
    else:
        module = C(channels, iterations, tied=kind == "conv", **kw)
    sparse_integers(module)
    x = torch.randint(-2, 3, (batch, channels, height, width)).float()
    u = torch.randint(-2, 3, x.shape).float() if inject or kind == "recall" else None
    reference = integer_step(plain_eager(module).double(), x.double(), None if u is None else u.double(), states)
    module = module.to(half)
    with replaced_by(standin):
        module.backend = "cuda"
        got = integer_step(module, x.to(half), None if u is None else u.to(half), states)
    for name, expected in reference.items():
        # rounded once at the end; sums inside stay within the integers that the type holds exactly
        assert torch.equal(got[name].double(), expected.to(half).double()), name


# ---- what it refuses, and in which words


def problem(**changes: Any) -> Problem:
    fields: dict[str, Any] = {
        "kind": "conv",
        "stages": (StageSpec(),),
        "shape": (2, 32, 8, 8),
        "dtype": torch.bfloat16,
        "device": torch.device("cpu"),
        "iterations": 2,
        "tied": True,
        "bias": True,
        "inject": False,
        "norm_training": False,
        "needs_grad": True,
        "return_states": False,
        "precision": "exact",
    }
    return Problem(**(fields | changes))


@pytest.mark.parametrize(
    "changes, words",
    [
        ({}, None),
        ({"shape": (2, 1024, 8, 8)}, None),
        ({"dtype": torch.float32}, "bfloat16 or float16, and the state is float32"),
        ({"shape": (2, 40, 8, 8)}, "multiples of 16 channels up to 1024, and the state has 40"),
        ({"shape": (2, 1040, 8, 8)}, "the state has 1040"),
        ({"shape": (2, 32, 8, 4000)}, "a row of 4000 pixels at dilation 1 does not fit"),
        ({"shape": (2, 32, 8, 322)}, None),
        ({"shape": (2, 32, 8, 323)}, "a row of 323 pixels at dilation 1 does not fit"),
        ({"shape": (2, 32, 8, 323), "needs_grad": False}, None),
        (
            {"shape": (2, 32, 224, 224), "stages": (StageSpec(dilation=2),)},
            "a row of 224 pixels at dilation 2 does not fit",
        ),
        ({"kind": "linear", "shape": (4, 32)}, "the stages are linear"),
        ({"device": torch.device("cuda")}, "the state is on cuda"),
        ({"shape": (2**20, 32, 64, 64)}, "counts pixels in 32 bits"),
        ({"shape": (0, 32, 8, 8), "stages": (StageSpec(dilation=2**32 + 1),)}, "counts pixels in 32 bits"),
        # halos of so many bytes that 32 bits would wrap around
        ({"shape": (1, 32, 1, 131072), "stages": (StageSpec(dilation=64),)}, "at dilation 64 does not fit"),
        ({"stages": (StageSpec(dilation=5000),)}, "at dilation 5000 does not fit"),
        ({"shape": (1, 32, 1, 32), "stages": (StageSpec(dilation=4017),)}, "at dilation 4017 does not fit"),
        (
            {"shape": (1, 32, 1, 32), "stages": (StageSpec(dilation=4017),), "needs_grad": False},
            "at dilation 4017 does not fit",
        ),
    ],
)
def test_supports(standin: CudaBackend, changes: dict[str, Any], words: str | None) -> None:
    reason = standin.supports(problem(**changes))
    assert reason is None if words is None else reason is not None and words in reason


BLOCK = (StageSpec(), StageSpec(skip=0))
BLOCKS = (*BLOCK, StageSpec(), StageSpec(skip=2))


def dilated(stages: tuple[StageSpec, ...], dilation: int) -> tuple[StageSpec, ...]:
    return tuple(stage._replace(dilation=dilation) for stage in stages)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({}, None),
        ({"shape": (128, 64, 28, 28)}, None),
        ({"shape": (2, 80, 8, 8)}, "64 channels"),
        ({"shape": (2, 64, 32, 32)}, "816 positions"),
        ({"shape": (1, 32, 1, 32), "stages": (StageSpec(dilation=4017),)}, "exceed the shared memory"),
        ({"shape": (1, 32, 1, 32), "stages": (StageSpec(dilation=46000),)}, "exceed the shared memory"),
        ({"tied": False}, "tied"),
        ({"stages": (StageSpec(), StageSpec())}, "one convolution"),
        ({"stages": (StageSpec(norm=True),)}, "BatchNorm"),
    ],
)
def test_which_maps_stay_in_shared_memory(standin: CudaBackend, changes: dict[str, Any], words: str | None) -> None:
    reason = standin.kernels.not_resident(problem(**changes))
    assert reason is None if words is None else reason is not None and words in reason


def test_real_backend_says_what_it_needs() -> None:
    reason = BACKEND.unavailable()
    if reason is not None:
        assert "sm_90" in reason or "_cuda.so" in reason
    chosen = dispatch.choose(problem(dtype=torch.bfloat16), "auto")
    assert chosen.backend != "cuda" and chosen.reasons["cuda"]


def test_operator_names_what_was_wrong(standin: CudaBackend) -> None:
    ops = standin.kernels.ops
    x = torch.zeros(1, 16, 4, 4, dtype=torch.bfloat16).contiguous(memory_format=torch.channels_last)
    packed = ops.cuda_pack(torch.zeros(16, 16, 3, 3, dtype=torch.bfloat16), 64, False)

    def conv(state: Tensor, weights: Tensor, out: Tensor, bias: Tensor | None = None) -> None:
        ops.cuda_conv(state, weights, bias, None, None, None, None, None, 1, True, 3, out, None)

    conv(x, packed, torch.empty_like(x))
    with pytest.raises(RuntimeError, match="channels_last"):
        conv(x.contiguous(), packed, torch.empty_like(x))
    with pytest.raises(RuntimeError, match=r"output of shape \[1, 16, 4, 4\]"):
        conv(x, packed, torch.empty_like(x)[:, :, :2])
    with pytest.raises(RuntimeError, match="weights from cuda_pack for 16 channels"):
        conv(x, packed.float(), torch.empty_like(x))
    with pytest.raises(RuntimeError, match="bias as 16 contiguous float32 values"):
        conv(x, packed, torch.empty_like(x), torch.zeros(16, dtype=torch.bfloat16))
    with pytest.raises(RuntimeError, match=r"shape \(C, C, 3, 3\)"):
        ops.cuda_pack(torch.zeros(16, 32, 3, 3), 64, False)
    with pytest.raises(RuntimeError, match="ascending iterations"):
        ops.cuda_resident(x, packed, None, None, [], [], 1, True, 2, [1, 0], 3, None, torch.empty_like(x))
    wide = x.new_zeros(1, 16, 1, 323).contiguous(memory_format=torch.channels_last)
    with pytest.raises(RuntimeError, match="width 323 at dilation 1 does not fit"):
        ops.cuda_weight_gradient([wide], [wide], 1, False, 3, torch.empty(3, 1, 1, 9, 64, 64))


def test_nothing_is_written_but_the_output(chosen: None) -> None:
    torch.manual_seed(0)
    module = C(32, 3, backend="cuda").bfloat16()
    x = torch.randn(2, 32, 6, 5).bfloat16()
    before = [t.clone() for t in (x, *module.parameters())]
    x.requires_grad_()
    y = module(x)
    upstream = torch.randn_like(y)
    kept = upstream.clone()
    y.backward(upstream)
    assert all(torch.equal(a.detach(), b) for a, b in zip((x, *module.parameters()), before, strict=True))
    assert torch.equal(upstream, kept)


def test_same_bits_twice_and_with_recomputation(chosen: None) -> None:
    torch.manual_seed(0)
    module = C(32, 6, backend="cuda").bfloat16()
    x = torch.randn(3, 32, 6, 5).bfloat16()
    first = step(module, x)
    for schedule in ("none", "sqrt", 1):
        module.checkpoint = schedule
        again = step(module, x)
        assert torch.equal(first["output"], again["output"]), schedule
        # runs of other lengths add the weight gradient up in another order
        names = ["output", "input gradient"] if schedule != "none" else list(first)
        assert all(torch.equal(first[name], again[name]) for name in names), schedule


def test_misaligned_state_is_copied(chosen: None) -> None:
    module = C(16, 2, backend="cuda").bfloat16()
    storage = torch.randn(2 * 16 * 20 + 1).bfloat16()
    x = storage[1:].view(2, 4, 5, 16).permute(0, 3, 1, 2)
    with torch.no_grad():
        assert torch.equal(module(x), module(x.clone()))


class Idle:
    """The stand-in's operators, but launches compute nothing: what is held does not depend on what is computed."""

    LAUNCHES = ("cuda_conv", "cuda_resident", "cuda_residual", "cuda_rollout", "cuda_weight_gradient")

    def __getattr__(self, name: str) -> Any:
        if name in self.LAUNCHES:
            return lambda *arguments: None
        return getattr(getattr(torch.ops, cuda_build.NAMESPACE), name)


HELD: list[tuple[type, int, Any, dict[str, Any]]] = [
    (C, 3, 2, {}),
    (C, 9, "none", {}),
    (C, 2, 0, {"tied": False, "dilation": 2}),
    (C, 9, "none", {"norm": "batch"}),
    (C, 2, 0, {"norm": "batch", "dilation": 2, "bias": True}),
    (R, 5, 2, {"bias": True}),
    (R, 9, "none", {"bias": True}),
    (R, 5, "sqrt", {"recall": True, "dilation": 2}),
]


@pytest.mark.usefixtures("chosen")
@pytest.mark.parametrize("cls,n,checkpoint,kw", HELD)
@pytest.mark.parametrize("form", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("inject", [False, True])
def test_memory_is_within_the_plan(
    monkeypatch: pytest.MonkeyPatch, cls: type, n: int, checkpoint: Any, kw: dict[str, Any], form: Any, inject: bool
) -> None:
    inject = inject or "recall" in kw
    monkeypatch.setattr(Kernels, "ops", property(lambda self: Idle()))
    module = cls(64, n, **kw, checkpoint=checkpoint, backend="cuda", dtype=torch.bfloat16)
    x = torch.randn(8, 64, 24, 24).to(torch.bfloat16).to(memory_format=form)
    u = x.clone().requires_grad_() if inject else None
    held, size = held_maps(module, x, u), x.numel() * x.element_size()
    planned = rdk.plan(module, x.shape, inject=inject).bytes_peak / size
    # the room: copies of contiguous maps, and for a norm without the inject's gradient what eager's steps would hold
    assert held <= planned <= held + 12.0
