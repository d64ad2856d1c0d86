"""The option `--language` of commands whose prompts name languages that cpo_ds does not know."""

from __future__ import annotations

import argparse

from cpo_ds.data.prompts import with_names
from cpo_ds.errors import UserError

LANGUAGE = "--language"


def add_language_option(parser: argparse._ActionsContainer) -> None:
    """Declares the option, which may be repeated."""
    parser.add_argument(
        LANGUAGE,
        action="append",
        dest="languages",
        metavar="CODE=NAME",
        help="the name of a language for prompts, besides the 50 known ones: bn=Bengali; repeat "
        "the option for more",
    )


def language_names(arguments: argparse.Namespace) -> dict[str, str]:
    """The names given by the option, by code. Raises `UserError` for one that is malformed."""
    names: dict[str, str] = {}
    for given in arguments.languages or []:
        code, equals, name = given.partition("=")
        if not equals:
            raise UserError(f"{LANGUAGE} {given}: write CODE=NAME, like bn=Bengali.")
        if code in names:
            raise UserError(f"{LANGUAGE} {given}: {code} has a name already; give it once.")
        names[code] = name
    return names


def all_languages(arguments: argparse.Namespace) -> dict[str, str]:
    """The known names and those given by the option. Raises `UserError` for a malformed one."""
    return with_names(language_names(arguments), LANGUAGE)
