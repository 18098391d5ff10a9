"""The trainer: data and policy are opened, then steps, records, checkpoints and the export follow one another."""

from __future__ import annotations

import shutil
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import NoReturn

import torch.distributed as dist
from torch import Tensor

from fdpo_fast.cache.build import Builder
from fdpo_fast.cache.dataset import Batch
from fdpo_fast.cache.open import cache_root, caches_of, look_for, reference_family, reference_model
from fdpo_fast.cache.report import describe, warnings
from fdpo_fast.config.errors import UserError
from fdpo_fast.config.run import Config
from fdpo_fast.distributed import StopSignal, agreed, check_shared, ranks_here, start_processes
from fdpo_fast.files import replacing
from fdpo_fast.loss.function import evaluate
from fdpo_fast.memory import needs
from fdpo_fast.models import prediction, trainable
from fdpo_fast.models.export import export
from fdpo_fast.models.precision import DTYPES
from fdpo_fast.models.prediction import as_in_training
from fdpo_fast.optim import build
from fdpo_fast.optim.values import Values
from fdpo_fast.progress import progress
from fdpo_fast.signals import Stopped
from fdpo_fast.training import policy, resumption
from fdpo_fast.training.average import EMA, trained
from fdpo_fast.training.checkpoint import Checkpoints
from fdpo_fast.training.metrics import FirstMargin, Metrics, Writer, forget_caching, headline
from fdpo_fast.training.order import PairOrder
from fdpo_fast.training.records import read_metrics
from fdpo_fast.training.resumption import Start, start
from fdpo_fast.training.samples import SampleGrids
from fdpo_fast.training.validation import Validation, validated
from fdpo_fast.training.warnings import Watch


class Trainer:
    """A run from its configuration to its export. Collective over the launcher's ranks.

    Opening it fills the caches, before the policy arrives: VAE, text encoders and reference are gone by then.

    resume: whether to go on from the newest checkpoint, or the one to go on from. Raises UserError for whatever of
    configuration, data, model and folder does not fit.
    """

    def __init__(self, config: Config, resume: bool | str) -> None:
        look_for(config)
        self.rank = rank = start_processes()
        self.folder = folder = Path(config.train.output_dir).expanduser()
        check_shared(rank, "train.output_dir", folder)
        self.warnings: list[str] = []
        """Said, but in no record of metrics.jsonl yet."""
        short = needs.shortage(config, rank.count, ranks_here(), rank.device)  # on all ranks: a mistake ends them all
        if short:
            self.warn(short)

        self.checkpoints = Checkpoints(folder / "checkpoints", config.train.keep_checkpoints)
        begin = start(self.checkpoints.folder, resume, config, rank)
        before = resumption.caches_before(folder / "data.json") if begin else {}
        if begin and not before:
            self.warn(f"{folder / 'data.json'} is missing: nothing tells whether the data are those of before")
        prepared = caches_of(config, rank, Builder(cache_root(config), rank, resumed=before))
        self.config, self.family, self.data = config, family, data = prepared.config, prepared.family, prepared.data
        rank.say(f"data: {describe(data.report)}")
        self.warnings += warnings(data.report)  # said before the images were encoded
        self.order = PairOrder(data.shapes, config.train.pairs_per_step, config.train.seed)
        if self.order.rare:
            self.warn(
                f"{self.order.rare} pairs are in shapes with fewer pairs than train.pairs_per_step "
                f"{config.train.pairs_per_step}: a step of such a shape repeats pairs"
            )

        reference = reference_family(config, family)
        if config.model.train == "lora" or config.reference.mode == "live":  # a cache would tell of another denoiser
            self.checkpoints.base = agreed(lambda: None if rank.index else reference.denoiser_digest())[0]
        forget_caching(rank.device)
        rank.say("loading the base")
        self.policy = policy.make(config, family, rank)
        self.frozen = reference_model(config, reference, rank.device) if config.reference.mode == "live" else None
        self.values, decay = Values(self.policy.engine.optimizer), config.train.ema_decay
        self.average = EMA(self.policy.denoiser, self.values, decay) if decay else None
        self.options = config.loss.options()
        if resume and not begin:
            rank.say(f"{folder} has no checkpoint: starting at step 0")
        self.first_step = self._go_on(begin) if begin else 0
        if rank.index == 0:
            with replacing(folder / "config.json") as partial:
                partial.write_text(config.dumps())

        self.writer = Writer(folder, self.first_step, config.log, data.report) if rank.index == 0 else None
        if self.writer and self.writer.lacking:
            self.warn(f"{self.writer.lacking}: the run goes on without them")
        self.grids = SampleGrids(
            config.log, family, folder / "samples", config.data.resolution, config.train.seed, rank.device
        )
        self.watch = Watch(config, read_metrics(folder, self.first_step).records)
        at_reference = self.first_step == 0 and not config.reference.model
        self.start = FirstMargin(rank.device, at_reference, config.optimizer.warmup_steps)
        self.last_finite = self.first_step - 1
        self.began = False
        """Whether a step has been taken."""
        told = agreed(lambda: validated(folder, self.first_step))[0]
        self.validation = Validation(prepared.validation, config, self.options, rank, told)
        self.metrics = Metrics(config.log, self.options, family.steps, rank.device)  # last: its clock starts now

    def _go_on(self, begin: Start) -> int:
        """Load a checkpoint and say what is new since; returns the step to take next."""
        engine = self.policy.engine
        self.checkpoints.load(engine, self.average, begin)
        build.reapply(self.config.optimizer, self.config.train.seed, engine.optimizer, engine.lr_scheduler)
        for words in begin.warnings(self.config, self.rank.count):
            self.warn(words)
        return begin.step

    def warn(self, words: str) -> None:
        """Say it now, and keep it for the next record in metrics.jsonl."""
        self.rank.say(f"warning: {words}")
        self.warnings.append(words)

    def run(self) -> None:
        """Take the steps that are left and export the policy.

        Raises Stopped, behind a checkpoint, where a signal asks any rank to stop.
        """
        last = self.config.train.max_steps
        if self.first_step == 0:
            self._draw(0)
        bar = progress(total=last, initial=self.first_step, desc="train", show=self.rank.index == 0)
        with bar, StopSignal(self.rank, self._kept) as stop:
            for step in range(self.first_step, last):
                if words := self.validation.best.over():
                    self.rank.say(words)
                    break
                rate = self.train_step(step)
                self.end_step(step, rate)
                self.began = True
                asked = stop.behind_step(last=self._is_last(step))
                if asked or self.due(step):
                    bar.set_postfix_str(self.flush(step), refresh=False)
                bar.update()
                if asked:
                    self._stop(step, asked)
                self._draw(step + 1)
                if self.checkpoint_due(step):
                    self._save(step + 1)
                if self.validation.found_best(step):
                    self.export("export-best")
        self.export("export")
        if self.writer:
            self.writer.trackers.close()
        dist.barrier()

    # --- a step: nothing in here waits for the device --------------------------------------------------------------

    def train_step(self, step: int) -> float:
        """Run forward, backward and optimizer of each of this rank's micro-batches; return the rate taken."""
        micro = self.config.train.pairs_per_micro_batch
        accumulation = self.config.accumulation(self.rank.count)
        rate = self.policy.engine.get_lr()[0]
        if self.policy.watch:
            self.policy.watch.armed = self.due(step)
        positions, epochs = self.order.step(step)
        visits = epochs % self.config.reference.visits if self.config.reference.visits else epochs
        for part in range(accumulation):
            first = (self.rank.index * accumulation + part) * micro
            batch = self.data.batch(positions[first : first + micro], visits[first : first + micro])
            ref = self.reference(batch)
            pred, target, fed = prediction.predict(self.family, self.policy.engine, batch)
            losses, stats = evaluate(self.options, pred, ref, target, batch.weight)
            self.policy.backward(losses.mean())
            self.metrics.add(losses, stats, fed)
            if self.start.open:
                self.start.add(stats)
            self.policy.step()
        return rate

    def reference(self, batch: Batch) -> Tensor:
        """Return errors from the cache or of the frozen model, or predictions of the policy without its adapter.

        The frozen model's go in as errors, formed as the cache's are: the two modes then take the same steps, bit for
        bit, where the libraries round a batch alike.
        """
        if batch.ref_error is not None:
            return batch.ref_error
        if self.frozen is not None:
            with as_in_training():
                pred, target, _ = prediction.predict(self.family, self.frozen, batch)
            return prediction.errors(pred, target)
        with as_in_training(), trainable.without_adapter(self.policy.denoiser):
            return prediction.predict(self.family, self.policy.denoiser, batch).pred.detach()

    def end_step(self, step: int, rate: float) -> None:
        """Count skipped steps, move the average, take note of the step; UserError where no step counts any more."""
        guard = self.policy.guard
        if not guard.end_step(self.policy.engine.skipped_steps):
            self.last_finite = step  # behind weights that have finite gradients
        elif guard.in_a_row == guard.LIMIT or (guard.in_a_row > 1 and self._is_last(step)):
            good = self.checkpoints.fall_back(self.last_finite)
            raise UserError(
                f"step {step}: gradients were not finite for {guard.in_a_row} steps in a row; the last good checkpoint "
                f"is {good or 'none, as none was written'}: lower optimizer.lr or loss.beta, and go on there with "
                "--resume"
            )
        if self.average:
            self.average.update()
        if step == 0 and self.start.open and (apart := self.start.apart()):
            self.warn(apart)
        self.metrics.end_step(step, rate, self.policy.grad_norm())
        if self.policy.watch:
            self.metrics.watched = self.policy.watch.take()

    # --- what is written -------------------------------------------------------------------------------------------

    def _is_last(self, step: int) -> bool:
        return step + 1 == self.config.train.max_steps

    def checkpoint_due(self, step: int) -> bool:
        """Say whether one is written behind a step; the good ones are kept while gradients are not finite."""
        due = (step + 1) % self.config.train.checkpoint_every == 0 or self._is_last(step)
        told = self.validation.found_best(step) or self.validation.best.over()
        return bool(due or told) and not self.policy.guard.in_a_row

    def due(self, step: int) -> bool:
        """Say whether records are written behind a step: a checkpoint never runs ahead of the metrics on disk."""
        asked = (step + 1) % self.config.log.every == 0 or self._is_last(step)
        return asked or self.checkpoint_due(step) or self.validation.due(step)

    def flush(self, step: int) -> str:
        """Write the records since the last time, with what there was to warn of; return the last one's figures."""
        records = self.metrics.flush()
        if self.policy.movement:
            records[-1] |= self.policy.movement.figures()
        records[-1]["skipped"] = self.policy.guard.skipped
        if self.validation.due(step):
            with self._exported():
                records[-1] |= self.validation.look(step, self.policy.denoiser)
        for words in (*self.watch(records), self.start.judged(step)):
            if words:
                self.warn(words)
        if self.warnings:
            records[-1]["warnings"] = self.warnings.copy()
            self.warnings.clear()
        if self.writer and (words := self.writer.write(records)):
            self.warn(words)
        return headline(records[-1])

    def _stop(self, step: int, number: int) -> NoReturn:
        """Leave a checkpoint, unless gradients are not finite, and say where --resume goes on from."""
        if not self.policy.guard.in_a_row:
            self._save(step + 1)
        raise Stopped(number, f"stopped after step {step + 1}: --resume goes on from {self._kept()}")

    def _kept(self) -> str:
        return self.checkpoints.latest() or "the start"

    def safe(self) -> str:
        """Say what is left of a run that has to end, and how to go on."""
        with suppress(OSError):
            if kept := self.checkpoints.latest():
                return f"{kept} is safe, and --resume goes on from it"
        return "no checkpoint was written yet: --resume starts anew"

    def _draw(self, done: int) -> None:
        """Draw the sample grid of so many steps, if one is due."""
        every = self.config.log.samples_every
        if every and (done % every == 0 or done == self.config.train.max_steps):
            with self._exported():
                self.grids.write(self.policy.denoiser, done, self.rank.index)

    def _exported(self) -> AbstractContextManager[None]:
        """Let the denoiser compute by the weights that are exported. Collective."""
        return self.average.in_place() if self.average else nullcontext()

    def _save(self, done: int) -> None:
        self.checkpoints.best = self.validation.kept()
        try:
            self.checkpoints.save(self.policy.engine, done, self.config.dumps(), self.average)
        except Exception:  # what is half written would take the room that going on needs
            if self.rank.index == 0:
                shutil.rmtree(self.checkpoints.folder / resumption.PARTIAL, ignore_errors=True)
            raise

    def export(self, to: str) -> None:
        """Write the policy, or its average, as a pipeline of diffusers; say so where that keeps less than it learnt."""
        values = trained(self.policy.denoiser, self.values, self.average)
        if self.rank.index == 0:
            folder, name = self.folder / to, self.config.train.export_dtype
            rounding = export(self.family, values, DTYPES[name] if name else None, folder)
            self.rank.say(f"exported to {folder}")
            if words := rounding.sentence():
                self.rank.say(f"warning: {words}")
        for _ in values:  # the other ranks have their part in each
            pass
        dist.barrier()
