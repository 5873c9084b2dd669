"""The planner against brute force: every schedule of small problems, and what is claimed of large ones."""

from __future__ import annotations

from functools import lru_cache

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rdk import checkpoint
from rdk.backends.base import Problem, StageSpec
from rdk.checkpoint import BudgetError, Schedule


@lru_cache(maxsize=None)
def cheapest_reversal(length: int, slots: int) -> int:
    """Iterations run again, by trying every place for the next state."""
    if length <= 1:
        return 0
    if slots == 0:
        return length * (length - 1) // 2
    return min(
        first + cheapest_reversal(first, slots) + cheapest_reversal(length - first, slots - 1)
        for first in range(1, length)
    )


def cheapest_segments(length: int, segments: int, slots: int) -> int:
    """Iterations run again for the best division into segments of any lengths."""
    if segments == 1:
        return cheapest_reversal(length, slots)
    return min(
        cheapest_reversal(first, slots) + cheapest_segments(length - first, segments - 1, slots)
        for first in range(1, length - segments + 2)
    )


def problem(n: int, stages: int = 1, norm: bool = False, skip: bool = False, return_states: bool = False) -> Problem:
    specs = [StageSpec(norm=norm) for _ in range(stages)]
    if skip:
        specs[-1] = StageSpec(norm=norm, skip=0)
    return Problem(
        kind="conv",
        stages=tuple(specs),
        shape=(1, 1, 1, 1),
        dtype=torch.float64,  # one map is 8 bytes
        device=torch.device("cpu"),
        iterations=n,
        tied=True,
        bias=False,
        inject=False,
        norm_training=norm,
        needs_grad=True,
        return_states=return_states,
        precision="exact",
    )


@pytest.mark.parametrize("slots", range(8))
def test_reversal_cost_is_the_optimum(slots: int) -> None:
    for length in range(1, 40):
        assert checkpoint.reversal_cost(length, slots) == cheapest_reversal(length, slots)


@pytest.mark.parametrize("slots", range(1, 8))
def test_split_attains_the_optimum(slots: int) -> None:
    for length in range(2, 40):
        first = checkpoint.split(length, slots)
        assert 1 <= first < length
        cost = first + cheapest_reversal(first, slots) + cheapest_reversal(length - first, slots - 1)
        assert cost == cheapest_reversal(length, slots)


@pytest.mark.parametrize("n", range(1, 12))
def test_binomial_is_the_best_use_of_k_states(n: int) -> None:
    for states in range(n + 2):
        schedule = checkpoint.binomial(n, states)
        assert schedule.kept + schedule.slots <= states
        best = min(cheapest_segments(n, kept + 1, states - kept) for kept in range(min(states, n - 1) + 1))
        assert checkpoint.advances(n, schedule) == best


@given(st.integers(1, 300), st.integers(0, 40))
def test_positions_divide_the_iterations_evenly(n: int, states: int) -> None:
    schedule = checkpoint.binomial(n, states)
    positions = checkpoint.kept_positions(n, schedule)
    assert len(positions) == schedule.kept and positions == sorted(set(positions))
    assert all(0 < position < n for position in positions)
    lengths = [b - a for a, b in zip([0, *positions], [*positions, n], strict=True)]
    assert max(lengths) - min(lengths) <= 1


@given(st.integers(2, 400), st.integers(0, 60))
def test_one_more_state_never_costs_more(n: int, states: int) -> None:
    more = checkpoint.advances(n, checkpoint.binomial(n, states + 1))
    assert more <= checkpoint.advances(n, checkpoint.binomial(n, states))


@given(st.integers(1, 5000))
def test_square_root_keeps_about_root_n_and_runs_nothing_twice(n: int) -> None:
    schedule = checkpoint.square_root(n)
    assert schedule.kept <= n**0.5 + 1 and schedule.slots <= n**0.5 + 1
    assert checkpoint.advances(n, schedule) < n


def every_schedule(n: int) -> list[Schedule]:
    found = []
    for taped in range(n + 1):
        untaped = n - taped
        for segments in range(1, untaped + 1):
            kept = segments - 1 + (1 if taped else 0)
            found += [Schedule(kept, slots, taped) for slots in range(untaped)]
        if untaped == 0:
            found.append(Schedule(0, 0, taped))
    return found


@pytest.mark.parametrize("stages,norm,skip", [(1, False, False), (1, True, False), (4, False, True), (2, True, True)])
@pytest.mark.parametrize("return_states", [False, True])
@pytest.mark.parametrize("n", [1, 2, 3, 5, 8])
def test_budget_takes_the_cheapest_schedule_that_fits(
    n: int, stages: int, norm: bool, skip: bool, return_states: bool
) -> None:
    p = problem(n, stages, norm, skip, return_states)
    fixed = 24
    costs = [
        (fixed + checkpoint.live_maps(p, s) * p.map_bytes, checkpoint.recomputed_convolutions(p, s))
        for s in every_schedule(n)
    ]
    smallest = min(size for size, _ in costs)
    for budget in range(0, smallest, 8):
        with pytest.raises(BudgetError, match=f"smallest that fits this call is {smallest} bytes"):
            checkpoint.under_budget(p, fixed, budget)
    for budget in range(smallest, max(size for size, _ in costs) + 16, 4):
        chosen = checkpoint.under_budget(p, fixed, budget)
        assert fixed + checkpoint.live_maps(p, chosen) * p.map_bytes <= budget
        best = min(cost for size, cost in costs if size <= budget)
        assert checkpoint.recomputed_convolutions(p, chosen) == best, (budget, chosen)


def exhaustive(p: Problem, states_at: list[int]) -> Schedule:
    """The first cheapest of every number of taped iterations and, for each, every division of the states it leaves."""
    found = []
    for taped, states in enumerate(states_at):
        untaped = p.iterations - taped
        if states >= untaped - 1:
            divisions = [(untaped - 1, 0)]
        else:
            divisions = [(kept, states - kept) for kept in range(states, -1, -1)]
        found += [Schedule(kept + (1 if taped else 0), slots, taped) for kept, slots in divisions]
    return min(found, key=lambda schedule: checkpoint.recomputed_convolutions(p, schedule))


@given(st.integers(2, 120), st.integers(1, 3), st.integers(1, 200))
def test_a_budget_with_tapes_that_rebuild_states_finds_what_trying_all_finds(n: int, stages: int, maps: int) -> None:
    p = problem(n, stages, norm=True)
    # one iteration's tape is always there; taping some also keeps the state that enters them
    states_at = [maps - stages - taped * stages - (1 if taped else 0) for taped in range(n)]
    states_at = [states for states in states_at if states >= 0]
    if states_at and states_at[0] < n - 1:
        chosen = checkpoint.under_budget(p, 0, maps * p.map_bytes)
        best = exhaustive(p, states_at)
        cost = checkpoint.recomputed_convolutions
        assert (cost(p, chosen), chosen.taped) == (cost(p, best), best.taped)
        if chosen.taped == 0:
            assert chosen == best


@pytest.mark.parametrize("stages", [1, 2])
@pytest.mark.parametrize("maps", [100, 1500, 2990])
def test_planning_tapes_that_rebuild_states_tries_few_schedules(
    stages: int, maps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = 0
    even_cost = checkpoint._even_cost

    def counted(*arguments: int) -> int:
        nonlocal tried
        tried += 1
        return even_cost(*arguments)

    monkeypatch.setattr(checkpoint, "_even_cost", counted)
    checkpoint.binomial.cache_clear()
    n = 3000
    checkpoint.under_budget.__wrapped__(problem(n, stages, norm=True), 0, 8 * maps)
    assert tried <= 10 * n  # all schedules together are some n² of them


def test_known_figures() -> None:
    # Griewank & Walther (2000): C(s + r, s) iterations need r repetitions with s snapshots
    assert checkpoint.repetitions(56, 3) == 5 and checkpoint.repetitions(57, 3) == 6
    assert checkpoint.reversal_cost(10, 2) == cheapest_reversal(10, 2) == 15
    assert checkpoint.binomial(10, 9) == Schedule(kept=9, slots=0, taped=0)
    assert checkpoint.everything(10) == Schedule(kept=0, slots=0, taped=10)


def test_planning_is_quick() -> None:
    p = problem(10_000, 4, skip=True)
    for states in (1, 10, 100, 1000):
        checkpoint.binomial(10_000, states)
    checkpoint.under_budget(p, 0, 8 * 2_000)
    assert checkpoint.reversal_cost.cache_info().currsize < 65536
