"""The documentation's site: `./run docs` puts it into build/site, without a network.

The source directory is the whole repository, so that a link between pages is the same file here and
where the repository is read.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "docs")]

import docstrings  # noqa: E402

from fastlstm import __version__  # noqa: E402

project, author, release = "fastlstm", "the fastlstm authors", __version__
copyright = author
root_doc = "docs/index"
include_patterns = [
    "docs/**.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "benchmarks/log.md",
    "benchmarks/results/**.md",
    "examples/README.md",
    "examples/recipes/README.md",
]
exclude_patterns = [".*", "build", "dist", "csrc", "fastlstm", "tests", "**/__pycache__"]
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]

myst_heading_anchors = 4
highlight_language = "text"
nitpicky = True
nitpick_ignore_regex = [("py:.*", "(torch|optional|collections|numpy|FastLSTM|LSTM).*")]
# A heading of a results file may have another's words; the log jumps from its title to a date.
suppress_warnings = ["myst.header"]
if not (ROOT / "benchmarks" / "results").is_dir():  # a source distribution leaves them out
    suppress_warnings += ["myst.xref_missing", "image.not_readable", "toc.empty_glob"]

autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the texts have shapes and dtypes, which types lack
add_module_names = False
default_role = "literal"  # docstrings have `code` as Markdown has
napoleon_use_param = napoleon_use_rtype = False

html_theme = "furo"
html_title = f"fastlstm {release}"
html_static_path, html_css_files = ["site"], ["site.css"]
html_copy_source = False
html_show_sphinx = False

TO_FIRST_PAGE = "<!doctype html><meta http-equiv=refresh content='0; url=docs/index.html'>\n"


def give_title(app, docname, source):
    """A results file has no title, for its name says what it is; and its picture lies beside it."""
    path = Path(docname)
    if path.parent.name == "results" and not source[0].startswith("# "):
        picture = (ROOT / path).with_suffix(".png").exists()
        shown = f"![Ratios by shape]({path.name}.png)\n\n" if picture else ""
        source[0] = f"# {path.name}\n\n{shown}{source[0]}"


def write_front(app, error):
    (Path(app.outdir) / "index.html").write_text(TO_FIRST_PAGE)


def setup(app):
    app.connect("source-read", give_title)
    app.connect("autodoc-process-docstring", docstrings.to_restructured_text, priority=1)
    app.connect("build-finished", write_front)
