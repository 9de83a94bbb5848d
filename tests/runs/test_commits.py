"""result.json has the commit of this program and of the repository in which the user's own modules lie."""

import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from conftest import Command, result_in

from mnist_lab import environment
from mnist_lab.environment import code_state, own_code
from mnist_lab.rerun import _circumstances
from mnist_lab.sweep.study import differences


def git(folder: Path, *words: str) -> str:
    identity = ["-c", "user.name=me", "-c", "user.email=me@example.org"]
    done = subprocess.run(["git", *identity, *words], cwd=folder, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def module_in(folder: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module of the user's own, in a repository of its own, committed."""
    folder.mkdir(parents=True)
    (folder / f"{name}.py").write_text("from torch import nn\n\nclass Net(nn.Flatten):\n    pass\n")
    git(folder, "init", "-q")
    git(folder, "add", ".")
    git(folder, "commit", "-qm", "own")
    monkeypatch.syspath_prepend(folder)
    return folder


def test_each_module_of_ones_own_has_its_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = module_in(tmp_path / "first/lib", "own_first", monkeypatch)
    second = module_in(tmp_path / "second", "own_second", monkeypatch)
    config = {"model": {"_target_": "own_first.Net"}, "loss": {"_target_": "own_second.Loss"}, "x": "torch.nn.ReLU"}
    found = own_code([config])["own_repositories"]
    assert found == {
        "own_first": {"root": str(first), "commit": git(first, "rev-parse", "HEAD"), "changed": False},
        "own_second": {"root": str(second), "commit": git(second, "rev-parse", "HEAD"), "changed": False},
    }
    assert found["own_first"]["commit"] != code_state()["commit"]


@pytest.mark.parametrize(
    ("change", "changed"),
    [
        ("notes.txt", False),  # untracked, and no module
        ("own_edited.py", True),
        ("README", True),  # tracked, elsewhere in the repository
    ],
)
def test_changes_in_ones_own_repository_are_recorded(
    change: str, changed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = module_in(tmp_path / "lib", "own_edited", monkeypatch)
    (folder / "README").write_text("as it was")
    git(folder, "add", ".")
    git(folder, "commit", "-qm", "more")
    (folder / change).write_text("# new\n")
    found = own_code([{"_target_": "own_edited.Net"}])["own_repositories"]["own_edited"]
    assert found["changed"] is changed


@pytest.mark.parametrize("ignored", [False, True])
def test_a_module_that_is_not_committed_is_a_change(
    ignored: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = module_in(tmp_path / "lib", "own_committed", monkeypatch)
    (folder / "own_package").mkdir()
    (folder / "own_package/__init__.py").write_text("")
    if ignored:
        (folder / ".git/info/exclude").write_text("own_package\n")
    found = own_code([{"_target_": "own_package.Net"}])
    assert found["own_repositories"]["own_package"]["changed"] is True
    assert "own_package/__init__.py" in found["own"]


def test_a_commit_is_null_without_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_alone.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    nothing = {"own_alone": {"root": None, "commit": None, "changed": None}}
    assert own_code([{"_target_": "own_alone.Net"}])["own_repositories"] == nothing
    git(tmp_path, "init", "-q")

    def missing(*_: object, **__: object) -> None:
        raise FileNotFoundError("git")

    monkeypatch.setattr(environment.subprocess, "run", missing)  # type: ignore[attr-defined]
    assert own_code([{"_target_": "own_alone.Net"}])["own_repositories"] == nothing


def test_no_commit_is_recorded_without_code_of_ones_own() -> None:
    assert own_code([{"_target_": "mnist_lab.models.MLP", "x": {"_target_": "torch.nn.ReLU"}}]) == {}


def test_the_script_that_runs_is_ones_own_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = module_in(tmp_path / "lib", "script", monkeypatch)
    main = ModuleType("__main__")
    main.__file__, main.__spec__ = str(folder / "script.py"), None
    monkeypatch.setitem(sys.modules, "__main__", main)
    found = own_code([{"_target_": "__main__.Net"}])
    assert list(found["own"]) == ["script.py"] and found["own_repositories"]["__main__"]["root"] == str(folder)


def test_rerun_compares_the_commit_and_not_the_place() -> None:
    def of(root: str, commit: str) -> SimpleNamespace:
        code = {"version": "1", "own_repositories": {"own": {"root": root, "commit": commit, "changed": False}}}
        return SimpleNamespace(code=code, packages={}, machine={}, data={"name": "mnist", "digest": "d"})

    def told(before: SimpleNamespace, now: SimpleNamespace) -> list[str]:
        return differences(_circumstances(before, before), _circumstances(now, before))  # type: ignore[arg-type]

    assert told(of("/a", "1"), of("/b", "1")) == []
    assert told(of("/a", "1"), of("/a", "2")) == ["code.own_repositories.own.commit: 1 → 2"]
    older = of("/a", "1")
    del older.code["own_repositories"]
    assert told(older, of("/a", "2")) == [], "it was not recorded then"


@pytest.mark.slow
def test_a_run_and_its_page_name_both_commits(lab: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = module_in(tmp_path / "lib", "own_net", monkeypatch)
    (folder / "own_net.py").write_text(
        "from torch import nn\n\ndef net():\n    return nn.Sequential(nn.Flatten(), nn.Linear(784, 10))\n"
    )
    git(folder, "commit", "-qam", "net")
    config = tmp_path / "my/model"
    config.mkdir(parents=True)
    (config / "mine.yaml").write_text(json.dumps({"_target_": "own_net.net"}))
    words = ["--config-dir", "my", "model=mine", "data=mnist_5k", "data.train_size=200", "trainer.max_epochs=1"]
    done = lab(*words, "hydra.run.dir=run", PYTHONPATH=f"{folder}:{':'.join(sys.path)}")
    assert done.returncode == 0, done.stderr
    code, commit = result_in(tmp_path / "run").code, git(folder, "rev-parse", "HEAD")
    assert code["own_repositories"]["own_net"] == {"root": str(folder), "commit": commit, "changed": False}
    assert commit[:12] in (tmp_path / "run/report.html").read_text()
