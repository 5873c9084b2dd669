"""For `pytest benchmarks`: the fixture `timed` checks a contender against float64, then times synchronised calls of it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from benchmarks import contenders, environment
from benchmarks.contenders import CONTENDERS
from benchmarks.judge import Judge
from benchmarks.problem import PRECISIONS, Problem
from benchmarks.suites import QUICK_STEP_SECONDS, Executor
from benchmarks.workloads import Case

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
PRECISION = PRECISIONS["bf16" if DEVICE.type == "cuda" else "fp32"]
ROUNDS = 5


def pytest_report_header() -> str:
    waits = "each timed call ends with torch.cuda.synchronize()" if DEVICE.type == "cuda" else "one thread, batches cut"
    return f"benchmarks: {DEVICE.type}, {PRECISION.name}; results are checked against float64 first; {waits}"


@pytest.fixture(scope="session")
def executor() -> Executor:
    if DEVICE.type == "cpu":
        environment.pin(1)
    return Executor(DEVICE, step_seconds=QUICK_STEP_SECONDS)


@pytest.fixture
def timed(benchmark: Callable[..., object], executor: Executor) -> Callable[[Case, str, str], None]:
    """Checks one contender on one case, then times it. A red check fails the test before anything is timed."""

    def run(case: Case, pass_name: str, contender: str) -> None:
        training = pass_name == "training"
        if DEVICE.type == "cpu":
            case, reason = executor.fitted(case, PRECISION, training)
            if reason is not None:
                pytest.skip(reason)
        PRECISION.apply()
        problem = Problem(case, PRECISION, DEVICE)
        (chosen,) = contenders.named([contender])
        reason = chosen.why_not(problem, training)
        if reason is not None:
            pytest.skip(reason)
        judge = Judge(problem, training)
        for name in contenders.EAGER:
            judge.fault_of(name, CONTENDERS[name].make(problem, training))
        prepared = chosen.make(problem, training)
        fault = judge.fault_of(contender, prepared)
        assert fault is None, fault

        def call() -> None:
            prepared.run()
            if DEVICE.type == "cuda":
                torch.cuda.synchronize()

        about = environment.describe(DEVICE)
        benchmark.extra_info.update(about, case=case.description, error=judge.errors[contender].output)  # type: ignore[attr-defined]
        benchmark.group = f"{case.label} {pass_name}"  # type: ignore[attr-defined]
        benchmark.pedantic(call, rounds=ROUNDS, warmup_rounds=1)  # type: ignore[attr-defined]

    return run
