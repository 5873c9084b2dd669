"""Presets, recipes, hashes and overrides of the experiments."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace

import pytest

from experiments import records
from experiments.configs import EXPERIMENTS, experiment, f2, f2b_wide, f5, f5_adam, t1, t1_depths
from experiments.configs.scales import laptop
from experiments.settings import (
    Data,
    Model,
    Run,
    SettingsError,
    Train,
    as_dict,
    current_names,
    differences,
    from_dict,
    optional_copy,
    overridden,
)

NAMES = [f"T{n}" for n in range(1, 8)] + [f"F{n}" for n in range(1, 14)] + [f"C{n}" for n in range(1, 12)]


def recipe(run: Run) -> tuple[object, ...]:
    train = run.train
    return run.model.depth, train.optimizer, train.lr, train.milestones, train.factor, train.epochs, train.batch


def chosen(runs: list[Run], family: str, data: str, recurrent: bool, cells: int = 5) -> list[tuple[object, ...]]:
    return [
        recipe(run)
        for run in runs
        if (run.model.family, run.data.name, run.model.recurrent, run.data.cells, run.seed)
        == (family, data, recurrent, cells, 0)
    ]


def test_every_table_figure_and_claim_has_a_preset() -> None:
    assert set(NAMES) <= set(EXPERIMENTS)
    for entry in EXPERIMENTS.values():
        for scale in ("full", "laptop", "smoke"):
            runs = entry.runs_at(scale)
            assert len({(run.home, run.key) for run in runs}) == len(runs)
            for run in runs:
                run.check()
                assert run.scale == scale and from_dict(Run, as_dict(run)) == run


def test_recipes_of_the_launch_files() -> None:
    sgd, tenth = "sgd", 0.1
    assert chosen(f2(), "mlp", "svhn", True)[0] == (3, sgd, 0.01, (50, 125), tenth, 150, 128)
    assert chosen(f2(), "mlp", "emnist", False)[4] == (7, sgd, 0.01, (100, 150), tenth, 150, 128)
    assert chosen(f2(), "mlp", "cifar10", False)[7] == (10, sgd, 0.01, (100, 150), tenth, 200, 128)
    assert [row[2] for row in chosen(f2(), "convnet", "svhn", True)] == [0.05, 0.05, 0.04, 0.03, 0.03]
    assert {row[2] for row in chosen(f2(), "convnet", "cifar10", True)} == {0.01}
    assert {row[2:] for row in chosen(f2(), "convnet", "svhn", False)} == {(0.05, (50, 100, 150), tenth, 200, 128)}
    assert [row[2] for row in chosen(f2(), "residual", "emnist", True)] == [0.1, 0.1, 0.1, 0.01]
    assert {row[2:] for row in chosen(f2(), "residual", "emnist", False)} == {(0.1, (50, 150, 175), tenth, 200, 128)}
    assert {row[3] for row in chosen(t1_depths(), "residual_bn", "svhn", True)} == {(60, 120)}
    assert chosen(t1_depths(), "residual_bn", "svhn", False)[-1] == (19, sgd, 0.1, (80, 140), tenth, 160, 128)
    assert chosen(t1(), "resnet18", "cifar10", False) == [(18, sgd, 0.1, (100, 150, 175), tenth, 200, 128)]
    assert {run.model.width for run in f2b_wide()} == {128}


@pytest.mark.parametrize(
    ("cells", "recurrent", "expected"),
    [
        (5, True, "8 .1 175 .1 200|12 .05 50,100 .1 150|16 .02 50,100 .1 150|20 .01 50,100 .1 150|"
         "24 .002 60,120 .5 160|28 .002 60,120 .25 160|36 .001 40,100 .25 160|44 .001 60,120 .25 160"),
        (6, True, "8 .1 175 .1 200|12 .05 50,100 .1 150|16 .05 50,100 .1 150|20 .04 50,100 .1 150|"
         "24 .008 60,120 .5 160|28 .006 60,120 .25 160|36 .006 40,80 .25 120|44 .004 40,80 .25 120"),
        (7, True, "8 .1 175 .1 200|12 .05 50,100 .1 150|16 .04 75,125 .1 150|20 .02 75,125 .1 150|"
         "24 .01 80,140 .1 180|28 .006 80,140 .25 180|36 .004 80,140 .25 200|44 .006 60,120 .25 180"),
        (5, False, "8 .1 60,120 .1 150|12 .05 50,100 .1 150|16 .001 175 .1 200|20 .001 175 .1 200|"
         "24 .001 175 .1 200|28 .001 175 .1 200|36 .001 175 .1 200|44 .001 175 .1 200"),
        (7, False, "8 .1 60,120 .1 160|12 .05 50,100 .1 150|16 .005 175 .1 200|20 .002 175 .1 200|"
         "24 .002 175 .1 200|28 .002 175 .1 200|36 .002 175 .1 200|44 .002 175 .1 200"),
    ],
)  # fmt: skip
def test_maze_recipes(cells: int, recurrent: bool, expected: str) -> None:
    rows = []
    for line in expected.split("|"):
        depth, lr, milestones, factor, epochs = line.split()
        rows.append(
            (int(depth), "sgd", float(lr), tuple(map(int, milestones.split(","))), float(factor), int(epochs), 50)
        )
    assert chosen(f5(), "maze", "mazes", recurrent, cells) == rows
    assert all(run.train.lr_per_iteration == run.model.recurrent for run in f5())
    if cells == 5 and not recurrent:
        assert chosen(f5(), "maze", "mazes", False, 6) == rows


def test_adam_recipes() -> None:
    assert [recipe(run) for run in f5_adam() if run.seed == 0][:2] == [
        (8, "adam", 5e-4, (40, 100), 0.25, 140, 50),
        (12, "adam", 5e-4, (40, 80), 0.25, 120, 50),
    ]


def test_a_quarter_of_the_epochs_rounds_down() -> None:
    assert Train(epochs=150, milestones=(50, 100)).scaled(0.25) == Train(epochs=37, milestones=(12, 25))
    assert Train(epochs=3).scaled(0.01).epochs == 1


def test_analyses_find_their_nets_in_the_sweeps() -> None:
    """Figure 6 looks at a net of Figure 2b: the same folder, trained once."""
    for name, sweep in (("F6", "F2b"), ("T3", "F2c"), ("C5", "F2b"), ("F8", "T1-depths"), ("T7", "F2")):
        for scale in ("full", "laptop"):
            known = {(run.home, run.key) for run in experiment(sweep).runs_at(scale)}
            assert {(run.home, run.key) for run in experiment(name).runs_at(scale)} <= known


def test_the_key_is_the_settings() -> None:
    run = Run(seed=3)
    settings = {k: v for k, v in as_dict(run).items() if k not in ("home", "scale", "epoch_scale")}
    settings["train"]["schedule"] = settings["train"].pop("lr_rule")
    assert run.key == hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]
    assert run.key == run.replaced(home="x", scale="laptop", epoch_scale=0.5).key
    changed = [
        run.replaced(seed=4),
        run.replaced(model=replace(run.model, depth=4)),
        run.replaced(data=Data(augment="flip")),
    ]
    assert len({one.key for one in [run, *changed]}) == 4


def test_files_with_older_names_are_read_under_the_same_key() -> None:
    """train.lr_rule and epoch_scale were called schedule; a key is what a folder and every record is found by."""
    run = Run(epoch_scale=0.5, train=Train(lr_rule="cosine", epochs=20))
    assert run.key == "0cb323257a82"
    stored = as_dict(run)
    stored["schedule"] = stored.pop("epoch_scale")
    stored["train"]["schedule"] = stored["train"].pop("lr_rule")
    read = current_names({"schedule": 0.5, "settings": stored, "metrics": {"test_accuracy": 1.0}})
    assert read == {"epoch_scale": 0.5, "settings": as_dict(run), "metrics": {"test_accuracy": 1.0}}
    assert from_dict(Run, read["settings"]) == run and current_names(read) == read


def test_every_committed_record_is_under_the_key_of_its_settings() -> None:
    found = records.runs()
    assert found and all(from_dict(Run, entry["settings"]).key == entry["key"] for entry in found)


def test_laptop_runs_differ_in_nothing_but_the_net() -> None:
    runs = experiment("F2").runs_at("laptop")
    assert len({run.train for run in runs}) == 1 and {run.data.name for run in runs} == {"digits"}
    assert laptop(experiment("T2").runs()[0]) is None


def test_overrides_change_what_they_name() -> None:
    kind = optional_copy(Train, "")
    assert overridden(Train(lr=0.3), kind()) == Train(lr=0.3)
    assert overridden(Train(lr=0.3), kind(epochs=7, milestones=(2,))) == Train(lr=0.3, epochs=7, milestones=(2,))


def test_differences_are_named() -> None:
    one, other = as_dict(Run()), as_dict(Run(seed=1, model=Model(depth=5)))
    assert differences(one, other) == ["model.depth: 3, not 5", "seed: 0, not 1"]


MAZE = Run(model=Model(family="maze", depth=8))


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (Run(data=Data(name="mazes")), "cannot train on mazes"),
        (Run(model=Model(family="maze", depth=8)), "cannot train on digits"),
        (Run(model=Model(dilation="A")), "for maze networks; this one is mlp"),
        (Run(model=Model(sharing="A")), "for resnet50; this network is mlp"),
        (Run(model=Model(family="maze", depth=8), data=Data(name="mazes", cells=8)), "between 2 and 7 .* got 8"),
        (MAZE.replaced(data=Data(name="mazes", canvas=1)), "canvas must be 32 or 0 .* got 1"),
        (
            MAZE.replaced(data=Data(name="mazes", cells=100, canvas=0)),
            "between 2 and 99 at one pixel per unit, got 100",
        ),
        (MAZE.replaced(data=Data(name="mazes", train_count=0)), "must be positive, got 0 and 10000"),
        (Run(train=Train(epochs=0)), "must be positive, got 0"),
        (Run(train=Train(milestones=(5, 3))), r"must rise, got \(5, 3\)"),
    ],
)
def test_settings_that_cannot_be_run(run: Run, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        run.check()


def test_unknown_presets_have_neighbours() -> None:
    with pytest.raises(SettingsError, match="unknown experiment 'T9'. Did you mean"):
        experiment("T9")
