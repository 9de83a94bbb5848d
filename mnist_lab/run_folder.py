"""A run's folder: its config, what was asked for, its checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mnist_lab.composing import use_absolute_root
from mnist_lab.errors import UserError
from mnist_lab.files import DEEPEST, check_contents, read_json, read_text, unchanged
from mnist_lab.keys import unknown_key_hint
from mnist_lab.rules import check, one_of
from mnist_lab.targets import with_current_names
from mnist_lab.trust import check_harmless, is_sealed

LARGEST = 2**20
"""Most bytes of a config."""


def checkpoint_of(run_dir: Path, name: str) -> Path:
    """Return the file of a run's checkpoint.

    Raises:
        UserError: there is none of that name.
    """
    one_of("last", "best").check("checkpoint", name)
    path = run_dir / "checkpoints" / f"{name}.ckpt"
    if not path.exists():
        there = ", ".join(sorted(p.stem for p in path.parent.glob("*.ckpt"))) or "none"
        raise UserError(f"{path}: there is no such checkpoint. Those of this run: {there}")
    return path


def asked_of(run_dir: Path) -> dict[str, Any]:
    """Return a run's `command`, `overrides`, `report`, and the `seal` of its config. Empty where that is lost."""
    try:
        asked = read_json(run_dir / "run.json")
    except (OSError, ValueError):
        return {}
    return asked if isinstance(asked, dict) else {}


def parse_config(text: str) -> Any:
    """Return the content of a config file that somebody else may have written, as dictionaries and lists.

    Raises:
        yaml.YAMLError: it is no YAML, or repeats what stands elsewhere in it, which could fill the memory.
        ValueError: lists and dictionaries lie too deep in one another.
    """
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if isinstance(event, yaml.AliasEvent) or depth > DEEPEST:
            raise ValueError(f"it has an alias, or more than {DEEPEST} lists in one another")
    return OmegaConf.to_container(OmegaConf.create(text))


def load_config(run_dir: Path, overrides: list[str]) -> DictConfig:
    """Read a run's config, replace values in it, and check it.

    Raises:
        UserError: there is no such run, or no such key, or a value is not allowed; or it comes from somebody else and
            would run code of theirs.
    """
    if not run_dir.is_dir():
        raise UserError(f"run={run_dir}: there is no such folder")
    check_contents(run_dir)
    path = run_dir / "config.yaml"
    if not path.is_file():
        raise UserError(f"run={run_dir} is not the folder of a run: it has no config.yaml")
    try:
        text = read_text(path, LARGEST)
        content = parse_config(text)
        if not is_sealed(text, asked_of(run_dir).get("seal")):
            check_harmless(path, content)
        if not unchanged(text):
            raise UserError(f"{path} is not as the run wrote it. To use it as it is, delete its last line")
        cfg = OmegaConf.create(with_current_names(content))
        assert isinstance(cfg, DictConfig)
        if "data" in cfg and "transform" in cfg.data:
            cfg.data.setdefault("eval_transform", None)  # which older runs don't have
        OmegaConf.set_struct(cfg, True)
        for override in overrides:
            key = override.partition("=")[0]
            try:
                cfg.merge_with_dotlist([override])
            except (OmegaConfBaseException, AttributeError):
                raise UserError(f"{key}: the run has no such option.{unknown_key_hint(key, cfg)}") from None
            except yaml.YAMLError:
                raise UserError(f"{override}: not understood") from None
    except (yaml.YAMLError, OmegaConfBaseException, ValueError, OSError, AssertionError) as error:
        raise UserError(f"{path} can't be read: {' '.join(str(error).split())}") from error
    use_absolute_root(cfg)
    check(cfg)
    return cfg
