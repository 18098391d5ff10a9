"""The command line: `fdpo COMMAND --config FILE`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Collection
from typing import Any

from fdpo_fast import signals
from fdpo_fast.commands import cache, calibrate, compare, data, demo, evaluate, plan, report, sample, train
from fdpo_fast.commands.common import MissingPackageError
from fdpo_fast.config.errors import UserError

COMMANDS = (train, cache, data, plan, calibrate, sample, evaluate, compare, report, demo)
"""A module each, in the order in which they are used; its `add` makes the parsers and says what they run."""


class Parser(argparse.ArgumentParser):
    """A parser that refuses unknown arguments itself, so that the usage shown is the command's and not `fdpo`'s."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse as argparse does, but end the process where an argument is left over."""
        namespace, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return namespace, unknown


def parse(words: list[str]) -> tuple[str, Callable[..., None], dict[str, Any]]:
    """Return the command that the words name, what runs it, and the options to run it with."""
    parser = Parser(prog="fdpo", description="Preference alignment of diffusion models under any f-divergence.")
    commands = parser.add_subparsers(title="commands", dest="command", metavar="COMMAND", required=True)
    for module in COMMANDS:
        module.add(commands)
    options = vars(parser.parse_args(_name_first(words, commands.choices)))
    options.pop("local_rank", None)  # the environment says so, too
    return options.pop("command"), options.pop("run"), options


def main(arguments: list[str] | None = None) -> None:
    """Run the command that the arguments name, by default those of the process.

    A mistake in the input, a package that is missing, or a signal to stop ends the process with one sentence.
    """
    name, run, options = parse(sys.argv[1:] if arguments is None else arguments)
    left = options.pop("left")
    try:
        with signals.raised():
            run(**options)
    except UserError as error:
        sys.exit(f"fdpo {name}: {error}")
    except MissingPackageError as error:
        sys.exit(f"fdpo {name} needs the package '{error}': pip install 'fdpo_fast[train,eval]'")
    except signals.Stopped as stop:
        if signals.speaks():
            print("\n" * sys.stderr.isatty() + f"fdpo {name}: {str(stop) or f'stopped; {left}'}", file=sys.stderr)
        signals.ignore()
        sys.exit(stop.status)


def _name_first(words: list[str], names: Collection[str]) -> list[str]:
    """Put the command's name first, its two words joined if it has two, as argparse knows it."""
    ranks = [word for word in words[:1] if word.startswith("--local_rank=")]  # DeepSpeed's launcher puts it first
    words = [*words[len(ranks) :], *ranks]
    if (name := " ".join(words[:2])) in names:
        return [name, *words[2:]]
    longer = [name for name in names if words and name.startswith(f"{words[0]} ")]
    if longer and words[0] not in names:
        if words[1:2] in (["-h"], ["--help"]):
            return [longer[0], "--help"]
        sys.exit(f"fdpo {words[0]}: the command is `fdpo {longer[0]} --config FILE`")
    return words


if __name__ == "__main__":
    main()
