"""`embedkit completion`: prints the script that completes commands, options and their values in a shell."""

from __future__ import annotations

import os
from typing import Any

from embedkit.cli.options import argument, takes
from embedkit.config import one_of

#: The scripts call `embedkit` with it to ask for completions.
_VARIABLE = "_EMBEDKIT_COMPLETE"


@takes(argument("shell", str, "SHELL", "bash, zsh or fish."))
def completion(*, shell: str) -> None:
    """Print a script for completion in a shell.

    It completes commands, options, names of models and poolings, and files.

    Example: eval "$(embedkit completion bash)"
    """
    one_of("SHELL", shell, ("bash", "zsh", "fish"))
    print(_typer().get_completion_script(prog_name="embedkit", complete_var=_VARIABLE, shell=shell))


def is_completion() -> bool:
    """Checks whether a shell's script has called this process, for the completions of a command line."""
    return bool(os.environ.get(_VARIABLE))


def complete(commands: Any) -> int:
    """Prints the completions of the command line that the script has put into the environment."""
    completions = _typer()
    completions.completion_init()
    return int(completions.shell_complete(commands, {}, "embedkit", _VARIABLE, os.environ[_VARIABLE]))


def _typer() -> Any:
    # Its functions are not in the interface that Typer declares.
    from typer import completion as functions

    return functions
