"""`python -m benchmarks profile W4`: where the time goes per kernel (torch.profiler), with FLOP and bytes against the floors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.profiler import ProfilerActivity

from benchmarks import contenders, floors, measure
from benchmarks.contenders import CONTENDERS
from benchmarks.judge import Judge
from benchmarks.problem import PRECISIONS, Prepared, Problem
from benchmarks.suites import QUICK_STEP_SECONDS, Executor
from benchmarks.timing import Patience, interleave, stopwatch
from benchmarks.workloads import Workload

ROWS = 12
STEPS = 5


@dataclass(frozen=True)
class Kernel:
    """One kernel, or one PyTorch operator on a CPU, over one step."""

    name: str
    calls: float
    milliseconds: float
    share: float


def run(
    workload: Workload,
    device: torch.device,
    precision_name: str,
    iterations: int | None,
    batch: int | None,
    names: Sequence[str] | None,
    forward: bool,
    say: Callable[[str], None] = print,
) -> int:
    """Checks the contenders, then prints the floors and each contender's kernels. Returns 1 where a result was wrong."""
    precision = PRECISIONS[precision_name]
    training = "training" in workload.passes and not forward
    case = workload.case(workload.headline[0] if iterations is None else iterations)
    if batch is not None:
        case = case.with_batch(batch)
    elif device.type == "cpu":
        case, reason = Executor(device, step_seconds=QUICK_STEP_SECONDS).fitted(case, precision, training)
        if reason is not None:
            raise ValueError(f"{case.label}: {reason}; give --iterations or another workload.")
    precision.apply()
    names = names or ["eager channels_last", f"rdk {contenders.ours(device.type)[0]}"]
    problem = Problem(case, precision, device)
    floor = floors.floor(case, training, precision.dtype.itemsize)
    ceilings = floors.measure_ceilings(device, precision)
    least = floor.milliseconds(ceilings.flop_per_second, ceilings.bytes_per_second)
    say(
        f"{case.label}: {case.description}; {'training step' if training else 'forward'}, {precision.name}, {device.type}"
    )
    say(
        f"floor: {floor.flop / 1e9:.1f} GFLOP and {floor.bytes / 2**20:.1f} MiB, {least:.3f} ms at the ceilings measured just now:"
    )
    say(
        f"  {ceilings.flop_per_second / 1e12:.3g} TFLOP/s in a matrix product, {ceilings.bytes_per_second / 1e9:.3g} GB/s in a copy"
    )
    running, wrong = checked(problem, training, names, say)
    watch = stopwatch(device)
    timings = interleave({name: one.run for name, one in running.items()}, watch, Patience(2.0, 5, 50, 0))
    for name, prepared in running.items():
        median = timings[name].median
        achieved = floor.flop / (median / 1e3)
        say(
            f"\n{name}: median {median:.3f} ms of {timings[name].samples}, {median / least:.2f} times the floor, "
            f"{achieved / 1e12:.3g} TFLOP/s"
        )
        table(kernels(prepared, device), say)
    return 1 if wrong else 0


def checked(
    problem: Problem, training: bool, names: Sequence[str], say: Callable[[str], None]
) -> tuple[dict[str, Prepared], bool]:
    """The contenders whose results are right, ready to run, and whether one of them was wrong."""
    judge = Judge(problem, training)
    for name in contenders.EAGER:
        judge.fault_of(name, CONTENDERS[name].make(problem, training))
    running: dict[str, Prepared] = {}
    wrong = False
    for contender in contenders.named(names):
        reason = contender.why_not(problem, training)
        if reason is not None:
            say(f"{contender.name} is left out: {reason}")
            continue
        try:
            prepared = contender.make(problem, training)
            fault = judge.fault_of(contender.name, prepared)
        except Exception as error:
            say(f"{contender.name} failed: {measure.first_line(error)}")
            continue
        if fault is None:
            running[contender.name] = prepared
        else:
            say(f"{contender.name} is wrong, so it is not timed: {fault}")
            wrong = True
    return running, wrong


def kernels(prepared: Prepared, device: torch.device) -> list[Kernel]:
    """The kernels of one step by total time, from STEPS steps."""
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device.type == "cuda" else [])
    prepared.run()
    with torch.profiler.profile(activities=activities) as profile:
        for _ in range(STEPS):
            prepared.run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    on_gpu = device.type == "cuda"
    found: list[tuple[str, float, float]] = []
    for event in profile.key_averages():
        microseconds = event.self_device_time_total if on_gpu else event.self_cpu_time_total
        if microseconds > 0 and (not on_gpu or str(event.device_type).endswith("CUDA")):
            found.append((event.key, event.count / STEPS, microseconds / 1e3 / STEPS))
    total = sum(milliseconds for _, _, milliseconds in found) or 1.0
    found.sort(key=lambda entry: -entry[2])
    return [Kernel(name, calls, milliseconds, milliseconds / total) for name, calls, milliseconds in found]


def table(found: Sequence[Kernel], say: Callable[[str], None]) -> None:
    """The largest kernels and one line for the rest; with rich where it is installed."""
    rest = found[ROWS:]
    rows = [(k.name, f"{k.calls:g}", f"{k.milliseconds:.3f}", f"{k.share:.1%}") for k in found[:ROWS]]
    if rest:
        milliseconds, share = sum(k.milliseconds for k in rest), sum(k.share for k in rest)
        rows.append((f"{len(rest)} others", f"{sum(k.calls for k in rest):g}", f"{milliseconds:.3f}", f"{share:.1%}"))
    titles = ("kernel", "calls", "ms", "share")
    rich = _rich_table(titles, rows)
    if rich is not None:
        say(rich)
        return
    for name, *figures in (titles, *rows):
        say(f"  {name[:76]:<76} {''.join(f'{figure:>10}' for figure in figures)}")


def _rich_table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str | None:
    try:
        from rich.console import Console
        from rich.table import Table
    except ImportError:
        return None
    shown = Table(box=None, pad_edge=False)
    for number, title in enumerate(titles):
        options: dict[str, Any] = (
            {"justify": "right"} if number else {"overflow": "ellipsis", "max_width": 76, "no_wrap": True}
        )
        shown.add_column(title, **options)
    for row in rows:
        shown.add_row(*row)
    console = Console(width=120)
    with console.capture() as captured:
        console.print(shown)
    return captured.get().rstrip("\n")
