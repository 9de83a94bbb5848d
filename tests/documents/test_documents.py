"""What the documents name is there, and what is there they name."""

import re
import runpy

import pytest
from conftest import ROOT
from documents import CONF, DOCUMENTS, LINES, README, TEXTS, blocks

from mnist_lab.files import CONF_DIR
from mnist_lab.keys import ELSEWHERE

YOURS = re.compile(r"my_conf/|own\.py$|letters\.npz$|compare\.md$|mnist_module\.py$|src/")
"""Files that a reader makes, that a verb leaves, or that another project has."""


def outside_blocks(text: str) -> str:
    return re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)


def heading_anchors(text: str) -> set[str]:
    """The names that GitHub gives to headings."""
    headings = re.findall(r"^#+ (.*)$", outside_blocks(text), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_readme_fits_on_200_lines() -> None:
    assert len(README.splitlines()) <= 200


def test_the_first_commands_set_up_and_train_and_set_up_and_test() -> None:
    first, second, *_ = blocks("bash", README)
    assert first == "pip install -e . && python -m mnist_lab model=mlp trainer.max_epochs=4\n"
    assert second == 'pip install -e ".[dev]" && pytest -n auto\n'
    assert 'pip install -e ".[dev]"' in (ROOT / ".ci/run").read_text()


@pytest.mark.parametrize("name", TEXTS)
def test_links_lead_somewhere(name: str) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)|src=\"([^\"]+)\"", outside_blocks(TEXTS[name])):
        link = "".join(target)
        if re.match(r"https?://", link):
            continue
        path, _, anchor = link.partition("#")
        file = ((ROOT / name).parent / path).resolve() if path else ROOT / name
        assert file.exists(), link
        assert file.is_relative_to(ROOT), link
        if anchor:
            assert anchor in heading_anchors(file.read_text()), link


@pytest.mark.parametrize("name", TEXTS)
def test_files_and_names_in_the_text_exist(name: str) -> None:
    """Of each span of code that looks like a file of this repository, or like a name in the package."""
    for span in re.findall(r"`([^`\n]+)`", outside_blocks(TEXTS[name])):
        if re.fullmatch(r"[\w./-]+\.(py|ya?ml|md|toml|svg|webp)", span) and not YOURS.search(span):
            places = [(ROOT / name).parent, ROOT, ROOT / "mnist_lab", CONF_DIR, ROOT / "tests"]
            assert any((place / span).exists() for place in places), span
        if re.match(r"(conf|mnist_lab|tests)/", span) and "*" not in span:
            assert (ROOT / span).exists(), span
        if re.fullmatch(r"mnist_lab(\.\w+)+", span):
            module, _, attribute = span.replace(".", "/").rpartition("/")
            there = any((ROOT / f"{span.replace('.', '/')}{end}").exists() for end in (".py", "/__init__.py"))
            exports = (ROOT / module / "__init__.py").read_text()
            assert there or re.search(rf"\b{attribute}\b", exports), span


def test_every_folder_with_a_document_is_in_the_readmes_last_table() -> None:
    table = README.rpartition("## Where to read on")[2]
    linked = {(ROOT / link).resolve() for link in re.findall(r"\]\((\S+README\.md)\)", table)}
    examples = {path for path in DOCUMENTS if path.parent.name == "old_runs"}  # test data, described beside itself
    assert linked == set(DOCUMENTS) - {ROOT / "README.md"} - examples


def test_the_tour_names_every_file_of_the_package() -> None:
    (tree,) = blocks("text", TEXTS["mnist_lab/README.md"])
    named = set(re.findall(r"\w+\.py", tree)) | set(re.findall(r"^(\w+)/", tree, flags=re.MULTILINE))
    package = ROOT / "mnist_lab"
    there = {path.name for path in package.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert named == there - {"__init__.py"}


def test_the_groups_table_has_every_option() -> None:
    groups = {path.parent.name for path in CONF_DIR.glob("*/*.yaml")} - {"experiment"}
    for group in groups:
        (row,) = (line for line in CONF.splitlines() if line.startswith(f"| `{group}` |"))
        shown = set(re.findall(r"`(\w+)`", row)) - {group}
        assert shown == {path.stem for path in (CONF_DIR / group).glob("*.yaml")}


def test_the_results_tables_have_every_experiment() -> None:
    experiments = {path.stem for path in (CONF_DIR / "experiment").glob("*.yaml")}
    for text in (README, TEXTS["conf/experiment/README.md"]):
        assert experiments == set(re.findall(r"^\| \[([\w.]+)\]\(", text, flags=re.MULTILINE))


def test_both_results_tables_have_the_same_numbers() -> None:
    full = TEXTS["conf/experiment/README.md"]
    for row in re.findall(r"^\| \[[\w.]+\]\(conf/.*$", README, flags=re.MULTILINE):
        name, *cells = (cell.strip() for cell in row.strip("| ").split("|"))
        (there,) = re.findall(rf"^\| \[{re.escape(name.partition(']')[0][1:])}\].*$", full, flags=re.MULTILINE)
        for cell in cells[:-1]:
            assert cell in there, (name, cell)


def test_the_template_table_has_every_word_that_a_mistake_explains() -> None:
    there = "".join(line.split("|")[1] for line in README.splitlines() if re.match(r"\| `[^`]+`.* \| ", line))
    for key in ELSEWHERE:
        assert re.search(rf"\b{key}\b", there), key


def test_every_picture_is_shown_and_all_are_light() -> None:
    folder = ROOT / ".github/pictures"
    pictures = {path for path in folder.iterdir() if path.suffix != ".py" and path.is_file()}
    shown = {
        ((ROOT / name).parent / link).resolve()
        for name, text in TEXTS.items()
        for link in re.findall(r"<img src=\"([^\"]+)\" width=\"\d+\" alt=\"[^\"]{20,}\">", text)
    }
    assert shown == pictures
    assert sum(path.stat().st_size for path in pictures) <= 1_000_000
    for path in pictures:
        if path.suffix == ".svg":  # a page of GitHub's loads nothing from elsewhere
            assert not re.search(r"url\(\s*[\"']?https?:|@import|<script", path.read_text()), path


def test_every_block_of_commands_is_in_a_language_that_is_tested() -> None:
    for name, text in TEXTS.items():
        for kind in re.findall(r"^```(\w*)$", text, flags=re.MULTILINE)[::2]:
            assert kind in ("bash", "python", "yaml", "text", "mermaid"), (name, kind)
    assert len(LINES) > 40


def test_the_chart_of_seconds_is_drawn_from_the_documents_tables() -> None:
    make = runpy.run_path(str(ROOT / ".github/pictures/make.py"))
    measured = dict(make["programs"]())
    (ours,) = (points for program, points in measured.items() if "mnist_lab" in program)
    assert [name for name, *_ in ours] == ["A3", "B", "C", "D", "fast99", "accurate"]
    assert [len(points) for points in measured.values()] == [6, 4, 4, 4, 4]
    assert all(0 < seconds < 1000 and 0 < error < 15 for points in measured.values() for _, seconds, error in points)
