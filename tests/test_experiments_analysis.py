"""Probes, CKA, active neurons, halting, receptive fields, visualisation and maze claims, against oracles and counts by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from experiments import models
from experiments.analysis import arithmetic, cka, halting, maze_claims, neurons, probes, receptive, visualise
from experiments.configs import experiment
from experiments.data.base import Batches
from experiments.data.sets import InMemory
from experiments.engine import Place
from experiments.models.network import DepthNet
from experiments.settings import Data, Model, Shape


def centred(n: int) -> Tensor:
    return torch.eye(n, dtype=torch.float64) - 1 / n


@given(st.integers(4, 9), st.integers(1, 12), st.integers(1, 12), st.integers(0, 999))
def test_cka_against_its_definition(n: int, p: int, q: int, seed: int) -> None:
    """HSIC with explicit centring matrices; the debiased form with the sum over distinct quadruples of rows."""
    generator = torch.Generator().manual_seed(seed)
    x, y = (torch.randn(n, w, generator=generator, dtype=torch.float64) + 1 for w in (p, q))

    def similarity(a: Tensor, b: Tensor) -> float:
        return cka.biased(cka.gram(a), cka.gram(b))

    k, m, h = x @ x.T, y @ y.T, centred(n)

    def hsic(a: Tensor, b: Tensor) -> Tensor:
        return torch.trace(a @ h @ b @ h)

    expected = hsic(k, m) / (hsic(k, k) * hsic(m, m)).sqrt()
    assert similarity(x, y) == pytest.approx(float(expected), rel=1e-9)
    assert similarity(x, 3 * x - 2) == pytest.approx(1)
    rotation = torch.linalg.qr(torch.randn(q, q, generator=generator, dtype=torch.float64))[0]
    assert similarity(x, y @ rotation) == pytest.approx(similarity(x, y), rel=1e-9)


def test_debiased_hsic_against_all_quadruples_of_rows() -> None:
    n = 6
    x, y = torch.randn(n, 3, dtype=torch.float64), torch.randn(n, 5, dtype=torch.float64)
    k, m = x @ x.T, y @ y.T
    total, count = 0.0, 0
    for i in range(n):
        for j in range(n):
            for q in range(n):
                for r in range(n):
                    if len({i, j, q, r}) == 4:
                        total += float(k[i, j] * (m[i, j] + m[q, r] - 2 * m[i, q]))
                        count += 1
    assert float(cka._hsic(k, m)) == pytest.approx(total / count, rel=1e-9)
    with pytest.raises(ValueError, match="at least 4 rows"):
        cka.debiased(cka.gram(x[:3]), cka.gram(y[:3]))


def test_debiased_cka_of_unrelated_features_is_near_zero() -> None:
    k, m = cka.gram(torch.randn(200, 300)), cka.gram(torch.randn(200, 300))
    assert cka.biased(k, m) > 0.5 and abs(cka.debiased(k, m)) < 0.05


def test_claim_5_makes_one_gram_matrix_of_each_net_and_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight nets, 60 pairs a layer; every pair's number is that of its features."""
    runs = [run for run in experiment("C5").runs_at("laptop") if run.seed < 2 and run.model.depth < 8]
    features = {(run.key, layer): torch.randn(6, 5) for run in runs for layer in cka.LAYERS}
    made: list[Tensor] = []
    original = cka.gram
    monkeypatch.setattr(cka, "layer_features", lambda run, place, layer, most: features[run.key, layer])
    monkeypatch.setattr(cka, "gram", lambda x: (made.append(x), original(x))[1])
    found = cka.compare(experiment("C5"), runs, Place(), "laptop", Path())
    assert len(made) == len(runs) * len(cka.LAYERS) == 24
    (pair,) = cka.pairings(runs)["FF7-FF7, other seed"]
    x, y = (original(features[run.key, "module"]) for run in pair)
    assert found["FF7-FF7, other seed"]["module debiased"]["mean"] == cka.debiased(x, y)
    assert found["FF7-R7"]["penultimate biased"]["n"] == 4 and found["images"] == 6


class Stub(DepthNet):
    """Three fixed linear maps of the flattened image as states."""

    def __init__(self, size: int) -> None:
        super().__init__(torch.nn.Flatten(), None, torch.nn.Sequential(torch.nn.Linear(size, 3)))
        self.maps = [torch.eye(size), torch.randn(size, size), torch.zeros(size, size)]

    @property
    def iterations(self) -> int:
        return 3

    def states(self, x: Tensor, iterations: int | None = None) -> Tensor:
        return torch.stack([x.flatten(1) @ m for m in self.maps])


def test_probes_against_scikit_learn() -> None:
    """Separable classes: probes find them from the features that hold them, guess where the features hold nothing."""
    linear_model = pytest.importorskip("sklearn.linear_model")
    labels = torch.randint(0, 3, (1024,))
    images = (torch.randn(1024, 1, 2, 4) * 12 + 128).clamp(0, 255)
    images[torch.arange(1024), 0, 0, labels] += 60
    images = images.clamp(0, 255).to(torch.uint8)
    source = InMemory(Data(name="digits"), (images, labels), (images, labels), torch.device("cpu"))
    net, pools = Stub(8), [lambda x: x]
    found = probes.fit(net, pools, source, 0, 16, Batches(8, 0, 128))
    accuracy = probes._accuracies(net, pools, found, source.test(512))
    flat = images.flatten(1).float().numpy()
    oracle = 100 * linear_model.LogisticRegression(max_iter=2000).fit(flat, labels).score(flat, labels)
    assert oracle > 97 and accuracy[0] > oracle - 3 and accuracy[1] > oracle - 8
    majority = 100 * float(torch.bincount(labels).max()) / 1024
    assert accuracy[2] <= majority + 1e-4


def test_active_neurons_by_hand() -> None:
    counts = torch.tensor([[[4, 0, 2]], [[2, 0, 0]], [[4, 0, 1]]])  # 3 iterations, 1 image, 3 channels
    found = neurons.summary(counts)
    assert found["pairs"] == 3 and found["pairs_never_active"] == 1
    assert found["channels_active_twice"] == 2 and found["channels_never_active"] == 1
    assert found["share_of_pairs_active_twice"] == 1.0
    # channel 0 is most active at 0 (ratios 1, .5, 1), channel 2 at 0 (1, 0, .5)
    filled = [[b for b, n in enumerate(line) if n] for line in found["histograms"]]
    assert filled == [[], [0, 25], [25, 49]]
    assert found["mean_ratio_elsewhere"] == pytest.approx((0.5 + 1 + 0 + 0.5) / 4)
    other = {"histograms": [[0] * 50, [4] + [0] * 49, [0] * 50]}
    assert neurons.total_variation(found, other) == pytest.approx(0.75)
    assert neurons.total_variation(found, found) == 0


def test_active_counts_are_of_the_states() -> None:
    net = models.build(Model(family="convnet", depth=6, width=6), Shape(1, 28, 10)).eval()
    x = torch.randn(2, 1, 28, 28)
    counts, states = neurons.active_counts(net, x), net.states(x)
    assert counts.shape == (3, 2, 6)
    assert int(counts[1, 1, 4]) == sum(1 for value in states[1, 1, 4].flatten().tolist() if value > 0)


def maze_outputs(*paths: list[int]) -> tuple[Tensor, Tensor]:
    """Outputs of a 1x4 maze whose last pixel is a wall, one list of predicted pixels per iteration, and the image."""
    wanted = torch.tensor(paths)[:, None, None, :]  # (n, 1, 1, 4)
    x = torch.ones(1, 3, 1, 4)
    x[..., 3] = 0
    return torch.stack([1 - wanted, wanted], dim=2).float() * 4, x


def test_halting_by_hand() -> None:
    outputs, x = maze_outputs([1, 0, 0, 0], [1, 1, 0, 1], [1, 1, 1, 0], [1, 1, 0, 0], [0, 0, 0, 0])
    assert halting.predictions(outputs, x)[1, 0, 0].tolist() == [1, 1, 0, 0]  # the wall is 0
    assert halting.chosen_iteration("default", outputs, x).tolist() == [4]
    assert halting.chosen_iteration("agreement", outputs, x).tolist() == [3]  # as iteration 1, walls aside
    outputs[2] *= 2
    outputs[4, :, :, :, 3] *= 50  # sure of the wall: must not count
    assert halting.chosen_iteration("max_confidence", outputs, x).tolist() == [2]
    different, x = maze_outputs([1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0])
    assert halting.chosen_iteration("agreement", different, x).tolist() == [2]  # none agree: the last


def test_agreement_allows_one_pixel_in_a_thousand() -> None:
    for wrong, expected in ((1, 1), (2, 2)):
        wanted = torch.zeros(3, 1, 32, 32)
        wanted[1].flatten()[:wrong] = 1
        wanted[2].flatten()[500:600] = 1
        outputs, x = torch.stack([1 - wanted, wanted], dim=2), torch.ones(1, 3, 32, 32)
        assert halting.chosen_iteration("agreement", outputs, x).tolist() == [expected]


def test_halting_of_classes() -> None:
    outputs = torch.zeros(3, 2, 4)
    for iteration, classes in enumerate(([1, 0], [2, 0], [1, 3])):
        outputs[iteration, [0, 1], classes] = 1.0 + iteration
    assert halting.chosen_iteration("agreement", outputs, torch.zeros(2, 1, 4, 4)).tolist() == [2, 1]


def test_receptive_fields() -> None:
    for depth, dilation, expected in ((8, "none", 8), (20, "none", 20), (8, "A", 16), (8, "B", 14)):
        model = Model(family="maze", depth=depth, width=2, dilation=dilation)  # type: ignore[arg-type]
        assert receptive.radius(model) == receptive.measured_radius(model) == expected


def test_claims_by_arithmetic() -> None:
    needed = receptive.receptive_field()["convolutions_needed"]
    assert [needed[size]["one_pixel_corner_to_corner"] for size in ("small", "large")] == [8, 12]
    assert [entry["two_pixels_corner_to_corner"] for entry in needed.values()] == [17, 21, 25]
    assert arithmetic.effective_depth()["depth"] == 7
    assert arithmetic.parameters_residual() == {"recurrent": 11_815_434, "feed_forward": 30_689_802}
    assert arithmetic.parameters_batch_norm()["CIFAR-10"]["share"] == pytest.approx(0.319, abs=1e-3)
    assert arithmetic.depth_formula()["agree"]
    assert arithmetic.sizes_mlp()["rows"]["EMNIST"] == ["784x500", "500x500", "500x47"]
    assert arithmetic.sizes_convnet()["rows"]["EMNIST"] == [32, 64, 64, 128, 47]


def test_maze_claims_on_few_mazes() -> None:
    arguments: Any = (experiment("C7"), [], Place(), "smoke", Path())
    lengths = maze_claims.path_lengths(*arguments)["small closed"]
    assert sum(lengths["histogram"].values()) == lengths["count"] == 600
    assert all(int(length) % 2 == 0 for length in lengths["histogram"]) and 20 < lengths["mean"] < 23.5
    found = maze_claims.disjoint(*arguments)
    assert all(found[size]["as_drawn"] == 0 for size in ("small", "medium", "large"))
    few = maze_claims.duplicates(*arguments)
    assert all(
        0 <= a <= b for a, b in zip(few["small"]["surplus_percent"], few["small"]["members_percent"], strict=True)
    )


def test_coefficients_go_from_the_first_layer_to_the_last() -> None:
    assert visualise.coefficients(visualise.CIFAR, 0, 6) == (1.0, 0.0, 0.0)
    assert visualise.coefficients(visualise.CIFAR, 5, 6) == pytest.approx((0.64, 1.0, 10.0))
    assert visualise.coefficients(visualise.IMAGENET, 5, 6) == pytest.approx((0.01, 5.0, 50.0))
    assert visualise.coefficients(visualise.CIFAR, 2, 5) == pytest.approx((0.82, 0.5, 5.0))


def test_terms_of_the_visualisation_by_hand() -> None:
    x = torch.tensor([[0.0, 1.0], [3.0, 7.0]])[None, None]
    expected = (1 + 16) ** 0.5 + (9 + 36) ** 0.5 + 7 + 2
    assert float(visualise.total_variation(x)) == pytest.approx(expected)
    a = torch.zeros(2, 3, 1, 2)
    a[0, 0] = torch.tensor([3.0, 4.0])  # |a_0(x_0)| = 5
    a[1, 1] = torch.tensor([0.0, 2.0])  # |a_1(x_1)| = 2
    a[1, 0] = torch.tensor([1.0, 0.0])  # |a_0(x_1)| = 1, disturbs filter 0
    assert float(visualise.objective(a, contrastive=False)) == 7
    assert float(visualise.objective(a, contrastive=True)) == 2 * 5 - 1 + 2 * 2 - 0
    # image 0 for filter 2, image 1 for filter 0 again
    assert float(visualise.objective(a, contrastive=False, first=2)) == 0 + 1
    assert float(visualise.objective(a, contrastive=True, first=2)) == 2 * 0 - 0 + 2 * 1 - 5


def test_visualisation_raises_its_objective(tmp_path: Path) -> None:
    net = models.build(Model(family="residual_bn", depth=7, width=4), Shape(1, 28, 10)).eval().requires_grad_(False)
    layers = visualise.layer_functions(net)
    assert [name for name, _ in layers] == ["stem", "iteration 1", "last convolution"]
    statistics = torch.zeros(4), torch.ones(4)
    weights = visualise.Coefficients(1.0, 0.1, 0.1)
    start, end = (
        visualise.visualise(net, layers[1][1], (3, 1, 28, 28), weights, statistics, False, s) for s in (0, 25)
    )

    def loss(x: Tensor) -> float:
        before = net.stem[0](x)  # type: ignore[index]
        bn = (before.mean((0, 2, 3)) - 0).norm() + (before.var((0, 2, 3)) - 1).norm()
        own = visualise.objective(layers[1][1](x), False)
        return float(-own + 0.1 * visualise.total_variation(x) + 0.1 * bn)

    assert loss(end) < loss(start)
    visualise.save_grid(tmp_path / "grid.png", [end, end], ((0.3,), (0.3,)))
    assert (tmp_path / "grid.png").stat().st_size > 500


def test_high_frequency_share() -> None:
    board = torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).repeat(16, 16)[None, None]
    wave = torch.sin(torch.arange(32) * 2 * torch.pi / 32).expand(1, 1, 32, 32)
    assert visualise.high_frequency_share(board) > 0.99 and visualise.high_frequency_share(wave) < 0.01
