"""What makes training fast changes no number; what can't be done is refused; the benchmark measures what it says."""

import csv
import os
import re
import signal
import subprocess
import sys
import time
from base64 import b64decode
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
import warm
from conftest import Command, needs_mnist, result_in
from lightning.pytorch.callbacks import LambdaCallback
from PIL import Image

from mnist_lab import bench, build, checks, train
from mnist_lab import trainer as trainers
from mnist_lab.bench.contenders import CONTENDERS
from mnist_lab.composing import compose_config
from mnist_lab.composing import run_config as resolved
from mnist_lab.errors import UserError
from mnist_lab.fast import steps
from mnist_lab.fast.process import BFLOAT16
from mnist_lab.trainer import build_trainer

SHORT = ["data=mnist_5k", "trainer=cpu", "logger=none", "trainer.max_epochs=2", "report=false"]


def numbers(folder: Path) -> list[tuple[float, float]]:
    result = result_in(folder)
    return [(row["train/loss"], row["train/acc"]) for row in result.history] + [
        (result.test["loss"], result.test["acc"])
    ]


@pytest.mark.slow
def test_optimizer_state_has_no_denormal_numbers(lab: Command, tmp_path: Path) -> None:
    # Near the border a pixel is lit in one mini-batch of hundreds, and dark in the next thousand.
    words = ["model=mlp_512", "model.hidden=8", *SHORT, "trainer.max_epochs=5", "data.val=none", "data.batch_size=4"]
    assert lab(*words, f"hydra.run.dir={tmp_path / 'run'}").returncode == 0
    states = torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)["optimizer_states"][0]["state"]
    means = states[0]["exp_avg"]
    assert (means == 0).any(), "some have ended"
    assert not ((means != 0) & (means.abs() < torch.finfo(torch.float32).tiny)).any()


@pytest.mark.slow
def test_train_does_not_flush_denormals_in_the_callers_process(tmp_path: Path) -> None:
    train("model=mlp_784_32", *SHORT, "data.train_size=300", "trainer.max_epochs=1", run_dir=tmp_path / "run")
    assert (torch.full((2**20,), 1e-30) * 1e-10 > 0).all()


@pytest.mark.slow
def test_a_callback_on_batches_sees_each_of_them(lab: Command, tmp_path: Path) -> None:
    (tmp_path / "follower.py").write_text(
        "from pathlib import Path\n"
        "from lightning.pytorch.callbacks import Callback\n"
        "class Follower(Callback):\n"
        "    def __init__(self, path):\n"
        "        self.path, self.seen = path, []\n"
        "    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):\n"
        "        self.seen.append((trainer.global_step, len(batch[1])))\n"
        "    def on_fit_end(self, trainer, module):\n"
        "        Path(self.path).write_text(repr(self.seen))\n"
    )
    done = lab(
        "model=mlp_512", *SHORT, "trainer.max_epochs=1", "data.batch_size=100", "data.val=none",
        f"hydra.run.dir={tmp_path / 'run'}",
        "+callbacks.follower._target_=follower.Follower", f"+callbacks.follower.path={tmp_path / 'seen'}",
        PYTHONPATH=str(tmp_path),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "seen").read_text() == repr([(step, 100) for step in range(1, 41)])


def test_a_lambda_callback_on_batches_makes_single_steps() -> None:
    cfg = resolved(compose_config([*SHORT, "model=mlp_512"]))
    follower = LambdaCallback(on_train_batch_end=lambda *_: None)
    ways: list[tuple[dict[str, L.Callback], str, str | None]] = [
        ({}, "several at a time", None),
        ({"own": follower}, "one at a time", "callbacks.own follows them"),
    ]
    for callbacks, together, why in ways:
        data, trainer = build.build_data(cfg), build_trainer(cfg, Path("run"), [*callbacks.values()])
        data.prepare_data()
        data.setup("fit")
        module = build.build_module(cfg, data)
        assert steps.choose_step_path(trainer, data, module, callbacks) == steps.StepPath(together, why)


@pytest.mark.slow
def test_half_precision_on_a_cpu_is_refused(lab: Command, tmp_path: Path) -> None:
    done = lab(*SHORT, "trainer.precision=16-mixed", f"hydra.run.dir={tmp_path / 'run'}")
    assert done.returncode == 2 and not (tmp_path / "run").exists()
    assert "16-mixed needs a GPU" in done.stderr and "bf16-mixed" in done.stderr


@pytest.mark.slow
def test_bfloat16_is_refused_on_processors_that_emulate_it_and_auto_is_float32(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def trainer_of(precision: str, computes: bool) -> L.Trainer:
        monkeypatch.setattr(checks, "X86", True)
        for module in (trainers, checks):
            monkeypatch.setattr(module, "BFLOAT16", computes)
        cfg = resolved(compose_config(["trainer=cpu", "logger=none", f"trainer.precision={precision}"]))
        trainer = build_trainer(cfg, tmp_path, [])
        checks.check_device(cfg, trainer)
        return trainer

    assert trainer_of("bf16-mixed", computes=True).precision == "bf16-mixed"
    assert trainer_of("auto", computes=True).precision == "bf16-mixed"
    assert trainer_of("auto", computes=False).precision == "32-true"
    with pytest.raises(UserError, match=r"bf16-mixed needs a processor with AVX-512 BF16 or AMX.*32-true"):
        trainer_of("bf16-mixed", computes=False)


@pytest.mark.slow
def test_a_run_records_the_precision_that_auto_chose(lab: Command, tmp_path: Path) -> None:
    done = lab(*SHORT, "trainer=cpu", "trainer.precision=auto", f"hydra.run.dir={tmp_path / 'run'}")
    assert done.returncode == 0, done.stderr
    chosen = result_in(tmp_path / "run").machine["precision"]
    assert chosen == ("bf16-mixed" if BFLOAT16 else "32-true")
    assert ("cpu in bf16-mixed" in done.stdout + done.stderr) == BFLOAT16
    assert "not supported" not in done.stderr


@pytest.mark.slow
def test_only_compile_needs_a_compiler(lab: Command, tmp_path: Path) -> None:
    nowhere = {"PATH": str(tmp_path), "CXX": ""}
    done = lab(*SHORT, "compile=default", f"hydra.run.dir={tmp_path / 'run'}", **nowhere)
    assert done.returncode == 2 and "needs a C++ compiler" in done.stderr and not (tmp_path / "run").exists()
    assert lab("model=cnn", *SHORT, f"hydra.run.dir={tmp_path / 'run'}", **nowhere).returncode == 0


@pytest.mark.slow
@pytest.mark.skipif(not any(Path(p, "g++").exists() for p in os.get_exec_path()), reason="there is no C++ compiler")
def test_a_compiled_network_learns_what_the_plain_one_does(lab: Command, tmp_path: Path) -> None:
    # Mini-batches of one size: each other size is compiled anew.
    same = ["data.train_size=1000", "data.batch_size=100", "data.eval_batch_size=1000", "data.val=none"]
    for name, words in {"plain": [], "compiled": ["compile=default"]}.items():
        done = lab("model=mlp_512", "model.hidden=[64]", *SHORT, *same, *words, f"hydra.run.dir={tmp_path / name}")
        assert done.returncode == 0, done.stderr
    for plain, compiled in zip(numbers(tmp_path / "plain"), numbers(tmp_path / "compiled"), strict=True):
        assert compiled == pytest.approx(plain, rel=1e-3)


@pytest.mark.slow
@needs_mnist
def test_the_benchmark_leaves_a_table_a_chart_and_its_measurements(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    words = ["bench", "rounds=1", "epochs=2", "networks=C", "contenders=ours,pytorch", f"dir={tmp_path}"]
    done = warm.lab(words, tmp_path, helpers=2)
    assert done.returncode == 0, done.stderr
    table = (tmp_path / "table.md").read_text()
    assert "ours ÷ best of PyTorch loop, Keras" in table and "arithmetic floor" in table
    rows = list(csv.DictReader((tmp_path / "measurements.csv").open()))
    assert sorted(row["contender"] for row in rows) == ["ours", "pytorch"]
    for row in rows:
        assert 0 < float(row["evaluation_s"]) < float(row["epoch_s"]) < float(row["command_s"])
        assert 0.3 < float(row["memory_gb"]) < 3
    assert (tmp_path / "chart.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
@needs_mnist
def test_the_benchmark_changes_the_order_of_contenders_each_round(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")
    names = ["ours", "our_loop", "pytorch"]
    orders: list[list[str]] = [[] for _ in range(4)]

    def measured(number: int, network: str, name: str, *_: object) -> bench.Row:
        orders[number - 1].append(name)
        return bench.Row(number, network, name, 1.0, 0.1, 4.0, 0.9, 3.0, 0.9)

    monkeypatch.setattr(bench, "measure", measured)
    monkeypatch.setattr(bench, "peak", lambda: 4e11)
    bench.bench(["rounds=4", "networks=C,C", f"contenders={','.join(names)}", f"dir={tmp_path}"])
    assert all(sorted(order) == sorted(names) for order in orders)
    assert len({order[0] for order in orders}) > 1


@pytest.mark.parametrize(
    ("word", "answer"),
    [
        ("contenders=keras", "Did you mean keras_tensorflow?"),
        ("networks=E", "They are: A3, B, C, D"),
        ("rounds=0", "a whole number, 1 or more"),
        ("rounds=-1", "error: rounds=-1 is not allowed: it must be a whole number, 1 or more.\n"),
        ("round=1", "Did you mean rounds?"),
        ("networks=fast99 contenders=nonsense", "contenders=nonsense is not allowed"),
        ("networks=fast99 epochs=3000", "epochs=3000 is not allowed"),
    ],
)
def test_the_benchmark_answers_mistakes_in_a_line(lab: Command, word: str, answer: str) -> None:
    done = lab("bench", *word.split())
    assert done.returncode == 2 and answer in done.stderr and "Traceback" not in done.stderr


@pytest.mark.slow
@needs_mnist
@pytest.mark.skipif(not Path("/proc/self").exists(), reason="there is no /proc")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_stopped_benchmark_leaves_nothing_running(number: signal.Signals, tmp_path: Path) -> None:
    words = ["bench", "rounds=1", "epochs=1000", "networks=D", "contenders=pytorch", "dir=measured"]
    program = warm.start(words, tmp_path, tmp_path / "shown")
    children = Path(f"/proc/{program.pid}/task/{program.pid}/children")
    for _ in range(600):
        if measured := children.read_text().split():
            break
        time.sleep(0.05)
    assert program.pid is not None
    os.kill(program.pid, number)
    program.join(60)
    try:
        assert program.exitcode == (-number if number == signal.SIGKILL else 128 + number)
    finally:
        program.kill()  # where it didn't stop it would measure for minutes beside the other tests
    for _ in range(100):
        left = [process for process in measured if Path("/proc", process).exists()]
        if not left:
            break
        time.sleep(0.05)
    for process in left:
        os.kill(int(process), signal.SIGKILL)
    assert not left


STOPPED = """
import os, signal, sys, time
from mnist_lab.bench.contenders import running

signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
os.register_at_fork(after_in_parent=lambda: os.kill(os.getpid(), signal.SIGTERM))
with running(["json.tool", "--help"]):
    time.sleep(30)
"""


def test_a_signal_while_a_program_is_started_stops_the_benchmark() -> None:
    assert subprocess.run([sys.executable, "-c", STOPPED], timeout=25).returncode == 143


@pytest.mark.parametrize("networks", [["A3"], ["A3", "D"]])
def test_the_benchmarks_chart_is_drawn_whole(networks: list[str], tmp_path: Path) -> None:
    rows = [bench.Row(1, n, name, 1.0, 0.1, 4.0, 0.9, 3.0, 0.9) for n in networks for name in CONTENDERS]
    where = f"A processor with {15 * 'very '}long a name, 2 cores, torch 2.15.0, 2026-11-23"
    bench.chart(rows, 4e11, tmp_path / "chart.png", where)
    drawn = np.asarray(Image.open(tmp_path / "chart.png").convert("L")) < 250
    for edge in (drawn[:3], drawn[-3:], drawn[:, :3], drawn[:, -3:]):
        assert not edge.any()


def test_the_benchmark_overwrites_nothing_and_says_so_before_it_measures(lab: Command, tmp_path: Path) -> None:
    (tmp_path / "measured").mkdir()
    (tmp_path / "measured/table.md").write_text("of last week")
    for networks in ("networks=fast99", "networks=C"):
        for folder in ("measured", "measured/table.md", "measured/table.md/x"):
            done = lab("bench", networks, "rounds=1", f"dir={folder}")
            assert done.returncode == 2 and done.stdout == ""
            assert done.stderr.startswith(f"error: dir={folder} ") and len(done.stderr.splitlines()) == 1


def test_compare_draws_the_benchmarks_measurements_beside_runs(lab: Command, cnn_run: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    rows = ["1,B,ours,31.4,0.98", "1,B,keras_jax,210.1,0.9901", "2,B,keras_jax,209.9,0.9899"]
    (tmp_path / "bench").mkdir()
    (tmp_path / "bench/measurements.csv").write_text("\n".join(["round,network,contender,train_s,acc", *rows, ""]))
    (tmp_path / "bench/race.csv").write_text("round,network,contender,train_s,acc\n0,fast99,record,4.96,0.9898\n")
    done = lab("compare", str(cnn_run), "bench", "dir=page")
    assert done.returncode == 0, done.stderr
    pictures = re.findall(r"data:image/svg\+xml;base64,([^\"]+)", (tmp_path / "page/compare.html").read_text())
    drawn = b64decode(pictures[-1]).decode()
    assert "Keras on JAX" in drawn and "the public record recipe" in drawn and "python -m mnist_lab" not in drawn
    (tmp_path / "bench/race.csv").write_text("round,network,contender,train_s,acc\n0,fast99,record,4.96,\n")
    done = lab("compare", str(cnn_run), "bench", "dir=page")
    assert done.returncode == 2 and "race.csv is not as the benchmark leaves it" in done.stderr
    assert "Traceback" not in done.stderr
