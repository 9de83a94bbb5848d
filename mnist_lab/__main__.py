"""The command line: `python -m mnist_lab [verb] [hydra overrides]`. Imports nothing heavy; no verb means train."""

from __future__ import annotations

import atexit
import gc
import io
import logging
import os
import shutil
import signal
import sys
import threading
import time
import warnings
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from tempfile import mkdtemp
from traceback import extract_tb
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from lightning import Callback
    from omegaconf import DictConfig

    from mnist_lab.result import Result

STARTED = time.perf_counter()

VERBS = {
    "test": "mnist_lab.evaluate",
    "report": "mnist_lab.show.report",
    "explore": "mnist_lab.show.explore",
    "export": "mnist_lab.show.export",
    "dashboard": "mnist_lab.show.dashboard",
    "predict": "mnist_lab.show.predict",
    "draw": "mnist_lab.show.draw",
    "resume": "mnist_lab.resume",
    "rerun": "mnist_lab.rerun",
    "compare": "mnist_lab.sweep.compare",
    "ensemble": "mnist_lab.show.ensemble",
    "articles": "mnist_lab.articles",
    "bench": "mnist_lab.bench",
}
"""Each verb but `train`, and the module whose function of that name is called with the words that follow."""


def main() -> None:
    """Runs the verb that the command line names."""
    from mnist_lab.errors import ProcessLost, UserError, closest
    from mnist_lab.files import disk_fault
    from mnist_lab.imports import TorchmetricsWithoutSciPy
    from mnist_lab.processes import is_helper_process

    if "OMP_WAIT_POLICY" not in os.environ:  # read when PyTorch is imported
        # OpenMP's threads wait for one another without leaving their cores, by default for milliseconds: beside another
        # run that is mostly for a thread which has none. Between a step's operations it takes less than 0.1 ms.
        os.environ.setdefault("GOMP_SPINCOUNT", "6000")
    sys.meta_path.insert(0, TorchmetricsWithoutSciPy())
    gc.disable()  # until all is imported, which leaves next to nothing to collect: looking for it would take 0.8 s
    atexit.register(gc.unfreeze)
    # A full disk stops the run in one line; the log and TensorBoard's thread, whose error its next event raises, would
    # show tracebacks besides.
    logging.raiseExceptions = False
    threading.excepthook = lambda end: None if isinstance(end.exc_value, OSError) else threading.__excepthook__(end)
    warnings.filterwarnings("ignore", "Image size .* exceeds limit")  # Pillow's: read_image says it in its own words
    for stream in (sys.stdout, sys.stderr):  # file names may hold any characters, and a log file's encoding lack some
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    words, verbs = sys.argv[1:], ("train", *VERBS)
    verb = words.pop(0) if words and words[0] in verbs else "train"
    try:
        if verb == "train" and words and words[0].isidentifier():
            raise UserError(
                f"{words[0]}: there is no such verb.{closest(words[0], verbs)} The verbs are {', '.join(verbs)}"
            )
        for before, word in pairwise(words):
            if verb == "train" and word in VERBS and not before.startswith("-"):
                raise UserError(f"{word}: the verb comes first, python -m mnist_lab {word} ...")
        if is_helper_process() and verb not in ("train", "resume", "rerun"):
            pass  # torchrun and SLURM start as many as they are told to, and these verbs are the work of one
        elif verb == "train" or any(word in ("-h", "--help") for word in words):
            train([sys.argv[0], *words])
        else:
            getattr(import_module(VERBS[verb]), verb)(words)
        sys.stdout.flush()
    except (ProcessLost, UserError) as error:
        fail(error)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # whoever read the output has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:
        if (fault := disk_fault(error)) is not None:
            fail(UserError(f"{fault.filename or 'the disk'}: {fault.strerror}"))
        from mnist_lab.user_code import explain

        if (line := explain(None, error)) is None:
            raise
        fail(UserError(line))
    leave()


def train(argv: list[str], fresh: bool = True) -> None:
    """Checks the command, and hands it to Hydra, which calls `job` once, or once for each job of a multirun.

    Args:
        argv: the program's name and Hydra's command line.
        fresh: whether the command's folder must be empty or new; each job's must be in any case.
    """
    import hydra
    from hydra._internal import utils
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    from mnist_lab.command import check_command, quoted
    from mnist_lab.composing import run_config
    from mnist_lab.errors import ProcessLost, UserError, one_line
    from mnist_lab.files import CONF_DIR, folder_lock, is_sweep
    from mnist_lab.folders import kept_or_nothing
    from mnist_lab.processes import helping, is_helper_process, refuse_launcher
    from mnist_lab.rules import check

    typed = argv[1:]
    began = False  # until a job has, what Hydra can't do is a mistake in the words

    def job(cfg: DictConfig) -> None:
        """One run in the folder that Hydra has made for it."""
        from hydra.core.hydra_config import HydraConfig

        nonlocal began
        began = True
        hydra_cfg = HydraConfig.get()
        run_dir = Path(hydra_cfg.runtime.output_dir)
        overrides: list[str] = OmegaConf.to_container(hydra_cfg.overrides.task)  # type: ignore[assignment]
        sweep = multirun and is_sweep(run_dir.parent)
        of_a_run = ("config.yaml", "history.csv", "checkpoints", "result.json")
        if not (sweep or is_helper_process()) and any((run_dir / name).exists() for name in of_a_run):
            fail(UserError(f"{run_dir} has the files of another run: each job of a sweep needs a folder of its own"))
        try:
            with kept_or_nothing(run_dir, until=None if is_helper_process() else existing):
                from mnist_lab.fast.process import flush_denormals
                from mnist_lab.run import run
                from mnist_lab.user_code import errors_in_one_line

                flush_denormals()

                if not gc.isenabled():
                    gc.freeze()
                    gc.enable()
                words = typed
                started: float | None = STARTED
                report = cfg.get("report", True)  # a primary config of the user's own may not have it
                if multirun:
                    flags = [("--config-path", args.config_path), ("--config-dir", args.config_dir)]
                    flags += [("--config-name", args.config_name)]
                    searched = [word for flag, value in flags if value is not None for word in (flag, value)]
                    words, started, report = [*searched, *overrides], None, False
                if sweep:
                    from mnist_lab.sweep.trial import forget_other, run_trial

                    def trial(callbacks: list[Callback], remarks: list[str]) -> Result | None:
                        check(cfg)  # how its values fit together: alone they have been checked
                        forget_other(run_dir, run_config(cfg))
                        return run(run_config(cfg), run_dir, overrides, words, callbacks=callbacks, remarks=remarks)

                    run_trial(run_dir, trial)
                    return
                alone = helping() if is_helper_process() else folder_lock(run_dir, str(run_dir))
                with alone, errors_in_one_line(cfg, run_dir):
                    check(cfg)
                    run(run_config(cfg), run_dir, overrides, words, started, report=report)
        except (ProcessLost, UserError) as error:
            fail(error)

    if is_helper_process():  # started beside the first by torchrun or SLURM: that one has the folder
        aside = mkdtemp()
        atexit.register(shutil.rmtree, aside, ignore_errors=True)
        argv = [*argv, f"hydra.run.dir={quoted(Path(aside))}", "hydra.output_subdir=null"]
    parser = utils.get_args_parser()
    parser.error = lambda message: fail(UserError(message))  # type: ignore[method-assign]
    args = parser.parse_args(argv[1:])
    multirun = args.multirun or "hydra.mode=MULTIRUN" in args.overrides
    if multirun:
        refuse_launcher("a multirun")
    runs = not (args.hydra_help or args.shell_completion or args.help or args.cfg or args.info)
    folder, existing = Path.cwd(), None
    if not (args.hydra_help or args.shell_completion or args.help):
        folder, existing = check_command(args, multirun, fresh and runs)
    if runs and not is_helper_process():
        argv = [*argv, f"hydra.{'sweep' if multirun else 'run'}.dir={quoted(folder)}"]
    sys.argv = argv
    utils.run_and_report = lambda func: func()  # Hydra would print a traceback and end: main() knows better words
    with kept_or_nothing(folder, until=existing if runs and fresh else None):
        try:
            hydra.main(config_path=str(CONF_DIR), config_name="config", version_base="1.3")(job)()
        except (HydraException, OmegaConfBaseException, ValueError) as error:
            if began:
                raise
            raise UserError(one_line(error)) from error
        except AssertionError as error:  # of Hydra, which says no more than what it asserts
            if began:
                raise
            raise UserError(f"Hydra can't do that: {extract_tb(error.__traceback__)[-1].line}") from error


def leave() -> None:
    """Ends the program with exit status 0, without taking apart what was imported: that takes 1.3 s and 0.1 GB."""
    if any(not thread.daemon for thread in threading.enumerate() if thread is not threading.main_thread()):
        return  # somebody is still at work, and ends in an order of his own
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # all is done: there is nothing left for Ctrl-C to stop
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def fail(error: Exception) -> NoReturn:
    """Ends the program with an error's message; HYDRA_FULL_ERROR=1 shows where it was found.

    Args:
        error: a mistake, exit status 2; or ProcessLost, exit status 1.
    """
    from mnist_lab.errors import ProcessLost
    from mnist_lab.processes import is_helper_process

    if os.environ.get("HYDRA_FULL_ERROR") == "1":
        raise error
    if not is_helper_process():  # the first says the same; what is wrong in this process alone, `helping` says
        print(f"error: {error}", file=sys.stderr)
    sys.exit(1 if isinstance(error, ProcessLost) else 2)


if __name__ == "__main__":
    main()
