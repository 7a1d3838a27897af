"""The front door: `sodeploy STAGE ...` is `python ROOM/STAGE.py ...`, and `sodeploy demo` walks through all of them.

A stage's room is imported only when it is asked for: an image that deploys a model has no PyTorch and needs none.
"""

import importlib
import sys
from types import ModuleType

from sodeploy import terminal
from sodeploy.errors import UserError

STAGES = {
    "demo": ("sodeploy.demo", "the whole way on a synthetic data set, on any machine"),
    "train": ("sodeploy.training.train", "images and masks -> checkpoint"),
    "networks": ("sodeploy.training.networks", "the networks there are, with parameters and MACs"),
    "export": ("sodeploy.export.to_onnx", "checkpoint -> ONNX with its contract"),
    "adopt": ("sodeploy.export.adopt", "anybody's ONNX -> ONNX with a contract"),
    "equalize": ("sodeploy.quant.equalize", "ONNX -> the same with channels of one magnitude"),
    "calibrate": ("sodeploy.quant.calibrate", "ranges counted apart, on several machines, and merged"),
    "build": ("sodeploy.quant.build_engine", "ONNX -> plan, fp16 and int8 graphs, engines"),
    "plan": ("sodeploy.quant.plan", "a plan -> shown, compared, edited"),
    "layers": ("sodeploy.quant.layer_report", "a plan x images -> what each int8 layer costs"),
    "engine": ("sodeploy.quant.engine", "one graph -> one engine, with every option"),
    "bench": ("sodeploy.runtime.bench", "models x images -> accuracy, its loss, latency"),
    "infer": ("sodeploy.runtime.infer", "a folder of images -> saliency maps or pictures"),
    "evaluate": ("sodeploy.runtime.evaluate", "folders of saliency maps -> the nine metrics"),
    "masks": ("sodeploy.calib_data.masks", "masks -> grown, shrunk, and their boundaries"),
    "subset": ("sodeploy.calib_data.subset", "a folder of images -> a calibration set"),
}
_EXTRAS = {"torch": "train", "onnx": "quant", "onnxruntime": "cpu", "py_sod_metrics": "bench", "matplotlib": "report"}


def main() -> None:
    """Run the stage that the command line names."""
    if len(sys.argv) < 2 or sys.argv[1] in ("-h", "--help"):
        _print_stages()
        return
    stage = sys.argv.pop(1)
    with terminal.errors_in_one_line():
        module = _room(stage)
    sys.argv[0] = f"sodeploy {stage}"
    terminal.run(getattr(module, "app", None) or module.main)


def _room(stage: str) -> ModuleType:
    if stage not in STAGES:
        raise UserError(f"sodeploy has no stage {stage!r}; there are {', '.join(STAGES)}")
    try:
        return importlib.import_module(STAGES[stage][0])
    except ModuleNotFoundError as error:
        if error.name not in _EXTRAS:
            raise
        raise UserError(f"{stage} needs {error.name}: pip install 'sodeploy[{_EXTRAS[error.name]}]'") from None


def _print_stages() -> None:
    terminal.results.print("usage: sodeploy STAGE [OPTIONS]; sodeploy STAGE --help says which\n", markup=False)
    for stage, (module, does) in STAGES.items():
        room, _, stem = module.removeprefix("sodeploy.").rpartition(".")
        script = f"{room or 'sodeploy'}/{stem}.py"
        terminal.results.print(f"  {stage:<10}{does:<56}{script}", markup=False, soft_wrap=True)


if __name__ == "__main__":
    main()
