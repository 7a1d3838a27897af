"""The decisions for the int8 graphs on CPUs, each against its alternatives: loss and time, in turn, in one run.

    python benchmarks/cpu_variants.py out/u2netp.onnx out/u2netp.plan.json --data EVAL [--target openvino] [--limit 100]

Every variant is the plan with one decision changed (`sodeploy.quant.planning.targets`), written to the output folder
and measured by the bench in the engine of its target. It prints the bench's tables.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import onnx
import typer

from sodeploy import command_line
from sodeploy.artifacts import write_text
from sodeploy.errors import UserError
from sodeploy.quant.emit.targets import TARGETS
from sodeploy.quant.graph import load_network
from sodeploy.quant.int8 import FEW_STEPS, STEPS
from sodeploy.quant.planning.plan import Plan, TargetName, load_plan
from sodeploy.runtime.bench import bench
from sodeploy.runtime.measure.record import to_json
from sodeploy.runtime.measure.report import bench_tables, show


def variants(plan: Plan, target: TargetName) -> Iterator[tuple[str, Plan]]:
    """(name, plan) of the plan itself and of each alternative."""
    ours = plan.target(target)

    def changed(**fields: object) -> Plan:
        return plan.model_copy(update={"targets": plan.targets | {target: ours.model_copy(update=fields)}})

    yield "as_planned", plan
    for operators in (("Resize",), ("Resize", "Concat"), ("Resize", "Concat", "Add", "MaxPool")):
        yield f"no_q_before_{'_'.join(operators)}", changed(unquantized=list(operators))
    yield "heads_in_float", changed(layers={n: one for n, one in ours.layers.items() if one.precision != "int8"})
    yield (
        f"outputs_{'not_' if ours.quantizes_outputs else ''}quantized",
        changed(quantizes_outputs=not ours.quantizes_outputs),
    )
    yield (
        f"weight_steps_{FEW_STEPS}" if ours.weight_steps == STEPS else f"weight_steps_{STEPS}",
        changed(weight_steps=FEW_STEPS if ours.weight_steps == STEPS else STEPS),
    )
    layers = {name: layer.model_copy(update={"input_correction_uint8": None}) for name, layer in plan.layers.items()}
    as_int8 = [shared.model_copy(update={"uint8": None}) for shared in plan.ranges]
    yield "intervals_of_int8", plan.model_copy(update={"layers": layers, "ranges": as_int8})


def main(
    model: Annotated[Path, typer.Argument(help="float32 ONNX with a contract")],
    plan_file: Annotated[Path, typer.Argument(metavar="PLAN", help="its plan, of a build")],
    data: Annotated[str, typer.Option(help="images and masks to measure on, others than the calibration's")],
    target: Annotated[TargetName, typer.Option(help="the graph whose decisions are measured")] = "openvino",
    limit: Annotated[int | None, typer.Option(min=1, help="only the first N images")] = None,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads")] = 1,
    output_dir: Annotated[Path, typer.Option(help="folder for the graphs")] = Path("out/cpu_variants"),
    json_file: Annotated[Path | None, typer.Option("--json", help="file for the record of the bench")] = None,
) -> None:
    """Measure every decision for one CPU graph beside its alternatives."""
    network = load_network(model)
    plan = load_plan(plan_file, network)
    emitter = next(one for one in TARGETS if one.name == f"int8.{target}")
    if emitter.measured_in is None:
        raise UserError(f"the {target} graph runs in no engine of a CPU")
    output_dir.mkdir(parents=True, exist_ok=True)
    files = [model]
    for name, variant in variants(plan, target):
        files.append(output_dir / f"{model.stem}.{name}.onnx")
        onnx.save(emitter.emit(network, variant), files[-1])
    record = bench(files, data, limit, threads=threads, engines=[emitter.measured_in])
    show(bench_tables(record))
    if json_file is not None:
        write_text(json_file, to_json(record))


if __name__ == "__main__":
    command_line.run(main)
