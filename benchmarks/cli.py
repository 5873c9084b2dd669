"""Arguments of `python -m benchmarks`, and which function each subcommand calls; called by __main__ and by the tests."""

from __future__ import annotations

import argparse
import os
import select
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch

from benchmarks import (
    contenders,
    dispatch,
    environment,
    gpu,
    profile,
    records,
    report,
    run,
    standing,
    suites,
    worker,
)
from benchmarks.contenders import CONTENDERS
from benchmarks.problem import PRECISIONS
from benchmarks.workloads import WORKLOADS
from rdk import measured
from rdk.dispatch import NAMES
from rdk.dispatch import unavailable as backend_unavailable

DESCRIPTION = (
    "Measures rdk against what a user would run instead. No figure is printed before the same process has checked it."
)


class UsageError(ValueError):
    """An argument that cannot be honoured; its text is what the user reads."""


def device_named(name: str) -> torch.device:
    """Raises UsageError for a device that is not there."""
    if name == "cuda":
        if not torch.cuda.is_available():
            raise UsageError("no NVIDIA GPU can be used here (torch.cuda.is_available() is False); use --device cpu.")
        return torch.device("cuda", torch.cuda.current_device())
    if name != "cpu":
        raise UsageError(f"unknown device {name!r}; expected cpu or cuda.")
    return torch.device("cpu")


def _precisions(arguments: argparse.Namespace, device: torch.device, default: Sequence[str]) -> list[str]:
    """Those asked for. Raises UsageError for one that the device has no arithmetic of."""
    found = list(arguments.dtype or default)
    if device.type == "cpu" and "tf32" in found:
        raise UsageError(
            "tf32 is arithmetic of NVIDIA GPUs; a CPU would compute fp32 under its name. Give --dtype fp32."
        )
    return found


def _pinned(device: torch.device, threads: int) -> None:
    if device.type == "cpu":
        environment.pin(threads)


# --- options that several subcommands take


def _commit(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--commit", help="the commit that records name, for a copy without git")


def _quick(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--quick", action="store_true", help="fewer problems, contenders and samples")


def _device(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--device", default="cpu", help="cpu or cuda (default cpu)")


def _threads(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--threads", type=int, default=1, help="CPU: threads, pinned to as many processors (default 1)")


def _dtypes(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--dtype", action="append", choices=list(PRECISIONS), help="may be given several times")


def _results(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--results", type=Path, default=records.FOLDER, metavar="DIR", help="where the records are")


# --- the subcommands


def _dispatch_options(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--backend", required=True, help="cpu, triton or cuda")
    sub.add_argument("--out", type=Path, metavar="FILE", help="write the table there instead")
    sub.add_argument("--seconds", type=float, help="stop after so long, with a sample of the grid")
    _quick(sub)
    _threads(sub)
    _dtypes(sub)
    _commit(sub)


def _dispatch(arguments: argparse.Namespace) -> int:
    if arguments.backend not in NAMES or arguments.backend == "eager":
        raise UsageError(f"unknown backend {arguments.backend!r}; expected cpu, triton or cuda.")
    device = device_named("cpu" if arguments.backend == "cpu" else "cuda")
    _pinned(device, arguments.threads)
    default = ("fp32",) if device.type == "cpu" else ("bf16", "fp16", "fp32", "tf32")
    return dispatch.run(
        arguments.backend,
        device,
        _precisions(arguments, device, default),
        arguments.quick,
        target=arguments.out,
        given_commit=arguments.commit,
        seconds=arguments.seconds,
    )


def _run_options(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--workload", action="append", metavar="NAME", help="W1 … W7; may be given several times (default all)"
    )
    sub.add_argument("--suite", choices=(*records.COMPARISONS, "all"), default="all")
    sub.add_argument("--contender", action="append", metavar="NAME", help="only these beside eager; see list")
    sub.add_argument("--out", type=Path, metavar="FILE", help="append the records to FILE")
    _device(sub)
    _quick(sub)
    _threads(sub)
    _dtypes(sub)
    _commit(sub)


def _run(arguments: argparse.Namespace) -> int:
    device = device_named(arguments.device)
    _pinned(device, arguments.threads)
    if arguments.workload and arguments.suite not in ("workloads", "all"):
        raise UsageError(f"--workload chooses among the workloads, and the suite {arguments.suite!r} has none of them.")
    chosen = suites.all_workloads(arguments.workload)
    precisions = _precisions(arguments, device, ["fp32"] if device.type == "cpu" else ["bf16", "fp32", "tf32"])
    plan = [
        suites.Task("ceilings", precision) for precision in precisions if arguments.suite not in ("shapes", "linear")
    ]
    if arguments.suite in ("workloads", "all"):
        plan += suites.plan_workloads(chosen, device.type, precisions, arguments.quick)
    if arguments.suite in ("curves", "all") and not arguments.workload:
        plan += suites.plan_curves(device.type, precisions[0], arguments.quick)
    if arguments.suite == "shapes" or (arguments.suite == "all" and device.type == "cpu" and not arguments.workload):
        plan += suites.plan_shapes(device.type, precisions, arguments.quick)
    if arguments.suite == "linear" or (arguments.suite == "all" and not arguments.workload):
        plan += suites.plan_linear(device.type, precisions, arguments.quick)
    if arguments.contender:
        names = tuple(contender.name for contender in contenders.named(arguments.contender))
        names = (*contenders.EAGER, *(name for name in names if name not in contenders.EAGER))
        plan = [replace(task, contenders=names) if task.case else task for task in plan]
    executor = suites.Executor(device, arguments.quick, arguments.commit)
    path = arguments.out or records.path_for(measured.device_name(device))
    environment.make_way_for(path)
    return run.carry_out(plan, executor, path)


def _list(arguments: argparse.Namespace) -> int:
    print("workloads (python -m benchmarks run --workload NAME)")
    for workload in WORKLOADS.values():
        case = workload.case(workload.iterations[-1])
        counts = ", ".join(map(str, workload.iterations))
        maps = " ".join(f"{height}x{width}" for height, width in workload.maps)
        what = case.description.split(", n = ")[0].replace(f"{case.height}x{case.width}", maps)
        print(f"  {workload.name:<4} {workload.title:<18} {what}; iterations {counts}; {', '.join(workload.passes)}")
    print("contenders (--contender NAME)")
    for name, contender in CONTENDERS.items():
        print(f"  {name:<22} {contender.about}".rstrip())
    print("devices")
    for name in ("cpu", "cuda"):
        try:
            print(f"  {name}: {measured.device_name(device_named(name))}")
        except UsageError as error:
            print(f"  {name}: {error}")
    print("backends of rdk")
    for name in NAMES:
        print(f"  {name}: {backend_unavailable(name) or 'available'}")
    return 0


def _gpu_options(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="records, logs and summary; resumed where they are there"
    )
    sub.add_argument("--minutes", type=float, default=8.0)
    sub.add_argument("--fresh", action="store_true", help="measure again what an earlier run has measured")
    _commit(sub)


def _gpu(arguments: argparse.Namespace) -> int:
    return gpu.run(arguments.out, arguments.minutes, arguments.fresh, arguments.commit)


def _worker_options(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--device", default="cuda")
    sub.add_argument("--records", type=Path, required=True)
    _commit(sub)


def _worker(arguments: argparse.Namespace) -> int:
    device = device_named(arguments.device)
    _pinned(device, 1)
    # what compilers and libraries print must not be taken for an answer: fd 1 belongs to the answers' own copy of it
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    executor = suites.Executor(device, True, arguments.commit)
    return worker.serve(sys.stdin, executor, arguments.records, answers)


def _profile_options(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("workload", metavar="WORKLOAD", help="W1 … W7")
    sub.add_argument("--iterations", type=int, help="default: the workload's first headline number")
    sub.add_argument("--batch", type=int, help="default: the workload's on a GPU, one that is quick on a CPU")
    sub.add_argument(
        "--contender", action="append", metavar="NAME", help="default: eager channels_last and rdk's best backend"
    )
    sub.add_argument("--forward", action="store_true", help="inference instead of a training step")
    _device(sub)
    sub.add_argument("--dtype", nargs=1, choices=list(PRECISIONS), help="default: fp32 on a CPU, bf16 on a GPU")
    _threads(sub)


def _profile(arguments: argparse.Namespace) -> int:
    device = device_named(arguments.device)
    _pinned(device, arguments.threads)
    workload = suites.all_workloads([arguments.workload])[0]
    precision = _precisions(arguments, device, ["fp32" if device.type == "cpu" else "bf16"])[0]
    for name in ("iterations", "batch"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            raise UsageError(f"--{name} must be at least 1, got {value}.")
    return profile.run(
        workload, device, precision, arguments.iterations, arguments.batch, arguments.contender, arguments.forward
    )


def _tidy(arguments: argparse.Namespace) -> int:
    return standing.tidy(arguments.results)


def _report_options(sub: argparse.ArgumentParser) -> None:
    _results(sub)
    sub.add_argument("--readme", type=Path, default=environment.ROOT / "README.md", metavar="FILE")
    sub.add_argument(
        "--no-pictures",
        dest="pictures",
        action="store_false",
        help="the README's part only; it links the pictures that are there",
    )


def _report(arguments: argparse.Namespace) -> int:
    return report.run(arguments.results, arguments.readme, arguments.pictures)


class Command(NamedTuple):
    """A subcommand: what it does, the options that it takes, and the function that carries it out."""

    about: str
    options: Callable[[argparse.ArgumentParser], None]
    function: Callable[[argparse.Namespace], int]


COMMANDS = {
    "run": Command("check and time every contender on the workloads and growth curves", _run_options, _run),
    "dispatch": Command(
        "measure a grid of problems for one backend and write rdk/measured/<backend>_<device>.json",
        _dispatch_options,
        _dispatch,
    ),
    "profile": Command(
        "where the time of one workload goes, per kernel, against the floors", _profile_options, _profile
    ),
    "gpu": Command("everything on a bare GPU machine, in order of value, inside the minutes given", _gpu_options, _gpu),
    "worker": Command("used by gpu: carries out the tasks that come on standard input", _worker_options, _worker),
    "report": Command(
        "records to the README's table, pictures and report.html beside the records", _report_options, _report
    ),
    "tidy": Command("drop records from their files that newer ones of the same task have superseded", _results, _tidy),
    "list": Command("the workloads, contenders, devices and backends", lambda sub: None, _list),
}


def parser() -> argparse.ArgumentParser:
    root = argparse.ArgumentParser(prog="python -m benchmarks", description=DESCRIPTION)
    commands = root.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, command in COMMANDS.items():
        sub = commands.add_parser(name, help=command.about, description=command.about)
        command.options(sub)
        sub.set_defaults(function=command.function)
    return root


def _nobody_reads() -> bool:
    """Whether stdout is a pipe whose other end is closed."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one subcommand. Every error is a sentence on stderr and status 2; Ctrl-C is status 130."""
    arguments = parser().parse_args(argv)
    try:
        status: int = arguments.function(arguments)
        sys.stdout.flush()
    except (ValueError, OSError) as error:
        if isinstance(error, BrokenPipeError) and _nobody_reads():  # head, say, had enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 1
        print(f"benchmarks: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nbenchmarks: stopped; the records so far are kept.", file=sys.stderr)
        return 130
    return status
