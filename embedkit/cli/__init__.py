"""The command line: the only package that uses Typer, prints, and converts errors into exit codes.

`main` is the command `embedkit`. Nothing here imports torch.
"""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn

import typer

from embedkit.cli import completion, diff, doctor, encode, fit, inspect, plan, printing, report, sweep, verify
from embedkit.cli.parsing import WRONG_USAGE, Command, Group, as_usage_error
from embedkit.engines.signals import leave_on_signal
from embedkit.errors import EmbedkitError, ReaderGone, Stopped
from embedkit.storage.machine_errors import as_machine_error

app = typer.Typer(
    name="embedkit",
    cls=Group,
    help="Exact embeddings of tables of texts from frozen transformer encoders.",
    # Not rich: its tracebacks show local variables, which hold texts.
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
#: The commands by the sections of `--help`.
_COMMANDS: dict[str, tuple[Callable[..., None], ...]] = {
    "Embed": (encode.encode, plan.plan),
    "Compare and train on labels": (sweep.sweep, fit.fit),
    "Look at outputs": (inspect.inspect, verify.verify, diff.diff, report.report),
    "Set up": (doctor.doctor, completion.completion),
}
for _section, _commands in _COMMANDS.items():
    for _command in _commands:
        app.command(_command.__name__, cls=Command, rich_help_panel=_section)(_command)


@app.callback(invoke_without_command=True)
def _root(
    *, version: bool = typer.Option(False, "--version", help="Show the version and exit.", is_eager=True)
) -> None:
    if version:
        import embedkit

        print(f"embedkit {embedkit.__version__}")
        raise typer.Exit


@cache
def command_tree() -> Any:
    """Returns `embedkit` with its commands and their options, as Typer builds them from the functions."""
    return typer.main.get_command(app)


def run(arguments: Sequence[str]) -> int:
    """Runs a command line.

    Returns:
        The exit code: 0 done, 1 internal error, 2 usage, 3 input, 4 model, 5 output, 75 stopped.
    """
    with printing.safe_streams():
        code = _exit_code_of(lambda: _invoke(arguments), resumable=_is_resumable(arguments))
        if code:
            # Errors while flushing stdout do not replace the one that was printed.
            with contextlib.suppress(EmbedkitError, ReaderGone):
                sys.stdout.flush()
            return code
        return _exit_code_of(sys.stdout.flush)


_TO_STDOUT = (("-o", "-"), ("--output", "-"))


def _is_resumable(arguments: Sequence[str]) -> bool:
    """Checks whether --on-exists resume can continue the command: what is written to stdout cannot be resumed."""
    to_stdout = "--output=-" in arguments or any(pair in _TO_STDOUT for pair in pairwise(arguments))
    return list(arguments[:1]) in (["encode"], ["sweep"]) and not to_stdout


def _invoke(arguments: Sequence[str]) -> int:
    if completion.is_completion():
        return completion.complete(command_tree())
    # Not `app(...)`: that ends the process with 1 at any broken pipe, be it stderr's or a worker's.
    try:
        with command_tree().make_context("embedkit", list(arguments)) as context:
            command_tree().invoke(context)
    except typer.Exit as end:
        return end.exit_code
    return 0


def _exit_code_of(action: Callable[[], int | None], *, resumable: bool = False) -> int:  # noqa: PLR0911 - one for each kind of failure
    """Runs an action, prints its error if it fails, and returns the exit code."""
    try:
        return action() or 0
    except EmbedkitError as error:
        return _print_error(error)
    except ReaderGone:
        return 0
    except (KeyboardInterrupt, typer.Abort):
        return _print_stopped(resumable=resumable)
    except WRONG_USAGE as wrong:
        if type(wrong).__name__ == "NoArgsIsHelpError":
            print(wrong, file=sys.stderr)
            return 2
        return _print_error(as_usage_error(wrong))
    except (MemoryError, OSError, RuntimeError) as fault:
        known = as_machine_error(fault)
        return _print_error(known) if known else _print_internal_error(fault)
    # Also for panics in Rust, which are no Exception. A message may hold row content, a position cannot.
    except BaseException as fault:  # noqa: BLE001
        return _print_internal_error(fault)


def main() -> NoReturn:
    """Runs the command `embedkit`."""
    printing.hold_descriptors()
    _disable_core_files()
    arguments = sys.argv[1:]
    # Commands that have work to save install their own handlers while they run.
    leave_on_signal(lambda: _print_stopped(resumable=_is_resumable(arguments)))
    code = run(arguments)
    # A reader thread may still wait for stdin, and unloading torch takes time.
    os._exit(code)


def _disable_core_files() -> None:
    """Keeps the system from writing core files, which hold the memory of the process, texts included."""
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))


def _print_internal_error(fault: BaseException) -> int:
    frame = traceback.extract_tb(fault.__traceback__)[-1]
    position = f"{Path(frame.filename).name}, line {frame.lineno}, in {frame.name}"
    message = f"internal error of embedkit: {type(fault).__name__} at {position}"
    return _print_error(
        EmbedkitError(message, hint="please report this line with the output of `embedkit doctor`")
    )


def _print_stopped(*, resumable: bool) -> int:
    hint = "run the same command with --on-exists resume to continue" if resumable else "run the command again"
    return _print_error(Stopped("stopped by a signal", hint=hint))


def _print_error(error: EmbedkitError) -> int:
    print(f"error: {error.message}\nhint: {error.hint}", file=sys.stderr)
    return error.exit_code
