"""The README's commands, read from the README and run: shortened by trainer=debug, on the digits that come along."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, in_memory, needs_mnist
from PIL import Image
from warm import Done, lab

from mnist_lab.data import mnist_5k
from mnist_lab.result import Result

README = (ROOT / "README.md").read_text()
LINES = [
    line
    for block in re.findall(r"```bash\n(.*?)```", README, flags=re.DOTALL)
    for line in block.splitlines()
    if line.strip() and not line.startswith("#")
]
PYTHON = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
SHORT = ["trainer.limit_train_batches=4", "trainer.limit_val_batches=1", "trainer.limit_test_batches=1"]
SHORT += ["trainer.max_epochs=1", "data.fallback=mnist_5k"]


def commands(kind: str) -> list[str]:
    return [line for line in LINES if kind in line]


def test_the_readme_says_how_to_set_up_run_and_test() -> None:
    assert "pip install -e . && python -m mnist_lab model=mlp trainer.max_epochs=4" in LINES
    assert 'pip install -e ".[dev]" && pytest -n auto --dist loadfile' in LINES  # what CI runs
    assert 'pip install -e ".[dev]"' in (ROOT / ".ci/run").read_text()


def test_every_command_is_of_a_kind_that_is_run_here() -> None:
    for line in LINES:
        assert "python -m mnist_lab" in line or line.startswith(("pip install ", "eval ")), line


def test_bash_completes_the_command_after_the_readmes_line() -> None:
    (line,) = commands("eval ")
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", f"{line}; complete -p mnist_lab"],
        env=os.environ | {"PATH": path},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and "hydra_bash_completion" in done.stdout, done.stderr


def examples(folder: Path) -> None:
    """What the README's text has the user make before the commands that need it."""
    (python,) = (code for code in PYTHON if "class Net" in code)
    (folder / "own.py").write_text(python)
    for config in re.findall(r"```yaml\n(.*?)```", README, flags=re.DOTALL):
        if (named := re.search(r"^# (my_conf/.*)$", config, flags=re.MULTILINE)) is not None:
            (folder / named[1]).parent.mkdir(parents=True, exist_ok=True)
            (folder / named[1]).write_text(config)
    found = mnist_5k()
    images, labels = in_memory(found.test_images)[found.test_labels < 3], found.test_labels[found.test_labels < 3]
    parts = {"images": images.numpy(), "labels": labels.numpy()}
    parts = {f"{part}_{kind}": array for part in ("train", "test") for kind, array in parts.items()}
    np.savez(folder / "letters.npz", **parts)  # type: ignore[arg-type]
    for name in ("cat", "dog"):
        (folder / "photos" / name).mkdir(parents=True)
        for n in range(10):
            Image.new("RGB", (50, 40), (n, 0, 0)).save(folder / "photos" / name / f"{n}.jpg")
    digit = Image.fromarray(in_memory(mnist_5k().test_images)[0, 0].numpy()).resize((200, 200))
    digit.save(folder / "digit.png")
    (folder / "scans").mkdir()
    digit.save(folder / "scans/first.png")


def run(line: str, folder: Path, more: list[str], data: str | None = None) -> Done | subprocess.CompletedProcess[str]:
    words = shlex.split(line)
    environment = {"MNIST_LAB_DATA": data or str(folder / "no-data"), "COLUMNS": "100"}
    if words[0].startswith("PYTHONPATH="):
        environment["PYTHONPATH"] = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])
        words.pop(0)
    assert words[:3] == ["python", "-m", "mnist_lab"]
    if "launcher" in line or "ddp" in line:  # processes that are started as they are for a user
        return subprocess.run(
            [sys.executable, *words[1:], *more], cwd=folder, env={**os.environ, **environment}, capture_output=True,
            text=True, timeout=900,
        )  # fmt: skip
    return lab([*words[3:], *more], folder, 900, environment)


@pytest.mark.slow
@pytest.mark.parametrize(
    "line",
    [
        line
        for line in commands("python -m mnist_lab")
        if "RUN" not in line
        and "SWEEP" not in line
        and "mnist_lab dashboard" not in line  # which has a file of its own
    ],
)
def test_a_command_runs(line: str, tmp_path: Path, cnn_run: Path) -> None:
    examples(tmp_path)
    line = line.rpartition("&& ")[2]
    more = list(SHORT)
    if "--help" in line or "--cfg" in line:
        more = []
    if "mnist_lab articles" in line:
        more = [*SHORT, "seeds=1"]
    if "mnist_lab compare" in line:
        for folder in ("articles", "recipes"):
            shutil.copytree(cnn_run, tmp_path / "outputs" / folder / "run")
        (tmp_path / "outputs/peers").mkdir()
        done = run(line, tmp_path, [])
        assert done.returncode == 0 and (tmp_path / "outputs/all/compare.html").exists(), done.stderr
        return
    if "mnist_lab bench" in line:  # with what needs nothing installed, and MNIST where it is
        more = ["rounds=1"] if "fast99" in line else ["rounds=1", "epochs=2", "networks=C", "contenders=ours"]
        here = bool(needs_mnist.args[0])
        done = run(line, tmp_path, more, data=str(tmp_path / "no-data") if here else os.environ["MNIST_LAB_DATA"])
        assert done.returncode == (2 if here else 0), done.stderr
        return
    if "sweep.trials=" in line:
        more = [*SHORT, "sweep.trials=2"]
    if "mnist_lab explore" in line:
        done = run(line, tmp_path, ["data.fallback=mnist_5k", *(["data=mnist_5k"] if "fashion" in line else [])])
        assert done.returncode == 0 and list(tmp_path.rglob("*.png")), done.stderr
        return
    if "dry_run" in line:
        assert run(line, tmp_path, []).returncode == 0 and not list(tmp_path.rglob("result.json"))
        return
    if "trainer=gpu" in line:
        import torch

        if not torch.cuda.is_available():
            done = run(line, tmp_path, more)
            assert done.returncode == 2 and "use trainer=cpu" in done.stderr
            return
    if "data=" in line and "fashion_mnist" in line:
        more.append("data=mnist_5k")  # Fashion-MNIST can't be had without a network
    done = run(line, tmp_path, more)
    assert done.returncode == 0, done.stderr
    if more:
        assert list(tmp_path.rglob("result.json"))


@pytest.mark.slow
def test_a_sweep_is_resumed_and_compared(tmp_path: Path) -> None:
    words = ["data=mnist_5k", "data.val=random", "sweep=random", "sweep.trials=1", "optimizer.lr=interval(0.001,0.1)"]
    assert run("python -m mnist_lab -m", tmp_path, [*words, "trainer=debug"]).returncode == 0
    (sweep,) = (tmp_path / "outputs/sweeps").iterdir()
    lines = commands("SWEEP")
    assert len(lines) == 4
    for line in lines:
        done = run(line.replace("SWEEP", str(sweep)).replace("trials=40", "trials=2"), tmp_path, [])
        assert done.returncode == 0, done.stderr
    assert (sweep / "1/result.json").exists() and (sweep / "compare.html").exists()


@pytest.mark.slow
def test_the_verbs_for_a_finished_run_run_on_what_a_run_left(tmp_path: Path) -> None:
    examples(tmp_path)
    assert run("python -m mnist_lab", tmp_path, ["data.val=random", *SHORT]).returncode == 0
    (result,) = tmp_path.rglob("result.json")
    lines = [line.rpartition("&& ")[2] for line in commands("RUN") if "mnist_lab draw" not in line]  # has its own file
    assert len(lines) >= 9
    for line in lines:
        done = run(line.replace("RUN", str(result.parent)), tmp_path, [])
        assert done.returncode == 0, (line, done.stderr)


def test_the_notebook_s_lines_train_a_network_and_ask_it(tmp_path: Path) -> None:
    (python,) = (code for code in PYTHON if "mnist_lab.train" in code)
    environment = {**os.environ, "MNIST_LAB_DATA": str(tmp_path / "no-data"), "COLUMNS": "100"}
    words = [sys.executable, "-c", python.replace("trainer.max_epochs=4", "trainer.max_epochs=2")]
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    *shown, numbers, asked = done.stdout.splitlines()
    result = Result.load(tmp_path / "first")
    assert numbers == f"{result.test['acc']} {result.history[-1]['val/acc']}"
    assert re.fullmatch(r"\d \{'_target_': .*Adam.*\}", asked), asked
    assert any(line.startswith("epoch 2/2") for line in shown)
    log = (tmp_path / "first/run.log").read_text()
    assert "epoch 2/2" in log and "test, 1,000 images of mnist_5k" in log
    assert result.command == "python -m mnist_lab model=mlp trainer.max_epochs=2"

    again = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600)
    assert "first is not allowed: a run needs a new or an empty folder of its own" in again.stderr


def test_python_is_told_the_folder_by_the_same_word(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import mnist_lab

    monkeypatch.chdir(tmp_path)
    words = ["model=mlp_784_32", "data=mnist_5k", "trainer.max_epochs=1", "report=false"]
    assert mnist_lab.train(*words, "hydra.run.dir=mine").run_dir == tmp_path / "mine"


def test_a_mistake_in_python_is_an_error_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import mnist_lab

    monkeypatch.chdir(tmp_path)
    with pytest.raises(mnist_lab.UserError, match=r"model=mlpp: there is no such model. Did you mean mlp?"):
        mnist_lab.train("model=mlpp")
    with pytest.raises(mnist_lab.UserError, match=r"data.train_size=5000000 is not allowed"):
        mnist_lab.train("data=mnist_5k", "data.train_size=5000000")
    assert not list(tmp_path.iterdir())


ITS_OWN = """
import os, signal, sys, warnings
import hydra, lightning
from hydra.core.hydra_config import HydraConfig
from hydra.version import getbase
import mnist_lab

class Stop(lightning.Callback):
    def on_train_epoch_end(self, trainer, module):
        os.kill(os.getpid(), signal.SIGINT)

@hydra.main(config_path=".", config_name="own", version_base="1.2")
def main(cfg):
    warnings_before = list(warnings.filters)
    words = ["data=mnist_5k", "data.train_size=500", "model=mlp_784_32", "trainer.max_epochs=3", "report=false"]
    try:
        mnist_lab.train(*words, "+callbacks.stop._target_=__main__.Stop", run_dir="run")
    except KeyboardInterrupt:
        print("stopped,", mnist_lab.compose("model=cnn").name, cfg.a)
    assert HydraConfig.get().runtime.choices.get("model") is None and getbase().minor == 2
    assert warnings.filters == warnings_before

main()
"""


def test_a_hydra_and_a_ctrl_c_of_the_callers_own_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(ITS_OWN)
    (tmp_path / "own.yaml").write_text("a: 1")
    done = subprocess.run([sys.executable, "own.py"], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and "stopped, cnn-mnist 1" in done.stdout, done.stderr


def test_the_readme_shows_the_groups_that_there_are() -> None:
    from mnist_lab.files import CONF_DIR

    for group in (
        "model",
        "data",
        "augment",
        "loss",
        "optimizer",
        "schedule",
        "module",
        "metrics",
        "callbacks",
        "trainer",
        "logger",
        "sweep",
        "space",
    ):
        (row,) = (line for line in README.splitlines() if line.startswith(f"| `{group}` |"))
        shown = set(re.findall(r"`(\w+)`", row)) - {group}
        assert shown == {path.stem for path in (CONF_DIR / group).glob("*.yaml")}
    experiments = {path.stem for path in (CONF_DIR / "experiment").glob("*.yaml")}
    assert experiments <= set(re.findall(r"\| ([\w.]+) \|", README))
