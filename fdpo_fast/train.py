"""The trainer: `deepspeed fdpo_fast/train.py --config configs/digits_js.json`.

Also `fdpo train --config ...` and plain `python fdpo_fast/train.py ...` for one process. Reads top to bottom:
configuration, caches, policy and engine, loop, export.
"""

from __future__ import annotations

import argparse
import os
import sys
from contextlib import nullcontext
from pathlib import Path

if __name__ == "__main__":
    # A script's folder comes first on the path, where our `data`, `models`, `config` would hide other packages.
    sys.path[0:1] = []
    sys.path.append(str(Path(__file__).resolve().parent.parent))

from fdpo_fast import cli
from fdpo_fast.config import run as configuration
from fdpo_fast.config.run import Config, ConfigError
from fdpo_fast.training import trackers
from fdpo_fast.training.lock import LOCK, at_work


def main(arguments: list[str] | None = None) -> None:
    """Parse the command line and train; a mistake in the input ends the process with one sentence."""
    cli.run("train", arguments)


def start(config: Config, options: argparse.Namespace) -> None:
    """Check what can be checked at once, then train."""
    config.accumulation(int(os.environ.get("WORLD_SIZE", 1)))  # set by the launcher
    if options.dry_run:
        print(config.dumps(), end="")
        return
    trackers.check(config.log)
    folder = Path(config.train.output_dir).expanduser()
    check_output(folder, options.resume)
    with at_work(folder):
        train(config, options.resume)


def check_output(folder: Path, resume: bool) -> None:
    """Refuse to mix two runs in one folder."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"train.output_dir '{folder}' cannot be made: {error.strerror}") from None
    if not resume and any(path.name != LOCK for path in folder.iterdir()):
        raise ConfigError(f"train.output_dir '{folder}' is not empty: pass --resume to go on, or name another folder")


def train(config: Config, resume: bool) -> None:
    """Run a configuration to its last step and export the policy. Collective over the launcher's ranks."""
    import deepspeed
    import torch
    import torch.distributed as dist
    from tqdm import tqdm

    from fdpo_fast.cache.build import Builder
    from fdpo_fast.cache.dataset import Batch, as_in_training, errors, predict
    from fdpo_fast.cache.encode import DTYPES, describe
    from fdpo_fast.cache.open import cache_root, caches_of, reference_model
    from fdpo_fast.distributed import (
        StopSignal,
        check_shared,
        largest_over_ranks,
        mean_over_ranks,
        ranks_here,
        start_processes,
    )
    from fdpo_fast.files import read_json, replacing
    from fdpo_fast.memory.needs import shortage
    from fdpo_fast.models import trainable
    from fdpo_fast.optim import build, zero
    from fdpo_fast.optim.finite import StepGuard
    from fdpo_fast.optim.in_backward import StepInBackward
    from fdpo_fast.training.checkpoint import EMA, Checkpoints, whole_state
    from fdpo_fast.training.metrics import FirstMargin, Metrics, WinnerWatch, Writer, forget_caching
    from fdpo_fast.training.order import Walk
    from fdpo_fast.training.samples import SampleGrids

    rank = start_processes()
    device = rank.device
    settings, folder = config.train, Path(config.train.output_dir).expanduser()
    check_shared(rank, "train.output_dir", folder)
    warnings: list[str] = []

    def warn(words: str) -> None:
        """Say it now, and keep it for the next record in metrics.jsonl."""
        rank.say(f"warning: {words}")
        warnings.append(words)

    if short := shortage(config, rank.count, ranks_here(), device):  # on every rank, so that a mistake ends them all
        warn(short)

    # Data: caches first, so that VAE, text encoders and reference UNet are gone before the policy arrives.
    checkpoints = Checkpoints(folder / "checkpoints", settings.keep_checkpoints)
    goes_on = resume and checkpoints.latest() is not None
    before = read_json(folder / "data.json").get("caches", {}) if goes_on else {}
    prepared = caches_of(config, rank, Builder(cache_root(config), rank, resumed=before))
    config, family, data = prepared.config, prepared.family, prepared.data
    dtype, mode = DTYPES[config.model.dtype], config.reference.mode
    rank.say(f"data: {describe(data.report)}")
    walk = Walk(data.shapes, settings.pairs_per_step, settings.seed)
    if walk.rare:
        warn(
            f"{walk.rare} pairs are in shapes with fewer pairs than train.pairs_per_step {settings.pairs_per_step}: "
            "a step of such a shape repeats pairs"
        )

    # Policy, optimizer, engine.
    forget_caching(device)
    torch.manual_seed(settings.seed)  # the initial weights of an adapter
    unet = family.denoiser(dtype)
    unet_config = dict(unet.config)
    trained = trainable.ready(unet, config.model)
    optimizer = build.optimizer(config.optimizer, trained, settings.seed)
    clips = config.whole_gradients and not settings.step_in_backward
    guard = StepGuard(optimizer, largest_over_ranks, config.optimizer.max_grad_norm if clips else None)
    if config.stage == 3:
        zero.split(unet, config.for_deepspeed(rank.count), device)
    with zero.bf16_masters(config.bf16_masters):
        engine, _, _, _ = deepspeed.initialize(
            model=unet,
            model_parameters=trained,
            optimizer=optimizer,
            lr_scheduler=build.schedule(config.optimizer, settings.max_steps),
            config=config.for_deepspeed(rank.count),
            dist_init_required=False,
        )
    zero.share(engine.optimizer)
    inside = None
    if settings.step_in_backward:
        average = mean_over_ranks if rank.count > 1 else None
        inside = StepInBackward(optimizer, trained, config.optimizer.max_grad_norm, average)
    if inside or (config.stage == 0 and rank.count == 1):
        # the gradients are averaged, and gone, before it would be its turn; or are their own mean, and it copies them
        engine.enable_backward_allreduce = False
    frozen = reference_model(config, family, device) if mode == "live" else None
    ema = EMA(unet, settings.ema_decay) if settings.ema_decay else None

    first_step = 0
    if resume and not goes_on:
        rank.say(f"{folder} has no checkpoint: starting at step 0")
    if goes_on:
        first_step = checkpoints.load(engine, ema)
        build.reapply(config.optimizer, settings.seed, engine.optimizer, engine.lr_scheduler)
        if rank.index == 0:
            for change in configuration.load(folder / "config.json").differences(config):
                rank.say(f"resumed with another {change}")
    grids = SampleGrids(config.log, family, folder / "samples", config.data.resolution, settings.seed, device)
    if rank.index == 0:
        with replacing(folder / "config.json") as partial:
            partial.write_text(config.dumps())
    writer = Writer(folder, first_step, config.log, data.report) if rank.index == 0 else None
    criterion = config.loss.criterion()

    def reference(batch: Batch) -> torch.Tensor:
        """Errors from the cache or of the frozen model, or predictions of the policy without its adapter.

        The frozen model's go in as errors, formed as the cache's are: the two modes then take the same steps, bit for
        bit, where the libraries round a batch alike.
        """
        if mode == "cached":
            return batch.ref_error
        if mode == "live":
            with as_in_training():
                pred, target, _ = predict(family, frozen, batch)
            return errors(pred, target)
        with as_in_training(), trainable.without_adapter(unet):
            return predict(family, unet, batch).pred.detach()

    # The loop. Nothing here waits for the device between flushes.
    metrics = Metrics(config.log, len(family.signal), device)
    watch, start = WinnerWatch(), FirstMargin(device, first_step == 0, config.optimizer.warmup_steps)
    stop = StopSignal(device)
    micro = settings.pairs_per_micro_batch
    accumulation = config.accumulation(rank.count)
    reported, sound = 0, first_step - 1
    bar = tqdm(range(first_step, settings.max_steps), initial=first_step, total=settings.max_steps, desc="train",
               disable=rank.index > 0)  # fmt: skip
    if config.log.samples_every and first_step == 0:
        grids.write(unet, 0, rank.index)
    for step in bar:
        lr = engine.get_lr()[0]
        positions, epochs = walk.step(step)
        visits = epochs % config.reference.visits if config.reference.visits else epochs
        for part in range(accumulation):
            first = (rank.index * accumulation + part) * micro
            batch = data.batch(positions[first : first + micro], visits[first : first + micro])
            ref = reference(batch)
            pred, target, timesteps = predict(family, engine, batch)
            losses, stats = criterion(pred, ref, target, batch.weight)
            engine.backward(losses.mean())
            metrics.add(losses, stats, timesteps)
            if start.open:
                start.add(stats)
            if inside:
                guard.found(inside.bad())
            engine.step()
        if not guard.end_step(engine.skipped_steps):
            sound = step  # steps behind weights that have finite gradients
        elif guard.in_a_row == guard.LIMIT or (guard.in_a_row > 1 and step + 1 == settings.max_steps):
            good = checkpoints.fall_back(sound)
            raise ConfigError(
                f"step {step}: gradients were not finite for {guard.in_a_row} steps in a row; the last good checkpoint "
                f"is {good or 'none, as none was written'}: lower optimizer.lr or loss.beta, and go on there with "
                "--resume"
            )
        if ema:
            ema.update()
        if step == 0 and (apart := start.apart()):
            warn(apart)
        done = step + 1
        metrics.end_step(step, lr, guard.norm if clips else engine.get_global_grad_norm())
        last = done == settings.max_steps
        checkpoint = (done % settings.checkpoint_every == 0 or last) and not guard.in_a_row  # keep the good ones
        if done % config.log.every == 0 or checkpoint or last:  # a checkpoint never runs ahead of the metrics on disk
            records = metrics.flush()
            for words in (watch(records), start.judged(step)):
                if words:
                    warn(words)
            if guard.skipped > reported:
                reported = guard.skipped
                warn(f"{reported} steps skipped so far, their gradients were not finite")
            if warnings:
                records[-1]["warnings"] = warnings.copy()
                warnings.clear()
            if writer:
                writer.write(records)
                bar.set_postfix_str(progress(records[-1]))
            if stop.requested():
                if not guard.in_a_row:
                    checkpoints.save(engine, done, config.dumps(), ema)
                rank.say(f"stopped after step {done}: --resume goes on from {checkpoints.latest() or 'the start'}")
                return
        if config.log.samples_every and (done % config.log.samples_every == 0 or last):
            grids.write(unet, done, rank.index)
        if checkpoint:
            checkpoints.save(engine, done, config.dumps(), ema)

    with ema.applied() if ema else nullcontext():
        state = whole_state(unet)  # may be the model's own tensors, so it is written before the average gives way
        if rank.index == 0:
            family.export(state, unet_config, folder / "export")
            rank.say(f"exported to {folder / 'export'}")
            writer.boards.close()
    dist.barrier()


def progress(record: dict) -> str:
    """The progress bar's figures."""
    return (
        f"loss {record['loss']:.4f}, accuracy {record['accuracy']:.2f}, margin {record['margin']:+.3f}, "
        f"lr {record['lr']:.1e}, {record['images_per_second']:.1f} images/s, {record['memory_gib']:.1f} GiB"
    )


if __name__ == "__main__":
    main()
