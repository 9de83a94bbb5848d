"""The LightningModule: a network, its loss, its optimiser, and sums that cost nothing until an epoch ends."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from typing import Any

import lightning as L
import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from mnist_lab.data import Batch, Batches
from mnist_lab.errors import Diverged, UserError
from mnist_lab.fast import Replay
from mnist_lab.seeds import seed_of
from mnist_lab.training import random_numbers
from mnist_lab.training.schedules import Plateau, make_schedule
from mnist_lab.training.weights import restore, same


class Classifier(L.LightningModule):
    """Trains any network that turns images into one logit a class.

    Loss and accuracy are sums over the images of an epoch, kept as tensors on the device and read once when it ends.
    Those of `train/` are taken during the epoch, with dropout on and weights changing, as Keras does.

    One training step may be several of the optimiser, as many as its `Batch` has mini-batches: what Lightning does for
    a step takes as long as a small network's arithmetic, and so is done less often.

    Args:
        net: float32 (B, C, H, W) → logits (B, num_classes).
        loss: (logits, labels int64 (B,)) → the mean loss over the batch, a scalar.
        optimizer: makes an optimiser of the network's parameters.
        schedule: makes its schedule, as `make_schedule` calls it; None for a constant rate.
        clip: the largest norm of the gradients, or value where the Trainer clips by value, above 0; None: no clipping.
        accumulate: mini-batches a step of the optimiser, 1 or more.
    """

    def __init__(
        self,
        net: nn.Module,
        loss: Callable[[Tensor, Tensor], Tensor],
        optimizer: Callable[[Iterable[nn.Parameter]], Optimizer],
        schedule: Callable[..., LRScheduler] | None = None,
        clip: float | None = None,
        accumulate: int = 1,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.net = net
        self.loss = loss
        self.make_optimizer = optimizer
        self.make_schedule = schedule
        self.clip = clip
        self.accumulate = accumulate
        self.direct = False
        """Whether steps go straight to PyTorch: where no hook, clipping, scaler or other process takes part in them."""
        self.compiled = False
        """Whether PyTorch has compiled the network."""
        self.replay: Replay | None = None
        """Repeats the operations of the first step."""
        self.metrics: dict[str, float] = {}
        """Of the latest epoch: train/loss, train/acc, val/loss, val/acc, lr; of a test: test/loss, test/acc, test/n."""
        self.mini_batches_done = (0, 0)
        """Of the latest epoch, and how many it has."""
        self.processes: list[int] = []
        """How many train; where a resumed run has others than before, one number after the other."""
        self._sums: dict[str, tuple[Tensor, int]] = {}
        self._random: dict[str, Any] | None = None
        self._position: dict[str, int] | None = None
        self._frozen: set[str] | None = None
        self._weights: dict[str, Tensor] | None = None
        self._by_epoch = False
        self._start = self._end = self._trained = 0.0

    def forward(self, images: Tensor) -> Tensor:
        """Logits, (B, num_classes), of images, float32 (B, C, H, W)."""
        logits: Tensor = self.net(images)
        return logits

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Goes through the mini-batches, each a step down the gradient of its mean loss; gives the last one's loss."""
        optimizer, schedule = self.optimizers(), self.lr_schedulers()
        assert isinstance(optimizer, LightningOptimizer)
        number = batch_idx * self._steps
        end = self._mini_batches if batch_idx + 1 == self.trainer.num_training_batches else None
        # Between training steps callbacks may have changed the network, its loss, or how steps are made.
        direct = self.direct and self.clip is None
        if self.replay is not None:
            self.replay.check(self.net, self.loss)
        self.metrics.setdefault("lr", optimizer.param_groups[0]["lr"])  # of an epoch that ends before its first step
        outcomes = []
        for images, labels in batch.mini_batches():
            logits, loss = self._differentiate(images, labels, number)
            number += 1
            if number % self.accumulate == 0 or number == end:
                self.metrics["lr"] = optimizer.param_groups[0]["lr"]
                if direct:
                    optimizer._on_before_step()  # counts the step, as `step` does
                    optimizer.optimizer.step()
                    optimizer._on_after_step()
                else:
                    optimizer.step()
                if schedule is not None and not self._by_epoch:
                    schedule.step()  # type: ignore[union-attr]
            outcomes.append((logits, loss))
        # Lightning's count for the loggers, one behind until the step's hooks are over, is of its own training steps.
        self.trainer.fit_loop.epoch_loop._batches_that_stepped = self.step_of_curves
        self._count("train", outcomes, batch)
        self.mini_batches_done = number, self._mini_batches
        self._end = time.perf_counter()
        if self.device.type == "cpu" and self.trainer.world_size == 1:  # elsewhere to look would be to wait
            self._look_for_divergence(number - len(outcomes), [loss for _, loss in outcomes])
        if end is not None:
            self._trained = self._log_sums("train")
        return outcomes[-1][1]

    @property
    def step_of_curves(self) -> int:
        """The optimiser's last step, from 0, at which Lightning draws what an epoch has measured."""
        return max(0, self.trainer.global_step - 1)

    def look_for_divergence_anywhere(self) -> None:
        """Raises Diverged, in all processes, if a loss of one of them in this epoch is not finite.

        Where one process trains on the CPU each training step has looked already.
        """
        if "train" in self._sums:
            loss = float(self.trainer.strategy.reduce(self._sums["train"][0][0].clone(), reduce_op="sum"))
            self._require_finite(loss)
            self._require_finite_weights()

    def accumulates(self, batch_idx: int) -> bool:
        """Whether gradients wait for more mini-batches when the training step of this number is over."""
        return (batch_idx + 1) * self._steps % self.accumulate != 0

    def _look_for_divergence(self, number: int, losses: list[Tensor]) -> None:
        """Raises Diverged if one of the losses, of mini-batches from this number on, is not finite."""
        if math.isfinite(float(torch.stack(losses).sum())):
            return
        loss, number = next((float(v), number + n) for n, v in enumerate(losses, 1) if not math.isfinite(float(v)))
        where = f"mini-batch {number:,} of epoch {self.trainer.current_epoch + 1}"
        raise Diverged(
            f"training diverged: in {where} the loss is {loss}, at a learning rate of {self.metrics['lr']:g}"
        )

    def _differentiate(self, images: Tensor, labels: Tensor, number: int) -> tuple[Tensor, Tensor]:
        """Logits and mean loss of the mini-batch of this number, whose gradients are in the parameters afterwards."""
        if self.replay is not None and self.accumulate == 1 and (found := self.replay(images, labels)) is not None:
            return found
        if number % self.accumulate == 0:
            optimizer: Any = self.optimizers()
            for callback in () if self.direct else self.trainer.callbacks:  # type: ignore[attr-defined]
                callback.on_before_zero_grad(self.trainer, self, optimizer)  # which Lightning leaves to who does this
            optimizer.zero_grad()
        logits, loss = self._predict(images, labels)
        weight = self._weight(number, labels)
        loss_of_step = loss if weight == 1 else loss * weight
        if self.direct:
            loss_of_step.backward()
        else:
            self.manual_backward(loss_of_step)
        return logits.detach(), loss.detach()

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Clips the gradients, which mixed precision has scaled back by now, in the way that the Trainer says."""
        if self.clip is not None:
            self.clip_gradients(optimizer, self.clip)

    def on_train_batch_end(self, *_: Any) -> None:
        """Ends the training where trainer.max_steps does: Lightning would, but without validating what it came to."""
        if self.trainer.global_step == self.trainer.max_steps:
            self.trainer.should_stop = True

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Counts validation images."""
        self._count("val", [self._predict(*mini_batch) for mini_batch in batch.mini_batches()], batch)
        if [batch_idx + 1] == self.trainer.num_val_batches and not self.trainer.sanity_checking:
            self._log_sums("val")  # callbacks ask for them before the module's own hook is called

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Counts test images."""
        self._count("test", [self._predict(*mini_batch) for mini_batch in batch.mini_batches()], batch)

    def on_train_epoch_start(self) -> None:
        """Forgets the epoch before."""
        self.metrics.clear()
        self._start = time.perf_counter()

    def on_train_epoch_end(self) -> None:
        """Logs train/loss, train/acc, images a second of training alone, and the learning rate of the last step."""
        images = self._log_sums("train") or self._trained  # an epoch may have ended early
        schedule: Any = self.lr_schedulers()
        if isinstance(schedule, Plateau):
            if schedule.monitor in self.metrics:
                schedule.step(self.metrics[schedule.monitor])
        elif self._by_epoch:
            schedule.step()
        self._require_finite_weights()
        self._tell({"train/images_per_second": images / (self._end - self._start), "lr": self.metrics["lr"]})

    def on_validation_model_zero_grad(self) -> None:
        """Keeps the last gradients of the epoch, which Lightning would drop, for callbacks that look when it ends."""

    def on_validation_epoch_end(self) -> None:
        """Logs val/loss and val/acc."""
        self._log_sums("val")

    def on_test_epoch_end(self) -> None:
        """Logs test/loss and test/acc."""
        self._log_sums("test")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keeps the random numbers' state and what has been counted of an epoch, so that a stopped run goes on."""
        checkpoint["processes"] = self.processes
        checkpoint["frozen"] = [name for name, weight in self.named_parameters() if not weight.requires_grad]
        own = self.state_dict()
        checkpoint["resume_from"] = None if same(own, checkpoint["state_dict"]) else own
        states = random_numbers.collect(self.device)
        checkpoint["random"] = {kind: self._of_each(state) for kind, state in states.items()}
        elapsed = time.perf_counter() - self._start
        shares = {
            stage: self._of_each(torch.cat([sums, sums.new_tensor([n])])) for stage, (sums, n) in self._sums.items()
        }
        done = self.mini_batches_done
        checkpoint["counted"] = {"sums": shares, "metrics": self.metrics, "elapsed": elapsed, "mini_batches": done}
        batches = self.trainer.train_dataloader
        checkpoint["batches"] = batches.state_dict() if isinstance(batches, Batches) else None
        # Where loggers see the run: Lightning adds one when it goes on from within a training step, and only then.
        progress: Any = self.trainer.fit_loop.epoch_loop.batch_progress.total
        within = progress.completed < progress.processed
        checkpoint["loops"]["fit_loop"]["epoch_loop.state_dict"]["_batches_that_stepped"] = (
            self.trainer.global_step - within
        )

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Finds them again; the random numbers' state and the batches' are set when the training begins."""
        self._random, self._position = checkpoint["random"], checkpoint["batches"]
        self.processes = list(checkpoint["processes"])
        self._frozen = set(checkpoint["frozen"])
        if "resume_from" in checkpoint:  # which earlier versions didn't keep
            self._weights = checkpoint["resume_from"] or checkpoint["state_dict"]
        counted = checkpoint["counted"]
        self._start = time.perf_counter() - counted["elapsed"]
        for stage, shares in counted["sums"].items():
            *found, n = shares[self.trainer.global_rank].tolist()
            self._sums[stage] = (torch.tensor(found, dtype=torch.float32), int(n))
        self.metrics = dict(counted["metrics"])
        self.mini_batches_done = tuple(counted.get("mini_batches", self.mini_batches_done))

    def on_train_start(self) -> None:
        """Goes on with what the checkpoint has, if there is one: random numbers, frozen weights, place in the epoch."""
        batches = self.trainer.train_dataloader
        if self._weights is not None:
            restore(self, self._weights)
            self._weights = None
        if self._frozen is not None:
            for name, weight in self.named_parameters():
                weight.requires_grad_(name not in self._frozen)
        self._sums = {stage: (sums.to(self.device), n) for stage, (sums, n) in self._sums.items()}
        # Lightning does this itself, but not where a schedule has asked it for the number of steps before.
        if self._position is not None and isinstance(batches, Batches) and self.trainer.fit_loop.restarted_mid_epoch:
            if self._position.get("steps") != batches.steps:  # Lightning counts steps, and would go on elsewhere
                raise UserError(
                    f"the run was stopped in the middle of epoch {self.trainer.current_epoch + 1}, and its training "
                    f"steps weren't of {batches.steps} mini-batches as they are now: go on with the version of this "
                    "program, the callbacks and the limits that it had, or start anew"
                )
            batches.load_state_dict(self._position)
        rank, before = self.trainer.global_rank, self.processes[-1:]
        if not before or before[0] != self.trainer.world_size:
            self.processes.append(self.trainer.world_size)
        if self._random is not None and self.processes[-1:] == before:
            random_numbers.restore({kind: states[rank] for kind, states in self._random.items()}, self.device)
        elif self._random is not None:  # of other processes: from the seed that this one began with, others than then
            torch.manual_seed(seed_of("dropout", torch.initial_seed(), self.trainer.current_epoch))

    def _of_each(self, tensor: Tensor) -> Tensor:
        """The tensors (n,) of all processes: (processes, n), on the device where this one's is."""
        if self.trainer.world_size == 1:
            return tensor[None]
        mine = tensor.to(self.device)
        found = [torch.empty_like(mine) for _ in range(self.trainer.world_size)]
        torch.distributed.all_gather(found, mine)
        return torch.stack(found).to(tensor.device)

    def on_validation_start(self) -> None:
        """Has all processes judge the same network: what layers count for themselves is the first one's."""
        if self.trainer.world_size > 1:
            for buffer in self.net.buffers():
                torch.distributed.broadcast(buffer, 0)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The optimiser and its schedule."""
        optimizer = self.make_optimizer(self.net.parameters())
        if self.make_schedule is None:
            return optimizer
        total_steps = self._total_steps()
        epochs = total_steps / -(-self._mini_batches // self.accumulate)
        schedule, self._by_epoch = make_schedule(self.make_schedule, optimizer, total_steps, epochs)
        return {"optimizer": optimizer, "lr_scheduler": schedule}

    def _predict(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Logits, and their mean loss."""
        logits = self(self.trainer.precision_plugin.convert_input(images))
        if self.compiled:  # a CUDA graph writes what it gives to the same place each time
            logits = logits.clone()
        # Of a batch smaller than the number of processes some get nothing, and the mean of nothing would be NaN; so
        # would that of images whose classes have no weight.
        of_classes = self._class_weights
        counted = len(labels) if of_classes is None else float(of_classes[labels].sum())
        return logits, self.loss(logits, labels) if counted > 0 else logits.sum() * 0.0

    @property
    def _steps(self) -> int:
        """Mini-batches a training step."""
        batches = self.trainer.train_dataloader
        return batches.steps if isinstance(batches, Batches) else 1

    @property
    def _mini_batches(self) -> int:
        """Mini-batches an epoch."""
        batches = self.trainer.train_dataloader
        if isinstance(batches, Batches) and batches.steps > 1:
            return batches.mini_batches
        count = self.trainer.num_training_batches
        return int(count) if math.isfinite(count) else 0  # until there is data: log_graph asks for every attribute

    def _total_steps(self) -> int:
        """Steps of the optimiser that the run will take."""
        most = self.trainer.estimated_stepping_batches  # of training steps; and it sets up the batches to be counted
        if most == float("inf"):
            raise UserError("schedule: it needs to know how many steps there will be: give trainer.max_epochs=N")
        if self.trainer.max_epochs in (None, -1):
            return int(most)
        steps = self.trainer.max_epochs * -(-self._mini_batches // self.accumulate)
        return steps if self.trainer.max_steps == -1 else min(steps, self.trainer.max_steps)

    def _weight(self, number: int, labels: Tensor) -> float:
        """Return what a mini-batch's mean loss counts in the mean over all images of one step of the optimiser.

        A step may be of several mini-batches, of which an epoch's last is smaller and its last group shorter; and of
        several processes, whose shares need not be equal and whose gradients are averaged.

        Args:
            number: the mini-batch's, from 0.
            labels: int64 (n,), of this process's share of it.
        """
        processes = self.trainer.world_size
        if processes == self.accumulate == 1:
            return 1.0
        batches = self.trainer.train_dataloader
        assert isinstance(batches, Batches)
        first = number - number % self.accumulate
        end = min(first + self.accumulate, self._mini_batches)
        if self._class_weights is None:
            return len(labels) * processes / sum(map(batches.mini_batch_size, range(first, end)))
        everything = float(self._class_weights[batches.labels_of(first, end)].sum())
        mine = float(self._class_weights[labels].sum())
        return mine * processes / everything if everything > 0 else 0.0

    @property
    def _class_weights(self) -> Tensor | None:
        """(classes,): the loss divides by the sum of its images' weights; None where it divides by their number."""
        if not isinstance(self.loss, nn.CrossEntropyLoss | nn.NLLLoss):
            return None
        weights, ignored = self.loss.weight, self.loss.ignore_index
        if ignored < 0:  # which no label is
            return weights
        classes: int = self.trainer.datamodule.num_classes  # type: ignore[attr-defined]
        weights = torch.ones(classes, device=self.device) if weights is None else weights.clone()
        weights[ignored:][:1] = 0
        return weights

    def _count(self, stage: str, outcomes: list[tuple[Tensor, Tensor]], batch: Batch) -> None:
        """Adds to the sums: loss, correct answers and, if classes have weights, theirs, as tensors on the device, which
        nothing waits for; and images.
        """
        with torch.no_grad():
            correct = (torch.cat([logits for logits, _ in outcomes]).argmax(1) == batch.labels).sum()
            if self._class_weights is None:
                loss = torch.stack([loss.float() * n for (_, loss), n in zip(outcomes, batch.sizes, strict=True)]).sum()
                found = torch.stack([loss, correct.float()])
            else:
                weights = torch.stack([self._class_weights[part].sum() for part in batch.labels.split(batch.sizes)])
                loss = (torch.stack([loss.float() for _, loss in outcomes]) * weights).sum()
                found = torch.stack([loss, correct.float(), weights.sum()])
            sums, n = self._sums.get(stage, (torch.zeros_like(found), 0))
            self._sums[stage] = (sums + found, n + len(batch.labels))

    def _log_sums(self, stage: str) -> float:
        """Logs loss and accuracy of what was counted; gives the number of images."""
        if stage not in self._sums:  # an epoch without batches, as limit_val_batches=0 makes them
            return 0
        sums, images = self._sums.pop(stage)
        everything: Any = self.trainer.strategy.reduce(torch.cat([sums, sums.new_tensor([images])]), reduce_op="sum")
        loss, correct, *weights, n = everything.tolist()
        found = {f"{stage}/loss": loss / (*weights, n)[0], f"{stage}/acc": correct / n}
        self.metrics |= found
        if stage == "train":
            self._require_finite(loss)
        if stage == "test":
            self.metrics["test/n"] = n
        self._tell(found, curves=stage != "test")  # the hyperparameter table has the test's
        return float(n)

    def _require_finite(self, loss: float) -> None:
        """Raises Diverged if the sum of an epoch's losses is not finite."""
        if not math.isfinite(loss):
            epoch, lr = self.trainer.current_epoch + 1, self.metrics["lr"]
            raise Diverged(f"training diverged: in epoch {epoch} the loss is {loss}, at a learning rate of {lr:g}")

    def _require_finite_weights(self) -> None:
        """Raises Diverged if a weight is not finite: where a ReLU or a max-pool drops NaN the loss doesn't show it."""
        names, weights = zip(*self.net.named_parameters(), strict=True)
        # Finite sums are those of finite weights, and take a fifth of the time; only else is each weight looked at.
        sums = torch.stack([weight.detach().sum() for weight in weights])
        finite = sums.isfinite().all().float()
        if float(self.trainer.strategy.reduce(finite, reduce_op="mean")) == 1:
            return
        for name, weight in zip(names, weights, strict=True):
            if not bool(weight.isfinite().all()):
                epoch = self.trainer.current_epoch + 1
                raise Diverged(f"training diverged: in epoch {epoch} weights of {name} are infinite or not a number")

    def _tell(self, found: dict[str, float], curves: bool = True) -> None:
        """Gives metrics to callbacks, and to the loggers at once: a checkpoint of an epoch comes after its curves."""
        self.log_dict(found, logger=False, on_step=False, on_epoch=True, batch_size=1)
        if curves and not self.trainer.sanity_checking:
            for logger in self.trainer.loggers:
                logger.log_metrics(found | {"epoch": self.trainer.current_epoch}, self.step_of_curves)
