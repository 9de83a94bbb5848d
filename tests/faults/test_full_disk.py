"""A disk that fills, turns read-only or loses the run's folder: one line, and what was done before is whole."""

import gzip
import hashlib
import random
import shutil
import subprocess
import time
from collections.abc import Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import torch
from conftest import Tally, last_steps, outcome
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from warm import Done, lab, start, told

from mnist_lab.files import disk_fault
from mnist_lab.result import Result

RUN = ["data=mnist_5k", "data.train_size=1000", "data.val=random", "trainer.accelerator=cpu", "trainer.max_epochs=3"]
RUN += ["model=mlp", "model.hidden=[16]", "hydra.run.dir=run"]
SWEEP = ["-m", *RUN[:-1], "trainer.max_epochs=2", "seed=0,1,2", "hydra.sweep.dir=sweep"]


class Disk:
    """A small disk."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._mount("size=64m")

    def _mount(self, options: str) -> None:
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(self.folder)], check=True, capture_output=True
        )

    def room(self, kilobytes: int) -> None:
        """Gives the disk so much room."""
        self._mount(f"remount,size={kilobytes}k")

    def read_only(self) -> None:
        self._mount("remount,ro")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    folder = tmp_path / "disk"
    folder.mkdir()
    try:
        made = Disk(folder)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no disk can be mounted here")
    yield made
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the undisturbed run and sweep."""
    folder = tmp_path_factory.mktemp("whole")
    for words in (RUN, SWEEP):
        done = lab(words, folder)
        assert done.returncode == 0, done.stderr
    return folder


def in_one_line(done: Done, *says: str) -> None:
    """That a command has ended with one clear line."""
    errors = [line for line in done.stderr.splitlines() if line and "B/s]" not in line]
    assert done.returncode == 2, done
    assert len(errors) == 1 and errors[0].startswith("error: "), done.stderr
    assert "Traceback" not in done.stdout and all(word in errors[0] for word in says), errors


def no_ruins(folder: Path) -> None:
    """That files are whole or not there."""
    left = [path.name for path in folder.rglob("*") if path.suffix in (".part", ".new") or path.name == ".part"]
    left += [path.name for path in folder.rglob(".*.*") if path.parent.name != ".hydra" and path.is_file()]
    assert not left
    for path in folder.rglob("*.ckpt"):
        torch.load(path, weights_only=True)
    for path in folder.rglob("result.json"):
        Result.load(path.parent)


def same_curves(run: Path) -> None:
    """That TensorBoard has each epoch once."""
    history = Result.load(run).history
    curve = EventAccumulator(str(run / "tensorboard")).Reload().Scalars("val/loss")
    assert [point.step for point in curve] == last_steps(Result.load(run))
    assert [point.value for point in curve] == pytest.approx([row["val/loss"] for row in history])


def fills(disk: Disk, kilobytes: int, words: list[str], whole: Path) -> bool:
    """Runs a command on a disk with so much room, gives it more, and goes on. Whether the disk was full."""
    disk.room(kilobytes)
    done = lab(words, disk.folder)
    name = words[-1].partition("=")[2]
    runs = [Path(name)] if words is RUN else [Path(name, str(number)) for number in range(3)]
    no_ruins(disk.folder)
    full = done.returncode != 0
    if full:
        in_one_line(done, "No space left on device. To go on, free some space, then: ")
        again = f"resume {name}" in done.stderr
        assert again or not any(disk.folder.iterdir()), "nothing is left of what never began"
        disk.room(65536)
        done = lab(["resume", name] if again else words, disk.folder)
        assert done.returncode == 0, done.stderr
    for run in runs:
        assert outcome(disk.folder / run) == outcome(whole / run)
        same_curves(disk.folder / run)
    return full


@pytest.mark.slow
@pytest.mark.parametrize("kilobytes", [8, 300, 820])
def test_a_run_on_a_full_disk_is_resumed_when_there_is_room(kilobytes: int, disk: Disk, whole: Path) -> None:
    fills(disk, kilobytes, RUN, whole)


@pytest.mark.slow
@pytest.mark.parametrize("kilobytes", [60, 700])
def test_a_sweep_on_a_full_disk_is_resumed_when_there_is_room(kilobytes: int, disk: Disk, whole: Path) -> None:
    fills(disk, kilobytes, SWEEP, whole)


@pytest.mark.faults
@pytest.mark.parametrize(("name", "words", "most"), [("run", RUN, 1000), ("sweep", SWEEP, 2600)])
def test_a_disk_may_be_full_at_any_moment(
    name: str, words: list[str], most: int, disk: Disk, whole: Path, tally: Tally
) -> None:
    chance = random.Random(tally.seed)
    for _ in range(tally.size):
        shutil.rmtree(disk.folder / name, ignore_errors=True)
        tally.count("disks filled", fills(disk, 4 * chance.randint(1, most // 4), words, whole))


@pytest.mark.slow
def test_a_read_only_disk_is_an_error_in_one_line(disk: Disk, whole: Path) -> None:
    shutil.copytree(whole, disk.folder, dirs_exist_ok=True)
    disk.read_only()
    in_one_line(lab([*RUN[:-1], "hydra.run.dir=new"], disk.folder), "not writable")
    for words in ("resume sweep sweep.trials=4", "rerun run"):
        in_one_line(lab(words.split(), disk.folder), "not writable")
    for words in ("resume run trainer.max_epochs=4", "compare sweep", "report run=run"):
        in_one_line(lab(words.split(), disk.folder), "Read-only file system")


def long_run(folder: Path) -> BaseProcess:
    """A run in folder/run that has its first checkpoint, and 2,000 epochs to go."""
    process = start([*RUN, "trainer.max_epochs=2000"], folder, folder / "shown")
    while process.is_alive() and not (folder / "run/checkpoints/last.ckpt").exists():
        time.sleep(0.01)
    return process


@pytest.mark.slow
def test_removing_the_run_folder_stops_the_run(tmp_path: Path) -> None:
    process = long_run(tmp_path)
    (tmp_path / "run").rename(tmp_path / "away")
    process.join(120)
    in_one_line(told(process, tmp_path / "shown"), "run has been taken away")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_removing_the_files_of_a_run_one_by_one_stops_it(tmp_path: Path) -> None:
    process = long_run(tmp_path)
    shutil.rmtree(tmp_path / "run/tensorboard")
    process.join(120)
    in_one_line(told(process, tmp_path / "shown"), "run/tensorboard/", "No such file", "resume run")


def test_an_exception_that_is_its_own_cause_is_looked_through_once() -> None:
    first, second = RuntimeError("of a library"), RuntimeError("of another")
    first.__cause__, second.__cause__ = second, first
    assert disk_fault(first) is None


@pytest.mark.slow
def test_a_download_that_fills_the_disk_is_an_error_and_leaves_no_part(
    disk: Disk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed = gzip.compress(random.Random(0).randbytes(300_000))
    (tmp_path / "images.gz").write_bytes(packed)
    (tmp_path / "own.py").write_text(
        "from mnist_lab.data.download import Archive, fetch\n\n\ndef source(root, download):\n"
        f"    urls, md5 = ['file://{tmp_path}/images.gz'], '{hashlib.md5(packed).hexdigest()}'\n"
        "    fetch('own', [Archive(root / 'images.gz', urls, md5, {'': root / 'images'})], root, download)\n"
    )
    monkeypatch.chdir(tmp_path)
    for kilobytes in (100, 400):  # while it is fetched, while it is unpacked
        disk.room(kilobytes)
        words = ["data.source._target_=own.source", f"data.root={disk.folder}", "hydra.run.dir=run"]
        done = lab(words, tmp_path)
        in_one_line(done, f"data.root={disk.folder} can't be written to: No space left")
        assert {path.name for path in disk.folder.rglob("*")} <= {"images.gz"}, "which is whole, or isn't there"
