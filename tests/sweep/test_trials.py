"""A trial that fails, is killed or can't run is recorded with its reason, and the other trials go on."""

import os
import signal
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import torch
import warm
from conftest import Command
from filelock import FileLock
from sweeps import SMALL, STOP, STOPPING, alive, states, wait_for

from mnist_lab.sweep.study import open_study
from mnist_lab.sweep.trial import take_gpu

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
import os, signal, time
from pathlib import Path
from mnist_lab.models import MLP


class Net(MLP):
    '''Kills its process where it is 13 wide, beside one that is 16 wide.'''

    def forward(self, images):
        width = self.layers[-1].in_features
        if self.training and width == 13:
            with open("kills", "a") as file:
                file.write("x")
            os.kill(os.getpid(), signal.SIGKILL)
        while self.training and width == 16 and "MEET" in os.environ and not Path("kills").exists():
            time.sleep(0.01)
        return super().forward(images)
"""
JOBLIB = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]


def start(folder: Path, *words: str) -> BaseProcess:
    """Start a command that goes on while the test looks."""
    return warm.start(list(words), folder, folder.with_name("shown"), helpers=2)


def end(process: BaseProcess, folder: Path) -> warm.Done:
    process.join(120)
    return warm.told(process, folder.with_name("shown"))


@pytest.mark.slow
def test_a_data_folder_without_write_permission_is_a_trials_reason(lab: Command, tmp_path: Path) -> None:
    words = ["-m", "data=kmnist", "data.root=/sys/x", "model=mlp_784_32", "trainer.max_epochs=1", "seed=0,1"]
    done = lab(*words, "hydra.sweep.dir=s")
    assert done.returncode == 1 and done.stdout.count("/sys/x can't be written to") == 2, done.stdout
    assert "was killed" not in done.stdout


@pytest.mark.slow
def test_a_failing_trial_is_tried_again_and_then_recorded_with_its_error(lab: Command, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(FAILING)
    done = lab(
        "-m", *SMALL, "model._target_=own.Net", "+model.breaks=never,always,once", "hydra.sweep.dir=s",
        PYTHONPATH=str(tmp_path), ATTEMPTS=str(tmp_path / "attempts"),
    )  # fmt: skip
    assert done.returncode == 1
    assert states(tmp_path / "s") == {0: "COMPLETE", 1: "FAIL", 2: "COMPLETE"}
    assert (tmp_path / "attempts").read_text().split() == ["never", "always", "always", "once", "once"]
    failed = open_study(tmp_path / "s").get_trials()[1]
    assert "out of luck" in failed.user_attrs["error"] and "own.py" in failed.user_attrs["traceback"]
    assert "out of luck" in done.stdout


@pytest.mark.slow
def test_a_sweep_gives_up_after_max_failures(lab: Command, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(FAILING)
    done = lab(
        "-m", *SMALL, "model._target_=own.Net", "+model.breaks=always", "seed=range(0,5)", "hydra.sweep.dir=t",
        "sweep.max_failures=2", "sweep.retries=0",
        PYTHONPATH=str(tmp_path), ATTEMPTS=str(tmp_path / "attempts"),
    )  # fmt: skip
    assert done.returncode == 1 and list(states(tmp_path / "t").values()).count("FAIL") == 2


@pytest.mark.parametrize(("visible", "taken"), [(None, "1"), ("4,6", "6")])
def test_each_trial_process_takes_a_free_gpu(
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


@pytest.mark.slow
@pytest.mark.parametrize(
    "words, why",
    [
        (["model.num_classes=10,5"], "for two images it gives [2, 5], where [2, 10] is needed"),
        (["model=neuron", "model.digit=3,12"], "model.digit=12 is not allowed: mnist_5k has the classes 0 to 9"),
    ],
)
def test_a_trial_that_cannot_run_says_why_and_is_not_tried_again(
    words: list[str], why: str, lab: Command, tmp_path: Path
) -> None:
    done = lab("-m", *SMALL, *words, "hydra.sweep.dir=s")
    assert done.returncode == 1 and why in done.stdout
    assert states(tmp_path / "s") == {0: "COMPLETE", 1: "FAIL"}
    assert open_study(tmp_path / "s").get_trials()[1].user_attrs["failures"] == 1


@pytest.mark.slow
def test_a_killed_worker_costs_its_trial_one_attempt_and_no_other_trial(tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    (tmp_path / "own.py").write_text(KILLING)
    words = ["-m", *SMALL, "model=mlp", "model._target_=own.Net", "model.hidden=16,13,32", "sweep.retries=1"]
    done = warm.lab([*words, *JOBLIB, "hydra.sweep.dir=s"], tmp_path, 120, {"MEET": "1"}, helpers=8)
    assert done.returncode == 1 and "trial 1   model.hidden=13   failed   its process was killed" in done.stdout
    assert states(tmp_path / "s") == {0: "COMPLETE", 1: "FAIL", 2: "COMPLETE"}
    assert (tmp_path / "kills").read_text() == "xxx", "once beside another, whose process ends as well, and twice alone"


@pytest.mark.slow
def test_a_trial_that_kills_the_whole_sweep_holds_up_no_other(lab: Command, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(KILLING)
    words = ["-m", *SMALL, "model=mlp", "model._target_=own.Net", "model.hidden=13,16", "hydra.sweep.dir=s"]
    assert lab(*words).returncode == -signal.SIGKILL
    assert states(tmp_path / "s") == {0: "RUNNING", 1: "WAITING"}
    assert lab("resume", "s").returncode == -signal.SIGKILL
    assert states(tmp_path / "s") == {0: "RUNNING", 1: "COMPLETE"}


@pytest.mark.slow
def test_sigterm_to_a_sweep_of_several_processes_prints_the_command_that_resumes_it(tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    words = ["-m", *SMALL, "trainer.max_epochs=2000", "seed=0,1", "hydra.sweep.dir=s"]
    process = start(tmp_path, *words, *JOBLIB)
    wait_for(lambda: (tmp_path / "s/0/history.csv").exists())
    process.terminate()
    done = end(process, tmp_path)
    assert done.returncode == 143 and "To go on: python -m mnist_lab resume s" in done.stdout, done


@pytest.mark.slow
def test_workers_end_with_a_sweep_that_is_killed_and_resume_goes_on(tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    words = ["-m", *SMALL, "trainer.max_epochs=40", "seed=0,1", "sweep.retries=0", "hydra.sweep.dir=s"]
    process = start(tmp_path, *words, *JOBLIB)
    wait_for(lambda: all((tmp_path / f"s/{n}/history.csv").exists() for n in (0, 1)))
    process.kill()
    process.join()
    latest = time.monotonic() + 5  # 2, where the cores have nothing else to do
    while left := alive(tmp_path):  # those that it has started, and theirs
        assert time.monotonic() < latest, left
        time.sleep(0.1)
    done = end(start(tmp_path, "resume", "s"), tmp_path)
    assert done.returncode == 0, done
    assert states(tmp_path / "s") == dict.fromkeys(range(2), "COMPLETE")


@pytest.mark.slow
def test_the_command_that_resumes_a_sweep_can_be_pasted_whatever_its_folder_is_called(
    lab: Command, tmp_path: Path
) -> None:
    words = ["-m", *SMALL, "model.num_classes=5,10", "sweep.max_failures=1", "hydra.sweep.dir='my sweep'"]
    given_up = lab(*words)
    assert "1 of 2 trials are left. To go on: python -m mnist_lab resume 'my sweep'" in given_up.stdout
    assert "python -m mnist_lab resume 'my sweep'" in lab(*words).stderr
    (tmp_path / "my sweep/0/config.yaml").touch()
    assert "goes on as a whole: resume 'my sweep'" in lab("resume", "my sweep/0").stderr
    (tmp_path / "own.py").write_text(STOPPING)
    assert lab("-m", *SMALL, STOP, "seed=0", "hydra.sweep.dir='his sweep'", STOP=str(int(signal.SIGINT))).returncode
    assert "To go on: python -m mnist_lab resume 'his sweep'\n" in (tmp_path / "his sweep/0/run.log").read_text()
