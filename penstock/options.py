"""From a dataclass to the options of a command: tyro, with each field's docstring as its help.

config = read_options(Config, __doc__, arguments)
"""

from __future__ import annotations

import inspect
import sys
from dataclasses import fields, is_dataclass
from functools import cache
from itertools import chain
from typing import Annotated, Any, TypeVar, get_type_hints

import docstring_parser
import tyro
from tyro.conf import DisallowNone

Config = TypeVar("Config")


def read_options(
    config: type[Config],
    description: str | None,
    arguments: list[str] | None,
    *,
    default: Config | None = None,
    quick: Config | None = None,
    prog: str | None = None,
) -> Config:
    """What the command line (`sys.argv` where `arguments` is None) says of `config`, over `default` if there is one.

    With --quick among the words, over `quick`.

    Prints and leaves (SystemExit) at `--help` and at options that do not exist or do not fit their type.
    """
    _explain(config)  # type: ignore[arg-type]  # a type can be hashed
    text = "\n\n".join(map(_joined, (description or "").split("\n\n")))
    if quick is not None and "--quick" in (sys.argv[1:] if arguments is None else arguments):
        default = quick
    over: dict[str, Any] = {} if default is None else {"default": default}
    return tyro.cli(config, description=text, args=arguments, config=(DisallowNone,), prog=prog, **over)


@cache
def _explain(config: Any) -> None:
    """Hand the fields' docstrings to tyro, which left to itself breaks them where the source does.

    No "(default: None)" either: where None stands for something, the docstring says for what.
    """
    documented = [docstring_parser.parse_from_object(base).params for base in reversed(config.__mro__[:-1])]
    told = {field.arg_name: field.description or "" for field in chain(*documented)}
    types = get_type_hints(config, include_extras=True)
    for field in fields(config):
        if is_dataclass(types[field.name]):
            _explain(types[field.name])
        unset: dict[str, Any] = {"help_behavior_hint": ""} if field.default is None else {}
        help_text = _joined(inspect.cleandoc(told[field.name]))
        config.__annotations__[field.name] = Annotated[types[field.name], tyro.conf.arg(help=help_text, **unset)]


def _joined(paragraph: str) -> str:
    """A paragraph as one line, to be broken at the terminal's width; commands and tables stay as they are."""
    lines = paragraph.split("\n")
    return paragraph if any(line.startswith((" ", "|")) for line in lines) else " ".join(lines)
