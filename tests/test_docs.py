"""The pages: every relative link and anchor leads somewhere, and the code in them runs.

A fence that begins with ```python is run, the blocks of a page one after the other in one namespace
that starts empty; one that needs more than torch, or takes seconds (the tests of
exports have it), says ```python no-run.
"""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
SITE = ROOT / "docs" / "index.md"
FENCE = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\]\(([^)\s]+)\)")
TOCTREE = re.compile(r"^```\{toctree\}\n(.*?)^```$", re.DOTALL | re.MULTILINE)
CODE = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)
RESULTS = ROOT / "benchmarks" / "results"


def anchors(text: str) -> set[str]:
    """Those that GitHub makes of the headings: letters, digits, _ and -, in small letters."""
    found: set[str] = set()
    for heading in re.findall(r"^#+ (.+)$", FENCE.sub("", text), re.MULTILINE):
        name = re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")
        again = 0
        while (anchor := f"{name}-{again}" if again else name) in found:
            again += 1
        found.add(anchor)
    return found


def broken(page: Path, text: str) -> list[str]:
    """The links of a page that lead nowhere."""
    found = []
    for link in LINK.findall(FENCE.sub("", text)):
        if "://" in link or link.startswith("mailto:"):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        if target.parent == RESULTS and not RESULTS.is_dir():
            continue  # a source distribution leaves the results out
        there = target.exists()
        if there and anchor:
            there = anchor in anchors(text if target == page else target.read_text())
        if not there:
            found.append(link)
    return found


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page):
    assert broken(page, page.read_text()) == []


def linked(page: Path) -> set[Path]:
    """The files that a page's links lead to."""
    names = (link.partition("#")[0] for link in LINK.findall(FENCE.sub("", page.read_text())))
    return {(page.parent / name).resolve() for name in names if name and "://" not in name}


def test_links_lead_from_the_readme_to_every_page():
    found, new = set(), {PAGES[0]}
    while new:
        found |= new
        new = {to for page in new for to in linked(page) if to in PAGES} - found
    assert found == set(PAGES)


def in_the_site() -> set[Path]:
    """The pages that the tables of contents in the site's first page name."""
    found = {SITE}
    for entries in TOCTREE.findall(SITE.read_text()):
        for entry in entries.splitlines():
            if entry and not entry.startswith(":"):
                found |= {path.resolve() for path in SITE.parent.glob(f"{entry}.md")}
    return found


def test_every_page_is_in_the_site():
    assert set(PAGES[1:]) - in_the_site() == set()


def test_a_broken_link_is_found(tmp_path):
    text = "# A `b.c`: d\n[1](#a-bc-d) [2](#a) [3](x.md)\n```\n[4](y.md)\n# Not\n```\n"
    text += "# A `b.c`: d\n"
    page = tmp_path / "page.md"
    page.write_text(text)
    assert broken(page, text) == ["#a", "x.md"]
    assert anchors(text) == {"a-bc-d", "a-bc-d-1"}


def test_pages_are_short():
    assert len((ROOT / "README.md").read_text().split()) <= 700
    for page in PAGES:
        assert len(page.read_text().splitlines()) <= 300, page.name


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_code_runs(page, tmp_path, monkeypatch):
    text = page.read_text()
    blocks = list(CODE.finditer(text))
    if not blocks:
        pytest.skip("no code")
    monkeypatch.chdir(tmp_path)
    namespace: dict = {"__name__": page.stem}
    for block in blocks:
        # The lines are the page's, in a traceback too.
        before = "\n" * text.count("\n", 0, block.start(1))
        exec(compile(before + block[1], str(page), "exec"), namespace)


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path):
    for package in ("sphinx", "furo", "myst_parser"):
        pytest.importorskip(package)
    command = [sys.executable, "-m", "sphinx", "-E", "-W", "--keep-going", "-q", "-b", "html"]
    command += ["-c", "docs", "-d", str(tmp_path / "trees"), ".", str(tmp_path / "site")]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    for page in PAGES[1:]:
        assert (tmp_path / "site" / page.relative_to(ROOT).with_suffix(".html")).exists()
