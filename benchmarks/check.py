"""Whether a contender's results are right: relative L2 errors against float64 and the bounds they must keep; called by measure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from benchmarks.problem import Precision

# where eager itself is further from float64 than this, the problem is no fair one and nothing is timed
EAGER_LIMIT = {"fp32": 1e-4, "tf32": 5e-2, "fp16": 5e-2, "bf16": 2e-1}
# eager's gradients were seen up to 7·√e away from float64 (16 cases, fp32, CPU)
FLIPS, MOST_FLIPS = 16.0, 0.3


@dataclass(frozen=True)
class Errors:
    """Relative L2 distance from float64: of the output, and the largest of any gradient."""

    output: float
    gradient: float | None = None
    worst: str = ""  # which gradient

    def as_record(self) -> dict[str, object]:
        return {"output": self.output, "gradient": self.gradient, "worst_gradient": self.worst or None}


@dataclass(frozen=True)
class Bounds:
    output: float
    gradient: float

    def broken_by(self, errors: Errors) -> str | None:
        """The sentence that says what is wrong; None where nothing is. A NaN breaks every bound."""
        if not errors.output <= self.output:
            return f"the output differs from float64 by {errors.output:.1e}, allowed are {self.output:.1e}"
        if errors.gradient is not None and not errors.gradient <= self.gradient:
            return f"the {errors.worst} differs from float64 by {errors.gradient:.1e}, allowed are {self.gradient:.1e}"
        return None


def compare(got: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> Errors:
    """Raises ValueError where a tensor is missing. A gradient that is zero but for rounding is measured against the others."""
    if got.keys() != expected.keys():
        raise ValueError(f"expected the tensors {sorted(expected)}, got {sorted(got)}.")
    norms = {name: float(tensor.double().norm()) for name, tensor in expected.items()}
    floor = 1e-3 * max((norm for name, norm in norms.items() if name.startswith("gradient")), default=0.0)
    errors = {}
    for name, tensor in expected.items():
        scale = max(norms[name], floor if name.startswith("gradient") else 0.0, 1e-30)
        errors[name] = float((got[name].double() - tensor.double()).norm()) / scale
    output = errors.pop("output")
    if not errors:
        return Errors(output)
    worst = max(errors, key=lambda name: (errors[name] != errors[name], errors[name]))
    return Errors(output, errors[worst], worst)


def eager_bounds(precision: Precision) -> Bounds:
    """What eager itself must keep, in either memory layout."""
    limit = EAGER_LIMIT[precision.name]
    return Bounds(limit, max(FLIPS * limit**0.5, 0.1))


def bounds(
    precision: Precision, convolutions: int, eager: Sequence[Errors], own: Errors, cpu_precision: str | None = None
) -> Bounds:
    """What every other contender must keep: 1.5 times the error of eager (its worse layout), or 4 units of rounding where that
    is larger. For the cpu backend's fp32 its own policy stands instead (`cpu_precision`, see rdk.set_cpu_precision).

    A sum within e of zero may fall on either side of a ReLU; e parts of all sums do, which moves a gradient by about √e.
    Gradients are therefore allowed FLIPS·√e as well, e being the contender's own output error.
    """
    worst = max(errors.output for errors in eager)
    output = max(1.5 * worst, 4 * precision.unit)
    if precision.name == "fp32" and cpu_precision == "fast":
        output = max(output, 5e-6 if convolutions <= 5 else 1.5e-5 * max(1.0, convolutions / 20) ** 0.5)
    if precision.name == "fp32" and cpu_precision == "accurate":
        output = max(output, 4 * worst)
    flips = min(FLIPS * max(own.output, precision.unit) ** 0.5, MOST_FLIPS)
    return Bounds(output, max(1.5 * max(errors.gradient or 0.0 for errors in eager), flips))
