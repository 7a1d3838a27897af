"""Compile pymatting's functions while an image is built: numba would do so for a minute at each start of a container.

    NUMBA_CPU_NAME=generic python numba_ahead.py FOLDER

The code is for any CPU of the image's architecture, and NUMBA_CPU_NAME must be the same where it runs. numba takes a
file of its cache only while the source keeps its time. Layers of images keep whole seconds, so the sources get these.
"""

import importlib.util
import os
import sys
from pathlib import Path


def main(folder: str) -> None:
    """Fill `folder`, a cache of numba."""
    os.environ["NUMBA_CACHE_DIR"] = folder
    specification = importlib.util.find_spec("pymatting")
    assert specification is not None
    assert specification.origin is not None
    for source in Path(specification.origin).parent.rglob("*.py"):
        seconds = int(source.stat().st_mtime)
        os.utime(source, (seconds, seconds))
    importlib.import_module("pymatting")


if __name__ == "__main__":
    main(sys.argv[1])
