"""The contenders: how each runs a problem and why one is left out; named by cli, suites, agenda, dispatch, profile and conftest."""

from __future__ import annotations

import contextlib
import copy
import math
import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import rdk
from benchmarks import cudnn_graphs
from benchmarks.problem import Oracle, Prepared, Problem
from rdk import dispatch, measured

EAGER = ("eager", "eager channels_last")

# beyond this many convolutions a user compiles one iteration and loops; the whole would compile for minutes
COMPILED_WHOLE = 80

Make = Callable[[Problem, bool], Prepared]
Reason = Callable[[Problem, bool], str | None]


@dataclass(frozen=True)
class Contender:
    """A way to run a problem. `make` prepares it, compilation included; `why_not` says why it is left out, or None; `about`
    is what `list` shows beside a name that does not speak for itself."""

    name: str
    make: Make
    why_not: Reason = lambda problem, training: None
    about: str = ""


def native_layout(device: torch.device) -> torch.memory_format:
    """The layout that is the faster choice of a user on the device: tensor cores want channels innermost."""
    return torch.channels_last if device.type == "cuda" else torch.contiguous_format


def _plain(problem: Problem, memory_format: torch.memory_format) -> Oracle:
    return copy.deepcopy(problem.network).to(memory_format=memory_format)


def _eager(memory_format: torch.memory_format) -> Make:
    def make(problem: Problem, training: bool) -> Prepared:
        network = _plain(problem, memory_format)
        return Prepared(problem, network, network, training, memory_format)

    return make


def _checkpointed(segment: Callable[[int], int]) -> Make:
    """torch.utils.checkpoint around segments of as many iterations as `segment` says for n."""

    def make(problem: Problem, training: bool) -> Prepared:
        layout = native_layout(problem.device)
        network, total = _plain(problem, layout), problem.case.iterations
        length = segment(total)

        def some(x: Tensor, first: int, inject: Tensor | None) -> Tensor:
            for t in range(first, min(first + length, total)):
                x = network.iteration(x, t, inject)
            return x

        def call(x: Tensor, inject: Tensor | None = None) -> Tensor:
            for first in range(0, total, length):
                x = checkpoint(some, x, first, inject, use_reentrant=False, preserve_rng_state=False)
            return x

        return Prepared(problem, network, call, training, layout)

    return make


def _compiled(mode: str | None, budget: float | None = None, frozen: bool = False) -> Make:
    """torch.compile, every graph whole; with `budget` inductor's activation memory budget, a fraction of what it would keep;
    `frozen`: inductor's freezing, under which an inference's weights are constants, packed once in the layout of its kernels."""

    def make(problem: Problem, training: bool) -> Prepared:
        import torch._functorch.config as functorch
        import torch._inductor.config as inductor

        layout = native_layout(problem.device)
        network = _plain(problem, layout)
        if problem.case.convolutions <= COMPILED_WHOLE:
            call: Callable[..., Tensor] = torch.compile(
                _with_own_code(network.forward), mode=mode, fullgraph=True, dynamic=False
            )
        else:
            one = torch.compile(_with_own_code(network.iteration), mode=mode, fullgraph=True, dynamic=False)

            def call(x: Tensor, inject: Tensor | None = None) -> Tensor:
                for _ in range(problem.case.iterations):
                    x = one(x, 0, inject)
                return x

        prepared = Prepared(problem, network, call, training, layout)
        with contextlib.ExitStack() as settings:
            if budget is not None:
                settings.enter_context(functorch.patch(activation_memory_budget=budget))
            if frozen:
                settings.enter_context(inductor.patch(freezing=True))
            prepared.run()  # compiles, forward and backward
        return prepared

    return make


def _with_own_code(method: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The same method with a code object of its own. torch.compile keeps what it compiled per code object and would run one
    contender's graph for the next, whatever settings that one asks for."""
    assert isinstance(method, types.MethodType)
    found = method.__func__
    copied = types.FunctionType(
        found.__code__.replace(), found.__globals__, found.__name__, found.__defaults__, found.__closure__
    )
    return types.MethodType(copied, method.__self__)


def forget_compiled() -> None:
    """Drops what torch.compile keeps for contenders that are gone: each call would look through all of it."""
    torch._dynamo.reset()


def _captured(make: Make) -> Make:
    """The same step as one CUDA graph: forward and backward are captured once and replayed."""

    def make_captured(problem: Problem, training: bool) -> Prepared:
        prepared = make(problem, training)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                prepared.run()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            output = prepared.run()

        def replay() -> Tensor:
            graph.replay()
            return output

        prepared.step = replay
        return prepared

    return make_captured


def _only_gpu(what: str) -> Reason:
    return lambda problem, training: None if problem.device.type == "cuda" else f"{what} needs an NVIDIA GPU"


def _only_maps(problem: Problem, training: bool) -> str | None:
    return "only maps have another memory layout" if problem.x.dim() != 4 else None


def _only_training(problem: Problem, training: bool) -> str | None:
    return None if training else "it differs from eager in a training step only"


def _only_inference(problem: Problem, training: bool) -> str | None:
    return "frozen weights cannot be trained" if training else None


def _first(*reasons: Reason) -> Reason:
    return lambda problem, training: next((why for reason in reasons if (why := reason(problem, training))), None)


def _no_batch_statistics(problem: Problem, training: bool) -> str | None:
    return "one iteration is compiled, and a norm differs per iteration" if problem.case.norm else None


def _compilable(problem: Problem, training: bool) -> str | None:
    return None if problem.case.convolutions <= COMPILED_WHOLE else _no_batch_statistics(problem, training)


def _rdk(backend: str, kept: str | int = "auto", memory_format: torch.memory_format | None = None) -> Make:
    def make(problem: Problem, training: bool) -> Prepared:
        settings = {"device": problem.device, "dtype": problem.precision.dtype}
        module = problem.case.module(backend=backend, checkpoint=kept, **settings)
        module.load_state_dict(_named_for_rdk(problem))
        layout = native_layout(problem.device) if memory_format is None else memory_format
        module.to(memory_format=layout)
        return Prepared(problem, module, module, training, layout)

    return make


def _named_for_rdk(problem: Problem) -> dict[str, Tensor]:
    """The problem's parameters under the names of an rdk module's state_dict."""
    found: dict[str, Tensor] = {}
    for key, value in problem.network.state_dict().items():
        part, number, entry = key.split(".")
        if part == "products":
            found[f"stages.{number}.{entry}"] = value
        else:
            iteration, stage = divmod(int(number), problem.case.stages)
            found[f"stages.{stage}.norm.{iteration}.{entry}"] = value
    return found


def _refused(backend: str) -> Reason:
    def why_not(problem: Problem, training: bool) -> str | None:
        reason = None if backend == "auto" else dispatch.unavailable(backend)
        if reason is not None:
            return reason
        try:
            one = _rdk(backend)(problem, training)
            rdk.explain(one.network, one.x, inject=one.inject)  # type: ignore[arg-type]
        except rdk.BackendError as error:
            return str(error)
        return None

    return why_not


def _all() -> dict[str, Contender]:
    gpu_graph = _only_gpu("a CUDA graph")
    max_autotune = _compiled("max-autotune-no-cudagraphs")
    found = [
        Contender("eager", _eager(torch.contiguous_format)),
        Contender("eager channels_last", _eager(torch.channels_last), _only_maps),
        Contender("eager graph", _captured(_eager(torch.channels_last)), gpu_graph),
        Contender("compile", _compiled(None), _compilable),
        Contender(
            "compile frozen",
            _compiled(None, frozen=True),
            _first(_only_inference, _compilable),
            "torch.compile with inductor's freezing on, inference only",
        ),
        Contender("compile graph", _captured(_compiled(None)), _first(gpu_graph, _compilable)),
        Contender("max-autotune", max_autotune, _compilable),
        Contender("max-autotune graph", _captured(max_autotune), _first(gpu_graph, _compilable)),
        Contender("cudnn graphs", cudnn_graphs.make, cudnn_graphs.why_not),
        Contender("checkpoint", _checkpointed(lambda n: 1), _only_training),
        Contender("checkpoint sqrt", _checkpointed(lambda n: math.isqrt(n)), _only_training),
        Contender("compile budget", _compiled(None, budget=0.3), _first(_only_training, _compilable)),
    ]
    for backend in ("auto", *dispatch.NAMES):
        found.append(Contender(f"rdk {backend}", _rdk(backend), _refused(backend)))
        found.append(Contender(f"rdk {backend} graph", _captured(_rdk(backend)), _first(gpu_graph, _refused(backend))))
        found.append(Contender(f"rdk {backend} sqrt", _rdk(backend, "sqrt"), _first(_only_training, _refused(backend))))
    found.append(
        Contender(
            "rdk auto channels_last",
            _rdk("auto", memory_format=torch.channels_last),
            _first(_only_maps, _refused("auto")),
            "the smallest calls, where PyTorch's own convolution runs and has a faster layout",
        )
    )
    return {contender.name: contender for contender in found}


CONTENDERS: dict[str, Contender] = _all()


def named(names: Sequence[str]) -> list[Contender]:
    """The contenders of those names. Raises ValueError with the nearest names for one that is unknown."""
    for name in names:
        if name not in CONTENDERS:
            nearest = get_close_matches(name, CONTENDERS, n=3, cutoff=0.3) or list(CONTENDERS)
            raise ValueError(f"unknown contender {name!r}; the nearest are {', '.join(nearest)}.")
    return [CONTENDERS[name] for name in names]


def ours(device_type: str) -> list[str]:
    """The backends that can run on such a device here, and "auto", what a user gets, where measurements let it choose."""
    able = [name for name in dispatch.PREFERENCE[device_type] if dispatch.unavailable(name) is None]
    # Triton's interpreter needs no GPU, but then there is none to measure on
    if not able or (device_type == "cuda" and not torch.cuda.is_available()):
        return ["auto"]
    device = measured.device_name(torch.device(device_type))
    known = {table["backend"] for table in measured.tables() if table["device"] == device}
    return [*able, "auto"] if known & set(able) else able
