"""The verb `rerun`: a finished run once more, and whether its numbers come back."""

from __future__ import annotations

import shlex
import sys
import time
from dataclasses import replace
from datetime import datetime
from typing import Any

from mnist_lab.errors import UserError, printable
from mnist_lab.folders import check_folder, run_folder
from mnist_lab.result import Result
from mnist_lab.run_folder import load_config
from mnist_lab.sweep.study import differences
from mnist_lab.words import folder_of, parse_options, path_of

USAGE = "use: python -m mnist_lab rerun outputs/.../RUN [dir=FOLDER] [data.root=DIR]"


def rerun(words: list[str]) -> None:
    """Run the config of a finished run again, in a new folder, and compare history and test, to the last digit.

    Mark the new result as a repetition where they are equal, so that `compare` takes both for one measurement.
    Ends the program with exit status 1 where they differ, after naming what else does: code, versions, data, machine.

    Args:
        words: the run's folder, `dir=FOLDER` for the new one, which must be new or empty, and `data.root=DIR` where the
            data has moved.

    Raises:
        UserError: there is no such finished run, or it can't be run.
    """
    started = time.perf_counter()
    folder = folder_of(words, USAGE)
    moved = [word for word in words[1:] if word.startswith("data.root=")]
    cfg, before = load_config(folder, moved), Result.load(folder)
    changes = [word for word in words[1:] if not word.startswith(("dir=", "data.root=")) and "=" in word]
    if changes:
        other = f"{before.command} {shlex.join(changes)}"
        raise UserError(f"rerun repeats a run as it was. To run it with a change: {other}\n{USAGE}")
    now = datetime.now().strftime("%Y-%m-%d_%H-%M-%S-%f")
    own = {"dir": f"outputs/{cfg.name}/{now}", "data.root": ""}
    new = path_of(parse_options(words[1:], own, USAGE)["dir"]).absolute()
    until = check_folder("dir", str(new), fresh=True)

    from mnist_lab.fast.process import flush_denormals
    from mnist_lab.run import run
    from mnist_lab.user_code import errors_in_one_line

    flush_denormals()
    with run_folder(new, until), errors_in_one_line(cfg, new):
        command = shlex.split(before.command)[3:]
        found = run(cfg, new, before.overrides + moved, command + moved, started, recorded=before.data)
    if found is None:  # of a helper process
        return
    found = Result.load(new)  # as numbers are in files: without NaN
    numbers = differences(_numbers(before, before), _numbers(found, before))
    others = differences(_circumstances(before, before), _circumstances(found, before))
    if not numbers:
        replace(found, repeats=before.repeats or before.identity).save(new)
        print(printable(f"reproduced: history and test are those of {folder}, to the last digit"))
    else:
        print(printable("\n  ".join([f"NOT reproduced: of {folder}", *numbers[:20]])))
    if others:
        print("what differs besides the numbers:", *others, sep="\n  ")
    elif numbers and (changed := [note for note in before.notes if "has changed" in note]):
        print(*changed, sep="\n")
    elif numbers:
        print(
            "Code, versions, data and machine are the same as far as is recorded: this computation can't be repeated "
            "exactly, or something else has changed."
        )
    if numbers:
        sys.exit(1)


def _numbers(result: Result, before: Result) -> dict[str, Any]:
    """Return history and test; of the test what `before`, which may be older, has recorded."""
    rows = {f"epoch {row['epoch']}": {k: v for k, v in row.items() if k != "seconds"} for row in result.history}
    return {**rows, "test": {key: value for key, value in result.test.items() if key in before.test}}


def _circumstances(result: Result, before: Result) -> dict[str, Any]:
    """Return what numbers may depend on besides the config; of the code only what `before` has recorded."""
    machine = {key: value for key, value in result.machine.items() if "memory" not in key}
    code = {key: value for key, value in result.code.items() if key in before.code}
    if "own_repositories" in code:  # whatever folder they are in
        repositories = code["own_repositories"].items()
        code["own_repositories"] = {name: {**found, "root": None} for name, found in repositories}
    return {
        "code": code,
        "packages": result.packages,
        "machine": machine,
        "data": {"name": result.data["name"], "digest": result.data["digest"]},
    }
