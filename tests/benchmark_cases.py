"""What the tests of the benchmarks share: small cases, contenders with a fault built in, and PyTorch's switches put back."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch

from benchmarks import peers
from benchmarks.peers import Peer
from benchmarks.problem import PRECISIONS, Contestant, Problem
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


def broken(name: str, change: Callable[[Contestant], None]) -> Peer:
    """Eager with a fault built in."""

    def make(problem: Problem, training: bool) -> Contestant:
        contestant = peers.PEERS["eager"].make(problem, training)
        change(contestant)
        return contestant

    return Peer(name, make)


def wrong_output(contestant: Contestant) -> None:
    network = contestant.network
    contestant.call = lambda x, **kw: network(x, **kw) * 1.001


def wrong_gradient(contestant: Contestant) -> None:
    contestant.parameters[0].register_hook(lambda gradient: gradient * 1.2)


def nan_output(contestant: Contestant) -> None:
    network = contestant.network
    contestant.call = lambda x, **kw: network(x, **kw) * float("nan")


def writes_its_input(contestant: Contestant) -> None:
    network = contestant.network
    contestant.call = lambda x, **kw: network(x.detach().zero_(), **kw)


def raising(error: BaseException) -> Peer:
    def make(problem: Problem, training: bool) -> Contestant:
        raise error

    return Peer("rdk broken", make)
