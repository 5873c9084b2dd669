"""`python -m rdk.info [--check]`: versions, devices, backends; --check runs each against float64."""

from __future__ import annotations

import argparse
import copy
import platform
import sys
from collections.abc import Iterator
from importlib import metadata

import torch

from rdk import _version, dispatch, env, extension, measured, modules, testing

PACKAGES = ("torch", "triton", "numpy", "torchvision")
# stage kinds that --check runs: class, arguments, whether an inject is given
CASES: tuple[tuple[type[modules.Recurrent], dict[str, object], bool], ...] = (
    (modules.RecurrentConv, {}, False),
    (modules.RecurrentConv, {"tied": False, "checkpoint": 1}, False),
    (modules.RecurrentResidual, {"checkpoint": "sqrt"}, False),
    (modules.RecurrentResidual, {"recall": True, "dilation": 2}, True),
    (modules.RecurrentResidual, {"norm": "batch", "checkpoint": 1}, False),
    (modules.RecurrentLinear, {"norm": "batch"}, False),
)
CHANNELS, ITERATIONS, MAP = 16, 3, (9, 7)


def main(arguments: list[str] | None = None) -> int:
    """Prints the report; with --check returns 1 where a backend computes something else than the reference."""
    parser = argparse.ArgumentParser(prog="python -m rdk.info", description="What a report of a fault should contain.")
    parser.add_argument("--check", action="store_true", help="run each backend that is available against float64 here")
    options = parser.parse_args(arguments)
    print("\n".join(report()))
    if not options.check:
        return 0
    print("\ncheck: relative L2 error of output and gradients against float64 on the CPU, with the bound of each")
    wrong = 0
    for line, right in check():
        print(line, flush=True)
        wrong += not right
    print("all right" if not wrong else f"{wrong} of the checks above failed: please report them with this output")
    return 1 if wrong else 0


def report() -> list[str]:
    """The lines to paste into an issue."""
    lines = [f"rdk {_version.VERSION}, Python {platform.python_version()}, {platform.platform()}"]
    lines += [f"  {name} {_installed(name)}" for name in PACKAGES]
    processor, isa = measured.hardware_name(torch.device("cpu")), torch.backends.cpu.get_cpu_capability()
    lines += [f"devices\n  cpu: {processor} ({isa}), {torch.get_num_threads()} threads"]
    if torch.cuda.is_available():
        for number in range(torch.cuda.device_count()):
            found = torch.cuda.get_device_properties(number)
            memory = found.total_memory / 2**30
            lines.append(f"  cuda:{number}: {found.name}, sm_{found.major}{found.minor}, {memory:.0f} GiB")
    else:
        built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
        lines.append(f"  cuda: none (this PyTorch was {built})")
    lines.append("build")
    lines += [f"  {line}" for line in _build()]
    lines.append("backends")
    for name, state in dispatch.backends().items():
        lines.append(f"  {name}: {'available' if state is True else 'not available: ' + str(state)}")
    lines.append("measurements shipped for dispatch")
    for table in measured.tables():
        hardware = table["measured_on"]["hardware"]
        device = table["device"] if hardware == table["device"] else f"{table['device']} ({hardware})"
        lines.append(f"  {table['backend']} on {device}: {len(table['records'])} problems")
    lines += [] if measured.tables() else ["  none"]
    lines.append("environment")
    lines += [f"  {name}={env.read(name)}  ({about.meaning})" for name, about in env.VARIABLES.items()]
    return lines


def _installed(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "is not installed"


def _build() -> list[str]:
    found = extension.build_info()
    lines = []
    for library in ("cpu", "cuda"):
        reason = extension.load(library)
        lines.append(f"_{library}.so: {'loaded' if reason is None else reason}")
    if found.get("torch"):
        lines.append(f"built with torch {found['torch']}, CUDA {found['cuda']}, Python {found['python']}")
    return lines


def check() -> Iterator[tuple[str, bool]]:
    """One line per backend, device, dtype and stage kind, and whether it is within its bound."""
    for backend, device, dtype in _places():
        for kind, keywords, injected in CASES:
            yield _check_one(backend, device, dtype, kind, keywords, injected)


def _places() -> Iterator[tuple[str, str, torch.dtype]]:
    cuda = torch.cuda.is_available()
    for backend, state in dispatch.backends().items():
        if state is not True:
            continue
        if backend in ("eager", "cpu") or not cuda:
            yield backend, "cpu", torch.float32
        if cuda and backend != "cpu":
            for dtype in (torch.float32, torch.bfloat16):
                yield backend, "cuda", dtype


def _check_one(
    backend: str,
    device: str,
    dtype: torch.dtype,
    kind: type[modules.Recurrent],
    keywords: dict[str, object],
    injected: bool,
) -> tuple[str, bool]:
    generator = torch.Generator().manual_seed(0)
    shape = (6, CHANNELS) if kind is modules.RecurrentLinear else (2, CHANNELS, *MAP)
    module = kind(CHANNELS, ITERATIONS, **keywords)  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in module.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(noise / parameter[0].numel() ** 0.5 if parameter.dim() > 1 else 0.5 + 0.1 * noise)
    x = torch.randn(shape, generator=generator)
    inject = torch.randn(shape, generator=generator) if injected else None
    name = ", ".join([kind.__name__, *(f"{key}={value!r}" for key, value in keywords.items())])
    where = f"  {backend:<6} {device:<4} {str(dtype).removeprefix('torch.'):<8} {name}: "
    # every contender starts from the same rounded numbers
    module, x = module.to(dtype), x.to(dtype)
    inject = None if inject is None else inject.to(dtype)
    wide = None if inject is None else inject.double()
    exact = testing.step(testing.plain_eager(copy.deepcopy(module).double()), x.double(), wide)
    module.backend = backend
    try:
        moved = None if inject is None else inject.to(device)
        got = testing.step(module.to(device), x.to(device), moved)
    except dispatch.BackendError as error:
        return f"{where}refused ({error})", True
    errors = testing.errors(got, exact)
    output, rest = errors.pop("output"), max(errors.values())
    bound, gradients = _bounds(torch.device(device), dtype, "linear" if kind is modules.RecurrentLinear else "conv")
    right = output <= bound and rest <= gradients
    verdict = "right" if right else "WRONG"
    return f"{where}output {output:.1e} (≤ {bound:.0e}), gradients {rest:.1e} (≤ {gradients:.0e}) {verdict}", right


def _bounds(device: torch.device, dtype: torch.dtype, kind: str) -> tuple[float, float]:
    """Of the output and of the gradients, which have room for ReLU masks that flip, as they do in eager too."""
    if dtype != torch.float32:
        return 64 * testing.UNIT[dtype], 0.25
    if dispatch.precision_of(device, dtype, kind) == "tf32":
        return 64 * testing.UNIT[torch.float16], 0.25  # operands of as many bits as float16 has
    return 1e-5, 2e-3  # the bound of the cpu backend's fast mode


if __name__ == "__main__":
    sys.exit(main())
