"""The two operators as PyTorch sees them: opcheck, torch.compile, autocast, double backward, several processes."""

from __future__ import annotations

import copy
import os
import warnings
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp
from torch import nn
from torch._dynamo import compiled_autograd
from torch._dynamo.testing import CompileCounterWithBackend

import rdk
from rdk import arguments, ops
from rdk.testing import assert_close, plain_eager, relative, step, upstream


@pytest.fixture(autouse=True)
def fresh_dynamo() -> Any:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def operator_arguments(norm: bool, return_states: bool, checkpoint: tuple[str, int], form: Any) -> tuple[Any, ...]:
    """Arguments of recurrent_fwd for a BasicBlock of 5 channels, 4 iterations."""
    channels, iterations, stages = 5, 4, 2
    x = torch.randn(2, channels, 4, 3).to(memory_format=form).requires_grad_()
    inject = torch.randn(2, channels, 4, 3, requires_grad=True)
    weights = [torch.randn(channels, channels, 3, 3, requires_grad=True) for _ in range(stages)]
    biases = [torch.randn(channels, requires_grad=True) for _ in range(stages)]
    rows = iterations * stages if norm else 0
    norms = [[torch.rand(channels, requires_grad=True) for _ in range(rows)] for _ in range(2)]
    numbers = [1, 1, -1, int(norm), 1, 1, 0, int(norm)]
    settings = (iterations, numbers, norm, return_states, *checkpoint, "eager", "exact", 1)
    return (x, inject, weights, biases, *norms, [1e-5] * rows, *settings, [], [], True)


@pytest.mark.parametrize("form", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("return_states", [False, True])
@pytest.mark.parametrize("checkpoint", [("none", 0), ("states", 2), ("sqrt", 0), ("budget", 10**7)])
def test_opcheck(form: Any, norm: bool, return_states: bool, checkpoint: tuple[str, int]) -> None:
    arguments = operator_arguments(norm, return_states, checkpoint, form)
    torch.library.opcheck(torch.ops.rdk.recurrent_fwd.default, arguments)
    out, kept, means, variances = torch.ops.rdk.recurrent_fwd(*arguments)

    def detach(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return value.detach()
        return [detach(v) for v in value] if isinstance(value, list) else value

    x, *rest = [detach(argument) for argument in arguments[:-3]]
    needs = [True] * (2 + sum(len(part) for part in rest[1:5]))
    backward = (torch.randn_like(out), x, out.detach(), kept, means, variances, *rest, needs)
    torch.library.opcheck(
        torch.ops.rdk.recurrent_bwd.default,
        backward,
        test_utils=("test_schema", "test_faketensor", "test_aot_dispatch_dynamic"),
    )


def test_kept_is_not_differentiable_and_out_is_no_view() -> None:
    out, kept, means, variances = torch.ops.rdk.recurrent_fwd(
        *operator_arguments(True, False, ("states", 2), torch.contiguous_format)
    )
    assert out.requires_grad and not any(t.requires_grad for t in (kept, means, variances))
    assert out.untyped_storage().data_ptr() != kept.untyped_storage().data_ptr()


SWEEP = [(2, 3), (4, 5), (8, 10), (3, 50), (5, 7), (16, 2), (1, 4), (4, 1), (1, 1), (2, 0)]


@pytest.mark.parametrize(
    "cls,kw",
    [
        (rdk.RecurrentConv, {}),
        (rdk.RecurrentConv, {"checkpoint": "sqrt"}),
        (rdk.RecurrentResidual, {"checkpoint": 3}),
        (rdk.RecurrentResidual, {"memory_budget": 10**7, "recall": True}),
        (rdk.RecurrentLinear, {}),
    ],
)
def test_three_graphs_serve_any_batch_and_any_number_of_iterations(cls: type, kw: dict[str, Any]) -> None:
    module = cls(4, 5, **kw).double()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(module, fullgraph=True, backend=counter)
    for batch, n in SWEEP:
        shape = (batch, 4) if cls is rdk.RecurrentLinear else (batch, 4, 6, 5)
        x = torch.randn(shape, dtype=torch.float64)
        got, expected = step(compiled, x, iterations=n), prefixed(step(plain_eager(module), x, iterations=n))
        if n == 0:  # eager's parameters took no part and have no gradient; the operator's have zeros
            got = {name: got[name] for name in expected}
        assert_close(got, expected, 1e-11)
    assert counter.frame_count <= 3


def prefixed(found: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Names as torch.compile's wrapper gives them."""
    return {
        name.replace("gradient of ", "gradient of _orig_mod.").replace("buffer ", "buffer _orig_mod."): tensor
        for name, tensor in found.items()
    }


@pytest.mark.parametrize("kw", [{"norm": "batch"}, {"tied": False}, {"norm": "batch", "checkpoint": 2}])
def test_norm_and_untied_compile_whole_with_one_graph_per_n(kw: dict[str, Any]) -> None:
    module = rdk.RecurrentResidual(4, 5, **kw).double()
    twin = plain_eager(module)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(module, fullgraph=True, backend=counter)
    for batch, n in [(2, 3), (4, 3), (3, 3), (4, 5), (6, 5)]:
        x = torch.randn(batch, 4, 6, 5, dtype=torch.float64)
        assert_close(step(compiled, x, iterations=n), prefixed(step(twin, x, iterations=n)), 1e-11)
    assert counter.frame_count <= 4  # one static, then one per n for any batch


@pytest.mark.slow
@pytest.mark.parametrize("cls,kw", [(rdk.RecurrentConv, {}), (rdk.RecurrentResidual, {"checkpoint": "sqrt"})])
def test_inductor_runs_the_operators(cls: type, kw: dict[str, Any]) -> None:
    module = cls(4, 5, **kw)
    compiled = torch.compile(module, fullgraph=True)
    for batch, n in [(2, 3), (3, 6), (4, 9)]:
        x = torch.randn(batch, 4, 6, 5)
        assert_close(step(compiled, x, iterations=n), prefixed(step(module, x, iterations=n)), 1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("checkpoint", ["auto", 2])
@pytest.mark.parametrize("kw", [{}, {"norm": "batch"}, {"recall": True}])
def test_autocast_forward_and_backward(dtype: torch.dtype, checkpoint: Any, kw: dict[str, Any]) -> None:
    torch.manual_seed(0)
    module = rdk.RecurrentResidual(8, 4, **kw, checkpoint=checkpoint, backend="eager")
    x, inject = torch.randn(2, 8, 6, 5), torch.randn(2, 8, 6, 5)
    exact = step(copy.deepcopy(plain_eager(module)).double(), x.double(), inject.double())
    leaf, other = x.clone().requires_grad_(), inject.clone().requires_grad_()
    with torch.autocast("cpu", dtype=dtype):
        y = module(leaf, inject=other)
        conv = nn.functional.conv2d(x, module.stages[0].weight)
    assert y.dtype == conv.dtype == dtype
    y.backward(upstream(y.shape, y.dtype))
    unit = 2.0**-8 if dtype == torch.bfloat16 else 2.0**-11
    assert relative(y, exact["output"]) < 8 * unit
    for got, name in [(leaf.grad, "input gradient"), (other.grad, "inject gradient")]:
        assert got.dtype == torch.float32
        assert relative(got, exact[name]) < 0.2  # masks flip at this precision: only gross faults show here
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in module.parameters())


def test_autocast_leaves_float64_alone() -> None:
    module = rdk.RecurrentConv(4, 3).double()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert module(torch.randn(1, 4, 5, 5, dtype=torch.float64)).dtype == torch.float64


def test_autocast_under_compile() -> None:
    module = rdk.RecurrentConv(4, 3, checkpoint=1)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    x = torch.randn(2, 4, 5, 5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, expected = compiled(x), module(x)
    assert y.dtype == torch.bfloat16 and relative(y, expected) < 1e-2


@pytest.mark.parametrize("module", [rdk.RecurrentConv(4, 3, checkpoint=1), rdk.RecurrentLinear(4, 3)])
def test_autocast_of_no_iterations_gives_its_dtype_compiled_or_not(module: Any) -> None:
    x = torch.randn(2, 4, 5, 5).transpose(1, -1) if isinstance(module, rdk.RecurrentLinear) else torch.randn(2, 4, 5, 5)
    x = x[..., :4] if isinstance(module, rdk.RecurrentLinear) else x
    compiled = torch.compile(module, backend="aot_eager", dynamic=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for run in (module, compiled):
            assert run(x, iterations=0).dtype == torch.bfloat16 and run(x, iterations=0).shape == x.shape
            assert run(x, iterations=0, return_states=True).dtype == torch.bfloat16
    assert module(x, iterations=0) is x


@pytest.mark.slow
def test_compiled_autograd_traces_a_backward_whole() -> None:
    module, x = rdk.RecurrentConv(4, 3, checkpoint=1), torch.randn(2, 4, 5, 5)
    expected = step(module, x)
    with compiled_autograd._enable(torch.compile(backend="aot_eager", fullgraph=True)):
        assert_close(step(module, x), expected, 1e-6)


def test_double_backward_names_the_way_that_supports_it() -> None:
    module = rdk.RecurrentConv(4, 5, checkpoint=2, backend="eager")
    x = torch.randn(1, 4, 5, 5, requires_grad=True)
    (grad,) = torch.autograd.grad(module(x).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match='backend="eager", checkpoint="none"'):
        grad.square().sum().backward()
    module.checkpoint = "none"
    (grad,) = torch.autograd.grad(module(x).square().sum(), x, create_graph=True)
    grad.square().sum().backward()
    assert x.grad is not None


def test_no_gradient_keeps_nothing() -> None:
    call = arguments.prepare(
        torch.randn(2, 4, 5, 5), rdk.RecurrentConv(4, 3).requires_grad_(False).functional_stages(),
        3, 0, None, False, "none", None, "test",
    )  # fmt: skip
    assert not call.needs_grad
    given = (call.x, None, call.weights, call.biases, [], [], [], 3, ops.stage_numbers(call.stages))
    _, kept, _, _ = torch.ops.rdk.recurrent_fwd(*given, False, False, "none", 0, "eager", "exact", 1, [], [], False)
    assert kept.shape[0] == 0


def test_no_warning_reaches_the_user() -> None:
    module = rdk.RecurrentConv(4, 5, checkpoint=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        module(torch.randn(1, 4, 5, 5, requires_grad=True)).sum().backward()


def test_anomaly_mode_and_inference_mode() -> None:
    module = rdk.RecurrentConv(4, 5, checkpoint=2, backend="eager")
    x = torch.randn(1, 4, 5, 5)
    with torch.autograd.set_detect_anomaly(True):
        module(x.clone().requires_grad_()).sum().backward()
    with torch.no_grad():
        expected = module(x)
    with torch.inference_mode():
        assert relative(module(x), expected) == 0.0


def one_process(rank: int, port: int, checkpoint: Any, folder: str) -> None:
    """Half of the batch in each of two gloo processes."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    torch.manual_seed(0)
    module = nn.parallel.DistributedDataParallel(
        rdk.RecurrentResidual(4, 5, checkpoint=checkpoint, backend="eager").double()
    )
    x = torch.randn(4, 4, 5, 5, dtype=torch.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # "grad strides do not match bucket view strides" is a warning
        module(x[2 * rank : 2 * rank + 2]).square().mean().backward()
    torch.save([p.grad for p in module.parameters()], f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("checkpoint", ["auto", 2])
def test_two_processes_give_the_gradients_of_one(checkpoint: Any, tmp_path: Any) -> None:
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(one_process, args=(port, checkpoint, str(tmp_path)), nprocs=2)
    torch.manual_seed(0)
    module = rdk.RecurrentResidual(4, 5, checkpoint=checkpoint, backend="eager").double()
    module(torch.randn(4, 4, 5, 5, dtype=torch.float64)).square().mean().backward()
    for rank in range(2):
        for got, parameter in zip(torch.load(tmp_path / f"{rank}.pt"), module.parameters(), strict=True):
            assert relative(got, parameter.grad) < 1e-12


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:FutureWarning")
def test_dynamo_stays_out_of_the_operators_where_it_gave_up_a_frame() -> None:
    """A transform of torch.func around a compiled module makes Dynamo skip Recurrent.forward from then on, and look at every
    Python frame below it, the implementation of an operator among them."""
    x = torch.randn(2, 4, 24, 24)
    torch.func.jvp(torch.compile(rdk.RecurrentConv(4, 3), backend="eager"), (x,), (x,))
    module = rdk.RecurrentConv(4, 5, checkpoint=3)
    graphs: list[torch.fx.GraphModule] = []

    def record(graph: torch.fx.GraphModule, _: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(module, backend=record)
    for batch, n in [(2, 3), (4, 5), (3, 7)]:
        y = torch.randn(batch, 4, 24, 24)
        assert_close(step(compiled, y, iterations=n), prefixed(step(module, y, iterations=n)), 1e-4)
    called = [str(node.target) for graph in graphs for node in graph.graph.nodes if node.op == "call_function"]
    assert not any("conv" in name or "cpu_" in name for name in called), called
