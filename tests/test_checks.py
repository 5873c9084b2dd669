"""The checks of arguments: bad input gets a sentence that says what was expected and what came, and changes nothing."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import rdk
from rdk.functional import Stage, recurrent

X = torch.zeros(2, 4, 5, 5)
BAD: list[tuple[Any, dict[str, Any], type[Exception], str]] = [
    (torch.zeros(2, 3, 5, 5), {}, ValueError, "input has 3 channels, the layer was built for 4"),
    (torch.zeros(4, 5, 5), {}, ValueError, r"must be 4-d, \(N, C, H, W\), got shape \(4, 5, 5\)"),
    (torch.zeros(2, 4, 5, 5, dtype=torch.int64), {}, TypeError, "floating-point dtype, got torch.int64"),
    (X.double(), {}, TypeError, "input has dtype torch.float64, the weight has torch.float32"),
    (X.to("meta"), {}, ValueError, "input is on meta, the weight on cpu"),
    ([1, 2], {}, TypeError, "must be a torch.Tensor, got list"),
    (X, {"iterations": -1}, ValueError, "iterations must not be negative, got -1"),
    (X, {"iterations": 2.0}, TypeError, "iterations must be an integer, got 2.0 of type float"),
    (X, {"iterations": True}, TypeError, "iterations must be an integer, got True"),
    (X, {"start": -2}, ValueError, "start must not be negative, got -2"),
    (X, {"inject": torch.zeros(2, 4, 5, 4)}, ValueError, r"shape \(2, 4, 5, 5\), got \(2, 4, 5, 4\)"),
    (X, {"inject": 3}, TypeError, "inject must be a torch.Tensor, got int"),
    (X, {"return_states": "yes"}, TypeError, "return_states must be True or False, got 'yes' of type str"),
]


@pytest.mark.parametrize("x,kw,error,words", BAD, ids=[words[:30] for *_, words in BAD])
def test_bad_input_gets_a_sentence_and_changes_nothing(
    x: Any, kw: dict[str, Any], error: type[Exception], words: str
) -> None:
    module = rdk.RecurrentConv(4, 3)
    before = copy.deepcopy(module.state_dict())
    with pytest.raises(error, match=words) as caught:
        module(x, **kw)
    assert str(caught.value).startswith("rdk.RecurrentConv: ")
    assert all(torch.equal(now, before[name]) for name, now in module.state_dict().items())


W = torch.zeros(4, 4, 3, 3)
BAD_STAGES: list[tuple[Any, type[Exception], str]] = [
    (
        [nn.Conv2d(4, 4, 3)],
        TypeError,
        "stage 0 must be an rdk.functional.Stage, got an object of type Conv2d. rdk.from_mod",
    ),
    (
        Stage(W),
        TypeError,
        "stages must be a list of .*Stage, got an object of type Stage. Put a single stage in a list",
    ),
    ((Stage(W) for _ in range(1)), TypeError, "stages must be a list of rdk.functional.Stage, got .* type generator"),
    ([Stage(None)], TypeError, "weight must be a torch.Tensor, or a list of them, .* stage 0 has None"),  # type: ignore[arg-type]
    ([Stage(nn.Conv2d(4, 4, 3))], TypeError, "weight must be .* stage 0 has an object of type Conv2d"),  # type: ignore[arg-type]
    ([Stage([1, 2, 3])], TypeError, "weight must be .* stage 0 has a list with 1"),  # type: ignore[list-item]
    ([Stage([W, 2, W])], TypeError, "a weight must be a torch.Tensor, .* got 2"),  # type: ignore[list-item]
    ([Stage(W, 1.0)], TypeError, "bias must be None, a torch.Tensor, .* stage 0 has 1.0"),  # type: ignore[arg-type]
    ([Stage(W, [1.0, 1.0, 1.0])], TypeError, "a bias must be a torch.Tensor, .* got 1.0"),  # type: ignore[list-item]
    ([Stage(W, skip=0.0)], TypeError, "skip must be None or an integer, got 0.0 in stage 0"),  # type: ignore[arg-type]
    ([Stage(W, relu=1)], TypeError, "relu must be True or False, got 1 in stage 0"),  # type: ignore[arg-type]
    ([Stage(W, norm=nn.BatchNorm2d(4))], TypeError, "norm must be None or a list of modules, .* type BatchNorm2d"),  # type: ignore[arg-type]
    (
        [Stage(W, norm=[torch.relu] * 3)],
        TypeError,
        "a norm must be a module such as nn.BatchNorm2d, got an object of type",
    ),  # type: ignore[list-item]
    ([Stage(W, norm=[nn.BatchNorm2d(3)] * 3)], ValueError, r"must be nn.BatchNorm2d\(4\), .* got nn.BatchNorm2d\(3\)"),
    ([Stage(W, norm=[nn.BatchNorm1d(4)] * 3)], ValueError, r"must be nn.BatchNorm2d\(4\), .* got nn.BatchNorm1d\(4\)"),
]


@pytest.mark.parametrize("stages,error,words", BAD_STAGES, ids=[words[:40] for *_, words in BAD_STAGES])
def test_bad_stages_get_a_sentence(stages: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words) as caught:
        recurrent(X, stages, 3)
    assert str(caught.value).startswith("rdk.functional.recurrent: ")


@pytest.mark.parametrize("kw", [{"tied": False}, {"norm": "batch"}])
def test_more_iterations_than_owned(kw: dict[str, Any]) -> None:
    module = rdk.RecurrentConv(4, 3, **kw)
    before = copy.deepcopy(module.state_dict())
    with pytest.raises(ValueError, match="iterations=50 needs 50 .* but stage 0 owns 3"):
        module(X, iterations=50)
    with pytest.raises(ValueError, match="iterations=2 from start=2 needs 4 .* owns 3.*at most 1 iterations"):
        module(X, iterations=2, start=2)
    assert all(torch.equal(now, before[name]) for name, now in module.state_dict().items())


@pytest.mark.parametrize(
    "kw,error,words",
    [
        ({"checkpoint": "half"}, ValueError, "checkpoint must be one of .* got 'half'"),
        ({"checkpoint": -1}, ValueError, "checkpoint must not be negative, got -1"),
        ({"checkpoint": 1.5}, TypeError, "checkpoint must be .* got 1.5"),
        ({"checkpoint": 2, "memory_budget": 100}, ValueError, "checkpoint=2 or memory_budget=100, not both"),
        ({"memory_budget": "1GB"}, TypeError, "memory_budget must be a number of bytes .* got '1GB'"),
        ({"memory_budget": -5}, ValueError, "memory_budget must not be negative, got -5"),
        ({"backend": "numpy"}, ValueError, "unknown backend 'numpy'"),
        ({"norm": "layer"}, ValueError, "norm must be None or 'batch', got 'layer'"),
        ({"dilation": 0}, ValueError, "dilation must be an integer of at least 1, got 0"),
        ({"dilation": None}, TypeError, r"dilation must be an integer, or a list with one per stage \(1\), got None"),
        ({"dilation": 1.0}, TypeError, "dilation must be an integer, or a list .* got 1.0"),
        ({"dtype": torch.int32}, TypeError, "dtype must be a floating-point torch.dtype .* got torch.int32"),
        ({"dilation": [1, 2]}, ValueError, r"one per stage \(1\), got 2 values"),
    ],
)
def test_bad_settings_get_a_sentence(kw: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        rdk.RecurrentConv(4, 3, **kw)


def test_bad_sizes_get_a_sentence() -> None:
    with pytest.raises(ValueError, match="channels must be at least 1, got 0"):
        rdk.RecurrentConv(0, 3)
    with pytest.raises(TypeError, match="channels must be an integer, got 2.5"):
        rdk.RecurrentConv(2.5, 3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="blocks must be at least 1, got 0"):
        rdk.RecurrentResidual(4, 3, blocks=0)
    with pytest.raises(ValueError, match="stages is empty"):
        recurrent(X, [], 3)
    with pytest.raises(ValueError, match=r"a weight has shape \(5, 5, 3, 3\); expected \(4, 4, 3, 3\)"):
        recurrent(X, [Stage(torch.zeros(4, 4, 3, 3)), Stage(torch.zeros(5, 5, 3, 3))], 3)
    with pytest.raises(ValueError, match=r"a bias has shape \(3,\); expected \(4,\)"):
        recurrent(X, [Stage(torch.zeros(4, 4, 3, 3), torch.zeros(3))], 3)
    with pytest.raises(ValueError, match="stage 0 owns no weight"):
        recurrent(X, [Stage([])], 3)
    with pytest.raises(ValueError, match="iterations of an untied module must be at least 1, got 0"):
        rdk.RecurrentConv(4, 0, tied=False)
    with pytest.raises(ValueError, match=r"must be \(C, C, 3, 3\) or \(F, F\); stage 0 has shape \(4, 4, 5, 5\)"):
        recurrent(X, [Stage(torch.zeros(4, 4, 5, 5))], 3)
    with pytest.raises(ValueError, match="skip names the stage whose input is added"):
        recurrent(X, [Stage(torch.zeros(4, 4, 3, 3), skip=1)], 3)


def plain_only(value: Any) -> bool:
    """Whether no integer in a module's own attributes is of another library."""
    if isinstance(value, (list, tuple)):
        return all(map(plain_only, value))
    return not hasattr(value, "__index__") or type(value) in (int, bool)


@pytest.mark.parametrize("kind", [np.int64, np.uint8, torch.tensor])
def test_integers_of_another_library_become_plain_ones(kind: Any) -> None:
    n = kind(2)
    modules = [
        rdk.RecurrentConv(kind(4), kind(3), dilation=n, checkpoint=n),
        rdk.RecurrentConv(4, 3, memory_budget=kind(100)),
        rdk.RecurrentResidual(kind(4), kind(3), blocks=n, dilation=[n] * 4),
        rdk.RecurrentLinear(kind(4), kind(3), tied=False),
        rdk.from_module(nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU()), n, checkpoint=n),
    ]
    for module in modules:
        for name, value in vars(module).items():
            assert plain_only(value), (name, value)
    weight = torch.randn(4, 4, 3, 3)
    x = torch.randn(2, 4, 40, 40)
    found = recurrent(x, [Stage(weight, dilation=n, skip=kind(0))], n, start=kind(0), checkpoint=n)
    assert torch.equal(found, recurrent(x, [Stage(weight, dilation=2, skip=0)], 2, checkpoint=2))
    plain, other = (rdk.plan(modules[0], tuple(map(k, (2, 4, 40, 40))), checkpoint=k(1)) for k in (int, kind))
    assert plain == other
    assert torch.equal(modules[0](x, iterations=n, start=kind(1)), modules[0](x, iterations=2, start=1))


@pytest.mark.parametrize("value", [np.float64(2), np.bool_(True), np.array([1, 2]), np.array(2.0), True, 2.0])
def test_what_is_no_integer_is_refused(value: Any) -> None:
    for make in (
        lambda: rdk.RecurrentConv(value, 3),
        lambda: rdk.RecurrentConv(4, value),
        lambda: rdk.RecurrentConv(4, 3)(X, iterations=value),
        lambda: rdk.plan(rdk.RecurrentConv(4, 3), (2, 4, 5, value)),
    ):
        with pytest.raises(TypeError, match="must be an integer|must be a sequence of integers"):
            make()
    with pytest.raises((TypeError, ValueError), match="dilation must be an integer"):
        rdk.RecurrentConv(4, 3, dilation=[value])
