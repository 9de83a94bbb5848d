"""trainer=ddp on two CPU processes: one folder, one result, the same images counted."""

from pathlib import Path

import pytest
from conftest import Command, result_in


@pytest.mark.slow
def test_two_processes_leave_one_result_and_learn_what_one_learns(lab: Command, tmp_path: Path) -> None:
    # 3,501 images in batches of 125: every share of a batch is uneven, and one process gets nothing of the last one.
    words = ["data=mnist_5k", "model=mlp_512", "trainer.max_epochs=2", "trainer.accelerator=cpu"]
    words += ["data.val=random", "data.val_size=499", "data.batch_size=125", "optimizer=sgd", "optimizer.lr=0.1"]
    two = lab(*words, "trainer=ddp", "hydra.run.dir=two")
    assert two.returncode == 0, two.stderr
    assert two.stdout.count("epoch 2/2") == 1
    one = lab(*words, "hydra.run.dir=one")
    assert one.returncode == 0
    shared, alone = result_in(tmp_path / "two"), result_in(tmp_path / "one")
    assert shared.machine["processes"] == 2
    assert shared.test["n"] == alone.test["n"] == 1000
    assert shared.data["train"] == alone.data["train"] == 3501
    for ours, theirs in zip(shared.history, alone.history, strict=True):  # equal but for float32 rounding
        for metric in ("train/loss", "train/acc", "val/loss", "val/acc"):
            assert ours[metric] == pytest.approx(theirs[metric], rel=1e-4), metric
    assert shared.test["loss"] == pytest.approx(alone.test["loss"], rel=1e-4)
