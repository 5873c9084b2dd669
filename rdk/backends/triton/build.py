"""Compiles launches ahead of time for a GPU that need not be here and reads what came out; for report, tune, benchmarks, tests.

Uses the cuobjdump that triton's package carries. Not for use under TRITON_INTERPRET, whose kernels cannot be compiled.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rdk.backends.triton.launch import Launch

INTERPRETED = "rdk: TRITON_INTERPRET is set, and interpreted kernels cannot be compiled. Unset it."
POINTER_TYPES = {torch.float32: "*fp32", torch.float16: "*fp16", torch.bfloat16: "*bf16"}
# bytes of shared memory that one block may use
SHARED_LIMITS = {80: 166_912, 90: 232_448, 100: 232_448}


@dataclass(frozen=True)
class Built:
    """What the compiler made of a launch: all of it read from the machine code, nothing estimated."""

    kernel: str
    capability: int
    registers: int
    stack_bytes: int
    spilled: int  # instructions that touch local memory
    shared_bytes: int
    matrix_instructions: dict[str, int]  # HGMMA, HMMA, UTCHMMA …: how often each stands in the code
    load_bytes: dict[int, int]  # bytes a thread moves per instruction -> how many such global loads stand in the code


def compile_ahead(launch: Launch, capability: int) -> Built:
    """Compiles `launch` for sm_<capability>. Raises RuntimeError where kernels are interpreted."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    if not isinstance(launch.kernel, triton.runtime.JITFunction):
        raise RuntimeError(INTERPRETED)
    signature, constants, attributes = {}, dict(launch.constants), {}
    for position, parameter in enumerate(launch.kernel.params):
        name = parameter.name
        if name in launch.constants:
            signature[name] = "constexpr"
            continue
        value = launch.arguments[name]
        signature[name] = _type_of(value)
        if value is None:
            constants[name] = None
        specialised = not (parameter.do_not_specialize or parameter.do_not_specialize_on_alignment)
        if isinstance(value, Tensor) and specialised and value.data_ptr() % 16 == 0:  # as triton's own launcher does
            attributes[(position,)] = [["tt.divisibility", 16]]
    source = ASTSource(fn=launch.kernel, signature=signature, constexprs=constants, attrs=attributes)
    options = {"num_warps": launch.warps, "num_stages": launch.stages}
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    return _read(launch.kernel.fn.__name__, capability, compiled)


def _type_of(value: Any) -> str:
    """The type that triton's own launcher would give an argument."""
    if value is None:
        return "constexpr"
    if isinstance(value, Tensor):
        return POINTER_TYPES[value.dtype]
    if isinstance(value, float):
        return "fp32"
    return "i32" if -(2**31) <= value < 2**31 else "i64"


def _read(kernel: str, capability: int, compiled: Any) -> Built:
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernel.cubin"
        cubin.write_bytes(compiled.asm["cubin"])
        usage = _cuobjdump("--dump-resource-usage", cubin)
        sass = _cuobjdump("--dump-sass", cubin)
    numbers = dict(re.findall(r"(REG|STACK):(\d+)", usage))
    return Built(
        kernel=kernel,
        capability=capability,
        registers=int(numbers["REG"]),
        stack_bytes=int(numbers["STACK"]),
        spilled=len(re.findall(r"\b(?:LDL|STL)\b", sass)),
        shared_bytes=compiled.metadata.shared,
        matrix_instructions=_matrix_instructions(sass),
        load_bytes=_load_bytes(sass),
    )


def _cuobjdump(option: str, cubin: Path) -> str:
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    done = subprocess.run([str(tool), option, str(cubin)], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"rdk: {tool} failed on a compiled kernel: {done.stderr.strip()}")
    return done.stdout


def _matrix_instructions(sass: str) -> dict[str, int]:
    counts: dict[str, int] = {}
    for name in re.findall(r"\b(HGMMA|HMMA|UTCHMMA|UTCQMMA|UTCOMMA)\b", sass):
        counts[name] = counts.get(name, 0) + 1
    return counts


def _load_bytes(sass: str) -> dict[int, int]:
    """Global loads, to registers (LDG) or to shared memory (LDGSTS), by the bytes of one thread."""
    counts: dict[int, int] = {}
    for modifiers in re.findall(r"\b(?:LDGSTS|LDG)\b((?:\.\w+)*)", sass):
        words = modifiers.split(".")
        bits = 256 if "256" in words else 128 if "128" in words else 64 if "64" in words else 32
        if any(word in words for word in ("U8", "S8")):
            bits = 8
        if any(word in words for word in ("U16", "S16")):
            bits = 16
        counts[bits // 8] = counts.get(bits // 8, 0) + 1
    return counts
