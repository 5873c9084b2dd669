"""Working memory that the cpu backend keeps from call to call: used again, bounded, and of no influence on results."""

from __future__ import annotations

import copy
import gc
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from cpu_cases import needs_cpu_backend, threads

import rdk
from rdk.testing import peak_bytes, step

pytestmark = needs_cpu_backend

MIB = 1 << 20


@pytest.fixture(autouse=True)
def nothing_kept_before() -> Iterator[None]:
    limit = torch.ops.rdk.cpu_keep_scratch(0)
    torch.ops.rdk.cpu_keep_scratch(limit)
    yield
    torch.ops.rdk.cpu_keep_scratch(0)
    torch.ops.rdk.cpu_keep_scratch(limit)


def scratch(floats: int) -> torch.Tensor:
    """So many values of what calls work in: a map of one row."""
    maps: torch.Tensor = torch.ops.rdk.cpu_maps(torch.empty(1).expand(1, 1, 1, floats), 1)
    return maps


def address_of(mib: float) -> int:
    """Where a piece of scratch memory lies that is given back at once."""
    return int(scratch(int(mib * MIB) // 4).data_ptr())


def test_memory_is_used_again_where_it_wastes_no_more_than_a_quarter() -> None:
    first = scratch(8 * MIB // 4)
    place = first.data_ptr()
    assert first.shape == (1, 1, 1, 1, 2 * MIB) and first.dtype == torch.float32 and place % 64 == 0
    del first
    assert address_of(8) == place and address_of(6.1) == place
    held = scratch(5 * MIB // 4)  # too little for that block
    assert held.data_ptr() != place and address_of(8) == place
    taken = scratch(8 * MIB // 4)
    assert taken.data_ptr() == place and address_of(8) != place  # it is in use


def test_the_smallest_that_fits_is_taken() -> None:
    both = [scratch(mib * MIB // 4) for mib in (10, 9)]
    small = both[1].data_ptr()
    del both
    assert address_of(9) == small and address_of(8) == small


def test_no_more_is_kept_than_the_limit() -> None:
    def made(run: Any) -> int:
        """Bytes that PyTorch's allocator handed out less those that came back."""
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
            run()
        return sum(e.nbytes() for e in profile.profiler.kineto_results.events() if e.name() == "[memory]")

    limit = torch.ops.rdk.cpu_keep_scratch(20 * MIB)
    try:

        def three() -> None:
            pieces = [scratch(8 * MIB // 4) for _ in range(3)]
            del pieces[:]

        assert made(three) == 16 * MIB  # the third pushed the first out
        assert made(lambda: address_of(40)) == 0  # more than the limit by itself: it pushes nobody out
        assert made(lambda: torch.ops.rdk.cpu_keep_scratch(10 * MIB)) == -8 * MIB
        assert made(lambda: torch.ops.rdk.cpu_keep_scratch(0)) == -8 * MIB
        assert made(three) == 0
        with pytest.raises(RuntimeError, match="expected 0 or more bytes to keep, got -1"):
            torch.ops.rdk.cpu_keep_scratch(-1)
    finally:
        torch.ops.rdk.cpu_keep_scratch(limit)


@pytest.mark.parametrize("kind,kw", [(rdk.RecurrentConv, {}), (rdk.RecurrentResidual, {"norm": "batch"})])
def test_what_an_earlier_call_left_there_changes_nothing(kind: Any, kw: dict[str, Any]) -> None:
    module, x = kind(112, 2, backend="cpu", **kw), torch.randn(2, 112, 9, 8)
    limit = torch.ops.rdk.cpu_keep_scratch(0)
    fresh = step(copy.deepcopy(module), x)
    torch.ops.rdk.cpu_keep_scratch(limit)
    step(copy.deepcopy(module), x)  # its blocks are kept
    pieces = []
    for floats in range(MIB // 4, 12 * MIB // 4, MIB // 64):  # and filled
        pieces.append(scratch(floats).fill_(float("nan")))
        if len(pieces) > 8:
            del pieces[0]
    del pieces
    for _ in range(2):
        again = step(copy.deepcopy(module), x)
        assert all(torch.equal(again[name], fresh[name]) for name in fresh)


def test_calls_of_several_threads_have_memory_of_their_own() -> None:
    modules = [rdk.RecurrentConv(256, 2, backend="cpu") for _ in range(3)]
    inputs = [torch.randn(1, 256, 8, 8) for _ in modules]
    with threads(1):
        expected = [step(module, x) for module, x in zip(modules, inputs, strict=True)]
        wrong: list[str] = []

        def run(number: int) -> None:
            for _ in range(6):
                got = step(modules[number], inputs[number])
                wrong.extend(name for name in got if not torch.equal(got[name], expected[number][name]))

        runners = [threading.Thread(target=run, args=(number,)) for number in range(len(modules))]
        for runner in runners:
            runner.start()
        for runner in runners:
            runner.join()
    assert not wrong


def test_a_second_call_takes_no_new_working_memory() -> None:
    """Of what PyTorch's allocator hands out there is only the output left."""
    module, x = rdk.RecurrentConv(256, 2, backend="cpu"), torch.randn(1, 256, 8, 8)
    with torch.no_grad(), threads(1):
        alone = peak_bytes(lambda: module(x))
        assert alone > 9 * MIB  # the filter's 36 points
        module(x)
        gc.collect()
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
            module(x)
    assert handed_out(profile) < MIB


def test_a_second_step_takes_no_new_states() -> None:
    """Of 20 maps there are the output and gradients left."""
    module, x = rdk.RecurrentConv(16, 17, backend="cpu"), torch.randn(8, 16, 64, 64, requires_grad=True)

    def run() -> None:
        y = module(x)
        y.backward(torch.ones_like(y))
        x.grad = None

    with threads(1):
        run()
        gc.collect()
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
            run()
    assert handed_out(profile) < 6 * 4 * x.numel()


def handed_out(profile: Any) -> int:
    """Bytes that PyTorch's allocator gave, whether they came back or not."""
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    return sum(event.nbytes() for event in events if event.nbytes() > 0)


def test_the_environment_sets_the_limit() -> None:
    code = "import torch, rdk; assert rdk.backends()['cpu'] is True; print(torch.ops.rdk.cpu_keep_scratch(0))"

    def run(value: str) -> subprocess.CompletedProcess[str]:
        variables = os.environ | {"RDK_CPU_KEPT_MIB": value}
        return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=variables)

    assert run("3").stdout.strip() == str(3 * MIB) and run("0").stdout.strip() == "0"
    refused = run("-1")
    assert (
        refused.returncode and "RDK_CPU_KEPT_MIB is '-1'; expected a whole number of MiB, 0 or more" in refused.stderr
    )
