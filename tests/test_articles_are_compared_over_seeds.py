"""`articles`: every experiment over several seeds, the table printed and saved, nothing run twice."""

from pathlib import Path
from statistics import fmean, stdev

import pytest
from conftest import Command

from mnist_lab.config import CONF_DIR
from mnist_lab.result import Result

SHORT = ("seeds=2", "data=mnist_5k", "data.fallback=null", "trainer=debug")


@pytest.mark.slow
def test_the_table_is_what_its_runs_found(lab: Command, tmp_path: Path) -> None:
    done = lab("articles", *SHORT)
    assert done.returncode == 0, done.stderr
    table = (tmp_path / "outputs/articles/table.md").read_text()
    for path in (CONF_DIR / "experiment").glob("*.yaml"):
        of_an_article = "reported:" in path.read_text()
        assert (f"| {path.stem} |" in table) == of_an_article, "the others are recipes of our own"
    results = [Result.load(tmp_path / f"outputs/articles/d_mlp_512/seed={seed}") for seed in (0, 1)]
    accuracies = [100 * result.test["acc"] for result in results]
    row = f"| 97.88 % | 97.88 ± 0.14 % (n = 5) | {fmean(accuracies):.2f} ± {stdev(accuracies):.2f} % | 2 |"
    assert f"| d_mlp_512 | test acc {row}" in table
    assert "| a1_neuron | output | 0.9525741268224334 |  | 0.9525741268224334 | 2 |" in table


def test_finished_runs_are_not_run_again_unless_the_config_changed(lab: Command, tmp_path: Path) -> None:
    words = ("articles", "experiments=d_mlp_512", *SHORT)
    assert lab(*words).returncode == 0
    paths = sorted(tmp_path.rglob("result.json"))
    assert len(paths) == 2
    before = [path.stat().st_mtime_ns for path in paths]
    assert lab(*words).returncode == 0
    assert [path.stat().st_mtime_ns for path in paths] == before
    assert lab(*words, "optimizer.lr=0.002").returncode == 0
    assert all(path.stat().st_mtime_ns > then for path, then in zip(paths, before, strict=True))


def test_a_table_never_mixes_runs_of_different_configs(lab: Command, tmp_path: Path) -> None:
    words = ("articles", "experiments=d_mlp_512", "data=mnist_5k", "trainer=debug")
    assert lab(*words, "seeds=2").returncode == 0
    assert lab(*words, "seeds=1", "optimizer.lr=0.1").returncode == 0
    table = (tmp_path / "outputs/articles/table.md").read_text()
    result = Result.load(tmp_path / "outputs/articles/d_mlp_512/seed=0")
    assert result.config["optimizer"]["lr"] == 0.1
    assert f"| {100 * result.test['acc']:.2f} % | 1 |" in table
    assert len(list((tmp_path / "outputs/articles/d_mlp_512/seed=0/tensorboard").glob("events*"))) <= 2
