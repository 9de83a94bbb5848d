"""A sweep that was stopped, killed or damaged is resumed: no trial is lost, run twice or mixed up."""

import csv
import json
import shutil
import signal
from pathlib import Path

import pytest
import warm
from conftest import Command, made_once, outcome
from filelock import FileLock
from sweeps import SMALL, STOP, STOPPING, states

from mnist_lab.result import Result
from mnist_lab.sweep.study import open_study

THREE = ["-m", *SMALL, "trainer.max_epochs=3", "seed=range(0,3)"]
THREE += ["+callbacks.stop={_target_: own.Stop, seed: '${seed}'}"]


@pytest.fixture
def sweep(finished_sweep: Path, tmp_path: Path) -> Path:
    """A finished sweep of four trials, to be changed."""
    return shutil.copytree(finished_sweep, tmp_path / "s")


@pytest.mark.slow
def test_finished_trials_never_run_again(sweep: Path, lab: Command) -> None:
    before = (sweep / "0/result.json").stat().st_mtime_ns
    done = lab("resume", "s")
    assert done.returncode == 0 and "4 trials, 4 complete" in done.stdout
    assert (sweep / "0/result.json").stat().st_mtime_ns == before


def test_a_sweep_in_the_folder_of_another_is_refused_with_the_command_that_resumes_that(
    sweep: Path, lab: Command
) -> None:
    done = lab("-m", *SMALL, "seed=range(0,2)", "hydra.sweep.dir=s")
    assert done.returncode == 2 and "mnist_lab resume s" in done.stderr


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    def make(folder: Path) -> None:
        (folder / "own.py").write_text(STOPPING)
        assert warm.lab([*THREE, "hydra.sweep.dir=s"], folder).returncode == 0

    return made_once(tmp_path_factory, "undisturbed sweep", make) / "s"


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_a_sweep_that_was_stopped_ends_as_an_undisturbed_one(
    how: signal.Signals, undisturbed: Path, lab: Command, tmp_path: Path
) -> None:
    (tmp_path / "own.py").write_text(STOPPING)
    done = lab(*THREE, "hydra.sweep.dir=s", STOP=str(int(how)))
    if how == signal.SIGKILL:
        assert done.returncode == -how
    else:
        assert done.returncode == 128 + how and "To go on: python -m mnist_lab resume s" in done.stdout
    left = "RUNNING" if how == signal.SIGKILL else "WAITING"
    assert states(tmp_path / "s") == {0: "COMPLETE", 1: left, 2: "WAITING"}
    assert not (tmp_path / "s/1/result.json").exists()
    assert lab("resume", "s").returncode == 0
    for number in range(3):
        assert outcome(tmp_path / "s" / str(number)) == outcome(undisturbed / str(number))
    assert states(tmp_path / "s") == dict.fromkeys(range(3), "COMPLETE")


@pytest.mark.slow
def test_a_half_written_last_line_of_the_journal_costs_nothing(sweep: Path, lab: Command) -> None:
    journal, before = sweep / "study.journal", [outcome(sweep / str(n)) for n in range(4)]
    lines = journal.read_bytes().splitlines(keepends=True)
    last = [n for n, line in enumerate(lines) if b'"values":[' in line][-1]  # trial 3 is complete
    journal.write_bytes(b"".join(lines[:last]) + lines[last][:40])
    for _ in range(2):
        done = lab("resume", "s")
        assert done.returncode == 0 and "4 trials, 4 complete" in done.stdout, done.stderr
    assert [outcome(sweep / str(n)) for n in range(4)] == before


@pytest.mark.slow
def test_a_damaged_line_within_the_journal_is_one_line_of_error(sweep: Path, lab: Command) -> None:
    lines = (sweep / "study.journal").read_bytes().splitlines(keepends=True)
    (sweep / "study.journal").write_bytes(b"".join([*lines[:3], lines[3][:10] + b"\n", *lines[4:]]))
    for _ in range(2):
        done = lab("resume", "s")
        assert done.returncode == 2 and "study.journal is damaged" in done.stderr, done.stderr
        assert len(done.stderr.splitlines()) == 1


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_a_search_that_was_stopped_while_it_planned_goes_on(sampler: str, lab: Command, tmp_path: Path) -> None:
    search = [
        f"sweep={sampler}",
        "sweep.at_a_time=3",
        "sweep.trials=3",
        "optimizer.lr=tag(log,interval(1e-3,1))",
        "model.dropout=interval(0,0.5)",
    ]
    assert lab("-m", *SMALL, *search, "hydra.sweep.dir=s").returncode == 0
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


@pytest.mark.slow
def test_a_search_never_has_more_trials_than_asked_and_can_be_continued_with_more(lab: Command, tmp_path: Path) -> None:
    words = ["-m", *SMALL, "sweep=tpe", "sweep.trials=3", "optimizer.lr=tag(log,interval(1e-3,1))", "hydra.sweep.dir=s"]
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


@pytest.mark.slow
def test_trials_that_are_not_planned_yet_are_counted_as_left(lab: Command, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(STOPPING)
    search = ["sweep=tpe", "sweep.trials=3", "optimizer.lr=interval(0.01,0.1)", STOP, "hydra.sweep.dir=s"]
    stopped = lab("-m", *SMALL, *search, STOP=str(int(signal.SIGINT)))
    assert stopped.returncode == 130 and "3 of 3 trials are left. To go on: " in stopped.stdout, stopped.stdout


@pytest.mark.slow
def test_sweep_trials_limits_no_grid(lab: Command, tmp_path: Path) -> None:
    grid = lab("-m", *SMALL, "seed=0,1", "sweep.trials=3", "hydra.sweep.dir=t")
    assert grid.returncode == 0 and "2 trials, 2 complete" in grid.stdout and " left. " not in grid.stdout


@pytest.mark.slow
def test_a_sweep_is_resumed_with_the_options_that_it_was_given_last(lab: Command, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(STOPPING)
    words = ["-m", *SMALL, "sweep=random", "optimizer.lr=interval(1e-3,1)", STOP]
    assert lab(*words, "sweep.trials=2", "hydra.sweep.dir=s").returncode == 0
    asked = json.loads((tmp_path / "s/sweep.json").read_text())
    more = ["sweep.trials=4", "sweep.retries=3", "sweep.pruner=median", "sweep.accept_changes=true"]
    assert lab("resume", "s", *more, STOP=str(int(signal.SIGKILL))).returncode == -signal.SIGKILL
    done = lab("resume", "s")
    assert done.returncode == 0 and "4 trials, 4 complete" in done.stdout, done.stdout
    again = json.loads((tmp_path / "s/sweep.json").read_text())
    assert (again["options"]["retries"], again["options"]["pruner"]) == (3, "median")
    assert again["argv"] == [word for word in asked["argv"] if word != "sweep.trials=2"] + more[:3]


@pytest.mark.slow
def test_a_sweep_that_another_process_works_on_is_left_alone(sweep: Path, lab: Command) -> None:
    (sweep / ".holder").write_text("process 1 on elsewhere\n")
    with FileLock(sweep / ".held"):
        done = lab("resume", "s", "sweep.trials=2")
        assert done.returncode == 2 and "is being worked on by process 1 on elsewhere" in done.stderr
    assert lab("resume", "s").returncode == 0, "whoever held it is gone, and what he wrote holds nothing"


@pytest.mark.slow
def test_a_sweep_whose_config_changed_is_resumed_only_when_changes_are_accepted(lab: Command, tmp_path: Path) -> None:
    (tmp_path / "my/model").mkdir(parents=True)
    config = tmp_path / "my/model/mine.yaml"
    text = "_target_: mnist_lab.models.MLP\ninput_shape: ${data.shape}\nnum_classes: 10\nhidden: [WIDTH]\n"
    config.write_text(text.replace("WIDTH", "8"))
    words = ["--config-dir", "my", "-m", *SMALL, "model=mine", "seed=0", "hydra.sweep.dir=s"]
    assert lab(*words).returncode == 0
    config.write_text(text.replace("WIDTH", "9"))
    done = lab("resume", "s")
    assert done.returncode == 2 and "config.model.hidden: [8] → [9]" in done.stderr
    assert "sweep.accept_changes=true" in done.stderr
    assert lab("resume", "s", "sweep.accept_changes=true").returncode == 0


@pytest.mark.slow
def test_a_sweep_whose_code_changed_is_resumed_only_when_changes_are_accepted(sweep: Path, lab: Command) -> None:
    asked = json.loads((sweep / "sweep.json").read_text())
    asked["code"]["models/mlp.py"] = "0" * 64
    (sweep / "sweep.json").write_text(json.dumps(asked))
    done = lab("resume", "s")
    assert done.returncode == 2 and f"code.models/mlp.py: {'0' * 64} → " in done.stderr, done.stderr
    assert lab("resume", "s", "sweep.accept_changes=true").returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize(("before", "now"), [("lr: 0.01", "lr: 0.1"), ("[8]", "[16]")])
def test_a_stopped_trial_begins_anew_where_its_config_has_changed(
    before: str, now: str, lab: Command, tmp_path: Path
) -> None:
    (tmp_path / "my/experiment").mkdir(parents=True)
    (tmp_path / "own.py").write_text(STOPPING)
    config = tmp_path / "my/experiment/mine.yaml"
    text = "# @package _global_\noptimizer: {lr: 0.01}\nmodel: {hidden: [8]}\n"
    config.write_text(text)
    words = ["--config-dir", "my", "-m", "experiment=mine", *SMALL, "model=mlp", "trainer.max_epochs=3"]
    assert lab(*words, STOP, "seed=0", "hydra.sweep.dir=s", STOP=str(int(signal.SIGINT))).returncode == 130
    assert (tmp_path / "s/0/history.csv").exists()
    config.write_text(text.replace(before, now))
    done = lab("resume", "s", "sweep.accept_changes=true")
    assert done.returncode == 0, done.stdout + done.stderr
    with (tmp_path / "s/0/history.csv").open() as file:
        rates = [float(row["lr"]) for row in csv.DictReader(file)]
    assert rates == [Result.load(tmp_path / "s/0").config["optimizer"]["lr"]] * 3
