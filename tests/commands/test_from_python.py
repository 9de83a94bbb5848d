"""`mnist_lab.train` from Python: the words of the command line, and nothing of the caller's is disturbed."""

from pathlib import Path

import pytest
import warm

import mnist_lab


@pytest.mark.slow
def test_python_is_told_the_folder_by_the_same_word(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["model=mlp_784_32", "data=mnist_5k", "trainer.max_epochs=1", "report=false"]
    assert mnist_lab.train(*words, "hydra.run.dir=mine").run_dir == tmp_path / "mine"


def test_a_mistake_in_python_is_an_error_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


@pytest.mark.slow
def test_a_hydra_and_a_ctrl_c_of_the_callers_own_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(ITS_OWN)
    (tmp_path / "own.yaml").write_text("a: 1")
    done = warm.lab([], tmp_path, module="own")
    assert done.returncode == 0 and "stopped, cnn-mnist 1" in done.stdout, done.stderr


@pytest.mark.slow
def test_python_refuses_a_folder_that_has_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["model=mlp_784_32", "data=mnist_5k", "data.train_size=500", "trainer.max_epochs=1", "report=false"]
    mnist_lab.train(*words, run_dir="first")
    with pytest.raises(mnist_lab.UserError, match="first is not allowed: a run needs a new or an empty folder"):
        mnist_lab.train(*words, run_dir="first")
