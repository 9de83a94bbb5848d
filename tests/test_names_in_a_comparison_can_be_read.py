"""Names beside a comparison's points can be read: none lies on another, on a point or outside the figure."""

import random
from itertools import combinations

import pytest

from mnist_lab.show.style import subplots
from mnist_lab.sweep.report import _name_points


@pytest.mark.parametrize("seed", range(5))
def test_names_lie_beside_each_other(seed: int) -> None:
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
