"""Whole training steps on the triton backend against float64 eager: in the interpreter, or on the GPU where there is one."""

from __future__ import annotations

import copy
import os
import socket
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from memory_cases import held_maps
from torch import Tensor

import rdk
from rdk import arguments, functional, ops
from rdk.backends.base import Call, Store
from rdk.backends.layout import channels_last, empty_maps
from rdk.backends.triton import BACKEND, interpreting, launch
from rdk.testing import UNIT, assert_close, errors, plain_eager, relative, step

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(autouse=True)
def exact_float32() -> Iterator[None]:
    """float32 without TF32, so that one tolerance holds everywhere."""
    before = torch.backends.cudnn.conv.fp32_precision
    torch.backends.cudnn.conv.fp32_precision = "ieee"
    yield
    torch.backends.cudnn.conv.fp32_precision = before


def compare(
    cls: type,
    channels: int,
    iterations: int,
    shape: tuple[int, ...],
    dtype: torch.dtype = torch.float32,
    inject: bool = False,
    call: dict[str, Any] | None = None,
    **kw: Any,
) -> Any:
    """One training step against float64; returns the module."""
    torch.manual_seed(3)
    module = cls(channels, iterations, **kw).to(dtype)
    for (
        norm
    ) in module.modules():  # with a shift of zero, a norm's scale is undone by the next norm: its gradient is rounding
        if isinstance(norm, (torch.nn.BatchNorm1d, torch.nn.BatchNorm2d)):
            torch.nn.init.uniform_(norm.weight, 0.5, 1.5), torch.nn.init.uniform_(norm.bias, 0.2, 0.8)
    x = torch.randn(shape).to(dtype)
    u = torch.randn(shape).to(dtype) if inject else None
    exact = step(plain_eager(module).double(), x.double(), None if u is None else u.double(), **call or {})
    eager = step(plain_eager(module), x, u, **call or {})
    module = module.to(DEVICE)
    module.backend = "triton"
    got = step(module, x.to(DEVICE), None if u is None else u.to(DEVICE), **call or {})
    tolerance = 2e-6 if dtype == torch.float32 else 16 * UNIT[dtype]
    if channels == 1 and dtype == torch.float32:  # one channel's gradients are sums that cancel: eager loses as much
        tolerance = max(tolerance, 2 * max(errors(eager, exact).values()))
    assert_close({name: tensor.cpu() for name, tensor in got.items()}, exact, tolerance)
    return module


C, R, L = rdk.RecurrentConv, rdk.RecurrentResidual, rdk.RecurrentLinear
CASES: list[tuple[type, int, int, tuple[int, ...], dict[str, Any]]] = [
    (C, 3, 3, (2, 3, 5, 3), {"dilation": 2}),
    (C, 5, 4, (1, 5, 2, 3), {"norm": "batch"}),
    (C, 5, 3, (1, 5, 2, 3), {"norm": "batch", "inject": True}),
    (C, 3, 2, (2, 3, 1, 4), {"tied": False, "inject": True, "bias": False}),
    (R, 3, 3, (1, 3, 2, 3), {}),
    (R, 3, 2, (2, 3, 2, 3), {"recall": True, "inject": True, "bias": True, "norm": "batch"}),
    (R, 3, 2, (1, 3, 2, 3), {"recall": True, "inject": True, "blocks": 1, "dilation": [1, 2, 3]}),
    (R, 3, 2, (1, 3, 2, 3), {"norm": "batch", "tied": False, "blocks": 1, "bias": True}),
    (L, 17, 3, (5, 17), {}),
    (L, 5, 3, (2, 3, 5), {"norm": "batch", "tied": False}),
]


@pytest.mark.parametrize("cls,channels,iterations,shape,kw", CASES)
def test_training_step(cls: type, channels: int, iterations: int, shape: tuple[int, ...], kw: dict[str, Any]) -> None:
    compare(cls, channels, iterations, shape, **kw)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_training_step_in_half_types(dtype: torch.dtype) -> None:
    compare(C, 8, 2, (2, 8, 3, 3), dtype)
    compare(R, 4, 1, (2, 4, 3, 3), dtype, blocks=1, norm="batch")


def test_every_state_has_a_gradient() -> None:
    compare(R, 3, 3, (1, 3, 2, 3), call={"return_states": True}, blocks=1)
    compare(C, 3, 3, (2, 3, 2, 3), call={"return_states": True}, norm="batch", checkpoint=0)


@pytest.mark.parametrize("checkpoint", [0, 2])
@pytest.mark.parametrize("kw", [{"bias": True}, {"norm": "batch"}])
def test_schedules_give_the_same(checkpoint: int, kw: dict[str, Any]) -> None:
    compare(R, 3, 4, (1, 3, 2, 3), blocks=1, checkpoint=checkpoint, **kw)


def test_evaluation_uses_running_statistics() -> None:
    torch.manual_seed(3)
    module = R(3, 2, norm="batch", recall=True, bias=True, blocks=1)
    x, u = torch.randn(2, 3, 2, 3), torch.randn(2, 3, 2, 3)
    for _ in range(2):
        module(x, inject=u)
    module.eval()
    exact = step(plain_eager(module).double(), x.double(), u.double())
    module = module.to(DEVICE)
    module.backend = "triton"
    got = step(module, x.to(DEVICE), u.to(DEVICE))
    assert_close({name: tensor.cpu() for name, tensor in got.items()}, exact, 2e-6)
    with torch.no_grad():
        assert torch.equal(module(x.to(DEVICE), inject=u.to(DEVICE)), got["output"])


def call_of(module: Any, x: Tensor) -> Call:
    """The call that a module would pose, with room for its statistics."""
    prepared = arguments.prepare(x, module.functional_stages(), module.iterations, 0, None, False, "none", None, "test")
    problem = replace(functional.problem_of(prepared), device=x.device)
    rows = [[norm.weight for norm in prepared.norms], [norm.bias for norm in prepared.norms]]
    means, variances = ops._statistics(x, len(prepared.norms), [], [])
    return Call(
        problem, None, prepared.weights, prepared.biases, *rows, [norm.eps for norm in prepared.norms], means, variances
    )


@torch.no_grad()
@pytest.mark.parametrize(
    "channels,dtype,precision",
    [
        (3, torch.float32, "ieee"),
        # on a GPU these two run on the tensor cores
        pytest.param(64, torch.bfloat16, "ieee", marks=pytest.mark.gpu)
        if DEVICE.type == "cuda"
        else (20, torch.bfloat16, "ieee"),
        pytest.param(64, torch.float32, "tf32", marks=pytest.mark.gpu),
    ],
)
@pytest.mark.parametrize("cls,kw", [(C, {"norm": "batch"}), (R, {"norm": "batch", "blocks": 1}), (R, {"bias": True})])
def test_states_computed_again_are_equal_bit_for_bit(
    cls: type, kw: dict[str, Any], channels: int, dtype: torch.dtype, precision: str
) -> None:
    torch.manual_seed(3)
    torch.backends.cudnn.conv.fp32_precision = precision  # exact_float32 puts it back
    module = cls(channels, 3, **kw).to(DEVICE, dtype)
    x = channels_last(torch.randn(2, channels, 2, 3, device=DEVICE, dtype=dtype))
    call = call_of(module, x)
    maps = call.problem.tape_maps
    states, tapes = empty_maps(3, x), empty_maps(3 * maps, x)
    recording = Store((1, 2, 3), states, 0, tapes, record_statistics=call.problem.norm)
    assert torch.equal(BACKEND.forward(call, x, 0, 3, recording), states[2])
    again = Call(**{name: getattr(call, name) for name in call.__dataclass_fields__ if name != "prepared"})
    assert torch.equal(BACKEND.forward(again, x, 0, 3, Store()), states[2])
    assert torch.equal(BACKEND.forward(again, states[0].clone(), 1, 3, Store()), states[2])
    for iteration, entering in enumerate([x, states[0], states[1]]):
        tape = empty_maps(maps, x)
        BACKEND.tape(again, entering, iteration, tape)
        assert torch.equal(tape, tapes[iteration * maps : (iteration + 1) * maps])


def test_running_statistics_are_updated_once_per_step() -> None:
    torch.manual_seed(3)
    module = C(3, 2, norm="batch", checkpoint=0).to(DEVICE)
    twin = plain_eager(module)
    module.backend = "triton"
    for _ in range(2):
        x = torch.randn(2, 3, 2, 3, device=DEVICE)
        step(module, x), step(twin, x)
    got, expected = dict(module.named_buffers()), dict(twin.named_buffers())
    for name, buffer in expected.items():
        torch.testing.assert_close(got[name], buffer, rtol=1e-5, atol=1e-6)
    assert got["stages.0.norm.0.num_batches_tracked"] == 2


def test_only_the_gradients_asked_for() -> None:
    torch.manual_seed(3)
    module = R(3, 2, blocks=1, bias=True, norm="batch").to(DEVICE)
    module.stages[0].weight.requires_grad_(False)
    module.stages[1].bias.requires_grad_(False)
    module.stages[1].norm[0].weight.requires_grad_(False)
    twin = plain_eager(module)
    module.backend = "triton"
    x = torch.randn(2, 3, 2, 3, device=DEVICE)
    for m in (module, twin):
        m(x).square().sum().backward()  # x asks for none
    for (name, p), (_, q) in zip(module.named_parameters(), twin.named_parameters(), strict=True):
        assert (p.grad is None) == (q.grad is None), name
        if q.grad is not None and not name.endswith("bias"):
            torch.testing.assert_close(p.grad, q.grad, rtol=1e-4, atol=1e-5)


def test_layouts_of_parameters_and_gradients() -> None:
    """channels_last weights give channels_last gradients (DistributedDataParallel's buckets), and odd strides are taken."""
    torch.manual_seed(3)
    module = C(3, 2).to(DEVICE)
    twin = plain_eager(module)
    module.backend = "triton"
    module.to(memory_format=torch.channels_last)
    x = torch.randn(4, 3, 3, 2, device=DEVICE).transpose(2, 3)[::2].requires_grad_()
    upstream = torch.randn(1, 3, 1, 1, device=DEVICE).expand(2, 3, 2, 3)
    kept = upstream.clone()
    module(x).backward(upstream)
    (grad,) = torch.autograd.grad(twin(x), x, upstream)
    torch.testing.assert_close(x.grad, grad, rtol=1e-5, atol=1e-5)
    assert torch.equal(upstream, kept)
    assert all(p.grad.stride() == p.stride() for p in module.parameters())


def test_steps_are_equal_bit_for_bit() -> None:
    torch.manual_seed(3)
    module = C(5, 3, norm="batch", backend="triton").to(DEVICE)
    x = torch.randn(2, 5, 3, 2, device=DEVICE)
    first, second = step(copy.deepcopy(module), x), step(copy.deepcopy(module), x)
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.skipif(DEVICE.type == "cuda", reason="counts what PyTorch's CPU allocator holds")
def test_the_plan_counts_a_state_built_again_with_the_inject(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a half type, and everything in the other memory layout."""
    monkeypatch.setattr(launch.Launch, "run", lambda self: None)
    module = C(16, 9, norm="batch", backend="triton").to(torch.bfloat16)
    x = torch.randn(1, 16, 20, 32).to(torch.bfloat16)
    planned = rdk.plan(module, x.shape, inject=True).bytes_peak / (x.numel() * x.element_size())
    assert held_maps(module, x, x.clone().requires_grad_()) <= planned


@pytest.mark.skipif(DEVICE.type == "cuda", reason="counts what PyTorch's CPU allocator holds")
@pytest.mark.parametrize("checkpoint", ["none", 1, "sqrt"])
@pytest.mark.parametrize(
    "cls,kw",
    [(R, {}), (R, {"norm": "batch"}), (R, {"recall": True, "norm": "batch"}), (C, {}), (C, {"norm": "batch"}), (L, {})],
)
@pytest.mark.parametrize("inject", [False, True])
def test_memory_is_within_the_plan(
    monkeypatch: pytest.MonkeyPatch, cls: type, kw: dict[str, Any], checkpoint: Any, inject: bool
) -> None:
    monkeypatch.setattr(launch.Launch, "run", lambda self: None)  # what is held does not depend on what is computed
    module = cls(16, 6, **kw, checkpoint=checkpoint, backend="triton")
    x = torch.randn(2 * 40 * 40, 16) if cls is L else channels_last(torch.randn(2, 16, 40, 40))
    u = torch.randn_like(x).requires_grad_() if inject else None
    held, size = held_maps(module, x, u), x.numel() * x.element_size()
    plan = rdk.plan(module, x.shape, inject=inject)
    slack = 8.0 if checkpoint == "none" else 8.0 + BACKEND.workspace_bytes(call_of(module, x).problem) / size
    assert held <= plan.bytes_peak / size <= held + slack


def one_of_two_processes(rank: int, port: int, folder: str) -> None:
    """Half of the batch, in the interpreter; leaves the gradients, which gloo averages, in a file."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    torch.manual_seed(0)
    module = torch.nn.parallel.DistributedDataParallel(C(3, 2, checkpoint=1, backend="triton"))
    x = torch.randn(4, 3, 3, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # "grad strides do not match bucket view strides" is a warning
        module(x[2 * rank : 2 * rank + 2]).square().mean().backward()
    torch.save([p.grad for p in module.parameters()], f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.skipif(not interpreting(), reason="two processes on CPU tensors need Triton's interpreter")
def test_two_processes_give_the_gradients_of_one(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(one_of_two_processes, args=(port, str(tmp_path)), nprocs=2)
    torch.manual_seed(0)
    module = C(3, 2, checkpoint=1, backend="triton")
    x = torch.randn(4, 3, 3, 2)
    exact = plain_eager(module).double()
    for network, dtype in ((module, torch.float32), (exact, torch.float64)):
        network(x.to(dtype)).square().mean().backward()
    parameters = dict(zip(module.parameters(), exact.parameters(), strict=True))
    for rank in range(2):
        for got, (own, reference) in zip(torch.load(tmp_path / f"{rank}.pt"), parameters.items(), strict=True):
            assert relative(got, own.grad) < 1e-6 and relative(got, reference.grad) < 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("cls,kw", [(C, {}), (R, {"checkpoint": 1, "norm": "batch", "blocks": 1})])
def test_compiled_whole(cls: type, kw: dict[str, Any]) -> None:
    torch._dynamo.reset()
    module = cls(3, 3, **kw).to(DEVICE)
    expected = plain_eager(module)
    module.backend = "triton"
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    for batch in (2, 3):
        x = torch.randn(batch, 3, 3, 2, device=DEVICE)
        torch.testing.assert_close(compiled(x), expected(x), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("number, channels", list(enumerate([1, 3, 16, 17, 40])))
@pytest.mark.parametrize("size", [(1, 7), (5, 3), (9, 13)])
@pytest.mark.parametrize(
    "cls,kw",
    [
        (C, {"dilation": 3}),
        (C, {"norm": "batch"}),
        (R, {"recall": True, "inject": True, "blocks": 1}),
        (R, {"norm": "batch", "blocks": 1, "bias": True, "dilation": 2}),
    ],
)
def test_training_step_full_matrix(
    number: int, channels: int, size: tuple[int, int], cls: type, kw: dict[str, Any]
) -> None:
    batch = 1 if (number + size[0] // 4) % 2 else 3  # each with some of the channels on some of the maps
    compare(cls, channels, 2, (batch, channels, *size), **kw)
