"""Make the pictures of the documents, each of real runs: `python .github/pictures/make.py [NAME ...] [--keep DIR]`.

    NAME      terminal, report, mistakes, comparison, tensorboard, draw, cost; without any, all
    --keep    a folder for the runs, which are not run again if they are there; else they go to a temporary one

Needs MNIST in the folder that MNIST_LAB_DATA names, Chromium, tmux, and `pip install -e ".[dev]"`. It takes a few
minutes. Run it on an idle machine: several of the pictures show seconds. `cost` is drawn from the tables in the
documents and needs no run.
"""

from __future__ import annotations

import io
import re
import shlex
import shutil
import subprocess
import sys
import time
from argparse import ArgumentParser
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from PIL import Image, ImageOps

if TYPE_CHECKING:
    from playwright.sync_api import Page

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
SHARP = 2
"""Pixels of a picture for each of the page's."""
FIRST = "model=mlp trainer.max_epochs=4"
SWEEP = "-m model=mlp,cnn 'seed=range(0,3)' data.val=random trainer.max_epochs=3"
FOUR = ((0.38, 0.16), (0.26, 0.56), (0.76, 0.56)), ((0.62, 0.22), (0.6, 0.86))
"""Strokes of a 4, as fractions of the paper's sides."""


def main() -> None:
    """Make the pictures that the command line names."""
    parser = ArgumentParser(description="Make the pictures of the documents.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(PICTURES))
    parser.add_argument("--keep", type=Path, help="folder for the runs")
    options = parser.parse_args()
    if unknown := [name for name in options.names if name not in PICTURES]:
        parser.error(f"{unknown[0]}: the pictures are {', '.join(PICTURES)}")
    with TemporaryDirectory() as folder:
        runs = (options.keep or Path(folder)).resolve()
        runs.mkdir(parents=True, exist_ok=True)
        for name in options.names or PICTURES:
            PICTURES[name](runs)
    for path in sorted(HERE.glob("*.[sw][ve][gb]*")):
        print(f"{path.stat().st_size / 1000:7.1f} kB  {path.name}")


def lab(words: str, runs: Path) -> None:
    """Run `python -m mnist_lab WORDS` in a folder."""
    subprocess.run([sys.executable, "-m", "mnist_lab", *shlex.split(words)], cwd=runs, check=True)


def a_run(runs: Path, words: str, name: str) -> Path:
    """Return the folder of a finished run or sweep, which is run if it is not there."""
    folder = runs / name
    if not folder.exists():
        lab(f"{words} hydra.{'sweep' if words.startswith('-m') else 'run'}.dir={name}", runs)
    return folder


def terminal(runs: Path) -> None:
    """Draw what a terminal shows of the README's first run."""
    from rich.console import Console
    from rich.text import Text

    columns, command = 88, f"python -m mnist_lab {FIRST}"
    tmux = ["tmux", "-L", "pictures"]
    path = f"COLUMNS={columns} PATH={shlex.quote(str(Path(sys.executable).parent))}:$PATH"
    shell = f"cd {shlex.quote(str(runs))}; {path} {command}; read"
    subprocess.run([*tmux, "new-session", "-d", "-x", "160", "-y", "50", shell], check=True)  # rich wraps by words
    try:
        shown = ""
        while "test again" not in shown:
            time.sleep(1)
            pane = [*tmux, "capture-pane", "-e", "-p"]
            shown = subprocess.run(pane, capture_output=True, text=True, check=True).stdout
    finally:
        subprocess.run([*tmux, "kill-server"], check=False)
    console = Console(record=True, width=columns, file=io.StringIO(), force_terminal=True)
    lines = "\n".join(line.rstrip() for line in shown.rstrip().splitlines())
    console.print(Text.from_ansi(f"$ {command}\n{lines}\n"))
    drawing = console.export_svg(title="mnist_lab", clear=False, unique_id="terminal")
    drawing = re.sub(r"@font-face {.*?}\s*", "", drawing, flags=re.DOTALL)  # fonts of another server
    drawing = drawing.replace("Fira Code, monospace", "ui-monospace, SFMono-Regular, Menlo, Consolas, monospace")
    # Larger letters in the same places: the lines of tables meet.
    drawing = drawing.replace("font-size: 20px", "font-size: 22px")
    drawing = drawing.replace("textLength=", 'lengthAdjust="spacingAndGlyphs" textLength=')
    (HERE / "terminal.svg").write_text(drawing, encoding="utf-8")


def report(runs: Path) -> None:
    """Photograph the upper part of a run's report."""
    folder = a_run(runs, FIRST, "mlp")
    with browser(width=680, height=900) as page:
        page.goto((folder / "report.html").as_uri())
        save(page.screenshot(full_page=True, clip=down_to(page, "img[alt^='test images']")), "report")


def mistakes(runs: Path) -> None:
    """Photograph the figure of a network's worst mistakes."""
    folder = a_run(runs, FIRST, "mlp")
    with browser(width=900, height=900) as page:
        page.goto((folder / "figures/mistakes.svg").as_uri())
        save(page.locator("svg").first.screenshot(), "mistakes")


def comparison(runs: Path) -> None:
    """Photograph the upper part of the comparison of a sweep."""
    folder = a_run(runs, SWEEP, "sweep")
    with browser(width=840, height=900) as page:
        page.goto((folder / "compare.html").as_uri())
        save(page.screenshot(full_page=True, clip=down_to(page, "img[alt^='Learning curves']")), "comparison")


def tensorboard(runs: Path) -> None:
    """Photograph TensorBoard's charts of the validation of a sweep's runs."""
    a_run(runs, SWEEP, "sweep")
    with serving("dashboard dir=sweep port=0 open=false", runs) as address, browser(900, 612) as page:
        page.goto(f"{address}?smoothing=0&tagFilter=val#timeseries")
        page.get_by_role("button", name="Settings").first.click()  # they cover the charts
        page.wait_for_timeout(9000)  # until the curves are drawn
        save(page.screenshot(), "tensorboard")


def draw(runs: Path) -> None:
    """Draw a digit on the page of `draw`, and photograph the page."""
    folder = a_run(runs, "model=cnn trainer.max_epochs=3", "cnn")
    with serving(f"draw run={folder} port=0", runs) as address, browser(700, 480) as page:
        page.goto(address)
        box = page.locator("canvas").bounding_box()
        assert box is not None
        for stroke in FOUR:
            places = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in stroke]
            page.mouse.move(*places[0])
            page.mouse.down()
            for place in places[1:]:
                page.mouse.move(*place, steps=12)
            page.mouse.up()
        page.wait_for_timeout(1500)  # the bars move
        save(page.screenshot(full_page=True, clip=down_to(page, "main")), "draw")


def cost(_: Path) -> None:
    """Draw error rate against seconds of training, from the tables in the documents."""
    from mnist_lab.show.style import BLUE, GREY, ORANGE, VERMILION, subplots, svg

    figure, (ax,) = subplots(width=6.4, height=4.8)
    looks = {"PyTorch": ("s", ORANGE), "TensorFlow": ("^", GREY), "JAX": ("v", GREY), "DataLoader": ("D", VERMILION)}
    of_network: dict[str, list[tuple[float, float]]] = {}
    for program, points in programs():
        marker, colour = next((look for part, look in looks.items() if part in program), ("o", BLUE))
        seconds, errors = [x for _, x, _ in points], [y for *_, y in points]
        ax.plot(seconds, errors, marker, color=colour, label=program.strip("`"), markersize=7, zorder=3)
        for name, x, y in points:
            of_network.setdefault(name, []).append((x, y))
            if colour == BLUE:
                below = name in ("D", "fast99")
                ax.annotate(
                    name, (x, y), xytext=(0, -8 if below else 7), textcoords="offset points", ha="center",
                    va="top" if below else "bottom", fontsize=12, color=BLUE, fontweight="bold", zorder=4,
                )  # fmt: skip
    for places in of_network.values():
        ax.plot(*zip(*sorted(places), strict=True), color=GREY, linewidth=0.8, alpha=0.5, zorder=1)
    ax.set_xscale("log")
    ax.set_yscale("log")
    for axis, ticks in ((ax.xaxis, (1, 3, 10, 30, 100, 300)), (ax.yaxis, (0.2, 0.5, 1, 2, 5, 10))):
        axis.set_ticks(ticks, [f"{tick:g}" for tick in ticks], fontsize=11)
    ax.minorticks_off()
    ax.set_xlim(1, 700)
    ax.set_ylim(0.19, 15)
    ax.set_xlabel("seconds of training", fontsize=12)
    ax.set_ylabel("test error, %", fontsize=12)
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=10)
    (HERE / "cost.svg").write_text(svg(figure), encoding="utf-8")


def programs() -> Iterator[tuple[str, list[tuple[str, float, float]]]]:
    """Yield each program of the benchmark's table, with a network, its seconds and its test error in percent each.

    Our own has the recipes as well, from the table of experiments.
    """
    text = (ROOT / "mnist_lab/bench/README.md").read_text(encoding="utf-8")
    head, _, *rows = re.findall(r"^\|.*\|$", text.partition("## Time and accuracy")[2], flags=re.MULTILINE)
    networks = [cell.partition(",")[0].strip() for cell in head.strip("|").split("|")[1:]]
    recipes = (ROOT / "conf/experiment/README.md").read_text(encoding="utf-8")
    ours = [
        (name, float(seconds), 100 - float(accuracy))
        for name, accuracy, seconds in re.findall(
            r"^\| \[(\w+)\]\(\w+\.yaml\) \| ([\d.]+) ±.*? \| ([\d.]+) s \(", recipes, flags=re.MULTILINE
        )
    ]
    for row in rows:
        program, *cells = (cell.strip() for cell in row.strip("|").split("|"))
        measured = [re.findall(r"[\d.]+", cell) for cell in cells]
        points = [
            (name, float(seconds), 100 - float(accuracy))
            for name, (seconds, accuracy) in zip(networks, measured, strict=True)
        ]
        yield program, points + (ours if "mnist_lab" in program else [])


@contextmanager
def browser(width: int, height: int) -> Iterator[Page]:
    """A page of Chromium's, of a size in CSS pixels."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as browsers:
        chromium = browsers.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        size: Any = {"width": width, "height": height}
        yield chromium.new_context(viewport=size, device_scale_factor=SHARP).new_page()
        chromium.close()


@contextmanager
def serving(words: str, runs: Path) -> Iterator[str]:
    """The address that a verb serves a page at, until the end."""
    command = [sys.executable, "-m", "mnist_lab", *shlex.split(words)]
    with subprocess.Popen(command, cwd=runs, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            found = None
            while found is None:
                line = server.stdout.readline()
                assert line, f"{words}: it has ended"
                found = re.search(r"http://\S+/", line)
            yield found[0]
        finally:
            server.terminate()


def down_to(page: Page, element: str) -> Any:
    """Return the part of a page from its top to the end of an element."""
    box = page.locator(element).bounding_box()
    assert box is not None and page.viewport_size is not None
    return {"x": 0, "y": 0, "width": page.viewport_size["width"], "height": box["y"] + box["height"] + 16}


def save(png: bytes, name: str) -> None:
    """Write a photograph as WebP, with a border that sets it off from a white page."""
    framed = ImageOps.expand(Image.open(io.BytesIO(png)).convert("RGB"), border=SHARP, fill="#d0d7de")
    framed.save(HERE / f"{name}.webp", quality=82, method=6)


PICTURES: dict[str, Callable[[Path], None]] = {
    "terminal": terminal,
    "report": report,
    "mistakes": mistakes,
    "comparison": comparison,
    "tensorboard": tensorboard,
    "draw": draw,
    "cost": cost,
}

if __name__ == "__main__":
    main()
