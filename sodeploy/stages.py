"""The stages of the product, one entry each: the module, a line of help, the extras to install, and whole examples.

A stage carries the name of its script: `sodeploy bench ...` is `python runtime/bench.py ...`. A new script costs one
entry of `STAGES`. Only the standard library is imported here.
"""

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent  # of a checkout; of an installed package the site-packages folder


class Need(NamedTuple):
    """Options of which a command needs one. An alternative may be several options, separated by spaces.

    Attributes:
        alternatives: for example ("--mean --std", "--like"); a name without dashes is an argument.
        when: the option that makes them necessary; empty: always.
        unless: the option that makes them unnecessary; empty: none.
    """

    alternatives: tuple[str, ...]
    when: str = ""
    unless: str = ""

    def __str__(self) -> str:
        named = [" and ".join(alternative.split()) for alternative in self.alternatives]
        return ", ".join(named[:-1]) + " or " * (len(named) > 1) + named[-1]


class Stage(NamedTuple):
    """One stage.

    Attributes:
        module: the module that runs it, below `sodeploy`.
        does: one line of help.
        examples: whole command lines without the program's name; of a stage with subcommands, one for each.
        extras: the extras of pyproject.toml that the stage imports.
        needs: requirements that concern several options at once.
        aliases: other names that work and are not listed.
        renamed: older names of options, which work and are not listed, with the names of today.
        bare: options that need no value behind them, with the value that is meant then.
        writes: the options that name outputs.
        folder: `--output` names a folder.
        in_place: an output may be an input, which stays whole until the new file is.
    """

    module: str
    does: str
    examples: tuple[str, ...]
    extras: tuple[str, ...] = ()
    needs: tuple[Need, ...] = ()
    aliases: tuple[str, ...] = ()
    renamed: Mapping[str, str] = MappingProxyType({})
    bare: Mapping[str, str] = MappingProxyType({})
    writes: tuple[str, ...] = ("--output",)
    folder: bool = False
    in_place: bool = False

    @property
    def script(self) -> str:
        """The script's path in a checkout."""
        return (self.module if "." in self.module else f"sodeploy.{self.module}").replace(".", "/") + ".py"


# The extra that brings a module, for an import that fails.
EXTRA_OF = {
    "torch": "train",
    "yaml": "bench",
    "onnx": "quant",
    "onnxsim": "adopt",
    "onnxruntime": "cpu",
    "py_sod_metrics": "bench",
    "jinja2": "report",
    "matplotlib": "report",
    "av": "video",
    "pymatting": "matting",
    "pillow_heif": "heif",
    "uvicorn": "serve",
    "fastapi": "serve",
    "starlette": "serve",
    "prometheus_client": "serve",
    "tritonclient": "triton",
    "grpc": "triton",
    "ray": "ray",
    "pandas": "ray",
    "pyarrow": "ray",
}

STAGES = {
    "demo": Stage(
        "demo",
        "run all stages on a synthetic data set, on any machine",
        ("--output out/demo",),
        ("cpu", "bench", "quant", "train"),
        folder=True,
    ),
    "run": Stage(
        "run",
        "one file -> a whole experiment: train, export, build, test, eval, report",
        ("--config mine.yaml", "--config mine.yaml --only test,eval"),
        ("bench", "cpu", "quant", "report", "train"),
        writes=(),
    ),
    "train": Stage(
        "training.train",
        "images and masks -> checkpoint",
        ("--config u2netp --data DUTS-TR --output runs/u2netp",),
        ("train",),
        needs=(Need(("--config",), unless="--list"),),
        folder=True,
    ),
    "networks": Stage("training.networks", "list the networks with parameters and MACs", ("--size 320",), ("train",)),
    "to_onnx": Stage(
        "export.to_onnx",
        "checkpoint -> ONNX with its contract",
        ("--model u2netp --checkpoint runs/u2netp/best.pth --output out/u2netp.onnx",),
        ("train", "cpu"),
        aliases=("export",),
        renamed={"--color": "--colour"},
    ),
    "adopt": Stage(
        "export.adopt",
        "an ONNX file from elsewhere -> ONNX with a contract",
        (
            "theirs.onnx --mean .485 .456 .406 --std .229 .224 .225 --size 320 --output out/theirs.onnx",
            "theirs.onnx --like u2netp --output out/theirs.onnx",
        ),
        ("adopt", "cpu"),
        needs=(Need(("--mean --std", "--like")),),
        renamed={"--color": "--colour"},
    ),
    "doctor": Stage(
        "export.doctor",
        "what an ONNX file is, and the adopt command for it",
        ("theirs.onnx --data ECSSD",),
        ("adopt", "cpu"),
    ),
    "equalize": Stage(
        "quant.equalize",
        "ONNX -> the same function, with channels of one magnitude",
        ("out/csnet_x1.onnx --calib out/calib.txt --output out/csnet_x1.equalized.onnx",),
        ("quant", "cpu"),
    ),
    "calibrate": Stage(
        "quant.calibrate",
        "count ranges in parts, on several machines, and merge them",
        (
            "out/u2netp.onnx --calib out/calib.txt --shard 1/4 --output part1.npz",
            "--merge part1.npz part2.npz part3.npz part4.npz --output all.npz",
        ),
        ("quant", "cpu"),
        needs=(Need(("--calib",), unless="--merge"),),
        bare={"--ray": "here"},
    ),
    "build_engine": Stage(
        "quant.build_engine",
        "ONNX -> plan, fp16, bf16 and int8 graphs, engines",
        ("out/u2netp.onnx --int8 --calib out/calib.txt --output-dir out",),
        ("quant", "cpu"),
        needs=(
            Need(("--int8", "--fp16", "--bf16")),
            Need(("--calib", "--statistics", "--plan", "--calib-cache"), when="--int8"),
            Need(("--eval",), when="--max-drop"),
            Need(("--max-drop",), when="--eval"),
        ),
        aliases=("build",),
        renamed={"--images": "--limit", "--profile": "--shapes"},
        writes=("--output-dir",),
    ),
    "plan": Stage(
        "quant.plan",
        "show a plan, compare two, edit one",
        (
            "show out/u2netp.plan.json",
            "diff out/u2netp.plan.json edited.plan.json",
            "edit out/u2netp.plan.json --set '/stage1/*=fp16' --output out/edited.plan.json",
        ),
        ("quant", "cpu"),
        in_place=True,
    ),
    "layer_report": Stage(
        "quant.layer_report",
        "plan and images -> the error that each int8 layer adds",
        ("out/u2netp.onnx out/u2netp.plan.json --data ECSSD",),
        ("quant", "cpu"),
        aliases=("layers",),
        renamed={"--images": "--data", "--count": "--limit"},
        writes=("--json",),
    ),
    "engine": Stage(
        "quant.engine",
        "one graph -> one engine, with every option",
        ("out/u2netp.int8.trt.onnx --output out/u2netp.int8.engine",),
        ("quant",),
        renamed={"--profile": "--shapes"},
    ),
    "calib_cache": Stage(
        "quant.calib_cache",
        "plan -> a calib.cache of TensorRT 10 or older",
        ("out/u2netp.onnx out/u2netp.plan.json out/u2netp.calib.cache --tensorrt 8.6.1",),
        ("quant", "cpu"),
        aliases=("cache",),
    ),
    "bench": Stage(
        "runtime.bench",
        "models and images -> accuracy, its loss, latency",
        (
            "out/u2netp.onnx out/u2netp.int8.cpu.onnx --data ECSSD --max-drop s=0.002",
            "out/u2netp.onnx out/u2netp.int8.cpu.onnx --data ECSSD --report out/report --fail-on s=0.003,mae=0.001",
        ),
        ("bench", "cpu"),
        renamed={"--images": "--limit", "--profile": "--timeline"},
        writes=("--json", "--markdown", "--timeline", "--junit"),
        bare={"--ray": "here"},
    ),
    "infer": Stage(
        "runtime.infer",
        "images, videos, folders, data sets -> saliency maps or cut-outs",
        ("photo.jpg --model out/u2netp.onnx", "photos --model out/u2netp.onnx --output out/cutouts --type rgba"),
        ("cpu", "matting"),
        needs=(Need(("SOURCE", "--images --model")), Need(("--model", "--images"))),
        renamed={"--profile": "--timeline", "--style": "--type"},
        writes=("--timeline", "--failures"),  # `--output` may be a file or a folder: infer looks itself
    ),
    "serve": Stage(
        "runtime.serve.serve",
        "models -> an HTTP service for maps and cut-outs, with a page",
        (
            "--model out/u2netp.onnx",
            "--model fp32=out/u2netp.onnx --model int8=out/u2netp.int8.cpu.onnx --workers 2",
        ),
        ("cpu", "serve"),
        writes=(),
    ),
    "label": Stage(
        "runtime.label.label",
        "very many images -> saliency maps or cut-outs, by workers on one machine or many",
        (
            "photos --model out/u2netp.onnx --output out/labels",
            "shards --ray auto --model out/u2netp.onnx --output /shared/labels --plan 10000000",
        ),
        ("cpu", "matting", "ray"),
        bare={"--ray": "here"},
        folder=True,
    ),
    "triton_repository": Stage(
        "runtime.triton_server.triton_repository",
        "models -> a model repository for NVIDIA Triton",
        (
            "--model out/u2netp.onnx --output out/repository",
            "--model u2netp=out/sm86.engine --model u2netp=out/sm89.engine --output out/repository",
        ),
        ("cpu", "quant", "triton"),
        aliases=("triton",),
        folder=True,
    ),
    "maps": Stage(
        "runtime.maps",
        "data sets -> the saliency maps of a model, ready for evaluate",
        (
            "out/u2netp.onnx --data DUTS-TE,ECSSD --root DATA --output maps/u2netp",
            "u2netp.pth --network u2netp --data t,e --root DATA --output maps/u2netp",
        ),
        ("cpu",),
        aliases=("test",),
        renamed={"--sal_mode": "--data"},
        folder=True,
    ),
    "evaluate": Stage(
        "runtime.evaluate",
        "folders of saliency maps -> the nine metrics, or others",
        ("--pred maps/U2Net --data ECSSD", "--pairs pairs.lst --metrics all", "--config eval.yaml"),
        ("bench",),
        needs=(Need(("--pred --data", "--pairs", "--config")),),
        renamed={"--gt": "--data"},
        writes=("--json", "--csv", "--markdown", "--curves"),
    ),
    "verify": Stage(
        "verify",
        "files against their manifests, and all they were made from",
        ("out/u2netp.int8.cpu.onnx", "out", "csnet-L-x1.pth.tar"),
        writes=(),
    ),
    "masks": Stage(
        "calib_data.masks",
        "masks -> grown, shrunk, and their boundaries",
        ("DUTS-TR --output DUTS-TR-margins",),
        folder=True,
    ),
    "subset": Stage(
        "calib_data.subset",
        "a folder of images -> a calibration set",
        ("DUTS-TR --count 100 --exclude ECSSD --output out/calib.txt",),
    ),
    "kernels": Stage(
        "runtime.gpu.kernels",
        "compile the CUDA kernels ahead of time",
        ("--arch sm86 --arch sm89",),
        folder=True,
    ),
}


def stage_named(name: str) -> str | None:
    """The stage that `name` or one of its aliases means; dashes count as underscores. None if there is none."""
    name = name.replace("-", "_")
    return next((stage for stage, entry in STAGES.items() if name == stage or name in entry.aliases), None)


def stage_of(function: Callable[..., Any]) -> str | None:
    """The stage whose module defines `function`, run as a script or imported. None for any other module."""
    module = function.__module__.removeprefix("sodeploy.")
    if module == "__main__":
        file = Path(function.__globals__.get("__file__") or "").resolve()
        if not file.is_relative_to(ROOT):
            return None
        module = ".".join(file.relative_to(ROOT).with_suffix("").parts).removeprefix("sodeploy.")
    return next((stage for stage, entry in STAGES.items() if entry.module == module), None)


def command(stage: str) -> str:
    """The start of a command line for `stage`, as this process was called itself.

    `python runtime/bench.py` where a script of a checkout runs, `python -m sodeploy bench`, or `sodeploy bench`.
    """
    called = Path(sys.argv[0])
    if called.suffix == ".py":
        file = called.resolve()
        if file == Path(__file__).with_name("__main__.py"):
            return f"python -m sodeploy {stage}"
        if file.is_relative_to(ROOT) and (ROOT / "pyproject.toml").is_file():
            above = len(file.relative_to(ROOT).parts)
            before = called.parts[:-above] if len(called.parts) >= above else ()
            return f"python {Path(*before, STAGES[stage].script)}"
    return f"sodeploy {stage}"


def examples(stage: str, subcommand: str | None = None) -> list[str]:
    """Whole command lines for a stage, or for one of its subcommands."""
    lines = [line for line in STAGES[stage].examples if subcommand is None or line.split()[0] == subcommand]
    return [f"{command(stage)} {line}" for line in lines]


def install_command(module: str, stage: str | None = None) -> str:
    """The one pip command that brings a missing module and everything else that the stage imports."""
    extras = {*(STAGES[stage].extras if stage else ()), EXTRA_OF[module]}
    if module != "onnxruntime" and "onnxruntime" in sys.modules:
        extras.discard("cpu")  # the GPU build may be installed, which the CPU build would overwrite
    return f"pip install 'sodeploy[{','.join(sorted(extras))}]'"
