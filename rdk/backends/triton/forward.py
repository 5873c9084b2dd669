"""A forward over a run of iterations; called by the backend in __init__.py, calls launch.

With a norm there are two ways through a stage. Where batch statistics are measured, the convolution leaves them beside its sum
and the next convolution normalises on load, except where the result is needed as a map. Where they are known, the convolution
normalises its own sum.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rdk.backends.base import Call, Store
from rdk.backends.layout import empty_maps
from rdk.backends.triton import launch, prepared
from rdk.backends.triton.launch import Operand
from rdk.backends.triton.setting import Setting, setting_of


def run(call: Call, state: Tensor, first: int, last: int, store: Store) -> Tensor:
    """Iterations first … last-1 from `state`: the Backend protocol's forward."""
    setting = setting_of(call.problem)
    if store.record_statistics:
        prepared.new_affines(call)
    operand = Operand(state)
    for iteration in range(first, last):
        tapes, out = store.tapes_of(iteration, call.problem.tape_maps), store.state_after(iteration)
        as_map = out is not None or iteration + 1 == last
        operand = _iteration(call, setting, operand, iteration, tapes, out, as_map, store.record_statistics)
    return operand.map


def tape(call: Call, state: Tensor, iteration: int, tapes: Tensor) -> None:
    """The tape of one iteration: the Backend protocol's tape."""
    setting = setting_of(call.problem)
    _iteration(call, setting, Operand(state), iteration, tapes, None, False, record=False, tape_only=True)


def _iteration(
    call: Call,
    setting: Setting,
    operand: Operand,
    iteration: int,
    tapes: Tensor | None,
    out: Tensor | None,
    as_map: bool,
    record: bool,
    tape_only: bool = False,
) -> Operand:
    """One iteration from `operand`; its result goes to `out` where given. as_map: it must be a map at the end."""
    stages = call.problem.stages
    sources = {stage.skip for stage in stages if stage.skip is not None}
    entered: dict[int, Tensor] = {}
    if 0 in sources and operand.affine is not None:
        operand = _finished(setting, operand, None, None, None)
    for number, stage in enumerate(stages):
        if number in sources:
            entered[number] = operand.map
        at_end = number == len(stages) - 1
        if tape_only and at_end and not stage.norm:
            break
        inject = call.inject_inside() if number == 0 else None
        skip = entered[stage.skip] if stage.skip is not None else None
        slot = tapes[number] if tapes is not None and (stage.norm or not at_end) else None
        if not stage.norm:
            target = _target(out if at_end else slot, operand.map)
            _convolve(call, setting, iteration, number, operand, target, add_a=inject, add_b=skip, relu=stage.relu)
            operand = Operand(target)
        elif tape_only and at_end:
            assert slot is not None
            _convolve(call, setting, iteration, number, operand, slot)
        elif record:
            z = _target(slot, operand.map)
            affine = _measured(call, setting, iteration, number, operand, z)
            operand = Operand(z, affine, stage.relu)
            if inject is not None or skip is not None or number + 1 in sources or (at_end and as_map):
                operand = _finished(setting, operand, inject, skip, out if at_end else None)
        else:
            target = _target(out if at_end else None, operand.map)
            affine = prepared.affines(call, setting)[call.index(iteration, number)]
            _convolve(
                call, setting, iteration, number, operand, target, pre_norm=slot, out_affine=affine, add_a=inject,
                add_b=skip, relu=stage.relu,
            )  # fmt: skip
            operand = Operand(target)
    return operand


def _target(given: Tensor | None, like: Tensor) -> Tensor:
    return empty_maps(1, like)[0] if given is None else given


def _convolve(
    call: Call,
    setting: Setting,
    iteration: int,
    number: int,
    operand: Operand,
    out: Tensor,
    *,
    pre_norm: Tensor | None = None,
    statistics: Tensor | None = None,
    out_affine: Tensor | None = None,
    add_a: Tensor | None = None,
    add_b: Tensor | None = None,
    relu: bool = False,
) -> None:
    """One stage's convolution, with its bias and what else it carries."""
    index = call.parameter_index(iteration, number)
    launch.conv3x3(
        setting,
        call.problem.stages[number].dilation,
        operand,
        prepared.weight(call, index),
        out,
        bias=prepared.bias(call, index),
        pre_norm=pre_norm,
        statistics=statistics,
        out_affine=out_affine,
        add_a=add_a,
        add_b=add_b,
        relu=relu,
    ).run()


def _measured(call: Call, setting: Setting, iteration: int, number: int, operand: Operand, z: Tensor) -> Tensor:
    """The convolution into z and its batch statistics into the call's rows; returns the norm's (3, C)."""
    statistics = z.new_empty((setting.tiles, 2, setting.channels), dtype=torch.float32)
    _convolve(call, setting, iteration, number, operand, z, statistics=statistics)
    row = call.index(iteration, number)
    one = slice(row, row + 1)
    affines: Tensor = call.prepared["affines"]
    launch.norm_statistics(
        setting,
        statistics,
        call.means[one],
        call.variances[one],
        call.norm_weights[row].contiguous(),
        call.norm_biases[row].contiguous(),
        affines[one],
        call.eps[row],
    ).run()
    return affines[row]


def _finished(
    setting: Setting, operand: Operand, inject: Tensor | None, skip: Tensor | None, out: Tensor | None
) -> Operand:
    """A normalised sum as a map."""
    assert operand.affine is not None
    target = _target(out, operand.map)
    launch.finish_stage(setting, operand.map, operand.affine, target, inject, skip, operand.relu).run()
    return Operand(target)
