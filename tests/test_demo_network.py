"""The parts of the demo: its mazes, network, accuracy, goals and the comparison of training steps."""

from __future__ import annotations

import pytest
import torch

from experiments.data import mazes
from experiments.demo import comparison, evaluation, problem
from experiments.demo.network import Architecture, MazeNetwork

CPU = torch.device("cpu")


def test_goals_are_met_from_their_number_on() -> None:
    def curve(at_trained: float, at_twenty: float) -> evaluation.Curve:
        accuracy = tuple(at_trained if number < 10 else at_twenty for number in range(1, 31))
        return evaluation.Curve(5, 100, accuracy, torch.zeros(100), False)

    def met(*shares: float) -> list[bool]:
        return [goal.reached for goal in evaluation.goals(curve(*shares), 6)]

    assert met(0.95, 0.9) == [True, True]
    assert met(0.949, 0.9) == [False, True] and met(0.95, 0.899) == [True, False]
    assert evaluation.percent(0.99996) == "99.9 %" and evaluation.percent(1.0) == "100.0 %"


def test_no_test_maze_is_trained_on() -> None:
    """3×3 cells have few mazes: without exclusion the training would meet test mazes."""
    keys = frozenset(problem.test_mazes(3, 200, 0, ()).keys())

    def images_of(exclude: frozenset[bytes]) -> set[bytes]:
        pool = problem.TrainingMazes(3, 64, 0, exclude, CPU)
        return {image.numpy().tobytes() for step in range(4) for image in pool.of_step(16 * step)[0]}

    tests = {image.numpy().tobytes() for image in problem.tensors(problem.test_mazes(3, 200, 0, ()), CPU)[0]}
    assert not images_of(keys) & tests
    assert images_of(frozenset()) & tests


def test_training_mazes_depend_on_seed_and_step_alone() -> None:
    def pool(seed: int = 0) -> problem.TrainingMazes:
        return problem.TrainingMazes(3, 8, seed, frozenset(), CPU)

    one, two = pool(), pool()
    later = two.of_step(70)
    for step in (0, 1, 63, 64, 70):
        first = one.of_step(step)
    assert torch.equal(first[0], later[0]) and torch.equal(first[1], later[1])
    assert not torch.equal(pool().of_step(0)[0], pool().of_step(1)[0])
    assert not torch.equal(pool().of_step(0)[0], pool(1).of_step(0)[0])


def test_loss_and_exactness_look_at_free_pixels() -> None:
    chosen = mazes.generate(4, 5, seed=3)
    image, target = problem.tensors(chosen, CPU)
    free = torch.from_numpy(chosen.free)
    scores = torch.zeros(5, 2, 9, 9)
    scores[:, 1] = torch.where(target == 1, 1.0, -1.0)
    expected = torch.nn.functional.softplus(torch.tensor(-1.0))
    scores[:, 1][~free] = 50.0  # walls: wrong by far, and without effect
    assert torch.allclose(problem.loss(scores, image, target), expected)
    assert problem.exactly_right(scores, image, target).all()
    scores[2, 1, 1, 1] *= -1
    assert problem.exactly_right(scores, image, target).tolist() == [True, True, False, True, True]


@pytest.mark.parametrize("recall", [True, False])
@pytest.mark.parametrize("tied", [True, False])
def test_network_after_every_iteration_is_the_network_at_that_iteration(recall: bool, tied: bool) -> None:
    network = MazeNetwork(Architecture(5, 4, recall, tied, 3)).to(memory_format=torch.channels_last)
    image, _ = problem.tensors(mazes.generate(3, 6), CPU)
    with torch.no_grad():
        every = list(network.every_iteration(image, 4, together=3))
        for number, scores in enumerate(every, 1):
            torch.testing.assert_close(scores, network(image, number))
        by_hand, inject = network.enter(image)
        for iteration in range(4):
            by_hand = comparison.plain_iteration(network, by_hand, inject, iteration)
        torch.testing.assert_close(every[-1], network.head(by_hand))
    assert (inject is not None) == recall
    assert network.longest(9) == (9 if tied else 4)
    per_iteration = (5 if recall else 4) * 5 * 5 * 9
    outside = (2 if recall else 1) * 3 * 5 * 9 + (5 * 32 + 32 * 8 + 8 * 2) * 9
    assert sum(p.numel() for p in network.parameters()) == outside + per_iteration * (1 if tied else 4)


def test_settled_is_the_first_of_the_last_right_iterations(monkeypatch: pytest.MonkeyPatch) -> None:
    right = torch.tensor([[0, 0, 1, 1], [0, 1, 0, 1], [1, 1, 1, 1], [0, 0, 0, 0], [1, 1, 1, 0]]).bool()
    columns = iter(right.T)
    monkeypatch.setattr(problem, "exactly_right", lambda *arguments: next(columns))
    network = MazeNetwork(Architecture(4, 4, cells=3))
    found = evaluation.curve(network, mazes.generate(3, 5), 4, CPU)
    assert found.settled.tolist() == [3, 0, 1, 0, 0]
    assert found.accuracy == (0.4, 0.6, 0.6, 0.6) and found.best() == (0.6, 2)


def test_comparison_refuses_numbers_of_different_results(monkeypatch: pytest.MonkeyPatch) -> None:
    network = MazeNetwork(Architecture(4, 3, cells=3))
    image, target = problem.tensors(mazes.generate(3, 4), CPU)
    rows = comparison.compare(network, image, target, 3, rounds=1)
    assert rows[0].difference == 0 and max(row.difference for row in rows) < 1e-3
    assert network.core.checkpoint == "auto" and network.core.memory_budget is None
    whole = comparison.plain_iteration

    def wrong(*arguments: object) -> torch.Tensor:
        return whole(*arguments) * 1.01  # type: ignore[arg-type]

    monkeypatch.setattr(comparison, "plain_iteration", wrong)
    with pytest.raises(comparison.DisagreementError, match='rdk, checkpoint="none" differs from plain'):
        comparison.compare(network, image, target, 3, rounds=1)


def test_recomputation_saves_memory_in_the_table() -> None:
    network = MazeNetwork(Architecture(8, 16, cells=4)).to(memory_format=torch.channels_last)
    image, target = problem.tensors(mazes.generate(4, 16), CPU)
    rows = {row.name: row for row in comparison.compare(network, image, target, 16, rounds=1)}
    for name in ('rdk, checkpoint="sqrt"', "rdk, checkpoint=3", "PyTorch, torch.utils.checkpoint"):
        assert rows[name].peak < 0.5 * rows["PyTorch"].peak
    budgeted = next(row for name, row in rows.items() if "memory_budget" in name)
    assert budgeted.peak < 0.65 * rows["PyTorch"].peak  # it keeps what fits into half of everything
