"""An experiment by one command: train, export, build, make the maps of the test sets, score them, report.

    sodeploy run --config mine.yaml
    sodeploy run --config mine.yaml --only test,eval
    sodeploy run --config a.yaml --config b.yaml

Each step is skipped where its outputs stand and were made from the same inputs; steps.json in the output folder holds
the hashes of both. docs/stages/run.md shows a file with all keys.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer

from sodeploy import artifacts, command_line, terminal
from sodeploy.calib_data import open_dataset, open_datasets, open_photographs
from sodeploy.errors import UserError, first_few
from sodeploy.experiment import Experiment, Journal, Train, digest_of_path, listing, load_experiment
from sodeploy.experiment_summary import PAGE, SUMMARY, differences_of, write_summary
from sodeploy.folder_lock import locked
from sodeploy.runtime.evaluate import EVALUATION, Outputs, evaluate, write_outputs
from sodeploy.runtime.gpu.driver import driver_problem
from sodeploy.runtime.maps import holds_maps_of, require_all, write_maps
from sodeploy.runtime.measure.options import WorkersOption
from sodeploy.runtime.measure.record import read_evaluation
from sodeploy.runtime.measure.report import evaluation_table, show
from sodeploy.runtime.session import EngineName

STEPS = ("train", "export", "build", "test", "eval", "report")
MODELS, MAPS = "models", "maps"  # folders in the output


@dataclass
class Run:
    """One experiment on its way.

    Attributes:
        source: the configuration file.
        workers: processes that score.
        done: step -> "done", "skipped" (it was current), or "not selected".
    """

    source: Path
    experiment: Experiment
    output: Path
    journal: Journal
    workers: int | None = None
    done: dict[str, str] = field(default_factory=dict)

    def made(self, step: str) -> dict[str, Path]:
        """The outputs of an earlier step.

        Raises:
            UserError: it has none.
        """
        outputs = self.journal.outputs(step)
        if outputs is None:
            raise UserError(f"{self.source}: the step {step} has not been done, or its outputs are gone; select it too")
        return outputs

    def step(self, name: str, inputs: Mapping[str, Any], work: Callable[[], Mapping[str, Path]]) -> None:
        """Do a step, unless its outputs stand and are of the same inputs."""
        if self.journal.is_current(name, inputs):
            self.done[name] = "skipped"
            terminal.note(f"{name}: skipped, {self.output} holds it")
            return
        terminal.note(f"{name}: begins")
        self.journal.record(name, inputs, work())
        self.done[name] = "done"


def run_experiment(config: str | Path, only: Sequence[str] = STEPS, workers: int | None = None) -> Path:
    """Do the steps of an experiment.

    Args:
        config: its YAML file.
        only: the steps to do, of `STEPS`; the outputs of the others must stand.
        workers: processes that score; one per core by default.

    Returns:
        The summary, Markdown; summary.json lies beside it.

    Raises:
        UserError: the file is wrong, or a step cannot be done; what was done before stays.
    """
    experiment = load_experiment(config)
    output = experiment.output or Path("out") / Path(config).stem
    artifacts.check_output_folder(output)
    steps = {"train": _train, "export": _export, "build": _build, "test": _test, "eval": _eval, "report": _report}
    with locked(output):
        run = Run(Path(config), experiment, output, Journal(output), workers)
        for name in STEPS:
            if name in only:
                steps[name](run)
            else:
                run.done[name] = "not selected"
    return output / SUMMARY


def _train(run: Run) -> None:
    wanted = run.experiment.train
    if wanted is None:
        return
    from sodeploy.training.recipe import load_recipe
    from sodeploy.training.train import train

    overrides = _overrides(wanted)
    recipe = load_recipe(wanted.config, overrides)
    data = open_dataset(wanted.data or recipe.train, root=run.experiment.root)
    inputs = {"recipe": recipe.model_dump(mode="json"), "data": listing(data)}

    def work() -> dict[str, Path]:
        folder = run.output / "training"
        best = train(wanted.config, data, folder, resume=True, overrides=overrides, root=run.experiment.root)
        return {"checkpoint": best}

    run.step("train", inputs, work)


def _overrides(wanted: Train) -> list[str]:
    return [f"{key}={json.dumps(value)}" for key, value in wanted.set.items()]


def _checkpoint(run: Run) -> Path:
    given = run.experiment.checkpoint
    return run.made("train")["checkpoint"] if given is None else artifacts.require_file(given, "correct `checkpoint`")


def _network(run: Run) -> str:
    from sodeploy.training.recipe import load_recipe

    wanted = run.experiment.train
    return load_recipe(wanted.config, _overrides(wanted)).network if wanted else str(run.experiment.network)


def _export(run: Run) -> None:
    if run.experiment.model is not None:
        return
    from sodeploy.export.to_onnx import OPSET, export

    wanted, checkpoint, network = run.experiment.export, _checkpoint(run), _network(run)
    inputs = {"checkpoint": artifacts.sha256(checkpoint), "network": network, **wanted.model_dump()}

    def work() -> dict[str, Path]:
        target = run.output / MODELS / f"{network}.onnx"
        return {"onnx": export(network, checkpoint, target, size=wanted.size, opset=wanted.opset or OPSET)}

    run.step("export", inputs, work)


def _onnx(run: Run) -> Path:
    given = run.experiment.model
    return run.made("export")["onnx"] if given is None else artifacts.require_file(given, "correct `model`")


def _build(run: Run) -> None:
    wanted = run.experiment.build
    if wanted is None:
        return
    from sodeploy.quant.build_engine import build
    from sodeploy.quant.build_plan import Within
    from sodeploy.quant.calibration.methods import DEFAULT, METHODS
    from sodeploy.quant.sources import Images
    from sodeploy.runtime.measure.budget import parse_budget

    if wanted.method is not None and wanted.method not in METHODS:
        raise UserError(f"{run.source}: build.method {wanted.method} is not one of {', '.join(METHODS)}")
    root, model = run.experiment.root, _onnx(run)
    calib = open_photographs(wanted.calib, root) if wanted.int8 and wanted.calib else None
    evaluation = open_dataset(wanted.eval, root=root) if wanted.eval else None
    inputs = {
        "model": artifacts.sha256(model),
        "calib": listing(calib) if calib else None,
        "eval": listing(evaluation) if evaluation else None,
        **wanted.model_dump(exclude={"calib", "eval"}),
    }

    def work() -> dict[str, Path]:
        budget = parse_budget(wanted.max_drop) if wanted.max_drop else None
        built = build(
            model,
            run.output / MODELS,
            Images(calib.first(wanted.limit)) if calib else None,
            method=next(one for one in METHODS if one == (wanted.method or DEFAULT)),
            within=Within.of(budget, evaluation) if budget and evaluation else None,
            engines=wanted.engines,
            cpu=wanted.cpu,
        )
        engines = {f"{precision}.engine": path for precision, path in built.engines.items()}
        return {**built.graphs, **engines, **({"plan": built.plan} if built.plan else {})}

    run.step("build", inputs, work)


# What a precision is tested by: its engine where one was built and can run, else the graph for a CPU.
_STANDS_FOR = {"fp16": ("fp16.engine", "fp16.sim"), "int8": ("int8.engine", "int8.cpu")}


def _runs(role: str) -> bool:
    """Whether this machine can run it: TensorRT-RTX builds engines without a GPU too."""
    return not role.endswith(".engine") or driver_problem() is None


def _models(run: Run) -> dict[str, Path]:
    """The files that the experiment tests, by the names of the configuration."""
    built = run.made("build") if run.experiment.build is not None else {}
    found: dict[str, Path] = {}
    for name in run.experiment.test.models:
        if name == "checkpoint":
            found[name] = _checkpoint(run)
        elif name == "fp32":
            found[name] = _onnx(run)
        else:
            role = next((role for role in _STANDS_FOR.get(name, (name,)) if role in built and _runs(role)), None)
            if role is None:
                graphs = ", ".join(role for role in built if role != "plan")
                raise UserError(f"{run.source}: test.models: the build has no {name}; it has {graphs}")
            found[name] = built[role]
    return found


def _test(run: Run) -> None:
    wanted, root, models = run.experiment.test, run.experiment.root, _models(run)
    datasets = [one.first(wanted.limit) for one in open_datasets(wanted.data, masks=False, root=root)]
    inputs = {
        "models": {name: artifacts.sha256(path) for name, path in models.items()},
        "data": [listing(one) for one in datasets],
    }

    def work() -> dict[str, Path]:
        made = {}
        for name, path in models.items():
            folder = run.output / MAPS / name
            device = "cuda" if path.suffix == ".engine" else "cpu"
            network = _network(run) if name == "checkpoint" else None
            engine: EngineName = "openvino" if path.name.endswith(".openvino.onnx") else "onnxruntime"
            fresh = not holds_maps_of(folder, path)
            outcomes = write_maps(
                path, datasets, folder, network=network, device=device, engine=engine, overwrite=fresh
            )
            require_all(outcomes)
            made[name] = folder
        return made

    run.step("test", inputs, work)


def _eval(run: Run) -> None:
    wanted, root = run.experiment.eval, run.experiment.root
    made = run.made("test")
    maps = {name: made[name] for name in run.experiment.test.models if name in made}
    limit = run.experiment.test.limit
    datasets = [one.first(limit) for one in open_datasets(run.experiment.test.data, root=root)]
    inputs = {
        "maps": {name: digest_of_path(folder) for name, folder in maps.items()},
        "data": [listing(one) for one in datasets],
        **wanted.model_dump(),
    }

    def work() -> dict[str, Path]:
        evaluations = evaluate(maps, datasets, run.workers, keys=wanted.metrics, curves=wanted.curves)
        outputs = Outputs(curves=run.output / "curves.png" if wanted.curves else None).in_folder(run.output)
        write_outputs(evaluations, outputs)
        differences = run.output / "differences.json"
        artifacts.write_text(differences, json.dumps(differences_of(evaluations), indent=2) + "\n")
        found = {name: path for name, path in asdict(outputs).items() if path is not None}
        return {**found, "differences": differences}

    run.step("eval", inputs, work)


def _report(run: Run) -> None:
    """Write the page, unless it is current, and the summary, which is quick and always done."""
    run.made("eval")
    if run.experiment.eval.page:
        _page(run)
    run.done["report"] = "done"
    files = {step: _files(run, step) for step in STEPS}
    if not run.experiment.eval.page:
        files["report"] = {}  # a page of an earlier run may be of other models
    write_summary(run.source, run.experiment, run.output, run.done, files)


def _page(run: Run) -> None:
    """Write the report for people. The models run once more, in turn, because the page shows their times too."""
    from sodeploy.runtime.bench import bench
    from sodeploy.runtime.review.evidence import EvidenceLog
    from sodeploy.runtime.review.page import Extras, require_page, write_page

    root, wanted = run.experiment.root, run.experiment.eval
    models = {name: path for name, path in _models(run).items() if name != "checkpoint"}
    if not models:
        return
    require_page()
    datasets = [one.first(run.experiment.test.limit) for one in open_datasets(run.experiment.test.data, root=root)]
    plan = run.made("build").get("plan") if run.experiment.build is not None else None
    inputs = {
        "models": {name: artifacts.sha256(path) for name, path in models.items()},
        "data": [listing(one) for one in datasets],
        "plan": artifacts.sha256(plan) if plan else None,
        "metrics": wanted.metrics,
    }
    in_openvino = any(path.name.endswith(".openvino.onnx") for path in models.values())
    engines: tuple[EngineName, ...] = ("onnxruntime", "openvino") if in_openvino else ("onnxruntime",)

    def work() -> dict[str, Path]:
        logs = [EvidenceLog() for _ in datasets]
        for dataset, log in zip(datasets, logs, strict=True):
            bench(
                list(models.values()),
                dataset,
                workers=run.workers,
                allow_overlap=True,  # the page says so
                engines=engines,
                keys=wanted.metrics,
                log=log,
            )
        write_page([log.evidence for log in logs], run.output / PAGE, extras=Extras(plan))
        return {"page": run.output / PAGE}

    run.step("report", inputs, work)


def _files(run: Run, step: str) -> dict[str, str]:
    return {role: str(path) for role, path in (run.journal.outputs(step) or {}).items()}


def parse_steps(text: str) -> tuple[str, ...]:
    """The steps in a text such as `test,eval`.

    Raises:
        UserError: an unknown step, or none.
    """
    chosen = tuple(filter(None, (part.strip() for part in text.split(","))))
    unknown = next((step for step in chosen if step not in STEPS), None)
    if unknown is not None or not chosen:
        raise UserError(f"--only {text}: {unknown or 'nothing'} is no step; write some of {','.join(STEPS)}")
    return chosen


def main(
    config: Annotated[list[Path], typer.Option(help="the YAML file of an experiment; repeatable")],
    only: Annotated[str | None, typer.Option(help=f"only these steps: {','.join(STEPS)}")] = None,
    workers: WorkersOption = None,
) -> None:
    """Do experiments, each described by a file."""
    steps = parse_steps(only) if only is not None else STEPS
    failed: list[str] = []
    for number, path in enumerate(config, start=1):
        if len(config) > 1:
            terminal.note(f"experiment {number} of {len(config)}: {path}")
        try:
            summary = run_experiment(path, steps, workers)
        except UserError as error:
            if len(config) == 1:
                raise
            terminal.warn(str(error))
            failed.append(f"{path}: {error}")
            continue
        if "eval" in steps:
            show([evaluation_table(read_evaluation(summary.with_name(EVALUATION)))])
        if "report" in steps:
            terminal.results.print(str(summary), markup=False, soft_wrap=True)
    if failed:
        raise UserError(f"{len(failed)} of {len(config)} experiments failed: {first_few(failed, '; ')}")


if __name__ == "__main__":
    command_line.run(main)
