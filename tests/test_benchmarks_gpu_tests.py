"""benchmarks/gpu_tests.py: a fault or a hang in one test leaves the others their results, and a cut-short run is gone on with."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from test_benchmarks_gpu import ABOUT

from benchmarks import gpu, gpu_tests, libraries, records
from benchmarks.agenda import Agenda
from benchmarks.environment import ROOT

# collects tests marked gpu as a machine does that has PyTorch, pytest and hypothesis only
BARE = """
import sys
ABSENT = {"tyro", "rich", "matplotlib", "scipy", "networkx", "pandas", "jinja2", "sklearn", "submitit", "tensorboard", "torchcodec"}
class Bare:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ABSENT:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Bare())
import pytest
sys.exit(pytest.main([*sys.argv[1:], "-m", "gpu", "-q", "--collect-only", "-p", "no:cacheprovider"]))
"""

UNRELIABLE = """
import os, time, pytest
broken = []
pytestmark = pytest.mark.gpu
def test_a(): pass
def test_b():
    broken.append(1)
    raise RuntimeError("CUDA error: an illegal memory access was encountered")
def test_c(): assert not broken
def test_d(): assert 1 == 2
def test_e(): os._exit(3)
@pytest.mark.parametrize("words", ["no words", "one"])
def test_f(words): pytest.skip("no card") if words == "one" else None
def test_g(): time.sleep(600)
def test_h(): assert not broken
"""


@pytest.mark.slow
def test_a_test_that_hangs_or_breaks_the_context_leaves_the_others_their_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "test_unreliable.py"
    file.write_text(UNRELIABLE)
    monkeypatch.setattr(gpu_tests, "QUIET_WHILE_COMPILING", 6.0)
    monkeypatch.setattr(libraries, "ROOT", tmp_path)
    monkeypatch.setattr(gpu_tests, "files", lambda: [file.name])
    found = gpu_tests.run(tmp_path / "log", 300, ABOUT)
    assert found["status"] == 1 and found["result"].startswith(
        "1 ended its process with status 3, 2 failed, 1 hung for 6 s, 4 passed, 1 skipped in "
    )
    names = [failure.split("::", 1)[1] for failure in found["failures"]]
    assert names == [
        "test_b: failed",  # its process died before it gave reasons
        "test_d: failed",
        "test_e: ended its process with status 3",
        "test_g: hung for 6 s",
    ]


def test_a_broken_context_is_told_from_a_test_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "test_broken.py"
    file.write_text(UNRELIABLE.split("def test_e")[0])
    monkeypatch.setattr(libraries, "ROOT", tmp_path)
    monkeypatch.setattr(gpu_tests, "files", lambda: [file.name])
    found = gpu_tests.run(tmp_path / "log", 300, ABOUT)
    assert found["result"].startswith("2 failed, 2 passed in ")
    assert found["failures"] == [
        "test_broken.py::test_b: failed (RuntimeError: CUDA error: an illegal memory access was encountered)",
        "test_broken.py::test_d: failed (assert 1 == 2)",
    ]


def test_tests_that_the_time_did_not_reach_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "test_slow.py"
    file.write_text("import time, pytest\npytestmark = pytest.mark.gpu\ndef test_a(): time.sleep(600)\n")
    monkeypatch.setattr(libraries, "ROOT", tmp_path)
    monkeypatch.setattr(gpu_tests, "LEAST", 6.0)
    monkeypatch.setattr(gpu_tests, "files", lambda: [file.name])
    found = gpu_tests.run(tmp_path / "log", 1, ABOUT)
    assert found["status"] == gpu_tests.UNFINISHED
    assert found["failures"] == [
        f"test_slow.py::test_a: {gpu_tests.LATE}",
        f"tests behind these: {gpu_tests.UNREACHED}",
    ]


def test_an_unfinished_run_of_tests_is_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, ran = tmp_path / "test_two.py", tmp_path / "ran"
    file.write_text(
        "import os, pytest\npytestmark = pytest.mark.gpu\n"
        f"def note(name): open({str(ran)!r}, 'a').write(name)\n"
        "def test_a(): note('a'); assert False, 'broken a'\ndef test_b(): note('b')\ndef test_c(): note('c')\n"
        "def test_b_too(): note('d')\n"
    )
    monkeypatch.setattr(gpu_tests, "files", lambda: [file.name])
    monkeypatch.setattr(libraries, "ROOT", tmp_path)
    outcomes = {"test_two.py::test_a": "failed", "test_two.py::test_b": "passed"}
    cut_short = {"suite": "tests", "status": gpu_tests.UNFINISHED, "outcomes": outcomes}
    before, complete = gpu_tests.known([cut_short])
    assert not complete
    found = gpu_tests.run(tmp_path / "log", 60, ABOUT, before)
    assert ran.read_text() == "cd" and found["result"].startswith("1 failed, 3 passed in")
    assert found["status"] == 1 and found["failures"] == ["test_two.py::test_a: failed"]
    assert {path.name for path in tmp_path.iterdir() if path.is_file()} == {"test_two.py", "ran", "log"}
    assert gpu_tests.known([cut_short, found]) == (found["outcomes"], True)
    assert gpu_tests.known([{"suite": "tests", "status": gpu_tests.NOT_RUN}]) == ({}, False)


def test_the_tests_that_tell_most_come_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "test_gpu.py"
    names = [
        "past_two_to_the_thirty_one[cuda]", "step[triton]", "step_under_a_cuda_graph[triton]", "step[cuda]",
        "whole_numbers[triton]", "whole_numbers[cuda]",
    ]  # fmt: skip
    tests = {}
    for name in names:
        test, _, backend = name.rstrip("]").partition("[")
        tests.setdefault(test, []).append(backend)
    file.write_text(
        "import pytest\npytestmark = pytest.mark.gpu\n"
        + "".join(
            f"@pytest.mark.parametrize('backend', {backends})\ndef test_{test}(backend): pass\n"
            for test, backends in tests.items()
        )
    )
    monkeypatch.setattr(libraries, "ROOT", tmp_path)
    monkeypatch.setattr(gpu_tests, "files", lambda: [file.name])
    found = gpu_tests.run(tmp_path / "log", 60, ABOUT)
    assert found["status"] == 0
    ran = [name.removeprefix("test_gpu.py::test_") for name in found["outcomes"]]
    assert ran[:2] == ["whole_numbers[cuda]", "step[cuda]"] and ran[-1] == "past_two_to_the_thirty_one[cuda]"
    assert set(ran) == set(names)


def test_a_test_that_triton_compiles_for_may_be_silent_for_longer() -> None:
    compiled = gpu_tests.quiet("tests/test_gpu.py::test_a[cuda-1] PASSED\ntests/test_cuda_gpu.py::test_b[2] ")
    assert compiled == gpu_tests.QUIET < gpu_tests.QUIET_WHILE_COMPILING
    for words in ("", "tests/test_cuda_gpu.py::test_b PASSED\ntests/test_gpu.py::test_a_cuda_graph[triton-1] "):
        assert gpu_tests.quiet(words) == gpu_tests.QUIET_WHILE_COMPILING


def test_a_file_that_cannot_be_collected_is_a_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "test_missing.py"
    file.write_text("import no_such_module  # pytest.mark.gpu\n")
    monkeypatch.setattr(libraries, "ROOT", tmp_path)
    monkeypatch.setattr(gpu_tests, "files", lambda: [file.name])
    found = gpu_tests.run(tmp_path / "log", 60, ABOUT)
    assert found["status"] == 1 and found["failures"][0].endswith("ended with pytest's status 2")


def test_the_gpu_tests_are_collected_where_only_their_packages_are_installed() -> None:
    files = gpu_tests.files()
    assert {"tests/test_triton_gpu.py", "tests/test_cuda_gpu.py"} <= set(files)
    assert "tests/test_experiments_cli.py" not in files
    done = subprocess.run([sys.executable, "-c", BARE, *files], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and " error" not in done.stdout, done.stdout[-3000:]
    assert "test_triton_gpu.py::" in done.stdout


def test_without_the_tests_packages_nothing_is_run_and_that_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_tests, "PACKAGES", ("pytest", "no_such_package"))
    monkeypatch.setattr(libraries, "logged", lambda *a, **kw: pytest.fail("pytest was started"))
    found = gpu_tests.run(tmp_path / "log", 10, ABOUT)
    assert (found["status"], found["result"]) == ("not run", "not run: no_such_package is not installed")
    records.append(tmp_path / "records.jsonl", [found])
    nothing = Agenda([], [], 0.0, lambda: 0.0)
    said: list[str] = []
    assert gpu.close(tmp_path, tmp_path / "records.jsonl", nothing, None, ABOUT, said.append) == 0
    assert "Tests: not run: no_such_package" in said[0]


def test_a_log_that_ends_within_a_character_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(where: list[str], log: Path, seconds: float, before: Mapping[str, str]) -> dict[str, str]:
        log.write_bytes(b"FAILED test_a.py::test_b - 2 \xc3")
        return {"test_a.py::test_b": "failed"}

    monkeypatch.setattr(gpu_tests, "outcomes", killed)
    found = gpu_tests.run(tmp_path / "log", 10, ABOUT)
    assert found["failures"] == ["test_a.py::test_b: failed (2 \ufffd)"]


def test_a_run_that_selects_no_test_is_a_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing_selected(command: list[str], log: Path, seconds: float, **rest: Any) -> int:
        log.write_text("2977 deselected in 49.18s")
        return 5

    monkeypatch.setattr(libraries, "logged", nothing_selected)
    records.append(tmp_path / "r.jsonl", [gpu_tests.run(tmp_path / "log", 10, ABOUT)])
    nothing = Agenda([], [], 0.0, lambda: 0.0)
    assert gpu.close(tmp_path, tmp_path / "r.jsonl", nothing, None, ABOUT, lambda text: None) == 1
