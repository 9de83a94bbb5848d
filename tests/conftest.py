"""What the tests share: the command as a user types it, and data that is always here."""

from __future__ import annotations

import atexit
import gc
import os
import re
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import warm
from filelock import FileLock
from hypothesis import settings
from parsed import parse_once

from mnist_lab.torchmetrics_adapter import TorchmetricsWithoutSciPy

if TYPE_CHECKING:  # torch takes seconds to import: only the tests that need it do
    from torch import Tensor

    from mnist_lab.data import DatasetImages
    from mnist_lab.result import Result

# One OpenMP thread. The commands of tests are forked: a child of a process that has computed with several threads hangs
# when it computes. Tests that run side by side share the cores in any case. torch reads this once, when it is imported.
os.environ["OMP_NUM_THREADS"] = "1"

ROOT = Path(__file__).parent.parent
Command = Callable[..., warm.Done]
QUICK = ["model=mlp_784_32", "data=mnist_5k", "data.train_size=300", "data.val=random", "data.val_size=100"]
QUICK += ["trainer=cpu", "logger=none", "report=false"]
# An address of this machine where nothing listens: every download fails, whatever network there is.
OFFLINE = {"http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9", "no_proxy": ""}
needs_mnist = pytest.mark.skipif(
    not (Path(os.environ.get("MNIST_LAB_DATA", "/nowhere")) / "MNIST/raw").is_dir(),
    reason="the full MNIST is not in MNIST_LAB_DATA",
)

settings.register_profile("mnist_lab", deadline=None)  # how long an example takes depends on what else the machine does
settings.load_profile("mnist_lab")
sys.meta_path.insert(0, TorchmetricsWithoutSciPy())  # as every command does
# When Python ends, triton's bindings report objects of the frozen heap as leaked. This hides that list: it runs after
# the exit handlers of all that is imported later.
atexit.register(lambda: os.dup2(os.open(os.devnull, os.O_WRONLY), 2))
gc.disable()  # until the tests are imported, which leaves next to nothing to collect: looking for it takes a second


def pytest_collection_finish() -> None:
    parse_once()
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session", autouse=True)
def _no_trace_in_the_home(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Digests and the default data folder go to a folder of the tests' own."""
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))


def made_once(tmp_path_factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """Return a folder that the first worker process to ask for it has made. No test writes to it."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / name
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            made = folder.with_name(f"{name} {os.getpid()}")
            made.mkdir()
            make(made)
            made.rename(folder)
    return folder


@pytest.fixture(scope="session")
def cnn_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a network that has learned from 4,000 digits for three epochs."""

    def train(folder: Path) -> None:
        words = ["model=cnn", "data=mnist_5k", "data.val=none", "trainer.max_epochs=3", "trainer.accelerator=cpu"]
        done = warm.lab([*words, "optimizer.lr=0.003", "logger=none", "hydra.run.dir=run"], folder)
        assert done.returncode == 0, done.stderr

    return made_once(tmp_path_factory, "cnn", train) / "run"


@pytest.fixture(scope="session")
def finished_sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished sweep of four trials: two rates, two seeds."""

    def train(folder: Path) -> None:
        words = ["-m", *QUICK, "data.batch_size=30", "trainer.max_epochs=2", "optimizer.lr=0.01,0.1", "seed=0,1"]
        done = warm.lab([*words, "hydra.sweep.dir=s"], folder)
        assert done.returncode == 0, done.stderr
        (folder / "shown.txt").write_text(done.stdout)

    return made_once(tmp_path_factory, "sweep", train) / "s"


@pytest.fixture
def lab(tmp_path: Path) -> Command:
    """Runs `python -m mnist_lab WORDS` in an empty folder, without a terminal."""

    def command(*words: str, **environment: str) -> warm.Done:
        helpers = 2 if any(re.search("devices|ddp", word) for word in words) else 0
        helpers = 4 if "hydra/launcher=joblib" in words else helpers
        return warm.lab(list(words), tmp_path, 600, environment, helpers)

    return command


class Tally:
    """What the fault suite has done, for the table at its end.

    Attributes:
        size: how many faults a test is to make: FAULTS in the environment.
        seed: of what it does at random: FAULTS_SEED, else a new one each time, which the table shows.
    """

    def __init__(self, record: Callable[[str, object], None]) -> None:
        self.size = int(os.environ.get("FAULTS", "20"))
        self.seed = int(os.environ.setdefault("FAULTS_SEED", str(time.time_ns() % 10**6)))
        self._record = record

    def count(self, what: str, number: int = 1) -> None:
        """Adds to a line of the table."""
        self._record(what, int(number))


@pytest.fixture
def tally(record_property: Callable[[str, object], None]) -> Tally:
    return Tally(record_property)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What the fault suite has done."""
    reports = [report for kind in ("passed", "failed") for report in terminalreporter.stats.get(kind, [])]
    counts: Counter[str] = Counter()
    for report in reports:
        for what, number in report.user_properties:
            counts[what] += number
    if counts:
        terminalreporter.section(f"faults, FAULTS_SEED={os.environ.get('FAULTS_SEED')}")
        for what, number in counts.items():
            terminalreporter.write_line(f"{number:>8,}  {what}")


def result_in(folder: Path) -> Result:
    """The one result below `folder`."""
    from mnist_lab.result import Result

    (path,) = folder.rglob("result.json")
    return Result.load(path.parent)


def outcome(folder: Path) -> tuple[Any, ...]:
    """What a run found, without the time it took."""
    import torch

    from mnist_lab.result import Result

    result = Result.load(folder)
    rows = [{key: value for key, value in row.items() if key != "seconds"} for row in result.history]
    weights = torch.load(folder / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
    return result.test, rows, {name: tensor.tolist() for name, tensor in weights.items()}


def last_steps(result: Result) -> list[int]:
    """The last step of each epoch, from 0, at which its values are drawn; no epoch was cut short."""
    an_epoch = result.ended["steps"] // len(result.history)
    return [an_epoch * row["epoch"] - 1 for row in result.history]


def in_memory(images: Tensor | DatasetImages) -> Tensor:
    """The images of a data set that is held in memory."""
    from torch import Tensor

    assert isinstance(images, Tensor)
    return images
