"""What one training run is: frozen settings, their checks, their hash, and overriding them; used by all here but the demo."""

from __future__ import annotations

import ast
import dataclasses
import difflib
import hashlib
import inspect
import itertools
import json
import textwrap
import types
import typing
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, TypeVar

Settings = TypeVar("Settings", bound="Replaceable")

# family: layers outside in the depth that the figures print, layers per iteration
DEPTHS: dict[str, tuple[int, int]] = {
    "mlp": (2, 1),
    "convnet": (3, 1),
    "residual": (3, 4),
    "residual_bn": (3, 4),
    "imagenet": (3, 4),
    "maze": (4, 4),
}
FIXED_DEPTHS = {"resnet18": 18, "resnet50": 50}
LABELS = ("home", "scale", "epoch_scale")  # of a Run; they change nothing that is computed


class Shape(NamedTuple):
    """What a data set shows a network: (channels, size, size) images and a number of classes."""

    channels: int
    size: int
    classes: int


class Replaceable:
    """Frozen settings that can be replaced, in part, by name."""

    def replaced(self: Settings, **changes: Any) -> Settings:
        return dataclasses.replace(self, **changes)  # type: ignore[type-var]


@dataclass(frozen=True)
class Model(Replaceable):
    family: Literal["mlp", "convnet", "residual", "residual_bn", "maze", "imagenet", "resnet18", "resnet50"] = "mlp"
    depth: int = 3
    """as the paper's figures print it; the ConvNets' true depth is one more"""
    width: int = 200
    """features or channels of the internal module"""
    recurrent: bool = True
    """one set of weights for all iterations; False: the feed-forward twin"""
    dilation: Literal["none", "A", "B"] = "none"
    """maze networks only: A dilates every convolution by 2, B leaves the first of each block undilated"""
    recall: bool = False
    """maze networks only: the image is seen again at every iteration"""
    sharing: Literal["none", "A", "B", "C"] = "none"
    """ResNet-50 only: which convolutions of a stage are one"""
    plain: bool = False
    """plain PyTorch layers in place of rdk modules"""
    backend: str = "auto"
    checkpoint: str = "auto"

    @property
    def iterations(self) -> int:
        outside, per_iteration = DEPTHS[self.family]
        return (self.depth - outside) // per_iteration

    @property
    def effective_depth(self) -> int:
        """Layers by the paper's definition: those outside + iterations × those of the module."""
        return self.depth + 1 if self.family == "convnet" else self.depth

    def check(self) -> None:
        if self.family in FIXED_DEPTHS:
            allowed: list[int] = [FIXED_DEPTHS[self.family]]
        else:
            outside, per_iteration = DEPTHS[self.family]
            allowed = [outside + per_iteration * n for n in range(1, 12)]
            if self.depth >= outside + per_iteration and (self.depth - outside) % per_iteration == 0:
                allowed.append(self.depth)
        if self.depth not in allowed:
            listed = ", ".join(map(str, allowed)) + (", …" if len(allowed) > 1 else "")
            raise SettingsError(f"model.depth: a {self.family} network can have depth {listed}; got {self.depth}.")
        if self.family != "maze" and (self.dilation != "none" or self.recall):
            raise SettingsError(f"model.dilation and model.recall are for maze networks; this one is {self.family}.")
        if self.family != "resnet50" and self.sharing != "none":
            raise SettingsError(f"model.sharing is for resnet50; this network is {self.family}.")
        if self.width < 2:
            raise SettingsError(f"model.width must be at least 2, got {self.width}.")


@dataclass(frozen=True)
class Data(Replaceable):
    name: Literal["digits", "cifar10", "svhn", "emnist", "imagenet", "mazes"] = "digits"
    augment: Literal["none", "flip", "crop_flip"] = "none"
    cells: int = 5
    """mazes only: cells per side; 5, 6 and 7 are the paper's small (9x9), medium (11x11) and large (13x13)"""
    posts: Literal["closed", "authors_v1"] = "authors_v1"
    """mazes only: closed posts make solutions unique; authors_v1 is what the paper's numbers come from"""
    canvas: int = 32
    """mazes only: side of the image at 2 pixels per unit; 0: one pixel per unit and no margin"""
    train_count: int = 50_000
    test_count: int = 10_000
    """mazes only: how many are generated; test mazes never occur among the training mazes"""
    maze_seed: int = 0

    def check(self) -> None:
        if self.name != "mazes":
            return
        if self.canvas not in (0, 32):
            raise SettingsError(f"data.canvas must be 32 or 0 (one pixel per unit), got {self.canvas}.")
        most, where = (7, "on a canvas of 32 pixels") if self.canvas else (99, "at one pixel per unit")
        if not 2 <= self.cells <= most:
            raise SettingsError(f"data.cells must lie between 2 and {most} {where}, got {self.cells}.")
        if self.train_count < 1 or self.test_count < 1:
            raise SettingsError(
                f"data.train_count and data.test_count must be positive, got {self.train_count} and {self.test_count}."
            )

    @property
    def size_name(self) -> str:
        return {5: "small", 6: "medium", 7: "large"}.get(self.cells, f"{self.cells} cells")


@dataclass(frozen=True)
class Train(Replaceable):
    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"
    lr: float = 0.1
    milestones: tuple[int, ...] = ()
    factor: float = 0.1
    epochs: int = 200
    lr_rule: Literal["steps", "cosine"] = "steps"
    """steps: a warm-up of four epochs, then × factor at each milestone; cosine: 15 % linear warm-up, then cosine to 0, per step"""
    momentum: float = 0.9
    weight_decay: float = 2e-4
    betas: tuple[float, float] = (0.9, 0.999)
    clip: float = 0.0
    """largest gradient norm; 0: no clipping"""
    batch: int = 128
    test_batch: int = 50
    lr_per_iteration: bool = False
    """the recurrent module trains with lr / n, as the authors' maze networks do"""
    steps_per_epoch: int = 0
    """0: the whole data set"""
    dtype: Literal["float32", "bfloat16"] = "float32"
    channels_last: bool = True
    cuda_graph: bool = True
    """on one GPU: forward and backward are captured once and replayed"""

    def check(self) -> None:
        if self.epochs < 1 or self.batch < 1 or self.test_batch < 1 or not self.lr > 0:
            raise SettingsError(
                f"train.epochs, batch, test_batch and lr must be positive, got {self.epochs}, {self.batch}, "
                f"{self.test_batch} and {self.lr}."
            )
        if self.steps_per_epoch < 0:
            raise SettingsError(
                f"train.steps_per_epoch must be at least 0 (the whole data set), got {self.steps_per_epoch}."
            )
        if list(self.milestones) != sorted(self.milestones):
            raise SettingsError(f"train.milestones must rise, got {self.milestones}.")

    def scaled(self, scale: float) -> Train:
        """Epochs and milestones × scale, rounded down, at least one epoch; the warm-up stays."""
        return self.replaced(
            epochs=max(1, int(self.epochs * scale)), milestones=tuple(int(m * scale) for m in self.milestones)
        )


@dataclass(frozen=True)
class Run(Replaceable):
    """One training run. Its folder is runs/<home>/<key>; home, scale and epoch_scale are labels, all else is in the key."""

    home: str = "scratch"
    scale: Literal["full", "laptop", "smoke"] = "full"
    epoch_scale: float = 1.0
    """by which the paper's epochs and milestones were multiplied; train holds the product"""
    model: Model = field(default_factory=Model)
    data: Data = field(default_factory=Data)
    train: Train = field(default_factory=Train)
    seed: int = 0

    def check(self) -> None:
        self.model.check()
        self.data.check()
        self.train.check()
        if (self.model.family == "maze") != (self.data.name == "mazes"):
            raise SettingsError(
                f"A {self.model.family} network cannot train on {self.data.name}: mazes go with maze networks."
            )

    @property
    def key(self) -> str:
        """12 hexadecimal digits of the settings' SHA-256."""
        settings = {name: value for name, value in as_dict(self).items() if name not in LABELS}
        settings["train"]["schedule"] = settings["train"].pop("lr_rule")  # its name in all keys ever given
        return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]

    @property
    def title(self) -> str:
        kind = "" if self.model.family in FIXED_DEPTHS else ("recurrent " if self.model.recurrent else "feed-forward ")
        data = f"{self.data.size_name} mazes" if self.data.name == "mazes" else self.data.name
        return f"{kind}{self.model.family} {self.model.depth} on {data}, seed {self.seed}"


class SettingsError(ValueError):
    """Settings that cannot be run, in a sentence that says which and what is allowed."""


def as_dict(settings: Any) -> dict[str, Any]:
    """Settings as plain JSON values."""
    return json.loads(json.dumps(dataclasses.asdict(settings)))


def from_dict(cls: type[Settings], values: dict[str, Any]) -> Settings:
    """The settings that as_dict wrote."""
    hints = typing.get_type_hints(cls)
    found: dict[str, Any] = {}
    for name, value in values.items():
        if dataclasses.is_dataclass(hints[name]):
            found[name] = from_dict(hints[name], value)
        else:
            found[name] = tuple(value) if isinstance(value, list) else value
    return cls(**found)


def current_names(stored: dict[str, Any], part: str = "") -> dict[str, Any]:
    """What a file holds, under today's names: both train.lr_rule and epoch_scale were once called schedule."""
    old = {"schedule": "lr_rule" if part == "train" else "epoch_scale"}
    return {
        old.get(name, name): current_names(value, name) if isinstance(value, dict) else value
        for name, value in stored.items()
    }


def differences(one: dict[str, Any], other: dict[str, Any], prefix: str = "") -> list[str]:
    """The fields in which two dictionaries of settings differ, as 'train.lr: 0.1, not 0.01'."""
    found = []
    for name in sorted(one.keys() | other.keys()):
        a, b = one.get(name, "nothing"), other.get(name, "nothing")
        if isinstance(a, dict) and isinstance(b, dict):
            found += differences(a, b, f"{prefix}{name}.")
        elif a != b:
            found.append(f"{prefix}{name}: {a}, not {b}")
    return found


def optional_copy(cls: type, doc: str) -> type:
    """A dataclass with the fields of cls, each None unless given: what a command line overrides."""
    hints = typing.get_type_hints(cls)
    fields: list[tuple[str, Any, Any]] = []
    for entry in dataclasses.fields(cls):
        hint = hints[entry.name]
        if dataclasses.is_dataclass(hint):
            part = optional_copy(hint, f"Overrides of {entry.name}.")  # type: ignore[arg-type]
            fields.append((entry.name, part, dataclasses.field(default_factory=part)))
        else:
            fields.append((entry.name, hint | types.NoneType, dataclasses.field(default=None)))
    made = dataclasses.make_dataclass(f"{cls.__name__}Overrides", fields, frozen=True)
    # where tyro finds the words of a flag
    about = [f"    {name}: {' '.join(text.split())}" for name, text in _words_of_fields(cls).items() if name in hints]
    made.__doc__ = "\n".join([doc, "", "Attributes:", *about]) if about else doc
    return made


def _words_of_fields(cls: type) -> dict[str, str]:
    """The string under each field of a class, which Python does not keep."""
    (node,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
    assert isinstance(node, ast.ClassDef)
    found = {}
    for entry, after in itertools.pairwise(node.body):
        if isinstance(entry, ast.AnnAssign) and isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
            assert isinstance(entry.target, ast.Name)
            found[entry.target.id] = str(after.value.value)
    return found


def overridden(settings: Settings, overrides: Any) -> Settings:
    """The settings with every field that `overrides` (an optional_copy) names replaced."""
    changes: dict[str, Any] = {}
    for entry in dataclasses.fields(overrides):
        value = getattr(overrides, entry.name)
        if dataclasses.is_dataclass(value):
            changes[entry.name] = overridden(getattr(settings, entry.name), value)
        elif value is not None:
            changes[entry.name] = value
    return settings.replaced(**changes) if changes else settings


def nearest(name: str, known: Iterable[str]) -> str:
    """' Did you mean …?' for an unknown name, or an empty string."""
    found = difflib.get_close_matches(name, list(known), n=3, cutoff=0.4)
    return f" Did you mean {' or '.join(found)}?" if found else ""
