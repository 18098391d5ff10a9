"""The command line: `fdpo COMMAND --config FILE`."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Callable, Collection
from io import TextIOWrapper
from itertools import takewhile
from typing import Any

import fdpo_fast
from fdpo_fast import faults, signals
from fdpo_fast.commands import (
    cache,
    calibrate,
    compare,
    completion,
    config,
    data,
    demo,
    evaluate,
    init,
    label,
    pairs,
    plan,
    relabel,
    report,
    rounds,
    sample,
    train,
    verify,
)
from fdpo_fast.commands.common import MissingPackageError
from fdpo_fast.config.errors import UserError, did_you_mean

COMMANDS = (
    init,
    config,
    pairs,
    data,
    relabel,
    label,
    plan,
    cache,
    train,
    calibrate,
    sample,
    evaluate,
    compare,
    rounds,
    report,
    verify,
    demo,
    completion,
)
"""A module each, in the order in which they are used; its `add` makes the parsers and says what they run."""
EXTRAS = dict.fromkeys(("starlette", "uvicorn"), "train,eval,label")
"""The extras that bring a package, where not the usual ones do."""


class Parser(argparse.ArgumentParser):
    """A parser that refuses unknown arguments itself, so that the usage shown is the command's and not `fdpo`'s."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse as argparse does, but end the process where an option is mistyped, or an argument is left over."""
        self._refuse_mistyped(args)
        namespace, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return namespace, unknown

    def _refuse_mistyped(self, words: list[str]) -> None:
        """End the process at an option that is nearly one of ours: argparse would first ask for what is missing."""
        known = self._option_string_actions
        own = takewhile(lambda word: word.startswith("-"), words) if self._subparsers else words
        for word in takewhile(lambda word: word != "--", own):
            name = word.partition("=")[0]
            unknown = name.startswith("--") and not any(option.startswith(name) for option in known)
            if unknown and (nearest := did_you_mean(name, known)):
                self.error(f"unrecognized arguments: {word}{nearest}")


class Version(argparse.Action):
    """The option that prints the version: looked up when it is asked for, as that takes a while."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        """Print it, and end the process."""
        print(f"fdpo_fast {fdpo_fast.__version__}")
        parser.exit()


def _parsers() -> tuple[Parser, dict[str, argparse.ArgumentParser]]:
    """Return the parser of `fdpo`, and the commands' parsers under it."""
    parser = Parser(prog="fdpo", description="Preference alignment of diffusion models under any f-divergence.")
    parser.add_argument(
        "--version", action=Version, nargs=0, default=argparse.SUPPRESS, help="print the version and exit"
    )
    commands = parser.add_subparsers(title="commands", dest="command", metavar="COMMAND", required=True)
    for module in COMMANDS:
        module.add(commands)
    return parser, dict(commands.choices)


def parse(words: list[str]) -> tuple[str, Callable[..., None], dict[str, Any]]:
    """Return the command that the words name, what runs it, and the options to run it with."""
    parser, commands = _parsers()
    options = vars(parser.parse_args(_name_first(words, commands)))
    options.pop("local_rank", None)  # the environment says so, too
    return options.pop("command"), options.pop("run"), options


def main(arguments: list[str] | None = None) -> None:
    """Run the command that the arguments name, by default those of the process.

    A mistake in the input, a package that is missing, what the machine refuses, or a signal to stop ends the process
    with one sentence; a slip of ours with its traceback.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # a file's name may have letters that a terminal has not
            stream.reconfigure(errors="backslashreplace")
    words = sys.argv[1:] if arguments is None else arguments
    if words[:1] == [completion.ASK]:
        parser, commands = _parsers()
        for candidate in completion.candidates(parser, commands, words[1:]):
            print(candidate)
        return
    name, run, options = parse(words)
    left = options.pop("left")
    signals.follow()
    try:
        with signals.raised():
            run(**options)
            sys.stdout.flush()
    except UserError as error:
        sys.exit(f"fdpo {name}: {error}")
    except MissingPackageError as error:
        extras = EXTRAS.get(str(error), "train,eval")
        sys.exit(f"fdpo {name} needs the package '{error}': pip install 'fdpo_fast[{extras}]'")
    except signals.Stopped as stop:
        if signals.speaks():
            print("\n" * sys.stderr.isatty() + f"fdpo {name}: {str(stop) or f'stopped; {left}'}", file=sys.stderr)
        signals.ignore()
        sys.exit(stop.status)
    except BrokenPipeError:  # as of `fdpo plan | head`
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  # the interpreter flushes it at its end
        sys.exit(128 + signal.SIGPIPE)
    except Exception as error:
        if refused := faults.of_machine(error):
            sys.exit(f"fdpo {name}: {refused}; {left}")
        faults.ask_to_report(f"fdpo {name}", fdpo_fast.__version__)
        raise


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
    spoken = list(takewhile(lambda word: not word.startswith("-"), words[:2]))
    if spoken and (spoken[0] not in names or (longer and len(spoken) == 2)):
        said = " ".join(spoken)
        if nearest := did_you_mean(said, names) or did_you_mean(spoken[0], names):
            sys.exit(f"fdpo: there is no command '{said}'{nearest}")
    return words


if __name__ == "__main__":
    main()
