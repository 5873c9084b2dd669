"""Which backend runs a call: requests, refusals with reasons, measurements, and what explain and plan say of it."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import rdk
from rdk import arguments, dispatch, env, measured
from rdk.backends.base import Problem
from rdk.backends.cpu import BACKEND as CPU_BACKEND

X = torch.randn(2, 4, 5, 5)


def problem(module: Any, x: torch.Tensor) -> Problem:
    call = arguments.prepare(x, module.functional_stages(), module.iterations, 0, None, False, "none", None, "test")
    return rdk.functional.problem_of(call)


def missing_backend() -> tuple[str, str]:
    """A backend that this machine lacks, and why."""
    return next((name, reason) for name, reason in rdk.backends().items() if reason is not True)


def test_every_backend_is_listed_with_its_reason() -> None:
    found = rdk.backends()
    assert list(found) == ["eager", "cpu", "triton", "cuda"] and found["eager"] is True
    assert all(reason is True or (isinstance(reason, str) and len(reason) > 10) for reason in found.values())


def test_a_backend_that_is_not_available_names_the_reason() -> None:
    name, reason = missing_backend()
    with pytest.raises(rdk.BackendError) as caught, rdk.use_backend(name):
        pass
    assert str(reason) in str(caught.value)
    with pytest.raises(rdk.BackendError) as caught:
        rdk.RecurrentConv(4, 3, backend=name)(X)
    assert str(reason) in str(caught.value)


def test_use_backend_holds_inside_the_block_only() -> None:
    module = rdk.RecurrentConv(4, 3, checkpoint=1)
    with rdk.use_backend("eager"):
        assert dispatch.requested() == "eager" and dispatch.requested("cpu") == "cpu"
        assert rdk.explain(module, X).reasons["cpu"] == "backend 'eager' was asked for"
        with rdk.use_backend("auto"):
            assert dispatch.requested() == "auto"
        assert dispatch.requested() == "eager"
    assert dispatch.requested() == "auto"
    with pytest.raises(ValueError, match="unknown backend 'numpy'"), rdk.use_backend("numpy"):
        pass
    with pytest.raises(ZeroDivisionError), rdk.use_backend("eager"):
        raise ZeroDivisionError
    assert dispatch.requested() == "auto"


def test_explain_says_what_would_run_and_why_not_the_rest() -> None:
    module = rdk.RecurrentConv(4, 3, backend="eager")
    shown = rdk.explain(module, X)
    assert shown.forward == shown.backward == "eager (plain autograd)"
    assert set(shown.reasons) == {"cpu", "triton", "cuda"}
    assert "not cuda: " in str(shown)
    module.checkpoint = 1
    assert rdk.explain(module, X).backward == "eager"
    with torch.no_grad():
        assert rdk.explain(module, X).backward.startswith("none")
    with pytest.raises(ValueError, match="the input has 3 channels"):
        rdk.explain(module, torch.randn(2, 3, 5, 5))
    with pytest.raises(TypeError, match="expected an rdk module, got Conv2d"):
        rdk.explain(torch.nn.Conv2d(1, 1, 3), X)  # type: ignore[arg-type]


def test_plan_says_what_a_step_keeps() -> None:
    module = rdk.RecurrentResidual(8, 10, backend="eager")
    size = 4 * 8 * 6 * 6 * 4
    none = rdk.plan(module, (4, 8, 6, 6))
    assert none.bytes_kept == 39 * size and none.recompute == 0.0
    three = rdk.plan(module, (4, 8, 6, 6), checkpoint=3)
    assert three.bytes_kept == 3 * size and three.states == (3, 6, 8) and three.recompute > 0
    assert "3 iterations" not in str(three) and "recomputation" in str(three)
    half = rdk.plan(module, (4, 8, 6, 6), torch.bfloat16, checkpoint=3)
    assert half.bytes_kept == three.bytes_kept / 2
    budget = rdk.plan(module, (4, 8, 6, 6), memory_budget=three.bytes_peak)
    assert budget.bytes_peak <= three.bytes_peak and budget.recompute <= three.recompute
    with pytest.raises(rdk.BudgetError, match="smallest that fits"):
        rdk.plan(module, (4, 8, 6, 6), memory_budget=100)
    with pytest.raises(ValueError, match="the input has 3 channels"):
        rdk.plan(module, (4, 3, 6, 6))
    assert rdk.plan(module, (4, 8, 6, 6), iterations=0).bytes_kept == 0
    # a plan takes no memory, whatever the shape
    assert rdk.plan(module, (100_000, 8, 1000, 1000), checkpoint="sqrt").bytes_kept > 10**12


def table(speedup: float, **changes: Any) -> dict[str, Any]:
    record = {
        "kind": "conv", "pass": "training", "dtype": "float32", "precision": "fast", "channels": 4, "height": 5,
        "width": 5, "batch": 2, "iterations": 3, "stages": 1, "speedup": speedup,
    }  # fmt: skip
    device = measured.device_name(torch.device("cpu"))
    return {"format": 1, "backend": "cpu", "device": device, "measured_on": {}, "records": [record | changes]}


def test_the_nearest_measurement_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    p = problem(rdk.RecurrentConv(4, 3), X)
    monkeypatch.setattr(measured, "tables", lambda: [table(2.0)])
    assert measured.slower_than_eager("cpu", p) is None
    monkeypatch.setattr(measured, "tables", lambda: [table(0.8)])
    assert "eager was faster (0.80 times)" in str(measured.slower_than_eager("cpu", p))
    monkeypatch.setattr(measured, "tables", lambda: [table(2.0, channels=4096)])
    assert "no problem near this one" in str(measured.slower_than_eager("cpu", p))
    monkeypatch.setattr(measured, "tables", lambda: [table(2.0, dtype="float64")])
    assert "no problem near this one" in str(measured.slower_than_eager("cpu", p))
    monkeypatch.setattr(measured, "tables", list)
    assert "nobody has measured it" in str(measured.slower_than_eager("cpu", p))


@pytest.mark.parametrize(
    "nearer,farther",
    [
        ({"channels": 8}, {"iterations": 5}),  # half a doubling, and log2 of 5/3
        ({"channels": 16}, {"batch": 5}),
        ({"batch": 1}, {"batch": 4}),  # fewer pixels were measured than are asked, and more
        ({"iterations": 5}, {"batch": 3}),
    ],
)
def test_how_far_records_are(nearer: dict[str, Any], farther: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    p = problem(rdk.RecurrentConv(4, 3), X)
    for speedup in (0.8, 2.0):
        near, far = table(speedup, **nearer), table(1.0 if speedup < 1 else 0.9, **farther)
        near["records"] += far["records"]
        monkeypatch.setattr(measured, "tables", lambda found=near: [found])
        assert (measured.slower_than_eager("cpu", p) is None) == (speedup > 1)


@pytest.mark.parametrize("shape", [(200_000, 4, 5, 5), (1, 4, 2_000, 2_000), (2, 4, 5, 5)])
def test_more_work_than_was_measured_is_known(shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measured, "tables", lambda: [table(2.0)])
    p = problem(rdk.RecurrentConv(4, 3), torch.empty(1).expand(shape))
    assert measured.slower_than_eager("cpu", p) is None
    assert measured.slower_than_eager("cpu", replace(p, iterations=10_000)) is None
    monkeypatch.setattr(measured, "tables", lambda: [table(2.0, batch=10_000)])
    few = problem(rdk.RecurrentConv(4, 3), torch.empty(1).expand(2, 4, 5, 5))
    assert "no problem near this one" in str(measured.slower_than_eager("cpu", few))


def test_few_channels_are_not_what_was_measured_of_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measured, "tables", lambda: [table(2.0, channels=16)])
    state = torch.randn(2, 8, 5, 5)
    answers = [measured.slower_than_eager("cpu", problem(rdk.RecurrentConv(c, 3), state[:, :c])) for c in (7, 8)]
    assert "no problem near this one" in str(answers[0]) and answers[1] is None


def test_a_caller_is_answered_by_the_eager_that_he_would_get(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eager in the caller's own layout runs where a backend is not chosen, not eager in its faster one."""
    found = table(0.8, layout="contiguous", speedup_in_layout=1.2)
    monkeypatch.setattr(measured, "tables", lambda: [found])
    p = problem(rdk.RecurrentConv(4, 3), X)
    assert measured.slower_than_eager("cpu", p, "contiguous") is None
    for layout in ("channels_last", "any"):
        assert "eager was faster (0.80 times)" in str(measured.slower_than_eager("cpu", p, layout))
    monkeypatch.setattr(dispatch, "choose", dispatch.choose.__wrapped__)  # nothing of this table is remembered
    module, state = rdk.RecurrentConv(4, 3), torch.randn(2, 4, 5, 5)
    assert rdk.explain(module, state).forward == "cpu" and rdk.plan(module, state.shape).backend == "cpu"
    assert rdk.explain(module, state.to(memory_format=torch.channels_last)).forward.startswith("eager")


def test_records_of_residual_networks_speak_for_residual_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    residual = table(2.0, kind="residual", stages=4)
    both = residual | {"records": [*residual["records"], *table(0.8)["records"]]}
    monkeypatch.setattr(measured, "tables", lambda: [both])
    assert measured.slower_than_eager("cpu", problem(rdk.RecurrentResidual(4, 3), X)) is None
    assert "0.80 times" in str(measured.slower_than_eager("cpu", problem(rdk.RecurrentConv(4, 3), X)))
    line = problem(rdk.RecurrentLinear(4, 3), torch.randn(2, 4))
    assert "no problem near this one" in str(measured.slower_than_eager("cpu", line))
    monkeypatch.setattr(measured, "tables", lambda: [table(2.0, kind="linear", height=1, width=1)])
    assert measured.slower_than_eager("cpu", line) is None
    assert "no problem near" in str(measured.slower_than_eager("cpu", problem(rdk.RecurrentConv(4, 3), X)))


def test_of_equally_near_records_the_geometric_mean_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    p = problem(rdk.RecurrentConv(4, 4), X)
    found = table(0.5, iterations=2)
    found["records"] += [*table(1.9, iterations=8)["records"], *table(0.1, iterations=64)["records"]]
    monkeypatch.setattr(measured, "tables", lambda: [found])
    reason = str(measured.slower_than_eager("cpu", p))
    assert "and 1 as near" in reason and "eager was faster (0.97 times)" in reason
    found["records"][1]["speedup"] = 2.1
    assert measured.slower_than_eager("cpu", p) is None


def test_a_batch_of_small_maps_is_near_one_large_map_of_as_many_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    p = problem(rdk.RecurrentConv(4, 3), torch.randn(4, 4, 16, 16).requires_grad_())
    found = table(0.6, height=13, width=13, batch=1)
    found["records"] += table(2.0, height=32, width=32, batch=1)["records"]
    monkeypatch.setattr(measured, "tables", lambda: [found])
    assert measured.slower_than_eager("cpu", p) is None
    found["records"] += table(0.7, height=16, width=16, batch=4)["records"]
    assert "16x16, batch 4" in str(measured.slower_than_eager("cpu", p))


def test_iterations_beyond_the_most_measured_count_as_the_most(monkeypatch: pytest.MonkeyPatch) -> None:
    found = table(0.6, iterations=1)
    found["records"] += table(2.0, iterations=20)["records"]
    monkeypatch.setattr(measured, "tables", lambda: [found])
    assert measured.slower_than_eager("cpu", problem(rdk.RecurrentConv(4, 100_000), X)) is None
    assert "0.60 times" in str(measured.slower_than_eager("cpu", problem(rdk.RecurrentConv(4, 2), X)))


def test_rows_that_triton_loads_in_vectors_do_not_speak_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """304 channels of float32 are whole vectors of 16 bytes, 301 are not."""
    monkeypatch.setattr(measured, "device_name", lambda device: "a card")
    for backend, near in (("triton", False), ("cpu", True)):
        found = table(2.0, channels=304) | {"backend": backend, "device": "a card"}
        monkeypatch.setattr(measured, "tables", lambda found=found: [found])
        asked = problem(rdk.RecurrentConv(301, 3), torch.randn(2, 301, 5, 5))
        assert (measured.slower_than_eager(backend, asked) is None) == near
        found["records"] += table(2.0, channels=299)["records"]
        assert measured.slower_than_eager(backend, asked) is None


def test_a_table_of_one_instruction_set_does_not_speak_for_another(monkeypatch: pytest.MonkeyPatch) -> None:
    p = problem(rdk.RecurrentConv(4, 3), X)
    tables = {name: table(speedup) | {"device": f"cpu {name}"} for name, speedup in (("avx512", 2.0), ("avx2", 0.8))}
    cpu = torch.device("cpu")
    try:
        for name, other in (("avx2", "avx512"), ("avx512", "avx2")):
            monkeypatch.setenv("RDK_CPU_ISA", name)
            measured.device_name.cache_clear()
            assert measured.device_name(cpu) == f"cpu {name}"
            monkeypatch.setattr(measured, "tables", lambda: list(tables.values()))
            expected = "eager was faster (0.80 times)" if name == "avx2" else "None"
            assert expected in str(measured.slower_than_eager("cpu", p))
            monkeypatch.setattr(measured, "tables", lambda other=other: [tables[other]])
            assert measured.slower_than_eager("cpu", p) == f"nobody has measured it on 'cpu {name}'"
        for name in ("auto", "none"):
            monkeypatch.setenv("RDK_CPU_ISA", name)
            measured.device_name.cache_clear()
            assert measured.device_name(cpu) == f"cpu {torch.backends.cpu.get_cpu_capability().lower()}"
    finally:
        measured.device_name.cache_clear()


def test_the_table_of_the_processor_at_hand_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processors of one instruction set differ in where eager wins; one that nobody has measured is answered by all of them."""
    p = problem(rdk.RecurrentConv(4, 3), X)
    slow, quick = (
        table(speedup) | {"measured_on": {"hardware": hardware}} for speedup, hardware in ((0.4, "A"), (2.0, "B"))
    )
    for tables in ([slow, quick], [quick, slow]):
        monkeypatch.setattr(measured, "tables", lambda tables=tables: tables)
        for hardware, expected in (
            ("A", "(0.40 times)"),
            ("B", "None"),
            ("C", "and 1 as near) eager was faster (0.89"),
        ):
            monkeypatch.setattr(measured, "hardware_name", lambda device, hardware=hardware: hardware)
            assert expected in str(measured.slower_than_eager("cpu", p)), hardware
    monkeypatch.setattr(measured, "tables", lambda: [slow | {"device": "cpu of another kind"}, quick])
    monkeypatch.setattr(measured, "hardware_name", lambda device: "A")  # its only table is of another instruction set
    assert measured.slower_than_eager("cpu", p) is None


def test_hardware_has_a_name_on_any_system(monkeypatch: pytest.MonkeyPatch) -> None:
    ask = measured.hardware_name.__wrapped__
    assert ask(torch.device("cpu")) == measured.hardware_name(torch.device("cpu")) != ""
    assert ask(torch.device("meta")) == "meta"
    monkeypatch.setattr(measured, "open", lambda *a, **kw: io.StringIO("processor : 0\n"), raising=False)  # as on Arm
    assert ask(torch.device("cpu")) == (platform.processor() or platform.machine())


def test_shipped_measurements_have_the_one_format() -> None:
    folder = Path(str(measured.__file__)).parent
    assert len(measured.tables()) == len(list(folder.glob("*.json")))
    for shipped in measured.tables():
        assert shipped["backend"] in dispatch.NAMES and shipped["measured_on"]["commit"]
        assert shipped["measured_on"]["hardware"] and shipped["measured_on"]["finished"] is True
        for record in shipped["records"]:
            assert record["speedup"] > 0 and record["pass"] in ("forward", "training")


def test_the_cpu_backend_takes_no_tensors_of_another_device() -> None:
    """It would read their addresses on the host."""
    here = problem(rdk.RecurrentConv(4, 3), X)
    for device in (torch.device("cuda", 0), torch.device("meta")):
        assert f"the state is on {device}" in str(CPU_BACKEND.supports(dataclasses.replace(here, device=device)))


@pytest.mark.usefixtures("decided_anew")
def test_one_convolution_alone_is_plain_where_no_record_shows_a_gain(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such a call decides nothing; what it passes by must be slower in every shipped table, and a second use may gain."""
    passed_by = 0
    for shipped in measured.tables():
        for record in shipped["records"]:
            size = record["channels"] ** 2 * 9 * record["height"] * record["width"] * record["batch"]
            single = record["kind"] == "conv" and record["iterations"] * record["stages"] * record["batch"] == 1
            if shipped["backend"] == "cpu" and single and size < dispatch.TINY_SINGLE_PRODUCTS:
                passed_by += 1
                assert record["speedup"] < 1, record
    assert passed_by > 20
    state = torch.randn(1, 48, 7, 7)
    for iterations, images, asked in ((1, 1, 0), (2, 1, 1), (1, 2, 1)):
        calls: list[object] = []
        monkeypatch.setattr(
            dispatch, "choose", lambda *a, calls=calls: calls.append(a) or dispatch.Decision("eager", {})
        )
        rdk.RecurrentConv(48, iterations)(state.expand(images, -1, -1, -1))
        assert len(calls) == asked, (iterations, images)


def run_python(code: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | variables
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=120)


def test_environment_variables() -> None:
    code = (
        "import rdk, rdk.dispatch as d, torch; print(d.requested(), d.precision_of(torch.device('cpu'), torch.float32))"
    )
    shown = run_python(code, RDK_BACKEND="eager", RDK_CPU_PRECISION="accurate")
    assert shown.stdout.split() == ["eager", "accurate"]
    wrong = run_python("import rdk", RDK_BACKEND="numpy")
    assert wrong.returncode and "RDK_BACKEND is 'numpy'; expected one of auto, eager" in wrong.stderr


def test_only_env_reads_the_environment() -> None:
    package = Path(rdk.__file__).parent
    readers = [f.name for f in package.rglob("*.py") if "os.environ" in f.read_text() and "RDK_" in f.read_text()]
    assert readers == ["env.py"]
    assert all(name.startswith("RDK_") for name in env.VARIABLES)


def test_cpu_precision() -> None:
    before = dispatch._cpu_precision
    try:
        for word in ("accurate", "exact", "fast"):
            rdk.set_cpu_precision(word)
            assert problem(rdk.RecurrentConv(4, 3), X).precision == word
        with pytest.raises(ValueError, match="unknown cpu precision 'best'"):
            rdk.set_cpu_precision("best")
    finally:
        rdk.set_cpu_precision(before)


CUDA = torch.device("cuda", 0)


@pytest.fixture
def switches() -> Iterator[Any]:
    """PyTorch's switches for float32, put back afterwards."""
    owners = (torch.backends, torch.backends.cudnn, torch.backends.cudnn.conv, torch.backends.cuda.matmul)
    before = [owner.fp32_precision for owner in owners]
    yield torch.backends
    for owner, word in zip(owners, before, strict=True):
        owner.fp32_precision = word


def test_float32_on_cuda_follows_the_switch_of_its_layer(switches: Any) -> None:
    for conv, matmul, expected in (("tf32", "ieee", ("tf32", "ieee")), ("ieee", "tf32", ("ieee", "tf32"))):
        switches.cudnn.conv.fp32_precision, switches.cuda.matmul.fp32_precision = conv, matmul
        assert tuple(dispatch.precision_of(CUDA, torch.float32, kind) for kind in ("conv", "linear")) == expected
    switches.cuda.matmul.fp32_precision = "none"  # as PyTorch starts: the switch above it decides
    for above, expected in (("none", "ieee"), ("tf32", "tf32"), ("ieee", "ieee")):
        switches.fp32_precision = above
        assert dispatch.precision_of(CUDA, torch.float32, "linear") == expected
    assert dispatch.precision_of(CUDA, torch.bfloat16, "linear") == "exact"


@pytest.mark.parametrize(
    "cls, shape, kind", [(rdk.RecurrentConv, (2, 8, 9, 9), "conv"), (rdk.RecurrentLinear, (2, 8), "linear")]
)
def test_a_call_on_cuda_asks_for_its_kind_of_layer_and_can_be_traced(
    monkeypatch: pytest.MonkeyPatch, cls: Any, shape: tuple[int, ...], kind: str
) -> None:
    """Without a GPU: the call of a CPU state is given the answer for a CUDA one."""
    real, module = dispatch.precision_of, cls(8, 2, backend="eager", checkpoint=1)
    asked: list[str] = []

    def as_on_cuda(device: torch.device, dtype: torch.dtype, kind: str) -> str:
        asked.append(kind)
        return "exact" if real(CUDA, dtype, kind) in ("tf32", "ieee") else "never"

    monkeypatch.setattr(dispatch, "precision_of", as_on_cuda)
    torch._dynamo.reset()
    x = torch.randn(shape)
    torch.testing.assert_close(torch.compile(module, fullgraph=True, backend="aot_eager")(x), module(x))
    rdk.plan(module, shape)
    assert set(asked) == {kind}


def test_records_are_json_a_person_can_read() -> None:
    for file in Path(str(measured.__file__)).parent.glob("*.json"):
        assert json.loads(file.read_text())["format"] == 1
