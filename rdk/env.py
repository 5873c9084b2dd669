"""The RDK_ variables, read nowhere else in rdk; called by dispatch, extension, measured, the cpu backend and rdk.info."""

from __future__ import annotations

import os
from typing import NamedTuple


class Variable(NamedTuple):
    default: str
    choices: tuple[str, ...]  # empty: any value
    meaning: str


VARIABLES: dict[str, Variable] = {
    "RDK_BACKEND": Variable(
        "auto",
        ("auto", "eager", "cpu", "triton", "cuda"),
        "backend of every call that does not name one, as rdk.use_backend",
    ),
    "RDK_CPU_PRECISION": Variable(
        "fast",
        ("fast", "accurate", "exact"),
        "arithmetic of the cpu backend, as rdk.set_cpu_precision",
    ),
    "RDK_CPU_ISA": Variable(
        "auto",
        ("auto", "avx512", "avx2", "none"),
        "instruction set of the cpu backend; a set that this machine lacks makes the backend unavailable",
    ),
    "RDK_CPU_KEPT_MIB": Variable(
        "256",
        (),
        "MiB of working memory that the cpu backend keeps from call to call at most; 0 keeps none",
    ),
    "RDK_LIBRARY_FOLDER": Variable(
        "auto",
        (),
        "folder of the compiled libraries; auto is that of the package",
    ),
}


def read(name: str) -> str:
    """The value in force of one RDK_ variable. Raises ValueError for a value that is not among its choices."""
    variable = VARIABLES[name]
    value = os.environ.get(name, variable.default)
    if variable.choices and value not in variable.choices:
        raise ValueError(
            f"rdk: the environment variable {name} is {value!r}; expected one of {', '.join(variable.choices)}. "
            f"Unset it or set one of these."
        )
    return value
