"""A process of a distributed run that is killed or fails ends the others, with the reason and the way to go on.

That the command returns says that none is left: each has a pipe open that it is waited for to close.
"""

import os
import re
import shlex
import signal
import time
from pathlib import Path

import pytest
import warm
from conftest import outcome
from sweeps import alive, wait_for

from mnist_lab.result import Result

pytestmark = pytest.mark.slow

# Of 501 images, in batches of 125, no share is like the other, and dropout has each process use up random numbers of
# its own; the last batch, of one image, is empty for the second.
DDP = [
    "data=mnist_5k",
    "data.train_size=501",
    "model=mlp",
    "model.hidden=[32]",
    "data.val=random",
    "data.val_size=499",
    "data.batch_size=125",
    "logger=none",
]
DDP += ["trainer=ddp", "trainer.accelerator=cpu", "trainer.max_epochs=3", "report=false"]
DDP += ["augment=affine", "schedule=cosine"]
HIT = """
import os, signal
from pathlib import Path
from lightning.pytorch.callbacks import Callback


class Hit(Callback):
    def __init__(self, how, rank):
        self.how, self.rank = how, rank

    def on_train_epoch_start(self, trainer, module):
        if trainer.current_epoch == 1 and trainer.global_rank == self.rank and not Path("was_hit").exists():
            Path("was_hit").touch()
            if self.how == "error":
                raise RuntimeError("own.py is wrong")
            os.kill(os.getpid(), getattr(signal, self.how))

    def on_train_batch_end(self, *_):
        pass  # who follows mini-batches gets them one by one, so that an epoch can be stopped in its middle
"""


def hit(folder: Path, how: str, rank: int, *words: str) -> warm.Done:
    """A run one of whose processes something happens to when the second epoch begins; once in a folder."""
    (folder / "own.py").write_text(HIT)
    where = () if "hydra.mode=MULTIRUN" in words else ("hydra.run.dir='my run'",)
    own = ("+callbacks.hit._target_=own.Hit", f"+callbacks.hit.how={how}", f"+callbacks.hit.rank={rank}")
    return run(folder, *DDP, *words, *where, *own)


def run(folder: Path, *words: str) -> warm.Done:
    path = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])
    return warm.lab(list(words), folder, 240, {"PYTHONPATH": path}, helpers=2)


def told_to_type(shown: str) -> list[str]:
    """The words of the command to go on with, as a shell takes them."""
    (command,) = re.findall("To go on.*: python -m mnist_lab (.*)", shown)
    return shlex.split(command)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    (folder / "was_hit").touch()
    done = hit(folder, "error", 0)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    return folder / "my run"


def test_a_killed_helper_process_ends_the_run(whole: Path, tmp_path: Path) -> None:
    lost = hit(tmp_path, "SIGKILL", 1)
    assert lost.returncode == 1
    (line,) = lost.stderr.splitlines()
    assert "process 2 of 2 was killed by SIGKILL" in line
    assert "process 2 of 2 was killed" in (tmp_path / "my run/run.log").read_text()
    done = run(tmp_path, *told_to_type(line))
    assert done.returncode == 0, done.stderr
    assert outcome(tmp_path / "my run") == outcome(whole)


def test_killing_the_first_process_ends_the_others(tmp_path: Path) -> None:
    lost = hit(tmp_path, "SIGKILL", 0)
    assert lost.returncode == -signal.SIGKILL
    (line,) = lost.stderr.splitlines()
    assert "the run's first process has been killed" in line
    assert told_to_type(line) == ["resume", "my run"]


@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_process_ends_its_trial(rank: int, tmp_path: Path) -> None:
    sweep = ["hydra.mode=MULTIRUN", "hydra.sweep.dir='my sweep'"]
    lost = hit(tmp_path, "SIGKILL", rank, *sweep)
    said = (tmp_path / "my sweep/0/run.log").read_text() if rank == 1 else lost.stderr
    assert told_to_type(said) == ["resume", "my sweep"]
    done = run(tmp_path, *told_to_type(said))
    assert done.returncode == 0 and "1 trial, 1 complete" in done.stdout, done.stdout + done.stderr


def test_a_failing_process_ends_the_run_with_its_reason(tmp_path: Path) -> None:
    lost = hit(tmp_path, "error", 2, "trainer.devices=3")
    assert lost.returncode == 1
    assert lost.stderr.count("callbacks.hit (Hit): RuntimeError: own.py is wrong (own.py, line") == 1, lost.stderr
    assert "Traceback" not in lost.stderr
    last = lost.stderr.splitlines()[-1]
    assert last.startswith("error: process 3 of 3 ended with exit status 2, see above")
    assert told_to_type(last) == ["resume", "my run"]


def test_a_diverging_training_ends_all_processes(tmp_path: Path) -> None:
    lost = run(tmp_path, *DDP, "optimizer=sgd", "optimizer.lr=1e30", "hydra.run.dir=run")
    assert lost.returncode == 2
    (line,) = lost.stderr.splitlines()
    assert line.startswith("error: training diverged")


def test_sigterm_to_one_process_stops_all_with_a_checkpoint(whole: Path, tmp_path: Path) -> None:
    stopped = hit(tmp_path, "SIGINT", 1)
    assert stopped.returncode == 128 + signal.SIGINT and stopped.stderr == ""
    assert stopped.stdout.count("stopped by Ctrl-C in epoch 2, nothing is lost") == 1
    assert told_to_type(stopped.stdout) == ["resume", "my run"]

    # What one process has counted of an epoch can't be gone on with by another number of them.
    refused = run(tmp_path, "resume", "my run", "trainer.devices=1")
    assert refused.returncode == 2
    assert "was stopped in the middle of epoch 2 with 2 process(es), and 1 can't go on" in refused.stderr
    assert told_to_type(refused.stderr)[1:] == ["my run", "trainer.devices=2"]
    done = run(tmp_path, *told_to_type(refused.stderr))
    assert done.returncode == 0, done.stderr
    assert outcome(tmp_path / "my run") == outcome(whole)


def test_another_number_of_processes_resumes_at_an_epochs_end_with_a_note(tmp_path: Path) -> None:
    assert run(tmp_path, *DDP, "trainer.max_epochs=1", "trainer.devices=1", "hydra.run.dir=run").returncode == 0
    assert Result.load(tmp_path / "run").notes == []
    done = run(tmp_path, "resume", "run", "trainer.max_epochs=2", "trainer.devices=2")
    assert done.returncode == 0, done.stderr
    found = Result.load(tmp_path / "run")
    assert found.machine["processes"] == 2 and len(found.history) == 2
    processes, epochs = found.notes
    assert "number of processes has changed, 1 → 2" in processes and "number of epochs has changed, 1 → 2" in epochs


def test_the_processes_of_a_loader_end_with_a_run_that_is_killed(tmp_path: Path) -> None:
    words = ["data=mnist_5k", "model=mlp", "data.loader=workers", "data.workers=2", "trainer.max_epochs=400"]
    words += ["report=false", "hydra.run.dir=run"]
    run = warm.start(words, tmp_path, tmp_path.with_name("shown"))
    wait_for(lambda: (tmp_path / "run/history.csv").exists() and len(alive(tmp_path)) == 3)
    run.kill()
    run.join()
    latest = time.monotonic() + 2
    while left := alive(tmp_path):
        assert time.monotonic() < latest, left
        time.sleep(0.05)
