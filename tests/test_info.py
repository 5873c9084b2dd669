"""`python -m rdk.info`: what it says, and that --check finds a backend that computes something else."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch

import rdk
from rdk import dispatch, extension, info
from rdk.backends.eager import BACKEND as EAGER


def test_report_names_versions_backends_and_variables() -> None:
    lines = "\n".join(info.report())
    for word in [rdk.__version__, torch.__version__.split("+")[0], "RDK_BACKEND=auto", "_cpu.so", "eager: available"]:
        assert word in lines
    for name, state in rdk.backends().items():
        assert (f"{name}: available" if state is True else str(state)) in lines


def test_check_passes_here_and_runs_every_backend_that_is_available(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)  # what is interpreted is slow, and has tests of its own
    assert info.main(["--check"]) == 0
    printed = capsys.readouterr().out
    for name, state in rdk.backends().items():
        assert (f"  {name:<6} cpu  float32  RecurrentConv: " in printed) == (state is True)


def test_check_finds_a_wrong_backend(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    forward = EAGER.forward

    def slightly_wrong(*args: Any) -> torch.Tensor:
        return forward(*args) * 1.001

    monkeypatch.setattr(EAGER, "forward", slightly_wrong)
    monkeypatch.setattr(info, "_places", lambda: [("eager", "cpu", torch.float32)])
    assert info.main(["--check"]) == 1
    assert "WRONG" in capsys.readouterr().out


def test_check_finds_tf32_right_where_it_is_in_force(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without a GPU: convolutions whose operands lose their last 13 bits stand for a healthy card under PyTorch's switches."""
    conv2d = torch.nn.functional.conv2d

    def shortened(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.dtype != torch.float32:
            return tensor
        short = (tensor.detach().contiguous().view(torch.int32) & ~0x1FFF).view(torch.float32)
        return tensor + (short - tensor.detach())

    def tf32(x: torch.Tensor, weight: torch.Tensor, *rest: Any, **named: Any) -> torch.Tensor:
        return conv2d(shortened(x), shortened(weight), *rest, **named)

    monkeypatch.setattr(torch.nn.functional, "conv2d", tf32)
    monkeypatch.setattr(info, "_places", lambda: [("eager", "cpu", torch.float32)])
    monkeypatch.setattr(info, "CASES", [case for case in info.CASES if "checkpoint" not in case[1]])  # plain eager only
    assert info.main(["--check"]) == 1
    words = {"conv": "tf32", "linear": "ieee"}
    monkeypatch.setattr(dispatch, "precision_of", lambda device, dtype, kind: words[kind])
    capsys.readouterr()
    assert info.main(["--check"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("  eager ")]
    assert [("≤ 1e-05" in line) == ("RecurrentLinear" in line) for line in lines] == [True] * len(info.CASES)


def test_a_library_that_is_not_there_or_cannot_be_loaded_says_why(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    extension.load.cache_clear()
    extension.build_info.cache_clear()
    try:
        monkeypatch.setenv("RDK_LIBRARY_FOLDER", str(tmp_path))
        assert "--no-build-isolation" in (extension.load("cpu") or "")
        (tmp_path / "_cuda.so").write_text("no library")
        (tmp_path / "_build_info.json").write_text('{"torch": "1.0", "cuda": "9.9", "left_out": {}}')
        extension.build_info.cache_clear()
        reason = extension.load("cuda") or ""
        assert "built for torch 1.0, CUDA 9.9" in reason and torch.__version__ in reason
        (tmp_path / "_build_info.json").write_text('{"left_out": {"_xyz": "there was no compiler"}}')
        extension.build_info.cache_clear()
        assert "there was no compiler" in (extension.load("xyz") or "")
    finally:
        extension.load.cache_clear()
        extension.build_info.cache_clear()


IMPORT = """
import sys, os, threading
before = dict(os.environ)
import rdk
assert dict(os.environ) == before, "importing rdk changed the environment"
assert "triton" not in sys.modules, "importing rdk imported triton"
import torch
assert not torch.cuda.is_initialized()
assert "torch._inductor.compile_fx" not in sys.modules
"""


def test_importing_starts_nothing() -> None:
    done = subprocess.run([sys.executable, "-c", IMPORT], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout == done.stderr == ""


def test_dispatch_names_are_those_of_the_report() -> None:
    assert set(rdk.backends()) == set(dispatch.NAMES)
