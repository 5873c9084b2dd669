"""What the triton backend takes and refuses, and what it says of that: with a GPU, in the interpreter, or with neither."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import rdk
from rdk import arguments, dispatch, functional, measured
from rdk.backends.base import Problem
from rdk.backends.triton import BACKEND, interpreting

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def problem(**changes: Any) -> Problem:
    x = torch.randn(2, 4, 5, 5)
    call = arguments.prepare(x, rdk.RecurrentConv(4, 3).functional_stages(), 3, 0, None, False, "none", None, "test")
    return replace(functional.problem_of(call), **changes)


@pytest.mark.parametrize("word", ["1", "true"])
def test_the_interpreter_takes_no_cuda_tensors(word: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", word)
    reason = BACKEND.supports(problem(device=torch.device("cuda", 0)))
    assert reason == "TRITON_INTERPRET is set: Triton's interpreter runs on CPU tensors, and the state is on cuda:0"
    assert BACKEND.supports(problem(device=torch.device("cpu"))) is None


def test_refusals_name_what_does_not_fit() -> None:
    reason = BACKEND.supports(problem(dtype=torch.float64, device=DEVICE))
    assert reason == "it computes in float32, float16 and bfloat16, not in float64"
    reason = BACKEND.supports(problem(device=torch.device("meta")))
    assert reason is not None and "CUDA devices" in reason
    if interpreting():
        assert BACKEND.supports(problem()) is None
        assert "pixels" in str(BACKEND.supports(problem(shape=(2**20, 4, 64, 64))))
        halfway = (2**18, 4, 64, 64)  # a weight gradient's last chunk may count twice as far
        assert BACKEND.supports(problem(shape=halfway, needs_grad=False)) is None
        assert "pixels" in str(BACKEND.supports(problem(shape=halfway)))
        assert "weight" in str(BACKEND.supports(problem(shape=(1, 20_000, 4, 4))))
        assert "row" in str(BACKEND.supports(problem(shape=(1, 4096, 1, 2**20))))
        # passing 2**31 elements is no reason to refuse
        assert BACKEND.supports(problem(shape=(2048, 512, 64, 64))) is None


@pytest.mark.skipif(not interpreting(), reason="asks for Triton's interpreter")
def test_explain_and_backends_say_that_cpu_tensors_are_taken() -> None:
    assert rdk.backends()["triton"] is True
    module = rdk.RecurrentConv(4, 3, backend="triton")
    assert rdk.explain(module, torch.randn(2, 4, 5, 5)).forward == "triton"
    with rdk.use_backend("triton"):
        assert rdk.explain(rdk.RecurrentConv(4, 3), torch.randn(2, 4, 5, 5)).backward == "triton"
    with pytest.raises(rdk.BackendError, match="not in float64"):
        module.double()(torch.randn(2, 4, 5, 5, dtype=torch.float64))


def test_auto_never_takes_what_nobody_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = problem(device=DEVICE, needs_grad=True)
    record = {
        "kind": "conv", "pass": "training", "dtype": "float32", "precision": asked.precision, "channels": 4, "height": 5,
        "width": 5, "batch": 2, "iterations": 3, "stages": 1, "speedup": 2.0,
    }  # fmt: skip
    device = measured.device_name(DEVICE)
    table = {"format": 1, "backend": "triton", "device": device, "measured_on": {}, "records": [record]}
    monkeypatch.setitem(dispatch.PREFERENCE, DEVICE.type, ("triton",))
    for tables, chosen in (([], "eager"), ([table | {"device": "another"}], "eager"), ([table], "triton")):
        monkeypatch.setattr(measured, "tables", lambda tables=tables: tables)
        decision = dispatch.choose.__wrapped__(asked, "auto")
        assert decision.backend == chosen
        assert ("nobody has measured it" in decision.reasons.get("triton", "")) == (chosen == "eager")


def test_tf32_on_rocm_only_where_triton_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the cards that are no NVIDIA ones triton multiplies in TF32 on one architecture."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(torch.version, "hip", "7.0")
    monkeypatch.setattr(torch.version, "cuda", None)
    for name, taken in (("gfx942:sramecc+:xnack-", True), ("gfx90a", False), ("gfx1100", False)):
        properties = SimpleNamespace(gcnArchName=name)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device, properties=properties: properties)
        reason = BACKEND.supports(problem(device=torch.device("cuda", 0), precision="tf32"))
        assert (reason is None) == taken and (taken or "fp32_precision" in str(reason))
        assert BACKEND.supports(problem(device=torch.device("cuda", 0), precision="ieee")) is None


def without_interpreter(code: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=300)


@pytest.mark.skipif(DEVICE.type == "cuda", reason="about a machine without a GPU")
def test_without_a_gpu_the_reason_says_what_to_do() -> None:
    shown = without_interpreter(
        "import rdk, sys, torch\n"
        "assert 'triton' not in sys.modules\n"
        "print(rdk.backends()['triton'])\n"
        "assert 'triton' not in sys.modules\n"
        "try:\n    rdk.RecurrentConv(4, 3, backend='triton')(torch.randn(1, 4, 3, 3))\n"
        "except rdk.BackendError as error:\n    print(error)\n"
    )
    first, second = shown.stdout.splitlines()
    assert "PyTorch sees no GPU here" in first and "TRITON_INTERPRET=1" in first
    assert "cannot run this call" in second and "PyTorch sees no GPU here" in second


def test_without_triton_the_reason_names_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "pip install triton" in str(BACKEND.unavailable())
