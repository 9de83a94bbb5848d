"""The verb `articles`: every experiment over several seeds, beside what its article and Keras report."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean, stdev
from typing import Any

from omegaconf import OmegaConf

from mnist_lab.command import quoted
from mnist_lab.composing import compose_config, run_config
from mnist_lab.errors import UserError, no_such
from mnist_lab.files import CONF_DIR, write_whole
from mnist_lab.launch import launch
from mnist_lab.result import Result
from mnist_lab.resume import resume
from mnist_lab.rules import whole_number
from mnist_lab.run_folder import load_config
from mnist_lab.sweep.groups import changes, is_seed, matters
from mnist_lab.words import divide, path_of

USAGE = "use: python -m mnist_lab articles [seeds=5] [experiments=NAME,NAME] [dir=outputs/articles] [overrides ...]"


def articles(words: list[str]) -> None:
    """Run what isn't there yet, then print the table and write it to DIR/table.md.

    Args:
        words: `seeds=N` (5), `experiments=NAME,NAME` (those of the articles), `dir=DIR` (outputs/articles), and Hydra
            overrides for all runs. A run whose result is there is not run again; one that was stopped goes on.

    Raises:
        UserError: there is no such experiment, a word is not understood, or there are runs of another config.
    """
    own, overrides = divide(words, {"seeds": "5", "experiments": "", "dir": "outputs/articles"}, USAGE)
    for word in overrides:
        if (key := word.partition("=")[0]) in ("seed", "experiment"):
            raise UserError(f"{word} is not allowed here: use {key}s=...\n{USAGE}")
    files = sorted((CONF_DIR / "experiment").glob("*.yaml"))
    known = [path.stem for path in files]
    of_articles = [path.stem for path in files if "reported" in OmegaConf.load(path)]  # the others are our own recipes
    chosen = [name for name in own["experiments"].split(",") if name] or of_articles
    for name in chosen:
        if name not in known:
            raise no_such("experiments", name, "experiment", known)
    folder, seeds = path_of(own["dir"]), range(whole_number("seeds", own["seeds"], 1))
    wanted = {
        (name, seed): run_config(compose_config([*overrides, f"experiment={name}", f"seed={seed}"]))
        for name in chosen
        for seed in seeds
    }
    finished: dict[tuple[str, int], bool] = {}  # of the runs that have begun
    for (name, seed), cfg in wanted.items():
        run_dir = folder / name / f"seed={seed}"
        if not any((run_dir / file).exists() for file in ("config.yaml", "result.json")):
            continue
        finished[name, seed] = done = (run_dir / "result.json").exists()
        there: Any = Result.load(run_dir).config if done else OmegaConf.to_container(load_config(run_dir, []))
        now: Any = OmegaConf.to_container(cfg)
        lines = changes(there, now)
        if others := [line for key, line in lines.items() if matters(key) or is_seed(key)]:
            raise UserError(
                f"{run_dir} has a run of another config: {'; '.join(others[:5])}\n"
                "It stays. For runs of this config choose another folder, dir=..."
            )
    for name in chosen:
        for seed in seeds:
            if finished.get((name, seed)) is False:
                resume([str(folder / name / f"seed={seed}")])
        missing = [str(seed) for seed in seeds if (name, seed) not in finished]
        if missing:
            sweep = [f"hydra.sweep.dir={quoted(folder / name)}", "hydra.sweep.subdir='seed=${seed}'"]
            words = ["-m", *overrides, f"experiment={name}", f"seed={','.join(missing)}", "hydra/sweeper=basic", *sweep]
            launch(words, fresh=False)

    found = [[Result.load(folder / name / f"seed={seed}") for seed in seeds] for name in chosen]
    text = markdown(found)
    write_whole(folder / "table.md", text)
    _print(found)
    print(f"table    {folder / 'table.md'}")


HEADER = ("experiment", "", "article says", "Keras gives", "we get", "n")


def _rows(results: Sequence[Result]) -> list[list[str]]:
    """Return one experiment's rows, a metric each, with the cells of HEADER."""
    first, n = results[0], str(len(results))
    reported = first.config.get("reported", {})
    article, keras = reported.get("article", {}), reported.get("keras", {})
    if "output" in article:
        outputs = {repr(result.extras["forward_pass"]) for result in results}
        return [[first.name, "output", repr(article["output"]), "", ", ".join(sorted(outputs)), n]]
    ours = {
        "test_acc": [result.test["acc"] for result in results],
        "test_loss": [result.test["loss"] for result in results],
        "train_acc": [result.history[-1]["train/acc"] for result in results],
    }
    rows = []
    for metric, values in ours.items():
        show = percent if metric.endswith("acc") else number
        says = show(article[metric], None) if metric in article else ""
        gives = f"{show(*keras[metric])} (n = {keras['n']})" if metric in keras else ""
        spread = stdev(values) if len(values) > 1 and None not in values else None
        get = "not finite" if None in values else show(fmean(values), spread)
        rows.append(["", metric.replace("_", " "), says, gives, get, n])
    rows[0][0] = first.name
    rows[0][2] = rows[0][2] or article.get("claim", "")
    return rows


def percent(mean: float, spread: float | None) -> str:
    """Return mean and spread of fractions as `98.02 ± 0.17 %`; without a spread `98.02 %`."""
    return f"{100 * mean:.2f} %" if spread is None else f"{100 * mean:.2f} ± {100 * spread:.2f} %"


def number(mean: float, spread: float | None) -> str:
    """Return mean and spread as `0.0623 ± 0.0026`; without a spread `0.0623`."""
    return f"{mean:.4f}" if spread is None else f"{mean:.4f} ± {spread:.4f}"


def markdown(experiments: Sequence[Sequence[Result]]) -> str:
    """Return the table as Markdown, and each curve that an article gives beside ours.

    Args:
        experiments: the results of each experiment, one a seed.
    """
    lines = ["| " + " | ".join(HEADER) + " |", "|---" * len(HEADER) + "|"]
    lines += ["| " + " | ".join(row) + " |" for results in experiments for row in _rows(results)]
    lines += ["", "Mean ± sample standard deviation over n seeds. Train accuracy is the last epoch's, dropout on.", ""]
    for results in experiments:
        article: dict[str, Any] = results[0].config.get("reported", {}).get("article", {})
        for key, metric in (("train_acc_by_epoch", "train/acc"), ("train_loss_by_epoch", "train/loss")):
            if key in article:
                ours = [
                    fmean(r.history[e][metric] for r in results) for e in range(min(len(r.history) for r in results))
                ]
                lines.append(
                    f"{results[0].name}, {metric} by epoch: article {' '.join(f'{v:.4f}' for v in article[key])}; "
                    f"ours {' '.join(f'{v:.4f}' for v in ours)}  "
                )
    notes = {f"- {results[0].name}: {note}" for results in experiments for r in results for note in r.notes}
    return "\n".join([*lines, *sorted(notes)]).rstrip() + "\n"


def _print(experiments: Sequence[Sequence[Result]]) -> None:
    from rich import get_console
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    table = Table(*HEADER, box=SIMPLE_HEAD)
    for results in experiments:
        for row in _rows(results):
            table.add_row(*row)
        table.add_section()
    Console(width=max(110, get_console().width)).print(table)
