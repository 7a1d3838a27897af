"""Salient-object networks from PyTorch to TensorRT INT8, with the accuracy they lose on the way measured.

Every room of the repository is a package below this one: `runtime/` is `sodeploy.runtime`, and so on.
"""

from pathlib import Path

__version__ = "0.1.0"  # pyproject.toml reads it here

# An installed package holds the rooms. In a checkout they lie beside this folder.
_checkout = Path(__file__).resolve().parent.parent
if (_checkout / "pyproject.toml").is_file() and str(_checkout) not in __path__:
    __path__.append(str(_checkout))
