"""Judges the contenders of one problem, eager first: float64 on a few images, then eager on all; for measure, profile, conftest."""

from __future__ import annotations

from torch import Tensor

from benchmarks import check
from benchmarks.check import Bounds, Errors
from benchmarks.contenders import EAGER
from benchmarks.problem import Prepared, Problem
from rdk import dispatch


class Judge:
    """Holds the float64 answers, the errors of everyone judged so far, and what the first computed for the whole batch."""

    def __init__(self, problem: Problem, training: bool) -> None:
        self.problem = problem
        self.expected = problem.answers(training)
        self.errors: dict[str, Errors] = {}
        self.whole: dict[str, Tensor] | None = None

    def fault_of(self, name: str, prepared: Prepared) -> str | None:
        """The sentence that says what is wrong with the results; None where nothing is."""
        self.errors[name] = check.compare(prepared.answers(), self.expected)
        bounds = self.bounds_of(name)
        fault = bounds.broken_by(self.errors[name], "float64")
        if fault is not None or len(self.problem.checked) == self.problem.case.batch:
            return fault
        whole = prepared.answers(whole=True)
        if self.whole is None:
            self.whole = whole
            return None
        return bounds.of_two().broken_by(check.compare(whole, self.whole), "eager over the whole batch")

    def bounds_of(self, name: str) -> Bounds:
        """Eager in either layout keeps the limits of a fair problem; its errors bound those of everyone after it."""
        if name in EAGER:
            return check.eager_bounds(self.problem.precision)
        ours = name.startswith("rdk")
        policy = dispatch.precision_of(self.problem.device, self.problem.precision.dtype) if ours else None
        eager = [self.errors[one] for one in EAGER if one in self.errors]
        return check.bounds(self.problem.precision, self.problem.case.convolutions, eager, self.errors[name], policy)
