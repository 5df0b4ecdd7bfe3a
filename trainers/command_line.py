"""The reading of a command's options, which all commands share."""

import argparse
import sys
from collections.abc import Sequence
from typing import Any


class CommandParser(argparse.ArgumentParser):
    """Takes each option with hyphens or underscores, --max-steps as --max_steps; help shows one of the two.

    transformers and accelerate write their options with underscores, most programs of a shell with hyphens, and nobody
    remembers which command has which.
    """

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:
        args = sys.argv[1:] if args is None else args
        return super().parse_known_args([self._as_declared(argument) for argument in args], namespace)

    def _as_declared(self, argument: str) -> str:
        name, equals, value = argument.partition("=")
        if name.startswith("--") and name not in self._option_string_actions:
            for other in ("--" + name[2:].replace("_", "-"), "--" + name[2:].replace("-", "_")):
                if other in self._option_string_actions:
                    return other + equals + value
        return argument
