"""An addition to mkdocs: the pages at the root of the repository become pages of the site."""

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[2]
PAGES = {"CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md", "SECURITY.md": "security.md"}
_LINK = re.compile(r"(\]\()((?:\.\./|docs/)?[\w./-]+\.md)")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages of the root."""
    for source, target in PAGES.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, target, content=_relinked(text)))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Links from docs/ to the root lead to the pages of the site."""
    return _relinked(markdown)


def _relinked(text: str) -> str:
    def target(match: re.Match[str]) -> str:
        path = match[2].removeprefix("../")
        return match[1] + (PAGES[path] if path in PAGES else match[2].removeprefix("docs/"))

    return _LINK.sub(target, text)
