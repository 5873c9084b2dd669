"""Imports a part of torchvision, or says in a sentence why that fails; called by data/files.py, data/imagenet.py, models/resnet.py.

Called inside functions only: torchvision's wheels fail to import beside a CPU build of PyTorch, and most runs need none.
"""

from __future__ import annotations

import importlib
from typing import Any

from experiments.settings import SettingsError


def torchvision(part: str) -> Any:
    """The module torchvision.<part>. Raises SettingsError."""
    try:
        return importlib.import_module(f"torchvision.{part}")
    except (ImportError, RuntimeError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise SettingsError(f"this needs torchvision, which can't be imported here ({reason}); install it.") from error
