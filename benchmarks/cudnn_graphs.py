"""cuDNN's own fused graphs (conv + bias + ReLU, conv + add + ReLU) through nvidia-cudnn-frontend; called by contenders."""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor

from benchmarks.problem import Oracle, Prepared, Problem
from benchmarks.workloads import Case


def why_not(problem: Problem, training: bool) -> str | None:
    if problem.device.type != "cuda":
        return "cuDNN needs an NVIDIA GPU"
    if importlib.util.find_spec("cudnn") is None:
        return "nvidia-cudnn-frontend is not installed"
    if training:
        return "its fused graphs are measured in inference only"
    if problem.case.kind == "linear":
        return "its fused graphs are convolutions"
    if problem.case.norm:
        return "a norm between convolution and ReLU is not in these graphs"
    return None


def describe(
    cudnn: Any, case: Case, dtype: torch.dtype, bias: bool, add: bool, relu: bool, handle: Any
) -> tuple[Any, dict[str, Any]]:
    """The graph y = relu(conv(x; w) [+ b] [+ s]) over (N, C, H, W) tensors with channels innermost, and its tensors by name."""
    kinds = {
        torch.bfloat16: cudnn.data_type.BFLOAT16,
        torch.float16: cudnn.data_type.HALF,
        torch.float32: cudnn.data_type.FLOAT,
    }
    wide = cudnn.data_type.FLOAT
    graph = cudnn.pygraph(io_data_type=kinds[dtype], intermediate_data_type=wide, compute_data_type=wide, handle=handle)
    n, c, h, w = case.shape
    innermost = [h * w * c, 1, w * c, c]
    tensors = {
        "x": graph.tensor(name="x", dim=[n, c, h, w], stride=innermost, data_type=kinds[dtype]),
        "w": graph.tensor(name="w", dim=[c, c, 3, 3], stride=[9 * c, 1, 3 * c, c], data_type=kinds[dtype]),
    }
    pair = [case.dilation, case.dilation]
    y = graph.conv_fprop(image=tensors["x"], weight=tensors["w"], padding=pair, stride=[1, 1], dilation=pair)
    if bias:
        tensors["b"] = graph.tensor(name="b", dim=[1, c, 1, 1], stride=[c, 1, c, c], data_type=kinds[dtype])
        y = graph.bias(input=y, bias=tensors["b"])
    if add:
        tensors["s"] = graph.tensor(name="s", dim=[n, c, h, w], stride=innermost, data_type=kinds[dtype])
        y = graph.add(a=y, b=tensors["s"])
    if relu:
        y = graph.relu(input=y)
    y.set_output(True).set_data_type(kinds[dtype])
    tensors["y"] = y
    return graph, tensors


def _planned(cudnn: Any, problem: Problem, bias: bool, add: bool, relu: bool, handle: Any) -> Callable[..., Tensor]:
    """Builds the graph's plan once and returns the function that executes it."""
    graph, tensors = describe(cudnn, problem.case, problem.precision.dtype, bias, add, relu, handle)
    graph.validate()
    graph.build_operation_graph()
    graph.create_execution_plans([cudnn.heur_mode.A, cudnn.heur_mode.FALLBACK])
    graph.check_support()
    graph.build_plans()
    workspace = torch.empty(max(graph.get_workspace_size(), 1), dtype=torch.uint8, device=problem.device)

    def execute(x: Tensor, weight: Tensor, bias_value: Tensor | None = None, skip: Tensor | None = None) -> Tensor:
        y = torch.empty_like(x)
        given = {tensors["x"]: x, tensors["w"]: weight, tensors["y"]: y}
        if bias_value is not None:
            given[tensors["b"]] = bias_value
        if skip is not None:
            given[tensors["s"]] = skip
        graph.execute(given, workspace, handle=handle)
        return y

    return execute


def make(problem: Problem, training: bool) -> Prepared:
    import cudnn  # type: ignore[import-not-found]

    case = problem.case
    network: Oracle = copy.deepcopy(problem.network).to(memory_format=torch.channels_last)
    weights = [layer.weight.detach() for layer in network.layers]
    handle = cudnn.create_handle()
    cudnn.set_stream(handle=handle, stream=torch.cuda.current_stream().cuda_stream)
    if case.kind == "conv":
        stage = _planned(cudnn, problem, True, False, True, handle)
        bias = cast(Tensor, network.layers[0].bias).detach().view(1, -1, 1, 1)

        def iteration(x: Tensor, inject: Tensor | None) -> Tensor:
            return stage(x, weights[0], bias)

    else:
        first = _planned(cudnn, problem, False, False, True, handle)
        second = _planned(cudnn, problem, False, True, True, handle)
        recall = _planned(cudnn, problem, False, True, False, handle) if case.recall else None

        def iteration(x: Tensor, inject: Tensor | None) -> Tensor:
            start = 0
            if recall is not None:
                x, start = recall(x, weights[0], skip=inject), 1
            for number in range(start, start + 4, 2):
                x = second(first(x, weights[number]), weights[number + 1], skip=x)
            return x

    def call(x: Tensor, inject: Tensor | None = None) -> Tensor:
        for _ in range(case.iterations):
            x = iteration(x, inject)
        return x

    return Prepared(problem, network, call, training, torch.channels_last)
