"""Whether a contender's results are right: relative L2 errors against float64 and the bounds they must keep; called by judge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from benchmarks.problem import Precision
from rdk import testing

# where eager itself is further from float64 than this, the problem is no fair one and nothing is timed
EAGER_LIMIT = {"fp32": 1e-4, "tf32": 5e-2, "fp16": 5e-2, "bf16": 2e-1}
# eager's gradients were seen up to 7·√e away from float64 (16 cases, fp32, CPU). The flips of all convolutions add up, each by its
# own chance: over 1,000 convolutions eager's were 19·√e away, and the cpu backend's 23·√e
FLIPS, FLIPS_UP_TO = 16.0, 100
# in 16 bits and TF32 so many sums flip that eager's own gradients tell how much: over three draws of one problem their errors
# differed up to 2.1-fold, and the least of them was 0.3·√e (7 problems, bf16, CPU). No GPU was asked for TF32 and fp16: tensor
# cores' arithmetic, imitated by tests/tensor_cores.py, stays under three quarters of the bounds
LIKE_EAGER, LEAST_FLIPS = 2.5, 0.5
# a product of float32 that adds its terms one after another, as kernels without tensor cores do, was 1.9 to 4.6 times as far from
# float64 as eager's on the CPU, which adds them in several sums (64 to 512 channels; tests/test_benchmarks_gate.py)
SEQUENTIAL = 5.0
# what flips do to a gradient is hardly along it: up to 0.37 of an error was, in those problems. Where one convolution is applied
# hundreds of times gradients turn into its strongest direction, and flips change their length: nearly all of an error was
ALONG = 0.4


@dataclass(frozen=True)
class Errors:
    """Relative L2 distance from float64: of the output, and the largest of any gradient; and the most by which a gradient is
    scaled, which is the part of its error along itself."""

    output: float
    gradient: float | None = None
    worst: str = ""  # which gradient
    scale: float | None = None
    scaled: str = ""  # which gradient

    def as_record(self) -> dict[str, object]:
        return {"output": self.output, "gradient": self.gradient, "worst_gradient": self.worst or None}


@dataclass(frozen=True)
class Bounds:
    """What each of Errors may be."""

    output: float
    gradient: float
    scale: float

    def broken_by(self, errors: Errors, reference: str) -> str | None:
        """The sentence that says what is wrong; None where nothing is. A NaN breaks every bound."""
        if not errors.output <= self.output:
            return f"the output differs from {reference} by {errors.output:.1e}, allowed are {self.output:.1e}"
        if errors.gradient is not None and not errors.gradient <= self.gradient:
            return (
                f"the {errors.worst} differs from {reference} by {errors.gradient:.1e}, allowed are {self.gradient:.1e}"
            )
        if errors.scale is not None and not errors.scale <= self.scale:
            return (
                f"the {errors.scaled} is scaled against {reference} by {errors.scale:.1e}, allowed are {self.scale:.1e}"
            )
        return None

    def of_two(self) -> Bounds:
        """Between two contenders that both keep these."""
        return Bounds(2 * self.output, 2 * self.gradient, 2 * self.scale)


def compare(got: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> Errors:
    """Raises ValueError where a tensor is missing. A gradient that is zero but for rounding is measured against the others."""
    if got.keys() != expected.keys():
        raise ValueError(f"expected the tensors {sorted(expected)}, got {sorted(got)}.")
    errors, scales = {}, {}
    for name, size in testing.sizes(expected).items():
        reference = expected[name].double()
        difference = got[name].double() - reference
        errors[name] = float(difference.norm()) / size
        scales[name] = abs(float((difference * reference).sum())) / size**2
    output = errors.pop("output")
    if not errors:
        return Errors(output)
    worst = max(errors, key=lambda name: (errors[name] != errors[name], errors[name]))
    scaled = max(errors, key=lambda name: scales[name])
    return Errors(output, errors[worst], worst, scales[scaled], scaled)


def eager_bounds(precision: Precision) -> Bounds:
    """What eager itself must keep, in either memory layout."""
    limit = EAGER_LIMIT[precision.name]
    flips = max(FLIPS * limit**0.5, 0.1)
    return Bounds(limit, flips, flips)


def bounds(
    precision: Precision, convolutions: int, eager: Sequence[Errors], own: Errors, policy: str | None = None
) -> Bounds:
    """What every other contender must keep: 1.5 times the error of eager (its worse layout), or 4 units of rounding where that
    is larger. `policy` is the arithmetic in force for a contender of ours (dispatch.precision_of): the cpu backend's fp32 has
    bounds of its own (see rdk.set_cpu_precision), and fp32 on a GPU is allowed SEQUENTIAL times eager's error.

    If the contender's output error is e, about a fraction e of all sums lie so close to zero that rounding moves them across a
    ReLU, and a gradient by about √e. In fp32 few sums or none do: a gradient is allowed FLIPS·√e, since one may, and beyond
    FLIPS_UP_TO convolutions by as much more as the square root of their number grows. Elsewhere many do,
    in eager too: it is allowed LIKE_EAGER times eager's error, and more in proportion to √e where e is larger than eager's.
    """
    worst = max(errors.output for errors in eager)
    output = max(1.5 * worst, 4 * precision.unit)
    if precision.name == "fp32" and policy == "fast":
        output = max(output, 5e-6 if convolutions <= 5 else 1.5e-5 * max(1.0, convolutions / 20) ** 0.5)
    if precision.name == "fp32" and policy == "accurate":
        output = max(output, 4 * worst)
    if precision.name == "fp32" and policy == "ieee":
        output = max(output, SEQUENTIAL * worst)
    own_output = max(own.output, precision.unit)
    gradient = max(errors.gradient or 0.0 for errors in eager)
    if precision.name == "fp32":
        flips = FLIPS * own_output**0.5 * max(1.0, convolutions / FLIPS_UP_TO) ** 0.5
    else:
        like_eager = max(gradient, LEAST_FLIPS * worst**0.5) * max(1.0, own_output / max(worst, precision.unit)) ** 0.5
        flips = LIKE_EAGER * like_eager
    rounding = 1.5 * gradient if precision.name == "fp32" else 0.0
    along = ALONG if convolutions <= FLIPS_UP_TO else 1.0
    return Bounds(output, max(rounding, flips), max(rounding, along * flips))
