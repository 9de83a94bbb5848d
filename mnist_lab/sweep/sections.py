"""Which runs can be ranked together: those with the same task, the same test images and no limit on batches."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any

from mnist_lab.result import Result

COUNTS = {
    "87581b9c35da9ccb4e64b84139764a7b8018a159f449243c85f5d89106f90330": (
        *(980, 1135, 1032, 1010, 982),
        *(892, 958, 1028, 974, 1009),
    ),
    "fe5f393ee06dd5c5710b1412ab0b237b645df82669dd57a48f5fd0c98d04f936": (100,) * 10,
    "ffcf4282e881ca94dc2d7bcdcf5e9f0a5ecd729925e17773c239a13ab121a790": (1000,) * 10,
}
"""Test images a class of mnist, mnist_5k and fashion_mnist, by `data.digest`: results did not always record them."""


@dataclass(frozen=True)
class Section:
    """Runs whose accuracies can be compared.

    Attributes:
        headline: the data set, the task, the test images and the limits that these runs share.
        data: the name of the data set.
        results: the runs.
        frequent: the most frequent class of the test images; None: unknown, or there are several.
        frequent_acc: accuracy of always answering it, in [0, 1]; None: unknown.
    """

    headline: str
    data: str
    results: tuple[Result, ...]
    frequent: str | None
    frequent_acc: float | None

    @property
    def baseline(self) -> str:
        """Return the sentence about always answering the most frequent class.

        Empty for runs without an accuracy, or on a user's own data, of which nothing is recorded.
        """
        if all(result.test["acc"] is None or result.data["digest"] is None for result in self.results):
            return ""
        if self.frequent_acc is None:
            return (
                "Accuracy of always answering the test images' most frequent class: unknown, no result has its count."
            )
        name = "" if self.frequent is None else f", {self.frequent}"
        return (
            f"Accuracy of always answering the test images' most frequent class{name}: {100 * self.frequent_acc:.2f} %."
        )

    @property
    def is_mnist(self) -> bool:
        """Return whether these runs tell the ten digits apart, tested on all of MNIST's test images."""
        first = self.results[0]
        alone = first.data["name"] == "mnist" and not limits_of(first)
        return alone and first.test["n"] == 10_000 and len(first.data.get("classes", ())) == 10


def sections(results: Sequence[Result], metric: str) -> list[Section]:
    """Divide runs into sections, such that only runs of one section may be ranked.

    Args:
        results: the runs, at least one.
        metric: what is compared; a metric of validation needs the same number and source of validation images, too.

    Returns:
        The sections: those without limits first, and of these the largest.
    """
    tested = _test_sets(results)
    members: dict[tuple[Any, ...], list[Result]] = {}
    for result, images in zip(results, tested, strict=True):
        task = (images, tuple(result.data.get("classes", ())), _one_vs_rest(result), result.test["n"])
        key = (*task, repr(limits_of(result)), _validated(result) if metric.startswith("val/") else "")
        members.setdefault(key, []).append(result)
    ordered = sorted(members.items(), key=lambda item: (bool(limits_of(item[1][0])), -len(item[1])))
    firsts = [found[0] for _, found in ordered]
    names = dict(zip(map(id, results), data_names(results), strict=True))
    headlines = [_headline(first, names[id(first)], metric) for first in firsts]
    for more in (map(_classes, firsts), [f"test set {key[0][:8]}" for key, _ in ordered]):  # where two are the same
        twice = Counter(headlines)
        headlines = [f"{line}, {own}" if twice[line] > 1 else line for line, own in zip(headlines, more, strict=True)]
    return [
        Section(headline, names[id(found[0])], tuple(found), *_most_frequent(found))
        for headline, (_, found) in zip(headlines, ordered, strict=True)
    ]


def data_names(results: Sequence[Result]) -> list[str]:
    """Return the name of each run's data, with part of its digest if other data has that name, as folders may."""
    data = [(str(result.data["name"]), str(result.data["digest"])) for result in results]
    known = Counter(name for name, _ in set(data))
    return [name if known[name] == 1 else f"{name} ({digest[:8]})" for name, digest in data]


def limits_of(result: Result) -> dict[str, Any]:
    """Return the options of the Trainer that have cut batches from the training, the validation or the test.

    The values are those by which runs differ in more than their training; how much of the training was left out is a
    setting like others, and has the value "".
    """
    trainer, data = result.config.get("trainer", {}), result.config.get("data", {})
    if trainer.get("fast_dev_run"):
        return {"fast_dev_run": trainer["fast_dev_run"]}
    if trainer.get("overfit_batches"):
        return {"overfit_batches": trainer["overfit_batches"]}
    found: dict[str, Any] = {}
    for part, size in (("train", data.get("batch_size", 1)), ("val", data.get("eval_batch_size", 1))):
        limit, images = trainer.get(f"limit_{part}_batches"), result.data.get(part, 0)
        batches = ceil((images or 0) / size) if isinstance(size, int) and size > 0 else 0
        some = limit < 1 if isinstance(limit, float) else limit is not None and limit < batches
        if images and some:
            found[f"limit_{part}_batches"] = "" if part == "train" else limit
    if _cut_test(result):
        found["limit_test_batches"] = ""  # the images are the first n
    return found


def _cut_test(result: Result) -> bool:
    return result.test["n"] is not None and result.test["n"] < (result.data.get("test") or 0)


def _one_vs_rest(result: Result) -> int | None:
    found: int | None = result.config.get("data", {}).get("one_vs_rest")
    return found


def _validated(result: Result) -> str:
    """Return on what a run was validated; empty for data of somebody's own, of which that isn't known."""
    images, source = result.data.get("val", 0), result.data.get("val_from")
    return f"validated on {images:,} images ({source})" if images else "not validated" if images == 0 else ""


def _test_sets(results: Sequence[Result]) -> list[str]:
    """Return for each run what tells its test set from others.

    That is the digest of the images and labels; of older results, which have none, it is that of a newer run with the
    same files, else the files' digest. Data of somebody's own without a digest is told by its name.
    """
    by_files: dict[str, set[str]] = {}
    for result in results:
        if (digest := result.data.get("test_digest")) is not None:
            by_files.setdefault(result.data["digest"] or result.data["name"], set()).add(digest)
    found = []
    for result in results:
        files = result.data["digest"] or result.data["name"]
        (same,) = known if len(known := by_files.get(files, set())) == 1 else (files,)
        found.append(str(result.data.get("test_digest") or same))
    return found


def _most_frequent(results: Sequence[Result]) -> tuple[str | None, float | None]:
    """Return the most frequent class, where a single one is, and its share of the test images, if that is known."""
    for result in results:
        data, chosen = result.data, _one_vs_rest(result)
        counts = data.get("test_counts")
        if counts is None and (counts := COUNTS.get(data["digest"])) and chosen is not None and chosen < len(counts):
            counts = (sum(counts) - counts[chosen], counts[chosen])
        if counts is not None and sum(counts) == result.test["n"]:
            names = data.get("classes") or range(len(counts))
            most = [str(name) for name, count in zip(names, counts, strict=False) if count == max(counts)]
            return most[0] if len(most) == 1 else None, max(counts) / sum(counts)
    return None, None


def _headline(result: Result, name: str, metric: str) -> str:
    data, n = result.data, result.test["n"]
    classes = data.get("classes", ())
    parts = [name]
    if _one_vs_rest(result) is not None and len(classes) == 2:
        parts.append(f"{classes[1]} against the rest")
    elif classes:
        parts.append(f"{len(classes)} classes")
    if n is not None:
        parts.append(f"{n:,} of {data['test']:,} test images" if _cut_test(result) else f"{n:,} test images")
    if metric.startswith("val/"):
        parts += filter(None, [_validated(result)])
    limits = {key: value for key, value in limits_of(result).items() if key != "limit_test_batches"}
    if limits:
        words = (f"trainer.{key}" + (f"={str(value).lower()}" if value != "" else "") for key, value in limits.items())
        parts.append(f"with {' and '.join(words)}")
    return ", ".join(parts)


def _classes(result: Result) -> str:
    names = [str(name) for name in result.data.get("classes", ())]
    return " ".join(names[:10]) + (" ..." if len(names) > 10 else "")
