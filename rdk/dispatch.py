"""Decides which backend runs a problem, and says why not the others; called by budget (for functional and ops) and by ops."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import NamedTuple

import torch

from rdk import env, measured
from rdk.backends.base import Backend, Problem

# preference order of "auto", after which eager always follows
PREFERENCE = {"cuda": ("cuda", "triton"), "cpu": ("cpu",)}
NAMES = ("eager", "cpu", "triton", "cuda")
PRECISIONS = ("fast", "accurate", "exact")
# multiply-adds below which a call on the CPU runs as plain PyTorch, for deciding alone would take as long as it could save: of
# linear layers, which no backend there runs, and of one convolution of one image, which repays no transform of its weight
TINY_LINEAR_PRODUCTS = 1 << 20
TINY_SINGLE_PRODUCTS = 1 << 20


class Decision(NamedTuple):
    """The backend chosen and, for each other, the sentence why not."""

    backend: str
    reasons: dict[str, str]


class BackendError(RuntimeError):
    """The backend asked for cannot run the problem, or cannot run here."""


# what use_backend and set_cpu_precision change; plain globals, so that torch.compile guards on them
_requested = env.read("RDK_BACKEND")
_cpu_precision = env.read("RDK_CPU_PRECISION")


def check_name(name: str) -> None:
    """Raises ValueError for a word that is neither "auto" nor a backend's name."""
    if name != "auto" and name not in NAMES:
        raise ValueError(f"rdk: unknown backend {name!r}; expected one of auto, {', '.join(NAMES)}.")


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Runs every call inside the with-block that does not name a backend itself on backend `name`.

    The choice is the process's, as PyTorch's thread count is: blocks of several threads must not overlap.

    Raises ValueError for a name that is not a backend's, and BackendError for one that is not available here.
    """
    global _requested
    check_name(name)
    if name != "auto":
        reason = unavailable(name)
        if reason:
            raise BackendError(f"rdk: backend {name!r} is not available: {reason}")
    before = _requested
    _requested = name
    try:
        yield
    finally:
        _requested = before


def requested(backend: str = "auto") -> str:
    """The backend in force for a call that asks for `backend`: its own word, else use_backend's, else RDK_BACKEND's."""
    if backend == "auto":
        return _requested
    check_name(backend)
    return backend


def set_cpu_precision(precision: str) -> None:
    """Chooses the arithmetic of the cpu backend for every later call: "fast", "accurate" or "exact" (eager's own).

    Raises ValueError for another word.
    """
    global _cpu_precision
    if precision not in PRECISIONS:
        raise ValueError(f"rdk: unknown cpu precision {precision!r}; expected one of {', '.join(PRECISIONS)}.")
    _cpu_precision = precision


def cpu_precision() -> str:
    """The arithmetic of the cpu backend in force."""
    return _cpu_precision


def precision_of(device: torch.device, dtype: torch.dtype, kind: str = "conv") -> str:
    """The arithmetic in force: the cpu backend's mode, or on CUDA PyTorch's own TF32 switch for a `kind` of layer, "conv" or
    "linear".

    A compiled module keeps the switch that was in force when it was traced; torch.compiler.reset() forgets it.
    """
    if device.type == "cpu":
        return _cpu_precision
    if device.type == "cuda" and dtype == torch.float32:
        return _float32_arithmetic(kind)
    return "exact"


def threads() -> int:
    """PyTorch's intra-op threads; torch.compile guards every graph by their number."""
    return torch.get_num_threads()


def _float32_arithmetic(kind: str) -> str:
    """Either "tf32" or "ieee": TF32 where PyTorch's switch for the layer or one above it says so, and nowhere else."""
    switch = torch.backends.cuda.matmul if kind == "linear" else torch.backends.cudnn.conv  # type: ignore[attr-defined]
    return "tf32" if switch.fp32_precision == "tf32" else "ieee"


# what torch.compiler.assume_constant_result does, but for an import of torch._dynamo that takes as long as that of torch: Dynamo
# refuses to read these, and would trace no call, and no float32 call on CUDA
threads._dynamo_marked_constant = True  # type: ignore[attr-defined]
_float32_arithmetic._dynamo_marked_constant = True  # type: ignore[attr-defined]


@lru_cache(maxsize=None)
def backend_named(name: str) -> Backend | str:
    """The backend, or the sentence why its code cannot be loaded."""
    path = f"rdk.backends.{name}"
    try:
        module = importlib.import_module(path)
    except ImportError as error:
        if error.name == path:
            return "this version of rdk does not contain it"
        return f"its module cannot be imported ({error})"
    backend: Backend = module.BACKEND
    return backend


def unavailable(name: str) -> str | None:
    """Why backend `name` cannot run on this machine; None where it can."""
    backend = backend_named(name)
    return backend if isinstance(backend, str) else backend.unavailable()


def backends() -> dict[str, bool | str]:
    """Every backend by name: True where it is available, else the reason why not."""
    return {name: unavailable(name) or True for name in NAMES}


def get(name: str) -> Backend:
    """The backend object. Raises BackendError with the reason where it is not available."""
    backend = backend_named(name)
    reason = backend if isinstance(backend, str) else backend.unavailable()
    if reason or isinstance(backend, str):
        raise BackendError(f"rdk: backend {name!r} is not available: {reason}")
    return backend


def refusal(name: str, problem: Problem) -> str | None:
    """Why backend `name` cannot run the problem here; None where it can."""
    backend = backend_named(name)
    if isinstance(backend, str):
        return backend
    return backend.unavailable() or backend.supports(problem)


@lru_cache(maxsize=4096)
def choose(problem: Problem, request: str, layout: str = "any") -> Decision:
    """The backend for a problem. `request` is a backend's name or "auto".

    "auto" takes the first backend of the device's preference that supports the problem and that the shipped measurements
    show ahead of eager on the nearest problem measured (see rdk/measured): of the eager that a state in `layout` would get,
    "contiguous" or "channels_last", or of the faster one for "any". Raises BackendError where a named backend refuses.
    """
    if request != "auto":
        reason = refusal(request, problem)
        if reason:
            raise BackendError(f"rdk: backend {request!r} cannot run this call: {reason}")
        return Decision(request, {name: f"backend {request!r} was asked for" for name in NAMES if name != request})
    reasons: dict[str, str] = {}
    chosen = "eager"
    for name in PREFERENCE.get(problem.device.type, ()):
        reason = refusal(name, problem) or measured.slower_than_eager(name, problem, layout)
        if reason is None:
            chosen = name
            break
        reasons[name] = reason
    for name in NAMES:
        if name != chosen and name not in reasons:
            reasons[name] = _not_considered(name, chosen, problem)
    return Decision(chosen, reasons)


def _not_considered(name: str, chosen: str, problem: Problem) -> str:
    order = PREFERENCE.get(problem.device.type, ())
    if name == "eager" or name in order:
        return f"{chosen!r} comes first and the measurements show it ahead"
    return refusal(name, problem) or f"it is no choice of 'auto' on a {problem.device.type} device"
