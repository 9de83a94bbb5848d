"""The verb `export`: writes a run's network to a file that other programs can use."""

from __future__ import annotations

import importlib.util

from mnist_lab.errors import UserError
from mnist_lab.folders import check_folder
from mnist_lab.rules import one_of
from mnist_lab.run_folder import checkpoint_of, load_config
from mnist_lab.words import divide, path_of

USAGE = (
    "use: python -m mnist_lab export run=DIR [format=onnx|torch_export|safetensors] [checkpoint=last|best] [to=FILE] "
    "[key=value of the run's config ...]"
)
PACKAGES = {"onnx": ("onnx", "onnxruntime", "onnxscript"), "torch_export": (), "safetensors": ("safetensors",)}
"""The formats, each with the further packages that it needs."""


def export(words: list[str]) -> None:
    """Write a run's network to a file, check the file against the run on the whole test set, and show how to use it.

    Args:
        words: `run=DIR`, `format=onnx` (default), `torch_export` or `safetensors`, `checkpoint=last` or `best`
            (default: the one that the run was tested with), `to=FILE` (default: in RUN/export), and values of the
            run's own config to replace, such as `data.root=DIR`.

    Raises:
        UserError: there is no such run, checkpoint or format, a package is missing, or a word is not understood.
        SystemExit: with status 1: the file's probabilities differ from the run's, and it was not kept.
    """
    defaults = {"run": "", "format": "onnx", "checkpoint": "", "to": ""}
    options, overrides = divide(words, defaults, USAGE, needed=("run",))
    kind = options["format"]
    one_of(*PACKAGES).check("format", kind)
    run_dir = path_of(options["run"])
    cfg = load_config(run_dir, overrides)
    checkpoint = options["checkpoint"] or cfg.test_checkpoint
    checkpoint_of(run_dir, checkpoint)
    missing = [name for name in PACKAGES[kind] if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f'format={kind} needs {" and ".join(missing)}: pip install -e ".[export]"')
    target = path_of(options["to"]) if options["to"] else None
    if target is not None:
        check_folder("to", str(target.parent), fresh=False)
        if target.is_dir():
            raise UserError(f"to={target} is a folder: a file's name is needed")

    from mnist_lab.show.portable import write_checked
    from mnist_lab.trained import load_classifier

    write_checked(load_classifier(run_dir, checkpoint, overrides, device="cpu"), kind, target)
