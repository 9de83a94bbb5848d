"""An exception from code that the config names is one line with its class and message; one from ours is a traceback."""

import shutil
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Command, outcome, result_in
from some import some

import mnist_lab
from mnist_lab.errors import UserError

OWN = """
import lightning as L
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.layer = nn.Linear(784, 10)

    def forward(self, images):
        return self.layer(images.flatten(1))

class Dictionary(Net):
    def forward(self, images):
        return {"features": images, "logits": super().forward(images)}

class Pair(Net):
    def forward(self, images):
        return super().forward(images), images

class Attribute(Net):
    def forward(self, images):
        found = type("Output", (), {})()
        found.logits = super().forward(images)
        return found

class PairWhileTraining(Net):
    def forward(self, images):
        logits = super().forward(images)
        return (logits, logits) if self.training else logits

class Nothing(Net):
    def forward(self, images):
        return None

class Features(Net):
    def forward(self, images):
        return {"features": images}

class FailsInTraining(Net):
    def forward(self, images):
        if self.training:
            raise KeyError("mine")
        return super().forward(images)

class FailsToBuild(Net):
    def __init__(self, **options):
        {}["nothing"]

class Lit(L.LightningModule, Net):
    pass

class Normalized(Net):
    def __init__(self, **options):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(1, 4, 28), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 10))

    def forward(self, images):
        return self.layers(images)

class Grouped(Normalized):
    def __init__(self, **options):
        super().__init__()
        self.layers[1] = nn.GroupNorm(2, 4)

def sequential():
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 10), Stops())

class Stops(nn.Module):
    calls = 0
    def forward(self, logits):
        Stops.calls += 1
        if Stops.calls > 6:
            raise LookupError("stopped")
        return logits

class Callback(L.Callback):
    def __init__(self, hook):
        setattr(self, hook, self.fail)

    def fail(self, *args, **kwargs):
        1 / 0

class Optimizer(torch.optim.SGD):
    def step(self, closure=None):
        raise OverflowError("too\\nlong")

def loss(logits, labels):
    raise LookupError("no such label")

def transform(image):
    raise IndexError("no such pixel")
"""
SMALL = ["data=mnist_5k", "data.train_size=200", "data.batch_size=100", "data.val=random", "trainer.max_epochs=1"]
SMALL += ["trainer.accelerator=cpu", "report=false", "logger=none"]
CALLBACKS = "lightning.pytorch.callbacks"


def net(name: str) -> list[str]:
    return ["--config-dir", "conf", "model=own", f"model._target_=own.{name}"]


@pytest.fixture
def own(tmp_path: Path) -> Path:
    (tmp_path / "own.py").write_text(OWN)
    (tmp_path / "conf/model").mkdir(parents=True)
    (tmp_path / "conf/model/own.yaml").write_text("_target_: own.Net\n")
    return tmp_path


MLP = ["model=mlp", "model.hidden=[8]"]
MISTAKES = {
    "a network in training": (net("FailsInTraining"), "model (FailsInTraining): KeyError: 'mine' (own.py, line"),
    "a network that is built": (net("FailsToBuild"), "model (FailsToBuild): KeyError: 'nothing' (own.py, line"),
    "a layer of a network that a function makes": (net("sequential"), "model (sequential): LookupError: stopped"),
    "a network that gives None": (net("Nothing"), "the network gives NoneType"),
    "a network that gives no logits": (net("Features"), "the network gives dict with features"),
    "a LightningModule": (net("Lit"), "No `training_step()` method defined"),
    "no network": ([*MLP, "model._target_=own.loss", "+model._partial_=true"], "model must be a torch.nn.Module"),
    "a callback": ([*MLP, "+callbacks.x={_target_: own.Callback, hook: on_train_start}"],
                   "callbacks.x (Callback): ZeroDivisionError: division by zero (own.py, line"),
    "an optimizer": ([*MLP, "optimizer=sgd", "optimizer._target_=own.Optimizer"],
                     "optimizer (Optimizer): OverflowError: too long"),
    "a loss": ([*MLP, "loss._target_=own.loss", "+loss._partial_=true", "~loss.label_smoothing"],
               "loss (loss): LookupError: no such label"),
    "a transform": ([*MLP, "data.loader=workers", "data.workers=0",
                     "data.transform={_target_: own.transform, _partial_: true}"],
                    "data.transform (transform): IndexError: no such pixel (own.py, line"),
    "a transform in a worker": ([*MLP, "data.loader=workers", "data.workers=1",
                                 "data.transform={_target_: own.transform, _partial_: true}"],
                                "data.transform (transform): IndexError: no such pixel (own.py, line"),
    "torchvision's ToTensor": ([*MLP, "data.loader=workers", "data.workers=0",
                                "data.transform={_target_: torchvision.transforms.ToTensor}"],
                               "data.transform (ToTensor) takes no tensors"),
    "BackboneFinetuning": ([*MLP, f"+callbacks.x._target_={CALLBACKS}.BackboneFinetuning"],
                           "callbacks.x (BackboneFinetuning): AttributeError"),
    "a source of other arguments": ([*MLP, "data.source._target_=builtins.dict"], "data.source (dict): TypeError"),
    "no data": (["model=mlp", "data={_target_: builtins.dict}"], "data: builtins.dict is no LightningDataModule"),
    "no trainer": (["model=mlp", "trainer._target_=builtins.dict"], "trainer: builtins.dict is no lightning.Trainer"),
    "no schedule": ([*MLP, "++schedule={_target_: own.Callback, hook: x}"], "schedule: Callback can't be called"),
    "a Hydra flag": ([*MLP, "++trainer._partial_=x"], "_partial_ flag must be a bool"),
}  # fmt: skip


QUICK = ("a network in training", "a network that gives no logits", "a callback", "a loss", "a transform", "no data")


@pytest.mark.parametrize("case", some(MISTAKES, lambda case: case in QUICK))
def test_an_exception_in_ones_own_code_is_one_line_and_leaves_no_folder(case: str, own: Path, lab: Command) -> None:
    words, said = MISTAKES[case]
    done = lab(*words, *SMALL)
    assert done.returncode == 2, done.stderr
    first, *hint = done.stderr.splitlines()
    assert first.startswith("error: ") and said in first, done.stderr
    assert hint in ([], ["HYDRA_FULL_ERROR=1 shows the traceback"])
    assert not (own / "outputs").exists()


@pytest.mark.skipif(find_spec("psutil") is not None, reason="psutil is here")
def test_device_stats_without_psutil_say_so_in_one_line(lab: Command) -> None:
    done = lab(*MLP, *SMALL, "logger=tensorboard", f"+callbacks.stats._target_={CALLBACKS}.DeviceStatsMonitor")
    assert done.returncode == 2 and len(done.stderr.splitlines()) <= 2, done.stderr
    assert "error: callbacks.stats (DeviceStatsMonitor): " in done.stderr


@pytest.mark.slow
def test_the_log_of_a_run_that_is_kept_has_the_traceback(own: Path, lab: Command) -> None:
    words = [*MLP, *SMALL, "+callbacks.x={_target_: own.Callback, hook: on_test_end}", "hydra.run.dir=run"]
    done = lab(*words)
    assert done.returncode == 2 and "callbacks.x (Callback): ZeroDivisionError" in done.stderr, done.stderr
    assert "Traceback" not in done.stderr and "python -m mnist_lab resume run" in done.stderr
    log = (own / "run/run.log").read_text()
    assert "Traceback" in log and "1 / 0" in log
    (own / "own.py").write_text(OWN.replace("1 / 0", "pass"))
    done = lab("resume", "run")
    assert done.returncode == 0 and (own / "run/result.json").exists(), done.stderr


@pytest.mark.slow
def test_an_exception_in_ones_own_code_is_one_line_for_test_and_predict(own: Path, lab: Command) -> None:
    assert lab(*net("Net"), *SMALL, "hydra.run.dir=run").returncode == 0
    (own / "own.py").write_text(OWN.replace("return self.layer(", "raise LookupError('gone'); return self.layer("))
    for words in (["test", "run"], ["predict", "run", "images=own.py"]):
        done = lab(*words)
        assert done.returncode == 2 and "LookupError: gone (own.py, line" in done.stderr, done.stderr
        assert "Traceback" not in done.stderr and len(done.stderr.splitlines()) <= 2


@pytest.mark.slow
def test_hydra_full_error_shows_the_traceback(own: Path, lab: Command) -> None:
    path = {"PYTHONPATH": f"{own}"}
    done = lab(*net("FailsInTraining"), *SMALL, HYDRA_FULL_ERROR="1", **path)
    assert "Traceback" in done.stderr and 'raise KeyError("mine")' in done.stderr


def test_a_bug_of_this_package_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def training_step(*_: Any) -> None:
        raise KeyError("a bug")

    ours = str(Path(mnist_lab.__file__).parent / "training/classifier.py")
    training_step.__code__ = training_step.__code__.replace(co_filename=ours)
    monkeypatch.setattr("mnist_lab.training.Classifier.training_step", training_step)
    with pytest.raises(KeyError, match="a bug"):
        mnist_lab.train(*MLP, *SMALL, "module=textbook", run_dir=tmp_path / "run")


@pytest.mark.slow
def test_a_trial_records_class_and_message_of_an_exception(own: Path, lab: Command) -> None:
    done = lab("-m", *net("FailsInTraining"), *SMALL, "seed=0", "hydra.sweep.dir=s", "sweep.retries=0")
    assert done.returncode == 1 and "KeyError: 'mine'" in done.stdout, done.stdout
    assert "Traceback" not in done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("name", ["Dictionary", "Pair", "Attribute", "PairWhileTraining"])
def test_a_network_may_return_its_logits_in_a_dict_a_tuple_or_an_attribute(
    name: str, own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(own)
    monkeypatch.delitem(sys.modules, "own", raising=False)
    words = [*MLP, *SMALL]
    plain = mnist_lab.train(*words, "model._target_=own.Net", run_dir=own / "plain")
    other = mnist_lab.train(*words, f"model._target_=own.{name}", run_dir=own / "other")
    assert outcome(own / "plain") == outcome(own / "other")
    images = torch.randint(0, 256, (3, 1, 28, 28), dtype=torch.uint8)
    assert plain.predict(images).equal(other.predict(images))


@pytest.mark.slow
def test_a_network_that_returns_a_dict_or_a_tuple_is_exported(own: Path, lab: Command) -> None:
    assert lab(*net("Dictionary"), *SMALL, "hydra.run.dir=run").returncode == 0
    for kind in ("torch_export", "safetensors"):
        done = lab("export", "run", f"format={kind}")
        assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_one_image_in_the_last_batch_is_refused_where_the_network_cannot_train_on_it(own: Path, lab: Command) -> None:
    words = [word for word in SMALL if "train_size" not in word]
    done = lab(*net("Normalized"), *words, "data.train_size=201")
    assert done.returncode == 2 and "leaves one image for the last of 201" in done.stderr, done.stderr
    assert "Expected more than 1 value per channel" in done.stderr and not (own / "outputs").exists()
    assert lab(*net("Normalized"), *words, "data.train_size=202").returncode == 0
    shutil.rmtree(own / "outputs")
    assert lab(*net("Grouped"), *words, "data.train_size=201").returncode == 0


@pytest.mark.slow
def test_a_trained_graph_can_be_logged(tmp_path: Path, lab: Command) -> None:
    done = lab(*MLP, *SMALL, "logger=tensorboard", "+logger.tensorboard.log_graph=true")
    assert done.returncode == 0 and result_in(tmp_path).test["n"] == 1000, done.stderr


@pytest.mark.slow
def test_a_job_that_changes_its_folder_shows_paths_from_where_the_user_is(tmp_path: Path, lab: Command) -> None:
    done = lab(*MLP, *SMALL, "hydra.job.chdir=true", "hydra.run.dir=my/run")
    assert done.returncode == 0 and "python -m mnist_lab test run=my/run" in done.stdout, done.stdout
    assert lab("test", "run=my/run").returncode == 0


@pytest.mark.slow
def test_the_home_folder_is_not_a_folder_called_tilde(
    tmp_path: Path, lab: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    done = lab(*MLP, *SMALL, 'hydra.run.dir="~/run"')
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "home/run/result.json").exists() and not (tmp_path / "~").exists()


def test_python_callers_get_a_user_error_with_its_cause(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(own)
    monkeypatch.delitem(sys.modules, "own", raising=False)
    with pytest.raises(UserError, match=r"model \(FailsInTraining\): KeyError: 'mine'") as raised:
        mnist_lab.train(*MLP, *SMALL, "model._target_=own.FailsInTraining", run_dir=own / "run")
    assert isinstance(raised.value.__cause__, KeyError) and not (own / "run").exists()
