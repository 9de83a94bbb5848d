"""Output of a running sweep: a table in a terminal, and one line per trial elsewhere and in sweep.log."""

from __future__ import annotations

import math
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.live import Live as RichLive
from rich.table import Column, Table

from mnist_lab.errors import printable
from mnist_lab.sweep.study import STATES, trials_of
from mnist_lab.terminal import literal, relative

if TYPE_CHECKING:
    import optuna
    from optuna.trial import FrozenTrial

ROWS = 12


class Live:
    """Shows a study's progress from a thread of its own while the launcher runs trials.

    Args:
        study: the study.
        options: the config's section `sweep`.
        folder: the sweep's folder.
    """

    def __init__(self, study: optuna.Study, options: dict[str, Any], folder: Path) -> None:
        self.study, self.options = study, options
        self.folder = relative(folder)
        self.log = folder / "sweep.log"
        self.console = Console()
        self.objective = self._list("objective")[0]
        self.maximize = self._list("direction")[0] == "maximize"
        self._told = {t.number for t in trials_of(study) if t.state.is_finished()}
        self._before = len(self._told)
        self._start = time.perf_counter()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def _list(self, key: str) -> list[str]:
        value = self.options[key]
        return value if isinstance(value, list) else [value]

    def __enter__(self) -> Live:
        self._tell(f"{self.folder}: {self._count()}")
        self._rich = RichLive(console=self.console, auto_refresh=False, transient=True)
        if self.console.is_terminal:
            self._rich.start()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        if self.console.is_terminal:
            self._rich.stop()
        self._tell_news()

    def end(self) -> None:
        """Print how many trials ended in each state."""
        self._tell(f"{self.folder}: {self._count()}")

    def _count(self) -> str:
        states = [STATES[trial.state.name] for trial in trials_of(self.study)]
        total = self.options["trials"] or len(states)
        found = ", ".join(f"{states.count(state)} {state}" for state in STATES.values() if state in states)
        return f"{total} trial{'s' * (total != 1)}" + (f", {found}" if found else "")

    def _watch(self) -> None:
        while not self._over.wait(1.0):
            self._tell_news()
            if self.console.is_terminal:
                self._rich.update(self._table(), refresh=True)

    def _tell_news(self) -> None:
        for trial in trials_of(self.study):
            if trial.state.is_finished() and trial.number not in self._told:
                self._told.add(trial.number)
                best = self.best()
                words = [f"trial {trial.number}", self.differs(trial), STATES[trial.state.name]]
                if trial.state.name == "COMPLETE":
                    words.append(f"{self.objective} {trial.values[0]:.4f}")
                if trial.state.name == "FAIL":
                    words.append(" ".join(str(trial.user_attrs.get("error")).split())[:200])
                if best is not None:
                    words.append(f"best {best.values[0]:.4f} (trial {best.number})")
                if (left := self._time_left()) is not None:
                    words.append(f"{left} left")
                self._tell("   ".join(filter(None, words)))

    def _tell(self, line: str) -> None:
        line = printable(line)
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)
        with suppress(OSError), self.log.open("a", encoding="utf-8") as file:  # a full disk stops the trials themselves
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}\n")

    @staticmethod
    def differs(trial: FrozenTrial) -> str:
        """Return what distinguishes a trial from the others: `optimizer.lr=0.01 seed=3`."""
        return " ".join(
            f"{name}={f'{value:.4g}' if isinstance(value, float) else value}" for name, value in trial.params.items()
        )

    def best(self) -> FrozenTrial | None:
        """Return the complete trial with the best first objective; None if no trial is complete."""
        done = [trial for trial in trials_of(self.study) if trial.state.name == "COMPLETE"]
        return (max if self.maximize else min)(done, key=lambda trial: trial.values[0], default=None)

    def _time_left(self) -> str | None:
        done = len(self._told) - self._before
        total = self.options["trials"] or len(trials_of(self.study))
        if done == 0 or total <= len(self._told):
            return None
        seconds = (time.perf_counter() - self._start) / done * (total - len(self._told))
        minutes = math.ceil(seconds / 60)
        return f"{seconds:.0f} s" if seconds < 90 else f"{minutes // 60} h {minutes % 60} min".removeprefix("0 h ")

    def _table(self) -> Table:
        right: Any = {"justify": "right"}
        table = Table("trial", "what differs", "state", Column("epoch", **right), Column(self.objective, **right))
        trials = trials_of(self.study)
        running = [trial for trial in trials if trial.state.name == "RUNNING"]
        done = [trial for trial in trials if trial.state.is_finished()]
        for trial in sorted([*done[-ROWS:], *running[:ROWS]], key=lambda trial: trial.number)[-ROWS:]:
            value = trial.values[0] if trial.values else trial.intermediate_values.get(trial.last_step)  # type: ignore[arg-type]
            table.add_row(
                str(trial.number),
                literal(self.differs(trial)),
                STATES[trial.state.name],
                str(trial.user_attrs.get("epoch", "")),
                "" if value is None else f"{value:.4f}",
            )
        best, left = self.best(), self._time_left()
        table.caption = self._count() + (f", best {best.values[0]:.4f} (trial {best.number})" if best else "")
        table.caption += f", {left} left" if left else ""
        return table
