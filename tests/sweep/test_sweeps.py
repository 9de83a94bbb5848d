"""A sweep runs each of its trials once, in a numbered folder, and ends in a comparison."""

import csv
import json
from pathlib import Path
from typing import Any

import optuna
import pytest
from conftest import Command
from some import some
from sweeps import SMALL, states

from mnist_lab.errors import UserError
from mnist_lab.result import Result
from mnist_lab.sweep.study import open_study


@pytest.mark.slow
def test_a_grid_trains_each_combination_once_in_a_numbered_folder(finished_sweep: Path) -> None:
    found = {n: Result.load(finished_sweep / str(n)) for n in range(4)}
    pairs = {n: (result.config["optimizer"]["lr"], result.seed) for n, result in found.items()}
    assert pairs == {0: (0.01, 0), 1: (0.01, 1), 2: (0.1, 0), 3: (0.1, 1)}


def test_a_sweep_ends_in_a_summary_and_a_comparison_of_its_groups(finished_sweep: Path) -> None:
    shown = (finished_sweep.parent / "shown.txt").read_text()
    assert "4 trials, 4 complete" in shown and "trial 3   optimizer.lr=0.1 seed=1   complete" in shown
    rows = list(csv.DictReader((finished_sweep / "compare.csv").open()))
    assert [row["optimizer.lr"] for row in rows] == ["0.1", "0.01"] and {row["n"] for row in rows} == {"2"}
    assert "Welch" in (finished_sweep / "compare.md").read_text()
    assert "trial 0" in (finished_sweep / "sweep.log").read_text()


def test_optuna_reads_the_study_of_a_sweep(finished_sweep: Path) -> None:
    journal = optuna.storages.journal.JournalFileBackend(str(finished_sweep / "study.journal"))
    study = optuna.load_study(study_name="s", storage=optuna.storages.JournalStorage(journal))
    assert study.best_trial.params["optimizer.lr"] == 0.1


def test_sweep_json_records_what_was_asked_for(finished_sweep: Path) -> None:
    asked = json.loads((finished_sweep / "sweep.json").read_text())
    assert asked["argv"][:2] == ["-m", "model=mlp_784_32"] and asked["objectives"] == ["val/acc"]


@pytest.mark.slow
def test_a_limit_of_one_batch_and_of_all_batches_are_two_values(lab: Command, tmp_path: Path) -> None:
    done = lab("-m", *SMALL, "trainer.max_epochs=1", "trainer.limit_train_batches=1,1.0", "hydra.sweep.dir=s")
    assert done.returncode == 0, done.stderr
    found = [Result.load(tmp_path / f"s/{n}").config["trainer"]["limit_train_batches"] for n in (0, 1)]
    assert [repr(value) for value in found] == ["1", "1.0"]
    assert "left out" not in done.stdout and len(list(csv.DictReader((tmp_path / "s/compare.csv").open()))) == 2


@pytest.mark.slow
def test_tensorboard_knows_a_trial_by_the_values_of_the_sweep(lab: Command, tmp_path: Path) -> None:
    words = [*SMALL, "logger=tensorboard", "trainer.max_epochs=1"]
    assert lab("-m", *words, "data.batch_size=100", "hydra.sweep.dir=s").returncode == 0
    events = b"".join(path.read_bytes() for path in (tmp_path / "s/0/tensorboard").rglob("events*"))
    assert b"data.batch_size" in events


@pytest.mark.slow
def test_two_sweeps_in_one_database_share_nothing_else(lab: Command, tmp_path: Path) -> None:
    url = f"sweep.storage=sqlite:///{tmp_path}/trials.db"
    for folder, seeds in (("a/s", "0,1"), ("b/s", "2")):
        assert lab("-m", *SMALL, f"seed={seeds}", url, f"hydra.sweep.dir={folder}").returncode == 0
    assert states(tmp_path / "a/s") == {0: "COMPLETE", 1: "COMPLETE"} and states(tmp_path / "b/s") == {0: "COMPLETE"}
    assert lab("resume", "a/s").returncode == 0 and len(states(tmp_path / "a/s")) == 2


@pytest.mark.slow
def test_a_sweep_waits_for_the_tables_that_another_is_making_in_its_database(
    finished_sweep: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = json.loads((finished_sweep / "sweep.json").read_text())
    (tmp_path / "sweep.json").write_text(json.dumps(asked | {"storage": f"sqlite:///{tmp_path}/trials.db"}))
    create, errors = optuna.create_study, ["table studies already exists\n[SQL: ...]"] * 3

    def busy(**kwargs: Any) -> optuna.Study:
        if errors:
            raise RuntimeError(errors.pop())
        return create(**kwargs)

    monkeypatch.setattr(optuna, "create_study", busy)
    with pytest.raises(UserError, match=r"table studies already exists$"):
        open_study(tmp_path)
    assert len(errors) == 1 and open_study(tmp_path).study_name == "s"


@pytest.mark.slow
def test_a_search_may_have_several_objectives_and_minimizes_a_loss(lab: Command, tmp_path: Path) -> None:
    words = [
        "-m",
        *SMALL,
        "model=mlp",
        "model.hidden=[8],[64]",
        "sweep=nsga2",
        "sweep.trials=3",
        "hydra.sweep.dir=s",
    ]
    done = lab(*words, "sweep.objective=[val/loss,parameters]")
    assert done.returncode == 0, done.stderr
    study = open_study(tmp_path / "s")
    assert [direction.name for direction in study.directions] == ["MINIMIZE", "MINIMIZE"]
    for trial in study.get_trials():
        result = Result.load(tmp_path / "s" / str(trial.number))
        assert trial.values == [result.history[-1]["val/loss"], result.model["parameters"]]


@pytest.mark.slow
def test_a_hopeless_trial_is_ended_early(lab: Command, tmp_path: Path) -> None:
    words = ["-m", *SMALL, "trainer.max_epochs=4", "optimizer.lr=0.1,0.11,0.12,0.13,1e-7", "seed=1"]
    done = lab(*words, "sweep.pruner=median", "hydra.sweep.dir=s")
    assert done.returncode == 0, done.stderr
    assert states(tmp_path / "s") == {**dict.fromkeys(range(4), "COMPLETE"), 4: "PRUNED"}
    assert len((tmp_path / "s/4/history.csv").read_text().splitlines()) < 1 + 4
    assert "trial 4   optimizer.lr=1e-07   pruned" in done.stdout


@pytest.mark.slow
def test_values_that_hydra_sweeps_from_a_config_are_swept(lab: Command, tmp_path: Path) -> None:
    words = ["-m", *SMALL, "+hydra.sweeper.params={seed: '0,1', optimizer.lr: '0.01,0.1'}", "sweep.dry_run=true"]
    done = lab(*words, "optimizer.lr=0.02")
    assert "trial 1   seed=1\n2 trials would run; 0 of them can't" in done.stdout, done.stdout + done.stderr
    done = lab(*words, "sweep=random", "sweep.trials=3")
    assert "3 trials would run; 0 of them can't" in done.stdout, done.stdout + done.stderr
    (tmp_path / "my/experiment").mkdir(parents=True)
    (tmp_path / "my/experiment/mine.yaml").write_text("# @package _global_\nhydra: {sweeper: {params: {seed: '0,1'}}}")
    done = lab("--config-dir", "my", "-m", "experiment=mine", *SMALL, "sweep.dry_run=true")
    assert "trial 1   seed=1\n2 trials would run; 0 of them can't" in done.stdout, done.stdout + done.stderr


@pytest.mark.slow
def test_a_dry_run_lists_and_checks_every_job_and_leaves_nothing(lab: Command, tmp_path: Path) -> None:
    done = lab("-m", "model=mlp,mlp_512", "seed=range(0,3)", "sweep.dry_run=true")
    assert done.returncode == 0 and "6 trials would run; 0 of them can't" in done.stdout
    assert "trial 5   model=mlp_512 seed=2" in done.stdout
    done = lab("-m", "model=neuron,mlp", "data.one_vs_rest=3,11", "sweep.dry_run=true")
    assert done.returncode == 2 and not (tmp_path / "outputs").exists()


@pytest.mark.parametrize(
    ("words", "answer"),
    some(
        [
            (["-m", "sweep=tpe"], "there is nothing to search"),
            (["-m", "optimizer.lr=interval(0.1,0.2)"], "a grid needs values that can be counted"),
            (["-m", "seed=0,1", "sweep.objective=acc"], "sweep.objective=acc is not allowed"),
            (["-m", "seed=0,1", "data.val=none", "sweep.pruner=median"], "and test/acc is known when a run is over"),
            (
                ["-m", "seed=0,1", "sweep.pruner=median", "sweep.objective=seconds"],
                "looks at each epoch, and seconds is",
            ),
            (
                ["-m", "seed=0,1", "data.val=random", "sweep.pruner=median", "trainer=ddp"],
                "sweep.pruner=median can't end one trial of trainer.devices=2 processes",
            ),
            (["-m", "sweep=random", "optimizer.lr=interval(-1,1)"], "optimizer.lr=-1.0 is not allowed"),
            (["-m", "sweep=random", "optimizer.lr=interval(1,0.1)"], "from a smaller number to a greater"),
            (["-m", "sweep=random", "optimizer.lr=tag(Log,interval(0.1,1))"], "there is no such tag as Log"),
            (
                ["-m", "seed=0,1", "+hydra.sweeper.trails=3"],
                "hydra.sweeper.trails: there is no such option. Did you mean",
            ),
            (
                ["-m", "seed=0,1", "sweep.objective=[val/acc,parameters]", "sweep.direction=maximize"],
                "has 2, so give as many",
            ),
            (["-m", "seed=0,1", "sweep=gridd"], "Did you mean grid?"),
            (["resume", "nowhere"], "there is no such folder"),
            (["compare", "nowhere"], "there is no such folder"),
            (["compare", ".", "metric=test/acd"], "Did you mean test/acc?"),
        ],
        6,
    ),
)
def test_a_mistake_in_a_sweep_is_one_line_and_leaves_nothing(
    words: list[str], answer: str, lab: Command, tmp_path: Path
) -> None:
    done = lab(*words)
    assert done.returncode == 2 and answer in done.stderr and "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []
