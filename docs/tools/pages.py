"""What mkdocs does not do by itself: the README is the first page, and files that pages link to come along.

Pages link to files of the repository as they lie there (`../pipeline/cli.py`), so that the links work in a
checkout, too. In the site such a file stands below source/.
"""

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
PAGES = {"README.md": "index.md", "CHANGELOG.md": "changelog.md"}
"""The pages that lie outside of docs/, and what they are called in the site."""
_LINK = re.compile(r"(?<=\]\()(?!\w+:|#)([^)#\s]+)")
_SOURCE = "source/"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages of the top level, and every file outside of docs/ that a page links to."""
    for path, name in PAGES.items():
        text = _LINK.sub(lambda found: posixpath.relpath(found[1], "docs"), (ROOT / path).read_text())
        files.append(File.generated(config, name, content=text))
    for target in sorted({each for page in files.documentation_pages() for each in _linked(page)}):
        files.append(File.generated(config, _SOURCE + target, abs_src_path=str(ROOT / target)))
    return files


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    """Let links to files outside of docs/ lead to where they stand in the site."""
    uri = page.file.src_uri

    def in_site(found: re.Match[str]) -> str:
        target = outside(found[1], uri)
        if target is None:
            return found[1]
        return posixpath.relpath(PAGES.get(target, _SOURCE + target), posixpath.dirname(uri) or ".")

    return _LINK.sub(in_site, markdown)


def outside(link: str, uri: str) -> str | None:
    """Return the file of the repository that a page of docs/ links to; None for one within docs/."""
    path = posixpath.normpath(posixpath.join("docs", posixpath.dirname(uri), link))
    return None if path.startswith("docs/") else path


def _linked(page: File) -> set[str]:
    found = {outside(link, page.src_uri) for link in _LINK.findall(page.content_string)}
    return {target for target in found if target is not None and target not in PAGES}
