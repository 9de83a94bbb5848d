"""Names that somebody else has chosen are text: to a terminal, to a spreadsheet, and to Python's imports."""

import csv
import logging
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from results import result
from some import some

from mnist_lab.errors import UserError
from mnist_lab.processes import fail
from mnist_lab.show.predict import _complain
from mnist_lab.sweep.compare import compare
from mnist_lab.sweep.tables import cell
from mnist_lab.terminal import logged, metrics_table, show, warn

EVIL, SHOWN = "\x1b]0;mine\x07\x9b2J", r"\x1b]0;mine\x07\x9b2J"


def test_an_error_shows_the_control_characters_of_a_name(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        fail(UserError(f"{EVIL} ü\nsecond line"))
    _complain(UserError(EVIL))
    assert capsys.readouterr().err == f"error: {SHOWN} ü\nsecond line\nerror: {SHOWN}\n"


def test_messages_and_tables_show_them_on_the_terminal_and_in_the_log(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with logged(tmp_path / "run.log"):
        logging.getLogger("mnist_lab").info(EVIL)
        warn([EVIL])
        show(metrics_table(EVIL, [(EVIL, {EVIL: 0.5})]))
    for text in (capsys.readouterr().out, (tmp_path / "run.log").read_text()):
        assert text.count(SHOWN) == 5 and "\x1b" not in text and "\x9b" not in text


def test_a_comparison_shows_the_names_of_folders_and_settings_as_text(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for n in range(2):
        folder = tmp_path / f"{EVIL}{n}"
        folder.mkdir()
        replace(result(n, n + 1, 0.9), overrides=[f"own={EVIL}{n}"], notes=[EVIL]).save(folder)
        (tmp_path / f"{EVIL}-damaged{n}").mkdir()
        (tmp_path / f"{EVIL}-damaged{n}/result.json").touch()
    compare([str(tmp_path)])
    said = capsys.readouterr()
    for text in (said.out, said.err):
        assert SHOWN in text and "\x1b" not in text and "\x9b" not in text


@pytest.mark.parametrize("text", some(["=1+1", "@SUM(1)", "\t=1", "+1+1", "-1+1", "=cmd|' /C calc'!A0"], 3))
def test_a_spreadsheet_computes_no_cell_of_a_comparison(text: str, tmp_path: Path) -> None:
    for n, value in enumerate((text, "b")):
        found = result(n, 0.1, 0.9)
        found.config["optimizer"]["own"] = value
        (tmp_path / str(n)).mkdir()
        replace(found, overrides=[]).save(tmp_path / str(n))
    compare([str(tmp_path)])
    with (tmp_path / "compare.csv").open(newline="") as file:
        cells = [cell for row in csv.reader(file) for cell in row]
    assert f"'{text}" in cells and text not in cells


def test_numbers_stay_numbers() -> None:
    for value in (-1.5, "-1.5", "+2", "1e-3", "-inf", "a-b", None):
        assert cell(value) == value


def in_folder(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mnist_lab", *words]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)


@pytest.mark.slow
def test_the_current_folder_shadows_no_installed_module(tmp_path: Path) -> None:
    for name in ("yaml", "pathlib", "difflib", "rich"):
        (tmp_path / f"{name}.py").write_text("print('mine')\n")
    done = in_folder(tmp_path, "--cfg", "job")
    assert done.returncode == 0 and "mine" not in done.stdout, done.stderr


@pytest.mark.slow
def test_the_current_folder_has_one_s_own_modules(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text("raise ValueError('own')\n")
    done = in_folder(tmp_path, "data=mnist_5k", "model._target_=own.Net", "hydra.run.dir=run")
    assert done.returncode == 2 and "own" in done.stderr and "No module named" not in done.stderr, done.stderr
