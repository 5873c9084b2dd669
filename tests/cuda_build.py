"""Builds csrc/cuda for the tests: with g++ against the CPU stand-in, or with nvcc; objects are kept in build/ by hash."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path

import pytest
import torch
from torch.utils import cpp_extension

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "csrc" / "cuda"
BUILT = ROOT / "build" / "cuda-tests"
KERNELS = sorted(path.name for path in SOURCE.glob("*.cu"))
MACHINE = ["standin/machine.cpp", "standin/global.cpp", "standin/products.cpp"]
OPERATORS = sorted(path.name for path in SOURCE.glob("ops*.cpp"))
CHECKS = sorted(f"standin/{path.name}" for path in (SOURCE / "standin").glob("check*.cpp"))
ARITHMETIC = sorted(f"standin/{path.name}" for path in (SOURCE / "standin").glob("arithmetic*.cpp"))
NAMESPACE = "rdk_standin"
WARNINGS = ["-Wall", "-Werror", "-Wno-unknown-pragmas"]
STANDIN_FLAGS = ["-O2", "-std=c++20", "-mavx2", "-mf16c", "-mfma", "-fPIC", "-pthread", "-DRDK_STANDIN", *WARNINGS]
NVCC_FLAGS = ["-O3", "-std=c++20", "-lineinfo", "-Xptxas", "-v", "-gencode", "arch=compute_90a,code=sm_90a"]


@lru_cache(maxsize=1)
def _sources_hash() -> bytes:
    """Everything that any object may include."""
    digest = hashlib.sha256(torch.__version__.encode())
    for path in sorted(SOURCE.rglob("*")):
        if path.suffix in (".h", ".cuh"):
            digest.update(path.name.encode() + path.read_bytes())
    return digest.digest()


def _built(name: str, key: bytes, command: list[str]) -> Path:
    """The output of `command` ({} stands for its path), made unless it is there; its messages lie beside it in .log."""
    target = BUILT / f"{hashlib.sha256(key).hexdigest()[:16]}-{name}"
    if target.exists():
        return target
    BUILT.mkdir(parents=True, exist_ok=True)
    with target.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another test process may be making it
        if target.exists():
            return target
        work = target.with_suffix(f".{os.getpid()}")
        done = subprocess.run([word.replace("{}", str(work)) for word in command], capture_output=True, text=True)
        assert done.returncode == 0, f"{' '.join(command)}\n{done.stderr[:6000]}"
        log_of(target).write_text(done.stdout + done.stderr)
        work.rename(target)
    return target


def log_of(target: Path) -> Path:
    """Where the messages of the command that made `target` are kept."""
    return target.with_name(target.name + ".log")


def standin_object(source: str, *flags: str) -> Path:
    """A source file compiled by g++ against the stand-in. Skips the test where there is no compiler."""
    if shutil.which("g++") is None:
        pytest.skip("there is no g++ to build the stand-in with")
    path = SOURCE / source
    command = ["g++", *STANDIN_FLAGS, *flags, "-x", "c++", "-c", str(path), "-o", "{}"]
    key = _sources_hash() + path.read_bytes() + " ".join(command).encode()
    return _built(path.stem + ".o", key, command)


def _objects(sources: list[str], *flags: str) -> list[Path]:
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(lambda source: standin_object(source, *flags), sources))


def _linked(name: str, objects: list[Path], *flags: str) -> Path:
    command = ["g++", "-pthread", *map(str, objects), *flags, "-o", "{}"]
    return _built(name, " ".join(command).encode(), command)


def check_program(broken: str | None = None, *flags: str) -> Path:
    """The program standin/check*.cpp; with `broken`, one RDK_BREAK_ macro is set in the bfloat16 kernel that it begins with."""
    objects = _objects([*MACHINE, *CHECKS], *flags)
    for kernel in KERNELS:
        hit = broken is not None and broken.startswith(kernel.removesuffix("bf16.cu").upper())
        objects += _objects([kernel], *flags, *([f"-DRDK_BREAK_{broken}", "-O1"] if hit else []))
    return _linked("check", objects, *flags)


def arithmetic_program() -> Path:
    """The program standin/arithmetic*.cpp."""
    return _linked("arithmetic", _objects(ARITHMETIC))


def standin_library() -> Path:
    """All operators over the stand-in, on CPU tensors, in the namespace rdk_standin."""
    include = [f"-I{path}" for path in cpp_extension.include_paths()]
    abi = f"-D_GLIBCXX_USE_CXX11_ABI={int(torch._C._GLIBCXX_USE_CXX11_ABI)}"
    objects = _objects([*MACHINE, *KERNELS])
    objects += _objects(OPERATORS, f"-DRDK_NAMESPACE={NAMESPACE}", abi, *include)
    folders = [f"-L{path}" for path in cpp_extension.library_paths()]
    return _linked("standin.so", objects, "-shared", *folders, "-ltorch", "-ltorch_cpu", "-lc10")


def compiled_kernel(source: str, *flags: str) -> tuple[Path, str]:
    """One .cu file compiled by nvcc to sm_90a machine code, and what ptxas said. Skips the test where there is no nvcc."""
    if shutil.which("nvcc") is None:
        pytest.skip("there is no nvcc to compile the kernels with")
    path = SOURCE / source
    command = ["nvcc", *NVCC_FLAGS, *flags, "-cubin", str(path), "-o", "{}"]
    cubin = _built(path.stem + ".cubin", _sources_hash() + path.read_bytes() + " ".join(command).encode(), command)
    return cubin, log_of(cubin).read_text()


def machine_code(cubin: Path) -> dict[str, str]:
    """The disassembly of every kernel in a cubin, by its mangled name. Skips the test where there is no disassembler."""
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    found = str(tool) if tool.exists() else shutil.which("cuobjdump")
    if found is None:
        pytest.skip("there is no cuobjdump to read the machine code with")
    text = subprocess.run([found, "-sass", str(cubin)], capture_output=True, text=True, check=True).stdout
    parts = text.split("Function : ")[1:]
    return {part.split("\n", 1)[0].strip(): part for part in parts}
