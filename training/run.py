"""The training loop."""

import contextlib
import signal
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import numpy as np
import torch
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel

from sodeploy import artifacts, terminal
from sodeploy.errors import Stopped, UserError
from sodeploy.stopping import StopRequest, stop_requests
from sodeploy.training.checkpoint import write_checkpoint
from sodeploy.training.journal import Journal, Meter
from sodeploy.training.loader import AugmentedSamples, batches, places
from sodeploy.training.losses import needs_margins
from sodeploy.training.models import entry
from sodeploy.training.objective import Objective, set_train_mode
from sodeploy.training.optimizers import LR_SHARE
from sodeploy.training.processes import Process
from sodeploy.training.recipe import Recipe
from sodeploy.training.run_state import BEST, LAST, RunState, is_finished, save_state
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
            Stopped: SIGINT or SIGTERM came; last.pth holds the step that was reached.
            UserError: a sample cannot be read, the loss is not finite, or a parameter gets no gradient.
        """
        journal = Journal(self.folder, self.state.step) if self.process.leads else None
        try:
            with stop_requests() as request:
                self._train(journal, request)
        finally:
            if journal:
                journal.close()

    def _train(self, journal: Journal | None, request: StopRequest) -> None:
        recipe, state, process = self.recipe, self.state, self.process
        total = recipe.total_steps(len(self.splits.training))
        steps = range(state.step, total)
        module = DistributedDataParallel(self.objective) if process.count > 1 else self.objective
        meter = Meter(process)
        if state.sums:  # of a run that stopped between two lines of loss.csv
            meter.go_on_with(state.sums[process.rank % len(state.sums)])
        if self._validation_is_due(total):  # it stopped between a step and its validation
            self._validate(journal, request, meter)
        loaded = meter.timed(training_batches(recipe, self.splits, steps, process))
        set_train_mode(state.network, recipe.batch_norm)
        shown = terminal.progress(steps, recipe.network, total, done=steps.start, remark=meter.loss_in_words)
        for step in shown if process.leads else steps:
            if is_finished(state, recipe):
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

            validates = self._validation_is_due(total)
            if validates or state.step % recipe.log_every == 0:
                means = meter.flush(recipe.batch // recipe.accumulate)
                self._require_finite(means["loss"])
                if journal:
                    journal.losses(state.step, {"lr": state.optimizer.param_groups[0]["lr"], **means})
            if process.highest(request.number):
                self._stop(request, meter)
            if validates:
                self._validate(journal, request, meter, means)
                set_train_mode(state.network, recipe.batch_norm)
                meter.restart()  # validation is not training time
            elif recipe.save_every and state.step % recipe.save_every == 0:
                self._save(meter)

    def _validation_is_due(self, total: int) -> bool:
        step = self.state.step
        return self.state.validated < step and (step % self.recipe.validation.every == 0 or step == total)

    def _stop(self, request: StopRequest, meter: Meter) -> NoReturn:
        """Save the state, and end the run in all processes. Only the first one says so."""
        number = self.process.highest(request.number)
        self._save(meter)
        message = ""
        if self.process.leads:
            kind = "terminated" if number == signal.SIGTERM else "interrupted"
            message = (
                f"{kind} after step {self.state.step}, which {self.folder / LAST} holds; the same command with "
                "--resume continues from there"
            )
        raise Stopped(message, 128 + number)

    def _save(self, meter: Meter) -> None:
        self.state.sums = self.process.gather(meter.sums())
        if self.process.leads:
            save_state(self.state, self.folder)

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

    def _validate(
        self, journal: Journal | None, request: StopRequest, meter: Meter, means: Mapping[str, float] | None = None
    ) -> None:
        """Validate, and save last.pth, and best.pth if it is the best so far.

        Args:
            means: of the steps before, as `Meter.flush` returns them, for the note.
        """
        found = validate(
            self.state.network,
            self.splits.validation_dataset,
            self.splits.validation,
            self.recipe.contract(),
            self.process,
            sees_masks=entry(self.recipe.network).sees == "masks",
            stopped=lambda: request.number,
        )
        if found is None:
            self._stop(request, meter)
        scores, picture = found
        is_best = self._judge(scores[self.recipe.validation.best])
        if journal:
            journal.scores(self.state.step, scores, picture)
            self._note_scores(scores, is_best, means)
            if is_best:
                self._write_best(scores)
        self._save(meter)

    def _judge(self, value: float) -> bool:
        """Whether this validation is the best so far."""
        state = self.state
        state.validated = state.step
        is_best = state.best is None or self.recipe.validation.better(value, state.best)
        if is_best:
            state.best = value
        state.validations_since_best = 0 if is_best else state.validations_since_best + 1
        return is_best

    def _note_scores(self, scores: Mapping[str, float], is_best: bool, means: Mapping[str, float] | None) -> None:
        speed = ""
        if means:
            speed = (
                f"; {means['images_per_s']:.3g} images/s, the network alone {means['network_images_per_s']:.3g}: "
                f"{means['waiting']:.0%} of the time went by waiting for data"
            )
        terminal.note(
            f"step {self.state.step}: S {scores['s']:.3f}, MAE {scores['mae']:.4f}, max F {scores['max_f']:.3f}, "
            f"mean F {scores['mean_f']:.3f} on {len(self.splits.validation)} samples{' (best)' if is_best else ''}"
            f"{speed}"
        )

    def _write_best(self, scores: Mapping[str, float]) -> None:
        state, splits = self.state, self.splits
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


def _resized(image: torch.Tensor, mask: torch.Tensor, side: int) -> tuple[torch.Tensor, torch.Tensor]:
    return (
        F.interpolate(image, size=(side, side), mode="bilinear", align_corners=False),
        F.interpolate(mask, size=(side, side), mode="bilinear", align_corners=False),
    )
