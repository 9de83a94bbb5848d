"""A private part of lightning-utilities: where torchmetrics looks for the packages that it imports with it."""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.metadata import PackageNotFoundError
from importlib.util import find_spec
from types import ModuleType
from typing import Any


class TorchmetricsWithoutSciPy(MetaPathFinder, Loader):
    """Import torchmetrics, which Lightning imports, as if SciPy were not installed.

    Only its audio and contour metrics need SciPy, whose import takes half a second and 60 MB. Put into
    `sys.meta_path`, this finder handles the first import of torchmetrics and then removes itself.

    Missing in public: torchmetrics has no setting that leaves SciPy out.
    """

    def find_spec(self, fullname: str, path: Any = None, target: ModuleType | None = None) -> ModuleSpec | None:
        """Return the spec of torchmetrics, with this loader, when Python first asks for it."""
        if fullname != "torchmetrics":
            return None
        sys.meta_path.remove(self)
        spec = find_spec(fullname)
        if spec is not None and spec.loader is not None and "scipy" not in sys.modules:
            self._usual, spec.loader = spec.loader, self
        return spec

    def exec_module(self, module: ModuleType) -> None:
        """Import torchmetrics without SciPy, or normally if that fails."""
        requirements: Any = import_module("lightning_utilities.core.imports")  # where torchmetrics looks for SciPy
        version = requirements._version

        def version_but_scipys(package: str) -> str:
            if package == "scipy":
                raise PackageNotFoundError(package)
            return str(version(package))

        requirements._version, sys.modules["scipy"] = version_but_scipys, None  # type: ignore[assignment]
        try:
            self._usual.exec_module(module)
        except ImportError:
            for name in [name for name in sys.modules if name.startswith("torchmetrics.")]:
                del sys.modules[name]
            del sys.modules["scipy"]
            requirements._version = version
            self._usual.exec_module(module)
        finally:
            requirements._version = version
            if sys.modules.get("scipy", self) is None:
                del sys.modules["scipy"]
