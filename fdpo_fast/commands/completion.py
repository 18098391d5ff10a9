"""`fdpo completion`: what a shell needs to complete `fdpo`'s words, and the words that it may offer.

A script hands the words so far to `fdpo __complete`, which answers a candidate a line, its meaning behind a tab; where
there is none the shell offers files.
"""

from __future__ import annotations

import re
from argparse import SUPPRESS, Action, ArgumentParser
from collections.abc import Iterator, Mapping

from fdpo_fast.commands.common import Commands

ASK = "__complete"
"""The word by which a script asks for candidates."""

BASH = f"""\
_fdpo() {{
    local line
    COMPREPLY=()
    while IFS= read -r line; do
        COMPREPLY+=("$(printf '%q' "${{line%%$'\\t'*}}")")
    done < <(fdpo {ASK} "${{COMP_WORDS[@]:1:COMP_CWORD}}" 2>/dev/null)
    [[ ${{#COMPREPLY[@]}} == 1 && $COMPREPLY == *= ]] && compopt -o nospace
}}
complete -o default -F _fdpo fdpo"""

ZSH = f"""\
#compdef fdpo
_fdpo() {{
    local line word
    local -a words_ keys
    for line in "${{(@f)$(fdpo {ASK} "${{(@)words[2,CURRENT]}}" 2>/dev/null)}}"; do
        word=${{line%%$'\t'*}}
        case $word in
            '') _files; return ;;
            *=) keys+=("$word") ;;
            *) words_+=("${{word//:/\\:}}:${{line#*$'\t'}}") ;;
        esac
    done
    (( $#words_ )) && _describe fdpo words_
    (( $#keys )) && compadd -S '' -- $keys
}}
compdef _fdpo fdpo"""

FISH = f"""\
function __fdpo
    set -l found (fdpo {ASK} (commandline -opc)[2..-1] (commandline -ct) 2>/dev/null)
    if test (count $found) -gt 0
        printf '%s\\n' $found
    else
        __fish_complete_path (commandline -ct)
    end
end
complete -c fdpo -f -a '(__fdpo)'"""

SCRIPTS = {"bash": BASH, "zsh": ZSH, "fish": FISH}


def add(commands: Commands) -> None:
    """Add the parser of `fdpo completion`."""
    parser = commands.add_parser(
        "completion",
        help="completion of commands, options and keys, for bash, zsh and fish",
        description="Print what completes fdpo's words: "
        'eval "$(fdpo completion bash)" in ~/.bashrc, the same with zsh in ~/.zshrc behind compinit, '
        "fdpo completion fish | source in config.fish.",
    )
    parser.add_argument("shell", choices=SCRIPTS)
    parser.set_defaults(run=run, left="nothing was written")


def run(shell: str) -> None:
    """Print the script of a shell."""
    print(SCRIPTS[shell])


def candidates(fdpo: ArgumentParser, commands: Mapping[str, ArgumentParser], words: list[str]) -> list[str]:
    """Return what the last of the words may become, with its meaning; nothing where it may be a file."""
    *before, begun = (re.sub(r"\\(.)", r"\1", word) for word in words or [""])  # shells hand on what was typed
    name = max((name for name in commands if name.split() == before[: len(name.split())]), key=len, default="")
    found: dict[str, str] = {}
    for longer, parser in commands.items():
        if longer.split()[: len(before)] == before and len(longer.split()) > len(before):
            found.setdefault(longer.split()[len(before)], parser.description or "")
    if name or not before:
        found |= _arguments(commands[name] if name else fdpo, before[len(name.split()) :], begun)
    return [f"{word}\t{meaning}" for word, meaning in found.items() if word.startswith(begun)]


def _arguments(parser: ArgumentParser, before: list[str], begun: str) -> dict[str, str]:
    """Return the options of a parser, or what the one before takes."""
    options = {word: action for action in parser._actions for word in action.option_strings}
    if before and before[-1] in options and options[before[-1]].nargs != 0:
        return dict(_values(options[before[-1]]))
    places = [action for action in parser._actions if not action.option_strings and action.dest != "command"]
    if places and not begun.startswith("-"):
        return {word: meaning for action in places for word, meaning in _values(action)}
    return {word: action.help or "" for word, action in options.items() if action.help != SUPPRESS}


def _values(action: Action) -> Iterator[tuple[str, str]]:
    """Yield what an option takes, where that is known: its choices, or keys of the configuration."""
    for choice in action.choices or ():
        yield str(choice), ""
    if action.dest not in ("overrides", "explain"):
        return
    from fdpo_fast.config.keys import keys
    from fdpo_fast.config.run import Config

    for key in keys(Config):
        if action.dest == "explain" or (key.kind and "[]" not in key.name):
            yield key.name + "=" * (action.dest == "overrides"), key.meaning
