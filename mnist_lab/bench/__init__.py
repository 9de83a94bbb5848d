"""The verb `bench`: measures our command and its peers at the same work, in turn, on this machine."""

from __future__ import annotations

import csv
import importlib.util
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import datetime
from functools import cache
from pathlib import Path
from statistics import median

from mnist_lab.bench.contenders import BEST_OF, CONTENDERS, MEASURED, NEEDS, NETWORKS, running
from mnist_lab.errors import UserError, no_such

USAGE = (
    "use: python -m mnist_lab bench [rounds=3] [epochs=3 or articles] [networks=A3,B,C,D] [contenders=NAME,NAME] "
    "[dir=outputs/bench], or bench networks=fast99 [rounds=3]"
)
ARTICLES = {"A3": 4, "B": 10, "C": 20, "D": 5}
"""Epochs for which the articles train."""
# Floating-point operations per training image: for each weight two forward, two for its gradient and two for its
# input's gradient, which the first layer doesn't need.
_CONVOLVED, _DENSE = 24 * 24 * 30 * 25, 4320 * 128 + 128 * 10
FLOP = {
    "A3": 4 * 784 * 512 + 6 * (512 * 512 + 512 * 10),
    "B": 4 * _CONVOLVED + 6 * _DENSE,
    "C": 4 * 784 * 784 + 6 * (784 * 32 + 32 * 10),
    "D": 4 * 784 * 512 + 6 * 512 * 10,
}


@dataclass
class Row:
    """The measurements of one contender with one network in one round."""

    round: int
    network: str
    contender: str
    epoch_s: float
    """Median of the epochs after the first, including validation on the 10,000 test images."""
    evaluation_s: float
    """Median of the evaluations of the 10,000 test images after the first."""
    command_s: float
    """The whole process, from start to exit."""
    memory_gb: float
    """Peak memory, in 10⁹ bytes."""
    train_s: float
    """All epochs, including validation."""
    acc: float
    """Accuracy on the 10,000 test images after the last epoch, in [0, 1]."""


def bench(words: list[str]) -> None:
    """Measure, print a table, and write DIR/table.md, DIR/chart.png and DIR/measurements.csv.

    Args:
        words: `rounds=N` (3); `epochs=N` (3): epochs to train, of which the first is not counted, or `epochs=articles`:
            as many as in the articles; `networks=NAME,NAME` and `contenders=NAME,NAME` (all); `dir=DIR`
            (outputs/bench), a new or an empty folder. `networks=fast99` compares that recipe with the public record
            instead, and writes DIR/race.md and DIR/race.csv. `compare` draws the peers of such a folder beside our own
            runs.

    Raises:
        UserError: a word is not understood, a peer or the data set is missing, the folder can't be written to or has
            files already, or a contender failed.
    """
    from mnist_lab.folders import check_folder
    from mnist_lab.rules import whole_number
    from mnist_lab.words import parse_options, path_of

    defaults = {"rounds": "3", "epochs": "3", "networks": "", "contenders": "", "dir": "outputs/bench"}
    own = parse_options(words, defaults, USAGE)
    racing = own["networks"] == "fast99"
    for key in ("epochs", "contenders"):
        if racing and own[key] != defaults[key]:
            raise UserError(
                f"{key}={own[key]} is not allowed: networks=fast99 has an epoch and two contenders of its own"
            )
    networks = [] if racing else _chosen("networks", own, NETWORKS)
    contenders = [] if racing else _chosen("contenders", own, tuple(CONTENDERS))
    rounds = whole_number("rounds", own["rounds"], 1)
    epochs = None if own["epochs"] == "articles" else whole_number("epochs", own["epochs"], 2)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what is measured is ended too
    folder = path_of(own["dir"])
    check_folder("dir", str(folder), fresh=True)
    root = _data_root(contenders)
    if racing:
        from mnist_lab.bench.race import race

        race(rounds, folder, root)
    else:
        _measure_all(rounds, networks, contenders, epochs, folder, root)


def _data_root(contenders: list[str]) -> Path:
    """Return the folder of the data sets.

    Raises:
        UserError: MNIST is not there, or a contender is not installed.
    """
    from mnist_lab.composing import compose_config, run_config
    from mnist_lab.words import path_of

    needed = {need for name in contenders for need in NEEDS.get(name, ())}
    if missing := sorted(need for need in needed if not importlib.util.find_spec(need)):
        raise UserError(f"{' and '.join(missing)} not installed: pip install -e '.[bench]', or choose contenders=...")
    root = path_of(run_config(compose_config([])).data.root)
    if not (root / "MNIST" / "raw" / "train-images-idx3-ubyte").exists():
        raise UserError(f"data.root={root}: MNIST is not there. Any run downloads it: python -m mnist_lab model=mlp")
    return root


def _measure_all(
    rounds: int, networks: list[str], contenders: list[str], epochs: int | None, folder: Path, root: Path
) -> None:
    """Measure each contender with each network in each round; write the results after each measurement.

    Args:
        rounds: how often.
        networks: some of NETWORKS.
        contenders: some of CONTENDERS.
        epochs: how many each trains; None: as many as in the articles.
        folder: where the results go.
        root: the folder of the data sets.
    """
    rows: list[Row] = []
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(1, rounds + 1):
        for network in networks:
            # In another order each time: what comes right after a certain contender may be slower for it.
            for name in random.Random(f"{number} {network}").sample(contenders, len(contenders)):
                # These take so long that one steady epoch per round must do.
                short = name == "lightning" or (name, network) == ("keras_jax", "B")
                count = ARTICLES[network] if epochs is None else 2 if short else epochs
                row = measure(number, network, name, count, root)
                rows.append(row)
                print(
                    f"round {number}  {network:2}  {name:16}  {row.epoch_s:6.2f} s an epoch   "
                    f"{row.evaluation_s:5.3f} s to evaluate   {row.command_s:5.1f} s and {row.memory_gb:.2f} GB in all",
                    flush=True,
                )
                _write(folder, rows)
    print((folder / "table.md").read_text())
    print(f"{folder}/table.md  {folder}/chart.png  {folder}/measurements.csv")


def measure(number: int, network: str, name: str, epochs: int, root: Path) -> Row:
    """Run one contender in a process of its own.

    Args:
        number: the round, from 1.
        network: one of NETWORKS.
        name: one of CONTENDERS.
        epochs: epochs to train, 2 or more.
        root: the folder of the data sets, as data.root.

    Raises:
        UserError: it failed.
    """
    with tempfile.TemporaryDirectory() as scratch:
        environment = {**os.environ, "BENCH_DATA": str(root), "BENCH_DIR": scratch, "MNIST_LAB_DATA": str(root)}
        environment |= {"FORCE_COLOR": "1", "COLUMNS": "100", "TF_CPP_MIN_LOG_LEVEL": "3"}  # shows the progress bar
        module = {"our_loop": "our_loop", "pytorch": "pytorch_loop", "lightning": "lightning_template"}
        words = [f"mnist_lab.bench.{module.get(name, 'keras_fit')}", network, str(epochs)]
        clock = Path(scratch) / "clock.json"
        if name == "ours":
            from mnist_lab.bench.work import overrides

            words = ["mnist_lab", *overrides(network), f"trainer.max_epochs={epochs}", f"hydra.run.dir={scratch}/run"]
            words += ["report=false"]  # no contender draws figures
            words += ["+callbacks.clock._target_=mnist_lab.bench.ours.EpochClock", f"+callbacks.clock.path={clock}"]
        elif name in NEEDS:
            environment["KERAS_BACKEND"] = name.removeprefix("keras_")
        output = Path(scratch) / "output"
        start, most = time.perf_counter(), 0
        with (
            output.open("wb") as file,
            running(words, env=environment, stdout=file, stderr=subprocess.STDOUT) as process,
        ):
            while process.poll() is None:
                most = max(most, _most_memory(process.pid))
                time.sleep(0.05)
        took = time.perf_counter() - start
        printed = output.read_text(errors="replace")
        if process.returncode != 0:
            raise UserError(f"{name} failed on {network}:\n{printed[-2000:]}")
        found = json.loads(clock.read_text() if name == "ours" else _report(printed))
    return Row(
        number, network, name, median(found["epochs"][1:]), median(found["evaluations"][1:]), took,
        most / 1e9, sum(found["epochs"]), found["acc"],
    )  # fmt: skip


def _report(printed: str) -> str:
    """Return the line that `Clock.report` printed, which stands among bars and logs."""
    return printed[printed.rindex('{"epochs"') :].splitlines()[0]


def _most_memory(process: int) -> int:
    """Peak memory of a running process so far, in bytes; 0 where the system doesn't report it."""
    try:
        status = Path(f"/proc/{process}/status").read_text()
        return 1024 * int(status.partition("VmHWM:")[2].split()[0])
    except (OSError, IndexError):  # another system, or the process has just ended
        return 0


def floor(network: str, flops: float) -> float:
    """Least seconds that the arithmetic of an epoch of 60,000 images takes, at `flops` operations per second."""
    return FLOP[network] * 60_000 / flops


@cache
def peak() -> float:
    """Floating-point operations per second of this machine's fastest matrix product: the best of three sizes."""
    import torch

    from mnist_lab.models import Linear

    best = 0.0
    for size in (512, 1024, 2048):
        a = torch.randn(size, size)
        layer = Linear(size, size, bias=False)
        for _ in range(8):
            start = time.perf_counter()
            layer(a)
            best = max(best, 2 * size**3 / (time.perf_counter() - start))
    return best


def _chosen(key: str, own: dict[str, str], known: tuple[str, ...]) -> list[str]:
    names = list(dict.fromkeys(name for name in own[key].split(",") if name)) or list(known)
    for name in names:
        if name not in known:
            raise no_such(key, name, key.removesuffix("s"), known)
    return names


def _medians(rows: list[Row]) -> dict[tuple[str, str], Row]:
    """Return the medians over the rounds for each network and contender."""
    found = {}
    for key in dict.fromkeys((row.network, row.contender) for row in rows):
        of = [row for row in rows if (row.network, row.contender) == key]
        values = [
            median(getattr(row, name) for row in of)
            for name in ("epoch_s", "evaluation_s", "command_s", "memory_gb", "train_s", "acc")
        ]
        found[key] = Row(len(of), *key, *values)
    return found


def _ratios(rows: list[Row], network: str, others: tuple[str, ...]) -> list[float]:
    """For each round, our seconds per epoch divided by the best of the others' in the same round."""
    found = []
    for number in sorted({row.round for row in rows}):
        took = {row.contender: row.epoch_s for row in rows if (row.round, row.network) == (number, network)}
        if "ours" in took and (best := [took[name] for name in others if name in took]):
            found.append(took["ours"] / min(best))
    return found


def table(rows: list[Row], flops: float) -> Iterator[str]:
    """Yield the measurements as lines of Markdown.

    Args:
        rows: all measurements.
        flops: floating-point operations per second, from `peak`.
    """
    found = _medians(rows)
    networks = list(dict.fromkeys(row.network for row in rows))
    contenders = [name for name in CONTENDERS if any(row.contender == name for row in rows)]
    rounds = max(row.round for row in rows)
    yield f"Seconds for a steady epoch of 60,000 images with validation on 10,000, medians of {rounds} round(s)."
    yield ""
    yield "| | " + " | ".join(networks) + " |"
    yield "|---|" + "---|" * len(networks)
    cell = {key: f"{row.epoch_s:.2f}" for key, row in found.items()}
    for name in contenders:
        yield f"| {CONTENDERS[name]} | " + " | ".join(cell.get((network, name), "") for network in networks) + " |"
    yield f"| arithmetic floor, at {flops / 1e9:.0f} GFLOP/s | " + " | ".join(
        f"{floor(network, flops):.2f}" for network in networks
    ) + " |"  # fmt: skip
    for words, others in (
        ("ours ÷ best of PyTorch loop, Keras", BEST_OF),
        ("ours ÷ Lightning with DataLoader", ("lightning",)),
        ("ours ÷ the loop around our own parts", ("our_loop",)),
    ):
        ratios = {network: _ratios(rows, network, others) for network in networks}
        if any(ratios.values()):
            shown = [f"**{median(r):.2f}** ({min(r):.2f}–{max(r):.2f})" if r else "" for r in ratios.values()]
            yield f"| {words} | " + " | ".join(shown) + " |"
    for words, attribute, digits in (
        ("evaluation of 10,000 images, s", "evaluation_s", 3),
        ("whole command, s", "command_s", 1),
        ("most memory, GB", "memory_gb", 2),
    ):
        yield ""
        yield f"| {words} | " + " | ".join(networks) + " |"
        yield "|---|" + "---|" * len(networks)
        for name in contenders:
            cells = [
                f"{getattr(found[network, name], attribute):.{digits}f}" if (network, name) in found else ""
                for network in networks
            ]
            yield f"| {CONTENDERS[name]} | " + " | ".join(cells) + " |"


def chart(rows: list[Row], flops: float, path: Path, title: str) -> None:
    """Draw bars by network, and the arithmetic floor as a line across them.

    Args:
        rows: all measurements.
        flops: floating-point operations per second, from `peak`.
        path: the PNG file to write.
        title: the chart's title.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    found = _medians(rows)
    networks = list(dict.fromkeys(row.network for row in rows))
    contenders = [name for name in CONTENDERS if any(row.contender == name for row in rows)]
    # Okabe and Ito's colours, which colour-blind readers can tell apart, with hatches for print.
    looks = {
        "ours": ("#0072B2", ""), "our_loop": ("#56B4E9", "//"), "pytorch": ("#E69F00", ""),
        "keras_tensorflow": ("#009E73", ".."), "keras_jax": ("#CC79A7", "xx"), "lightning": ("#999999", "--"),
    }  # fmt: skip
    with mpl.rc_context({"font.size": 10, "hatch.linewidth": 0.5}):
        figure = Figure(figsize=(max(8.6, 2.6 * len(networks) + 0.8), 4.2), layout="constrained")
        for position, network in enumerate(networks, 1):
            axes = figure.add_subplot(1, len(networks), position)
            names = [name for name in contenders if (network, name) in found]
            for at, name in enumerate(names):
                values = [row.epoch_s for row in rows if (row.network, row.contender) == (network, name)]
                height, (colour, hatch) = found[network, name].epoch_s, looks[name]
                label = CONTENDERS[name] if position == 1 else None
                axes.bar(at, height, color=colour, hatch=hatch, edgecolor="white", label=label)
                axes.vlines(at, min(values), max(values), color="black", linewidth=1)
                axes.text(at, max(values), f"{height:.2g}\n", ha="center", va="center", fontsize=8)
            axes.axhline(
                floor(network, flops), color="black", linestyle=":", label="arithmetic floor" if position == 1 else None
            )
            axes.set_title(network)
            axes.set_xticks([])
            axes.margins(y=0.1)
            axes.spines[["top", "right"]].set_visible(False)
            if position == 1:
                axes.set_ylabel("seconds a steady epoch, validation included")
        figure.suptitle(title, fontsize=10, wrap=True)
        figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=9)
        figure.savefig(path, dpi=150)


def _write(folder: Path, rows: list[Row]) -> None:
    """Write the results so far, as a benchmark takes so long that it may be stopped."""
    from mnist_lab.environment import cores, package_versions, processor
    from mnist_lab.files import write_whole

    flops = peak()
    packages = package_versions()
    where = f"{processor()}, {cores()} cores, torch {packages['torch']}, {datetime.now():%Y-%m-%d}"
    write_whole(folder / "table.md", "\n".join([*table(rows, flops), "", where, ""]))
    with (folder / MEASURED[0]).open("w", newline="") as file:
        writer = csv.DictWriter(file, list(asdict(rows[0])))
        writer.writeheader()
        writer.writerows(map(asdict, rows))
    chart(rows, flops, folder / "chart.png", where)
