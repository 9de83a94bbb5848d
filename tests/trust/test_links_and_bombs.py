"""Folders that somebody else has made may hold links, pipes and texts that fill the memory: no verb follows them."""

import copy
import json
import os
import shutil
import zipfile
from pathlib import Path

import pytest
import torch
import yaml
from conftest import ROOT, Command

from mnist_lab.errors import UserError
from mnist_lab.result import Result
from mnist_lab.resume import resume
from mnist_lab.run_folder import load_config
from mnist_lab.sweep.study import load_asked
from mnist_lab.training.checkpoint_files import read_checkpoint


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A stranger's finished run."""
    return shutil.copytree(ROOT / "tests/old_runs/finished", tmp_path / "theirs/run")


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """A stranger's sweep."""
    return shutil.copytree(ROOT / "tests/old_runs/sweep", tmp_path / "sweep")


@pytest.mark.parametrize("name", ["run.log", ".held", "checkpoints", "figures", "tensorboard/x", "result.json"])
def test_a_link_out_of_a_run_is_named_and_not_followed(name: str, run: Path, tmp_path: Path) -> None:
    mine, link = tmp_path / "mine", run / name
    mine.write_text("mine\n")
    link.parent.mkdir(exist_ok=True)
    if link.exists():
        link.rename(tmp_path / "aside")
    link.symlink_to(os.path.relpath(mine, link.parent))
    with pytest.raises(UserError, match=rf"{name} is a link to .*mine"):
        resume([str(run), "trainer.max_epochs=4"])
    assert mine.read_text() == "mine\n"


def test_a_link_in_a_sweep_is_named_and_not_followed(sweep: Path, tmp_path: Path) -> None:
    (sweep / "1/run.log").symlink_to(tmp_path / "mine")
    with pytest.raises(UserError, match=r"run\.log is a link"):
        resume([str(sweep)])


@pytest.mark.parametrize("name", ["config.yaml", "run.json", "result.json", "checkpoints/last.ckpt"])
def test_a_pipe_in_a_run_keeps_no_verb_waiting(name: str, run: Path) -> None:
    (run / name).unlink()
    os.mkfifo(run / name)
    with pytest.raises(UserError, match=f"{name} is neither a file nor a folder"):
        load_config(run, [])


def test_links_that_lead_nowhere_else_are_used(run: Path, tmp_path: Path) -> None:
    (run / "latest").symlink_to("checkpoints")
    (run / "wandb/logs").mkdir(parents=True)
    (run / "wandb/logs/debug.log").symlink_to(tmp_path / "cache/debug.log")  # as W&B makes them
    (tmp_path / "scratch").symlink_to(run.parent)  # as clusters have them
    (tmp_path / "best").symlink_to(tmp_path / "scratch/run")
    for folder in (tmp_path / "scratch/run", tmp_path / "best"):
        assert load_config(folder, []).name == "cnn-mnist_5k"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("a: &a [1]\nb: [*a, *a]\n", "alias"),
        (f"a: {'[' * 5000}{']' * 5000}\n", "lists in one another"),
        (f"a: {'x' * 2**20}\n", "bytes"),
    ],
)
def test_a_config_that_grows_in_memory_is_not_read(text: str, why: str, run: Path) -> None:
    (run / "config.yaml").write_text(text + (run / "config.yaml").read_text())
    with pytest.raises(UserError, match=why):
        load_config(run, [])


def test_a_compressed_checkpoint_is_not_read(run: Path, tmp_path: Path) -> None:
    path, bomb = run / "checkpoints/last.ckpt", tmp_path / "bomb.ckpt"
    with zipfile.ZipFile(path) as stored, zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as packed:
        for name in stored.namelist():
            packed.writestr(name, stored.read(name))
    assert "state_dict" in read_checkpoint(path)
    with pytest.raises(UserError, match="its parts are compressed"):
        read_checkpoint(bomb)


def test_parts_that_lie_in_one_another_are_not_read(run: Path, tmp_path: Path) -> None:
    bomb = tmp_path / "bomb.ckpt"
    with zipfile.ZipFile(bomb, "w") as packed:
        packed.writestr("a", bytes(10_000))
        first = packed.infolist()[0]
        for name in "bcd":
            packed.filelist.append(copy.copy(first))
            packed.filelist[-1].filename = name
    with pytest.raises(UserError, match="could fill the memory"):
        read_checkpoint(bomb)


def test_code_in_a_checkpoint_is_named_and_refused(tmp_path: Path) -> None:
    torch.save({"state_dict": {}, "x": print}, tmp_path / "x.ckpt")
    with pytest.raises(
        UserError, match=r"x\.ckpt can't be read as a checkpoint: it holds code, print, which was not run"
    ):
        read_checkpoint(tmp_path / "x.ckpt")


def test_workers_are_bounded(run: Path) -> None:
    with pytest.raises(
        UserError, match=r"data\.workers=100000 is not allowed: it must be a whole number from 0 to 128"
    ):
        load_config(run, ["data.workers=100000"])


def test_a_name_has_no_control_characters(run: Path) -> None:
    config = yaml.safe_load((run / "config.yaml").read_text())
    for name in ("a\nrm -rf", "a\x1b[2J"):
        (run / "config.yaml").write_text(yaml.safe_dump(config | {"name": name}))
        with pytest.raises(UserError, match=r"in one line|control characters"):
            load_config(run, [])


@pytest.mark.parametrize("place", ["../x", "/x", "a/../../x", "$HOME", "~/x"])
@pytest.mark.parametrize("key", ["name", "version", "sub_dir", "save_dir"])
def test_a_stranger_s_logger_writes_in_the_run_s_folder(key: str, place: str, run: Path) -> None:
    config = yaml.safe_load((run / "config.yaml").read_text())
    for kind in ("CSVLogger", "TensorBoardLogger"):
        logger = {"_target_": f"lightning.pytorch.loggers.{kind}", key: place}
        (run / "config.yaml").write_text(yaml.safe_dump(config | {"logger": {"x": logger}}))
        with pytest.raises(UserError, match=f"{key}={place.replace('$', '.')}, which is elsewhere"):
            load_config(run, [])


def resumed(sweep: Path, lab: Command, **changes: object) -> str:
    asked = json.loads((sweep / "sweep.json").read_text())
    argv = [*asked["argv"], *changes.pop("words", ())]  # type: ignore[misc]
    (sweep / "sweep.json").write_text(json.dumps(asked | {"argv": argv} | changes))
    done = lab("resume", "sweep", "sweep.accept_changes=true", "sweep.trials=3")
    assert "Traceback" not in done.stderr
    return f"{done.returncode} {done.stdout} {done.stderr}"


@pytest.mark.slow
def test_a_stranger_s_sweep_has_its_study_in_its_folder(sweep: Path, lab: Command, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/mine.db"
    said = resumed(sweep, lab, words=[f"sweep.storage={url}"], storage=url)
    assert said.startswith("2") and "its study lies elsewhere" in said
    assert not (tmp_path / "mine.db").exists()


@pytest.mark.slow
def test_a_stranger_s_trials_log_in_their_folders(sweep: Path, lab: Command, tmp_path: Path) -> None:
    said = resumed(sweep, lab, words=["logger=csv", f"logger.csv.version={tmp_path}/mine"])
    assert "was not written here and names" in said
    assert not (tmp_path / "mine").exists()


@pytest.mark.parametrize("key", ["argv", "storage", "study", "directions", "options", "axes", "config", "code"])
def test_a_damaged_sweep_is_told_in_one_line(key: str, sweep: Path) -> None:
    asked = json.loads((sweep / "sweep.json").read_text())
    for wrong in (7, {"a": 7}, [[7]]):
        (sweep / "sweep.json").write_text(json.dumps(asked | {key: wrong}))
        try:
            load_asked(sweep)
        except UserError as error:
            assert key in str(error)
        else:
            assert (key, wrong) in [("config", {"a": 7}), ("axes", [[7]])]


def test_what_a_result_says_is_no_command_for_the_terminal(run: Path) -> None:
    result = Result.load(run)
    result.notes.append("\x1b]0;mine\x07 \x9b2J \u202e ü\n")
    text = json.dumps(json.loads((run / "result.json").read_text()) | {"notes": result.notes, "sha256": None})
    (run / "result.json").write_text(text)
    assert Result.load(run).notes == ["\\x1b]0;mine\\x07 \\x9b2J \\u202e ü\n"]
