"""The site: `make docs` writes it to build/docs. Its pages are the Markdown of the repository, as it is.

What an index page links to is its part of the contents. A source file or a folder that a page links to becomes a page too.
"""

import os
import re
import sys
from pathlib import Path

from docutils import nodes
from sphinx import addnodes

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "docs"))
import plots  # noqa: E402 (what `python docs/plots.py` runs)

project = html_title = "sdar"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
include_patterns = ["*.md", "conf/README.md", "docs/**.md"]
exclude_patterns = [".*", "**/.*", "build", "dist", "runs", "tests", "benchmarks"]
root_doc = "docs/README"
html_theme = "furo"
html_show_sourcelink = html_copy_source = False
myst_heading_anchors = 4
default_role, highlight_language = "code", "text"
autodoc_default_options = dict.fromkeys(["members", "imported-members", "show-inheritance"], True) | {
    "special-members": "__call__"
}
autodoc_preserve_defaults, autodoc_inherit_docstrings = True, False
linked: set[Path] = set()


def add_contents(app, name, source):
    """The pages that an index links to, in its order."""
    if name.endswith("/README") and name.startswith("docs"):
        pages = dict.fromkeys(re.findall(r"\]\(([^)#\s]+\.md)\)", source[0]))
        pages = [page for page in pages if name == root_doc or "/" not in page]
        source[0] += "\n```{toctree}\n:hidden:\n\n" + "\n".join(pages) + "\n```\n"


def add_plots(app, name, source):
    """The picture of every registered gate and divergence."""
    if name == "docs/parts":
        plots.write(ROOT / "build/plots")
        source[0] += "".join(f"\n## {kind.capitalize()}\n\n{plots.sections(kind, '../build/plots')}" for kind in plots.PANELS)


def lead_to_sources(app, tree):
    """Links to source files and to folders lead to pages of the site."""
    here = Path(app.env.docname).parent
    for link in [*tree.findall(addnodes.download_reference), *tree.findall(addnodes.pending_xref)]:
        target = Path(os.path.normpath(here / link["reftarget"]))
        if (ROOT / target).is_dir() or isinstance(link, addnodes.download_reference):
            linked.update([target, *(f.relative_to(ROOT) for f in (ROOT / target).glob("*.*"))])
            link.replace_self(nodes.reference("", "", *link.children, refuri=os.path.relpath(f"source/{target}.html", here)))


def source_pages(app):
    """A page for each linked source file and folder."""
    for target in sorted(linked):
        if (ROOT / target).is_dir():
            names = sorted(file.name for file in linked if file.parent == target)
            body = "".join(f'<li><a href="{target.name}/{name}.html">{name}</a></li>' for name in names)
        else:
            text, lexer = (ROOT / target).read_text(encoding="utf-8"), "python" if target.suffix == ".py" else "yaml"
            body = app.builder.highlighter.highlight_block(text, lexer)
        yield f"source/{target}", {"title": str(target), "body": f"<h1>{target}</h1>{body}"}, "page.html"


def plain(app, what, name, thing, options, lines):
    """Docstrings are plain text: bars mean nothing there, nor do hanging indents before the sections (Args and so on)."""
    out, free = [""], True
    for line in lines:
        free = free and not re.fullmatch(r"\s*(Args|Returns|Raises|Attributes):", line)
        line = line.lstrip() if free and re.match(r"[^\s*-]", out[-1]) else line
        out += [""] * line.startswith(("Value", "Gradient"))  # a paragraph each
        out.append(re.sub(r"`+[^`]+`+|\|", lambda found: r"\|" if found[0] == "|" else found[0], line))
    lines[:] = out


def setup(app):
    app.connect("source-read", add_contents)
    app.connect("source-read", add_plots)
    app.connect("doctree-read", lead_to_sources, priority=1)  # before what is linked is copied for downloading
    app.connect("html-collect-pages", source_pages)
    app.connect("autodoc-process-docstring", plain, priority=1)  # before the sections are read
    app.connect("autodoc-skip-member", lambda *a: a[4] or not getattr(a[3], "__module__", "").startswith("sdar."))
    first = '<meta http-equiv="refresh" content="0; url=docs/README.html">\n'
    app.connect("build-finished", lambda app, error: (Path(app.outdir) / "index.html").write_text(first))
