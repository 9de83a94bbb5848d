"""A file that replaces another is on the disk, with its name, before anything that relies on it is written."""

import errno
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from mnist_lab import train
from mnist_lab.files import sync_folder, write_whole
from mnist_lab.sweep.study import open_study, save_asked

Events = list[tuple[str, str]]


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> Events:
    """What is synced and what is renamed, in the order in which it happens: ("sync" or "rename", the file's name)."""
    seen: Events = []
    fsync, replace = os.fsync, Path.replace

    def synced(handle: int) -> None:
        seen.append(("sync", Path(f"/proc/self/fd/{handle}").readlink().name))
        fsync(handle)

    def renamed(source: Path, target: Path) -> Path:
        seen.append(("rename", Path(target).name))
        return replace(source, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "replace", renamed)
    return seen


def test_the_folder_is_synced_after_a_file_is_replaced(tmp_path: Path, events: Events) -> None:
    write_whole(tmp_path / "result.json", "new")
    (content, name), *then = events
    assert (content, name[:13]) == ("sync", ".result.json."), "the content first"
    assert then == [("rename", "result.json"), ("sync", tmp_path.name)]


@pytest.mark.slow
def test_the_best_checkpoint_is_on_disk_before_last_refers_to_it(tmp_path: Path, events: Events) -> None:
    words = ["model=mlp_784_32", "data=mnist_5k", "data.val=random", "data.train_size=200", "trainer.max_epochs=1"]
    train(*words, "trainer.accelerator=cpu", "logger=none", "report=false", run_dir=tmp_path / "run")
    content, folder = ("sync", ".part"), ("sync", "checkpoints")
    here = [event for event in events if event in (content, folder) or event[1].endswith(".ckpt")]
    expected = [content, ("rename", "best.ckpt"), folder, ("rename", "last.ckpt"), folder]
    assert here == expected


def test_the_files_of_a_new_sweep_are_synced_with_their_names(tmp_path: Path, events: Events) -> None:
    folder = tmp_path / "sweep"
    folder.mkdir()
    asked: dict[str, Any] = {
        "argv": [],
        "storage": None,
        "study": "s",
        "directions": ["maximize"],
        "objectives": [],
        "options": {"max_failures": None, "pruner": "none", "patience": 1, "retries": 0},
        "axes": [],
        "side_by_side": 1,
        "config": {},
    }
    save_asked(folder, asked | {"code": {}}, own=False)
    assert events[-2:] == [("rename", "sweep.json"), ("sync", "sweep")]
    open_study(folder)
    assert events.count(("sync", "sweep")) > 1, "study.journal is new, too"


@pytest.mark.slow
def test_a_finished_run_is_synced_with_the_folders_that_it_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, events: Events
) -> None:
    from mnist_lab import train

    monkeypatch.chdir(tmp_path)
    train("model=neuron", "data=mnist_5k", "data.train_size=200", "trainer.max_epochs=2", "hydra.run.dir=new/run")
    run = tmp_path / "new/run"
    assert torch.load(run / "checkpoints/last.ckpt", weights_only=True)["epoch"] == 1
    for name, folder in (("last.ckpt", "checkpoints"), ("result.json", "run"), ("history.csv", "run")):
        last = max(n for n, event in enumerate(events) if event == ("rename", name))
        assert events[last + 1] == ("sync", folder), name
    assert ("sync", "new") in events and ("sync", tmp_path.name) in events


@pytest.mark.parametrize("error", [errno.EINVAL, errno.ENOTSUP])
def test_a_file_system_that_cannot_sync_folders_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    def refused(handle: int) -> None:
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(os, "fsync", refused)
    sync_folder(tmp_path)
    sync_folder(tmp_path / "gone")


def test_a_failing_disk_is_an_error_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(handle: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(OSError, match="Input/output"):
        sync_folder(tmp_path)
