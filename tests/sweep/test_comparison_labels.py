"""Names in a comparison's figures can be read, none on another, on a point or outside; and each has what it names."""

import base64
import random
import re
from itertools import combinations
from pathlib import Path

import pytest
import torch
from conftest import Command

from mnist_lab.show.style import subplots, titled
from mnist_lab.sweep.report import _name_points


@pytest.mark.parametrize("seed", range(5))
def test_labels_of_a_comparison_do_not_overlap(seed: int) -> None:
    chance = random.Random(seed)
    figure, (ax, _) = subplots(1, 2, height=4.2)
    named = [(f"network_{n}", 10 ** chance.gauss(1, 0.1), 10 ** chance.gauss(0, 0.1), 0.02, "black") for n in range(8)]
    named += [("far_away", 1000.0, 0.1, 0.01, "black"), ("near_zero", 0.5, 9.0, 0.0, "black")]
    for _, x, y, bar, _ in named:
        ax.errorbar(x, y, yerr=bar, fmt="o")
    ax.set_xscale("log")
    ax.set_yscale("log")
    figure.draw_without_rendering()
    _name_points(ax, named)
    boxes = [text.get_window_extent() for text in ax.texts]
    assert [text.get_text() for text in ax.texts] == [name for name, *_ in named]
    for box in boxes:
        assert ax.bbox.x0 <= box.x0 and box.x1 <= ax.bbox.x1 and ax.bbox.y0 <= box.y0 and box.y1 <= ax.bbox.y1
        for name, x, y, *_ in named:
            assert not box.contains(*ax.transData.transform((x, y))), name
    for first, second in combinations(boxes, 2):
        assert not first.overlaps(second)


@pytest.mark.slow
def test_learning_curves_name_the_runs_that_have_one(lab: Command, tmp_path: Path) -> None:
    words = ("model=neuron", "data=mnist_5k", "trainer.max_epochs=1", "report=false")
    lab(*words, "data.val=random", "hydra.run.dir=runs/validated")
    lab(*words, "data.val=none", "hydra.run.dir=runs/not_validated")
    done = lab("compare", "runs")
    assert done.returncode == 0, done.stderr
    html = next(tmp_path.rglob("compare.html")).read_text()
    drawing = re.search(r"Learning curves</h2>\s*<img[^>]*base64,([^\"]*)", html)
    assert drawing is not None
    words_of_it = base64.b64decode(drawing[1]).decode()
    assert "val/loss" in words_of_it and "data.val=random" in words_of_it and "data.val=none" not in words_of_it
    assert "without a curve: data.val=none." in html


def test_wide_characters_get_the_room_that_they_take() -> None:
    sizes = [
        titled(torch.zeros(1, 1, 8, 8), 5, 5.0, [name]).axes[0].texts[0].get_fontsize() for name in ("猫" * 8, "ab" * 8)
    ]
    assert sizes[0] == sizes[1] != 9
