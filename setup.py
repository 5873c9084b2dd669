"""Builds csrc into rdk/_cpu.so and rdk/_cuda.so for the PyTorch at hand (needs --no-build-isolation); called by pip.
RDK_BUILD: "auto" builds what this machine can and records why the rest is left out, "require" fails instead, "cuda" leaves the
cpu library out, "off" builds none.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

MODE = os.environ.get("RDK_BUILD", "auto")
if MODE not in ("auto", "require", "cuda", "off"):
    raise SystemExit(f"RDK_BUILD: expected auto, require, cuda or off, got {MODE!r}.")
KINDS = {"cpu": "CppExtension", "cuda": "CUDAExtension"}
info = {"python": sys.version.split()[0], "built": [], "left_out": {}}


def cuda_home():
    """The toolkit's root as nvcc itself names it (nvcc on PATH may be a wrapper elsewhere); None without nvcc."""
    usual = [f"{root}/bin/nvcc" for root in (os.environ.get("CUDA_HOME"), "/usr/local/cuda") if root]
    nvcc = next(filter(None, map(shutil.which, ("nvcc", *usual))), None)
    dry = [nvcc, "--dryrun", "-c", "x.cu"]
    told = subprocess.run(dry, capture_output=True, text=True).stderr if nvcc else ""
    return os.path.realpath(re.search(r"TOP=(.+)", told)[1].strip()) if "TOP=" in told else None


class BuildPy(build_py):
    def run(self):
        super().run()
        if not self.distribution.ext_modules and not self.editable_mode:
            Path(self.build_lib, "rdk/_build_info.json").write_text(json.dumps(info, indent=1))


def extensions():
    """The libraries that can be built here with the command that builds them; the others go to info["left_out"]."""
    if home := cuda_home():
        os.environ["CUDA_HOME"] = home  # before the import, which reads it
    try:
        if MODE == "off":
            info["left_out"] = dict.fromkeys(("_cpu", "_cuda"), "RDK_BUILD=off")
            return [], {}
        import torch
        from torch.utils import cpp_extension as cpp
    except ImportError as error:
        reason = f"no PyTorch to build for ({error}); install it first, and use --no-build-isolation"
        info["left_out"] = dict.fromkeys(("_cpu", "_cuda"), reason)
        return [], {}
    info["torch"], info["cuda"] = torch.__version__, torch.version.cuda
    if not Path("csrc").is_dir():
        info["left_out"] = dict.fromkeys(("_cpu", "_cuda"), "there was no folder csrc")
    elif not shutil.which(shlex.split(os.environ.get("CXX") or "c++")[0]):
        info["left_out"] = dict.fromkeys(("_cpu", "_cuda"), "there was no C++ compiler")
    elif not (home and torch.version.cuda):
        info["left_out"]["_cuda"] = "there was no nvcc, or PyTorch has no CUDA"
    if MODE == "cuda":
        info["left_out"].setdefault("_cpu", "RDK_BUILD=cuda builds the cuda library alone")
    if MODE == "require" and "_cpu" in info["left_out"]:
        raise SystemExit(f"RDK_BUILD=require: the compiled libraries cannot be built: {info['left_out']['_cpu']}")
    modules = []
    for name in (name for name in KINDS if f"_{name}" not in info["left_out"]):
        sources = sorted(str(p) for p in Path(f"csrc/{name}").iterdir() if p.suffix in (".cpp", ".cu"))
        openmp = ["-fopenmp"] if (name, sys.platform) == ("cpu", "linux") else []  # else at::parallel_for is serial
        flags = {compiler: ["-O3", "-std=c++20", *openmp] for compiler in ("cxx", "nvcc")}
        flags["nvcc"].append("-gencode=arch=compute_90a,code=sm_90a")  # PyTorch then adds none of TORCH_CUDA_ARCH_LIST
        flags["cxx"].append("-fno-wrapv")  # Python's own -fwrapv costs the CPU kernels up to 9 % of their time
        options = {"extra_compile_args": flags, "extra_link_args": openmp, "py_limited_api": True}
        options["optional"] = MODE != "require"  # else setuptools takes a failed link for a warning
        modules.append(getattr(cpp, KINDS[name])(f"rdk._{name}", sources, **options))

    class Build(cpp.BuildExtension.with_options(no_python_abi_suffix=True)):
        def build_extensions(self):
            try:
                super().build_extensions()
            except RuntimeError as error:  # PyTorch refuses this nvcc, by its version or compiler, before it builds any
                others = [ext for ext in self.extensions if ext.name != "rdk._cuda"]
                if MODE == "require" or others == self.extensions:
                    raise
                info["left_out"]["_cuda"] = f"PyTorch refused the nvcc: {' '.join(str(error).split())}"
                self.extensions = others
                super().build_extensions()

        def build_extension(self, ext):
            try:
                super().build_extension(ext)
                info["built"].append(ext.name[4:])
            except Exception as error:
                if MODE == "require":
                    raise
                info["left_out"][ext.name[4:]] = f"its build failed: {str(error).splitlines()[0]}"

        def run(self):
            super().run()
            Path("." if self.inplace else self.build_lib, "rdk/_build_info.json").write_text(json.dumps(info, indent=1))

    return modules, {"build_ext": Build}


modules, commands = extensions()
setup(ext_modules=modules, cmdclass={"build_py": BuildPy, **commands})
