"""Writes the graphs of a plan: each is proved first, and the set is whole or absent."""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import onnx

from sodeploy import terminal
from sodeploy.artifacts import atomic_write, manifest_path, write_manifest
from sodeploy.quant.emit.checks import Unreadable
from sodeploy.quant.emit.targets import Target
from sodeploy.quant.graph import Network
from sodeploy.quant.planning.plan import Plan
from sodeploy.quant.proof import Disproved, Proof, Prover, worse_than_simulated
from sodeploy.quant.sources import beside

_SIMULATION_OF = {"fp16": "fp16.sim", "bf16": "bf16.sim", "int8.trt": "int8.sim"}


@dataclass
class Written:
    """The graphs of a build.

    Attributes:
        files: target name, such as "int8.cpu" -> ONNX file.
        proofs: target name -> its proof, of the graphs that were written.
        refused: a line for each graph that was not.
    """

    files: dict[str, Path] = field(default_factory=dict)
    proofs: dict[str, Proof] = field(default_factory=dict)
    refused: list[str] = field(default_factory=list)


def write_graphs(
    network: Network, plan: Plan, plan_file: Path | None, base: Path, prover: Prover, targets: Sequence[Target]
) -> Written:
    """Write every one of the graphs that its proof holds for.

    The good graphs get their names together, once all are made. A graph that is refused leaves no file of an earlier
    build under its name either.

    Raises:
        UserError: an engine would refuse a graph; nothing is written.
    """
    graphs = [(target, target.emit(network, plan)) for target in targets]
    written, fit = Written(), []
    for target, graph in graphs:
        onnx.checker.check_model(graph)
        path = beside(base, target.suffix)
        try:
            warnings = target.check(graph, path)
        except Unreadable as reason:
            written.refused.append(f"{path}: {reason}")
            continue
        fit.append((target, graph))
        for warning in warnings:
            terminal.warn(warning)
    good = _proved(fit, plan, base, prover, written)
    with contextlib.ExitStack() as together:
        for target, graph in good:
            path = written.files[target.name] = beside(base, target.suffix)
            onnx.save(graph, together.enter_context(atomic_write(path)))
    inputs = {"model": network.path} | ({"plan": plan_file} if plan_file else {})
    for target, _ in good:
        facts = {"method": plan.calibration.method} if target.precision == "int8" and plan.calibration else {}
        path, proof = written.files[target.name], written.proofs[target.name]
        contract = network.contract.model_dump(mode="json")
        write_manifest(path, inputs, **facts, contract=contract, proof=proof.facts())
        terminal.note(f"wrote {path}: {proof}")
    discard_graphs(base, [target for target, _ in graphs if target.name not in written.files])
    return written


def discard_graphs(base: Path, targets: Sequence[Target]) -> None:
    """Remove graphs of an earlier build: they are not of the plan that is written now."""
    for target in targets:
        path = beside(base, target.suffix)
        path.unlink(missing_ok=True)
        manifest_path(path).unlink(missing_ok=True)


def _proved(
    graphs: Sequence[tuple[Target, onnx.ModelProto]], plan: Plan, base: Path, prover: Prover, written: Written
) -> list[tuple[Target, onnx.ModelProto]]:
    """The graphs that are fit for use; their proofs, and why others are not, are added to `written`."""
    good = []
    for target, graph in terminal.progress(graphs, "proving graphs"):
        try:
            proof, warning = prover.prove(target, graph, plan)
        except Disproved as reason:
            written.refused.append(f"{beside(base, target.suffix)}: {reason}")
            continue
        written.proofs[target.name] = proof
        good.append((target, graph))
        if warning is not None:
            terminal.warn(f"{beside(base, target.suffix)}: {warning}")
    for name, simulation in _SIMULATION_OF.items():
        both = written.proofs.get(name), written.proofs.get(simulation)
        if both[0] is not None and both[1] is not None and worse_than_simulated(both[0], both[1]):
            written.refused.append(
                f"{base.name}.{name}.onnx: its map has {both[0].sqnr_db:.1f} dB to float32, its simulation "
                f"{both[1].sqnr_db:.1f} dB"
            )
            del written.proofs[name]
            good = [pair for pair in good if pair[0].name != name]
    return good
