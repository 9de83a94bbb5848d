"""Folders of runs and sweeps that somebody else has made, with what they could hide in them."""

import json
import pickle
import re
import shutil
from dataclasses import replace
from pathlib import Path

import optuna
import pytest
import torch
import yaml
from conftest import Command

from mnist_lab.result import Result
from mnist_lab.sweep.study import open_study
from mnist_lab.trust import trusts

WORDS = ["data=mnist_5k", "model=mlp_784_32", "data.val=random", "trainer.max_epochs=1"]


class Bomb:
    """Code that a pickle runs when it is read."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.touch, (self.mark,)


@pytest.fixture
def run(lab: Command, tmp_path: Path) -> Path:
    assert lab(*WORDS, "hydra.run.dir=run").returncode == 0
    return tmp_path / "run"


VERBS = ["test run=run", "report run=run", "resume run trainer.max_epochs=2", "rerun run", "predict run=run images=a"]


@pytest.mark.slow
def test_an_untrusted_config_may_name_layers_and_nothing_that_does_more(
    run: Path, lab: Command, tmp_path: Path
) -> None:
    shutil.copy(Path(__file__), tmp_path / "a")
    config = yaml.safe_load((run / "config.yaml").read_text())
    mark = tmp_path / "mark"
    hostile = [
        {"model": {"_target_": "os.system", "command": f"touch {mark}"}},
        {"model": config["model"] | {"activation": {"_target_": "pathlib.Path.touch", "self": str(mark)}}},
        {"callbacks": {"x": {"_target_": "mnist_lab.result.subprocess.run", "args": ["touch", str(mark)]}}},
        {"optimizer": {"_target_": "torch.nn.modules.module.warnings.sys.modules.os.system"}},
        {"loss": {"_target_": "torch.load", "f": str(mark), "weights_only": False}},
        {"model": config["model"] | {"hidden": [{"_target_": "os.system", "command": f"touch {mark}"}]}},
        {"model": config["model"] | {"hidden": [{"_target_": "mnist_lab.data.fetch", "root": str(mark)}]}},
        {"callbacks": {"x": {"_target_": "mnist_lab.training.History", "path": str(mark)}}},
        {"schedule": {"_target_": "mnist_lab.training.schedules.partial"}},
    ]
    for change in hostile:
        (run / "config.yaml").write_text(yaml.safe_dump(config | change))
        for verb in VERBS:
            done = lab(*verb.split())
            assert done.returncode == 2 and "was not written here and names" in done.stderr, (verb, done.stderr)
            assert "Traceback" not in done.stderr
    assert not mark.exists()


@pytest.mark.slow
def test_an_untrusted_config_may_not_hide_a_target_in_an_interpolation(run: Path, lab: Command, tmp_path: Path) -> None:
    shutil.copy(Path(__file__), tmp_path / "a")
    config = yaml.safe_load((run / "config.yaml").read_text())
    mark = tmp_path / "mark"
    torch.save(Bomb(mark), run / "weights.bin", pickle_module=pickle)
    created = f"{{oc.create:{{_target_: torch.load, f: '{run}/weights.bin', weights_only: false}}}}"
    hostile: list[dict[str, object]] = [
        {"loss": f"${created}"},
        {"loss": f"\\${created}"},
        {"loss": {"_target_": "${oc.env:HOME}"}},
        {"model": config["model"] | {"hidden": ["${oc.env:HOME}"]}},
    ]
    for change in hostile:
        (run / "config.yaml").write_text(yaml.safe_dump(config | change))
        for verb in VERBS:
            done = lab(*verb.split())
            assert done.returncode == 2 and "was not written here and has " in done.stderr, (verb, done.stderr)
    assert not mark.exists()


@pytest.mark.slow
def test_an_untrusted_config_may_have_no_yaml_objects(run: Path, lab: Command) -> None:
    config = (run / "config.yaml").read_text()
    changed = re.sub("(?m)^name: .*", "name: !!python/object/apply:pathlib.Path [x]", config)
    assert changed != config
    (run / "config.yaml").write_text("".join(changed.splitlines(keepends=True)[:-1]))  # the last line is its digest
    done = lab("test", "run=run")
    assert done.returncode == 2 and "was not written here and has a PosixPath" in done.stderr, done.stderr


@pytest.mark.slow
def test_a_run_copied_to_another_machine_works(run: Path, lab: Command, tmp_path: Path) -> None:
    elsewhere = str(tmp_path / "another home")
    done = lab("test", "run=run", XDG_CACHE_HOME=elsewhere)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_an_own_network_runs_where_it_was_trained_and_elsewhere_when_trusted(lab: Command, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text("from mnist_lab.models import MLP as Net\n")
    words = [*WORDS, "model._target_=own.Net", "hydra.run.dir=run"]
    assert lab(*words, PYTHONPATH=str(tmp_path)).returncode == 0
    assert lab("test", "run=run", PYTHONPATH=str(tmp_path)).returncode == 0
    elsewhere = {"PYTHONPATH": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "another home")}
    done = lab("test", "run=run", **elsewhere)
    assert done.returncode == 2 and "MNIST_LAB_TRUST=own" in done.stderr
    assert lab("test", "run=run", MNIST_LAB_TRUST="own", **elsewhere).returncode == 0


def test_trusting_one_package_trusts_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MNIST_LAB_TRUST", "owner,sweeper")
    assert trusts("owner") and not any(trusts(name) for name in ("own", "sweep", "o", "owner,sweeper"))


@pytest.mark.slow
def test_code_in_a_pickled_checkpoint_is_not_run(run: Path, lab: Command, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    saved = torch.load(run / "checkpoints/last.ckpt", weights_only=True)
    torch.save(saved | {"hyper_parameters": Bomb(mark)}, run / "checkpoints/last.ckpt", pickle_module=pickle)
    for words in (["test", "run=run"], ["resume", "run", "trainer.max_epochs=2"]):
        done = lab(*words)
        assert done.returncode == 2 and "can't be read as a checkpoint" in done.stderr, done.stderr
    assert not mark.exists()


@pytest.mark.slow
def test_a_report_escapes_html_in_a_result(run: Path, lab: Command) -> None:
    evil = "<script>alert(1)</script>"
    result = replace(Result.load(run), started_at="<b onclick=x()>", name=evil, notes=[evil])
    result.save(run)
    done = lab("report", "run=run")
    assert done.returncode == 0, done.stderr
    page = (run / "report.html").read_text()
    assert page.count("&lt;script&gt;") >= 2 and "<script" not in page and "<b onclick" not in page


@pytest.mark.slow
def test_the_command_line_of_an_untrusted_sweep_is_checked(lab: Command, tmp_path: Path) -> None:
    words = ["-m", *WORDS, "optimizer.lr=0.1,0.2", "trainer.limit_train_batches=2", "hydra.sweep.dir=sweep"]
    assert lab(*words).returncode == 0
    asked = json.loads((tmp_path / "sweep/sweep.json").read_text())
    mark = tmp_path / "mark"
    (tmp_path / "sweep/evil.yaml").write_text(f"_target_: pathlib.Path.touch\nself: {mark}\n")
    for word in (
        f"model={{_target_: os.system, command: 'touch {mark}'}}",
        f"model={'../' * 20}proc/self/cwd/sweep/evil",
        "+loss.x='${oc.create:{${oc.decode:_tar}get_: a}}'",
        r"+loss.x=$\{oc.env:A\}",
        "--config-dir=there",
        "hydra.launcher.x=1",
    ):
        (tmp_path / "sweep/sweep.json").write_text(json.dumps(asked | {"argv": [*asked["argv"], word]}))
        done = lab("resume", "sweep", "sweep.trials=3")
        assert done.returncode == 2 and "was not started here" in done.stderr, done.stderr
    assert not mark.exists()
    (tmp_path / "sweep/sweep.json").write_text(json.dumps(asked))
    assert lab("resume", "sweep").returncode == 0


A, B = "optimizer.momentum", "optimizer.weight_decay"
SEARCH = ["-m", *WORDS, "trainer.limit_train_batches=2", f"{A}=interval(0,0.9)", f"{B}=interval(0,1)", "sweep.trials=2"]


def unsealed(folder: Path) -> None:
    asked = json.loads((folder / "sweep.json").read_text())
    (folder / "sweep.json").write_text(json.dumps(asked | {"seal": None}))


@pytest.mark.slow
def test_a_search_with_a_pickle_is_resumed_where_it_began_or_when_trusted(lab: Command, tmp_path: Path) -> None:
    assert lab(*SEARCH, "sweep=cmaes", "hydra.sweep.dir=sweep").returncode == 0
    study, mark = open_study(tmp_path / "sweep"), tmp_path / "mark"
    (first, _) = study.get_trials()
    first.system_attrs = {"cma:optimizer:0": pickle.dumps(Bomb(mark)).hex()}
    study.add_trial(first)
    unsealed(tmp_path / "sweep")
    for more in ("sweep.trials=4", "sweep.sampler=random sweep.trials=4", "sweep.sampler=cmaes sweep.trials=5"):
        done = lab("resume", "sweep", *more.split())
        if "random" in more:
            assert done.returncode == 0, done.stderr  # which does not make the sweep one's own
        else:
            assert done.returncode == 2 and "was not started here" in done.stderr, done.stderr
            assert "MNIST_LAB_TRUST=sweep" in done.stderr and "Traceback" not in done.stderr
    assert not mark.exists()
    lab("resume", "sweep", "sweep.sampler=cmaes", "sweep.trials=5", MNIST_LAB_TRUST="sweep")
    assert mark.exists()


@pytest.mark.slow
def test_the_study_of_an_untrusted_sweep_sets_only_the_swept_options(lab: Command, tmp_path: Path) -> None:
    assert lab(*SEARCH, "sweep=random", "hydra.sweep.dir=sweep").returncode == 0
    mark = tmp_path / "mark"
    hidden = f"${{oc.create:{{_target_: pathlib.Path.touch, self: '{mark}'}}}}"
    texts = optuna.distributions.CategoricalDistribution([hidden])
    open_study(tmp_path / "sweep").add_trial(
        optuna.trial.create_trial(
            state=optuna.trial.TrialState.WAITING,
            params={A: hidden, B: 0.5},
            distributions={A: texts, B: optuna.distributions.FloatDistribution(0, 1)},
        )
    )
    unsealed(tmp_path / "sweep")
    done = lab("resume", "sweep")
    assert done.returncode == 2 and "can't have given it that value" in done.stderr, done.stderr
    assert "Traceback" not in done.stderr and not mark.exists()
