"""`pytest benchmarks`: eager and rdk on the headline cases through pytest-benchmark, for a quick look and comparisons in time."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from benchmarks import contenders
from benchmarks.conftest import DEVICE
from benchmarks.workloads import WORKLOADS, Case

CASES = [
    pytest.param(case, pass_name, id=f"{case.label}-{pass_name}")
    for workload in WORKLOADS.values()
    for case in workload.cases(headline_only=True)
    for pass_name in workload.passes
]
NAMES = [*contenders.EAGER, *(f"rdk {name}" for name in contenders.ours(DEVICE.type))]


@pytest.mark.parametrize("contender", NAMES)
@pytest.mark.parametrize("case, pass_name", CASES)
def test_speed(timed: Callable[[Case, str, str], None], case: Case, pass_name: str, contender: str) -> None:
    timed(case, pass_name, contender)
