"""What the tests of the benchmarks share: small cases, contenders with a fault built in, and PyTorch's switches put back."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch

from benchmarks.contenders import CONTENDERS, Contender
from benchmarks.problem import PRECISIONS, Prepared, Problem
from benchmarks.timing import Patience
from benchmarks.workloads import Case

CPU = torch.device("cpu")
FP32 = PRECISIONS["fp32"]
ONCE = Patience(0.0, 2, 2, 1)

CONV = Case("grid", "conv", 3, 16, 7, 5, 3)
RESIDUAL = Case("grid", "residual", 2, 16, 6, 6, 2)
RECALL = Case("grid", "residual", 2, 16, 6, 6, 2, recall=True)
NORM = Case("grid", "residual", 4, 16, 6, 6, 2, norm=True)
DILATED = Case("grid", "residual", 2, 16, 9, 9, 2, dilation=2)
SMALL = (CONV, RESIDUAL, RECALL, NORM, DILATED)


@pytest.fixture(autouse=True)
def switches() -> Iterator[None]:
    """Restores PyTorch's switches, which a comparison sets."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.benchmark
    yield
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.benchmark = before


def broken(name: str, change: Callable[[Prepared], None]) -> Contender:
    """Eager with a fault built in."""

    def make(problem: Problem, training: bool) -> Prepared:
        prepared = CONTENDERS["eager"].make(problem, training)
        change(prepared)
        return prepared

    return Contender(name, make)


def wrong_output(prepared: Prepared) -> None:
    network = prepared.network
    prepared.call = lambda x, **kw: network(x, **kw) * 1.001


def wrong_gradient(prepared: Prepared) -> None:
    prepared.parameters[0].register_hook(lambda gradient: gradient * 1.2)


def nan_output(prepared: Prepared) -> None:
    network = prepared.network
    prepared.call = lambda x, **kw: network(x, **kw) * float("nan")


def writes_its_input(prepared: Prepared) -> None:
    network = prepared.network
    prepared.call = lambda x, **kw: network(x.detach().zero_(), **kw)


def raising(error: BaseException) -> Contender:
    def make(problem: Problem, training: bool) -> Prepared:
        raise error

    return Contender("rdk broken", make)
