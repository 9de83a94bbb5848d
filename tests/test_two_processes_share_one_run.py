"""trainer=ddp on two CPU processes: one folder, one result, the same images counted."""

from pathlib import Path

import pytest
from conftest import Command, result_in


@pytest.mark.slow
def test_two_processes_leave_one_result_and_learn_what_one_learns(lab: Command, tmp_path: Path) -> None:
    words = ("data=mnist_5k", "model=mlp_512", "trainer.max_epochs=2", "trainer.accelerator=cpu")
    two = lab(*words, "trainer=ddp", "hydra.run.dir=two")
    assert two.returncode == 0, two.stderr
    assert two.stdout.count("epoch 2/2") == 1
    one = lab(*words, "hydra.run.dir=one")
    assert one.returncode == 0
    shared, alone = result_in(tmp_path / "two"), result_in(tmp_path / "one")
    assert shared.machine["processes"] == 2
    assert shared.test["n"] == alone.test["n"] == 1000
    # The same batches and the same mean gradient but for the last, smaller batch; rounding differs.
    assert shared.history[-1]["train/loss"] == pytest.approx(alone.history[-1]["train/loss"], rel=0.05)
    assert shared.test["acc"] == pytest.approx(alone.test["acc"], abs=0.02)
