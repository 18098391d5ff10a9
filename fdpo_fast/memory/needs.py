"""A configuration's needs put together: the step, what comes before and beside it, the disk, and the other rungs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import psutil
import torch

from fdpo_fast.config.embedded import EMBEDDED
from fdpo_fast.config.errors import UserError
from fdpo_fast.config.run import Config
from fdpo_fast.data.images import Geometry
from fdpo_fast.data.pairs import brought_by
from fdpo_fast.data.readers.detect import detect, open_source
from fdpo_fast.data.readers.find import is_here
from fdpo_fast.memory import ladder
from fdpo_fast.memory.account import GIB, PHASES, Account, states, step_account
from fdpo_fast.memory.trace import Trace, trace, traces, vae_passes
from fdpo_fast.models import placement
from fdpo_fast.models.architecture import Architecture, read_architecture
from fdpo_fast.models.precision import DTYPES
from fdpo_fast.progress import progress

CONTEXT = 1.7 * GIB
"""Allowance: what the driver counts beside the allocator: context, kernels, NCCL. 1.68 on an H200, by its driver."""
WORKSPACES = 0.35 * GIB
"""Allowance: tensors of cuBLAS and cuDNN. On an H200 its allocator held 0.1 to 0.32 beyond a plan's tensors."""
FRAGMENTATION = 0.07
"""Allowance: the share by which the allocator's segments outgrow the tensors in them. 0.05 to 0.07 on an H200."""
PROCESS = 2 * GIB
"""Allowance: host memory of a process with torch, CUDA and DeepSpeed loaded, on a machine with a GPU."""


def with_allowances(tensors: float) -> float:
    """Return the memory of a GPU that holds so many bytes of tensors, with what else takes room there."""
    return (tensors + WORKSPACES) * (1 + FRAGMENTATION) + CONTEXT


@dataclass(frozen=True)
class Needs:
    """What a configuration needs, in bytes: each rank of its own GPU, all ranks together of the host."""

    account: Account
    beside: dict[str, float]
    """The most on a GPU in phases outside the training step."""
    starting: float
    """Host memory of one rank while weights are read: the text encoders', then the base's."""
    drawing: float
    """Host memory of one rank's text encoders, as far as they draw sample grids by parts."""
    ranks: int

    @property
    def gpu_tensors(self) -> float:
        """Return the most that tensors take at once in a training step."""
        return self.account.total(self.account.peak("gpu"), "gpu")

    @property
    def fullest(self) -> tuple[str, float]:
        """Return the phase in which a GPU holds most, and how much."""
        phase = self.account.peak("gpu")
        return max([*self.beside.items(), (phase, self.account.total(phase, "gpu"))], key=lambda item: item[1])

    @property
    def gpu_total(self) -> float:
        """Return the most at once in any phase, with the allowances."""
        return with_allowances(self.fullest[1])

    @property
    def host(self) -> float:
        """Return the host memory of all ranks at its most, with the allowance of a process for each."""
        held = self.account.total(self.account.peak("host"), "host")
        return self.ranks * (max(held + self.drawing, self.starting) + PROCESS)

    def figures(self) -> dict[str, float]:
        """Return the needs by name in GiB, for JSON."""
        sizes = {"gpu_tensors": self.gpu_tensors, "gpu_total": self.gpu_total, "host": self.host}
        return {f"{name}_gib": round(size / GIB, 3) for name, size in sizes.items()}


def needs(
    config: Config,
    architecture: Architecture,
    traced: Trace,
    ranks: int,
    ready: Ready | None = None,
    card: float | None = None,
) -> Needs:
    """Find the needs of a configuration whose micro-batch was traced; `ready` is looked up if it is None.

    card: the memory of a GPU in bytes, which decides how much of the text encoders is there at once, see
    `placement.py`; None is one that all else just fits.
    """
    ready = ready or brought(config, architecture)
    account = step_account(config, traced, ranks, gpu=True)
    vae = vae_passes(config, architecture)
    dtype = DTYPES[config.model.dtype]
    width = dtype.itemsize
    layer = max(width * max(traced.all_shapes), traced.buffer_bytes)
    beside: dict[str, float] = {}
    if not ready.latents:
        beside["caching images"] = vae.encoding
    if config.reference.mode == "cached":
        held = 2 * layer if config.parameters_on_host else traced.model_bytes  # this layer, and the next
        beside["caching reference errors"] = held + traced.inference + traced.data
    if config.stage == 3:
        own = account.parts("step", "gpu")
        beside["starting"] = 2 * width * max(traced.all_shapes) + own.get("weights", 0) + own.get("buffers", 0)
    if config.log.samples_every:
        resting = sum(
            e.size for e in account.entries if e.device == "gpu" and e.phases == PHASES and e.part != "gradients"
        )
        # with guidance every image of a prompt is in the denoiser's batch twice
        share = config.log.images_per_prompt / config.train.pairs_per_micro_batch
        beside["sample grids"] = resting + max(vae.decoding, traced.inference * share)
    room = (card or with_allowances(max(account.total(account.peak("gpu"), "gpu"), *beside.values()))) - CONTEXT
    starting, drawing = float(traced.whole_bytes), 0.0
    if config.log.samples_every:
        text = placement.held(architecture.text_sizes(dtype), room - resting)
        beside["sample grids"] += text.device
        drawing = float(text.host)
    if config.bf16_masters and account.total("step", "host"):
        # flat weights, master and gradients are made beside what is read, before `optim/zero.py` makes them one
        starting += 3 * 2 * traced.trained / ranks
    if not ready.text:
        sizes = architecture.text_sizes(torch.float32)
        beside["caching text"] = placement.held(sizes, room).device
        starting = max(starting, float(sum(size.whole for size in sizes.values())))
    return Needs(account, beside, starting, drawing, ranks)


def disk(config: Config, architecture: Architecture, traced: Trace) -> tuple[dict[str, float], str]:
    """Return the bytes by what is written, and in words what that rests on."""
    extent, known = _extent(config)
    side, width = config.data.resolution // architecture.factors()[0], DTYPES[config.data.cache_dtype].itemsize
    image = architecture.vae_config.get("latent_channels", 4) * side**2 * (2 if config.data.latents == "moments" else 1)
    optimizer = (config.master_bytes + states(config, traced)) * traced.trained
    exported = traced.whole_bytes / DTYPES[config.model.dtype].itemsize + architecture.text_parameters
    average = 4 * traced.trained if config.train.ema_decay else 0
    both = 2 if config.data.ties == "half" or config.data.votes == "conservative" else 1
    written = {
        "latents": float(extent.images * image * width),
        "text embeddings": float(extent.rows * architecture.text_elements() * width),
        "reference errors": 16.0 * extent.pairs * both * (config.reference.visits or 0),
        "checkpoints": (config.train.keep_checkpoints + 1)
        * (traced.trained_bytes + traced.buffer_bytes + optimizer + average),
        "export": exported * DTYPES[config.train.export_dtype or "fp32"].itemsize,
    }
    return {name: size for name, size in written.items() if size}, known


class Ready(NamedTuple):
    """What the data bring along, so that no encoder runs on the GPU for it."""

    latents: bool
    text: bool


def brought(config: Config, architecture: Architecture) -> Ready:
    """Look up what the data bring, by the format that is configured or the columns that are here; no row is read."""
    data, here = config.data, config.data.source not in EMBEDDED and is_here(config.data.source)
    name = detect(data.source, data.split, data.outside) if here and data.format == "auto" else data.format
    if name != "latents" or not here:
        return Ready(name == "latents", text=False)
    return Ready(True, set(architecture.family.text_keys) <= set(brought_by(open_source(data))))


class Extent(NamedTuple):
    """How much a source holds at the most."""

    rows: int
    pairs: int
    images: int


def _extent(config: Config) -> tuple[Extent, str]:
    """Return what the data hold at most, and where that is from."""
    source, most = config.data.source, config.data.max_rows
    if source not in EMBEDDED and is_here(source):
        opened = open_source(config.data)
        return Extent(len(opened), *opened.extent()), "the rows of data.source"
    rows, known = 0, "no rows: data.source is not here and data.max_rows not set, so caches are not counted"
    if source in EMBEDDED:
        rows, known = config.data.digits.pairs, "the embedded pairs"
    elif most:
        rows, known = most, "data.max_rows, as data.source is not here"
    return Extent(rows, rows, 2 * rows), known


def shortage(config: Config, ranks: int, on_machine: int, device: torch.device) -> str | None:
    """Return a sentence where a run that is about to start needs more memory than is free; None where there is enough.

    ranks: of the run; on_machine: those on this machine. The process itself is there already.
    """
    architecture = read_architecture(config.model)
    traced = trace(config, architecture)
    host = psutil.virtual_memory().available
    if device.type != "cuda":
        account = step_account(config, traced, ranks, gpu=False)
        needed = on_machine * account.total(account.peak("gpu", "host"), "gpu", "host")
        return _short("memory", needed, host)
    free = torch.cuda.mem_get_info(device)[0]
    total = needs(config, architecture, traced, ranks, card=free + CONTEXT)
    words = _short("GPU memory", total.gpu_total - CONTEXT, free)
    return words or _short("host memory", on_machine * (total.host / ranks - PROCESS), host)


def _short(what: str, needed: float, free: float) -> str | None:
    if needed <= free:
        return None
    return (
        f"this run is going to need about {needed / GIB:.1f} GiB of {what} and {free / GIB:.1f} are free: "
        "`fdpo plan --config ... --gpu SIZE --host SIZE` says what to change"
    )


@dataclass(frozen=True)
class Price:
    """What a choice of `model.gradient_checkpointing` costs."""

    gpu_tensors: float
    flops: float
    """FLOPs of a pair's forward and backward."""


@dataclass(frozen=True)
class Plan:
    """Everything that `fdpo plan` prints about a configuration."""

    config: Config
    architecture: Architecture
    traced: Trace
    needs: Needs
    disk: dict[str, float]
    disk_from: str
    rungs: dict[str, tuple[Config, Needs]]
    prices: dict[str, Price]
    images: int
    """The most images that are encoded; none where latents come ready, or nobody knows how many."""
    image_flops: int
    """FLOPs of encoding one of them."""

    @property
    def rung(self) -> str | None:
        """Name the rung of the ladder that the configuration stands on; None for settings of its own."""
        return ladder.current(self.config)


def make_plan(config: Config, ranks: int, card: float | None = None) -> Plan:
    """Plan a configuration on `ranks` ranks; takes seconds, for SDXL.

    card: the memory of a GPU in bytes, where it is known. Raises UserError for what does not fit together, and an
    unknown base.
    """
    config.accumulation(ranks)
    architecture = read_architecture(config.model)
    Geometry(config.data, config.reference.seed, *architecture.factors())  # refuses sizes that do not divide
    by_choice = traces(config, architecture)
    traced, ready = by_choice[config.model.gradient_checkpointing], brought(config, architecture)
    pairs = config.train.pairs_per_micro_batch
    rungs = {}
    for name in progress(list(ladder.RUNGS), desc="planning", unit=" rungs", leave=False):
        try:
            other = ladder.on_rung(config, name, ranks)
        except UserError:  # it does not go with the rest, as weights on the host with a quantised base
            continue
        same = other.model == _with(config, other.model.gradient_checkpointing).model
        same = same and other.backward_twice == config.backward_twice
        choice_trace = by_choice[other.model.gradient_checkpointing] if same else trace(other, architecture)
        rungs[name] = other, needs(other, architecture, choice_trace, ranks, ready, card)
    prices = {
        name: Price(
            needs(_with(config, name), architecture, choice_trace, ranks, ready).gpu_tensors,
            choice_trace.work(config) / pairs,
        )
        for name, choice_trace in by_choice.items()
    }
    return Plan(
        config,
        architecture,
        traced,
        needs(config, architecture, traced, ranks, ready, card),
        *disk(config, architecture, traced),
        rungs,
        prices,
        0 if ready.latents else _extent(config)[0].images,
        vae_passes(config, architecture).flops,
    )


def _with(config: Config, checkpointing: str) -> Config:
    return config.replace({"model.gradient_checkpointing": checkpointing})
