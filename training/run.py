"""The training loop."""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel

from sodeploy import artifacts, terminal
from sodeploy.errors import UserError
from sodeploy.training.checkpoint import write_checkpoint
from sodeploy.training.journal import Journal, Meter
from sodeploy.training.loader import AugmentedSamples, batches, places
from sodeploy.training.losses import needs_margins
from sodeploy.training.models import entry
from sodeploy.training.objective import Objective, set_train_mode
from sodeploy.training.optimizers import LR_SHARE
from sodeploy.training.processes import Process
from sodeploy.training.recipe import Recipe
from sodeploy.training.run_state import BEST, LAST, RunState, save_state
from sodeploy.training.splits import Splits
from sodeploy.training.validation import validate


def training_batches(
    recipe: Recipe, splits: Splits, steps: range, process: Process
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """The batches of `process` for these steps, one for each pass: images and masks as in `loader.batches`."""
    return batches(
        AugmentedSamples(splits.dataset, recipe.augment, recipe.contract(), recipe.seed, needs_margins(recipe.loss)),
        places(splits.training, recipe.batch, recipe.seed, steps, (process.rank, process.count), recipe.accumulate),
        recipe.workers,
        pin_memory=process.device.type == "cuda",
    )


@dataclass
class Run:
    """A run, from the step of its state to its end.

    Attributes:
        config: file of the recipe, for the manifest.
        folder: receives best.pth, last.pth and the journal.
        objective: contains the network of `state`; on the device of `process`.
        precision: type for autocast; float32 means no autocast.
    """

    recipe: Recipe
    config: Path
    folder: Path
    state: RunState
    objective: Objective
    splits: Splits
    process: Process
    precision: torch.dtype

    def to_the_end(self) -> None:
        """Train. Every validation writes last.pth, and best.pth if it is the best so far.

        Raises:
            UserError: a sample cannot be read, the loss is not finite, or a parameter gets no gradient.
        """
        recipe, state, process = self.recipe, self.state, self.process
        total = recipe.total_steps(len(self.splits.training))
        steps = range(state.step, total)
        module = DistributedDataParallel(self.objective) if process.count > 1 else self.objective
        journal = Journal(self.folder, state.step) if process.leads else None
        meter = Meter(process)
        loaded = meter.timed(training_batches(recipe, self.splits, steps, process))
        set_train_mode(state.network, recipe.batch_norm)
        for step in terminal.progress(steps, recipe.network) if process.leads else steps:
            if state.finished:
                break
            for group in state.optimizer.param_groups:
                group["lr"] = group[LR_SHARE] * recipe.optimizer.lr * recipe.schedule.factor(step, total)
            # Each step has its own random numbers, so that no state of a generator must be saved.
            torch.manual_seed(int(np.random.SeedSequence([recipe.seed, step, process.rank]).generate_state(1)[0]))
            self._accumulate_gradients(module, loaded, meter)
            if step == steps.start:
                self._require_gradients()
            state.scaler.step(state.optimizer)
            state.scaler.update()
            state.optimizer.zero_grad(set_to_none=True)
            state.step = step + 1

            validates = state.step % recipe.validation.every == 0 or state.step == total
            if validates or state.step % recipe.log_every == 0:
                means = meter.flush(recipe.batch // recipe.accumulate)
                self._require_finite(means["loss"])
                if journal:
                    journal.losses(state.step, {"lr": state.optimizer.param_groups[0]["lr"], **means})
            if validates:
                scores, picture = self._scores()
                is_best = self._judge(scores[recipe.validation.best])
                state.finished |= state.step == total
                if journal:
                    journal.scores(state.step, scores, picture)
                    self._save(scores, is_best, means)
                set_train_mode(state.network, recipe.batch_norm)
                meter.restart()  # validation is not training time
        if journal:
            journal.close()

    def _accumulate_gradients(
        self,
        module: torch.nn.Module,
        loaded: Iterator[tuple[torch.Tensor, torch.Tensor]],
        meter: Meter,
    ) -> None:
        """Compute the gradients of one optimizer step, over `accumulate` passes."""
        state, device, passes = self.state, self.process.device, self.recipe.accumulate
        for number in range(passes):
            image, mask = next(loaded)
            image = image.to(device, non_blocking=True, memory_format=torch.channels_last)
            mask = mask.to(device, non_blocking=True)
            if self.recipe.multi_scale:
                image, mask = _resized(image, mask, self._side())
            silent: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
            if isinstance(module, DistributedDataParallel) and number < passes - 1:
                silent = module.no_sync()  # processes exchange gradients once per step, with the last pass
            with silent:
                with torch.autocast(device.type, self.precision, enabled=self.precision != torch.float32):
                    terms = module(image, mask)
                state.scaler.scale(terms["loss"] / passes).backward()
            meter.add(terms)

    def _side(self) -> int:
        """The side of this step's images in a multi-scale recipe: the same in all processes and passes."""
        random = np.random.default_rng([self.recipe.seed, self.state.step])
        return int(random.choice(self.recipe.multi_scale))

    def _require_gradients(self) -> None:
        """Refuse a loss that gives a trained parameter no gradient.

        DistributedDataParallel waits for every gradient, so such a run would work in one process and fail in two.
        """
        trained = [(name, one) for name, one in self.state.network.named_parameters() if one.requires_grad]
        missed = [name for name, parameter in trained if parameter.grad is None]
        if missed:
            raise UserError(
                f"{len(missed)} of {len(trained)} parameters of {self.recipe.network} get no gradient from the loss "
                f"{' + '.join(self.recipe.loss)}, the first {missed[0]}; add a loss that reaches them, or name them "
                "under the recipe's key freeze"
            )

    def _require_finite(self, loss: float) -> None:
        if not np.isfinite(loss):
            raise UserError(
                f"the loss is no longer finite by step {self.state.step}; lower optimizer.lr or train with "
                f"--set precision=fp32; {self.folder / LAST}, if there, is older and intact"
            )

    def _scores(self) -> tuple[dict[str, float], np.ndarray]:
        return validate(
            self.state.network,
            self.splits.validation_dataset,
            self.splits.validation,
            self.recipe.contract(),
            self.process,
            sees_masks=entry(self.recipe.network).sees == "masks",
        )

    def _judge(self, value: float) -> bool:
        """Whether this validation is the best so far. Ends the run if the recipe says so."""
        state, rule = self.state, self.recipe.validation
        is_best = state.best is None or rule.better(value, state.best)
        if is_best:
            state.best = value
        state.validations_since_best = 0 if is_best else state.validations_since_best + 1
        reached = rule.stop_above is not None and rule.better(value, rule.stop_above)
        state.finished |= reached or state.validations_since_best == rule.patience
        return is_best

    def _save(self, scores: Mapping[str, float], is_best: bool, means: Mapping[str, float]) -> None:
        state, splits = self.state, self.splits
        terminal.note(
            f"step {state.step}: S {scores['s']:.3f}, MAE {scores['mae']:.4f}, max F {scores['max_f']:.3f}, "
            f"mean F {scores['mean_f']:.3f} on {len(splits.validation)} samples{' (best)' if is_best else ''}; "
            f"{means['images_per_s']:.3g} images/s, the network alone {means['network_images_per_s']:.3g}: "
            f"{means['waiting']:.0%} of the time went by waiting for data"
        )
        if is_best:
            weights = {key: tensor.contiguous() for key, tensor in state.network.state_dict().items()}
            write_checkpoint(weights, self.folder / BEST)
            artifacts.write_manifest(
                self.folder / BEST,
                {"recipe": self.config},
                network=self.recipe.network,
                contract=self.recipe.contract().model_dump(),
                step=state.step,
                training_data=splits.dataset.name,
                validation_data=splits.validation_dataset.name,
                scores=dict(scores),
            )
        save_state(state, self.folder)


def _resized(image: torch.Tensor, mask: torch.Tensor, side: int) -> tuple[torch.Tensor, torch.Tensor]:
    return (
        F.interpolate(image, size=(side, side), mode="bilinear", align_corners=False),
        F.interpolate(mask, size=(side, side), mode="bilinear", align_corners=False),
    )
