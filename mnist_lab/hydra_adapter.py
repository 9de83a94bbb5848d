"""Private parts of Hydra 1.3, each with the public way that is missing. No other module uses private names of Hydra."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any, NoReturn

from hydra import version
from hydra._internal import utils
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import CachingConfigRepository, IConfigRepository
from hydra._internal.hydra import Hydra
from hydra.core.config_search_path import ConfigSearchPath, SearchPathQuery
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.plugins.config_source import ConfigResult
from hydra.types import RunMode
from omegaconf import DictConfig

from mnist_lab.errors import UserError
from mnist_lab.files import CONF_DIR

__all__ = [
    "Hydra",
    "hydra_with",
    "let_errors_through",
    "parse_arguments",
    "read_configs_once",
    "run_composed",
    "take_mode_from_words",
]


def parse_arguments(words: list[str]) -> Namespace:
    """Parse Hydra's command line: flags, and the overrides as `overrides`.

    Missing in public: Hydra parses `sys.argv` only when the function that `@hydra.main` decorates is called, too late
    for a check that comes before anything is written.

    Raises:
        UserError: a flag is unknown or lacks its value.
    """

    def fail(message: str) -> NoReturn:
        raise UserError(message)

    parser = utils.get_args_parser()
    parser.error = fail  # type: ignore[method-assign]
    return parser.parse_args(words)


def let_errors_through() -> None:
    """Have `@hydra.main` raise every exception, for the program to report in its own words.

    Missing in public: Hydra prints a traceback of its own and exits with status 1, unless HYDRA_FULL_ERROR is set,
    which the processes that the program starts would inherit.
    """
    utils.run_and_report = lambda func: func()


def take_mode_from_words() -> None:
    """Have `@hydra.main` tell a multirun by its words. What a config says of `hydra.mode` is checked before.

    Missing in public: Hydra composes the whole config once more to learn its mode, which takes 0.2 s.
    """
    Hydra.get_mode = lambda self, config_name, overrides: (  # type: ignore[method-assign]
        RunMode.MULTIRUN if "hydra.mode=MULTIRUN" in overrides else None
    )


@contextmanager
def run_composed(cfg: DictConfig) -> Iterator[None]:
    """Have the next call of `@hydra.main` in this block run a config that is composed already.

    Missing in public: Hydra composes what it runs, from the same words once more, which takes 0.2 s.
    """
    compose = ConfigLoaderImpl.load_configuration

    def composed(*_: object, **__: object) -> DictConfig:
        ConfigLoaderImpl.load_configuration = compose  # type: ignore[method-assign]
        return cfg

    ConfigLoaderImpl.load_configuration = composed  # type: ignore[method-assign]
    try:
        yield
    finally:
        ConfigLoaderImpl.load_configuration = compose  # type: ignore[method-assign]


@contextmanager
def hydra_with(config_path: str | None = None, config_dir: str | None = None) -> Iterator[Hydra]:
    """Yield Hydra with the search path that its command line has, for composing without running.

    The global state of Hydra is restored at the end: who calls `mnist_lab.train` may use Hydra, too.

    Missing in public: `hydra.compose` can't be given a second folder in the place that `--config-dir` has.

    Args:
        config_path: a folder in the place of `conf/`, as `--config-path`.
        config_dir: a folder with groups of the user's own, as `--config-dir`.

    Raises:
        UserError: there is no such folder.
    """
    for flag, folder in (("--config-dir", config_dir), ("--config-path", config_path)):
        if folder is not None and not Path(folder).is_dir():
            raise UserError(f"{flag} {folder}: there is no such folder")
    singletons = [vars(one.instance()) for one in (GlobalHydra, HydraConfig, version.VersionBase)]
    before = [dict(values) for values in singletons]
    GlobalHydra.instance().clear()
    version.setbase("1.3")
    search_path = utils.create_config_search_path(str(Path(config_path or CONF_DIR).resolve()))
    if config_dir is not None:
        own = f"file://{Path(config_dir).resolve()}"
        search_path.prepend(provider="command-line", path=own, anchor=SearchPathQuery(provider="schema"))
    try:
        yield Hydra.create_main_hydra2(task_name="mnist_lab", config_search_path=search_path)
    finally:
        for values, value in zip(singletons, before, strict=True):
            values.update(value)


def read_configs_once(loader: Any) -> None:
    """Have a config loader read each file once, so that all trials of a sweep are made of the same configs.

    Missing in public: Hydra reads the files again for each job, and a file may have changed by then.
    """
    if isinstance(loader, ConfigLoaderImpl) and not isinstance(loader.repository, _ReadOnce):
        loader.repository = _ReadOnce(loader.repository)  # type: ignore[assignment]


class _ReadOnce(CachingConfigRepository):
    def __init__(self, delegate: IConfigRepository) -> None:
        self.delegate = delegate
        self.cache: dict[str, ConfigResult | None] = {}

    def load_config(self, config_path: str) -> ConfigResult | None:
        return deepcopy(super().load_config(config_path))  # Hydra changes what it gets

    def initialize_sources(self, config_search_path: ConfigSearchPath) -> None:
        super().initialize_sources(config_search_path)
        self.cache = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> _ReadOnce:
        """Return what Hydra makes for each job, which may get other sources: the cache is shared."""
        copied = _ReadOnce(deepcopy(self.delegate, memo))
        copied.cache = self.cache
        return copied
