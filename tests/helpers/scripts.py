"""The stand-ins of published training scripts: changed by a diff, and run under accelerate around tiny models."""

import copy
import re
from argparse import Namespace
from contextlib import contextmanager
from functools import wraps
from typing import NamedTuple

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from diffusers.optimization import get_scheduler
from peft import LoraConfig
from torch.utils.data import DataLoader

from fdpo_fast.models import presets
from fdpo_fast.models.presets import SCHEDULERS
from tests.helpers import ROOT
from tests.helpers.pages import PAGES, blocks
from tests.helpers.training import as_found

SCRIPTS = {"diffusers_sdxl": "tiny_sdxl", "diffusers_sd15": "tiny_sd", "diffusion_dpo": "tiny_sd"}
"""The stand-ins of trainers on preferences, by the names that `fdpo_fast.scales` has for them: their tiny models."""

FINE_TUNING = {"diffusers_sd3": "tiny_sd3"}
"""Those of trainers on single images, which their diffs make trainers on preferences."""

STANDINS = ROOT / "tests/helpers/standins"
PAIRS, ACCUMULATION, STEPS = 2, 2, 3


class Outcome(NamedTuple):
    """What a run showed of each micro-batch, what it logged, its gradients' norm by step, the weights it ends with."""

    shown: list[dict[str, float]]
    logged: list[dict[str, float]]
    norms: list[float]
    weights: dict[str, torch.Tensor]


class Recorder(Accelerator):
    """An Accelerator that keeps what is logged; it is the progress bar too."""

    def __init__(self, **options):
        super().__init__(**options)
        self.shown, self.logged, self.norms, self.updates = [], [], [], 0

    def log(self, values, step=None):
        self.logged.append(values)

    def set_postfix(self, **values):
        self.shown.append(values)

    def clip_grad_norm_(self, parameters, max_norm):
        self.norms.append(super().clip_grad_norm_(parameters, max_norm).item())

    def update(self, steps):
        self.updates += steps


def published(name):
    """The text of a stand-in, as it stands."""
    return (STANDINS / f"{name}.py").read_text()


def apply(diff, source):
    """Change `source` by the hunks of `diff`, parted by lines of @@; their old lines must be there once, as written."""
    for hunk in re.split(r"^@@.*\n", diff, flags=re.M):
        lines = hunk.splitlines()
        if stray := [line for line in lines if line[:1] not in (" ", "-", "+")]:
            raise ValueError(f"these lines are neither kept nor removed nor added: {stray}")
        old, new = ("\n".join(["", *(line[1:] for line in lines if line[0] in signs), ""]) for signs in (" -", " +"))
        if (found := source.count(old)) != 1:
            raise ValueError(f"these lines are found {found} times, not once:{old}")
        source = source.replace(old, new)
    return source


def has_lines_for(diff, source):
    """Whether `diff` can be applied to `source`."""
    try:
        apply(diff, source)
    except ValueError:
        return False
    return True


def diffs():
    """Every diff of every page, by the one stand-in that has its lines."""
    sources = {path.stem: path.read_text() for path in STANDINS.glob("*.py")}
    found = {}
    for diff in (diff for path in PAGES for diff in blocks(path.read_text(), "diff")):
        (name,) = (name for name, source in sources.items() if has_lines_for(diff, source))
        assert name not in found
        found[name] = diff
    return found


def arguments(folder, **options):
    """The options of a script that a run needs, under the scripts' names; `spread` is that of the first LoRA."""
    defaults = {
        "output_dir": folder, "mixed_precision": "no", "gradient_accumulation_steps": ACCUMULATION, "beta_dpo": 100,
        "train_batch_size": PAIRS, "max_train_steps": STEPS, "checkpointing_steps": 1, "max_grad_norm": 1.0,
        "learning_rate": 1e-3, "resolution": 64, "loss_type": "sigmoid", "train_method": "dpo", "first_step": 0,
        "prediction_type": "epsilon", "precondition_outputs": 1, "weighting_scheme": "logit_normal", "spread": 0.3,
    }  # fmt: skip
    return Namespace(**defaults | options)


class Pairs(list):
    """Pairs of latents, preferred and dispreferred on the channels, and embeddings as wide as the model takes them.

    A pair that is read seeds torch: accelerate 1.0 cannot load torch's state from a checkpoint under torch >= 2.6.
    """

    def __init__(self, width, pooled):
        generator = torch.Generator().manual_seed(1)
        shapes = {"latents": (8, 8, 8), "prompt_embeds": (5, width), "pooled_prompt_embeds": (pooled,)}
        super().__init__(
            {name: torch.randn(shape, generator=generator, dtype=torch.float32) for name, shape in shapes.items()}
            for _ in range(PAIRS * ACCUMULATION * STEPS)
        )

    def __getitem__(self, row):
        torch.manual_seed(row)
        return super().__getitem__(row)


def in_float32(make):
    """Decorate what makes weights, which are drawn in torch's default dtype."""

    @wraps(make)
    def made(*arguments, **options):
        usual = torch.get_default_dtype()
        torch.set_default_dtype(torch.float32)
        try:
            return make(*arguments, **options)
        finally:
            torch.set_default_dtype(usual)

    return made


@in_float32
def models(name, dtype, spread):
    """Policy and reference of a script, near one another: LoRA on frozen weights of `dtype`, or two whole UNets."""
    torch.manual_seed(0)
    preset = (SCRIPTS | FINE_TUNING)[name]
    component, make = next(iter(presets.components(preset).items()))
    denoiser = make()
    reference = copy.deepcopy(denoiser).requires_grad_(False) if name == "diffusion_dpo" else None
    if not reference:
        denoiser.requires_grad_(False).to(dtype)
        targets = ["to_k", "to_q", "to_v", "to_out.0"]
        denoiser.add_adapter(LoraConfig(r=4, lora_alpha=4, init_lora_weights="gaussian", target_modules=targets))
    with torch.no_grad():
        for weight in denoiser.parameters():
            if weight.requires_grad:
                weight.add_(torch.randn_like(weight), alpha=0.01 if reference else spread)
    denoiser.enable_gradient_checkpointing()
    return component, denoiser, reference


@contextmanager
def fresh_accelerate():
    """Within the block accelerate knows of no earlier Accelerator, and behind it of none of the block's."""
    with as_found(), torch.random.fork_rng(devices=[]):
        try:
            AcceleratorState._reset_state(reset_partial_state=True)
            GradientState._reset_state()
            yield
        finally:
            AcceleratorState._reset_state(reset_partial_state=True)
            GradientState._reset_state()


def widths(config):
    """How wide a denoiser takes the embedding of a token, and the pooled one."""
    width = config.get("joint_attention_dim") or config["cross_attention_dim"]
    return width, config.get("pooled_projection_dim", 32)


def train(name, source, args, **replaced):
    """Run a stand-in, or what a diff made of it, from its start or from the checkpoint of `args.first_step`.

    replaced: what stands in place of names that its text imports.
    """
    with fresh_accelerate():
        accelerator = Recorder(
            gradient_accumulation_steps=args.gradient_accumulation_steps, mixed_precision=args.mixed_precision, cpu=True
        )
        dtype = torch.bfloat16 if args.mixed_precision == "bf16" else torch.float32
        component, denoiser, reference = models(name, dtype, args.spread)
        optimizer = torch.optim.AdamW([p for p in denoiser.parameters() if p.requires_grad], lr=args.learning_rate)
        lr_scheduler = get_scheduler("linear", optimizer=optimizer, num_warmup_steps=0, num_training_steps=2 * STEPS)
        loader = DataLoader(Pairs(*widths(denoiser.config)), batch_size=args.train_batch_size)
        denoiser, optimizer, loader, lr_scheduler = accelerator.prepare(denoiser, optimizer, loader, lr_scheduler)
        assert accelerator.unwrap_model(denoiser).is_gradient_checkpointing
        if args.first_step:
            accelerator.load_state(f"{args.output_dir}/checkpoint-{args.first_step}")
            loader = accelerator.skip_first_batches(loader, args.first_step * args.gradient_accumulation_steps)
        scope = {"__name__": name}
        exec(compile(source, name, "exec"), scope)  # noqa: S102
        scope |= replaced
        scope["main"](
            args=args, accelerator=accelerator, optimizer=optimizer, lr_scheduler=lr_scheduler, train_dataloader=loader,
            noise_scheduler=SCHEDULERS[args.prediction_type](), progress_bar=accelerator,
            **{component: denoiser} | ({"ref_unet": reference} if reference else {}),
        )  # fmt: skip
        assert accelerator.updates == STEPS - args.first_step
        weights = accelerator.unwrap_model(denoiser).state_dict()
        trained = {key: value.clone() for key, value in weights.items()}
        return Outcome(accelerator.shown, accelerator.logged, accelerator.norms, trained)
