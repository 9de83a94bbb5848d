"""Exceptions raised by code that the user named: told in one line. Those raised by this package stay tracebacks."""

from __future__ import annotations

import inspect
import re
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

from hydra.errors import HydraException, InstantiationException
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mnist_lab.composing import run_config
from mnist_lab.errors import ProcessLost, UserError
from mnist_lab.files import disk_fault, is_the_users
from mnist_lab.folders import has_progress
from mnist_lab.processes import is_cut_off, is_helper_process

_PACKAGE = Path(__file__).resolve().parent
_OURS_TOO = ("mnist_lab", "torch", "lightning", "hydra", "omegaconf")
"""Packages that this program calls itself: of these only the named classes and functions are the user's."""
_WORKER = "Original Traceback (most recent call last):"
"""Text that PyTorch adds to the message of an exception in a DataLoader's worker process."""


@dataclass(frozen=True)
class Target:
    """A class or function that a config names.

    Attributes:
        key: the config section that names it, such as "callbacks.stats".
        name: its `_target_`.
        value: the class or function itself.
    """

    key: str
    name: str
    value: Any

    def __str__(self) -> str:
        return f"{self.key} ({self.name.rpartition('.')[2]})"

    @property
    def package(self) -> str:
        """The top-level package that it belongs to."""
        return self.name.partition(".")[0]

    def runs_in(self, frame: FrameType) -> bool:
        """Return whether a frame executes a method of the class, or the function."""
        if self.package == "mnist_lab":
            return False
        if isinstance(self.value, type):
            owner = frame.f_locals.get("self", frame.f_locals.get("cls"))
            return owner is self.value or isinstance(owner, self.value)
        return frame.f_code is getattr(inspect.unwrap(self.value), "__code__", None)

    def is_called_by(self, frame: FrameType) -> bool:
        """Return whether a frame calls what Hydra made of the target and `_partial_: true`."""
        owner = frame.f_locals.get("self")
        return isinstance(owner, partial) and owner.func is self.value


@contextmanager
def errors_in_one_line(cfg: DictConfig | None, run_dir: Path | None = None) -> Iterator[None]:
    """Turn an exception from code that a config names into a `UserError` of one line.

    Where the run's folder is kept, the traceback is written to its log file.

    Args:
        cfg: the config; None where it is not known: then only exceptions from files of the user's own are told so.
        run_dir: the run's folder; None where there is none to keep.

    Raises:
        UserError: code that the config names raised an exception. It names the config key, the exception's class, its
            message, and the line of the user's own file.
        Exception: anything else is raised unchanged: bugs of this package, faults of the disk, lost processes.
    """
    try:
        yield
    except ProcessLost:
        raise
    except Exception as error:
        if isinstance(error, UserError):
            if _WORKER not in str(error):
                raise
            raise UserError(_last_line(error).partition("UserError: ")[2]) from error
        if disk_fault(error, run_dir) is not None or is_cut_off(error) or (line := explain(cfg, error)) is None:
            raise
        if run_dir is None or is_helper_process() or not has_progress(run_dir):
            raise UserError(f"{line}\nHYDRA_FULL_ERROR=1 shows the traceback") from error
        from mnist_lab.terminal import relative, to_go_on, to_log_file

        to_log_file("".join(traceback.format_exception(error)).rstrip())
        log = relative(run_dir / "run.log")
        raise UserError(f"{line}\nThe traceback is in {log}. Once this is mended: {to_go_on(run_dir)}") from error


def explain(cfg: DictConfig | None, error: Exception) -> str | None:
    """Return one line about an exception if code that a config names raised it.

    The frames after the last one of this package decide. The layers in `mnist_lab.models` and `mnist_lab.fast` count as
    the code of whoever calls them: users build networks of them.

    Args:
        cfg: the config; None where it is not known.
        error: the exception, with its traceback.

    Returns:
        The config key, the exception's class and message, and the line in the user's file; None for a bug of this
        package.
    """
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    lines = [line for _, line in traceback.walk_tb(error.__traceback__)]
    while isinstance(error, InstantiationException) and isinstance(error.__cause__, Exception):
        error = error.__cause__
        for frame, line in traceback.walk_tb(error.__traceback__):
            frames.append(frame)
            lines.append(line)
    files = [(frame.f_code.co_filename, line) for frame, line in zip(frames, lines, strict=True)]
    last = max((n for n, (name, _) in enumerate(files) if _is_ours(name)), default=-1)
    frames, files = frames[last + 1 :], files[last + 1 :]
    config = bool(frames) and str(frames[-1].f_globals.get("__name__")).startswith("hydra._internal.instantiate")
    if config or isinstance(error, HydraException | OmegaConfBaseException):
        return _message(error)
    targets = [] if cfg is None else list(_targets(OmegaConf.to_container(run_config(cfg))))
    if _WORKER in str(error):
        return _explain_worker(targets, error)
    own = [(name, line) for name, line in files if is_the_users(name)]
    target = _target_of(frames, [target for target in targets if target.key != "trainer"])
    if target is None and not own:
        target = _target_of(frames, [target for target in targets if target.key == "trainer"])
    if target is None and not own:
        return None
    where = f" ({Path(own[-1][0]).name}, line {own[-1][1]})" if own else ""
    return f"{target or 'your code'}: {_message(error)}{where}"


def _target_of(frames: Sequence[FrameType], targets: Sequence[Target]) -> Target | None:
    """Return the target whose code the frames execute, the innermost first; None if there is none."""
    for target in targets if frames else ():
        if target.is_called_by(frames[-1]):  # it does not take what it is given, or has no frame, as a builtin
            return target
    for frame in reversed(frames):
        for target in targets:
            if target.runs_in(frame):
                return target
    for frame in reversed(frames):
        package = str(frame.f_globals.get("__name__")).partition(".")[0]
        for target in targets:
            if target.package == package not in _OURS_TOO:
                return target
    from torch import nn  # here, because this module is imported before torch is

    # A function may have made the network of PyTorch's layers.
    called = next((owner for f in frames if isinstance(owner := f.f_locals.get("self"), nn.Module)), None)
    if called is not None and not type(called).__module__.startswith("mnist_lab."):
        return next((t for t in targets if t.key == "model" and t.package != "mnist_lab"), None)
    return None


def _explain_worker(targets: Sequence[Target], error: Exception) -> str | None:
    """Return one line about an exception that a DataLoader's worker process raised, known by its text alone."""
    files = re.findall(r'^ *File "(.+)", line (\d+), in ', str(error), re.MULTILINE)
    if not files or _is_ours(files[-1][0]):
        return None
    own = [(name, line) for name, line in files if is_the_users(name)]
    of_data = [target for target in targets if target.key.startswith("data.") and target.package != "mnist_lab"]
    of_data.sort(key=lambda target: target.key.startswith("data.transform"))  # which is what runs there most
    where = f" ({Path(own[-1][0]).name}, line {own[-1][1]})" if own else ""
    return f"{of_data[-1] if of_data else 'data'}: {_last_line(error)}{where}"


def _targets(node: Any, key: str = "") -> Iterator[Target]:
    """Yield what a config names, outer sections first."""
    if isinstance(node, dict) and isinstance(name := node.get("_target_"), str):
        with suppress(Exception):  # it doesn't exist, or its module can't be imported: then none of its code runs
            yield Target(key, name, get_object(name))
    parts = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for name, part in parts:
        yield from _targets(part, f"{key}.{name}" if key else str(name))


def _is_ours(filename: str) -> bool:
    path = Path(filename)
    users = (_PACKAGE / "models", _PACKAGE / "fast" / "layers.py")
    return path.is_relative_to(_PACKAGE) and not any(map(path.is_relative_to, users))


def _message(error: Exception) -> str:
    """Return an exception's class and message in one line."""
    text = " ".join(str(error).split())[:500]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _last_line(error: Exception) -> str:
    return str(error).strip().splitlines()[-1]
