"""`fdpo cache` and `fdpo cache verify`: fill the caches ahead of training, and check what is in them."""

from __future__ import annotations

from fdpo_fast.commands.common import Commands, add_config, check_model, given, imports, read_config, say_next, training
from fdpo_fast.config.errors import UserError


def add(commands: Commands) -> None:
    """Add the parsers of `fdpo cache` and `fdpo cache verify`."""
    parser = commands.add_parser(
        "cache",
        help="latents, text embeddings and reference errors, ahead of training",
        description="Fill the caches of a configuration.",
    )
    add_config(parser)
    parser.set_defaults(run=fill, left="the same command goes on behind what is cached")

    parser = commands.add_parser(
        "cache verify",
        help="checksums of the caches, and a sample of them computed anew",
        description="Check every checksum, and recompute a sample from images and models.",
    )
    add_config(parser)
    parser.add_argument("--pairs", type=int, default=16, help="size of the sample (default 16)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the sample (default 0)")
    parser.set_defaults(run=verify, left="nothing was changed")


def fill(config_file: str, overrides: list[str]) -> None:
    """Build what is missing of the caches."""
    config = read_config(config_file, overrides)
    check_model(config)
    with imports():
        from fdpo_fast.cache.verify import fill
    fill(config)
    say_next(*training(), *given(config_file, overrides))


def verify(config_file: str, overrides: list[str], pairs: int, seed: int) -> None:
    """Compare the caches with their checksums and with what is computed now."""
    config = read_config(config_file, overrides)
    if pairs < 1:
        raise UserError(f"--pairs must be at least 1, got {pairs}")
    check_model(config)
    with imports():
        from fdpo_fast.cache.verify import verify
    verify(config, pairs, seed)
