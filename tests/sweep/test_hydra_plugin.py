"""Hydra's own test suites for plugins, run on `hydra/sweeper=study` in applications that are not ours."""

import re
import sys
from pathlib import Path
from typing import Any

import pytest
import warm
from hydra.core.plugins import Plugins
from hydra.test_utils.launcher_common_tests import BatchedSweeperTestSuite, IntegrationTestSuite, LauncherTestSuite
from hydra.version import _UNSPECIFIED_, VersionBase
from omegaconf import DictConfig


@pytest.fixture(autouse=True)
def _defaults_that_the_suites_expect(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(VersionBase.instance(), "version_base", _UNSPECIFIED_)  # whatever tests before have set


@pytest.mark.slow
@pytest.mark.parametrize("launcher_name, overrides", [("basic", ["hydra/sweeper=study"])])
class TestJobs(LauncherTestSuite):
    pass


@pytest.mark.slow
@pytest.mark.parametrize("launcher_name, overrides", [("basic", ["hydra/sweeper=study", "+hydra.sweeper.at_a_time=2"])])
class TestBatches(BatchedSweeperTestSuite):
    pass


def test_the_basic_launcher_gets_few_jobs_at_a_time(
    hydra_sweep_runner: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It keeps the config of each job until its last one has ended: of 1,000 trials 0.3 GB."""
    Plugins.instance()  # imports it
    monkeypatch.setattr(sys.modules["hydra_plugins.mnist_lab_sweeper"], "AT_ONCE", 2)
    words = ["hydra/sweeper=study", "hydra/launcher=basic", "bar=1,2,3"]
    where = {"calling_file": None, "calling_module": "hydra.test_utils.a_module", "config_path": "configs"}
    with hydra_sweep_runner(
        task_function=None, config_name="compose.yaml", overrides=words, temp_dir=tmp_path, **where
    ) as sweep:
        assert [[job.overrides for job in part] for part in sweep.returns] == [[["bar=1"], ["bar=2"]], [["bar=3"]]]


@pytest.mark.slow  # each is a fresh process
@pytest.mark.parametrize("task_launcher_cfg, extra_flags", [({}, ["-m", "hydra/sweeper=study"])])
class TestApplications(IntegrationTestSuite):
    @pytest.mark.xfail(strict=True, reason="runs two programs into one folder; a sweep that is finished stays finished")
    def test_to_absolute_path_multirun(
        self, tmpdir: Path, task_launcher_cfg: DictConfig, extra_flags: list[str]
    ) -> None:
        super().test_to_absolute_path_multirun(tmpdir, task_launcher_cfg, extra_flags)


APPLICATION = """
import hydra
from omegaconf import DictConfig

@hydra.main(version_base="1.3", config_path=None)
def distance(cfg: DictConfig) -> float:
    return (cfg.x - 3.0) ** 2

distance()
"""


@pytest.mark.slow
def test_the_sweeper_minimizes_what_another_application_returns(tmp_path: Path) -> None:
    (tmp_path / "distance.py").write_text(APPLICATION)
    search = ["hydra/sweeper=study", "+hydra.sweeper.sampler=tpe", "+hydra.sweeper.trials=40", "hydra.sweep.dir=found"]
    done = warm.lab(["-m", *search, "+x=interval(-10,10)"], tmp_path, module="distance")
    assert done.returncode == 0, done.stderr
    (line,) = re.findall(r"trial 39 .* best (\S+) \(trial", done.stdout)
    assert float(line) < 0.3, done.stdout
