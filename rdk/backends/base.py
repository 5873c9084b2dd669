"""What dispatch, ops and every backend agree on: a problem, its tensors, where kept states go, and the backend protocol."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from rdk.backends.layout import aligned, channels_last


class StageSpec(NamedTuple):
    """One stage without its tensors: z = conv(h) + b, [norm], [+ inject], [+ skip], [relu]."""

    dilation: int = 1
    relu: bool = True
    skip: int | None = None  # the stage whose input is added to this stage's z; None adds nothing
    norm: bool = False


@dataclass(frozen=True)
class Problem:
    """Everything about one call that is known before it runs, and no tensor: what dispatch decides upon."""

    kind: str  # "conv" (state (N, C, H, W)) or "linear" (state (M, F))
    stages: tuple[StageSpec, ...]
    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    iterations: int
    tied: bool
    bias: bool
    inject: bool
    norm_training: bool  # batch statistics; False: running statistics, or no norm at all
    needs_grad: bool
    return_states: bool
    precision: str  # cpu: "fast", "accurate" or "exact"; cuda: "tf32" or "ieee"; otherwise "exact"
    # of PyTorch, when the call was made: its backward plans with as many, whatever was set between the two
    threads: int = field(default_factory=torch.get_num_threads)

    @property
    def norm(self) -> bool:
        return self.stages[0].norm

    @property
    def channels(self) -> int:
        return self.shape[1]

    @property
    def tape_maps(self) -> int:
        """Maps that reversing one iteration needs beside its input: the pre-norm map of every stage, or, without
        norm, the output of every stage but the last (which is the next state)."""
        return len(self.stages) if self.norm else len(self.stages) - 1

    @property
    def state_is_rebuilt(self) -> bool:
        """Whether a state follows from the tape of the iteration before by pointwise work alone."""
        return self.norm and self.stages[-1].skip is None

    @cached_property
    def map_bytes(self) -> int:
        count = 1
        for size in self.shape:
            count *= size
        return count * self.dtype.itemsize


@dataclass
class Call:
    """The tensors of one call. Per-iteration lists are iteration-major: entry t * len(stages) + s."""

    problem: Problem
    inject: Tensor | None  # as the state
    weights: Sequence[Tensor]  # one per stage when tied, else one per iteration and stage
    biases: Sequence[Tensor]  # as weights, or empty
    norm_weights: Sequence[Tensor]  # (C,) per iteration and stage, or empty
    norm_biases: Sequence[Tensor]
    eps: Sequence[float]
    means: Tensor  # (n * stages, C): written by the first forward when norm_training, else running means
    variances: Tensor  # biased batch variances, likewise
    prepared: dict[Any, Any] = field(
        default_factory=dict
    )  # what a backend derives from the lists and keeps for the call

    def inject_inside(self) -> Tensor | None:
        """The inject with channels innermost, at a multiple of 16 bytes; a copy is made once."""
        if self.inject is None:
            return None
        if "inject" not in self.prepared:
            self.prepared["inject"] = aligned(channels_last(self.inject))
        inside: Tensor = self.prepared["inject"]
        return inside

    def index(self, iteration: int, stage: int) -> int:
        """Position of (iteration, stage) in the per-iteration lists."""
        return iteration * len(self.problem.stages) + stage

    def parameter_index(self, iteration: int, stage: int) -> int:
        """Position of (iteration, stage) in weights and biases."""
        return stage if self.problem.tied else self.index(iteration, stage)


@dataclass
class Store:
    """Where a forward over a run of iterations writes what the backward will need. Maps are channels_last, but for the
    states that a caller asked for: a backend of any_layout gets them in the caller's."""

    positions: Sequence[int] = ()  # states[i] receives the state that enters iteration positions[i], ascending
    states: Tensor | None = None  # (len(positions), *shape)
    tape_first: int = 0  # tapes receives the tapes of iterations tape_first … last-1, one after another
    tapes: Tensor | None = None  # ((last - tape_first) * tape_maps, *shape)
    record_statistics: bool = False  # True: batch statistics are measured and written; False: they are read

    @cached_property
    def slot_of(self) -> dict[int, int]:
        """Which of `states` receives the state that enters an iteration."""
        return {position: slot for slot, position in enumerate(self.positions)}

    def state_after(self, iteration: int) -> Tensor | None:
        """Where the state after an iteration is written; None where it is not kept."""
        slot = self.slot_of.get(iteration + 1)
        return None if slot is None or self.states is None else self.states[slot]

    def tapes_of(self, iteration: int, tape_maps: int) -> Tensor | None:
        """Where the tape of an iteration is written, (tape_maps, *shape); None where it is not kept."""
        if self.tapes is None or iteration < self.tape_first:
            return None
        start = (iteration - self.tape_first) * tape_maps
        return self.tapes[start : start + tape_maps]


class Gradients(Protocol):
    """The backward of one call: parameter gradients are carried over the runs, later iterations first."""

    def run(
        self,
        first: int,
        last: int,
        state: Tensor,
        states: Tensor | None,
        tapes: Tensor | None,
        grad: Tensor,
        state_grads: Tensor | None,
    ) -> Tensor:
        """Reverses iterations first … last-1.

        state enters iteration `first`; states (last-first-1, *shape) enter first+1 … last-1 (None where there are
        none or where they are rebuilt from tapes); tapes is as Store.tapes for the run, None where tape_maps is 0.
        grad is the gradient of the last iteration's last sum, before its ReLU. state_grads (n, *shape), if any, holds the
        gradient of the state after each iteration: entries first-1 … last-2 are added here.
        Returns the gradient before the ReLU of iteration first-1, or, for first = 0, that of the input, which a backend of
        any_layout returns in the layout of `state`.
        Writes into none of its arguments.
        """
        ...

    def finish(self) -> ParameterGradients:
        """The gradients summed over all runs; called once, after the last."""
        ...


@dataclass
class ParameterGradients:
    """Gradients in the order and dtype of the call's lists; None where nobody asked."""

    inject: Tensor | None
    weights: list[Tensor | None]
    biases: list[Tensor | None]
    norm_weights: list[Tensor | None]
    norm_biases: list[Tensor | None]


class Needs(NamedTuple):
    """Which gradients the caller asked for."""

    state: bool
    inject: bool
    weights: Sequence[bool]
    biases: Sequence[bool]
    norm_weights: Sequence[bool]
    norm_biases: Sequence[bool]


class Backend(Protocol):
    """A way to compute runs of iterations. It never sees modules or autograd."""

    name: str

    def unavailable(self) -> str | None:
        """Why this backend cannot run on this machine at all; None where it can."""
        ...

    def supports(self, problem: Problem) -> str | None:
        """Why this backend refuses the problem; None where it takes it."""
        ...

    def workspace_bytes(self, problem: Problem) -> int:
        """Peak bytes held during forward and backward beside the input, output, kept and re-kept states and the tape."""
        ...

    def any_layout(self, problem: Problem) -> bool:
        """Whether its runs read and return maps of any strides; where not they are handed channels_last ones."""
        ...

    def empty_maps(self, count: int, like: Tensor) -> Tensor:
        """Uninitialised room for maps that the caller never sees, as layout.empty_maps gives it."""
        ...

    def forward(self, call: Call, state: Tensor, first: int, last: int, store: Store) -> Tensor:
        """Runs iterations first … last-1 from `state` and returns the state after them.

        The result may be a view of store.states when its last position is `last`, and is else a fresh tensor.
        Running the same iterations again from the same state gives the same bits.
        """
        ...

    def tape(self, call: Call, state: Tensor, iteration: int, tapes: Tensor) -> None:
        """Writes the tape of one iteration, entered by `state`, into tapes (tape_maps, *shape), with the bits of forward.

        Without norm this leaves out the last stage, whose output is the next state and already known.
        """
        ...

    def gradients(self, call: Call, needs: Needs) -> Gradients:
        """Starts the backward of one call."""
        ...
