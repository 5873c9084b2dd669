"""The package as a user gets it: install without a compiler, metadata without torch, the README's code, its variables."""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from rdk import env

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("number", range(len(re.findall(r"```python\nimport torch, rdk\n(.*?)```", README, re.S))))
def test_the_readmes_code_runs(number: int) -> None:
    code = re.findall(r"```python\n(import torch, rdk\n.*?)```", README, re.S)[number]
    exec(compile(code, "README.md", "exec"), {})


def test_the_readme_lists_every_variable_with_its_default() -> None:
    for name, variable in env.VARIABLES.items():
        assert f"| `{name}` | `{variable.default}` |" in README
    assert set(re.findall(r"^\| `(RDK_\w+)`", README, re.M)) == set(env.VARIABLES) | {"RDK_BUILD"}


def test_the_readme_names_only_files_that_exist() -> None:
    for target in re.findall(r"\]\(([^)#:\s]+)\)", README):
        assert (ROOT / target).exists(), target


BUILD = """
import sys
class NoTorch:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "torch":
            raise ImportError("no torch in an isolated build")
sys.meta_path.insert(0, NoTorch())
from setuptools import build_meta
print(build_meta.build_wheel(sys.argv[1]))
"""


@pytest.mark.slow
def test_an_isolated_build_is_pure_python_and_says_what_it_left_out(tmp_path: Path) -> None:
    copy = tmp_path / "source"
    copy.mkdir()
    for name in ["pyproject.toml", "setup.py", "README.md", "LICENSE"]:
        (copy / name).write_bytes((ROOT / name).read_bytes())
    files = subprocess.run(["git", "ls-files", "rdk", "csrc"], cwd=ROOT, capture_output=True, text=True, check=True)
    for name in files.stdout.split():
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_bytes((ROOT / name).read_bytes())
    done = subprocess.run([sys.executable, "-c", BUILD, str(tmp_path)], cwd=copy, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        assert "rdk/_version.py" in names and "rdk/py.typed" in names
        assert not [name for name in names if name.endswith(".so")]
        assert not [name for name in names if name.split("/")[0] in ("tests", "benchmarks", "experiments")]
        assert b"--no-build-isolation" in archive.read("rdk/_build_info.json")
