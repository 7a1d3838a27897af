"""Text between two marker lines of a Markdown file, which a command writes:

<!-- options build: begin -->
...
<!-- options build: end -->
"""

import re
from collections.abc import Callable
from pathlib import Path

from sodeploy.errors import UserError

_BEGIN = re.compile(r"^<!-- (\S.*): begin -->$", re.MULTILINE)


def markers(name: str) -> tuple[str, str]:
    """The first and the last line of the block `name`."""
    return f"<!-- {name}: begin -->", f"<!-- {name}: end -->"


def replace(text: str, name: str, content: str, source: Path) -> str:
    """`text` with other content in the block `name`.

    Raises:
        UserError: the block is absent or has no end; `source` is named.
    """
    begin, end = markers(name)
    before, found, rest = text.partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise UserError(f"{source} lacks the lines {begin} and {end}; put them where the section belongs")
    return f"{before}{begin}\n{content.strip()}\n{end}{after}"


def rewritten(text: str, write: Callable[[str], str], source: Path) -> str:
    """`text` with every block as `write` makes it from the block's name."""
    for name in _BEGIN.findall(text):
        text = replace(text, name, write(name), source)
    return text
