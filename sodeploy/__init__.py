"""Salient-object networks from PyTorch to TensorRT INT8, with the accuracy they lose on the way measured.

Every room of the repository is a package below this one: `runtime/` is `sodeploy.runtime`, and so on. The functions of
the stages can be imported from here (`from sodeploy import load, cutout, bench`); docs/python.md shows how. A module is
imported when the first of its names is asked for, so that an image that deploys a model needs neither torch nor onnx.
"""

import importlib
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sodeploy.calib_data.dataset import Dataset as Dataset
    from sodeploy.calib_data.images import write_picture as write_picture
    from sodeploy.calib_data.sources import open_dataset as open_dataset
    from sodeploy.calib_data.subset import write_subset as write_subset
    from sodeploy.errors import Stopped as Stopped
    from sodeploy.errors import UserError as UserError
    from sodeploy.export.adopt import adopt as adopt
    from sodeploy.export.to_onnx import export as to_onnx  # noqa: F401
    from sodeploy.quant.build_engine import build as build
    from sodeploy.quant.build_engine import build as build_engine  # noqa: F401
    from sodeploy.quant.build_engine import emit as emit
    from sodeploy.quant.build_plan import Within as Within
    from sodeploy.quant.calibration.observer import calibrate as calibrate
    from sodeploy.quant.calibration.statistics import Statistics as Statistics
    from sodeploy.quant.calibration.statistics import load_statistics as load_statistics
    from sodeploy.quant.equalize import equalize as equalize
    from sodeploy.quant.graph import Network as Network
    from sodeploy.quant.graph import load_network as load_network
    from sodeploy.quant.layer_report import layer_report as layer_report
    from sodeploy.quant.planning.decide import make_plan as make_plan
    from sodeploy.quant.planning.decide import make_plan as plan  # noqa: F401
    from sodeploy.quant.planning.evidence import Evidence as Evidence
    from sodeploy.quant.planning.plan import Plan as Plan
    from sodeploy.quant.planning.plan import load_plan as load_plan
    from sodeploy.quant.planning.plan import save_plan as save_plan
    from sodeploy.quant.sources import Cache as Cache
    from sodeploy.quant.sources import Counted as Counted
    from sodeploy.quant.sources import Edited as Edited
    from sodeploy.quant.sources import Images as Images
    from sodeploy.run import run_experiment as run_experiment
    from sodeploy.runtime.bench import bench as bench
    from sodeploy.runtime.contract import Contract as Contract
    from sodeploy.runtime.evaluate import evaluate as evaluate
    from sodeploy.runtime.infer import infer as infer
    from sodeploy.runtime.label.label import label as label
    from sodeploy.runtime.maps import write_maps as write_maps
    from sodeploy.runtime.measure.budget import parse_budget as parse_budget
    from sodeploy.runtime.model import Model as Model
    from sodeploy.runtime.model import cutout as cutout
    from sodeploy.runtime.model import load as load
    from sodeploy.runtime.processing import predict as predict
    from sodeploy.runtime.session import Session as Session
    from sodeploy.runtime.session import open_session as open_session
    from sodeploy.terminal import on_progress as on_progress
    from sodeploy.training.train import train as train
    from sodeploy.verify import verify as verify_files  # noqa: F401

__version__ = "0.1.0"  # pyproject.toml reads it here

# Name -> the module that defines it. The imports above say the same to a type checker; a test compares the two.
_MODULES = {
    "Cache": "quant.sources",
    "Contract": "runtime.contract",
    "Counted": "quant.sources",
    "Dataset": "calib_data.dataset",
    "Edited": "quant.sources",
    "Evidence": "quant.planning.evidence",
    "Images": "quant.sources",
    "Model": "runtime.model",
    "Network": "quant.graph",
    "Plan": "quant.planning.plan",
    "Session": "runtime.session",
    "Statistics": "quant.calibration.statistics",
    "Stopped": "errors",
    "UserError": "errors",
    "Within": "quant.build_plan",
    "adopt": "export.adopt",
    "bench": "runtime.bench",
    "build": "quant.build_engine",
    "build_engine": "quant.build_engine",
    "calibrate": "quant.calibration.observer",
    "cutout": "runtime.model",
    "emit": "quant.build_engine",
    "equalize": "quant.equalize",
    "evaluate": "runtime.evaluate",
    "infer": "runtime.infer",
    "label": "runtime.label.label",
    "layer_report": "quant.layer_report",
    "load": "runtime.model",
    "load_network": "quant.graph",
    "load_plan": "quant.planning.plan",
    "load_statistics": "quant.calibration.statistics",
    "make_plan": "quant.planning.decide",
    "on_progress": "terminal",
    "open_dataset": "calib_data.sources",
    "open_session": "runtime.session",
    "parse_budget": "runtime.measure.budget",
    "plan": "quant.planning.decide",
    "predict": "runtime.processing",
    "run_experiment": "run",
    "save_plan": "quant.planning.plan",
    "to_onnx": "export.to_onnx",
    "train": "training.train",
    "verify_files": "verify",
    "write_maps": "runtime.maps",
    "write_picture": "calib_data.images",
    "write_subset": "calib_data.subset",
}
# Names that differ from those in the modules: `sodeploy.export` and `sodeploy.verify` are modules already, and stages
# have other names.
_NAMED_THERE = {"build_engine": "build", "plan": "make_plan", "to_onnx": "export", "verify_files": "verify"}

__all__ = ["__version__", *_MODULES]

if not TYPE_CHECKING:  # a type checker would take every name for one of ours

    def __getattr__(name: str) -> object:
        """The function or class of that name, whose module is imported now.

        Raises:
            ModuleNotFoundError: an extra is not installed; the message is the pip command that brings it.
        """
        if name not in _MODULES:
            raise AttributeError(f"module 'sodeploy' has no attribute {name!r}")
        try:
            module = importlib.import_module(f"sodeploy.{_MODULES[name]}")
        except ModuleNotFoundError as error:
            from sodeploy.stages import EXTRA_OF, install_command

            if error.name not in EXTRA_OF:
                raise
            hint = f"sodeploy.{name} needs {error.name}: {install_command(error.name)}"
            raise ModuleNotFoundError(hint, name=error.name) from None
        return getattr(module, _NAMED_THERE.get(name, name))


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})


# An installed package holds the rooms. In a checkout they lie beside this folder.
_checkout = Path(__file__).resolve().parent.parent
if (_checkout / "pyproject.toml").is_file() and str(_checkout) not in __path__:
    __path__.append(str(_checkout))
