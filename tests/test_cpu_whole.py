"""A call in one operator of the cpu backend has the bits of the same call in several, and only a call that may be one is one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cpu_cases import needs_cpu_backend, threads
from hypothesis import given
from hypothesis import strategies as st

import rdk
from rdk.backends import cpu_runs
from rdk.testing import step

pytestmark = needs_cpu_backend

WHOLE = {"cpu_whole_forward", "cpu_whole_backward"}


class Asked:
    """Counts the operators of the cpu backend that are called."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.names: list[str] = []
        rdk.RecurrentConv(1, 1, backend="cpu")(torch.zeros(1, 1, 1, 1))  # loads the library
        for name in (*WHOLE, "cpu_forward", "cpu_backward", "cpu_filters", "cpu_parameter_gradients"):
            monkeypatch.setattr(torch.ops.rdk, name, self._noting(name, getattr(torch.ops.rdk, name)))

    def _noting(self, name: str, operator: Any) -> Any:
        def run(*arguments: Any) -> Any:
            self.names.append(name)
            return operator(*arguments)

        return run


def divided_step(module: torch.nn.Module, x: torch.Tensor, **asked: Any) -> dict[str, torch.Tensor]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cpu_runs, "is_whole", lambda *arguments, **keywords: False)
        return step(module, x, **asked)


@given(
    batch=st.integers(1, 5),
    channels=st.sampled_from([1, 5, 16, 19, 40]),
    sides=st.tuples(st.integers(1, 14), st.integers(1, 14)),
    n=st.integers(1, 5),
    kind=st.sampled_from(["conv", "residual", "recall"]),
    bias=st.booleans(),
    dilation=st.sampled_from([1, 2]),
    checkpoint=st.sampled_from(["none", "none", "sqrt", 1]),
    channels_last=st.booleans(),
    return_states=st.booleans(),
    cores=st.sampled_from([1, 2, 3]),
    frozen=st.integers(0, 3),
)
def test_one_operator_has_the_bits_of_several(
    batch: int, channels: int, sides: tuple[int, int], n: int, kind: str, bias: bool, dilation: int,
    checkpoint: str | int, channels_last: bool, return_states: bool, cores: int, frozen: int,
) -> None:  # fmt: skip
    keywords: dict[str, Any] = {"bias": bias, "dilation": dilation, "checkpoint": checkpoint, "backend": "cpu"}
    cls: Any = rdk.RecurrentConv if kind == "conv" else rdk.RecurrentResidual
    module = cls(channels, n, **keywords, **({"recall": True} if kind == "recall" else {}))
    for number, parameter in enumerate(module.parameters()):
        parameter.requires_grad_(frozen == 0 or number % 4 != frozen)
    form = torch.channels_last if channels_last else torch.contiguous_format
    x = torch.randn(batch, channels, *sides).to(memory_format=form)
    asked: dict[str, Any] = {"return_states": return_states}
    if kind == "recall":
        asked["inject"] = torch.randn(batch, channels, *sides)
    with threads(cores):
        whole, divided = step(module, x, **asked), divided_step(module, x, **asked)
    assert whole.keys() == divided.keys()
    for name in divided:
        assert torch.equal(whole[name], divided[name]), name
        assert whole[name].stride() == divided[name].stride(), name


def test_evaluation_with_norms_is_one_operator_too(monkeypatch: pytest.MonkeyPatch) -> None:
    module = rdk.RecurrentResidual(6, 3, norm="batch", backend="cpu").eval()
    x = torch.randn(2, 6, 7, 5)
    asked = Asked(monkeypatch)
    with torch.no_grad():
        whole = module(x)
        assert asked.names == ["cpu_whole_forward"]
        monkeypatch.setattr(cpu_runs, "is_whole", lambda *arguments, **keywords: False)
        assert torch.equal(whole, module(x))


def names_of_a_step(asked: Asked, module: torch.nn.Module, x: torch.Tensor, **keywords: Any) -> list[str]:
    asked.names.clear()
    step(module, x, **keywords)
    return list(asked.names)


def test_only_a_call_that_need_not_be_divided_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    x, asked = torch.randn(2, 6, 9, 9), Asked(monkeypatch)
    tied, untied = (rdk.RecurrentConv(6, 4, tied=tied, backend="cpu") for tied in (True, False))
    assert names_of_a_step(asked, tied, x) == ["cpu_whole_forward", "cpu_whole_backward"]
    assert not WHOLE & set(names_of_a_step(asked, untied, x))
    # the last state is one of those that are returned: it has a place
    assert "cpu_whole_forward" not in names_of_a_step(asked, tied, x, return_states=True)
    few = rdk.RecurrentConv(6, 4, checkpoint=1, backend="cpu")
    assert names_of_a_step(asked, few, x)[0] == "cpu_whole_forward"  # its backward has more than one run
    assert "cpu_whole_backward" not in names_of_a_step(asked, few, x)
    products = 9 * 6 * 6 * x[:, 0].numel() * 4
    monkeypatch.setattr(cpu_runs, "SLICE_PRODUCTS", 2 * products - 1)
    names = names_of_a_step(asked, tied, x)
    assert names[0] == "cpu_whole_forward" and "cpu_whole_backward" not in names
    monkeypatch.setattr(cpu_runs, "SLICE_PRODUCTS", products - 1)
    assert not WHOLE & set(names_of_a_step(asked, tied, x))


def test_a_large_map_of_more_iterations_than_windows_is_divided(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, module = Asked(monkeypatch), rdk.RecurrentConv(16, 20, backend="cpu")
    x = torch.randn(1, 16, 600, 300)
    with torch.no_grad():
        module(x)
    assert not WHOLE & set(asked.names) and asked.names.count("cpu_forward") == 2


def test_gradients_of_biases_are_the_sums_of_all_copies() -> None:
    shape, stages = [1, 6, 8, 8], [1, 1, -1, 1, 1, -1]
    sums, bias_sums = torch.ops.rdk.cpu_zero_sums(3, 0, 2, 6)
    assert sums.shape == (3, 0) and bias_sums.shape == (3, 2, 16) and bias_sums.dtype == torch.float64
    assert not bias_sums.any()
    bias_sums.normal_()
    none, first, strided = torch.empty(0), torch.empty(6), torch.full((12,), float("nan"))[::2]
    torch.ops.rdk.cpu_parameter_gradients(sums, bias_sums, [none, none], [first, strided], shape, stages, "fast")
    expected = bias_sums.sum(0)[:, :6].float()
    torch.testing.assert_close(torch.stack([first, strided]), expected, rtol=1e-6, atol=0)
    torch.ops.rdk.cpu_parameter_gradients(sums, bias_sums, [none, none], [none, first], shape, stages, "fast")
    assert torch.equal(first, strided)


def test_the_operators_say_what_came_instead() -> None:
    ops, stages, x = torch.ops.rdk, [1, 1, -1], torch.ones(1, 4, 8, 8)
    weight, bias, none = torch.ones(4, 4, 3, 3), torch.ones(4), torch.empty(0)

    def gradients(bias_sums: torch.Tensor, biases: list[torch.Tensor]) -> None:
        ops.cpu_parameter_gradients(none, bias_sums, [none], biases, x.shape, stages, "fast")

    with pytest.raises(RuntimeError, match=r"each of 1 stages, got 1 of weights and 2 of biases\."):
        gradients(none, [bias, bias])
    with pytest.raises(RuntimeError, match=r"float32 gradient \(4,\) of a bias on the CPU, got Float \[5\]"):
        gradients(torch.zeros(1, 1, 16, dtype=torch.float64), [torch.ones(5)])
    for wrong in (torch.zeros(1, 1, 16), torch.zeros(1, 2, 16).double(), torch.zeros(1, 1, 3).double(), none.double()):
        with pytest.raises(RuntimeError, match=r"float64 sums \(copies, 1, 4 or more\) .*, got (Float|Double) \["):
            gradients(wrong, [bias])
    with pytest.raises(RuntimeError, match=r"one number for each of 1 parameters, got 2\."):
        ops.cpu_whole_backward(
            x, x, None, None, None, None, [weight], [bias], stages, "fast", 1, True, [1, 1], [1], 1, 1
        )  # fmt: skip
    with pytest.raises(RuntimeError, match=r"a slot for each of 2 states and 2 tapes, got 1 and 2\."):
        ops.cpu_whole_forward(x, None, [weight], [], None, stages, "fast", 2, None, [-1], None, [-1, -1], 1)
    with pytest.raises(RuntimeError, match=r"a state \(N, C, H, W\) and a count, got \[4\] and 1\."):
        ops.cpu_maps(bias, 1)
