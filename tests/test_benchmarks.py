"""What the benchmarks measure: the workloads' table, problems that stay alive, statistics of samples, floors."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from benchmark_cases import CONV, CPU, DILATED, FP32, NORM, RECALL, RESIDUAL, switches
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import floors, timing, workloads
from benchmarks.problem import PRECISIONS, Oracle, Problem
from benchmarks.timing import Patience, Timing
from benchmarks.workloads import Case
from rdk import dispatch as rdk_dispatch

assert switches  # a fixture of every test here


# --- workloads


def test_the_workloads_are_those_of_the_table() -> None:
    table = {
        # name: kind, channels, maps, batch, iterations, norm, recall, dilation
        "W1": ("conv", 64, [28], 128, {1, 5, 32, 64}, False, False, 1),
        "W2": ("residual", 512, [16], 128, {1, 2, 3, 4}, False, False, 1),
        "W3": ("residual", 256, [16], 128, {1, 2, 3, 4}, True, False, 1),
        "W4": ("residual", 128, [32], 50, {1, 10}, False, False, 1),
        "W4s": ("residual", 128, [9, 11, 13], 50, {1, 10}, False, False, 1),
        "W4r": ("residual", 128, [32], 1, {100, 1000}, False, False, 1),
        "W5": ("residual", 128, [32], 50, {1, 4}, False, False, 2),
        "W6": ("residual", 128, [32], 50, {1, 10}, False, True, 1),
        "W7": ("residual", 512, [28], 64, {4, 16, 64}, False, False, 1),
    }
    assert list(workloads.WORKLOADS) == list(table)
    for name, (kind, channels, maps, batch, iterations, norm, recall, dilation) in table.items():
        found = workloads.WORKLOADS[name]
        assert (found.kind, found.channels, found.batch) == (kind, channels, batch)
        assert found.maps == tuple((size, size) for size in maps)
        assert (found.norm, found.recall, found.dilation) == (norm, recall, dilation)
        assert iterations <= set(found.iterations) and max(iterations) == max(found.iterations)
        assert set(found.headline) <= set(found.iterations)
        assert found.passes == (("rollout",) if name == "W4r" else ("forward", "training"))


@pytest.mark.parametrize(
    "name, gflop",
    [("W1", 7.4), ("W2", 154.6), ("W3", 38.7), ("W4", 15.1), ("W4r", 0.3), ("W5", 15.1), ("W6", 15.1), ("W7", 237)],
)
def test_floating_point_operations_per_convolution_are_those_of_the_table(name: str, gflop: float) -> None:
    assert workloads.WORKLOADS[name].case(1).conv_flop / 1e9 == pytest.approx(gflop, rel=0.02)


def test_the_cpu_shapes_are_single_convolutions() -> None:
    found = {(c.batch, c.channels, c.height, c.iterations) for c in workloads.CPU_SHAPES}
    assert found == {
        (128, 64, 28, 5), (50, 128, 32, 10), (32, 256, 16, 4), (32, 512, 16, 4), (1, 128, 32, 30),
        (64, 128, 9, 10), (64, 128, 13, 10),
    }  # fmt: skip
    assert all(case.kind == "conv" and case.height == case.width for case in workloads.CPU_SHAPES)
    assert {case.kind for case in workloads.MAZE_SHAPES} == {"residual"}


def test_modules_of_a_workload_have_its_stages() -> None:
    for workload in workloads.WORKLOADS.values():
        small = dataclasses.replace(workload.case(2), channels=8)
        module = small.module()
        assert len(module.stages) == small.stages == {"W1": 1, "W6": 5}.get(workload.name, 4)
        assert module.iterations == 2 and (module.norm == "batch") == workload.norm


def test_an_unknown_workload_names_the_nearest() -> None:
    assert workloads.named("w4S").name == "W4s"
    with pytest.raises(workloads.UnknownWorkloadError, match="unknown workload 'W44'; the nearest are W4"):
        workloads.named("W44")


# --- problems


@pytest.mark.parametrize("case", [CONV, RESIDUAL, RECALL, NORM, DILATED, dataclasses.replace(CONV, iterations=300)])
def test_states_neither_die_out_nor_overflow(case: Case) -> None:
    problem = Problem(case, FP32, CPU)
    with torch.no_grad():
        out = problem.network(problem.x, problem.inject)
    size = float(out.norm() / problem.x.norm())
    assert 0.05 < size < 50
    assert float((out != 0).float().mean()) > 0.1


def test_a_problem_is_the_same_every_time() -> None:
    one, two = Problem(RECALL, FP32, CPU), Problem(RECALL, FP32, CPU)
    assert one.x.equal(two.x) and one.upstream.equal(two.upstream)
    assert all(a.equal(b) for a, b in zip(one.network.parameters(), two.network.parameters(), strict=True))


def test_checked_images_reach_from_the_first_to_the_last() -> None:
    assert Problem(CONV.with_batch(9), FP32, CPU).checked == [0, 1, 4, 8]
    assert Problem(CONV, FP32, CPU).checked == [0, 1, 2]
    assert Problem(NORM.with_batch(6), FP32, CPU).checked == list(range(6))


@pytest.mark.parametrize("name, word", [("fp32", "ieee"), ("tf32", "tf32")])
def test_the_tf32_switch_is_the_one_that_rdk_reads(name: str, word: str) -> None:
    PRECISIONS[name].apply()
    assert rdk_dispatch.precision_of(torch.device("cuda"), torch.float32) == word
    assert torch.backends.cudnn.allow_tf32 == (word == "tf32")  # as torch.compile reads it: must not raise


# --- timing


@given(st.lists(st.floats(0.01, 1e4), min_size=1, max_size=50))
def test_statistics_are_ordered_and_within_the_samples(samples: list[float]) -> None:
    found = Timing.of(samples)
    assert min(samples) == found.least <= found.p20 <= found.median <= found.p80 <= max(samples)
    assert found.samples == len(samples) and found.spread >= 0


def test_statistics_of_known_samples() -> None:
    found = Timing.of([5.0, 1.0, 2.0, 4.0, 3.0, 6.0])
    assert (found.median, found.p20, found.p80, found.least, found.samples) == (3.5, 2.0, 5.0, 1.0, 6)
    assert found.spread == pytest.approx(3 / 3.5)
    with pytest.raises(ValueError, match="at least one sample"):
        Timing.of([])


def test_a_call_on_the_host_is_timed_after_one_that_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    now, calls = [0.0], iter([5.0, 0.25])
    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])

    def run() -> None:
        now[0] += next(calls)

    assert timing.HostStopwatch()(run) == pytest.approx(250.0)
    assert next(calls, None) is None


class FakeTime:
    """A clock and a stopwatch under which every contender takes its own name's number of milliseconds."""

    def __init__(self) -> None:
        self.now = 0.0
        self.order: list[str] = []

    def clock(self) -> float:
        return self.now

    def watch(self, run: Callable[[], object]) -> float:
        name = str(run())
        self.order.append(name)
        self.now += float(name) / 1e3
        return float(name)


def test_contenders_take_turns_in_changing_order() -> None:
    fake = FakeTime()
    contenders = {name: (lambda name=name: name) for name in ("1", "2", "4")}
    begun: list[str] = []
    found = timing.interleave(
        contenders, fake.watch, Patience(seconds=0.1, least=3, most=100), fake.clock, begin=begun.append
    )
    assert begun == fake.order
    rounds = [fake.order[start : start + 3] for start in range(0, len(fake.order), 3)]
    assert all(sorted(order) == ["1", "2", "4"] for order in rounds)
    assert len({tuple(order) for order in rounds}) == 6
    assert {name: t.median for name, t in found.items()} == {"1": 1.0, "2": 2.0, "4": 4.0}
    assert all(t.samples == len(rounds) == 15 for t in found.values())  # 15 rounds of 7 ms are the first beyond 0.1 s


@pytest.mark.parametrize("least, most, rounds", [(5, 100, 5), (1, 3, 3), (2, 2, 2)])
def test_patience_bounds_the_rounds(least: int, most: int, rounds: int) -> None:
    fake = FakeTime()
    seconds = 0.001 if least == 5 else 1e9
    found = timing.interleave({"3": lambda: "3"}, fake.watch, Patience(seconds, least, most), fake.clock)
    assert found["3"].samples == rounds


# --- floors


def test_floors() -> None:
    case = workloads.WORKLOADS["W1"].case(5)
    forward, training = floors.floor(case, False, 2), floors.floor(case, True, 2)
    assert forward.flop == 5 * case.conv_flop and training.flop == 3 * forward.flop
    assert forward.bytes == 2 * (2 * 128 * 64 * 784 + 9 * 64 * 64)
    # the table: 9.4 µs of arithmetic per convolution at 790 TFLOP/s, 6.0 µs for one read and write at 4.3 TB/s
    assert forward.milliseconds(790e12, 4.3e12) == pytest.approx(5 * 9.4e-3, rel=0.02)
    assert floors.floor(workloads.WORKLOADS["W1"].case(1), False, 2).bytes / 4.3e12 == pytest.approx(6.0e-6, rel=0.02)


def test_the_oracle_is_plain_pytorch() -> None:
    """The float64 answers come from nn.Conv2d and nn.BatchNorm2d, not from rdk."""
    network: Any = Oracle(RECALL)
    assert {type(module).__module__.split(".")[0] for module in network.modules()} == {"benchmarks", "torch"}
    problem = Problem(RECALL, FP32, CPU)
    h = problem.x.double()
    weights = [conv.weight.double() for conv in problem.network.products]
    assert problem.inject is not None

    def conv(x: torch.Tensor, number: int) -> torch.Tensor:
        return torch.nn.functional.conv2d(x, weights[number], padding=1)

    for _ in range(RECALL.iterations):
        h = conv(h, 0) + problem.inject.double()
        h = (conv(conv(h, 1).relu(), 2) + h).relu()
        h = (conv(conv(h, 3).relu(), 4) + h).relu()
    assert torch.allclose(problem.answers(False)["output"], h[problem.checked], rtol=1e-12, atol=1e-12)
