"""Train a network by a recipe, on one device or, under torchrun, on several.

    python training/train.py --config training/configs/u2netp.yaml --data DUTS-TR --output runs/u2netp
    python training/train.py --config training/configs/u2netp.yaml --data DUTS-TR --output runs/u2netp --resume
    torchrun --nproc_per_node=8 training/train.py --config training/configs/u2net.yaml --data DUTS-TR

The output folder receives best.pth (the weights with the best validation score, with a manifest), last.pth (the whole
state, for --resume), loss.csv, scores.csv and pictures/. The processes share the recipe's batch, so the number of
processes does not change a run.
"""

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import nn

from sodeploy import command_line, terminal
from sodeploy.calib_data.options import RootOption
from sodeploy.calib_data.sources import Source
from sodeploy.errors import UserError
from sodeploy.training.backbone import load_backbone
from sodeploy.training.checkpoint import load_checkpoint
from sodeploy.training.losses import teacher_of
from sodeploy.training.models import build, entry
from sodeploy.training.models.network import SaliencyNetwork
from sodeploy.training.objective import Objective
from sodeploy.training.optimizers import parameter_groups
from sodeploy.training.processes import Process, join_processes
from sodeploy.training.recipe import Recipe, load_recipe
from sodeploy.training.run import Run
from sodeploy.training.run_state import BEST, LAST, RunState, facts_of, load_state
from sodeploy.training.splits import Place, open_splits

TEACHER = "teacher"  # folder of the teacher's run, inside the folder of the run


def main(
    config: Annotated[Path, typer.Option(help="the recipe, for example training/configs/u2netp.yaml")],
    data: Annotated[
        list[str] | None, typer.Option(help="training data; the recipe names the default; repeatable")
    ] = None,
    root: RootOption = None,
    output: Annotated[Path | None, typer.Option(help="folder of the run; runs/RECIPE by default")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="continue the run in the output folder")] = False,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="replace a key of the recipe; repeatable")
    ] = None,
) -> None:
    """Train a network by a recipe."""
    best = train(config, data or None, output, resume, overrides or (), root)
    if os.environ.get("RANK", "0") == "0":  # once, however many processes torchrun started
        terminal.results.print(str(best))


def train(
    config: str | Path,
    data: Source | Sequence[Source] | None = None,
    output: str | Path | None = None,
    resume: bool = False,
    overrides: Sequence[str] = (),
    root: str | Path | None = None,
) -> Path:
    """Train by the recipe at `config`.

    Args:
        config: the YAML file of the recipe.
        data: the training set; None: the one that the recipe names.
        output: folder of the run; None: runs/RECIPE.
        resume: continue the run in that folder.
        overrides: `key=value`, each replaces a key of the recipe.
        root: the folder of the data sets that `data` and the recipe name.

    Returns:
        The weights with the best validation score, `best.pth` in the output folder.

    Raises:
        UserError: the recipe, the data or the output folder is wrong, or the loss is not finite.
    """
    config = Path(config)
    recipe = load_recipe(config, overrides)
    place = Place(data, None if root is None else Path(root))
    folder = Path(output) if output else Path("runs") / config.stem
    with join_processes() as process:
        try:
            with _threads(recipe.threads):
                return _train_stage(recipe, config, place, folder, resume, process)
        except KeyboardInterrupt:
            saved = [last for last in (folder / LAST, folder / TEACHER / LAST) if last.exists()]
            if process.leads and saved:
                terminal.note(f"{saved[0]} is intact; the same command with --resume continues from it")
            raise


@contextlib.contextmanager
def _threads(count: int | None) -> Iterator[None]:
    """Set the number of PyTorch's CPU threads until the block ends; None: leave it."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _train_stage(recipe: Recipe, config: Path, place: Place, folder: Path, resume: bool, process: Process) -> Path:
    teacher = _teacher(recipe, config, place, folder, resume, process)
    splits = open_splits(recipe.validation, place.training or recipe.train, recipe.seed, place.root)
    precision = _precision(recipe.precision, process.device)
    _check_division(recipe, process)

    torch.manual_seed(recipe.seed)
    network = build(recipe.network)
    if recipe.backbone.init and not recipe.init:
        load_backbone(recipe.backbone.init, network)
    if recipe.init:
        load_checkpoint(recipe.init, network)
    if recipe.batch_norm == "synced" and process.count > 1:
        network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
    network.to(process.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    state = RunState(
        network,
        recipe.optimizer.build(parameter_groups(network, recipe.backbone.lr, recipe.freeze, recipe.undecayed)),
        torch.amp.GradScaler(process.device.type, enabled=precision == torch.float16),
        facts=facts_of(recipe, len(splits.training)),
    )
    _begin(state, folder, resume, process)
    if not state.finished:
        if teacher:
            teacher.to(process.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        objective = Objective(network, recipe.loss, entry(recipe.network).sees == "masks", teacher)
        Run(recipe, config, folder, state, objective, splits, process, precision).to_the_end()
    process.gather(None)  # nobody reads best.pth before it is there
    return folder / BEST


def _teacher(
    recipe: Recipe, config: Path, place: Place, folder: Path, resume: bool, process: Process
) -> SaliencyNetwork | None:
    """The teacher that a loss of the recipe needs. It is trained here, unless the recipe names its weights."""
    name = teacher_of(recipe.loss)
    if recipe.teacher is None or name is None:
        return None
    weights = Path(recipe.teacher)
    if weights.suffix in (".yaml", ".yml"):
        its_config = config.parent / weights
        its_recipe = load_recipe(its_config)
        if its_recipe.network != name:
            raise UserError(f"{its_config} trains {its_recipe.network}; the teacher must be {name}")
        weights = _train_stage(its_recipe, its_config, place, folder / TEACHER, resume, process)
    network = build(name)
    load_checkpoint(weights, network)
    return network


def _check_division(recipe: Recipe, process: Process) -> None:
    parts = process.count * recipe.accumulate
    if recipe.batch % parts:
        raise UserError(
            f"a batch of {recipe.batch} cannot be divided among {process.count} processes x {recipe.accumulate} passes "
            f"each; choose a multiple: --set batch={-(-recipe.batch // parts) * parts}"
        )
    if recipe.batch_norm == "synced" and process.count > 1 and process.device.type == "cpu":
        raise UserError("PyTorch synchronizes batch norm between GPUs only; on CPUs: --set batch_norm=local")


def _precision(wanted: str, device: torch.device) -> torch.dtype:
    if wanted == "auto":
        if device.type == "cpu":
            return torch.float32
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    if wanted == "fp16" and device.type == "cpu":
        raise UserError("training in fp16 needs a GPU; here: --set precision=auto")
    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[wanted]


def _begin(state: RunState, folder: Path, resume: bool, process: Process) -> None:
    if (folder / LAST).exists():
        if not resume:
            raise UserError(f"{folder} already holds a run; continue it with --resume, or choose another --output")
        load_state(state, folder)
        if process.leads:
            done = "is finished" if state.finished else f"continues after step {state.step}"
            terminal.note(f"the run in {folder} {done}")
    elif resume and process.leads:
        terminal.note(f"nothing to resume in {folder}; starting at step 0")


if __name__ == "__main__":
    command_line.run(main)
