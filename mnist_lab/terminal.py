"""Output to the terminal and to the run's log file."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import StringIO
from pathlib import Path
from shlex import quote

from hydra.core.hydra_config import HydraConfig
from rich import get_console
from rich.console import Console, RenderableType
from rich.markup import escape
from rich.panel import Panel
from rich.table import Column, Table

from mnist_lab.errors import printable
from mnist_lab.files import is_sweep
from mnist_lab.metrics import of_stage, shown
from mnist_lab.result import Result
from mnist_lab.targets import writes_tensorboard

log = logging.getLogger(__name__)


class PrintableFormatter(logging.Formatter):
    """Formats messages without the control characters that names of others may have."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the message as text."""
        return printable(super().format(record))


def literal(text: str) -> str:
    """Return a text as rich is to be given it: what looks like markup or a terminal's commands is text."""
    return escape(printable(text))


@contextmanager
def logged(path: Path) -> Iterator[None]:
    """Show messages and write them to a run's log file, as Hydra's logging does for a command.

    Args:
        path: the log file.
    """
    file, console = logging.FileHandler(path, encoding="utf-8"), logging.StreamHandler(sys.stdout)
    file.setFormatter(PrintableFormatter("%(asctime)s %(levelname)s %(message)s"))
    console.setFormatter(PrintableFormatter())
    root, ours = logging.getLogger(), logging.getLogger("mnist_lab")
    level = ours.level
    ours.setLevel(logging.INFO)
    for handler in (file, console):
        root.addHandler(handler)
    try:
        yield
    finally:
        for handler in (file, console):
            root.removeHandler(handler)
        file.close()
        ours.setLevel(level)


def show(renderable: RenderableType) -> None:
    """Show a table or a frame on the terminal, and write it as text to the run's log file."""
    console = get_console()
    console.print(renderable)
    text = StringIO()
    Console(file=text, width=console.width, force_terminal=False, force_jupyter=False).print(renderable)
    to_log_file("\n".join(line.rstrip() for line in text.getvalue().splitlines()))


def to_log_file(text: str) -> None:
    """Write text to the run's log file only, not to the terminal."""
    record = logging.LogRecord(log.name, logging.INFO, __file__, 0, "\n" + text, None, None)
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.FileHandler):
            handler.handle(record)


def warn(messages: list[str]) -> None:
    """Show messages in a frame, so that nobody misses them."""
    if messages:
        show(
            Panel(
                "\n".join(f"• {literal(message)}" for message in messages),
                title="note",
                title_align="left",
                border_style="yellow",
            )
        )


def metrics_table(title: str, rows: Sequence[tuple[str, Mapping[str, float | None]]]) -> Table:
    """Return a table with a column for each metric.

    Args:
        title: the table's title.
        rows: a name, and metrics by theirs, without the stage; None: not a finite number.
    """
    names = list(dict.fromkeys(name for _, metrics in rows for name in metrics))
    columns = [Column(literal("accuracy" if name == "acc" else name), justify="right") for name in names]
    table = Table("", *columns, title=literal(title), title_justify="left")
    for row, metrics in rows:
        table.add_row(literal(row), *(shown(name, metrics[name]) if name in metrics else "" for name in names))
    return table


def add_text(table: Table, name: str, text: str, column: str) -> None:
    """Add a row with a text in one column."""
    table.add_row(name, *(text if each.header == column else "" for each in table.columns[1:]))


def show_result(result: Result) -> None:
    """Show the small table at the end of a run, and the notes on its result."""
    row = result.tested
    which = "last epoch" if row is result.history[-1] else f"epoch {row['epoch']}, the best"
    n = f"{result.test['n']:,} images of " if result.test["n"] is not None else ""
    stages = {"train": f"train, {which}", "val": f"validation, {which}", "": which}
    rows = [(name, of_stage(row, stage)) for stage, name in stages.items()]
    rows.append((f"test, {n}{result.data['name']}", result.test_metrics))
    rows = [(name, metrics) for name, metrics in rows if metrics]
    everything = list(dict.fromkeys(metric for _, metrics in rows for metric in metrics))
    wide, more = (everything[:4], []) if len(everything) <= 4 else (everything[:2], everything[2:])
    table = metrics_table(
        result.name, [(name, {key: value for key, value in metrics.items() if key in wide}) for name, metrics in rows]
    )
    if (gap := result.gap) is not None:
        add_text(table, "gap, train − test", f"{100 * gap:+.2f} points", "accuracy")
    table.add_section()
    length = ", ".join(f"{(n := result.ended[unit]):,} {unit if n != 1 else unit[:-1]}" for unit in ("epochs", "steps"))
    add_text(table, length, _ended_by(result), str(table.columns[-1].header))
    show(table)
    if more:
        of_each = [(key, {name.partition(",")[0]: found[key] for name, found in rows if key in found}) for key in more]
        show(metrics_table("", of_each))
    limit = result.config["trainer"].get("max_steps", -1)
    if limit not in (-1, None) and result.ended["by"] != "max_steps":
        log.info(f"trainer.max_steps={limit} was not reached: {_ended_by(result)}, after {result.ended['steps']} steps")
    warn(result.notes)


def _ended_by(result: Result) -> str:
    by, asked = result.ended["by"], result.config["trainer"]
    limit = {"max_epochs": f"max_epochs={asked['max_epochs']}", "max_steps": f"max_steps={asked.get('max_steps')}"}
    return f"ended by {limit.get(by, 'a callback' if by == 'callback' else by)}"


def show_where(result: Result, run_dir: Path, report: Path | None) -> None:
    """Show how long a run took, and where to look next.

    Args:
        result: the run's.
        run_dir: the run's folder.
        report: its report page; None if it has none.
    """
    folder = relative(run_dir)
    page = f"report       {relative(report)}\n" if report is not None else ""
    command = f"python -m mnist_lab dashboard {quote(f'dir={folder.parent}')}"
    curves = f"curves       {command}\n" if writes_tensorboard(result.config["logger"]) else ""
    kept = (run_dir / "checkpoints").exists()  # trainer.enable_checkpointing=false
    again = f"\ntest again   python -m mnist_lab test {quote(f'run={folder}')}" if kept else ""
    log.info(
        "{start:.1f} s to start, {train:.1f} s to train, {test:.1f} s to test\n".format(**result.seconds)
        + f"all of it    {folder}\n{page}{curves}".rstrip()
        + again
    )


def to_go_on(run_dir: Path) -> str:
    """Return the command that goes on with a run, or with the sweep whose trial it is, as a shell takes it."""
    folder = run_dir.parent if is_sweep(run_dir.parent) else run_dir
    return f"python -m mnist_lab resume {quote(str(relative(folder)))}"


def relative(folder: Path) -> Path:
    """Return the path relative to the folder that the user is in, if it lies below that; else unchanged.

    With hydra.job.chdir=true a job has another current folder than the user.
    """
    here = Path(HydraConfig.get().runtime.cwd) if HydraConfig.initialized() else Path.cwd()
    return folder.relative_to(here) if folder.is_relative_to(here) else folder
