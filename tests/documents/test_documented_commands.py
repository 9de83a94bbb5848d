"""The commands of all documents: each is checked as the front door checks it, and a handful is run."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from documents import CONF, LAB, LINES, README, blocks, words_of, write_examples
from some import some
from warm import Done, lab

from mnist_lab.__main__ import VERBS
from mnist_lab.command import check_command, read_command
from mnist_lab.composing import compose_with
from mnist_lab.errors import UserError
from mnist_lab.hydra_adapter import Hydra, hydra_with, read_configs_once
from mnist_lab.result import Result

OF_A_RUN = ("test", "report", "predict", "draw", "export", "resume", "rerun", "compare", "ensemble")
TRAINING = [line for line in LINES if LAB in line and words_of(line)[:1] != [] and words_of(line)[0] not in VERBS]
SHORT = ["trainer.limit_train_batches=4", "trainer.limit_val_batches=1", "trainer.limit_test_batches=1"]
SHORT += ["trainer.max_epochs=1", "data.fallback=mnist_5k", "report=false"]


def of_verb(verb: str) -> list[str]:
    return [line for line in LINES if words_of(line)[:1] == [verb]]


def run(line: str, folder: Path, *more: str) -> Done:
    """Run a command without data or a network, in a folder with the documents' examples."""
    return lab([*words_of(line), *more], folder, 300, {"MNIST_LAB_DATA": str(folder / "no-data")})


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("examples")
    write_examples(folder)
    return folder


@pytest.fixture(scope="module")
def hydra() -> Iterator[Hydra]:
    with hydra_with() as hydra:
        read_configs_once(hydra.config_loader)
        yield hydra


def test_every_command_is_of_a_kind_that_is_tried_here() -> None:
    for line in LINES:
        if LAB in line:
            words = words_of(line)
            assert line in TRAINING or words[0] in (*OF_A_RUN, "explore", "dashboard", "articles", "bench"), line
        else:
            assert re.match(r"pip install |eval |(FAULTS\w*=\d+ )*pytest( |$)", line), line


@pytest.mark.parametrize("line", some(TRAINING, lambda line: line in README))
def test_a_training_command_is_understood(
    line: str, hydra: Hydra, examples: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each option, key and value of it: composed and checked, as before a training."""
    monkeypatch.chdir(examples)
    monkeypatch.syspath_prepend(str(examples))
    command = read_command(words_of(line))
    if command.shows_help:
        return
    if command.multirun or command.config_flags:
        check_command(command)
    else:
        compose_with(hydra, command.args.overrides)


def template_rows() -> list[tuple[str, str]]:
    """The left and the right cell of each row that says what takes the place of a template's words."""
    table = README.partition("## Coming from lightning-hydra-template")[2].partition("##")[0]
    rows = (line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("| "))
    return [(there, here) for there, here in rows][1:]


@pytest.mark.slow
def test_what_replaces_a_templates_words_is_understood(
    hydra: Hydra, examples: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(examples)
    for there, here in template_rows():
        spans = re.findall(r"`([^`]+)`", there if here.startswith("the same") else here)
        commands = [shlex.split(span.removeprefix(LAB)) for span in spans if "=" in span or span.startswith(("-", LAB))]
        assert commands or there.endswith(".py`"), there
        sweeps = [words for words in commands if words[:1] == ["-m"]]
        for words in sweeps:
            check_command(read_command(words))
        single = [word for words in commands if words not in sweeps and words[:1] != ["test"] for word in words]
        of_a_sweep = [word for word in single if word.startswith("sweep.")]
        assert {words[0] for words in commands if words and words[0] in VERBS} <= {"test", "resume"}  # tried below
        if single and "resume" not in single:
            compose_with(hydra, [word for word in read_command(single).args.overrides if word not in of_a_sweep])
        for word in of_a_sweep:
            check_command(read_command(["-m", "model=mlp,cnn", "data.val=random", word]))


@pytest.mark.slow
@pytest.mark.parametrize("line", [*of_verb("articles"), *of_verb("bench")])
def test_a_measurement_is_understood(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All that is checked before the first training."""

    class Begun(Exception):
        pass

    def begin(*_: Any, **__: Any) -> None:
        raise Begun

    monkeypatch.chdir(tmp_path)
    for name in ("articles.launch", "bench._measure_all", "bench.race.race"):
        monkeypatch.setattr(f"mnist_lab.{name}", begin)
    monkeypatch.setattr("mnist_lab.bench._data_root", lambda _: tmp_path)
    verb, *words = words_of(line)
    if verb == "articles":
        words = [re.sub(r"^seeds=\d+$", "seeds=1", word) for word in words]
        words += [] if any("seeds=" in word for word in words) else ["seeds=1"]  # each seed is composed
    with pytest.raises(Begun):
        getattr(import_module(VERBS[verb]), verb)(words)


@pytest.mark.slow
def test_articles_are_run_as_a_document_says(tmp_path: Path) -> None:
    line = next(line for line in of_verb("articles") if "d_mlp_512 seeds=5" in line)
    done = run(line, tmp_path, *SHORT, "seeds=1")
    assert done.returncode == 0 and "d_mlp_512" in (tmp_path / "outputs/articles/table.md").read_text(), done.stderr


@pytest.mark.slow
def test_the_readmes_first_command_trains(tmp_path: Path) -> None:
    done = run(LINES[0], tmp_path)
    (result,) = tmp_path.rglob("result.json")
    assert done.returncode == 0 and Result.load(result.parent).test["acc"] > 0.9, done.stderr
    assert (result.parent / "report.html").exists()


@pytest.mark.slow
def test_the_readmes_own_classes_train(tmp_path: Path) -> None:
    (python,) = blocks("python", README)
    (tmp_path / "own.py").write_text(python)
    (line,) = (line for line in LINES if "own.Net" in line)
    done = run(line, tmp_path)
    (result,) = tmp_path.rglob("result.json")
    assert done.returncode == 0 and Result.load(result.parent).history[-1]["val/acc"] > 0.7, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("line", [line for line in LINES if "--config-dir my_conf" in line])
def test_options_of_ones_own_train(line: str, tmp_path: Path) -> None:
    write_examples(tmp_path)
    done = run(line, tmp_path, *SHORT)
    assert done.returncode == 0 and list(tmp_path.rglob("result.json")), done.stderr


@pytest.mark.slow
def test_pictures_in_class_folders_train(tmp_path: Path) -> None:
    write_examples(tmp_path)
    (line,) = (line for line in LINES if "data=image_folder" in line)
    done = run(line, tmp_path, *SHORT)
    assert done.returncode == 0 and list(tmp_path.rglob("result.json")), done.stderr


@pytest.mark.slow
def test_verbs_run_on_what_a_run_left(tmp_path: Path) -> None:
    write_examples(tmp_path)
    words = ["model=mlp_784_32", "data=mnist_5k", *SHORT[:-1]]
    assert lab([*words, "hydra.run.dir=RUN"], tmp_path).returncode == 0
    lines = [line for verb in OF_A_RUN for line in of_verb(verb) if "RUN" in line and verb != "draw"]
    assert {words_of(line)[0] for line in lines} == {*OF_A_RUN} - {"draw", "compare", "ensemble"}
    for line in lines:
        done = run(line, tmp_path)
        assert done.returncode == 0, (line, done.stderr)


@pytest.mark.slow
def test_a_sweep_is_resumed_and_compared(tmp_path: Path) -> None:
    words = ["data=mnist_5k", "model=mlp_784_32", "sweep=random", "sweep.trials=1", "optimizer.lr=interval(0.001,0.1)"]
    assert lab(["-m", *words, "trainer=debug", "hydra.sweep.dir=SWEEP"], tmp_path).returncode == 0
    for line in of_verb("resume"):
        if "SWEEP" in line:
            done = run(line.replace("trials=40", "trials=2"), tmp_path)
            assert done.returncode == 0, (line, done.stderr)
    assert (tmp_path / "SWEEP/1/result.json").exists()
    for name in ("articles", "recipes/accurate"):
        shutil.copytree(tmp_path / "SWEEP", tmp_path / "outputs" / name)
    (tmp_path / "outputs/peers").mkdir()
    for line in (*of_verb("compare"), *of_verb("ensemble")):
        done = run(line, tmp_path)
        assert done.returncode == 0, (line, done.stderr)
    assert (tmp_path / "SWEEP/compare.html").exists() and (tmp_path / "outputs/all/compare.html").exists()


@pytest.mark.slow
@pytest.mark.parametrize("line", of_verb("explore"))
def test_data_is_shown(line: str, tmp_path: Path) -> None:
    more = ["data=mnist_5k"] if "fashion" in line else []  # which can't be had without a network
    done = run(line, tmp_path, "data.fallback=mnist_5k", *more)
    assert done.returncode == 0 and list(tmp_path.rglob("*.png")), done.stderr


def test_verbs_that_serve_a_page_are_called_as_they_want_to_be() -> None:
    """What they show has tests of its own, of `draw` and `dashboard`."""
    assert {tuple(words_of(line)) for verb in ("draw", "dashboard") for line in of_verb(verb)} == {
        ("draw", "run=RUN"),
        ("dashboard",),
    }


def test_bash_completes_the_command_after_a_documents_line() -> None:
    (line,) = (line for line in LINES if line.startswith("eval "))
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", f"{line}; complete -p mnist_lab"],
        env=os.environ | {"PATH": path},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and "hydra_bash_completion" in done.stdout, done.stderr


def test_the_mistake_in_a_document_is_answered_as_it_says(hydra: Hydra) -> None:
    (shown,) = (block for block in blocks("text", CONF) if block.startswith(f"$ {LAB} "))
    command, _, answer = shown.removeprefix("$ ").partition("\n")
    with pytest.raises(UserError) as error:
        compose_with(hydra, words_of(command))
    assert f"error: {error.value}\n" == answer


@pytest.mark.slow
def test_the_notebooks_lines_train_a_network_and_ask_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (python,) = (code for code in blocks("python", CONF) if "mnist_lab.train" in code)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MNIST_LAB_DATA", str(tmp_path / "no-data"))
    exec(python.replace("trainer.max_epochs=4", "trainer.max_epochs=1"), {})
    *shown, numbers, asked = capsys.readouterr().out.splitlines()
    result = Result.load(tmp_path / "first")
    assert numbers == f"{result.test['acc']} {result.history[-1]['val/acc']}"
    assert re.fullmatch(r"\d \{'_target_': .*Adam.*\}", asked), asked
    assert any(line.startswith("epoch 1/1") for line in shown)
    log = (tmp_path / "first/run.log").read_text()
    assert "epoch 1/1" in log and "test, 1,000 images of mnist_5k" in log
    assert result.command == "python -m mnist_lab model=mlp trainer.max_epochs=1"
