"""The names and signatures that users build on; a change here is a change of the contract."""

from __future__ import annotations

import inspect

import rdk

SETTINGS = {"tied": True, "checkpoint": "auto", "memory_budget": None, "backend": "auto", "device": None, "dtype": None}


def defaults(callable_object: object) -> dict[str, object]:
    parameters = inspect.signature(callable_object).parameters  # type: ignore[arg-type]
    return {name: p.default for name, p in parameters.items() if p.default is not p.empty}


def test_names() -> None:
    assert rdk.__all__ == [
        "BackendError",
        "BudgetError",
        "RecurrentConv",
        "RecurrentLinear",
        "RecurrentResidual",
        "__version__",
        "backends",
        "explain",
        "from_module",
        "functional",
        "plan",
        "set_cpu_precision",
        "to_modules",
        "use_backend",
    ]
    assert all(hasattr(rdk, name) for name in rdk.__all__)


def test_constructors() -> None:
    assert defaults(rdk.RecurrentConv) == {"bias": True, "norm": None, "dilation": 1} | SETTINGS
    residual = {"blocks": 2, "recall": False, "bias": False, "norm": None, "dilation": 1} | SETTINGS
    assert defaults(rdk.RecurrentResidual) == residual
    assert defaults(rdk.RecurrentLinear) == {"bias": True, "norm": None} | SETTINGS
    for cls, size in [
        (rdk.RecurrentConv, "channels"),
        (rdk.RecurrentResidual, "channels"),
        (rdk.RecurrentLinear, "features"),
    ]:
        parameters = inspect.signature(cls).parameters
        positional = [name for name, p in parameters.items() if p.kind is p.POSITIONAL_OR_KEYWORD]
        assert positional == [size, "iterations"]


def test_calls() -> None:
    expected = {"iterations": None, "start": 0, "inject": None, "return_states": False}
    assert defaults(rdk.RecurrentConv.forward) == expected
    assert list(inspect.signature(rdk.functional.recurrent).parameters)[:3] == ["x", "stages", "iterations"]
    assert list(inspect.signature(rdk.plan).parameters)[:4] == ["module", "input_shape", "dtype", "memory_budget"]
    assert list(inspect.signature(rdk.explain).parameters)[:2] == ["module", "x"]
    assert list(inspect.signature(rdk.from_module).parameters)[:2] == ["block", "iterations"]


def test_every_public_thing_has_a_docstring() -> None:
    for name in rdk.__all__:
        if not name.startswith("__"):
            assert (getattr(rdk, name).__doc__ or "").strip(), name
