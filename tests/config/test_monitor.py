"""`monitor` and `mode` say by which metric a run is judged, and all that watches a metric follows them."""

from typing import Any

import pytest

from mnist_lab.composing import compose_config
from mnist_lab.errors import UserError
from mnist_lab.metrics import mode_of

OWN = ("model._target_=own.Net", "monitor=val/elbo")


@pytest.mark.parametrize(
    ("metric", "mode"),
    [
        *((name, "min") for name in ("val/loss", "val_loss", "val/kl_loss", "test/error", "seconds", "parameters")),
        *((name, "max") for name in ("val/acc", "val/top5_acc", "test/accuracy", "val/f1", "val/BinaryAUROC")),
    ],
)
def test_a_metric_is_minimized_or_maximized_by_the_end_of_its_name(metric: str, mode: str) -> None:
    assert mode_of(metric) == mode


def test_the_user_gives_the_mode_of_other_names_for_every_stage() -> None:
    with pytest.raises(UserError, match="monitor=val/elbo mode=max"):
        mode_of("val/elbo")
    assert mode_of("val/elbo", "max") == "max"
    assert mode_of("test/elbo", "max", monitor="val/elbo") == "max"
    assert mode_of("val/loss", "max", monitor="val/elbo") == "min", "mode is about the monitor alone"


@pytest.mark.parametrize("section", ["callbacks.early_stopping", "schedule"])
@pytest.mark.parametrize(
    ("words", "watched"),
    [
        ((), ("val/loss", "min")),  # as before there was a monitor
        (("monitor=val/loss",), ("val/loss", "min")),
        (("monitor=train/acc",), ("train/acc", "max")),
        ((*OWN, "mode=max"), ("val/elbo", "max")),
        ((*OWN, "mode=min"), ("val/elbo", "min")),
    ],
)
def test_early_stopping_and_a_plateau_watch_the_monitor(
    section: str, words: tuple[str, ...], watched: tuple[str, str]
) -> None:
    cfg: Any = compose_config(["callbacks=early_stopping", "schedule=plateau", *words])
    part = cfg.schedule if section == "schedule" else cfg.callbacks.early_stopping
    assert (part.monitor, part.mode) == watched


def test_early_stopping_may_watch_another_metric() -> None:
    cfg: Any = compose_config(["callbacks=early_stopping", "callbacks.early_stopping.monitor=val/acc"])
    assert cfg.callbacks.early_stopping.mode == "max"
