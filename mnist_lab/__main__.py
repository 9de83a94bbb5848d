"""The command line: `python -m mnist_lab [verb] [words]`. No verb means train. Imports nothing heavy."""

from __future__ import annotations

import os
import sys
from importlib import import_module
from itertools import pairwise

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
OF_ALL_PROCESSES = ("train", "resume", "rerun")
"""Verbs whose work the processes share that torchrun or SLURM starts; the others are the work of the first."""


def main() -> None:
    """Run the verb that the command line names, and end the program: with status 130 on Ctrl-C."""
    try:
        _run_verb()
    except KeyboardInterrupt:
        sys.exit(130)


def _run_verb() -> None:
    from mnist_lab.errors import ProcessLost, UserError, interrupted
    from mnist_lab.files import disk_fault
    from mnist_lab.processes import fail, is_helper_process
    from mnist_lab.startup import leave, prepare_process  # first: it takes the time

    prepare_process()
    try:
        verb, words = divide(sys.argv[1:])
        try:
            if verb in OF_ALL_PROCESSES or not is_helper_process():
                getattr(import_module(VERBS.get(verb, "mnist_lab.cli")), verb)(words)
        finally:
            sys.stdout.flush()  # here, where a closed pipe is handled; --help ends the program by SystemExit
    except (ProcessLost, UserError) as error:
        fail(error)
    except BrokenPipeError:  # whoever read the output has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:
        if interrupted(error):
            raise KeyboardInterrupt from error
        if (fault := disk_fault(error)) is not None:
            fail(UserError(f"{fault.filename or 'the disk'}: {fault.strerror}"))
        from mnist_lab.user_code import explain

        if (line := explain(None, error)) is None:
            raise
        fail(UserError(line))
    leave()


def divide(words: list[str]) -> tuple[str, list[str]]:
    """Return the verb and the words that follow it. The verb `train` answers `--help`, for all verbs.

    Raises:
        UserError: there is no such verb, or the verb doesn't come first.
    """
    from mnist_lab.errors import UserError, closest

    verbs = ("train", *VERBS)
    verb = words.pop(0) if words and words[0] in verbs else "train"
    if verb != "train":
        return ("train" if any(word in ("-h", "--help") for word in words) else verb), words
    if words and words[0].isidentifier():
        raise UserError(
            f"{words[0]}: there is no such verb.{closest(words[0], verbs)} The verbs are {', '.join(verbs)}"
        )
    for before, word in pairwise(words):
        if word in VERBS and not before.startswith("-"):
            raise UserError(f"{word}: the verb comes first, python -m mnist_lab {word} ...")
    return verb, words


if __name__ == "__main__":
    main()
