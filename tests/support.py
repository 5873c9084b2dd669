"""Stands for rdk.testing until every test imports it from there."""

from rdk.testing import UNIT, assert_close, peak_bytes, plain_eager, relative, step, upstream

__all__ = ["UNIT", "assert_close", "peak_bytes", "plain_eager", "relative", "step", "upstream"]
