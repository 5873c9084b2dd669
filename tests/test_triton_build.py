"""Shipped configurations compiled ahead of time for GPUs that need not be here; what is asserted is read from the machine code."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import triton_floors
from rdk.backends.triton import build, report, shipped

ROOT = Path(__file__).parent.parent
# device, capability, arithmetic, channels, use
SAMPLE = [
    ("NVIDIA H200", 90, "half", 256, "forward"),
    ("NVIDIA H200", 90, "half", 128, "normalising"),
    ("NVIDIA H200", 90, "half", 64, "input gradient through a norm"),
    ("NVIDIA H200", 90, "half", 256, "input gradient through a norm"),
    ("NVIDIA H200", 90, "half", 300, "forward"),
    ("NVIDIA H200", 90, "tf32", 64, "input gradient"),
    ("NVIDIA H200", 90, "half", 128, "weight gradient, normalising"),
    ("default", 80, "half", 64, "forward"),
    ("default", 80, "half", 128, "weight gradient"),
    ("default", 100, "half", 64, "known norm"),
]
# compiles in a process of its own: the tests' process may have triton's interpreter switched on
PROGRAM = """
import dataclasses, json, sys
from rdk.backends.triton import report, shipped
wanted, changed = json.loads(sys.argv[1]), json.loads(sys.argv[2])
for item in shipped.all_shipped():
    key = [item.device, item.capability, item.arithmetic, item.channels, item.use]
    if wanted is None or key in wanted:
        launch = dataclasses.replace(item.launch, constants=item.launch.constants | changed)
        item, c = item._replace(launch=launch), launch.constants
        row = report.row_of(item)
        size = 2 if item.arithmetic == "half" else 4
        p, k, n, inner = (c.get(f"BLOCK_{axis}", 0) for axis in "PKNC")
        tiles = p * (k + n) if n else (p + k) * inner  # elements that one step loads; 0 for what is no product
        vectors = tiles * size // (16 * 32 * item.launch.warps)
        print("ROW" + json.dumps([key, item.pixels, vectors, dataclasses.asdict(row.built)]), flush=True)
"""


def compiled(wanted: list[Any] | None, **changed: Any) -> list[Any]:
    """Key, pixels, 16-byte vectors that a step needs of a thread, and what was built, of each; `changed`: other constants."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = str(ROOT)
    arguments = [sys.executable, "-c", PROGRAM, json.dumps(wanted), json.dumps(changed)]
    done = subprocess.run(arguments, capture_output=True, text=True, env=environment, timeout=3000)
    assert done.returncode == 0, done.stderr
    return [json.loads(line[3:]) for line in done.stdout.splitlines() if line.startswith("ROW")]


def check(rows: list[Any]) -> None:
    wrong = [message for row in rows for message in faults(*row)]
    assert not wrong, "\n".join(wrong)


def faults(key: list[Any], pixels: int, vectors: int, built: dict[str, Any]) -> list[str]:
    """What the compiler made of one launch and should not have."""
    device, capability, arithmetic, channels, use = key
    name = f"{use}, C {channels}, {pixels} pixels, {arithmetic} on sm_{capability} as for {device}: "
    found = []
    if built["stack_bytes"] or built["spilled"]:
        found.append(f"{name}{built['stack_bytes']} bytes of stack, {built['spilled']} spilled")
    if built["shared_bytes"] > build.SHARED_LIMITS[capability]:
        found.append(f"{name}{built['shared_bytes']} bytes of shared memory")
    if use in shipped.AROUND_NORMS:
        return found
    if arithmetic != "ieee":
        expected = {80: ("HMMA",), 90: ("HGMMA",), 100: ("HMMA", "UTCHMMA")}[capability]
        if capability == 90 and channels < 64:
            expected = ("HGMMA", "HMMA")  # HGMMA computes 64 rows at least
        if not any(built["matrix_instructions"].get(kind, 0) for kind in expected):
            found.append(f"{name}no {expected}, only {built['matrix_instructions']}")
    if use.startswith("weight gradient") and arithmetic == "tf32" and capability >= 90:
        return found  # TF32 operands must lie along K, which are pixels here: these loads stay at 4 bytes (docs/kernels.md)
    if channels * (2 if arithmetic == "half" else 4) % 16:
        return found
    # a step's operands come in 16-byte vectors: at least as many such loads as one step needs of a thread
    if not built["load_bytes"].get("16", 0) >= vectors > 0:
        found.append(f"{name}{built['load_bytes']} loads by bytes, {vectors} vectors of 16 needed")
    return found


def test_a_sample_of_the_shipped_configurations() -> None:
    rows = compiled(SAMPLE)
    assert {tuple(row[0]) for row in rows} == set(SAMPLE)
    check(rows)


def test_rows_that_are_not_aligned_are_not_loaded_in_vectors() -> None:
    """What the assertion on 16-byte loads is worth: it is red where the launcher does not promise aligned rows."""
    rows = compiled([SAMPLE[6]], ALIGNED=False)
    assert rows
    for row in rows:
        assert any("vectors of 16 needed" in message for message in faults(*row)), row


@pytest.mark.slow
def test_every_shipped_configuration() -> None:
    rows = compiled(None)
    assert len(rows) > 150
    check(rows)


def test_sass_is_read_as_it_is_written() -> None:
    sass = """
        /*0100*/  LDGSTS.E.BYPASS.128 [R3], desc[UR16][R4.64] ;
        /*0110*/  LDG.E.U16 R7, desc[UR4][R8.64] ;
        /*0120*/  LDG.E R7, desc[UR4][R8.64] ;
        /*0130*/  LDGDEPBAR ;
        /*0140*/  HGMMA.64x128x16.F32.BF16 R24, gdesc[UR4], R24, gsb0 ;
    """
    assert build._load_bytes(sass) == {16: 1, 2: 1, 4: 1}
    assert build._matrix_instructions(sass) == {"HGMMA": 1}


def test_the_page_says_what_chose_each_tile() -> None:
    """The last cell of every row, as the table of tiles has it."""
    page = (ROOT / "docs" / "kernels.md").read_text(encoding="utf-8")
    found = page.split("<!-- begin configurations -->")[1].split("<!-- end configurations -->")[0].strip().splitlines()
    rows = [line.split("|")[-2].strip() for line in found[2:]]
    assert found[0].endswith("| tile chosen by |") and len(rows) > 150
    assert set(rows) == {item.origin for item in shipped.all_shipped()}
    assert "nothing here has run on a GPU" in " ".join(page.split())


@pytest.mark.parametrize("program", ["rdk.backends.triton.report", "benchmarks.triton_floors"])
def test_interpreted_kernels_are_not_compiled(program: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", program], capture_output=True, text=True, cwd=ROOT,
        env=os.environ | {"TRITON_INTERPRET": "1"}, timeout=120,
    )  # fmt: skip
    assert done.returncode == 1 and "Unset it" in done.stderr


def test_an_interpreter_that_is_switched_off_hinders_nobody(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    monkeypatch.setattr(report, "build_all", lambda jobs: [])
    assert report.main([]) == 0
    assert "| device | sm |" in capsys.readouterr().out


def test_the_page_has_the_arithmetic_of_every_workload(monkeypatch: pytest.MonkeyPatch) -> None:
    """All columns but those that the compiler decides: registers and shared memory say how many programs are resident."""
    page = (ROOT / "docs" / "kernels.md").read_text(encoding="utf-8")
    found = page.split("<!-- begin floors -->")[1].split("<!-- end floors -->")[0].strip().splitlines()
    monkeypatch.setattr(triton_floors, "_residency", lambda setting, use, dilation: (1, 1))
    expected = triton_floors.floor_table(triton_floors.floors(triton_floors.headline_cases())).splitlines()
    assert [line.split("|")[1:7] for line in found] == [line.split("|")[1:7] for line in expected]
