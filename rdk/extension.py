"""Loads the compiled libraries and says why one cannot be loaded; called by the cpu and cuda backends and by rdk.info."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from rdk import env

HOW_TO_BUILD = "build it with `pip install --no-build-isolation -e .` in a checkout (needs a C++ compiler; the CUDA part also nvcc)"


def folder() -> Path:
    """Where the libraries are: beside this file, or where RDK_LIBRARY_FOLDER says."""
    found = env.read("RDK_LIBRARY_FOLDER")
    return Path(__file__).parent if found == "auto" else Path(found)


@lru_cache(maxsize=1)
def build_info() -> dict[str, Any]:
    """What setup.py recorded: versions, the libraries built, and why others were left out. Empty where nothing was."""
    path = folder() / "_build_info.json"
    if not path.is_file():
        return {}
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


@lru_cache(maxsize=None)
def load(name: str) -> str | None:
    """Loads _<name>.so, which registers the ops rdk::<name>_…; returns None, or the sentence why it cannot be."""
    library = folder() / f"_{name}.so"
    info = build_info()
    if not library.is_file():
        why = info.get("left_out", {}).get(f"_{name}", "it was not built")
        return f"the compiled library {library.name} is not there: {why}; {HOW_TO_BUILD}"
    try:
        torch.ops.load_library(str(library))
    except OSError as error:
        built_for = (
            f"torch {info.get('torch', 'unknown')}, CUDA {info.get('cuda')}, Python {info.get('python', 'unknown')}"
        )
        return (
            f"{library.name} was built for {built_for} and cannot be loaded by torch {torch.__version__}, "
            f"CUDA {torch.version.cuda} ({str(error).splitlines()[0]}); {HOW_TO_BUILD}"
        )
    return None
