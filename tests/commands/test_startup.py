"""Half a second and 60 MB of each command: SciPy, which Lightning's torchmetrics would import."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

BEGIN = """
import sys
from mnist_lab.torchmetrics_adapter import TorchmetricsWithoutSciPy
sys.meta_path.insert(0, TorchmetricsWithoutSciPy())
"""


def python(code: str, folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-c", BEGIN + code], cwd=folder, capture_output=True, text=True, timeout=120, check=True
    )
    return done.stdout.split("\n", 1)[0]


@pytest.mark.slow
def test_a_command_collects_no_garbage_before_all_is_imported_and_imports_no_scipy(tmp_path: Path) -> None:
    code = """
from mnist_lab.__main__ import main
import gc, sys
def enable():
    print("mnist_lab.run" in sys.modules and "lightning.pytorch" in sys.modules, end=" ")
    raise SystemExit
gc.enable = enable
sys.argv = ["mnist_lab", "data=mnist_5k", "hydra.run.dir=run"]
try:
    main()
except SystemExit:
    import mnist_lab.run, torchmetrics
print("scipy" in sys.modules, len(sys.meta_path) and type(sys.meta_path[0]).__name__, end=" ")
import scipy.signal
accuracy = torchmetrics.Accuracy(task="multiclass", num_classes=2)
import torch
print(scipy.signal.windows.hann(3).tolist(), float(accuracy(torch.tensor([0, 1]), torch.tensor([0, 0]))))
"""
    found = python(code, tmp_path)
    assert found.startswith("True False ") and "WithoutSciPy" not in found
    assert found.endswith("[0.0, 1.0, 0.0] 0.5")


@pytest.mark.slow
def test_torchmetrics_is_imported_normally_where_it_needs_scipy(tmp_path: Path) -> None:
    (tmp_path / "torchmetrics").mkdir()
    (tmp_path / "torchmetrics/__init__.py").write_text("from torchmetrics import part\nimport scipy.signal\n")
    (tmp_path / "torchmetrics/part.py").write_text("tried = 1\n")
    found = python("import torchmetrics\nprint(torchmetrics.part.tried, torchmetrics.scipy.__name__)", tmp_path)
    assert found == "1 scipy"


@pytest.mark.slow
def test_scipy_that_was_imported_before_stays(tmp_path: Path) -> None:
    (tmp_path / "torchmetrics.py").write_text("import sys\nscipy = sys.modules.get('scipy')\n")
    code = "import scipy\nimport torchmetrics\nprint(sys.modules['scipy'] is torchmetrics.scipy is scipy)"
    assert python(code, tmp_path) == "True"


@pytest.mark.slow
@pytest.mark.parametrize(("told", "expected"), [({}, "6000"), ({"GOMP_SPINCOUNT": "77"}, "77")])
def test_openmp_threads_spin_briefly_unless_the_user_sets_it(told: dict[str, str], expected: str) -> None:
    code = "from mnist_lab.startup import prepare_process; prepare_process(); import torch"
    environment = {**os.environ, "OMP_DISPLAY_ENV": "verbose", **told}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert f"GOMP_SPINCOUNT = '{expected}'" in done.stderr or "GOMP" not in done.stderr  # which not every system has
