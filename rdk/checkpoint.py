"""Plans which states the forward keeps and which the backward computes again; pure arithmetic, called by ops, recompute and plan.

What autograd saved cannot be handed back before the backward ends, so a state kept by the forward occupies its memory
throughout. A schedule therefore divides the n iterations into kept + 1 segments of equal length (to within one) and reverses
each, last first, with `slots` states of its own by the binomial schedule of Griewank & Walther (2000, algorithm 799,
"revolve"). kept + slots = k states are alive at once beside the input; the planner takes the split of k with the least work.
The last `taped` iterations keep everything that reversing them needs and are never run again.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from math import ceil, comb, isqrt
from typing import NamedTuple

from rdk.backends.base import Problem


class Schedule(NamedTuple):
    """How many states the forward keeps, how many more the backward may hold, how many last iterations are taped."""

    kept: int
    slots: int
    taped: int


class BudgetError(ValueError):
    """A memory budget that no schedule fits; the message names the smallest that would."""


def repetitions(length: int, snapshots: int) -> int:
    """The least r with C(snapshots + r, r) >= length: how often revolve runs the most repeated iteration."""
    r = 0
    while comb(snapshots + r, r) < length:
        r += 1
    return r


@lru_cache(maxsize=65536)
def reversal_cost(length: int, slots: int) -> int:
    """Iterations run again to reverse `length` iterations from their stored input with `slots` free slots.

    Griewank & Walther (2000), proposition 1, without the taping run of each iteration, which is counted apart:
    r * length - C(snapshots + r, r - 1) with snapshots = slots + 1.
    """
    if length <= 1:
        return 0
    snapshots = slots + 1
    if slots == 0:
        return length * (length - 1) // 2
    r = repetitions(length, snapshots)
    return r * length - comb(snapshots + r, r - 1)


def split(length: int, slots: int) -> int:
    """How far to advance before the next state is kept, when `length` > 1 iterations are reversed with `slots` > 0 slots."""
    snapshots = slots + 1
    r = repetitions(length, snapshots)
    left_most = comb(snapshots + r - 1, r - 1)
    right_least = comb(snapshots + r - 2, r - 1)
    return min(left_most, length - right_least)


def segment_bounds(iterations: int, schedule: Schedule) -> list[int]:
    """First iterations of the segments of the untaped part, and its end: [0, …, iterations - taped]."""
    untaped = iterations - schedule.taped
    if untaped == 0:
        return [0]
    segments = schedule.kept + 1 - (1 if schedule.taped else 0)
    length, longer = divmod(untaped, segments)
    bounds = [0]
    for segment in range(segments):
        bounds.append(bounds[-1] + length + (1 if segment < longer else 0))
    return bounds


def kept_positions(iterations: int, schedule: Schedule) -> list[int]:
    """Iterations whose input state the forward keeps, ascending; the states inside the taped part are among them."""
    bounds = segment_bounds(iterations, schedule)
    start_of_tapes = iterations - schedule.taped
    positions = bounds[1:] if schedule.taped else bounds[1:-1]
    return positions + list(range(start_of_tapes + 1, iterations))


def advances(iterations: int, schedule: Schedule) -> int:
    """Iterations that the backward runs again to get states back (taping runs are not counted here)."""
    untaped = iterations - schedule.taped
    segments = schedule.kept + (0 if schedule.taped else 1)
    return _even_cost(untaped, segments, schedule.slots) if untaped else 0


def _even_cost(length: int, segments: int, slots: int) -> int:
    """Iterations run again to reverse `segments` even segments, each with all the slots."""
    short, longer = divmod(length, segments)
    return longer * reversal_cost(short + 1, slots) + (segments - longer) * reversal_cost(short, slots)


def recomputed_convolutions(problem: Problem, schedule: Schedule) -> int:
    """Convolutions that the backward runs again, states and tapes together."""
    stages = len(problem.stages)
    per_tape = stages if problem.norm else stages - 1
    states = 0 if problem.return_states else advances(problem.iterations, schedule) * stages
    return states + (problem.iterations - schedule.taped) * per_tape


def kept_maps(problem: Problem, schedule: Schedule) -> int:
    """Maps that the op returns for its backward: kept states, then tapes."""
    return kept_states(problem, schedule) + schedule.taped * problem.tape_maps


def kept_states(problem: Problem, schedule: Schedule) -> int:
    """States among the kept maps; none where the output holds every state, or for tapes that rebuild them."""
    if problem.return_states:
        return 0
    inside_tapes = 0 if problem.state_is_rebuilt else max(schedule.taped - 1, 0)
    return schedule.kept + inside_tapes


def live_maps(problem: Problem, schedule: Schedule) -> int:
    """Maps alive at the peak of the backward: kept, kept again, and the tape of the iteration under way."""
    tape = problem.tape_maps if schedule.taped < problem.iterations else 0
    return kept_maps(problem, schedule) + schedule.slots + tape


def everything(iterations: int) -> Schedule:
    """checkpoint="none": every iteration is taped."""
    return Schedule(kept=0, slots=0, taped=iterations)


def square_root(iterations: int) -> Schedule:
    """checkpoint="sqrt": about √n segments of about √n iterations; every state is computed at most once more."""
    segments = isqrt(iterations - 1) + 1 if iterations > 1 else 1
    return Schedule(kept=segments - 1, slots=max(ceil(iterations / segments) - 1, 0), taped=0)


@lru_cache(maxsize=4096)
def binomial(iterations: int, states: int) -> Schedule:
    """checkpoint=k: the split of k states into kept and slots that runs the fewest iterations again."""
    if states >= iterations - 1:
        return Schedule(kept=max(iterations - 1, 0), slots=0, taped=0)
    best, least = states, _even_cost(iterations, states + 1, 0)
    for kept in range(states - 1, -1, -1):
        if iterations - kept - 1 >= least:  # each of kept + 1 segments runs all its iterations but one again, at least
            break
        cost = _even_cost(iterations, kept + 1, states - kept)
        if cost < least:
            best, least = kept, cost
    return Schedule(kept=best, slots=states - best, taped=0)


def smallest_bytes(problem: Problem, fixed_bytes: int) -> int:
    """The peak of the schedule that holds least, and runs most again."""
    return fixed_bytes + live_maps(problem, Schedule(kept=0, slots=0, taped=0)) * problem.map_bytes


@lru_cache(maxsize=4096)
def under_budget(problem: Problem, fixed_bytes: int, memory_budget: int) -> Schedule:
    """The schedule with the least recomputation whose peak bytes are within the budget.

    fixed_bytes is what the backend holds whatever the schedule. When all states fit, the rest of the budget tapes as many
    of the last iterations as it can. When they don't, taping one iteration costs more states, each worth at least one
    iteration run again, than it saves; except where tapes rebuild the states: there every number of taped iterations is tried
    that could be better than the best so far, were slots free.
    Raises BudgetError, naming the smallest budget that fits.
    """
    smallest = smallest_bytes(problem, fixed_bytes)
    if memory_budget < smallest:
        raise _too_small(smallest, memory_budget)
    iterations = problem.iterations

    def peak(schedule: Schedule) -> int:
        return fixed_bytes + live_maps(problem, schedule) * problem.map_bytes

    all_states = Schedule(kept=iterations - 1, slots=0, taped=0)
    if peak(all_states) <= memory_budget or problem.return_states:
        return _most_taped(iterations, peak, memory_budget)
    candidates = []
    for taped in range(iterations if problem.state_is_rebuilt else 1):
        least = Schedule(kept=1 if taped else 0, slots=0, taped=taped)
        states = (memory_budget - peak(least)) // max(problem.map_bytes, 1)
        if states < 0:
            break
        untaped = iterations - taped
        with_free_slots = Schedule(kept=least.kept + min(states, untaped - 1), slots=untaped, taped=taped)
        candidates.append((recomputed_convolutions(problem, with_free_slots), taped, states))
    best: tuple[int, int, Schedule] | None = None
    for bound, taped, states in sorted(candidates):
        if best is not None and bound > best[0]:
            break
        part = binomial(iterations - taped, states)
        schedule = Schedule(kept=part.kept + (1 if taped else 0), slots=part.slots, taped=taped)
        found = (recomputed_convolutions(problem, schedule), taped, schedule)
        best = found if best is None else min(best, found)
    assert best is not None
    return best[2]


def _most_taped(iterations: int, peak: Callable[[Schedule], int], memory_budget: int) -> Schedule:
    """All states, and the tapes of as many last iterations as fit."""
    for taped in range(iterations, 0, -1):
        # the states between the untaped iterations, and the one that enters the taped part
        schedule = Schedule(kept=iterations - taped, slots=0, taped=taped)
        if peak(schedule) <= memory_budget:
            return schedule
    return Schedule(kept=iterations - 1, slots=0, taped=0)


def _too_small(smallest: int, memory_budget: int) -> BudgetError:
    return BudgetError(
        f"rdk: memory_budget is {memory_budget} bytes, but the smallest that fits this call is {smallest} bytes. "
        f"Give at least that many, a smaller batch or a smaller map."
    )


def resolve(problem: Problem, checkpoint: str, amount: int, fixed_bytes: int) -> Schedule:
    """The schedule of one call. checkpoint: "none", "sqrt", "states" (amount = k) or "budget" (amount = bytes)."""
    if checkpoint == "none":
        return everything(problem.iterations)
    if checkpoint == "budget":
        return under_budget(problem, fixed_bytes, amount)
    if problem.return_states:
        return Schedule(kept=problem.iterations - 1, slots=0, taped=0)
    if checkpoint == "sqrt":
        return square_root(problem.iterations)
    return binomial(problem.iterations, amount)
