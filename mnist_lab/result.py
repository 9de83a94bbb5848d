"""The result of a run: `result.json`, written once and read by everything that compares or shows runs."""

from __future__ import annotations

import hashlib
import json
import math
import shlex
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from mnist_lab.errors import UserError
from mnist_lab.files import plain, read_json, write_whole
from mnist_lab.metrics import COSTS, NO_METRICS, shown
from mnist_lab.schema import RESULT, mismatch

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Result:
    """The content of result.json, schema version 1.

    Losses are means over images and accuracies fractions in [0, 1]; null stands for what was not measured or is not a
    finite number.

    Attributes:
        schema_version: 1. A field may be added without a new version; none is removed or changes its meaning.
        name: the run's name in its config.
        command: the command line that repeats the run.
        overrides: the Hydra overrides of that command.
        config: the run's whole config, resolved.
        seed: the seed of all randomness.
        started_at: ISO 8601 with time zone.
        code: version of mnist_lab; commit of its git checkout and whether files were changed, or null; and, where the
            config names modules of the user's own, `own`: their files' SHA-256, and `own_repositories`: of each module
            the root, the commit and whether there are changes (untracked files of the module, too), or null.
        packages: versions of Python and of the packages that matter.
        machine: system, processor, cores, torch threads, accelerator and its name, precision, processes, and the peak
            memory of the (first) process until the test's end: memory_gb and accelerator_memory_gb, in 10⁹ bytes, or
            null.
        data: requested, name (the data really used), fallback (why another data set stands in, or null), digest
            (SHA-256 over the files' digests), files with their digests (up to 20 of them), classes, images in train,
            val and test, val_from; of the test images those seen of each class (test_counts, or null), and the digest
            of all with their labels (test_digest, or null).
        model: target, parameters, trainable_parameters.
        history: one row per epoch: epoch, each metric that was logged in it, by name (of a `Classifier` always
            train/loss, train/acc, val/loss, val/acc), lr, seconds.
        test: loss, acc, correct, n, null where the module doesn't measure them; checkpoint ("last" or "best") and the
            epoch that it is of; metrics, all that the test has logged, by name without "test/"; classes, of each its
            name, precision, recall and support (images), null where a quotient has no images, or for another's module.
            Earlier versions have no metrics and no classes: they measured loss and acc.
        seconds: start (from the program's start to the first step), train, test; for a resumed run, those of the
            process that finished it.
        ended: by (max_epochs, max_steps, max_time, early_stopping, or callback for any other), epochs, and steps of the
            optimiser. Empty for runs of earlier versions.
        module: target, the class that trained; steps, "several at a time" or "one at a time"; why, the reason for the
            latter where the class could make several. Empty for runs of earlier versions.
        notes: what readers of the numbers must know: substitute data, a test set used for validation.
        extras: what only some networks have: forward_pass of the neuron.
        repeats: of a run that `rerun` made and that has reproduced another to the last digit, the other's `identity`
            (the first's, where that one repeats another in turn); null for all others.

    The file has one more field, sha256: that of `json.dumps(others, sort_keys=True)`, the others being those above.
    """

    schema_version: int
    name: str
    command: str
    overrides: list[str]
    config: dict[str, Any]
    seed: int
    started_at: str
    code: dict[str, Any]
    packages: dict[str, str]
    machine: dict[str, Any]
    data: dict[str, Any]
    model: dict[str, Any]
    history: list[dict[str, Any]]
    test: dict[str, Any]
    seconds: dict[str, float]
    notes: list[str]
    extras: dict[str, Any]
    repeats: str | None = None
    ended: dict[str, Any] = field(default_factory=dict)
    module: dict[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        measured = ", ".join(f"{name} {shown(name, value)}" for name, value in self.test_metrics.items())
        return f"Result({self.name}, seed {self.seed}, {len(self.history)} epochs: test {measured or 'nothing'})"

    @property
    def identity(self) -> str:
        """Return what tells this run from all others: SHA-256 of its config, seed, start, history and test."""
        parts = ("config", "seed", "started_at", "history", "test")
        return _digest(plain({part: getattr(self, part) for part in parts}))

    @property
    def tested(self) -> dict[str, Any]:
        """Return the history's row of the epoch whose weights were tested."""
        row: dict[str, Any] = self.history[self.test.get("epoch", len(self.history)) - 1]
        return row

    @property
    def test_metrics(self) -> dict[str, float | None]:
        """Return all that the test has measured, by name without "test/"; None: not a finite number."""
        named = ("loss", "acc")
        found: dict[str, float | None] = self.test.get("metrics", dict.fromkeys(named))
        return {name: self.test[name] if name in named else value for name, value in found.items()}

    @property
    def metrics(self) -> list[str]:
        """Return the names of all that was measured, of the test first; `value` gives their values."""
        logged = dict.fromkeys(key for row in self.history for key in row if key not in NO_METRICS)
        return [*(f"test/{name}" for name in self.test_metrics), *logged, *COSTS]

    def value(self, metric: str) -> float | None:
        """Return what the test ("test/NAME"), else the last epoch has measured, or one of `COSTS`.

        None: it was not measured, or is not a finite number.
        """
        if metric in COSTS:
            return self.train_seconds if metric == "seconds" else float(self.model["parameters"])
        stage, _, name = metric.partition("/")
        found = self.test_metrics.get(name) if stage == "test" else self.history[-1].get(metric)
        return float(found) if found is not None and math.isfinite(found) else None

    @property
    def gap(self) -> float | None:
        """Return the accuracy in training minus the test's, in [-1, 1]; None where one of them was not measured."""
        train, test = self.tested.get("train/acc"), self.test["acc"]
        return None if train is None or test is None else float(train - test)

    @property
    def train_seconds(self) -> float:
        """Return the seconds of training; `seconds` has only those of a resumed run's last process."""
        return float(max(self.seconds["train"], sum(row["seconds"] for row in self.history)))

    def save(self, run_dir: Path) -> None:
        """Write RUN/result.json, whole or not at all.

        Raises:
            OSError: the disk is full, or the folder isn't there.
        """
        values = json.loads(json.dumps(plain(asdict(self))))  # as readers of the file will get them
        text = json.dumps(values | {"sha256": _digest(values)}, indent=2, ensure_ascii=False)
        write_whole(run_dir / "result.json", text + "\n")

    @staticmethod
    def load(run_dir: Path) -> Result:
        """Read RUN/result.json.

        Raises:
            UserError: there is no such file, it is damaged, or it has another schema version.
        """
        path = run_dir / "result.json"
        try:
            values = read_json(path)
            if values["schema_version"] != SCHEMA_VERSION:
                raise UserError(
                    f"{path} has schema version {values['schema_version']}; this program reads {SCHEMA_VERSION}"
                )
            if values.pop("sha256", None) not in (None, _digest(values)):
                raise UserError(f"{path} is damaged: its values are not those that its sha256 was made of")
            if (wrong := mismatch(values, RESULT) or _conflict(values)) is not None:
                raise UserError(f"{path} is damaged: {wrong}")
            return Result(**{f.name: values[f.name] for f in fields(Result) if f.name in values})
        except FileNotFoundError:
            raise UserError(f"{run_dir} is no finished run: it has no result.json") from None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path} is damaged: {error!r}") from error


def _digest(values: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _conflict(values: dict[str, Any]) -> str | None:
    """Return which values of a result contradict each other; None: none do."""
    test, epochs = values["test"], len(values["history"])
    if not 1 <= test.get("epoch", epochs) <= epochs:
        return f"it has {epochs} epochs, and none of them was tested"
    if test["n"] == 0 or (test.get("correct") or 0) > (test["n"] or 0):
        return f"test.correct is {test.get('correct')}, of {test['n']} images"
    if (mode := values["config"].get("mode")) not in (None, "min", "max"):
        return f"config.mode is {mode!r}, not min or max"
    try:
        shlex.split(values["command"])
    except ValueError:
        return "command is no command line"
    return None
