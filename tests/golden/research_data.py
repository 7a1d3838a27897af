"""The research data, which are not part of this repository: where they lie, and how to get a file that is missing."""

import os
from collections.abc import Callable
from pathlib import Path

ResearchFile = Callable[[str], Path]  # the fixture `research_file`

_REPOSITORY = Path(__file__).resolve().parents[2]

# What a file is and where it comes from, by the beginning of its path in the research folder.
SOURCES = {
    "weights/u2netp": "trained U²-Netp (u2netp.pth of github.com/xuebinqin/U-2-Net, Apache-2.0; here its batch norms "
    "are folded into the convolutions)",
    "weights/csnet": "trained CSNet (checkpoints of github.com/MCG-NKU/SOD100K, for research only)",
    "data/": "lists of images of ECSSD (www.cse.cuhk.edu.hk/leojia/projects/hsaliency) and PASCAL-S "
    "(cbs.ic.gatech.edu/salobj), research benchmarks without an open licence, 250 and 50 pairs",
    "networks": "the complete golden arrays, of which tests/golden/data holds a part",
    "tools/fakecuda": "the imitated CUDA driver of this project, kept outside this repository",
    "tools/": "the listings of TensorRT's Python API (10.16 and 11.4) and their checker, kept outside this repository",
}


def research_folder() -> Path:
    """The folder that the environment variable SODEPLOY_RESEARCH names; by default `shared` beside the checkout."""
    return Path(os.environ.get("SODEPLOY_RESEARCH", _REPOSITORY.parent / "shared"))


def reason_missing(path: str) -> str:
    """One line for a skipped test: which file is missing, its source, and where to put it."""
    source = next(text for start, text in SOURCES.items() if path.startswith(start))
    return f"needs {path} in {research_folder()} (the folder of SODEPLOY_RESEARCH): {source}"
