"""A comparison: every contender is checked before it is timed, a wrong one is never timed, and a failure is an outcome."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import pytest
import torch
from benchmark_cases import (
    CONV,
    CPU,
    FP32,
    NORM,
    ONCE,
    RECALL,
    RESIDUAL,
    SMALL,
    broken,
    nan_output,
    raising,
    switches,
    writes_its_input,
    wrong_gradient,
    wrong_output,
)

from benchmarks import check, contenders, measure
from benchmarks.check import Errors
from benchmarks.contenders import CONTENDERS
from benchmarks.measure import Outcome
from benchmarks.problem import PRECISIONS, Prepared, Problem
from benchmarks.timing import Timing
from benchmarks.workloads import Case

assert switches  # a fixture of every test here


class Once:
    """A stopwatch that runs what it times once."""

    def __call__(self, run: Callable[[], object]) -> float:
        run()
        return 1.0


@pytest.mark.parametrize("case", SMALL)
@pytest.mark.parametrize("training", [False, True])
def test_every_contender_of_the_cpu_gives_the_float64_answers(case: Case, training: bool) -> None:
    problem = Problem(case.with_batch(6), FP32, CPU)
    names = ["eager", "eager channels_last", "checkpoint", "checkpoint sqrt", "rdk auto", "rdk eager", "rdk eager sqrt"]
    outcomes = {o.contender: o for o in measure.compare(problem, training, contenders.named(names), ONCE)}
    for name, outcome in outcomes.items():
        if not training and (name.startswith("checkpoint") or name.endswith("sqrt")):
            assert outcome.status == "left out" and "training" in outcome.note
            continue
        assert outcome.status == "ok", outcome
        assert outcome.errors and outcome.errors.output < 1e-5 and (outcome.errors.gradient is not None) == training


@pytest.mark.slow
@pytest.mark.parametrize("training", [False, True])
def test_compiled_contenders_of_the_cpu(training: bool) -> None:
    torch.use_deterministic_algorithms(False)
    names = ["eager", "compile", "max-autotune", "compile frozen", "compile budget"]
    for outcome in measure.compare(Problem(RECALL, FP32, CPU), training, contenders.named(names), ONCE):
        expected = "left out" if outcome.contender == ("compile frozen" if training else "compile budget") else "ok"
        assert outcome.status == expected, outcome


@pytest.mark.slow
def test_frozen_weights_are_constants_and_no_contender_runs_another_ones_graph() -> None:
    torch.use_deterministic_algorithms(False)
    problem = Problem(CONV, FP32, CPU)
    plain, frozen = (CONTENDERS[name].make(problem, False) for name in ("compile", "compile frozen"))
    for prepared, changes in ((plain, True), (frozen, False)):
        before = prepared.run().clone()
        with torch.no_grad():
            prepared.parameters[0].zero_()
        assert prepared.run().equal(before) != changes
    left_out = measure.compare(problem, True, contenders.named(["eager", "compile frozen"]), ONCE)[1]
    assert left_out.status == "left out" and "frozen weights cannot be trained" in left_out.note
    contenders.forget_compiled()


@pytest.mark.slow
def test_deep_networks_are_compiled_one_iteration_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.use_deterministic_algorithms(False)
    monkeypatch.setattr(contenders, "COMPILED_WHOLE", 4)
    eager, compiled = measure.compare(Problem(RESIDUAL, FP32, CPU), True, contenders.named(["eager", "compile"]), ONCE)
    assert eager.status == compiled.status == "ok", compiled
    left_out = measure.compare(Problem(NORM, FP32, CPU), True, contenders.named(["eager", "compile"]), ONCE)[1]
    assert left_out.status == "left out" and "a norm differs per iteration" in left_out.note


@pytest.mark.parametrize("change", [wrong_output, nan_output, writes_its_input])
def test_a_wrong_output_is_never_timed(change: Callable[[Prepared], None]) -> None:
    compared = [
        CONTENDERS["eager"],
        broken("rdk broken", change),
        CONTENDERS["eager channels_last"],
    ]
    eager, wrong, other = measure.compare(Problem(CONV, FP32, CPU), False, compared, ONCE)
    assert eager.status == other.status == "ok"
    assert wrong.status == "wrong" and wrong.timing is None and wrong.peak_bytes is None
    assert "the output differs from float64 by" in wrong.note


def test_a_wrong_gradient_is_never_timed() -> None:
    compared = [CONTENDERS["eager"], broken("rdk broken", wrong_gradient)]
    _, forward = measure.compare(Problem(RESIDUAL, FP32, CPU), False, compared, ONCE)
    _, training = measure.compare(Problem(RESIDUAL, FP32, CPU), True, compared, ONCE)
    assert forward.status == "ok"
    assert (
        training.status == "wrong" and "the gradient of weight 0 differs" in training.note and training.timing is None
    )


def scaled(factor: float) -> Callable[[Prepared], None]:
    return lambda prepared: prepared.parameters[0].register_hook(lambda gradient: gradient * factor) and None


def only_the_checked_images(prepared: Prepared) -> None:
    network, images = prepared.network, torch.tensor(prepared.problem.checked)

    def call(x: torch.Tensor) -> torch.Tensor:
        return (x * 1.0).index_copy(0, images, network(x[images]))

    prepared.call = call


def the_whole_batchs_gradient(prepared: Prepared) -> None:
    """Right under the check's upstream, which is zero for most images, and wrong under the one that is timed."""
    prepared.parameters[0].register_hook(lambda g: g * (1.0 if (prepared.upstream[2] == 0).all() else 1.05))


@pytest.mark.parametrize(
    "precision, change, fault",
    [
        ("bf16", scaled(1.25), "the gradient of weight 0 differs from float64"),
        ("bf16", scaled(0.72), "the gradient of weight 0 differs from float64"),
        ("fp32", scaled(1.004), "the gradient of weight 0 is scaled against float64 by 4.0e-03"),
        ("fp32", only_the_checked_images, "the output differs from eager over the whole batch"),
        ("fp32", the_whole_batchs_gradient, "the gradient of weight 0 differs from eager over the whole batch"),
    ],
)
def test_the_gate_holds_back_what_is_wrong_in_part(
    precision: str, change: Callable[[Prepared], None], fault: str
) -> None:
    problem = Problem(Case("grid", "residual", 8, 16, 8, 8, 3), PRECISIONS[precision], CPU)
    outcomes = measure.compare(problem, True, [CONTENDERS["eager"], broken("rdk broken", change)], ONCE)
    assert outcomes[0].status == "ok" and outcomes[1].status == "wrong" and fault in outcomes[1].note, outcomes[1]


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    "case", [*SMALL, Case("grid", "conv", 8, 64, 16, 16, 10), Case("grid", "residual", 8, 16, 8, 8, 3)]
)
def test_the_gate_lets_right_contenders_through_whatever_the_draw(case: Case, precision: str) -> None:
    """Arithmetic of another order, and of another kind (Winograd), beside eager's: sums flip at a ReLU in each."""
    names = ["eager", "eager channels_last", "rdk eager", "rdk eager sqrt", "rdk cpu", "checkpoint"]
    for seed in range(4):
        problem = Problem(case, PRECISIONS[precision], CPU, seed)
        for outcome in measure.compare(problem, True, contenders.named(names), ONCE):
            assert outcome.status in ("ok", "left out"), (seed, outcome)


@pytest.mark.parametrize(
    "error, status, note",
    [
        (RuntimeError("no such kernel\nand a long trace"), "failed", "RuntimeError: no such kernel"),
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried"),
            "out of memory",
            "OutOfMemoryError: CUDA out of memory. Tried",
        ),
        (MemoryError(), "out of memory", "MemoryError"),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory"),
            "out of memory",
            "RuntimeError: DefaultCPUAllocator",
        ),
    ],
)
def test_a_contender_that_fails_is_recorded_and_the_rest_goes_on(error: Exception, status: str, note: str) -> None:
    compared = [CONTENDERS["eager"], raising(error), CONTENDERS["rdk eager"]]
    eager, failed, other = measure.compare(Problem(CONV, FP32, CPU), True, compared, ONCE)
    assert eager.status == other.status == "ok"
    assert failed.status == status and failed.note.startswith(note) and "trace" not in failed.note


def test_a_contender_that_fails_when_asked_whether_it_can_run_leaves_the_others_theirs() -> None:
    def no_room(problem: Problem, training: bool) -> str | None:
        raise torch.OutOfMemoryError("out of memory")

    compared = [
        CONTENDERS["eager"],
        dataclasses.replace(CONTENDERS["rdk eager"], why_not=no_room),
        CONTENDERS["checkpoint"],
    ]
    found = measure.compare(Problem(CONV, FP32, CPU), True, compared, ONCE)
    assert [outcome.status for outcome in found] == ["ok", "out of memory", "ok"]


@pytest.mark.parametrize("calls", [2, 3, 4])
def test_a_contender_that_fails_while_it_is_timed_leaves_the_others_their_figures(calls: int) -> None:
    """2 calls: the check's and the warm-up's; the next are the rounds'; of 4 rounds' calls the last measures memory."""
    left = iter([None] * calls)

    def fails_late(prepared: Prepared) -> None:
        network = prepared.network
        prepared.call = lambda x: network(x) if next(left, 1) is None else 1 / 0

    compared = [CONTENDERS["eager"], broken("rdk broken", fails_late), CONTENDERS["rdk eager"]]
    said: list[str] = []
    problem = Problem(CONV, FP32, CPU)
    found = measure.compare(problem, True, compared, ONCE, Once(), memory=True, say=said.append)
    assert [o.status for o in found] == ["ok", "failed", "ok"] and found[
        1
    ].note == "ZeroDivisionError: division by zero"
    assert found[0].timing and found[0].timing.samples == 2 and "failed rdk broken" in said
    # who hangs was named before: the worker's other end listens
    assert said[said.index("failed rdk broken") - 1] in ("timing rdk broken", "weighing rdk broken")


def test_nothing_is_timed_beside_an_eager_that_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    bad = dataclasses.replace(broken("eager", wrong_output))
    monkeypatch.setitem(check.EAGER_LIMIT, "fp32", 1e-7)
    eager, other = measure.compare(Problem(CONV, FP32, CPU), False, [bad, CONTENDERS["rdk eager"]], ONCE)
    assert eager.status == "wrong" and other.status == "left out" and "did not pass" in other.note


def test_a_comparison_starts_with_eager() -> None:
    with pytest.raises(ValueError, match="the first contender must be 'eager'"):
        measure.compare(Problem(CONV, FP32, CPU), False, [CONTENDERS["rdk eager"]])


def test_an_outcome_has_a_timing_exactly_when_it_is_ok() -> None:
    with pytest.raises(ValueError, match="exactly when it is ok"):
        Outcome("rdk cpu", "wrong", Timing.of([1.0]))
    with pytest.raises(ValueError, match="exactly when it is ok"):
        Outcome("rdk cpu", "ok")


def test_bounds_follow_eager_rounding_and_the_policy_of_the_cpu_backend() -> None:
    eager = [Errors(4e-7, 1e-6, "weight"), Errors(9e-7, 2e-6, "weight")]
    own = Errors(1e-6, 1e-4, "weight")
    low, bf16 = Errors(4e-3, 5e-2, "weight"), PRECISIONS["bf16"]
    assert check.bounds(bf16, 10, [low], Errors(4e-3)).gradient == pytest.approx(2.5 * 5e-2)
    assert check.bounds(bf16, 10, [low], Errors(9e-3)).gradient == pytest.approx(2.5 * 5e-2 * 1.5)
    assert check.bounds(bf16, 10, [Errors(4e-3, 1e-3)], Errors(1e-3)).gradient == pytest.approx(1.25 * 4e-3**0.5)
    assert check.bounds(FP32, 10, eager, own).output == pytest.approx(1.5 * 9e-7)
    assert check.bounds(FP32, 10, [Errors(1e-9)], own).output == pytest.approx(4 * 2.0**-24)
    fast = {count: check.bounds(FP32, count, eager, own, "fast").output for count in (5, 6, 20, 80)}
    assert fast == pytest.approx({5: 5e-6, 6: 1.5e-5, 20: 1.5e-5, 80: 3e-5})
    assert check.bounds(FP32, 10, eager, own, "accurate").output == pytest.approx(4 * 9e-7)
    assert check.bounds(FP32, 10, eager, own, "exact").output == pytest.approx(1.5 * 9e-7)
    assert check.bounds(PRECISIONS["bf16"], 10, [Errors(1e-3)], own).output == pytest.approx(2.0**-6)
    flips = {count: check.bounds(FP32, count, eager, own) for count in (1, 100, 900)}
    assert {count: b.gradient for count, b in flips.items()} == pytest.approx({1: 16e-3, 100: 16e-3, 900: 48e-3})
    assert {count: b.scale for count, b in flips.items()} == pytest.approx({1: 6.4e-3, 100: 6.4e-3, 900: 48e-3})
    assert check.bounds(FP32, 10, eager, Errors(math.nan)).broken_by(Errors(math.nan), "float64") is not None


def test_errors_of_a_vanishing_gradient_are_measured_against_the_others() -> None:
    big, tiny = torch.ones(4), torch.full((4,), 1e-9)
    expected = {"output": big, "gradient of weight 0": big, "gradient of bias 0": tiny}
    found = check.compare({"output": big, "gradient of weight 0": big, "gradient of bias 0": tiny * 3}, expected)
    assert found.gradient is not None and found.gradient < 1e-5
    with pytest.raises(ValueError, match="expected the tensors"):
        check.compare({"output": big}, expected)


def test_memory_is_measured_of_training_steps() -> None:
    outcomes = measure.compare(
        Problem(CONV, FP32, CPU), True, contenders.named(["eager", "rdk eager sqrt"]), ONCE, memory=True
    )
    state = 4 * CONV.map_elements
    assert all(o.peak_bytes and 3 * state < o.peak_bytes < 60 * state for o in outcomes), outcomes
