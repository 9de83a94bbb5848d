"""`pip install .`, and the command from any folder: the configs travel in the wheel."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from conftest import ROOT


@pytest.mark.slow
def test_the_wheel_carries_the_configs(tmp_path: Path) -> None:
    words = ["pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(tmp_path), str(ROOT)]
    subprocess.run([sys.executable, "-m", *words], check=True, timeout=600)
    (wheel,) = tmp_path.glob("*.whl")
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    assert (site / "mnist_lab/show/draw.html").is_file()
    sweep = subprocess.run(
        [sys.executable, "-m", "mnist_lab", "-m", "data=mnist_5k", "trainer=debug"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert sweep.returncode == 0 and "1 trial, 1 complete" in sweep.stdout, sweep.stderr
    probe = "import mnist_lab.files as f; print(f.CONF_DIR)"
    found = subprocess.run(
        [sys.executable, "-c", probe],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
    )
    assert found.stdout.strip() == str(site / "mnist_lab/conf")
