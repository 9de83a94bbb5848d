"""`articles`: every experiment over several seeds, the table printed and saved, nothing run twice."""

import shutil
from pathlib import Path
from statistics import fmean, stdev

import pytest
import warm
from conftest import Command, outcome
from filelock import FileLock

from mnist_lab.files import CONF_DIR
from mnist_lab.result import Result

SHORT = ("seeds=2", "data=mnist_5k", "data.fallback=null", "trainer=debug")
D = ("articles", "experiments=d_mlp_512", *SHORT)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder where the command D has been typed."""
    folder = tmp_path_factory.mktemp("made")
    done = warm.lab([*D], folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def there(made: Path, tmp_path: Path) -> Path:
    """The same, to be changed."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    return tmp_path


@pytest.mark.slow
def test_the_articles_table_has_each_experiment_with_what_was_reported(lab: Command, tmp_path: Path) -> None:
    done = lab("articles", *SHORT, "seeds=1")
    assert done.returncode == 0, done.stderr
    table = (tmp_path / "outputs/articles/table.md").read_text()
    for path in (CONF_DIR / "experiment").glob("*.yaml"):
        of_an_article = "reported:" in path.read_text()
        assert (f"| {path.stem} |" in table) == of_an_article, "the others are recipes of our own"
    assert "| a1_neuron | output | 0.9525741268224334 |  | 0.9525741268224334 | 1 |" in table


@pytest.mark.slow
def test_a_row_of_the_articles_table_has_mean_and_deviation_over_the_seeds(made: Path) -> None:
    results = [Result.load(made / f"outputs/articles/d_mlp_512/seed={seed}") for seed in (0, 1)]
    accuracies = [100 * result.test["acc"] for result in results]
    row = f"| 97.88 % | 97.88 ± 0.14 % (n = 5) | {fmean(accuracies):.2f} ± {stdev(accuracies):.2f} % | 2 |"
    assert f"| d_mlp_512 | test acc {row}" in (made / "outputs/articles/table.md").read_text()


@pytest.mark.slow
def test_articles_repeats_no_finished_run_even_if_its_data_has_moved(lab: Command, there: Path) -> None:
    paths = sorted(there.rglob("result.json"))
    assert len(paths) == 2
    before = [path.stat().st_mtime_ns for path in paths]
    assert lab(*D).returncode == 0
    done = lab(*D, f"data.root={there}/elsewhere", "name=other")
    assert done.returncode == 0, done.stderr
    assert [path.stat().st_mtime_ns for path in paths] == before


@pytest.mark.slow
def test_articles_neither_removes_nor_counts_a_run_of_another_config(lab: Command, there: Path) -> None:
    run_dir = there / "outputs/articles/d_mlp_512/seed=0"
    before, table = Result.load(run_dir), (there / "outputs/articles/table.md").read_text()
    for other in ("optimizer.lr=0.1", "seeds.order=5"):
        done = lab(*D, "seeds=3", other)
        assert done.returncode == 2 and len(done.stderr.splitlines()) == 2
        assert "d_mlp_512/seed=0 has a run of another config: " in done.stderr
        assert f"{other.replace('=', ': ').rpartition(' ')[0]}" in done.stderr and "dir=" in done.stderr
    (run_dir / "result.json").rename(there / "aside")
    assert "has a run of another config: " in lab(*D, "seeds=3", other).stderr, "a stopped one stays as well"
    (there / "aside").rename(run_dir / "result.json")
    assert Result.load(run_dir) == before and (there / "outputs/articles/table.md").read_text() == table
    assert not (run_dir.parent / "seed=2").exists(), "nothing has begun"
    done = lab(*D, "seeds=1", "optimizer.lr=0.1", "dir=other")
    assert done.returncode == 0, done.stderr
    result = Result.load(there / "other/d_mlp_512/seed=0")
    assert f"| {100 * result.test['acc']:.2f} % | 1 |" in (there / "other/table.md").read_text()


@pytest.mark.slow
def test_articles_resumes_a_stopped_run_unless_another_process_works_on_it(lab: Command, there: Path) -> None:
    run_dir = there / "outputs/articles/d_mlp_512/seed=1"
    whole = outcome(run_dir)
    (run_dir / "result.json").unlink()
    with FileLock(run_dir / ".held"):
        done = lab(*D)
    assert done.returncode == 2 and "seed=1 is being worked on by process" in done.stderr
    done = lab(*D)
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
    done = lab("articles", "experiments=d_mlp_512", "seeds=3", *words)
    assert done.returncode == 0, done.stderr
    lengths = [len(Result.load(path.parent).history) for path in tmp_path.rglob("result.json")]
    table = (tmp_path / "outputs/articles/table.md").read_text()
    (line,) = [line for line in table.splitlines() if "train/acc by epoch" in line]
    assert len(set(lengths)) > 1 and len(line.partition("ours")[2].split()) == min(lengths), (lengths, line)
