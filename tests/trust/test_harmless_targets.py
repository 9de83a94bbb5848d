"""A run whose seal can't be checked goes on if its config names standard parts that only compute, and nothing else."""

import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from conftest import Command

from mnist_lab.errors import UserError
from mnist_lab.trust import HARMLESS, LOGGERS, NETWORKS, check_harmless, is_harmless

CALLBACKS = "lightning.pytorch.callbacks."
SCHEDULES = "torch.optim.lr_scheduler."


def check(config: Any, tmp_path: Path) -> None:
    """Checks a config that this user has not sealed."""
    path = tmp_path / "config.yaml"
    path.write_text("name: x\n")
    check_harmless(path, config)


@pytest.mark.parametrize(
    "config",
    [
        {"_target_": f"{SCHEDULES}ExponentialLR", "gamma": 0.9},
        {"_target_": f"{SCHEDULES}ReduceLROnPlateau"},
        {"_target_": f"{SCHEDULES}SequentialLR", "schedulers": [{"_target_": f"{SCHEDULES}LinearLR"}]},
        {"_target_": f"{CALLBACKS}Timer", "duration": {"_target_": "datetime.timedelta", "minutes": 5}},
        {"_target_": f"{CALLBACKS}LearningRateMonitor", "logging_interval": "step"},
        {"_target_": f"{CALLBACKS}EMAWeightAveraging"},
        {"_target_": f"{CALLBACKS}ModelPruning", "pruning_fn": "l1_unstructured", "amount": 0.5},
        {"_target_": "torch.nn.modules.activation.GELU"},
        {"_target_": "torch.nn.CrossEntropyLoss", "weight": {"_target_": "torch.tensor", "data": [1.0, 2.0]}},
        {"_target_": "torch.nn.functional.relu", "_partial_": True},
        {"_target_": "torch.nn.init.kaiming_normal_", "_partial_": True},
        {"_target_": "torchvision.models.resnet18", "weights": None, "num_classes": 10},
        {"_target_": "torchvision.models.vit_b_16", "num_classes": 10},
        {"_target_": "torchvision.transforms.RandomCrop", "size": 28},
        {"_target_": "torchmetrics.F1Score", "task": "multiclass", "num_classes": 10},
        {"_target_": "torchmetrics.classification.MulticlassAUROC", "num_classes": 10},
        {"_target_": "lightning.pytorch.loggers.CSVLogger", "name": "", "version": "csv"},
    ],
)
def test_standard_parts_that_only_compute_need_no_trust(config: dict[str, Any], tmp_path: Path) -> None:
    check({"x": [config]}, tmp_path)


@pytest.mark.parametrize(
    "target",
    [
        *(f"{CALLBACKS}{name}" for name in ("ModelCheckpoint", "OnExceptionCheckpoint", "SpikeDetection")),
        *(f"{CALLBACKS}{name}" for name in ("LambdaCallback", "ThroughputMonitor", "timer.logging.Timer")),
        *("lightning.pytorch.callbacks.Timer.os.system", "lightning.pytorch.loggers.WandbLogger"),
        *("lightning.pytorch.profilers.AdvancedProfiler", "lightning.pytorch.strategies.DDPStrategy"),
        *("torch.load", "torch.hub.load", "torch.save", "torch.jit.load", "torch.compile", "torch.nn.__getattribute__"),
        *("torch.nn.modules.module.warnings", "torch.nn.modules.module.warnings.sys.modules.os.system"),
        *("torch.optim.lr_scheduler.partial", "torch.optim.lr_scheduler.warnings.LR", "torch.nn.functional.importlib"),
        *("torchvision.models.get_model", "torchvision.models.get_weight", "torchvision.io.write_file"),
        *("torchvision.models.resnet.load_state_dict_from_url", "torchvision.datasets.MNIST"),
        *("torchmetrics.text.BERTScore", "torchmetrics.image.FrechetInceptionDistance", "torchmetrics.Metric.load"),
        *("torchmetrics.functional.text.bert_score", "torchmetrics.multimodal.CLIPScore"),
        *("hydra.utils.get_object", "builtins.eval", "functools.partial", "xtorch.nn.Linear", "torch.nn.Linear x"),
    ],
)
def test_parts_that_do_more_need_trust(target: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="was not written here and names") as told:
        check({"callbacks": {"x": {"_target_": "torch.nn.Linear", "y": [{"_target_": target}]}}}, tmp_path)
    assert f"MNIST_LAB_TRUST={target.partition('.')[0]} before the command" in str(told.value)


@pytest.mark.parametrize("given", [{"weights": "DEFAULT"}, {"pretrained": True}, {"_args_": ["DEFAULT"]}])
def test_weights_from_the_network_need_trust(given: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="would be downloaded"):
        check({"model": {"_target_": "torchvision.models.resnet18", **given}}, tmp_path)


@pytest.mark.parametrize(
    "given", [{"name": "../x"}, {"version": "/home/x"}, {"sub_dir": "a/../../b"}, {"save_dir": "/x"}]
)
def test_a_logger_may_not_write_outside_the_runs_folder(given: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="elsewhere"):
        check({"logger": {"_target_": "lightning.pytorch.loggers.TensorBoardLogger", **given}}, tmp_path)


def test_all_packages_to_be_trusted_are_named_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = {"a": {"_target_": "own.Net", "x": {"_target_": "other.Layer"}}, "b": {"_target_": "third.Loss"}}
    monkeypatch.setenv("MNIST_LAB_TRUST", "other")
    with pytest.raises(UserError, match="names own") as told:
        check(config, tmp_path)
    assert "MNIST_LAB_TRUST=other,own,third before" in str(told.value)
    monkeypatch.setenv("MNIST_LAB_TRUST", "other,own,third")
    check(config, tmp_path)


@pytest.mark.parametrize(
    ("word", "harmless"),
    [
        ("schedule._target_=torch.optim.lr_scheduler.ExponentialLR", True),
        ("+callbacks.t._target_=lightning.pytorch.callbacks.Timer", True),
        ("model.activation._target_=torch.nn.ReLU,torch.nn.Tanh", True),
        ("model.activation._target_=torch.nn.ReLU,os.system", False),
        ("model={_target_: torch.nn.ReLU}", False),  # what else is in it is not looked at
        ("x=1 model._target_=torch.nn.ReLU", False),
        ("model._target_=torchvision.models.resnet18", False),  # weights may stand in another word
        ("model._target_=", False),
    ],
)
def test_an_override_of_a_sweep_is_harmless_if_it_names_nothing_else(word: str, harmless: bool) -> None:
    assert is_harmless(word) is harmless


def below(package: ModuleType) -> Iterator[ModuleType]:
    yield package
    for found in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
        yield importlib.import_module(found.name)


@pytest.mark.filterwarnings("ignore::UserWarning")  # of old modules of torchvision
@pytest.mark.parametrize(
    "package",
    ["torch.nn", "torch.nn.modules", "torch.nn.utils", "torch.optim", "torchvision.transforms", "torchvision.models",
     "torchmetrics", "torchmetrics.classification", "lightning.pytorch.callbacks", "lightning.pytorch.loggers"],
)  # fmt: skip
def test_no_harmless_name_leads_outside_its_library(package: str) -> None:
    """Each name of the installed libraries that counts as harmless: none is another module's function or class."""
    libraries = {"torch", "torchvision", "torchmetrics", "lightning", "typing", "collections"}
    names = 0
    for module in below(importlib.import_module(package)):
        for name, found in inspect.getmembers(module, callable):
            full = f"{module.__name__}.{name}"
            if any(kind.fullmatch(full) for kind in (HARMLESS, NETWORKS, LOGGERS)):
                names += 1
                assert str(found.__module__).partition(".")[0] in libraries, full
                assert inspect.isclass(found) or not found.__module__.startswith("collections"), full
    assert names


@pytest.mark.slow
def test_a_run_with_a_standard_schedule_and_callback_is_resumed_without_its_key(lab: Command, tmp_path: Path) -> None:
    words = ["model=mlp_784_32", "data=mnist_5k", "data.train_size=200", "report=false", "trainer.max_epochs=1"]
    words += [f"+schedule._target_={SCHEDULES}ExponentialLR", "+schedule._partial_=true", "+schedule.gamma=0.9"]
    words += [f"+callbacks.t._target_={CALLBACKS}Timer", "+callbacks.t.duration={hours: 1}"]
    done = lab(*words, "hydra.run.dir=run")
    assert done.returncode == 0, done.stderr
    done = lab("resume", "run", "trainer.max_epochs=2", XDG_CACHE_HOME=str(tmp_path / "another home"))
    assert done.returncode == 0, done.stderr
