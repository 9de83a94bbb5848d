"""`articles`: every experiment over several seeds, the table printed and saved, nothing run twice."""

from pathlib import Path
from statistics import fmean, stdev

import pytest
from conftest import Command, outcome
from filelock import FileLock

from mnist_lab.files import CONF_DIR
from mnist_lab.result import Result

SHORT = ("seeds=2", "data=mnist_5k", "data.fallback=null", "trainer=debug")


@pytest.mark.slow
def test_the_articles_table_has_the_results_of_its_runs(lab: Command, tmp_path: Path) -> None:
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


@pytest.mark.slow
def test_articles_repeats_no_finished_run_even_if_its_data_has_moved(lab: Command, tmp_path: Path) -> None:
    words = ("articles", "experiments=d_mlp_512", *SHORT)
    assert lab(*words).returncode == 0
    paths = sorted(tmp_path.rglob("result.json"))
    assert len(paths) == 2
    before = [path.stat().st_mtime_ns for path in paths]
    assert lab(*words).returncode == 0
    done = lab(*words, f"data.root={tmp_path}/elsewhere", "name=other")
    assert done.returncode == 0, done.stderr
    assert [path.stat().st_mtime_ns for path in paths] == before


@pytest.mark.slow
def test_articles_neither_removes_nor_counts_a_run_of_another_config(lab: Command, tmp_path: Path) -> None:
    words = ("articles", "experiments=d_mlp_512", "data=mnist_5k", "trainer=debug")
    assert lab(*words, "seeds=1").returncode == 0
    run_dir = tmp_path / "outputs/articles/d_mlp_512/seed=0"
    before, table = Result.load(run_dir), (tmp_path / "outputs/articles/table.md").read_text()
    for other in ("optimizer.lr=0.1", "seeds.order=5"):
        done = lab(*words, "seeds=2", other)
        assert done.returncode == 2 and len(done.stderr.splitlines()) == 2
        assert "d_mlp_512/seed=0 has a run of another config: " in done.stderr
        assert f"{other.replace('=', ': ').rpartition(' ')[0]}" in done.stderr and "dir=" in done.stderr
        (run_dir / "result.json").rename(tmp_path / "aside")
        assert "has a run of another config: " in lab(*words, "seeds=2", other).stderr, "a stopped one stays as well"
        (tmp_path / "aside").rename(run_dir / "result.json")
    assert Result.load(run_dir) == before and (tmp_path / "outputs/articles/table.md").read_text() == table
    assert not (run_dir.parent / "seed=1").exists(), "nothing has begun"
    done = lab(*words, "seeds=1", "optimizer.lr=0.1", "dir=other")
    assert done.returncode == 0, done.stderr
    result = Result.load(tmp_path / "other/d_mlp_512/seed=0")
    assert f"| {100 * result.test['acc']:.2f} % | 1 |" in (tmp_path / "other/table.md").read_text()


@pytest.mark.slow
def test_articles_resumes_a_stopped_run_unless_another_process_works_on_it(lab: Command, tmp_path: Path) -> None:
    words = ("articles", "experiments=d_mlp_512", *SHORT)
    assert lab(*words).returncode == 0
    run_dir = tmp_path / "outputs/articles/d_mlp_512/seed=1"
    whole = outcome(run_dir)
    (run_dir / "result.json").unlink()
    with FileLock(run_dir / ".held"):
        done = lab(*words)
    assert done.returncode == 2 and "seed=1 is being worked on by process" in done.stderr
    done = lab(*words)
    assert done.returncode == 0, done.stderr
    assert outcome(run_dir) == whole and "epoch 1/" not in done.stdout


@pytest.mark.slow
def test_the_folder_of_articles_may_have_any_name(lab: Command, tmp_path: Path) -> None:
    done = lab("articles", "experiments=a1_neuron", *SHORT, "dir=it's, mine")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "it's, mine/a1_neuron/seed=1/result.json").exists()
    assert (tmp_path / "it's, mine/table.md").exists()


@pytest.mark.slow
def test_articles_compares_curves_up_to_the_shortest_run(lab: Command, tmp_path: Path) -> None:
    words = ["data=mnist_5k", "data.fallback=null", "data.train_size=300", "optimizer.lr=0.02", "trainer.max_epochs=9"]
    words += ["callbacks=early_stopping", "callbacks.early_stopping.patience=1", "data.val=random", "data.val_size=500"]
    done = lab("articles", "experiments=d_mlp_512", "seeds=4", *words)
    assert done.returncode == 0, done.stderr
    lengths = [len(Result.load(path.parent).history) for path in tmp_path.rglob("result.json")]
    table = (tmp_path / "outputs/articles/table.md").read_text()
    (line,) = [line for line in table.splitlines() if "train/acc by epoch" in line]
    assert len(set(lengths)) > 1 and len(line.partition("ours")[2].split()) == min(lengths), (lengths, line)
