"""For every test: uninitialised memory holds NaN, randomness is seeded, hypothesis is repeatable and without a deadline."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch
from hypothesis import settings

from rdk import budget

# read by triton when it is imported, which no import above does: its kernels run on CPU tensors where there is no GPU
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

settings.register_profile("rdk", deadline=None, derandomize=True, max_examples=25, print_blob=True)
settings.load_profile("rdk")


@pytest.fixture(autouse=True)
def poisoned_and_seeded() -> Iterator[None]:
    """PyTorch's deterministic mode fills what torch.empty and at::empty return with NaN: an element that a kernel forgot to
    write turns a comparison red instead of passing by luck."""
    torch.manual_seed(0)
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def decided_anew() -> Iterator[None]:
    """For a test that changes what decisions are made of: those of other tests do not count in it, nor its own elsewhere."""
    budget.forget()
    yield
    budget.forget()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked gpu are skipped, with the reason, where PyTorch sees no NVIDIA GPU."""
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="PyTorch sees no NVIDIA GPU on this machine"))
