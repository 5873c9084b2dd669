"""Builds csrc into rdk/_cpu.so and rdk/_cuda.so where a compiler (and nvcc) can; called by pip. Everything else is in pyproject.toml.

Reads RDK_BUILD: "auto" builds what this machine can and records why the rest was left out, "require" fails instead,
"off" builds nothing. Needs `--no-build-isolation`, since the libraries link against the PyTorch that will load them.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

MODE = os.environ.get("RDK_BUILD", "auto")
info = {"python": sys.version.split()[0], "built": [], "left_out": {}}


def cuda_home():
    """The toolkit's root as nvcc itself names it (nvcc on PATH may be a wrapper elsewhere); None without nvcc."""
    if shutil.which("nvcc") is None:
        return None
    dry = subprocess.run(["nvcc", "--dryrun", "-c", "x.cu"], capture_output=True, text=True).stderr
    top = re.search(r"TOP=(.+)", dry)
    return os.path.realpath(top.group(1).strip()) if top else None


def write_info(folder):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "_build_info.json").write_text(json.dumps(info, indent=1))


class BuildPy(build_py):
    def run(self):
        super().run()
        if not self.distribution.ext_modules and not self.editable_mode:
            write_info(Path(self.build_lib) / "rdk")


def extensions():
    """The libraries that can be built here with the command that builds them; the others go to info["left_out"]."""
    home = cuda_home()
    try:
        if MODE == "off":
            raise ImportError("RDK_BUILD=off")
        os.environ.update({"CUDA_HOME": home} if home else {})  # before the import, which reads it
        os.environ.setdefault("TORCH_CUDA_ARCH_LIST", "9.0a")
        import torch
        from torch.utils import cpp_extension as cpp
    except ImportError as error:
        why = f"PyTorch was not used while building ({error}); install with --no-build-isolation"
        info["left_out"] = {"_cpu": why, "_cuda": why}
        return [], {}
    info["torch"], info["cuda"] = torch.__version__, torch.version.cuda
    no_compiler = None if shutil.which(os.environ.get("CXX", "c++")) else "there was no C++ compiler"
    no_cuda = no_compiler or ("there was no nvcc" if not home else torch.version.cuda is None and "PyTorch has no CUDA")
    nvcc = ["-O3", "-std=c++20", "--ptxas-options=-v", "-lineinfo"]
    modules = []
    for name, kind, missing in (("cpu", cpp.CppExtension, no_compiler), ("cuda", cpp.CUDAExtension, no_cuda)):
        if missing:
            info["left_out"][f"_{name}"] = missing
            continue
        sources = sorted(str(p) for p in Path(f"csrc/{name}").iterdir() if p.suffix in (".cpp", ".cu"))
        flags = {"cxx": ["-O3", "-std=c++20"], "nvcc": nvcc}
        modules.append(kind(f"rdk._{name}", sources, extra_compile_args=flags, py_limited_api=True, optional=True))

    class Build(cpp.BuildExtension.with_options(no_python_abi_suffix=True)):
        def build_extension(self, ext):
            try:
                super().build_extension(ext)
                info["built"].append(ext.name.removeprefix("rdk."))
            except Exception as error:
                if MODE == "require":
                    raise
                info["left_out"][ext.name.removeprefix("rdk.")] = f"its build failed: {str(error).splitlines()[0]}"
            write_info(Path(self.get_ext_fullpath(ext.name)).parent)

    return modules, {"build_ext": Build}


modules, commands = extensions()
setup(ext_modules=modules, cmdclass={"build_py": BuildPy, **commands})
