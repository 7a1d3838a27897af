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
from sodeploy.runtime.onnx_bytes import save_model

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

    One graph is in memory at a time. The good graphs get their names together, once all are made. A graph that is
    refused leaves no file of an earlier build under its name either.

    Raises:
        UserError: an engine would refuse a graph; nothing is written.
    """
    written = Written()
    drafts: dict[str, contextlib.ExitStack] = {}  # target name -> its file, which gets its name when this is closed
    with contextlib.ExitStack() as together:
        for target in terminal.progress(targets, "proving graphs"):
            path = beside(base, target.suffix)
            draft = contextlib.ExitStack()
            with contextlib.suppress(_Refused), draft:
                _draft(target, network, plan, path, draft.enter_context(atomic_write(path)), prover, written)
                drafts[target.name] = together.enter_context(draft.pop_all())
        for name in _worse_than_simulated(base, written):
            with contextlib.suppress(_Refused), drafts.pop(name):
                raise _Refused
    good = [target for target in targets if target.name in drafts]
    written.files = {target.name: beside(base, target.suffix) for target in good}
    inputs = {"model": network.path} | ({"plan": plan_file} if plan_file else {})
    for target in good:
        facts = {"method": plan.calibration.method} if target.precision == "int8" and plan.calibration else {}
        path, proof = written.files[target.name], written.proofs[target.name]
        contract = network.contract.model_dump(mode="json")
        write_manifest(path, inputs, **facts, contract=contract, proof=proof.facts())
        terminal.note(f"wrote {path}: {proof}")
    discard_graphs(base, [target for target in targets if target.name not in written.files])
    return written


def discard_graphs(base: Path, targets: Sequence[Target]) -> None:
    """Remove graphs of an earlier build: they are not of the plan that is written now."""
    for target in targets:
        path = beside(base, target.suffix)
        path.unlink(missing_ok=True)
        manifest_path(path).unlink(missing_ok=True)


class _Refused(Exception):
    """A graph gets no file; `Written.refused` says why."""


def _draft(
    target: Target, network: Network, plan: Plan, path: Path, temporary: Path, prover: Prover, written: Written
) -> None:
    """Make, save, check and prove one graph. No other is in memory: each may be as large as the network.

    Engines read the file, so that there are no copies of the weights but theirs.

    Raises:
        _Refused: the graph is not fit for use; the reason is added to `written`.
        UserError: an engine would refuse the graph.
    """
    graph = target.emit(network, plan)
    save_model(graph, temporary)
    onnx.checker.check_model(temporary)
    try:
        warnings = target.check(graph, temporary, path)
        del graph
        written.proofs[target.name], warning = prover.prove(target, temporary, plan)
    except (Unreadable, Disproved) as reason:
        written.refused.append(f"{path}: {reason}")
        raise _Refused from None
    for text in warnings:
        terminal.warn(text)
    if warning is not None:
        terminal.warn(f"{path}: {warning}")


def _worse_than_simulated(base: Path, written: Written) -> list[str]:
    """The targets whose graphs lose more than their simulations; `written` gets the reasons and loses the proofs."""
    worse = []
    for name, simulation in _SIMULATION_OF.items():
        both = written.proofs.get(name), written.proofs.get(simulation)
        if both[0] is not None and both[1] is not None and worse_than_simulated(both[0], both[1]):
            written.refused.append(
                f"{base.name}.{name}.onnx: its map has {both[0].sqnr_db:.1f} dB to float32, its simulation "
                f"{both[1].sqnr_db:.1f} dB"
            )
            del written.proofs[name]
            worse.append(name)
    return worse
