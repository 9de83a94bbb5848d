"""Optimisers, schedules, the exact counting of loss and accuracy, early stopping, clipping, checkpoints."""

import math
import os
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from conftest import Command, in_memory, result_in
from hydra.utils import instantiate
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from mnist_lab import load_run
from mnist_lab.composing import compose_config, run_config
from mnist_lab.data import EpochOrder, ImageDataModule, mnist_5k
from mnist_lab.fast import SGD, Adam, AdamW, RMSprop
from mnist_lab.models import MLP
from mnist_lab.result import Result
from mnist_lab.training import Classifier, schedules


def keras_rmsprop(
    w: np.ndarray[Any, Any], gradients: list[np.ndarray[Any, Any]], lr: float, rho: float, eps: float, momentum: float
) -> np.ndarray[Any, Any]:
    """Keras' RMSprop, from the formulas of its documentation."""
    square, speed = np.zeros_like(w), np.zeros_like(w)
    for g in gradients:
        square = rho * square + (1 - rho) * g * g
        step = lr * g / np.sqrt(square + eps)
        speed = momentum * speed + step
        w = w - (speed if momentum else step)
    return w


@given(
    seed=st.integers(0, 2**31),
    lr=st.floats(1e-4, 1e-1),
    rho=st.floats(0, 0.99),
    momentum=st.sampled_from([0.0, 0.9]),
    eps=st.sampled_from([1e-7, 1e-3]),
)
def test_rmsprop_is_that_of_keras(seed: int, lr: float, rho: float, momentum: float, eps: float) -> None:
    rng = np.random.default_rng(seed)
    start, gradients = rng.normal(size=5), [rng.normal(size=5) * 10.0 ** rng.integers(-5, 1) for _ in range(4)]
    weight = nn.Parameter(torch.from_numpy(start.copy()))
    optimizer = RMSprop([weight], lr, rho, eps, momentum)
    for gradient in gradients:
        weight.grad = torch.from_numpy(gradient)
        optimizer.step()
    expected = keras_rmsprop(start, gradients, lr, rho, eps, momentum)
    np.testing.assert_allclose(weight.detach().numpy(), expected, rtol=1e-9, atol=1e-12)


def test_rmsprop_shrinks_weights_apart_from_the_gradient() -> None:
    weight = nn.Parameter(torch.tensor([2.0]))
    weight.grad = torch.zeros(1)
    RMSprop([weight], lr=0.1, weight_decay=0.5).step()
    assert weight.item() == pytest.approx(2.0 * (1 - 0.05))


@given(
    seed=st.integers(0, 2**31),
    kind=st.one_of(
        st.tuples(
            st.sampled_from([(Adam, torch.optim.Adam), (AdamW, torch.optim.AdamW)]),
            st.fixed_dictionaries(
                {"betas": st.tuples(st.floats(0, 0.99), st.floats(0, 0.99))}, optional={"amsgrad": st.booleans()}
            ),
        ),
        st.tuples(
            st.just((SGD, torch.optim.SGD)),
            st.one_of(
                st.fixed_dictionaries(
                    {"momentum": st.sampled_from([0.0, 0.9]), "dampening": st.sampled_from([0.0, 0.5])}
                ),
                st.fixed_dictionaries({"momentum": st.just(0.9), "nesterov": st.booleans()}),
            ),
        ),
    ),
    settings=st.fixed_dictionaries(
        {"weight_decay": st.sampled_from([0.0, 0.1])}, optional={"fused": st.just(True), "maximize": st.booleans()}
    ),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_optimizers_are_pytorchs_bit_for_bit_and_their_checkpoints_are_exchangeable(
    seed: int, kind: tuple[Any, dict[str, Any]], settings: dict[str, Any], dtype: torch.dtype
) -> None:
    torch.manual_seed(seed)
    pair, settings = kind[0], kind[1] | settings
    start = [torch.randn(3, 4, dtype=dtype), torch.randn(4, dtype=dtype), torch.randn(2, dtype=dtype)]
    gradients = [[torch.randn_like(tensor) for tensor in start] for _ in range(6)]
    ends = []
    for first, second in (pair, pair[::-1]):  # the first takes some steps, the second goes on from its checkpoint
        weights = [nn.Parameter(tensor.clone()) for tensor in start]
        groups = [{"params": weights[:2], "lr": 0.01}, {"params": weights[2:], "lr": 0.1}]
        without = {1: weights[1], 2: weights[2]}  # of a group a part, and a whole one
        optimizer = first(groups, **settings)
        for number, found in enumerate(gradients):
            if number == 3:
                kept, optimizer = optimizer.state_dict(), second(groups, **settings)
                optimizer.load_state_dict(kept)
            for weight, gradient in zip(weights, found, strict=True):
                weight.grad = gradient.clone() if weight is not without.get(number) else None
            optimizer.param_groups[0]["lr"] *= 0.9
            optimizer.step()
        ends.append([*weights, *(number for state in optimizer.state.values() for number in state.values())])
    assert all(torch.equal(one, other) for one, other in zip(*ends, strict=True))


@pytest.mark.parametrize("settings", [{}, {"nesterov": True}, {"dampening": 0.5, "weight_decay": 0.1}])
def test_momentum_of_weights_that_learn_later_begins_with_them(settings: dict[str, Any]) -> None:
    torch.manual_seed(0)
    start, gradients = torch.randn(3, 4), torch.randn(4, 3, 4)
    ends = []
    for kind, fused in ((SGD, True), (torch.optim.SGD, False)):
        weights = [nn.Parameter(row.clone()) for row in start]
        optimizer = kind(weights, lr=0.1, momentum=0.9, fused=fused, **settings)
        for number, found in enumerate(gradients):
            for place, weight in enumerate(weights):
                weight.grad = found[place].clone() if number >= place else None
            optimizer.step()
        ends.append(torch.stack([weight.detach() for weight in weights]))
    torch.testing.assert_close(ends[0], ends[1])


@pytest.mark.parametrize("one", [SGD, Adam, AdamW, RMSprop])
def test_hooks_run_once_a_step_and_profilers_see_it(one: Any) -> None:
    weight = nn.Parameter(torch.ones(2))
    torch.optim.SGD([weight]), torch.optim.Adam([weight]), torch.optim.AdamW([weight])  # which wrap their step in hooks
    for settings in [{}] if one is RMSprop else [{"fused": True}, {"fused": False}]:
        steps: list[str] = []
        optimizer = one([weight], **settings)

        def step(optimizer: Any = optimizer) -> None:
            weight.grad = torch.ones(2)
            optimizer.step()

        step()
        with torch.profiler.profile() as profile:
            step()
        assert [e.count for e in profile.key_averages() if e.key == f"Optimizer.step#{one.__name__}.step"] == [1]
        own = optimizer.register_step_post_hook(lambda *_, steps=steps: steps.append("own"))
        step()
        everyones = register_optimizer_step_pre_hook(lambda *_, steps=steps: steps.append("everyone's"))
        step()
        own.remove()
        step()
        everyones.remove()
        step()
        assert steps == ["own", "everyone's", "own", "everyone's"]


def test_adam_gives_what_its_closure_gave() -> None:
    weight = nn.Parameter(torch.ones(2))

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        (loss := (weight**2).sum()).backward()
        return loss

    optimizer = Adam([weight], lr=0.1, fused=True)
    losses = [optimizer.step(closure).item() for _ in range(3)]
    assert losses[0] == 2.0 and losses == sorted(losses, reverse=True)


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        ("adam", {"lr": 0.001, "betas": (0.9, 0.999), "eps": 1e-7}),
        ("adamw", {"lr": 0.001, "betas": (0.9, 0.999), "eps": 1e-7, "weight_decay": 0.004}),
        ("rmsprop", {"lr": 0.001, "alpha": 0.9, "eps": 1e-7, "momentum": 0.0}),
        ("sgd", {"lr": 0.01, "momentum": 0.0, "nesterov": False}),
    ],
)
def test_optimisers_have_keras_defaults(option: str, expected: dict[str, Any]) -> None:
    cfg = run_config(compose_config([f"optimizer={option}"]))
    optimizer = instantiate(cfg.optimizer, _convert_="all")([nn.Parameter(torch.zeros(1))])
    group = optimizer.param_groups[0]
    assert {key: tuple(group[key]) if key == "betas" else group[key] for key in expected} == expected


def rates(schedule: Any, steps: int, **options: Any) -> list[float]:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=2.0)
    made = schedule(optimizer, total_steps=steps, epochs=5, **options)
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        made.step()
    return found


def test_step_schedule_falls_after_every_so_many_epochs() -> None:
    assert rates(schedules.step, 10, every=2, gamma=0.1) == pytest.approx([2.0] * 4 + [0.2] * 4 + [0.02] * 2)


@given(steps=st.integers(3, 200), warmup=st.floats(0, 0.9), final=st.floats(0, 1))
def test_cosine_schedule_rises_and_falls_to_its_final_rate(steps: int, warmup: float, final: float) -> None:
    found = rates(schedules.cosine, steps, warmup=warmup, final=final)
    rising = round(warmup * steps)
    assert all(0 < rate <= 2.0 + 1e-12 for rate in found[: steps - 1])
    assert all(a < b for a, b in pairwise(found[:rising]))
    assert all(a >= b - 1e-12 for a, b in pairwise(found[rising:]))
    if steps - rising > 1:
        assert found[rising] == pytest.approx(2.0)
        assert found[-1] == pytest.approx(2.0 * final)


@pytest.mark.parametrize("warmup", [0.2, 0.3, 0.7])
def test_one_cycle_goes_up_to_the_rate_and_down_to_almost_nothing(warmup: float) -> None:
    found = rates(schedules.one_cycle, 101, warmup=warmup, initial=0.04, final=4e-6)
    assert found[0] == pytest.approx(2.0 * 0.04)
    assert max(found) == pytest.approx(2.0, rel=1e-3) and found.index(max(found)) == round(100 * warmup)
    assert found[-1] == pytest.approx(2.0 * 4e-6)


class Recorder(L.Callback):
    def __init__(self) -> None:
        self.rates: list[float] = []
        self.norms: list[float] = []

    def on_before_optimizer_step(self, trainer: L.Trainer, *_: Any) -> None:
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])
        assert trainer.lightning_module is not None
        self.norms.append(
            math.sqrt(
                sum(float((p.grad**2).sum()) for p in trainer.lightning_module.parameters() if p.grad is not None)
            )
        )


def fit(tmp_path: Path, overrides: list[str]) -> tuple[L.Trainer, Recorder]:
    """A real run of mnist_lab.run on 700 real digits, with a recorder in it."""
    from mnist_lab.trainer import build_trainer

    recorder = Recorder()
    words = [
        "data=mnist_5k",
        "data.val=random",
        "data.train_size=700",
        "model=mlp_784_32",
        "trainer=cpu",
        "logger=none",
    ]
    cfg = run_config(compose_config([*words, *overrides]))
    trainer = build_trainer(cfg, tmp_path, [recorder])
    data = instantiate(cfg.data, _convert_="all")
    schedule = instantiate(cfg.schedule) or None
    net = instantiate(cfg.model, _convert_="all")
    module = Classifier(net, instantiate(cfg.loss), instantiate(cfg.optimizer), schedule)
    module.example_input_array = torch.zeros(1, 1, 28, 28)
    trainer.fit(module, datamodule=data)
    return trainer, recorder


def test_the_schedule_moves_step_by_step_through_the_whole_run(tmp_path: Path) -> None:
    _, recorder = fit(tmp_path, ["schedule=cosine", "data.batch_size=100", "trainer.max_epochs=2"])
    assert len(recorder.rates) == 14
    assert recorder.rates == sorted(recorder.rates, reverse=True) and recorder.rates[0] == 0.01
    assert recorder.rates[-1] == pytest.approx(0, abs=1e-9)


def test_steps_of_an_epoch_are_what_they_are_where_a_limit_ends_the_run(tmp_path: Path) -> None:
    words = [
        "schedule=step",
        "schedule.every=1",
        "data.batch_size=100",
        "trainer.max_epochs=10",
        "trainer.max_steps=10",
    ]
    _, recorder = fit(tmp_path, words)
    assert recorder.rates == pytest.approx([0.01] * 7 + [0.001] * 3)


def test_a_limit_of_1_is_one_mini_batch_and_1_0_is_all_of_them(lab: Command, tmp_path: Path) -> None:
    words = ["model=mlp_784_32", "data=mnist_5k", "data.batch_size=125", "trainer.max_epochs=1"]
    found = {}
    for limit in ("1", "1.0"):
        limits = [f"trainer.limit_{part}_batches={limit}" for part in ("train", "test")]
        assert lab(*words, *limits, f"hydra.run.dir={limit}").returncode == 0
        saved = torch.load(tmp_path / limit / "checkpoints/last.ckpt", weights_only=True)
        found[limit] = (saved["global_step"], Result.load(tmp_path / limit).test["n"])
    assert found == {"1": (1, 400), "1.0": (28, 1000)}


def test_what_a_limit_of_steps_has_left_is_kept(lab: Command, tmp_path: Path) -> None:
    words = ["model=mlp_784_32", "data=mnist_5k", "data.val=none", "data.batch_size=100", "trainer.max_steps=50"]
    assert lab(*words, "checkpoint.every=9 epochs", "report=false", "hydra.run.dir=run").returncode == 0
    assert torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)["global_step"] == 50


def test_what_a_limit_of_steps_comes_to_is_validated(lab: Command, tmp_path: Path) -> None:
    words = ["model=mlp_784_32", "data=mnist_5k", "data.val=random", "data.batch_size=100", "trainer.max_steps=50"]
    done = lab("-m", *words, "trainer.max_epochs=9", "optimizer.lr=0.01,0.1", "hydra.sweep.dir=sweep")
    assert done.returncode == 0, done.stderr  # a sweep judges by it
    for trial in "01":
        first, second = Result.load(tmp_path / "sweep" / trial).history
        assert 0 < second["val/loss"] < first["val/loss"]
        saved = torch.load(tmp_path / "sweep" / trial / "checkpoints/best.ckpt", weights_only=True)
        assert saved["global_step"] == 50
        notes = Result.load(tmp_path / "sweep" / trial).notes
        assert any(re.match("Epoch 2 was cut short after 15 of 35 mini-batches", note) for note in notes), notes


def test_validation_may_come_by_the_clock_and_the_table_of_layers_be_left_out(lab: Command, tmp_path: Path) -> None:
    words = ["model=mlp_784_32", "data=mnist_5k", "data.val=random", "trainer.max_epochs=2"]
    done = lab(*words, "+trainer.val_check_interval=00:01:00:00", "+trainer.enable_model_summary=false")
    assert done.returncode == 0, done.stderr
    assert len(result_in(tmp_path).history) == 2 and "parameters │" not in done.stdout and "Linear" not in done.stdout


def test_a_training_without_a_step_is_no_result(lab: Command, tmp_path: Path) -> None:
    done = lab("model=mlp_784_32", "data=mnist_5k", "+trainer.max_time=00:00:00:00", "hydra.run.dir=run")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: training was stopped before its first step"), done.stderr
    assert not (tmp_path / "run/result.json").exists()


def test_a_run_that_is_tested_later_says_as_well_that_its_epoch_was_cut_short(lab: Command, tmp_path: Path) -> None:
    words = ["model=mlp_784_32", "data=mnist_5k", "data.batch_size=100", "trainer.max_steps=50", "hydra.run.dir=run"]
    assert lab(*words, "report=false").returncode == 0
    before = Result.load(tmp_path / "run")
    (tmp_path / "run/result.json").unlink()  # as if it had been stopped in its test
    assert lab("resume", "run").returncode == 0
    assert any("was cut short after 15 of 35" in note for note in before.notes), before.notes
    assert Result.load(tmp_path / "run").notes == before.notes


def test_accumulated_mini_batches_are_one_larger_mini_batch(lab: Command, tmp_path: Path) -> None:
    """In the loss, in the weights, and in the steps that the schedule counts."""
    words = ["model=mlp_784_32", "data=mnist_5k", "data.val=none", "trainer.max_epochs=2", "optimizer.lr=0.5"]
    words += ["schedule=cosine", "optimizer.momentum=0.9", "report=false"]
    for name, size, number in (("one", 200, 1), ("four", 50, 4)):
        more = [f"data.batch_size={size}", f"trainer.accumulate_grad_batches={number}", f"hydra.run.dir={name}"]
        assert lab(*words, *more).returncode == 0
    one, four = (Result.load(tmp_path / name) for name in ("one", "four"))
    for whole, parts in zip(one.history, four.history, strict=True):
        for metric in ("train/loss", "train/acc", "lr"):
            assert parts[metric] == pytest.approx(whole[metric], rel=1e-3, abs=1e-9), metric
    assert four.test["loss"] == pytest.approx(one.test["loss"], rel=1e-3)


def test_the_limit_of_gradients_that_the_config_names_is_that_of_the_run(lab: Command, tmp_path: Path) -> None:
    words = ["model=mlp_784_32", "data=mnist_5k", "data.val=none", "data.batch_size=400", "trainer.max_epochs=1"]
    words += ["trainer.gradient_clip_val=1e-3", "optimizer.lr=0.1", "report=false", "hydra.run.dir=run"]
    assert lab(*words).returncode == 0
    weights = torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)["state_dict"]
    biases = torch.cat([weight for name, weight in weights.items() if name.endswith("bias")])  # which begin as zeros
    assert 0 < biases.norm() <= 10 * 0.1 * 1e-3 * 1.001, "ten steps at this rate"


@pytest.mark.parametrize(("algorithm", "measure"), [("norm", 2), ("value", math.inf)])
def test_gradients_are_clipped_by_their_norm_or_by_value(algorithm: str, measure: float, tmp_path: Path) -> None:
    class After(Recorder):
        def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *_: Any) -> None:
            gradients = torch.cat([p.grad.flatten() for p in module.parameters() if p.grad is not None])
            self.norms.append(float(gradients.norm(measure)))

        def on_before_optimizer_step(self, *_: Any) -> None:
            pass

    from mnist_lab.trainer import build_trainer

    words = ["data=mnist_5k", "trainer=cpu", "logger=none", "trainer.max_epochs=1"]
    cfg = run_config(
        compose_config([*words, f"+trainer.gradient_clip_algorithm={algorithm}", "trainer.gradient_clip_val=0.001"])
    )
    after = After()
    trainer = build_trainer(cfg, tmp_path, [after])
    net = instantiate(cfg.model, _convert_="all")
    module = Classifier(net, instantiate(cfg.loss), instantiate(cfg.optimizer))
    module.example_input_array = torch.zeros(1, 1, 28, 28)
    trainer.fit(module, datamodule=instantiate(cfg.data, _convert_="all"))
    assert max(after.norms) == pytest.approx(0.001, rel=1e-4)


def test_loss_and_accuracy_are_over_images_not_over_batches(tmp_path: Path) -> None:
    data = ImageDataModule("mnist_5k", mnist_5k, "/", (1, 28, 28), 10, eval_batch_size=999, val="none")
    net = MLP([1, 28, 28], 10, [16])
    module = Classifier(net, nn.CrossEntropyLoss(), torch.optim.Adam)
    trainer = L.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, default_root_dir=tmp_path)
    trainer.test(module, datamodule=data, verbose=False)
    assert data.images is not None
    with torch.no_grad():
        logits = net(in_memory(data.images.test_images) / 255)
    assert trainer.callback_metrics["test/acc"] == (logits.argmax(1) == data.images.test_labels).sum().item() / 1000
    expected = nn.functional.cross_entropy(logits, data.images.test_labels).item()
    assert trainer.callback_metrics["test/loss"].item() == pytest.approx(expected, rel=1e-6)


def test_training_stops_early_and_the_best_weights_can_be_tested(lab: Command, tmp_path: Path) -> None:
    done = lab(
        "model=mlp_512", "data=mnist_5k", "data.train_size=300", "callbacks=early_stopping", "trainer.max_epochs=60",
        "callbacks.early_stopping.patience=1", "callbacks.early_stopping.min_delta=0.02", "test_checkpoint=best",
        "data.val=random", "optimizer.lr=0.01",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = result_in(tmp_path)
    epochs = torch.load(next(tmp_path.rglob("last.ckpt")), weights_only=True)["epoch"] + 1
    assert 2 <= len(result.history) == epochs < 60
    falls = [before - after >= 0.02 for before, after in pairwise(row["val/loss"] for row in result.history)]
    assert falls.index(False) == len(falls) - 1, "patience=1: the first epoch that is no better is the last"
    assert result.test["checkpoint"] == "best"
    (checkpoint,) = tmp_path.rglob("best.ckpt")
    epoch = torch.load(checkpoint, weights_only=True)["epoch"]
    best = max(row["val/acc"] for row in result.history)
    assert result.history[epoch]["val/acc"] == best

    (run,) = (path.parent for path in tmp_path.rglob("result.json"))
    assert "is finished, after" in lab("resume", str(run)).stdout
    assert Result.load(run) == result
    (run / "result.json").unlink()  # as if it had been stopped in its test
    assert lab("resume", str(run)).returncode == 0
    again = Result.load(run)
    assert (again.history, again.test) == (result.history, result.test)
    assert lab("resume", str(run), f"trainer.max_epochs={len(result.history) + 1}").returncode == 0
    assert len(Result.load(run).history) == len(result.history) + 1


def test_the_best_is_the_first_highest_of_all_epochs_and_is_what_is_tested(lab: Command, tmp_path: Path) -> None:
    """Of all epochs: those after the run was resumed too."""
    words = ["model=mlp", "model.hidden=[64]", "data=mnist_5k", "data.val=random", "data.val_size=10", "seed=1"]
    words += ["test_checkpoint=best", "report=false", "logger=none", "hydra.run.dir=run"]
    assert lab(*words, "trainer.max_epochs=3").returncode == 0
    assert lab("resume", "run", "trainer.max_epochs=6").returncode == 0
    result = Result.load(tmp_path / "run")
    found = [row["val/acc"] for row in result.history]
    first = found.index(max(found))
    assert first < 3 and found.count(max(found)) > 1, f"{found} has what this is about"
    assert torch.load(tmp_path / "run/checkpoints/best.ckpt", weights_only=True)["epoch"] == first
    assert result.test["epoch"] == first + 1 and result.tested == result.history[first]
    shown = (tmp_path / "run/run.log").read_text()
    gap = 100 * (result.tested["train/acc"] - result.test["acc"])
    assert f"train, epoch {first + 1}, the best" in shown and f"{gap:+.2f} points" in shown
    images = mnist_5k(Path(), False)
    losses = {}
    for name in (None, "best", "last"):
        probabilities = load_run(tmp_path / "run", name, device="cpu").predict(in_memory(images.test_images))
        losses[name] = nn.functional.nll_loss(probabilities.log(), images.test_labels).item()
    assert losses[None] == losses["best"] == pytest.approx(result.test["loss"], rel=1e-5)
    assert losses["last"] != pytest.approx(result.test["loss"], rel=1e-3)
    row = f"{result.test['loss']:.4f} │   {result.test['acc']:.2%}"
    assert lab("test", "run=run").stdout.count(row) == 2, "it is what `test` tests again, beside what was recorded"


def test_label_smoothing_reaches_the_loss(lab: Command, tmp_path: Path) -> None:
    assert lab("data=mnist_5k", "trainer=debug", "loss.label_smoothing=0.5").returncode == 0
    smoothed = result_in(tmp_path).test["loss"]
    assert smoothed > 1.5  # the entropy of a half-smoothed target alone


def test_a_run_that_looked_at_the_test_set_says_so(lab: Command, tmp_path: Path) -> None:
    done = lab("data=mnist_5k", "model=mlp", "trainer=debug", "data.val=test")
    assert done.stdout.count("The test set was looked at while training") == 2
    result = result_in(tmp_path)
    assert result.data["val_from"] == "test" and "test set was looked at" in result.notes[0]
    assert result.history[0]["val/acc"] == result.test["acc"]


def test_the_neuron_shows_its_forward_pass_and_learns_its_digit(lab: Command, tmp_path: Path) -> None:
    done = lab("data=mnist_5k", "model=neuron", "model.digit=0", "trainer.max_epochs=3")
    assert "sigmoid 0.9525741268224334" in done.stdout
    result = result_in(tmp_path)
    assert result.extras == {"forward_pass": 0.9525741268224334}
    assert result.data["classes"] == ["not 0", "0"]
    assert result.model["parameters"] == 785
    assert result.test["acc"] > 0.95  # saying "not 0" always gives 0.90


def test_precision_is_the_trainers(lab: Command, tmp_path: Path) -> None:
    done = lab("data=mnist_5k", "model=mlp_512", "trainer=debug", "trainer.precision=64-true")
    assert done.returncode == 0, done.stderr
    result = result_in(tmp_path)
    assert result.machine["precision"] == "64-true" and result.test["acc"] > 0.3


def test_what_ctrl_c_leaves_can_be_tested(lab: Command, tmp_path: Path) -> None:
    import signal
    import subprocess
    import sys

    words = ["data=mnist_5k", "model=mlp_784_32", "data.val=none", "trainer.max_epochs=5000", "hydra.run.dir=run"]
    program = subprocess.Popen(
        [sys.executable, "-m", "mnist_lab", *words],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert program.stdout is not None
    for line in program.stdout:
        if line.startswith("epoch    3/5000"):
            program.send_signal(signal.SIGINT)
            break
    shown, errors = program.communicate(timeout=60)
    assert program.returncode == 130
    assert "stopped by Ctrl-C in epoch" in shown and "resume run" in shown
    assert "Traceback" not in errors
    again = lab("test", "run=run")
    assert again.returncode == 0, again.stderr
    assert "1,000 images" in again.stdout


def test_history_has_the_rate_that_was_used_and_only_the_epochs_own_validation(lab: Command, tmp_path: Path) -> None:
    words = ["data=mnist_5k", "model=mlp_512", "data.val=random", "data.train_size=600", "trainer.max_epochs=4"]
    done = lab(*words, "schedule=step", "schedule.every=1", "trainer.check_val_every_n_epoch=2")
    assert done.returncode == 0, done.stderr
    history = result_in(tmp_path).history
    assert [row["lr"] for row in history] == pytest.approx([1e-3, 1e-4, 1e-5, 1e-6])
    assert [row["val/acc"] is None for row in history] == [True, False, True, False]


@pytest.mark.parametrize("monitor", ["val/loss", "train/acc"])
def test_the_rate_falls_when_a_metric_stands_still(monitor: str, lab: Command, tmp_path: Path) -> None:
    words = ["data=mnist_5k", "model=mlp_784_32", "data.val=random", "data.train_size=600", "trainer.max_epochs=24"]
    words += ["optimizer.lr=0.5", "trainer.check_val_every_n_epoch=2", "schedule=plateau", "schedule.patience=0"]
    words += [f"schedule.monitor={monitor}", "schedule.min_delta=0.05", "schedule.factor=0.5", "schedule.min_lr=0.1"]
    done = lab(*words)
    assert done.returncode == 0, done.stderr
    history = result_in(tmp_path).history
    best, waited, rate, rates = None, 0, 0.5, []
    for row in history:
        rates.append(rate)
        if row[monitor] is None:
            continue
        value = row[monitor] if monitor.endswith("loss") else -row[monitor]
        if best is None or value < best - 0.05:
            best, waited = value, 0
        else:
            waited += 1
        if waited > 0:
            rate, waited = max(rate / 2, 0.1), 0
    assert [row["lr"] for row in history] == pytest.approx(rates)
    assert len(set(rates)) > 2, rates


def test_a_training_that_diverges_stops_and_says_where(lab: Command, tmp_path: Path) -> None:
    words = ["data=mnist_5k", "model=mlp_512", "trainer.max_epochs=3", "optimizer=sgd"]
    done = lab(*words, "optimizer.lr=1e30")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    expected = r"training diverged: in mini-batch \d+ of epoch 1 the loss is (nan|inf), at a learning rate of 1e\+30"
    assert re.search(expected, done.stderr), done.stderr
    done = lab(*words, "trainer.accumulate_grad_batches=4", "trainer.limit_train_batches=4", "optimizer.lr=1e30")
    assert done.returncode == 2 and "training diverged" in done.stderr and "Traceback" not in done.stderr, done.stderr
    words += ["schedule=step", "schedule.every=1", "schedule.gamma=1", "optimizer.lr=0.01", "hydra.run.dir=run"]
    (tmp_path / "own.py").write_text(
        "from lightning.pytorch.callbacks import Callback\n\n\n"
        "class Spoil(Callback):\n"
        "    def on_train_epoch_start(self, trainer, module):\n"
        "        if trainer.current_epoch == 1:\n"
        "            next(module.parameters()).data.fill_(float('nan'))\n"
    )
    done = lab(*words, "+callbacks.spoil._target_=own.Spoil", PYTHONPATH=str(tmp_path))
    assert done.returncode == 2
    assert "in mini-batch 1 of epoch 2 the loss is nan" in done.stderr
    assert "the last good checkpoint is run/checkpoints/last.ckpt" in done.stderr
    assert (tmp_path / "run/checkpoints/last.ckpt").exists() and not (tmp_path / "run/result.json").exists()


def test_the_neuron_computes_in_double_precision() -> None:
    from mnist_lab.models import NeuronForwardPass

    expected = 1 / (1 + math.exp(-(0.1 + 0.2 + 0.3)))
    assert NeuronForwardPass([0.1, 0.2], 0.3, [1.0, 1.0]).output == pytest.approx(expected, rel=1e-15)


def test_a_run_is_a_hand_written_loop_from_the_same_weights_in_the_same_order(lab: Command, tmp_path: Path) -> None:
    words = [
        "data=mnist_5k",
        "model=mlp_784_32",
        "data.val=none",
        "data.batch_size=300",
        "trainer.max_epochs=2",
        "seed=3",
    ]
    assert lab(*words, "trainer=cpu").returncode == 0
    found = mnist_5k(Path(), False)
    L.seed_everything(3, verbose=False)
    net = MLP([1, 28, 28], 10, [784, 32])
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    order = EpochOrder(torch.arange(4000), 3)
    for epoch in range(2):
        order.set_epoch(epoch)
        for batch in torch.split(order(), 300):
            logits = net(in_memory(found.train_images)[batch] / 255)
            loss = nn.functional.cross_entropy(logits, found.train_labels[batch])
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
    with torch.no_grad():
        logits = net(in_memory(found.test_images) / 255)
    test = result_in(tmp_path).test
    assert test["correct"] == int((logits.argmax(1) == found.test_labels).sum())
    assert test["loss"] == pytest.approx(nn.functional.cross_entropy(logits, found.test_labels).item(), rel=1e-5)


CALLBACKS = """
import numpy
import torch
from lightning.pytorch.callbacks import Callback

class Zero(Callback):
    def on_train_end(self, trainer, module):
        for weight in module.parameters():
            weight.data.zero_()

class State(Callback):
    def state_dict(self):
        return {"best": numpy.float64(0.5)}

class NaN(Callback):
    def on_train_epoch_start(self, trainer, module):
        if trainer.current_epoch == 1:
            module.net.layers[0].weight.data.fill_(float("nan"))

class Metrics(Callback):
    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.loss = float(outputs["loss"])

    def on_validation_epoch_end(self, trainer, module):
        print("validation", trainer.current_epoch, float(trainer.callback_metrics["val/acc"]))

    def on_train_epoch_end(self, trainer, module):
        print("training", trainer.current_epoch, float(trainer.callback_metrics["train/loss"]), self.loss)

class Zeroed(Callback):
    def on_before_zero_grad(self, trainer, module, optimizer):
        print("zeroed")

class Tested(Callback):
    def on_test_batch_end(self, trainer, module, outputs, batch, batch_idx):
        images, labels = batch
        print("tested", len(labels))

class Seen(Callback):
    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        print("seen", batch[1].tolist())
"""


@pytest.fixture
def with_callbacks(lab: Command, tmp_path: Path) -> Command:
    """The command, with callbacks named after it: CLASS, or `lightning.pytorch.callbacks.CLASS` with its options."""
    (tmp_path / "own.py").write_text(CALLBACKS)

    def command(name: str, *words: str) -> Any:
        target = f"+callbacks.x._target_={name if '.' in name else f'own.{name}'}"
        words = ("data=mnist_5k", "data.train_size=1000", "logger=none", "hydra.run.dir=run", target, *words)
        return lab(*words, PYTHONPATH=os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))

    return command


def test_a_callback_sees_each_mini_batch_of_a_test_and_each_zeroing_of_gradients(with_callbacks: Command) -> None:
    words = ["model=mlp_784_32", "data.batch_size=100", "trainer.max_epochs=1"]
    done = with_callbacks("Zeroed", *words, "trainer.accumulate_grad_batches=2")
    assert done.returncode == 0 and done.stdout.splitlines().count("zeroed") == 5, done.stderr
    done = with_callbacks("Tested", *words, "hydra.run.dir=other")
    assert re.findall("tested ([0-9]+)", done.stdout) == ["400", "400", "200"], done.stderr


def test_weights_that_a_callback_changes_at_the_end_are_kept(with_callbacks: Command, tmp_path: Path) -> None:
    assert with_callbacks("Zero", "model=mlp_784_32", "trainer.max_epochs=1").returncode == 0
    assert Result.load(tmp_path / "run").test["loss"] == pytest.approx(math.log(10))
    saved = torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)["state_dict"]
    assert not any(weights.any() for weights in saved.values())


def test_checkpoints_of_a_callback_leave_ours_as_they_are(with_callbacks: Command, tmp_path: Path) -> None:
    words = ["+callbacks.x.save_last=true", "model=mlp_512", "optimizer.lr=0.02", "trainer.max_epochs=6"]
    assert with_callbacks("lightning.pytorch.callbacks.ModelCheckpoint", *words, "data.val=random").returncode == 0
    found = [row["val/acc"] for row in Result.load(tmp_path / "run").history]
    best = torch.load(tmp_path / "run/checkpoints/best.ckpt", weights_only=True)
    assert best["epoch"] == found.index(max(found)) < 5, found


def test_a_state_that_no_checkpoint_gives_back_is_told_at_the_first_one(with_callbacks: Command) -> None:
    done = with_callbacks("State", "model=mlp_784_32", "trainer.max_epochs=2")
    assert done.returncode == 2 and "the state_dict of a callback may have numbers, texts, tensors" in done.stderr
    assert "epoch 2/2" not in done.stdout


def test_weights_that_are_no_numbers_stop_a_training_whose_loss_is_one(with_callbacks: Command) -> None:
    done = with_callbacks("NaN", "model=cnn", "trainer.max_epochs=3")
    assert done.returncode == 2, done.stdout
    assert "in epoch 2 weights of layers.0.weight are infinite or not a number; the last good" in done.stderr


def test_overfitting_goes_through_the_same_mini_batches_again(with_callbacks: Command) -> None:
    done = with_callbacks("Seen", "model=mlp_784_32", "trainer.max_epochs=3", "+trainer.overfit_batches=2")
    assert done.returncode == 0, done.stderr
    seen = [line for line in done.stdout.splitlines() if line.startswith("seen")]
    assert len(seen) == 6 and seen[:2] == seen[2:4] == seen[4:] and seen[0] != seen[1]


def test_callbacks_have_an_epochs_metrics_when_lightning_says_it_is_over(
    with_callbacks: Command, tmp_path: Path
) -> None:
    done = with_callbacks("Metrics", "model=mlp_784_32", "trainer.max_epochs=3", "data.batch_size=1000")
    assert done.returncode == 0, done.stderr
    found = {
        tuple(line.split()[:2]): line.split()[2:] for line in done.stdout.splitlines() if line[:4] in ("trai", "vali")
    }
    for epoch, row in enumerate(Result.load(tmp_path / "run").history):
        (accuracy,), losses = found["validation", str(epoch)], found["training", str(epoch)]
        assert float(accuracy) == pytest.approx(row["val/acc"])
        assert [float(loss) for loss in losses] == pytest.approx([row["train/loss"]] * 2), "of one mini-batch"


@pytest.mark.parametrize(
    "words", ["+trainer.enable_progress_bar=false", "+callbacks.x._target_=lightning.pytorch.callbacks.RichProgressBar"]
)
def test_progress_is_shown_by_one_bar_or_by_none(words: str, lab: Command) -> None:
    more = ["model=mlp_784_32", "data=mnist_5k", "data.train_size=500", "trainer.max_epochs=1", "report=false"]
    done = lab(*more, words)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr


def test_a_profilers_report_is_in_the_runs_folder(lab: Command, tmp_path: Path) -> None:
    words = ["model=mlp_784_32", "data=mnist_5k", "trainer.max_epochs=1", "+trainer.profiler=simple"]
    assert lab(*words, "hydra.run.dir=run").returncode == 0
    assert "run_training_epoch" in (tmp_path / "run/fit-profile.txt").read_text()


def test_classes_can_weigh_differently_in_the_loss(lab: Command, tmp_path: Path) -> None:
    words = ["model=mlp_784_32", "data=mnist_5k", "data.train_size=500", "trainer.max_epochs=1", "report=false"]
    assert lab(*words, "hydra.run.dir=plain").returncode == 0
    weights = "{_target_: torch.tensor, data: [1.0,1,1,1,1,1,1,1,1,0]}"
    assert lab(*words, f"+loss.weight={weights}", "hydra.run.dir=weighed").returncode == 0
    plain, weighed = (Result.load(tmp_path / name).history[0]["train/loss"] for name in ("plain", "weighed"))
    assert weighed != plain


def test_weights_of_classes_count_by_image_whatever_the_mini_batches_are(lab: Command, tmp_path: Path) -> None:
    weight = torch.tensor([1.0, 1, 1, 1, 1, 1, 1, 1, 1, 20])
    data = ImageDataModule("mnist_5k", mnist_5k, "/", (1, 28, 28), 10, eval_batch_size=7, val="none")
    net = MLP([1, 28, 28], 10, [16])
    module = Classifier(net, nn.CrossEntropyLoss(weight), torch.optim.Adam)
    trainer = L.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, default_root_dir=tmp_path)
    trainer.test(module, datamodule=data, verbose=False)
    assert data.images is not None
    with torch.no_grad():
        logits = net(in_memory(data.images.test_images) / 255)
    expected = nn.functional.cross_entropy(logits, data.images.test_labels, weight).item()
    assert trainer.callback_metrics["test/loss"].item() == pytest.approx(expected, rel=1e-5)


def test_threads_give_up_their_cores_soon_and_the_user_may_say_when(lab: Command) -> None:
    words = ["model=neuron", "data=mnist_5k", "trainer=debug", "logger=none", "report=false"]
    for told, expected in (({}, "6000"), ({"GOMP_SPINCOUNT": "77"}, "77"), ({"OMP_WAIT_POLICY": "passive"}, "0")):
        shown = lab(*words, OMP_DISPLAY_ENV="verbose", **told).stderr
        assert f"GOMP_SPINCOUNT = '{expected}'" in shown or "GOMP" not in shown  # which not every system has
