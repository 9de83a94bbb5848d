"""A result.json with a value of another type than it is to have, though its digest is right, is named and left out."""

import copy
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from results import result

from mnist_lab.errors import UserError
from mnist_lab.result import Result, _digest
from mnist_lab.show.ensemble import ensemble
from mnist_lab.sweep.compare import compare

VALUES: dict[str, Any] = json.loads((ROOT / "tests/old_runs/finished/result.json").read_text())
del VALUES["sha256"]
WRONG = [("test.n", "10"), ("test.epoch", 7), ("test.epoch", 0), ("test.correct", 1001), ("test.n", 0), ("seed", -1)]
WRONG += [
    ("test.acc", True),
    ("history", []),
    ("history.0.seconds", None),
    ("config.trainer", None),
    ("config.data", 1),
]
WRONG += [("config.trainer.limit_val_batches", "1"), ("model.parameters", 10**60), ("command", "a 'b"), ("notes", None)]
WRONG += [("machine.cores", 1.5), ("data.classes", [[]]), ("code.commit", 1), ("seconds.train", 1e200), ("extras", 1)]
WRONG += [("config.mode", "up")]


def places(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The keys of each value in lists and dictionaries that lie in one another."""
    yield place
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield from places(value[key], (*place, key))


def save(folder: Path, place: tuple[Any, ...], value: Any) -> Path:
    """Leaves a result with another value in one place, and the digest that is right for it."""
    values = copy.deepcopy(VALUES)
    section = values
    for key in place[:-1]:
        section = section[key]
    section[place[-1]] = value
    folder.mkdir(exist_ok=True)
    (folder / "result.json").write_text(json.dumps(values | {"sha256": _digest(values)}))
    return folder


@pytest.mark.parametrize(("key", "value"), WRONG)
def test_a_wrong_value_is_named(key: str, value: Any, tmp_path: Path) -> None:
    place = tuple(int(part) if part.isdigit() else part for part in key.split("."))
    with pytest.raises(UserError, match=r"result\.json is damaged: "):
        Result.load(save(tmp_path, place, value))


def test_no_value_may_be_a_section_in_the_place_of_what_it_is(tmp_path: Path) -> None:
    found = [place for place in places(VALUES) if place and place[0] not in ("config", "extras")]
    assert len(found) > 80
    for place in found:
        with pytest.raises(UserError, match=r"damaged|has schema version"):
            Result.load(save(tmp_path, place, {"a": [[]]}))


def test_every_value_that_is_needed_is_missed(tmp_path: Path) -> None:
    for key in VALUES.keys() - {"repeats", "ended", "module"}:
        values = {name: value for name, value in VALUES.items() if name != key}
        (tmp_path / "result.json").write_text(json.dumps(values))
        with pytest.raises(UserError, match="damaged"):
            Result.load(tmp_path)


@pytest.mark.slow
def test_a_comparison_names_a_damaged_result_and_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for n in range(2):
        (tmp_path / str(n)).mkdir()
        result(n, 0.1, 0.9).save(tmp_path / str(n))
    save(tmp_path / "damaged", ("test", "acc"), [])
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep/result.json").write_text("[" * 100_000)
    compare([str(tmp_path)])
    said = capsys.readouterr()
    assert "damaged/result.json is damaged: test.acc is not a number" in said.err and "deep/result.json" in said.err
    assert "90.00 %" in said.out
    with pytest.raises(UserError, match=r"no finished run"):
        compare([str(tmp_path / "damaged")])


def test_a_mode_that_contradicts_the_metrics_name_stops_no_comparison(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, mode in (("ours", None), ("stranger's", "min")):
        save(tmp_path / name, ("config", "mode"), mode)
    compare([str(tmp_path), f"dir={tmp_path}"])
    assert "test/acc, best first" in capsys.readouterr().out


def test_a_config_says_how_a_metric_of_ones_own_is_ranked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for margin in (1, 2):
        values = copy.deepcopy(VALUES)
        values["config"] |= {"monitor": "val/margin_loss", "mode": "max", "optimizer": {"lr": margin}}
        values["test"]["metrics"] = {"margin_loss": float(margin)}
        (tmp_path / str(margin)).mkdir()
        (tmp_path / str(margin) / "result.json").write_text(json.dumps(values))
    compare([str(tmp_path), "metric=test/margin_loss", f"dir={tmp_path}"])
    assert f"best     {tmp_path}/2" in capsys.readouterr().out


def test_an_ensemble_names_a_damaged_result(tmp_path: Path) -> None:
    for name in "ab":
        shutil.copytree(ROOT / "tests/old_runs/finished", tmp_path / name)
    save(tmp_path / "b", ("data", "digest"), 1)
    with pytest.raises(UserError, match=r"b/result\.json is damaged: data\.digest is not a text"):
        ensemble([str(tmp_path)])
