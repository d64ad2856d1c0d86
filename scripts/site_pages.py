"""A hook of mkdocs: the site also has the pages and files outside docs/ that its pages link to.

Pages keep the links that work between files of the repository. Here a file of docs/ moves up to the
site's root, and any other file keeps its path.
"""

from __future__ import annotations

import html
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
OUTSIDE = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "benchmarks/README.md")
NEEDS = {"gpu": "a GPU", "download": "a download", "hosts": "several hosts"}

_LINK = re.compile(r"(\]\()([^)\s#:]+)(#[^)\s]*)?(\))")
_NEEDS = re.compile(r"^<!-- needs: ([\w ,]+) -->$", re.MULTILINE)
_FENCE = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)


def linked(markdown: str, page: str) -> list[str]:
    """The repository's files that a page links to; `page` is its path in the repository."""
    texts = _FENCE.split(markdown)[::2]  # every second part is a block of code
    targets = [match[2] for text in texts for match in _LINK.finditer(text)]
    return [posixpath.normpath(posixpath.join(posixpath.dirname(page), t)) for t in targets]


def relinked(markdown: str, page: str) -> str:
    """A page's text with links that fit the site, in which `needs` comments can be seen."""
    here = posixpath.dirname(site_path(page)) or "."

    def link(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(page), match[2]))
        return f"{match[1]}{posixpath.relpath(site_path(target), here)}{match[3] or ''}{match[4]}"

    def needs(match: re.Match[str]) -> str:
        words = " and ".join(NEEDS[word] for word in re.split(r"[ ,]+", match[1]))
        return f'<p class="needs">needs {words}</p>\n'

    def block(code: str) -> str:
        """A block of code; messages of the program get lines that wrap."""
        text = code.removeprefix("```message\n")
        if text == code:
            return code
        return f'<pre class="message"><code>{html.escape(text.removesuffix("```"))}</code></pre>'

    parts = _FENCE.split(markdown)
    parts[1::2] = [block(code) for code in parts[1::2]]
    parts[::2] = [_NEEDS.sub(needs, _LINK.sub(link, text)) for text in parts[::2]]
    return "".join(parts)


def site_path(path: str) -> str:
    """A file's path in the site, from its path in the repository."""
    return path.removeprefix("docs/")


def on_files(files: Files, config: MkDocsConfig, **_: Any) -> Files:
    """Adds the pages outside docs/, and whatever pages link to there."""
    waiting = [*OUTSIDE, *(f"docs/{file.src_uri}" for file in files.documentation_pages())]
    seen = set(waiting)
    while waiting:
        path = waiting.pop()
        if not (ROOT / path).is_file():
            continue  # mkdocs names the broken link
        if not path.startswith("docs/"):
            files.append(File.generated(config, path, abs_src_path=str(ROOT / path)))
        if path.endswith(".md"):
            new = set(linked((ROOT / path).read_text(encoding="utf-8"), path)) - seen
            seen |= new
            waiting += sorted(new)
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Makes a page's links fit the site."""
    outside = page.file.generated_by is not None
    return relinked(markdown, page.file.src_uri if outside else f"docs/{page.file.src_uri}")
