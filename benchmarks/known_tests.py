"""A pytest plugin: leaves out just the tests that a file names (--deselect takes beginnings of names), and orders the rest by what
they tell; used by gpu_tests."""

from __future__ import annotations

from pathlib import Path

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--known", type=Path, metavar="FILE", help="names of tests that are not run again, one a line")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    known = set(config.getoption("--known").read_text(encoding="utf-8").splitlines())
    config.hook.pytest_deselected(items=[item for item in items if item.nodeid in known])
    items[:] = sorted([item for item in items if item.nodeid not in known], key=lambda item: turn(item.nodeid))


def turn(test: str) -> int:
    """When a test's turn comes: small whole numbers first, which have no rounding to blame, then the kernels that nothing compiles
    while it waits, then those that Triton compiles, and the largest maps last."""
    if "past_two_to_the_thirty_one" in test:
        return 3
    if not is_compiled_before(test):
        return 2
    return 0 if "whole_numbers" in test else 1


def is_compiled_before(test: str) -> bool:
    """Whether a test runs kernels of csrc/cuda, and none of Triton's."""
    return "cuda" in test and "triton" not in test
