"""Train a network by a recipe, on one device or, under torchrun, on several.

    python training/train.py --list
    python training/train.py --config u2netp --data DUTS-TR --output runs/u2netp
    python training/train.py --config u2netp --data DUTS-TR --output runs/u2netp --resume
    torchrun --nproc_per_node=8 training/train.py --config u2net --data DUTS-TR

The output folder receives best.pth (the weights with the best validation score, with a manifest), last.pth (the whole
state, for --resume), loss.csv, scores.csv and pictures/. The processes share the recipe's batch, so the number of
processes does not change a run.
"""

import contextlib
import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import nn

from sodeploy import command_line, terminal
from sodeploy.calib_data.options import RootOption
from sodeploy.calib_data.sources import Source
from sodeploy.errors import Stopped, UserError
from sodeploy.folder_lock import locked
from sodeploy.runtime.measure.report import Table, show
from sodeploy.training.backbone import load_backbone
from sodeploy.training.checkpoint import load_checkpoint
from sodeploy.training.losses import teacher_of
from sodeploy.training.models import build, entry
from sodeploy.training.models.network import SaliencyNetwork
from sodeploy.training.objective import Objective
from sodeploy.training.optimizers import parameter_groups
from sodeploy.training.processes import Process, join_processes
from sodeploy.training.recipe import Recipe, find_recipe, load_recipe, recipe_names
from sodeploy.training.run import Run
from sodeploy.training.run_state import BEST, LAST, RunState, facts_of, is_finished, load_state
from sodeploy.training.splits import TrainingData, open_splits

TEACHER = "teacher"  # folder of the teacher's run, inside the folder of the run


def main(
    config: Annotated[
        str | None, typer.Option(help="the recipe: a name that --list prints, or a YAML file", show_default=False)
    ] = None,
    data: Annotated[
        list[str] | None, typer.Option(help="training data; the recipe names the default; repeatable")
    ] = None,
    root: RootOption = None,
    output: Annotated[Path | None, typer.Option(help="folder of the run; runs/RECIPE by default")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="continue the run in the output folder, finished or not")
    ] = False,
    steps: Annotated[int | None, typer.Option(help="length of the run in steps, those done before included")] = None,
    epochs: Annotated[float | None, typer.Option(help="length of the run in epochs of the training data")] = None,
    save_every: Annotated[
        int | None, typer.Option(metavar="N", help="write last.pth every N steps too, not at validations only")
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="replace a key of the recipe; repeatable")
    ] = None,
    listed: Annotated[bool, typer.Option("--list", help="list the recipes of the product, and end")] = False,
) -> None:
    """Train a network by a recipe.

    Ctrl-C and SIGTERM end the run after the current step, which last.pth then holds.
    """
    if listed or config is None:
        show([recipe_table()])
        return
    best = train(
        config,
        data or None,
        output,
        resume,
        overrides or (),
        root,
        steps=steps,
        epochs=epochs,
        save_every=save_every,
    )
    if os.environ.get("RANK", "0") == "0":  # once, however many processes torchrun started
        terminal.results.print(str(best))


def recipe_table() -> Table:
    """The recipes of the product."""
    rows = []
    for name in recipe_names():
        recipe = load_recipe(name)
        length = f"{recipe.steps} steps" if recipe.steps is not None else f"{recipe.epochs:g} epochs"
        losses = ", ".join(recipe.loss)
        rows.append([name, recipe.network, recipe.train, losses, str(recipe.size), str(recipe.batch), length])
    header = ["recipe", "network", "training set", "losses", "size", "batch", "length"]
    return Table("Recipes", header, rows, text_columns=4)


def train(
    config: str | Path,
    data: Source | Sequence[Source] | None = None,
    output: str | Path | None = None,
    resume: bool = False,
    overrides: Sequence[str] = (),
    root: str | Path | None = None,
    *,
    steps: int | None = None,
    epochs: float | None = None,
    save_every: int | None = None,
) -> Path:
    """Train by a recipe.

    Args:
        config: the name of a recipe of the product, or a YAML file.
        data: the training set; None: the one that the recipe names.
        output: folder of the run; None: runs/RECIPE.
        resume: continue the run in that folder. A finished run continues if it becomes longer; a schedule of the
            learning rate then spans the new length.
        overrides: `key=value`, each replaces a key of the recipe.
        root: the folder of the data sets that `data` and the recipe name.
        steps: length of the run in optimizer steps, those done before included; replaces the recipe's.
        epochs: length of the run in epochs of the training set; replaces the recipe's.
        save_every: steps between two writes of last.pth; a validation writes it too.

    Returns:
        The weights with the best validation score, `best.pth` in the output folder.

    Raises:
        Stopped: Ctrl-C or SIGTERM ended the run after a step, which `last.pth` holds. It is a KeyboardInterrupt.
        UserError: the recipe, the data or the output folder is wrong, or the loss is not finite.
    """
    if steps is not None and epochs is not None:
        raise UserError("--steps and --epochs are both the length of the run; give one of them")
    given = {"steps": steps, "epochs": epochs, "save_every": save_every}
    overrides = [*overrides, *(f"{key}={value}" for key, value in given.items() if value is not None)]
    config = find_recipe(config)
    recipe = load_recipe(config, overrides)
    chosen = TrainingData(data, None if root is None else Path(root))
    folder = Path(output) if output else Path("runs") / config.stem
    with join_processes() as process:
        try:
            alone = locked(folder) if process.leads else contextlib.nullcontext()
            with alone, _threads(recipe.threads):
                return _train_stage(recipe, config, chosen, folder, resume, process)
        except Stopped:
            raise
        except KeyboardInterrupt:  # not between two steps, or the second Ctrl-C
            saved = [last for last in (folder / LAST, folder / TEACHER / LAST) if last.exists()]
            if not saved:
                raise
            message = f"interrupted; {saved[0]} is intact; the same command with --resume continues from it"
            raise Stopped(message if process.leads else "", 128 + signal.SIGINT) from None


@contextlib.contextmanager
def _threads(count: int | None) -> Iterator[None]:
    """Set the number of PyTorch's CPU threads until the block ends; None: leave it."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _train_stage(
    recipe: Recipe, config: Path, data: TrainingData, folder: Path, resume: bool, process: Process
) -> Path:
    teacher = _teacher(recipe, config, data, folder, resume, process)
    splits = open_splits(recipe.validation, data.source or recipe.train, recipe.seed, data.root)
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
    _begin(state, recipe, folder, resume, process)
    if process.leads:
        total = recipe.total_steps(len(splits.training))
        terminal.debug(
            f"{recipe.network} on {process.count} x {process.device.type} in {str(precision).removeprefix('torch.')}: "
            f"{total} steps of {recipe.batch} samples out of {len(splits.training)}, {recipe.workers} loading processes"
        )
    if not is_finished(state, recipe):
        if teacher:
            teacher.to(process.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        objective = Objective(network, recipe.loss, entry(recipe.network).sees == "masks", teacher)
        Run(recipe, config, folder, state, objective, splits, process, precision).to_the_end()
    process.gather(None)  # nobody reads best.pth before it is there
    return folder / BEST


def _teacher(
    recipe: Recipe, config: Path, data: TrainingData, folder: Path, resume: bool, process: Process
) -> SaliencyNetwork | None:
    """The teacher that a loss of the recipe needs. It is trained here, unless the recipe names its weights."""
    name = teacher_of(recipe.loss)
    if recipe.teacher is None or name is None:
        return None
    weights = Path(recipe.teacher)
    if weights.suffix in (".yaml", ".yml"):
        its_config = config.parent / weights
        its_recipe = load_recipe(its_config).model_copy(update={"save_every": recipe.save_every})
        if its_recipe.network != name:
            raise UserError(f"{its_config} trains {its_recipe.network}; the teacher must be {name}")
        weights = _train_stage(its_recipe, its_config, data, folder / TEACHER, resume, process)
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


def _begin(state: RunState, recipe: Recipe, folder: Path, resume: bool, process: Process) -> None:
    """Load the state of the run in `folder`, if there is one, and say what follows."""
    if not (folder / LAST).exists():
        if (folder / BEST).exists():
            raise UserError(
                f"{folder / BEST} would be replaced, and there is no {LAST} beside it to go on from; move it, or "
                "choose another --output"
            )
        if resume and process.leads:
            terminal.note(f"nothing to resume in {folder}; starting at step 0")
        return
    if not resume:
        raise UserError(f"{folder} already holds a run; continue it with --resume, or choose another --output")
    before = load_state(state, folder)
    total = recipe.total_steps(state.facts["samples"])
    if state.step > total:
        raise UserError(
            f"{folder / LAST} holds step {state.step}, beyond the {total} steps of the run; to train on, give more: "
            f"--steps {2 * state.step}"
        )
    if process.leads:
        if is_finished(state, recipe):
            terminal.note(f"the run in {folder} is finished at step {state.step}; --steps or --epochs makes it longer")
        else:
            terminal.note(f"the run in {folder} continues after step {state.step} of {total}")
            _note_schedule(state, recipe, before, total)


def _note_schedule(state: RunState, recipe: Recipe, before: Mapping[str, Any], total: int) -> None:
    """Say how the learning rate goes on where the run has another length than before."""
    length = {"steps": before.get("steps"), "epochs": before.get("epochs")}
    formerly = recipe.model_copy(update=length).total_steps(state.facts["samples"])
    if formerly == total or state.step == 0:
        return
    last = recipe.schedule.factor(state.step - 1, formerly)
    following = recipe.schedule.factor(min(state.step, total - 1), total)
    if last != following:
        terminal.note(
            f"the schedule {recipe.schedule.name} now spans {total} steps, not {formerly}: the learning rate goes on "
            f"with {recipe.optimizer.lr * following:.3g} after {recipe.optimizer.lr * last:.3g}"
        )


if __name__ == "__main__":
    command_line.run(main)
