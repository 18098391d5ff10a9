"""`fdpo plan --config ...`: what a run takes of GPU, host and disk, before anything is fetched, loaded or built."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fdpo_fast.config.run import Config
from fdpo_fast.files import replacing
from fdpo_fast.memory.account import GIB, PHASES, Account
from fdpo_fast.memory.cards import CARDS, ENCODING, encoding_hours, seconds
from fdpo_fast.memory.ladder import RUNGS
from fdpo_fast.memory.needs import CONTEXT, FRAGMENTATION, PROCESS, WORKSPACES, Needs, Plan, make_plan, with_allowances
from fdpo_fast.models import quiet_libraries
from fdpo_fast.models.precision import DTYPES


@dataclass(frozen=True)
class Machine:
    """The machine that a plan is drawn up for; None for what is not known."""

    gpus: int
    gpu: float | None
    """Bytes of memory of one GPU."""
    host: float | None
    """Bytes of memory of the machine."""
    tflops: float | None
    """What a GPU sustains, TFLOP/s."""
    card: str | None
    """A name in CARDS."""


def show(
    config: Config, config_file: str, machine: Machine, json_file: Path | None = None, as_json: bool = False
) -> None:
    """Draw up the plan of a configuration, print it, as JSON if asked to, and write its figures to `json_file`.

    Raises UserError for what does not fit together, and an unknown base.
    """
    quiet_libraries()
    plan = make_plan(config, machine.gpus, machine.gpu)
    text = json.dumps(figures(plan, machine), indent=2)
    print(text if as_json else "\n".join(table(plan, config_file, machine)))
    if json_file:
        with replacing(json_file) as partial:
            partial.write_text(text + "\n")


def figures(plan: Plan, machine: Machine) -> dict:
    """Return the plan for JSON; sizes in GiB."""
    account = plan.needs.account
    return {
        **plan.needs.figures(),
        "disk_gib": round(sum(plan.disk.values()) / GIB, 3),
        "parts": {
            name: {
                device: round(account.parts(account.peak(device), device).get(name, 0) / GIB, 4)
                for device in ("gpu", "host")
            }
            for name in _names(account)
        },
        "peak_phase": account.peak("gpu"),
        "phases": {
            **{phase: round(account.total(phase, "gpu") / GIB, 3) for phase in PHASES},
            **{name: round(bytes_ / GIB, 3) for name, bytes_ in plan.needs.beside.items()},
        },
        "disk": {name: round(bytes_ / GIB, 3) for name, bytes_ in plan.disk.items()},
        "rung": plan.rung,
        "rungs": {name: needs.figures() for name, (_, needs) in plan.rungs.items()},
        "gradient_checkpointing": {
            name: {"gpu_tensors_gib": round(price.gpu_tensors / GIB, 3), "tflop_per_pair": round(price.flops / 1e12, 2)}
            for name, price in plan.prices.items()
        },
        "step": {"tflop_a_gpu": round(_tflop(plan, machine), 3), "seconds": _seconds(plan, machine)},
        "seconds_a_pair": {
            name: {**_range(ends), "measured_by": CARDS[name].source} for name, ends in _on_cards(plan, machine).items()
        },
        "encoding": _encoding(plan, machine),
        "architecture": plan.architecture.source,
        "gpus": machine.gpus,
    }


def _tflop(plan: Plan, machine: Machine) -> float:
    """Return the TFLOP of a step's forward and backward on one GPU."""
    price = plan.prices[plan.config.model.gradient_checkpointing]
    return price.flops * plan.config.train.pairs_per_step / machine.gpus / 1e12


def _seconds(plan: Plan, machine: Machine) -> float | None:
    """Return the seconds of a step's forward and backward at the rate that was given; None where none was."""
    return round(_tflop(plan, machine) / machine.tflops, 3) if machine.tflops else None


def _on_cards(plan: Plan, machine: Machine) -> dict[str, tuple[float, float]]:
    """Estimate a pair's seconds by card, from what others have published of training such models."""
    runs = plan.prices[plan.config.model.gradient_checkpointing].flops
    cards = {machine.card: CARDS[machine.card]} if machine.card else CARDS
    estimates = {name: seconds(card, plan.prices["off"].flops, runs) for name, card in cards.items()}
    return {name: value for name, value in estimates.items() if value}


def _encoding(plan: Plan, machine: Machine) -> dict | None:
    """Return the images to encode, the work, and estimated hours by card and `data.vae_dtype`; None without images."""
    if not plan.images:
        return None
    work = plan.images * plan.image_flops / machine.gpus
    return {
        "images": plan.images,
        "tflop_an_image": float(f"{plan.image_flops / 1e12:.3g}"),
        "of_peak": {"from": ENCODING[0], "to": ENCODING[1]},
        "hours": {
            name: {dtype: _range(encoding_hours(CARDS[name], work, dtype)) for dtype in DTYPES}
            for name in ([machine.card] if machine.card else CARDS)
        },
    }


def _range(ends: tuple[float, float]) -> dict[str, float]:
    return {name: float(f"{value:.3g}") for name, value in zip(("from", "to"), ends, strict=True)}


def table(plan: Plan, config_file: str, machine: Machine) -> Iterator[str]:
    """Yield the plan line by line, for people to read."""
    config, needs, account = plan.config, plan.needs, plan.needs.account
    trained = plan.traced.trained
    where = f"rung {plan.rung}" if plan.rung else "settings of its own, on none of the rungs"
    yield f"{config_file} on {machine.gpus} GPU{'s' * (machine.gpus > 1)}: {where}"
    yield (
        f"{trained / 1e6:,.0f} M elements trained; architecture: {plan.architecture.source}; "
        f"{config.train.pairs_per_micro_batch} pair(s) of {config.data.resolution} x {config.data.resolution} at a time"
    )
    phase = {device: account.peak(device) for device in ("gpu", "host")}
    yield f"\n{'GiB, a rank, at the peak':34}{'GPU':>10}{'host':>10}"
    for name in _names(account):
        line = (account.parts(phase[device], device).get(name, 0) / GIB for device in ("gpu", "host"))
        yield f"{name:34}" + "".join(f"{value:10.2f}" for value in line)
    held = account.total(phase["host"], "host")
    yield f"{'tensors, in ' + phase['gpu']:34}{needs.gpu_tensors / GIB:10.2f}{held / GIB:10.2f}"
    yield f"{'allowance: context, or process':34}{CONTEXT / GIB:10.2f}{PROCESS / GIB:10.2f}"
    yield f"{'allowance: libraries at work':34}{WORKSPACES / GIB:10.2f}"
    fragments = FRAGMENTATION * (needs.fullest[1] + WORKSPACES)
    yield f"{f'allowance: fragmentation, {FRAGMENTATION:.0%}':34}{fragments / GIB:10.2f}"
    yield f"{'total; host: of all ranks':34}{needs.gpu_total / GIB:10.2f}{needs.host / GIB:10.2f}"
    others = {name: account.total(name, "gpu") for name in PHASES} | needs.beside
    yield "\nGPU tensors by phase: " + ", ".join(f"{name} {bytes_ / GIB:.2f}" for name, bytes_ in others.items())
    yield f"host while weights are read: {needs.starting / GIB:.2f}, as far as it can mapped from their files"
    yield "disk, at most: " + ", ".join(f"{name} {bytes_ / GIB:.1f}" for name, bytes_ in plan.disk.items())
    yield f"    for {plan.disk_from}"

    yield f"\n{'gradient_checkpointing':34}{'GPU tensors':>12}{'TFLOP a pair':>14}"
    for name, price in plan.prices.items():
        here = " (this)" if name == config.model.gradient_checkpointing else ""
        yield f"{name + here:34}{price.gpu_tensors / GIB:12.2f}{price.flops / 1e12:14.1f}"
    if machine.tflops:
        yield f"a step's forward and backward at {machine.tflops:g} TFLOP/s: {_seconds(plan, machine):.1f} s"
    else:
        yield f"a step's forward and backward: {_tflop(plan, machine):,.0f} TFLOP a GPU; --tflops gives seconds"
    yield from _card_lines(plan, machine)
    yield from _encoding_lines(plan, machine)

    yield f"\n{'rung':5}{'GPU tensors':>12}{'GPU total':>11}{'host':>8}  GPU fullest in, and what it is"
    for name, (_, rung_needs) in plan.rungs.items():
        sizes = f"{rung_needs.gpu_tensors / GIB:12.2f}{rung_needs.gpu_total / GIB:11.2f}{rung_needs.host / GIB:8.2f}"
        yield f"{name:5}{sizes}  {rung_needs.fullest[0]}: {RUNGS[name].title}{_verdict(rung_needs, machine)}"
    if config.optimizer.weights == "plain":
        yield (
            f"on any of them weights of 24 bits, optimizer.weights 'bf16+8', take {trained / GIB:.2f} more where the "
            "optimizer is, all ranks together"
        )
    if machine.gpu or machine.host:
        yield from _advice(plan, machine)


def _card_lines(plan: Plan, machine: Machine) -> Iterator[str]:
    """Yield the estimates of seconds, and whose they are."""
    estimates = _on_cards(plan, machine)
    if not estimates:
        yield f"no utilisation of a {machine.card} has been published that we know of, so no seconds are estimated"
        return
    ranges = (
        f"{name} {fast:.2f}" + (f" to {slow:.2f}" if slow > fast else "") for name, (fast, slow) in estimates.items()
    )
    yield "seconds a pair, estimated from others' published MFU and not measured by us: " + ", ".join(ranges)
    yield "    of " + "; ".join(f"{name}: {CARDS[name].source}" for name in estimates)


def _encoding_lines(plan: Plan, machine: Machine) -> Iterator[str]:
    """Yield how long a GPU encodes the images, and what that rests on; nothing where there are none to encode."""
    found, here = _encoding(plan, machine), plan.config.data.vae_dtype
    if found is None:
        return
    work = f"encoding {plan.images:,} images at the most: {found['tflop_an_image']} TFLOP each"
    if machine.card is None:
        yield f"{work}; --card estimates the hours"
        return
    hours = {dtype: f"{ends['from']} to {ends['to']} h" for dtype, ends in found["hours"][machine.card].items()}
    gpus = f"{machine.gpus} x " * (machine.gpus > 1)
    faster = f"; data.vae_dtype bf16: {hours['bf16']}" * (here == "fp32")
    yield f"{work}, on {gpus}{machine.card} {hours[here]}{faster}"
    low, high = ENCODING
    peak = f"the card's peak{' in TF32, as torch computes fp32 there' * (here == 'fp32')}"
    yield f"    estimated at {low:.0%} to {high:.0%} of {peak}, after others' timings and not measured by us"


def _names(account: Account) -> list[str]:
    """List the parts in the order in which they were entered."""
    return list(dict.fromkeys(entry.part for entry in account.entries))


def _lacks(needs: Needs, machine: Machine) -> list[str]:
    """List in words by how much the limits are passed."""
    limits = (("GPU", needs.gpu_total, machine.gpu), ("host", needs.host, machine.host))
    return [f"{device} {(has - limit) / 2**30:.1f} GiB over" for device, has, limit in limits if limit and has > limit]


def _too_full_beside(needs: Needs, machine: Machine) -> list[str]:
    """List the phases outside the steps that pass a GPU's limit, where nothing else does."""
    if not machine.gpu or with_allowances(needs.gpu_tensors) > machine.gpu:
        return []
    if machine.host and needs.host > machine.host:
        return []
    return [phase for phase, tensors in needs.beside.items() if with_allowances(tensors) > machine.gpu]


def _verdict(needs: Needs, machine: Machine) -> str:
    if not (machine.gpu or machine.host):
        return ""
    return f" ({', '.join(_lacks(needs, machine)) or 'fits'})"


def _advice(plan: Plan, machine: Machine) -> Iterator[str]:
    """Yield whether the configuration fits, and what to change where it does not."""
    lacks = _lacks(plan.needs, machine)
    if not lacks:
        yield "\nthis configuration fits"
        return
    yield f"\nthis configuration does not fit: {', '.join(lacks)}"
    if beside := _too_full_beside(plan.needs, machine):
        yield "its steps do; change"
        yield from (f"    for {phase}: {SMALLER[phase]}" for phase in beside)
        return
    for name, (config, needs) in plan.rungs.items():
        beside = _too_full_beside(needs, machine)
        if beside or not _lacks(needs, machine):
            yield f"rung {name} does; change"
            changes = plan.config.differences(config)
            yield from (f"    {line}" for line in changes)
            yield from (f"    for {phase}: {SMALLER[phase]}" for phase in beside)
            if any(line.startswith("train.pairs_per_step") for line in changes):
                yield "    and optimizer.lr and train.max_steps to go with smaller steps, as configs/sdxl_js_16gb.json"
            return
    yield "no rung does:"
    least = min((needs for _, needs in plan.rungs.values()), key=lambda needs: needs.gpu_total)
    if machine.gpu and least.gpu_total > machine.gpu:
        phase = least.fullest[0]
        yield f"    the least a GPU takes is in the phase '{phase}': {SMALLER.get(phase, SMALLER['step'])}"
    if machine.host and all(needs.host > machine.host for _, needs in plan.rungs.values()):
        yield "    each takes more host memory than that: train an adapter (model.train 'lora') or a smaller base"


SMALLER = {
    "caching images": "lower data.encode_batch",
    "caching text": "lower data.encode_batch, or fill the cache on another machine",
    "sample grids": "lower log.images_per_prompt, or set log.samples_every to 0",
    "caching reference errors": "lower train.pairs_per_micro_batch",
    "starting": "train on more GPUs, or an adapter in stage 0",
    "step": "lower data.resolution or train.pairs_per_micro_batch, or train an adapter (model.train)",
}
"""What makes a phase smaller; "step" stands for the phases of a training step."""
