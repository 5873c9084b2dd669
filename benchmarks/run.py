"""`python -m benchmarks run`: carries out a plan on this machine, appends each comparison's records at once; gpu takes lines()."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks import records
from benchmarks.contenders import EAGER
from benchmarks.records import Record
from benchmarks.suites import Executor, Task


def carry_out(plan: Sequence[Task], executor: Executor, path: Path, say: Callable[[str], None] = print) -> int:
    """Returns 1 where a contender of ours computed something wrong, else 0. Ctrl-C passes through; what is written stays."""
    wrong = 0
    for number, task in enumerate(plan, 1):
        say(f"[{number}/{len(plan)}] {task.name}")
        found = executor.carry_out(task)
        records.append(path, found)
        for line in lines(found):
            say(f"    {line}")
        wrong += sum(record.get("status") == "wrong" and record["contender"].startswith("rdk") for record in found)
    say(f"records are in {path}")
    return 1 if wrong else 0


def lines(found: Sequence[Record]) -> list[str]:
    """What the terminal shows of a comparison: on a GPU milliseconds, elsewhere only ratios to the faster eager."""
    if not found:
        return []
    if found[0]["suite"] == "ceilings":
        one = found[0]
        return [f"{one['flop_per_second'] / 1e12:.3g} TFLOP/s, {one['bytes_per_second'] / 1e9:.3g} GB/s"]
    eager = [r["median_ms"] for r in found if r["contender"] in EAGER and r["status"] == "ok"]
    if len({(record["status"], record["note"]) for record in found}) == 1 and found[0]["status"] != "ok":
        return [f"all contenders {found[0]['status']}: {found[0]['note']}"]
    shown = [f"batch {found[0]['case']['batch']} (cut from {found[0]['uncut_batch']})"]
    if found[0]["case"]["batch"] == found[0]["uncut_batch"]:
        shown = []
    for record in found:
        if record["status"] != "ok":
            shown.append(f"{record['contender']:<22} {record['status']}: {record['note']}")
            continue
        spread = (record["p80_ms"] - record["p20_ms"]) / record["median_ms"]
        ratio = f"{min(eager) / record['median_ms']:6.2f}× eager's speed" if eager else "no eager to compare with"
        line = f"{record['contender']:<22} {ratio}"
        if record["measured_on"]["device_type"] == "cuda":
            line += f", {record['median_ms']:.3f} ms"
        line += f"  (spread {spread:.0%}, {record['samples']} samples, error {record['error']['output']:.1e}"
        line += f", peak {record['peak_bytes'] / 2**20:.1f} MiB)" if record["peak_bytes"] is not None else ")"
        shown.append(line)
    return shown
