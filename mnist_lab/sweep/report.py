"""A comparison as one self-contained page: the table and its plots."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from html import escape
from statistics import fmean
from typing import TYPE_CHECKING, Any

from mnist_lab.metrics import Mode, is_accuracy, mode_of, of_stage
from mnist_lab.show.style import BLUE, GREY, VERMILION, document, image, subplots, svg
from mnist_lab.sweep.groups import Group, Peer, t_interval
from mnist_lab.sweep.sections import Section
from mnist_lab.sweep.tables import APART, FOOT, HEADER, Ranked, notes_of, rows

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.transforms import Bbox


CURVES = 12
"""Most groups whose learning curves are drawn: more can't be told apart."""
MARKERS = "^sDvP"
"""Markers of the peers, one per program."""
NAMED = 16
"""Most groups whose points are labelled with their names: more would overlap."""
Named = tuple[str, float, float, float, str]
"""A point's name, x, y, half the length of its error bar, and the name's colour."""


def page(ranked: Ranked, metric: str, title: str, peers: Sequence[Peer] = (), mode: Mode | None = None) -> str:
    """Return the page's HTML.

    Args:
        ranked: the sections, each with its groups from `grouped`, best first.
        metric: the metric by which they were compared.
        title: what was compared.
        peers: drawn beside the groups in the plot of test accuracy against seconds, where they have MNIST's ten classes
            and test images as the peers do; beside those of a page's only section in any case.
        mode: whether the metric is to be small or large; None: its name decides.
    """
    parts = [f"<h1>{escape(title)}: {metric}</h1>"]
    if len(ranked) > 1:
        names = [escape(section.headline) for section, _ in ranked]
        links = "".join(f"<li><a href='#section-{n}'>{name}</a></li>" for n, name in enumerate(names))
        parts += [f"<p>{APART}</p><ul>{links}</ul>"]
    for n, (section, groups) in enumerate(ranked):
        if len(ranked) > 1:
            parts += [f"<h2 class=section id=section-{n}>{escape(section.headline)}</h2>"]
        beside = peers if metric == "test/acc" and (section.is_mnist or len(ranked) == 1) else ()
        parts += _section(section, groups, metric, mode_of(metric, mode), beside, several=len(ranked) > 1)
    if notes := notes_of(ranked):
        parts += ["<h2>Notes</h2><ul>", *(f"<li>{escape(note)}</li>" for note in notes), "</ul>"]
    return document(title, parts)


def _section(
    section: Section, groups: Sequence[Group], metric: str, mode: Mode, peers: Sequence[Peer], several: bool
) -> list[str]:
    """Return the table and the plots of a page's only section, or of one of several, as HTML."""
    heading = "h3" if several else "h2"

    def figure(title: str, drawn: Figure) -> list[str]:
        return [f"<{heading}>{title}</{heading}>", image(svg(drawn), f"{title}: {section.headline}")]

    results = [result for group in groups for result in group.results]
    table = "".join(
        f"<tr{' class=best' if n == 0 else ''}>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>"
        for n, row in enumerate(rows(groups, metric))
    )
    head = "".join(f"<th>{escape(name)}</th>" for name in HEADER)
    parts = [
        f"<p>{len(results)} finished runs in {len(groups)} group(s) that differ in more than the seed, best first.</p>",
        f"<div class=wide><table><tr>{head}</tr>{table}</table></div>",
        f"<p>{escape(section.baseline)}</p>" if section.baseline else "",
    ]
    alone = several and len(groups) == 1 and not peers  # nothing to compare with
    if not alone:
        parts += [f"<p class=note>{escape(FOOT)}</p>"]
    points = [(group, value) for group in groups for value in group.values]
    keys = list(groups[0].differs)
    if keys and len(points) > 1:
        parts += figure("Each hyperparameter against the metric", _against(points, keys, metric))
    if points and len(keys) > 1 and len(groups) > 2:
        parts += figure("Parallel coordinates", _parallel(points, keys, metric, mode))
        if (importance := _importance(points, keys, metric, mode)) is not None:
            parts += figure("Importance", _bars(importance))
            parts += [
                "<p class=note>PED-ANOVA (Watanabe et al. 2023), as Optuna computes it: which parameter decides "
                "whether a run is among the best. A guide from few runs, not a measurement.</p>",
            ]
    for stage in ("val", "train", ""):  # the first of which something was logged
        if any(_logged(group, stage) for group in groups):
            parts += figure("Learning curves", _curves([group for group in groups if _logged(group, stage)], stage))
            without = [group.name for group in groups if not _logged(group, stage)]
            if without:
                what = {"val": "validation", "train": "training metrics", "": "metrics"}[stage]
                parts += [f"<p class=note>Without {what}, and so without a curve: {escape('; '.join(without))}.</p>"]
            break
    if not alone:
        parts += figure("What it takes", _cost(groups, metric, peers))
    if peers or (not alone and any(group.interval for group in groups)):
        parts += ["<p class=note>Means over the runs, with their 95 % intervals.</p>"]
    if peers and not section.is_mnist:
        parts += ["<p class=note>The other programs were tested on the 10,000 test images of MNIST.</p>"]
    return parts


def _logged(group: Group, stage: str) -> list[str]:
    """Return the names, without the stage, of the metrics of a stage that a group's runs have logged."""
    rows = [of_stage(row, stage) for result in group.results for row in result.history]
    return list(dict.fromkeys(name for row in rows for name in row))


def _numeric(values: Sequence[Any]) -> bool:
    return all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)


def _positions(values: Sequence[Any]) -> tuple[list[float], list[str] | None, bool]:
    """Return positions on an axis; the names of its ticks, unless they are numbers; whether it is logarithmic."""
    if _numeric(values):
        spread = min(values) > 0 and max(values) / min(values) >= 30
        return [float(value) for value in values], None, spread
    names = list(dict.fromkeys(map(str, values)))
    return [float(names.index(str(value))) for value in values], names, False


def _against(points: Sequence[tuple[Group, float]], keys: Sequence[str], metric: str) -> Figure:
    columns = min(3, len(keys))
    figure, axes = subplots(columns, math.ceil(len(keys) / columns), height=3.0)
    for ax, key in zip(axes, keys, strict=False):
        where, names, log = _positions([group.differs[key] for group, _ in points])
        ax.scatter(where, [value for _, value in points], s=22, alpha=0.7, color=BLUE, linewidths=0)
        ax.set_xlabel(key)
        if names is not None:
            ax.set_xticks(range(len(names)), [name[:18] for name in names], rotation=20 if len(names) > 3 else 0)
            ax.set_xlim(-0.5, len(names) - 0.5)
        if log:
            ax.set_xscale("log")
    for ax in axes[::columns]:
        ax.set_ylabel(metric)
    for ax in axes[len(keys) :]:
        ax.set_visible(False)
    return figure


def _parallel(points: Sequence[tuple[Group, float]], keys: Sequence[str], metric: str, mode: Mode) -> Figure:
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    figure, (ax,) = subplots(height=4.2)
    ax.grid(visible=False)
    colour = ScalarMappable(Normalize(min(v for _, v in points), max(v for _, v in points)), colormaps["viridis"])
    lines = []
    for n, key in enumerate(keys):
        where, names, log = _positions([group.differs[key] for group, _ in points])
        scaled = [math.log10(value) for value in where] if log else where
        low, high = min(scaled), max(scaled)
        lines.append([(value - low) / (high - low) if high > low else 0.5 for value in scaled])
        ax.axvline(n, color="#888", linewidth=1)
        ticks = names if names is not None else [f"{min(where):.3g}", f"{max(where):.3g}"]
        for k, tick in enumerate(ticks):
            ax.annotate(
                tick[:18], (n, k / max(1, len(ticks) - 1) if len(ticks) > 1 else 0.5), xytext=(4, 0),
                textcoords="offset points", fontsize=8, va="center", backgroundcolor="#ffffffbb",
            )  # fmt: skip
    shades = colour.to_rgba([value for _, value in points])  # type: ignore[arg-type]
    for n in sorted(range(len(points)), key=lambda n: points[n][1], reverse=mode == "min"):  # best on top
        ax.plot(range(len(keys)), [line[n] for line in lines], color=shades[n], alpha=0.75, linewidth=1.3)
    ax.set_xticks(range(len(keys)), keys)
    ax.set_yticks([])
    ax.set_xlim(-0.15, len(keys) - 0.6)
    ax.spines[["left", "bottom"]].set_visible(False)
    figure.colorbar(colour, ax=ax, label=metric, pad=0.01)
    return figure


def _importance(
    points: Sequence[tuple[Group, float]], keys: Sequence[str], metric: str, mode: Mode | None = None
) -> dict[str, float] | None:
    """Return how much each key decides which runs are the best; None if there are too few runs to tell."""
    import optuna
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    if len(points) < 8:
        return None
    distributions: dict[str, Any] = {}
    for key in keys:
        values = [group.differs[key] for group, _ in points]
        if _numeric(values):
            distributions[key] = FloatDistribution(float(min(values)), float(max(values)), log=_positions(values)[2])
        else:
            distributions[key] = CategoricalDistribution(tuple(dict.fromkeys(map(str, values))))
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(direction="minimize" if mode_of(metric, mode) == "min" else "maximize")
    for group, value in points:
        params = {
            k: group.differs[k] if isinstance(d, FloatDistribution) else str(group.differs[k])
            for k, d in distributions.items()
        }
        study.add_trial(optuna.trial.create_trial(params=params, distributions=distributions, value=value))
    with warnings.catch_warnings(action="ignore"):
        found = optuna.importance.get_param_importances(
            study, evaluator=optuna.importance.PedAnovaImportanceEvaluator()
        )
    return found if sum(found.values()) > 0 else None


def _bars(importance: dict[str, float]) -> Figure:
    figure, (ax,) = subplots(height=0.6 + 0.35 * len(importance))
    names = list(importance)[::-1]
    ax.barh(names, [importance[name] for name in names], color=BLUE)
    ax.set_xlabel("share of the importance")
    ax.grid(visible=False, axis="y")
    return figure


def _curves(groups: Sequence[Group], stage: str) -> Figure:
    """Draw the mean over each group's runs, epoch by epoch, of each metric of a stage."""
    from matplotlib import colormaps
    from matplotlib.ticker import MaxNLocator

    kinds = list(dict.fromkeys(name for group in groups for name in _logged(group, stage)))
    columns = min(2, len(kinds))
    figure, axes = subplots(columns, math.ceil(len(kinds) / columns), height=3.6 + 0.2 * min(CURVES, len(groups)))
    for ax, kind in zip(axes, kinds, strict=False):
        for n, group in enumerate(groups[:CURVES]):
            histories = [[of_stage(row, stage).get(kind) for row in result.history] for result in group.results]
            by_epoch = [[v for v in values if v is not None] for values in zip(*histories, strict=False)]
            means = [sum(values) / len(values) if values else math.nan for values in by_epoch]
            colour = colormaps["viridis"](n / max(1, min(CURVES, len(groups)) - 1) * 0.9)
            ax.plot(range(1, len(means) + 1), means, color=colour, marker="o", markersize=3, label=group.name[:90])
        ax.set_xlabel("epoch")
        ax.set_ylabel(f"{stage}/{kind}" if stage else kind)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    for ax in axes[len(kinds) :]:
        ax.set_visible(False)
    handles, names = axes[0].get_legend_handles_labels()
    figure.legend(
        handles,
        names,
        loc="outside lower center",
        ncols=1 if max(map(len, names)) > 45 else 3,
        fontsize=8,
        frameon=False,
    )
    return figure


def _cost(groups: Sequence[Group], metric: str, peers: Sequence[Peer]) -> Figure:
    """Draw each group's metric against its cost; for accuracies the error rate. Logarithmic if it varies much."""
    from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

    measured = [group for group in groups if group.values]
    sizes = {result.model["parameters"] for group in measured for result in group.results}
    costs = (("seconds", "seconds of training"), ("parameters", "parameters"))[: 2 if len(sizes) > 1 else 1]
    figure, axes = subplots(1, len(costs), height=4.2)
    mistakes = is_accuracy(metric)
    heights = [100 * (1 - group.mean) if mistakes else group.mean for group in measured]
    names = [group.results[0].name for group in measured]
    if len(set(names)) < len(names):
        shown = [[f"{v:.4g}" if isinstance(v, float) else str(v) for v in group.differs.values()] for group in measured]
        names = [" ".join(values)[:40] or "best" for values in shown]
    labels = []
    for ax, (cost, label) in zip(axes, costs, strict=True):
        found = [[v for result in group.results if (v := result.value(cost)) is not None] for group in measured]
        places = [fmean(spent) for spent in found]
        named: list[Named] = []
        for n, (group, where, height) in enumerate(zip(measured, places, heights, strict=True)):
            style: dict[str, Any] = {"color": VERMILION if n == 0 else BLUE, "zorder": 3 if n == 0 else 2}
            bar = (group.interval or 0) * (100 if mistakes else 1)
            ax.errorbar(where, height, yerr=bar or None, fmt="o", markersize=5, capsize=2, **style)
            if n == 0 or len(measured) <= NAMED:
                named.append((names[n], where, height, bar, "black"))
        others, reached = peers if cost == "seconds" else (), heights
        for marker, program in zip(MARKERS, dict.fromkeys(peer.name for peer in others), strict=False):
            mine = [peer for peer in others if peer.name == program]
            across, up = [fmean(peer.seconds) for peer in mine], [100 * (1 - fmean(peer.accuracies)) for peer in mine]
            bars = [100 * (t_interval(peer.accuracies) or 0) for peer in mine]
            look: dict[str, Any] = {"markersize": 5, "capsize": 2, "color": GREY, "mfc": "none"}
            ax.errorbar(across, up, yerr=[bar or math.nan for bar in bars], fmt=marker, label=program, **look)
            named += [(peer.network, x, y, bar, GREY) for peer, x, y, bar in zip(mine, across, up, bars, strict=True)]
            places, reached = places + across, reached + up
        ax.set_xlabel(label)
        ax.set_ylabel(f"{metric.partition('/')[0]} error, %" if mistakes else metric)
        ax.margins(x=0.16)
        for axis, values in ((ax.xaxis, places), (ax.yaxis, reached)):
            if min(values, default=0) > 0 and max(values) > 3 * min(values):
                (ax.set_xscale if axis is ax.xaxis else ax.set_yscale)("log")
                axis.set_major_locator(LogLocator(subs=(1, 2, 5) if max(values) < 500 * min(values) else (1,)))
                axis.set_minor_formatter(NullFormatter())
            else:
                axis.set_major_locator(MaxNLocator(5))
            axis.set_major_formatter("{x:,.10g}")
        if mistakes:
            low, high = ax.get_ylim()
            ax.set_ylim(max(low, 0) if ax.get_yscale() == "linear" else low, min(high, 100))
        labels.append(named)
    if peers:
        figure.legend(loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    figure.draw_without_rendering()  # only now are positions known
    for ax, named in zip(axes, labels, strict=True):
        _name_points(ax, named)
    return figure


def _name_points(ax: Axes, named: Sequence[Named]) -> None:
    """Write names beside their points, each in the place with the least overlap, and of equal ones in the nearest.

    Args:
        ax: the axes, with their points and with final scales and limits.
        named: the points; the first get the better places.
    """
    from matplotlib.transforms import Bbox

    if not named:
        return
    points = ax.transData.transform([(x, y) for _, x, y, *_ in named])
    bars = ax.transData.transform([(x, y - bar) for _, x, y, bar, _ in named])[:, 1]
    unit = ax.figure.dpi / 72
    taken = [
        Bbox.from_extents(x - 4 * unit, min(y - 4 * unit, low), x + 4 * unit, y + max(4 * unit, y - low))
        for (x, y), low in zip(points, bars, strict=True)
    ]
    for (name, x, y, _, colour), point in zip(named, points, strict=True):
        text = ax.annotate(
            name,
            (x, y),
            xytext=(0, 0),
            textcoords="offset points",
            fontsize=8 if colour == "black" else 7,
            color=colour,
        )
        text.set_in_layout(False)
        size = text.get_window_extent()
        best = None
        for away in (6, 14, 24, 36):
            for right, up in ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, 1), (1, -1), (-1, -1)):
                left = point[0] + away * unit * right - size.width * (1 - right) / 2
                low = point[1] + away * unit * up - size.height * (1 - up) / 2
                box = Bbox.from_bounds(left, low, size.width, size.height)
                lost = size.width * size.height - _shared(box, ax.bbox)
                hidden = lost + sum(_shared(box, other) for other in taken)
                if best is None or hidden < best[0]:
                    best = hidden, box, away
        assert best is not None
        _, box, away = best
        taken.append(box)
        text.set_position(((box.x0 - point[0]) / unit, (box.y0 - point[1]) / unit))
        if away > 6:
            ends = (point, (min(max(point[0], box.x0), box.x1), min(max(point[1], box.y0), box.y1)))
            ax.plot(*zip(*ax.transData.inverted().transform(ends), strict=True), color=GREY, linewidth=0.5, zorder=1)


def _shared(first: Bbox, second: Bbox) -> float:
    """Return the area that two boxes share."""
    width = float(min(first.x1, second.x1) - max(first.x0, second.x0))
    return max(0.0, width) * max(0.0, float(min(first.y1, second.y1) - max(first.y0, second.y0)))
