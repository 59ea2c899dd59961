"""What the pages of the documentation point at: other pages and their headings, files, and one another's figures."""

import re
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[2]
DOCS = sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))
PAGES = [
    *("README.md", "CHANGELOG.md", "SECURITY.md", "benchmarks/README.md", "demo/README.md", "findings/README.md"),
    *DOCS,
]
LARGEST_README = 12_000  # bytes: ten minutes' reading


def text_of(page: Path) -> str:
    """A page without its blocks of code."""
    return re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def links(page: str) -> list[str]:
    """The targets of links and images that are no URLs."""
    targets = re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`]*`", "", text_of(ROOT / page)))
    return [target for target in targets if not re.match(r"[a-z]+:", target)]


def anchors(page: Path) -> set[str]:
    """The headings' anchors, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", text_of(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_links(page):
    for target in links(page):
        path, _, anchor = target.partition("#")
        file = (ROOT / page).parent / path if path else ROOT / page
        assert file.exists(), f"{page} links to {target}"
        assert not anchor or anchor in anchors(file), f"{page} links to {target}"


@pytest.mark.parametrize("page", PAGES)
def test_files_that_are_named(page):
    """Paths of the repository in running text, such as those of tests."""
    named = re.findall(r"(?:tests|training|benchmarks|convert|src)/[\w./-]+\.(?:py|md|json)\b", text_of(ROOT / page))
    assert [path for path in named if not (ROOT / path).exists()] == []


def test_every_page_is_found():
    """From the README and from the index, in both of which a page is one row."""
    for page in DOCS:
        assert page == "docs/README.md" or page in links("README.md"), page
        assert page == "docs/README.md" or Path(page).name in links("docs/README.md"), page


def test_the_readme_is_short():
    assert (ROOT / "README.md").stat().st_size <= LARGEST_README


def test_figures_of_the_readme_are_those_of_the_tables():
    table = (ROOT / "README.md").read_text(encoding="utf-8").partition("\n## Speed\n")[2].partition("\n## ")[0]
    rows = [line for line in table.splitlines() if line.startswith("| ")]
    assert len(rows) > 2
    assert set(rows) <= set((ROOT / "docs" / "speed.md").read_text(encoding="utf-8").splitlines())
