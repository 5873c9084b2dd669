"""The package as a user gets it: install without a compiler, metadata without torch, the README's code, its variables."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest

import rdk
from rdk import env

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


BLOCKS = re.findall(r"```python\n(.*?)```", README, re.S)
# blocks that show a form rather than a program: the loop that rdk replaces, and the signatures
FORMS = ("conv = torch.nn.Conv2d(channels", "rdk.RecurrentConv(channels, iterations, *")


def test_every_block_of_the_readme_is_a_program_or_a_known_form() -> None:
    assert len([code for code in BLOCKS if not code.startswith(FORMS)]) >= 2
    assert all(any(code.startswith(form) for code in BLOCKS) for form in FORMS)


@pytest.mark.parametrize("code", [code for code in BLOCKS if not code.startswith(FORMS)], ids=lambda code: code[:16])
def test_the_readmes_code_runs(code: str) -> None:
    exec(compile(code, "README.md", "exec"), {"rdk": rdk})


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
print(getattr(build_meta, sys.argv[1])(sys.argv[2]))
"""


def source_tree(folder: Path) -> set[str]:
    """Copies what a build reads of the files under git into a folder, and returns the names of those in csrc."""
    command = ["git", "ls-files", "pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE", "rdk", "csrc"]
    files = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    for name in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes((ROOT / name).read_bytes())
    return {name for name in files if name.startswith("csrc/")}


def built(kind: str, source: Path, target: Path) -> Path:
    """What setuptools' own build makes of a source tree: an "sdist" or a "wheel"."""
    command = [sys.executable, "-c", BUILD, f"build_{kind}", str(target)]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return target / done.stdout.splitlines()[-1]


@pytest.mark.slow
def test_an_isolated_build_is_pure_python_and_says_what_it_left_out(tmp_path: Path) -> None:
    """From the sdist, as pip builds where there is no wheel."""
    compiled = source_tree(tmp_path / "source")
    with tarfile.open(built("sdist", tmp_path / "source", tmp_path)) as archive:
        archive.extraction_filter = getattr(tarfile, "data_filter", None)  # Python 3.11.3 and older have none
        archive.extractall(tmp_path / "unpacked")
    (unpacked,) = (tmp_path / "unpacked").iterdir()
    assert {path.relative_to(unpacked).as_posix() for path in (unpacked / "csrc").rglob("*.*")} == compiled
    with zipfile.ZipFile(built("wheel", unpacked, tmp_path)) as archive:
        names = archive.namelist()
        assert "rdk/_version.py" in names and "rdk/py.typed" in names
        assert not [name for name in names if name.endswith(".so")]
        assert not [name for name in names if name.split("/")[0] in ("tests", "benchmarks", "experiments")]
        assert b"--no-build-isolation" in archive.read("rdk/_build_info.json")


def small_tree(folder: Path, sources: dict[str, str]) -> None:
    """A tree that setup.py builds in a moment."""
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE", "rdk/__init__.py", "rdk/_version.py"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes((ROOT / name).read_bytes())
    for name, text in sources.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def build_info(folder: Path, path: str, home: Path | None = None) -> dict[str, Any]:
    """What setup.py records of a build that finds programs along the path, with a PyTorch for CUDA 12."""
    code = "import sys, torch; torch.version.cuda = '12.8'; sys.argv[:] = ['setup.py', 'build_ext', '--inplace']; "
    code += "exec(compile(open('setup.py').read(), 'setup.py', 'exec'))"
    known = {name: value for name, value in os.environ.items() if name != "CUDA_HOME"}
    variables = known | {"PATH": path} | ({"CUDA_HOME": str(home)} if home else {})
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, env=variables)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads((folder / "rdk" / "_build_info.json").read_text())
    return found


@pytest.mark.slow
def test_an_nvcc_that_pytorch_refuses_leaves_the_cpu_library_in(tmp_path: Path) -> None:
    """The nvcc of CUDA 99 is not on PATH: it is found through CUDA_HOME."""
    nvcc = tmp_path / "cuda" / "bin" / "nvcc"
    nvcc.parent.mkdir(parents=True)
    nvcc.write_text(
        f"#!/bin/sh\ncase \"$*\" in *--dryrun*) echo '#$ TOP={tmp_path}/cuda' >&2;; *) echo 'release 99.0, V99.0.1';; esac\n"
    )
    nvcc.chmod(0o755)
    tree = tmp_path / "source"
    small_tree(tree, {"csrc/cpu/a.cpp": "int a() { return 1; }\n", "csrc/cuda/b.cu": "int b();\n"})
    bare = [folder for folder in os.environ["PATH"].split(":") if not Path(folder, "nvcc").exists()]
    found = build_info(tree, ":".join(bare), tmp_path / "cuda")
    assert found["built"] == ["_cpu"] and list(found["left_out"]) == ["_cuda"]
    assert "PyTorch refused the nvcc" in found["left_out"]["_cuda"] and "99.0" in found["left_out"]["_cuda"]


@pytest.mark.slow
def test_a_tree_without_csrc_is_built_without_libraries(tmp_path: Path) -> None:
    small_tree(tmp_path, {})
    found = build_info(tmp_path, os.environ["PATH"])
    assert found["built"] == [] and set(found["left_out"].values()) == {"there was no folder csrc"}


def test_the_package_imports_nothing_of_the_repository() -> None:
    for path in (ROOT / "rdk").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            assert not {name.split(".")[0] for name in names} & {"benchmarks", "experiments", "tests"}, path


def test_require_fails_where_nothing_can_be_compiled(tmp_path: Path) -> None:
    environment = os.environ | {"RDK_BUILD": "require", "CXX": "no-such-compiler -m64"}
    command = [sys.executable, "setup.py", "build_ext", "--build-lib", str(tmp_path)]
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert run.returncode and "RDK_BUILD=require: the compiled libraries cannot be built" in run.stderr
    assert not list(tmp_path.iterdir())
    run = subprocess.run(command, cwd=ROOT, env=environment | {"RDK_BUILD": "yes"}, capture_output=True, text=True)
    assert run.returncode and "RDK_BUILD: expected auto, require, cuda or off, got 'yes'." in run.stderr
