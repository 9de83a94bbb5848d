"""A sweep is a study on disk: nothing of it is lost, run twice or mixed up, and it ends in a comparison."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import stdev
from typing import Any

import optuna
import pytest
import torch
import warm
from conftest import Command, outcome
from filelock import FileLock
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st
from results import ROW, compared, result

from mnist_lab.errors import UserError
from mnist_lab.result import Result
from mnist_lab.sweep.groups import grouped
from mnist_lab.sweep.report import _curves, _importance
from mnist_lab.sweep.space import Axis, axis, grid
from mnist_lab.sweep.study import open_study, pruner_of, sampler_of
from mnist_lab.sweep.trial import take_gpu

QUICK = ["model=mlp_784_32", "data=mnist_5k", "data.val=random", "trainer=cpu", "logger=none", "trainer.max_epochs=2"]
FAILING = """
import os
from mnist_lab.models import MLP


class Net(MLP):
    '''Fails where a file says so, once or always.'''

    def __init__(self, *args, breaks, **kwargs):
        super().__init__(*args, **kwargs)
        with open(os.environ["ATTEMPTS"], "a") as file:
            file.write(f"{breaks}\\n")
        if breaks == "always" or (breaks == "once" and open(os.environ["ATTEMPTS"]).read().count("once") == 1):
            raise ArithmeticError("out of luck")
"""


KILLING = """
import os, signal
from mnist_lab.models import MLP


class Net(MLP):
    def forward(self, images):
        if self.training and self.layers[-1].in_features == 13:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().forward(images)
"""
STOPPING = """
import os, signal
from lightning.pytorch.callbacks import Callback


class Stop(Callback):
    def on_train_epoch_start(self, trainer, module):
        if trainer.current_epoch == 1 and "NEVER" not in os.environ:
            os.kill(os.getpid(), signal.SIGINT)
"""


def states(folder: Path) -> dict[int, str]:
    open_study.cache_clear()
    return {trial.number: trial.state.name for trial in open_study(folder).get_trials()}


def start(folder: Path, *words: str) -> subprocess.Popen[str]:
    """A command that goes on while the test looks."""
    return subprocess.Popen(
        [sys.executable, "-m", "mnist_lab", *words],
        cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip


def wait_for(condition: Callable[[], bool]) -> None:
    for _ in range(1200):
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError("it never came")


def test_a_grid_runs_each_combination_once_in_a_folder_of_its_number(lab: Command, tmp_path: Path) -> None:
    done = lab("-m", *QUICK, "optimizer.lr=0.01,0.1", "seed=range(0,2)", "hydra.sweep.dir=s")
    assert done.returncode == 0, done.stderr
    found = {n: Result.load(tmp_path / "s" / str(n)) for n in range(4)}
    pairs = {n: (result.config["optimizer"]["lr"], result.seed) for n, result in found.items()}
    assert pairs == {0: (0.01, 0), 1: (0.01, 1), 2: (0.1, 0), 3: (0.1, 1)}
    assert "4 trials, 4 complete" in done.stdout and "trial 3   optimizer.lr=0.1 seed=1   complete" in done.stdout
    rows = list(csv.DictReader((tmp_path / "s/compare.csv").open()))
    assert [row["optimizer.lr"] for row in rows] == ["0.1", "0.01"] and {row["n"] for row in rows} == {"2"}
    assert "Welch" in (tmp_path / "s/compare.md").read_text()
    assert "trial 0" in (tmp_path / "s/sweep.log").read_text()

    storage = optuna.storages.JournalStorage(
        optuna.storages.journal.JournalFileBackend(str(tmp_path / "s/study.journal"))
    )
    study = optuna.load_study(study_name="s", storage=storage)
    assert study.best_trial.params["optimizer.lr"] == 0.1

    done = lab("-m", *QUICK, "seed=range(0,2)", "hydra.sweep.dir=s")
    assert done.returncode == 2 and "mnist_lab resume s" in done.stderr
    before = (tmp_path / "s/0/result.json").stat().st_mtime_ns
    done = lab("resume", "s")
    assert done.returncode == 0 and "4 trials, 4 complete" in done.stdout
    assert (tmp_path / "s/0/result.json").stat().st_mtime_ns == before, "finished trials never run again"


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_a_sweep_that_was_stopped_ends_as_if_it_had_not_been(how: signal.Signals, lab: Command, tmp_path: Path) -> None:
    words = ["-m", "model=mlp", *QUICK[1:5], "trainer.max_epochs=12", "seed=range(0,3)"]
    assert lab(*words, "hydra.sweep.dir=whole").returncode == 0
    process = warm.start([*words, "hydra.sweep.dir=stopped"], tmp_path, tmp_path / "shown")
    second = tmp_path / "stopped/1/history.csv"
    wait_for(lambda: second.exists() and len(second.read_text().splitlines()) > 3)
    assert process.pid is not None
    os.kill(process.pid, how)
    process.join(60)
    done = warm.told(process, tmp_path / "shown")
    if how != signal.SIGKILL:
        assert done.returncode == 128 + how and "To go on: python -m mnist_lab resume stopped" in done.stdout
    left = "RUNNING" if how == signal.SIGKILL else "WAITING"
    assert states(tmp_path / "stopped") == {0: "COMPLETE", 1: left, 2: "WAITING"}
    assert not (tmp_path / "stopped/1/result.json").exists()
    assert lab("resume", "stopped").returncode == 0
    for number in range(3):
        assert outcome(tmp_path / "stopped" / str(number)) == outcome(tmp_path / "whole" / str(number))
    assert states(tmp_path / "stopped") == dict.fromkeys(range(3), "COMPLETE")


def test_a_line_that_was_half_written_when_the_power_went_costs_nothing(lab: Command, tmp_path: Path) -> None:
    assert lab("-m", *QUICK, "seed=0,1", "hydra.sweep.dir=s").returncode == 0
    journal, before = tmp_path / "s/study.journal", [outcome(tmp_path / f"s/{n}") for n in (0, 1)]
    lines = journal.read_bytes().splitlines(keepends=True)
    (last,) = [n for n, line in enumerate(lines) if b'"values":[' in line][1:]  # trial 1 is complete
    journal.write_bytes(b"".join(lines[:last]) + lines[last][:40])
    for _ in range(2):
        done = lab("resume", "s")
        assert done.returncode == 0 and "2 trials, 2 complete" in done.stdout, done.stderr
    assert [outcome(tmp_path / f"s/{n}") for n in (0, 1)] == before
    journal.write_bytes(b"".join([*lines[:3], lines[3][:10] + b"\n", *lines[4:]]))
    for _ in range(2):
        done = lab("resume", "s")
        assert done.returncode == 2 and "study.journal is damaged" in done.stderr, done.stderr
        assert len(done.stderr.splitlines()) == 1


def test_one_batch_and_all_of_them_are_two_values(lab: Command, tmp_path: Path) -> None:
    done = lab("-m", *QUICK[:5], "trainer.max_epochs=1", "trainer.limit_train_batches=1,1.0", "hydra.sweep.dir=s")
    assert done.returncode == 0, done.stderr
    found = [Result.load(tmp_path / f"s/{n}").config["trainer"]["limit_train_batches"] for n in (0, 1)]
    assert [repr(value) for value in found] == ["1", "1.0"]
    assert "left out" not in done.stdout and len(list(csv.DictReader((tmp_path / "s/compare.csv").open()))) == 2


@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_a_search_that_was_stopped_while_it_planned_goes_on(sampler: str, lab: Command, tmp_path: Path) -> None:
    search = [
        f"sweep={sampler}",
        "sweep.at_a_time=3",
        "data.train_size=500",
        "sweep.trials=3",
        "optimizer.lr=tag(log,interval(1e-3,1))",
        "model.dropout=interval(0,0.5)",
    ]
    assert lab("-m", *QUICK, *search, "hydra.sweep.dir=s").returncode == 0
    whole = [trial.params for trial in open_study(tmp_path / "s").get_trials()]
    for number in range(3):
        shutil.rmtree(tmp_path / "s" / str(number))
    journal = tmp_path / "s/study.journal"
    lines = journal.read_bytes().splitlines(keepends=True)
    chosen = [n for n, line in enumerate(lines) if b"param_name" in line]
    journal.write_bytes(b"".join(lines[: chosen[3]]))  # trial 1 has one of its two values, trial 2 isn't there yet
    done = lab("resume", "s")
    assert done.returncode == 0 and "3 trials, 3 complete" in done.stdout, done.stdout + done.stderr
    open_study.cache_clear()
    assert [trial.params for trial in open_study(tmp_path / "s").get_trials()] == whole


def test_a_folder_that_can_not_be_written_to_is_a_trials_reason(lab: Command, tmp_path: Path) -> None:
    words = ["-m", "data=kmnist", "data.root=/sys/x", "model=mlp_784_32", "trainer.max_epochs=1", "seed=0,1"]
    done = lab(*words, "hydra.sweep.dir=s")
    assert done.returncode == 1 and done.stdout.count("/sys/x can't be written to") == 2, done.stdout
    assert "was killed" not in done.stdout


def test_a_failing_trial_is_tried_again_and_then_recorded_and_the_others_go_on(lab: Command, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(FAILING)
    done = lab(
        "-m", *QUICK, "model._target_=own.Net", "+model.breaks=never,always,once", "hydra.sweep.dir=s",
        PYTHONPATH=str(tmp_path), ATTEMPTS=str(tmp_path / "attempts"),
    )  # fmt: skip
    assert done.returncode == 1
    assert states(tmp_path / "s") == {0: "COMPLETE", 1: "FAIL", 2: "COMPLETE"}
    assert (tmp_path / "attempts").read_text().split() == ["never", "always", "always", "once", "once"]
    failed = open_study(tmp_path / "s").get_trials()[1]
    assert "out of luck" in failed.user_attrs["error"] and "own.py" in failed.user_attrs["traceback"]
    assert "failed   ArithmeticError" in done.stdout or "out of luck" in done.stdout
    done = lab(
        "-m", *QUICK, "model._target_=own.Net", "+model.breaks=always", "seed=range(0,5)", "hydra.sweep.dir=t",
        "sweep.max_failures=2", "sweep.retries=0",
        PYTHONPATH=str(tmp_path), ATTEMPTS=str(tmp_path / "attempts"),
    )  # fmt: skip
    assert done.returncode == 1 and list(states(tmp_path / "t").values()).count("FAIL") == 2


@pytest.mark.parametrize(("visible", "taken"), [(None, "1"), ("4,6", "6")])
def test_each_process_takes_a_gpu_that_no_other_has(
    visible: str | None, taken: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    take_gpu.cache_clear()
    with FileLock(tmp_path / ".gpu0"):  # of another process
        lock = take_gpu(tmp_path)
        assert lock is not None and os.environ["CUDA_VISIBLE_DEVICES"] == taken
        take_gpu.cache_clear()
        assert take_gpu(tmp_path) is None, "both are taken"
        lock.release()


def test_tensorboard_knows_trials_by_the_names_that_the_sweep_gives_them(lab: Command, tmp_path: Path) -> None:
    words = [word for word in QUICK if word != "logger=none"]
    assert lab("-m", *words, "data.batch_size=100,200", "hydra.sweep.dir=s").returncode == 0
    for number in (0, 1):
        events = b"".join(path.read_bytes() for path in (tmp_path / f"s/{number}/tensorboard").rglob("events*"))
        assert b"data.batch_size" in events


def test_two_sweeps_of_one_name_share_a_database_and_nothing_else(lab: Command, tmp_path: Path) -> None:
    url = f"sweep.storage=sqlite:///{tmp_path}/trials.db"
    for folder, seeds in (("a/s", "0,1"), ("b/s", "2")):
        assert lab("-m", *QUICK, f"seed={seeds}", url, f"hydra.sweep.dir={folder}").returncode == 0
    assert states(tmp_path / "a/s") == {0: "COMPLETE", 1: "COMPLETE"} and states(tmp_path / "b/s") == {0: "COMPLETE"}
    assert lab("resume", "a/s").returncode == 0 and len(states(tmp_path / "a/s")) == 2


def test_a_database_whose_tables_another_sweep_is_making_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = dict.fromkeys(("argv", "objectives", "config", "code")) | {"study": "s", "directions": ["maximize"]}
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


@pytest.mark.parametrize(
    "words, why",
    [
        (["model.num_classes=10,5"], "for two images it gives [2, 5], where [2, 10] is needed"),
        (["model=neuron", "model.digit=3,12"], "model.digit=12 is not allowed: mnist_5k has the classes 0 to 9"),
    ],
)
def test_a_trial_that_can_not_run_says_why_and_is_not_tried_again(
    words: list[str], why: str, lab: Command, tmp_path: Path
) -> None:
    done = lab("-m", *QUICK, *words, "hydra.sweep.dir=s")
    assert done.returncode == 1 and why in done.stdout
    assert states(tmp_path / "s") == {0: "COMPLETE", 1: "FAIL"}
    assert open_study(tmp_path / "s").get_trials()[1].user_attrs["failures"] == 1


def test_the_command_that_goes_on_with_a_sweep_can_be_pasted_whatever_its_folder_is_called(
    lab: Command, tmp_path: Path
) -> None:
    words = ["-m", *QUICK, "model.num_classes=5,10", "sweep.max_failures=1", "hydra.sweep.dir='my sweep'"]
    given_up = lab(*words)
    assert "1 of 2 trials are left. To go on: python -m mnist_lab resume 'my sweep'" in given_up.stdout
    assert "python -m mnist_lab resume 'my sweep'" in lab(*words).stderr
    (tmp_path / "my sweep/0/config.yaml").touch()
    assert "goes on as a whole: resume 'my sweep'" in lab("resume", "my sweep/0").stderr
    (tmp_path / "own.py").write_text(STOPPING)
    assert lab("-m", *QUICK, "+callbacks.stop._target_=own.Stop", "seed=0", "hydra.sweep.dir='his sweep'").returncode
    assert "To go on: python -m mnist_lab resume 'his sweep'\n" in (tmp_path / "his sweep/0/run.log").read_text()


def test_a_search_never_has_more_trials_than_asked_and_can_be_continued_with_more(lab: Command, tmp_path: Path) -> None:
    words = ["-m", *QUICK, "sweep=tpe", "sweep.trials=3", "optimizer.lr=tag(log,interval(1e-3,1))", "hydra.sweep.dir=s"]
    done = lab(*words, "sweep.pruner=halving")
    assert done.returncode == 0, done.stderr
    first = [trial.params for trial in open_study(tmp_path / "s").get_trials()]
    assert len(first) == 3 and all(1e-3 <= params["optimizer.lr"] <= 1 for params in first)
    done = lab("resume", "s", "sweep.trials=5")
    assert done.returncode == 0, done.stderr
    assert len(states(tmp_path / "s")) == 5
    assert [trial.params for trial in open_study(tmp_path / "s").get_trials()][:3] == first
    done = lab("resume", "s", "model=cnn")
    assert done.returncode == 2 and "only sweep.* can be changed" in done.stderr


def test_trials_that_are_not_planned_yet_are_left_too(lab: Command, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(STOPPING)
    search = ["sweep=tpe", "sweep.trials=3", "optimizer.lr=interval(0.01,0.1)", "+callbacks.stop._target_=own.Stop"]
    stopped = lab("-m", *QUICK, *search, "hydra.sweep.dir=s")
    assert stopped.returncode == 130 and "3 of 3 trials are left. To go on: " in stopped.stdout, stopped.stdout
    grid = lab("-m", *QUICK, "seed=0,1", "sweep.trials=3", "hydra.sweep.dir=t")
    assert grid.returncode == 0 and "2 trials, 2 complete" in grid.stdout and " left. " not in grid.stdout


def test_a_sweep_goes_on_with_what_it_was_told_last(lab: Command, tmp_path: Path) -> None:
    words = ["-m", *QUICK[:5], "trainer.max_epochs=1", "sweep=random", "optimizer.lr=interval(1e-3,1)"]
    assert lab(*words, "sweep.trials=2", "hydra.sweep.dir=s").returncode == 0
    asked = json.loads((tmp_path / "s/sweep.json").read_text())
    more = ["sweep.trials=4", "sweep.retries=3", "sweep.pruner=median", "sweep.accept_changes=true"]
    process = warm.start(["resume", "s", *more], tmp_path, tmp_path / "shown")
    wait_for(lambda: (tmp_path / "s/2/history.csv").exists())
    process.kill()
    process.join()
    done = lab("resume", "s")
    assert done.returncode == 0 and "4 trials, 4 complete" in done.stdout, done.stdout
    again = json.loads((tmp_path / "s/sweep.json").read_text())
    assert (again["options"]["retries"], again["options"]["pruner"]) == (3, "median")
    assert again["argv"] == [word for word in asked["argv"] if word != "sweep.trials=2"] + more[:3]


def test_a_quasi_random_search_fills_the_space_more_evenly_than_a_random_one() -> None:
    from scipy.stats.qmc import discrepancy

    def uneven(sampler: str, seed: int) -> float:
        study, unit = optuna.create_study(), optuna.distributions.FloatDistribution(0, 1)
        for number in range(32):
            study.sampler = sampler_of(sampler, seed, number)
            study.ask({"a": unit, "b": unit})
        return float(discrepancy([list(trial.params.values()) for trial in study.get_trials()]))

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    assert all(uneven("qmc", seed) < uneven("random", seed) / 2 for seed in range(4))


@pytest.mark.parametrize("sampler", ["random", "tpe", "nsga2", "cmaes"])
def test_each_trial_of_a_search_has_values_of_its_own(sampler: str) -> None:
    study, unit = optuna.create_study(), optuna.distributions.FloatDistribution(0, 1)
    for number in range(4):
        study.sampler = sampler_of(sampler, 0, number)  # a new one, as in a sweep that is resumed
        study.ask({"a": unit, "b": unit})
    assert len({trial.params["a"] for trial in study.get_trials()}) == 4


def test_several_objectives_and_a_loss_that_is_to_be_small(lab: Command, tmp_path: Path) -> None:
    words = [
        "-m",
        *QUICK[1:],
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


def test_a_hopeless_trial_is_ended_early(lab: Command, tmp_path: Path) -> None:
    words = ["-m", "model=mlp", *QUICK[1:5], "trainer.max_epochs=4", "optimizer.lr=0.001,0.0011,0.0012,0.0013,1e-7"]
    done = lab(*words, "sweep.pruner=median", "hydra.sweep.dir=s")
    assert done.returncode == 0, done.stderr
    assert states(tmp_path / "s") == {**dict.fromkeys(range(4), "COMPLETE"), 4: "PRUNED"}
    assert len((tmp_path / "s/4/history.csv").read_text().splitlines()) < 1 + 4
    assert "trial 4   optimizer.lr=1e-07   pruned" in done.stdout


@pytest.mark.parametrize(("patience", "ended"), [(0, True), (1, True), (2, False)])
def test_no_trial_is_ended_before_patience_epochs(patience: int, ended: bool) -> None:
    study = optuna.create_study(direction="maximize")
    for _ in range(4):
        study.add_trial(optuna.trial.create_trial(value=0.9, intermediate_values={1: 0.9, 2: 0.9}))
    hopeless = optuna.trial.create_trial(state=optuna.trial.TrialState.RUNNING, intermediate_values={1: 0.1})
    assert pruner_of("median", patience).prune(study, hopeless) == ended


def test_a_genetic_search_learns_from_its_first_ten_trials() -> None:
    def values(sampler: str) -> list[dict[str, float]]:
        study, unit = optuna.create_study(), optuna.distributions.FloatDistribution(0, 1)
        for number in range(20):
            study.sampler = sampler_of(sampler, 0, number)
            trial = study.ask({"a": unit, "b": unit})
            study.tell(trial, trial.params["a"])
        return [trial.params for trial in study.get_trials()]

    genetic, random = values("nsga2"), values("random")
    assert genetic[:10] == random[:10] and genetic[10:] != random[10:]


def test_two_at_once_on_one_sweep_the_second_is_told_who_holds_it(lab: Command, tmp_path: Path) -> None:
    assert lab("-m", *QUICK, "seed=0", "hydra.sweep.dir=s").returncode == 0
    (tmp_path / "s/.holder").write_text("process 1 on elsewhere\n")
    with FileLock(tmp_path / "s/.held"):
        done = lab("resume", "s", "sweep.trials=2")
        assert done.returncode == 2 and "is being worked on by process 1 on elsewhere" in done.stderr
    assert lab("resume", "s").returncode == 0, "whoever held it is gone, and what he wrote holds nothing"


def test_a_sweep_whose_meaning_changed_is_not_resumed_unless_told(lab: Command, tmp_path: Path) -> None:
    (tmp_path / "my/model").mkdir(parents=True)
    config = tmp_path / "my/model/mine.yaml"
    text = "_target_: mnist_lab.models.MLP\ninput_shape: ${data.shape}\nnum_classes: 10\nhidden: [WIDTH]\n"
    config.write_text(text.replace("WIDTH", "8"))
    words = ["--config-dir", "my", "-m", "model=mine", *QUICK[1:], "seed=0,1", "hydra.sweep.dir=s"]
    assert lab(*words).returncode == 0
    config.write_text(text.replace("WIDTH", "9"))
    done = lab("resume", "s")
    assert done.returncode == 2 and "config.model.hidden: [8] → [9]" in done.stderr
    assert "sweep.accept_changes=true" in done.stderr
    assert lab("resume", "s", "sweep.accept_changes=true").returncode == 0


@pytest.mark.parametrize(("before", "now"), [("lr: 0.01", "lr: 0.1"), ("[8]", "[16]")])
def test_a_trial_that_was_stopped_begins_anew_if_what_it_is_made_of_has_changed(
    before: str, now: str, lab: Command, tmp_path: Path
) -> None:
    (tmp_path / "my/experiment").mkdir(parents=True)
    (tmp_path / "own.py").write_text(STOPPING)
    config = tmp_path / "my/experiment/mine.yaml"
    text = "# @package _global_\noptimizer: {lr: 0.01}\nmodel: {hidden: [8]}\n"
    config.write_text(text)
    words = ["--config-dir", "my", "-m", "experiment=mine", "model=mlp", *QUICK[1:5], "trainer.max_epochs=3"]
    words += ["+callbacks.stop._target_=own.Stop", "seed=0", "hydra.sweep.dir=s"]
    assert lab(*words).returncode == 130
    assert (tmp_path / "s/0/history.csv").exists()
    config.write_text(text.replace(before, now))
    done = lab("resume", "s", "sweep.accept_changes=true", NEVER="1")
    assert done.returncode == 0, done.stdout + done.stderr
    with (tmp_path / "s/0/history.csv").open() as file:
        rates = [float(row["lr"]) for row in csv.DictReader(file)]
    assert rates == [Result.load(tmp_path / "s/0").config["optimizer"]["lr"]] * 3


def test_what_hydra_sweeps_from_a_config_is_swept(lab: Command, tmp_path: Path) -> None:
    words = ["-m", *QUICK, "+hydra.sweeper.params={seed: '0,1', optimizer.lr: '0.01,0.1'}"]
    done = lab(*words, "optimizer.lr=0.02", "sweep.dry_run=true")
    assert "trial 1   seed=1\n2 trials would run; 0 of them can't" in done.stdout, done.stdout + done.stderr
    done = lab(*words, "sweep=random", "sweep.trials=3", "sweep.dry_run=true")
    assert "3 trials would run; 0 of them can't" in done.stdout, done.stdout + done.stderr
    (tmp_path / "my/experiment").mkdir(parents=True)
    (tmp_path / "my/experiment/mine.yaml").write_text("# @package _global_\nhydra: {sweeper: {params: {seed: '0,1'}}}")
    done = lab("--config-dir", "my", "-m", "experiment=mine", *QUICK, "hydra.sweep.dir=s")
    assert done.returncode == 0 and Result.load(tmp_path / "s/1").seed == 1, done.stdout + done.stderr


def test_a_sweep_whose_code_changed_is_not_resumed_unless_told(lab: Command, tmp_path: Path) -> None:
    assert lab("-m", *QUICK, "seed=0", "hydra.sweep.dir=s").returncode == 0
    asked = json.loads((tmp_path / "s/sweep.json").read_text())
    asked["code"]["models/mlp.py"] = "0" * 64
    (tmp_path / "s/sweep.json").write_text(json.dumps(asked))
    done = lab("resume", "s")
    assert done.returncode == 2 and f"code.models/mlp.py: {'0' * 64} → " in done.stderr, done.stderr
    assert lab("resume", "s", "sweep.accept_changes=true").returncode == 0


def test_a_dry_run_lists_and_checks_every_job_and_leaves_nothing(lab: Command, tmp_path: Path) -> None:
    done = lab("-m", "model=mlp,mlp_512", "seed=range(0,3)", "sweep.dry_run=true")
    assert done.returncode == 0 and "6 trials would run; 0 of them can't" in done.stdout
    assert "trial 5   model=mlp_512 seed=2" in done.stdout
    done = lab("-m", "model=neuron,mlp", "data.one_vs_rest=3,11", "sweep.dry_run=true")
    assert done.returncode == 2 and not (tmp_path / "outputs").exists()


@pytest.mark.slow
def test_two_processes_side_by_side_outlive_one_of_them(lab: Command, tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    words = ["-m", "model=mlp", *QUICK[1:5], "trainer.max_epochs=8", "seed=range(0,6)"]
    process = start(
        tmp_path, *words, "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "hydra.sweep.dir=s", "sweep.retries=2"
    )
    wait_for(lambda: (tmp_path / "s/2/history.csv").exists())
    (holder,) = [(tmp_path / "s/2/.holder").read_text().split()[1]]
    os.kill(int(holder), signal.SIGKILL)
    said = process.communicate()[0]
    assert process.returncode == 0, said
    assert states(tmp_path / "s") == dict.fromkeys(range(6), "COMPLETE")


@pytest.mark.slow
def test_a_trial_that_kills_its_process_takes_no_other_with_it(lab: Command, tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    (tmp_path / "own.py").write_text(KILLING)
    words = ["-m", "model=mlp", *QUICK[1:], "model._target_=own.Net", "model.hidden=16,13,32", "sweep.retries=0"]
    done = lab(*words, "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "hydra.sweep.dir=s")
    assert done.returncode == 1 and "trial 1   model.hidden=13   failed   its process was killed" in done.stdout
    assert states(tmp_path / "s") == {0: "COMPLETE", 1: "FAIL", 2: "COMPLETE"}


def test_a_trial_that_kills_the_sweeps_process_holds_up_no_other(lab: Command, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(KILLING)
    words = ["-m", "model=mlp", *QUICK[1:], "model._target_=own.Net", "model.hidden=13,16", "hydra.sweep.dir=s"]
    assert lab(*words).returncode == -signal.SIGKILL
    assert states(tmp_path / "s") == {0: "RUNNING", 1: "WAITING"}
    assert lab("resume", "s").returncode == -signal.SIGKILL
    assert states(tmp_path / "s") == {0: "RUNNING", 1: "COMPLETE"}


@pytest.mark.slow
def test_a_sweep_of_several_processes_whose_first_is_told_to_end_says_how_to_go_on(tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    words = ["-m", "model=mlp", *QUICK[1:5], "trainer.max_epochs=60", "seed=0,1", "hydra.sweep.dir=s"]
    process = start(tmp_path, *words, "hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
    wait_for(lambda: (tmp_path / "s/0/history.csv").exists())
    process.terminate()
    said = process.communicate(timeout=60)[0]
    assert process.returncode == 143 and "To go on: python -m mnist_lab resume s" in said, said


@pytest.mark.slow
def test_trials_that_outlive_a_killed_sweep_are_waited_for(tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    words = ["-m", "model=mlp", *QUICK[1:5], "trainer.max_epochs=60", "seed=0,1", "sweep.retries=0"]
    process = start(tmp_path, *words, "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "hydra.sweep.dir=s")
    wait_for(lambda: all((tmp_path / f"s/{n}/history.csv").exists() for n in (0, 1)))
    holders = [(tmp_path / f"s/{n}/.holder").read_text() for n in (0, 1)]
    process.kill()
    process.wait()
    again = start(tmp_path, "resume", "s")
    said = again.communicate()[0]
    os.killpg(process.pid, signal.SIGKILL)  # the workers, which wait for more
    assert again.returncode == 0, said
    assert states(tmp_path / "s") == dict.fromkeys(range(2), "COMPLETE")
    assert [(tmp_path / f"s/{n}/.holder").read_text() for n in (0, 1)] == holders, "none began again"


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (["-m", "sweep=tpe"], "there is nothing to search"),
        (["-m", "optimizer.lr=interval(0.1,0.2)"], "a grid needs values that can be counted"),
        (["-m", "seed=0,1", "sweep.objective=acc"], "sweep.objective=acc is not allowed"),
        (["-m", "seed=0,1", "data.val=none", "sweep.pruner=median"], "and test/acc is known when a run is over"),
        (["-m", "seed=0,1", "sweep.pruner=median", "sweep.objective=seconds"], "looks at each epoch, and seconds is"),
        (
            ["-m", "seed=0,1", "data.val=random", "sweep.pruner=median", "trainer=ddp"],
            "sweep.pruner=median can't end one trial of trainer.devices=2 processes",
        ),
        (["-m", "sweep=random", "optimizer.lr=interval(-1,1)"], "optimizer.lr=-1.0 is not allowed"),
        (["-m", "sweep=random", "optimizer.lr=interval(1,0.1)"], "from a smaller number to a greater"),
        (["-m", "sweep=random", "optimizer.lr=tag(Log,interval(0.1,1))"], "there is no such tag as Log"),
        (["-m", "seed=0,1", "+hydra.sweeper.trails=3"], "hydra.sweeper.trails: there is no such option. Did you mean"),
        (
            ["-m", "seed=0,1", "sweep.objective=[val/acc,parameters]", "sweep.direction=maximize"],
            "has 2, so give as many",
        ),
        (["-m", "seed=0,1", "sweep=gridd"], "Did you mean grid?"),
        (["resume", "nowhere"], "there is no such folder"),
        (["compare", "nowhere"], "there is no such folder"),
        (["compare", ".", "metric=test/acd"], "Did you mean test/acc?"),
    ],
)
def test_mistakes_get_a_line(words: list[str], answer: str, lab: Command, tmp_path: Path) -> None:
    done = lab(*words)
    assert done.returncode == 2 and answer in done.stderr and "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


numbers = st.integers(-1000, 1000) | st.floats(-1e6, 1e6).map(lambda value: round(value, 3))
words = st.sampled_from(["true", "null", "relu", "[1,2]", "{a: 1}", "'a, b'", "a-b"]) | numbers.map(str)


@given(st.lists(words, min_size=2, max_size=6, unique=True))
def test_the_values_of_a_sweep_come_back_in_hydras_own_grammar(values: list[str]) -> None:
    (override,) = OverridesParser.create().parse_overrides([f"+a.b={','.join(values)}"])
    found = axis(override)
    again = OverridesParser.create().parse_overrides(found.extremes())
    expected = [OverridesParser.create().parse_override(f"+a.b={value}").value() for value in dict.fromkeys(values)]
    assert [one.value() for one in again] == expected or len({str(v) for v in expected}) < len(expected)


@given(st.floats(1e-6, 1.0), st.floats(1.1, 100.0), st.booleans(), st.integers(0, 2**31))
def test_an_intervals_draws_lie_within_it_and_survive_the_command_line(
    low: float, high: float, log: bool, seed: int
) -> None:
    word = f"interval({low!r},{high!r})"
    (override,) = OverridesParser.create().parse_overrides([f"lr={f'tag(log,{word})' if log else word}"])
    found = axis(override)
    assert (found.low, found.high, found.log) == (low, high, log)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    value = study.ask({"lr": found.distribution()}).params["lr"]
    assert low <= value <= high
    assert OverridesParser.create().parse_override(found.override(value)).value() == value


@pytest.mark.parametrize("word", ["interval(1,10000)", "int(interval(1,10000))"])
def test_a_logarithmic_interval_is_drawn_by_orders_of_magnitude(word: str) -> None:
    found = axis(OverridesParser.create().parse_override(f"width=tag(log,{word})"))
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    values = sorted(study.ask({"width": found.distribution()}).params["width"] for _ in range(200))
    assert 30 < values[100] < 300, "the median is in the middle of the exponents"
    assert all(isinstance(value, int) for value in values) == word.startswith("int(")


def test_an_interval_of_whole_numbers_includes_both_its_ends() -> None:
    for word in ("int(interval(1,3))", "tag(log,int(interval(1,3)))"):
        found = axis(OverridesParser.create().parse_override(f"width={word}"))
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
        assert {study.ask({"width": found.distribution()}).params["width"] for _ in range(100)} == {1, 2, 3}, word


@given(st.lists(st.integers(1, 4), min_size=1, max_size=4))
def test_a_grid_is_the_product_of_its_axes(sizes: list[int]) -> None:
    axes = [Axis(f"k{n}", tuple(map(str, range(size)))) for n, size in enumerate(sizes)]
    found = [tuple(values.values()) for values in grid(axes)]
    assert len(found) == len(set(found)) == int(torch.tensor(sizes).prod()) and found == sorted(found)


def test_groups_are_all_but_the_seed_and_a_difference_has_its_p_value() -> None:
    from scipy import stats

    good, bad = [0.95, 0.96, 0.94, 0.97], [0.90, 0.93, 0.955, 0.91]
    results = [result(s, 0.1, a) for s, a in enumerate(bad)] + [result(s, 0.2, a) for s, a in enumerate(good)]
    best, other = grouped(results, "test/acc")
    assert best.differs == {"optimizer.lr": 0.2} and best.values == tuple(good) and best.p is None
    assert other.p == pytest.approx(stats.ttest_ind(bad, good, equal_var=False).pvalue)
    assert best.interval is not None and best.spread == pytest.approx(stdev(good))
    low, high = stats.t.interval(0.95, 3, loc=best.mean, scale=stats.sem(good))
    assert (best.mean - best.interval, best.mean + best.interval) == pytest.approx((low, high))
    assert grouped(results, "test/loss")[0].mean == pytest.approx(0.1)


def test_a_whole_number_and_the_same_with_a_point_are_one_value() -> None:
    runs = [replace(result(n, 0.1, 0.9), config={"model": {"dropout": (0, 0.0)[n]}}) for n in range(2)]
    (group,) = grouped(runs, "test/acc")
    assert len(group.results) == 2


def test_a_learning_curve_is_the_mean_of_a_groups_runs() -> None:
    runs = [replace(result(n, 0.1, 0.9), history=[{**ROW, "train/loss": loss}]) for n, loss in enumerate((0.2, 0.4))]
    (curve,) = _curves(grouped(runs, "test/acc"), "train").axes[0].lines
    assert curve.get_ydata() == pytest.approx([0.3])


def test_what_repeats_a_run_is_no_second_measurement(lab: Command, tmp_path: Path) -> None:
    again = replace(result(0, 0.1, 0.9), name="again", repeats=result(0, 0.1, 0.9).identity)
    again.config["data"]["root"] = "elsewhere"
    runs = {"a/0": result(0, 0.1, 0.9), "a/0 again": again, "a/1": result(1, 0.1, 0.92), "a/2": result(0, 0.2, 0.8)}
    (good, bad), shown = compared(lab, tmp_path, runs, "a")
    assert (good["n"], good["mean"], bad["n"]) == ("2", "0.91", "1")
    assert "note: 1 finished run(s) left out: each repeats one that counts" in shown
    assert "1 finished run(s) left out" in (tmp_path / "compare.md").read_text()


def test_a_run_counts_once_though_it_is_below_two_of_the_folders(lab: Command, tmp_path: Path) -> None:
    runs = {"one/a": result(0, 0.1, 0.9), "one/b": result(1, 0.1, 0.92)}
    (row,), shown = compared(lab, tmp_path, runs, "one", "one/a", "one/b", "one/../one", str(tmp_path))
    assert row["n"] == "2" and "left out" not in shown


def test_a_resumed_run_took_as_long_as_all_its_processes(lab: Command, tmp_path: Path) -> None:
    rows = [{**ROW, "epoch": n, "seconds": 10.0} for n in (1, 2, 3)]
    runs = {"resumed": replace(result(0, 0.1, 0.9), history=rows), "whole": result(0, 0.2, 0.9)}
    (quick, slow), shown = compared(lab, tmp_path, runs, ".", "metric=seconds")
    assert (quick["mean"], quick["train_seconds"]) == ("1.0", "1.0"), "with what comes before its first epoch"
    assert (slow["mean"], slow["train_seconds"]) == ("30.0", "30.0") and " 30.0" in shown


def test_folders_of_one_name_with_other_pictures_are_other_data(lab: Command, tmp_path: Path) -> None:
    other = replace(result(1, 0.1, 0.8), data={"name": "mnist", "digest": "1" * 64})
    rows, _ = compared(lab, tmp_path, {"a": result(0, 0.1, 0.9), "b": other}, ".")
    assert [(row["n"], row["data.name"]) for row in rows] == [("1", "mnist (00000000)"), ("1", "mnist (11111111)")]


@pytest.mark.parametrize(("metric", "decides"), [("test/loss", "a"), ("seconds", "a"), ("test/acc", "b")])
def test_importance_explains_the_best_runs_whether_these_are_high_or_low(metric: str, decides: str) -> None:
    value = {(a, b): 0.1 if a == 0 else 0.9 if b == 5 else 0.5 for a in range(6) for b in range(6)}
    found = [
        replace(result(0, 0.1, v), config={"a": a, "b": b}, test={"acc": v, "loss": v}, seconds={"train": 10 * v})
        for (a, b), v in value.items()
    ]
    points = [(group, v) for group in grouped(found, metric) for v in group.values]
    importance = _importance(points, ["a", "b"], metric)
    assert importance is not None and importance[decides] > 0.9


def test_words_about_the_sweep_itself_are_no_hyperparameters(lab: Command, tmp_path: Path) -> None:
    typed = [["sweep=tpe", "sweep.trials=3", "space=mlp", "optimizer.lr=0.1"], ["sweep.trials=4", "optimizer.lr=0.2"]]
    runs = {str(n): replace(result(0, 0.1 + n / 10, 0.9), overrides=words) for n, words in enumerate(typed)}
    _, shown = compared(lab, tmp_path, runs, ".")
    assert "optimizer.lr=0.1" in shown and "sweep" not in shown and "space" not in shown
    assert (tmp_path / "compare.csv").read_text().startswith("optimizer.lr,metric,mean,")


def test_runs_that_have_no_value_of_the_metric_are_compared_without_it(lab: Command, tmp_path: Path) -> None:
    runs = {str(n): result(0, 0.1 + n, 0.9) for n in range(3)}
    for n, found in enumerate(runs.values()):
        found.config["model"] = {"hidden": 2**n}
        found.overrides.append(f"model.hidden={2**n}")
    rows, _ = compared(lab, tmp_path, runs, ".", "metric=val/acc")
    assert [(row["mean"], row["n"]) for row in rows] == [("nan", "0")] * 3
    assert "val/acc" in (tmp_path / "compare.html").read_text()


def test_of_many_keys_a_group_is_named_by_those_that_most_do_not_share() -> None:
    parts = {"lr": 0.1, "smoothing": 0.1, "pool": 2, "width": 64}
    without = [{**parts, key: value} for key, value in (("lr", 0.01), ("smoothing", 0), ("pool", 1), ("width", 32))]
    results = []
    for n, config in enumerate([parts, *without]):
        one = result(0, 0.1, 0.9 - n / 100)
        typed = [f"{key}={value}" for key, value in config.items() if value != parts[key]]
        results.append(replace(one, config=config, overrides=typed))
    found = grouped(results, "test/acc")
    assert [group.name for group in found] == ["n", "lr=0.01", "smoothing=0", "pool=1", "width=32"]
    assert all(set(group.differs) == set(parts) for group in found), "figures and files have all of them"


def test_what_was_asked_for_is_on_disk_before_the_first_trial_ends(lab: Command, tmp_path: Path) -> None:
    assert lab("-m", *QUICK, "seed=0", "hydra.sweep.dir=s").returncode == 0
    asked = json.loads((tmp_path / "s/sweep.json").read_text())
    assert asked["argv"][:2] == ["-m", "model=mlp_784_32"] and asked["objectives"] == ["val/acc"]
