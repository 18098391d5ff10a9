"""`fdpo label`: a page on which a person says which of two images is better."""

from __future__ import annotations

from argparse import ArgumentParser, ArgumentTypeError
from pathlib import Path

from fdpo_fast.commands.common import Commands, add_config, imports, read_config
from fdpo_fast.config.errors import UserError

CHOOSE = ("random", "disagreement", "unsure")
_LONGEST = 80


def add(commands: Commands) -> None:
    """Add the parser of `fdpo label`."""
    parser = commands.add_parser(
        "label",
        help="a page on which a person says which of two images is better",
        description="Show pairs of images to a person, and write the answers into a file of labels.",
    )
    parser.add_argument(
        "source", nargs="?", metavar="SOURCE", help="pairs as `data.source` takes them (default: that of CONFIG)"
    )
    parser.add_argument(
        "--compare", nargs=2, type=Path, metavar=("A", "B"), help="instead: two folders of `fdpo sample`, blindly"
    )
    parser.add_argument("--as", dest="by", type=judge, required=True, metavar="NAME", help="who judges")
    parser.add_argument(
        "--labels", type=Path, metavar="FILE", help="where the answers go (default: data.labels, or beside the source)"
    )
    _add_order(parser)
    add_config(parser, required=False)
    parser.add_argument("--seed", type=int, default=0, help="of the order and the sides (default 0)")
    parser.add_argument("--port", type=port, default=0, help="of the page on 127.0.0.1 (default: any that is free)")
    parser.add_argument("--no-browser", dest="browse", action="store_false", help="print the address alone")
    parser.set_defaults(run=run, left="every answer is in the file, and the same command goes on behind them")


def _add_order(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--choose",
        choices=CHOOSE,
        default=CHOOSE[0],
        help="which pairs come first: any, those that scorers disagree about, or of which a policy is least sure",
    )
    parser.add_argument("--scores", type=Path, metavar="FILE", help="labels of `fdpo relabel` (default: --labels)")
    parser.add_argument(
        "--policy", type=Path, metavar="FOLDER", help="whose margins: a finished run, or an exported pipeline"
    )
    parser.add_argument(
        "--margins", type=Path, metavar="FILE", help="margins of the pairs: read where it exists, else written"
    )
    parser.add_argument("--pairs", type=int, default=1024, help="whose margins are measured, at most (default 1024)")


def judge(text: str) -> str:
    """The name of who judges; ArgumentTypeError where it is none that a line can have."""
    name = " ".join(text.split())
    if not name or not name.isprintable() or len(name) > _LONGEST:
        raise ArgumentTypeError(f"'{text:.{_LONGEST}}' is no name of up to {_LONGEST} letters")
    return name


def port(text: str) -> int:
    """The number of a port; ArgumentTypeError where there is none such."""
    if not text.isdecimal() or not int(text) < 2**16:
        raise ArgumentTypeError(f"'{text}' is no port: it is a number from 1 to 65535, or 0 for any")
    return int(text)


def run(
    source: str | None,
    compare: list[Path] | None,
    by: str,
    labels: Path | None,
    choose: str,
    scores: Path | None,
    policy: Path | None,
    margins: Path | None,
    pairs: int,
    config_file: str | None,
    overrides: list[str],
    seed: int,
    port: int,
    browse: bool,
) -> None:
    """Open the page on pairs of a source, or on two models' images."""
    if (source is None and config_file is None) == (compare is None) or (source and compare):
        raise UserError("name a SOURCE of pairs, or a --config that has one, or two folders by --compare")
    if compare and (choose != CHOOSE[0] or config_file):
        raise UserError("--compare asks captions at random, and takes neither --choose nor --config")
    config = read_config(config_file, overrides) if config_file else None
    if config and source:
        config = config.replace({"data.source": source})
    if choose == "unsure" and (config is None or policy is None) and margins is None:
        raise UserError("--choose unsure takes a --config and the --policy that is unsure, or a file of its --margins")
    with imports():
        from fdpo_fast.label.choose import Choice, order
        from fdpo_fast.label.questions import OfSource, Questions, beside, section
        from fdpo_fast.label.run import Desk, label

    questions: Questions
    if compare:
        with imports():
            from fdpo_fast.label.galleries import OfGalleries, beside_galleries
        first, second = (folder.expanduser() for folder in compare)
        questions, labels = OfGalleries(first, second, seed), labels or beside_galleries(first, second)
    else:
        data = section(source, config)
        questions, labels = OfSource(data), labels or beside(source, data)
    choice = Choice(seed, config, scores, policy, margins, pairs)
    label(questions, order(choose, choice), Desk(by, labels.expanduser().absolute(), seed, port, browse))
