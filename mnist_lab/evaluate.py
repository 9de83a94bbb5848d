"""The verb `test`: a finished run's checkpoint on its test set, again."""

from __future__ import annotations

from mnist_lab.run_folder import checkpoint_of, load_config
from mnist_lab.words import divide, path_of

USAGE = "use: python -m mnist_lab test run=DIR [checkpoint=last|best] [key=value of the run's config ...]"


def test(words: list[str]) -> None:
    """Test a run's checkpoint, and show the metrics beside the recorded ones.

    Args:
        words: `run=DIR`, `checkpoint=last` or `checkpoint=best` (default: the one that the run was tested with), and
            values of the run's own config to replace, such as `data.root=DIR` or `trainer.accelerator=cpu`.

    Raises:
        UserError: there is no such run or checkpoint, or a word is not understood.
    """
    options, overrides = divide(words, {"run": "", "checkpoint": ""}, USAGE, needed=("run",))
    run_dir = path_of(options["run"])
    cfg = load_config(run_dir, overrides)
    path = checkpoint_of(run_dir, options["checkpoint"] or cfg.test_checkpoint)

    from mnist_lab.run import test_again
    from mnist_lab.user_code import errors_in_one_line

    with errors_in_one_line(cfg):
        test_again(cfg, run_dir, path)
