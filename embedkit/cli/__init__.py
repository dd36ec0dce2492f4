"""The command line: the only place that knows Typer, prints, and turns errors into exit codes.

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

from embedkit.cli import doctor, encode, fit, inspect, plan, printing, report, sweep, verify
from embedkit.cli.machine_errors import refusal_of_machine
from embedkit.cli.parsing import WRONG_USAGE, Command, Group, explained
from embedkit.engines.signals import leave_on_signal
from embedkit.errors import EmbedkitError, ReaderGone, Stopped

app = typer.Typer(
    name="embedkit",
    cls=Group,
    help="Exact embeddings of tables of texts from frozen transformer encoders.",
    # Plain help and plain errors: rich's tracebacks show local variables, and texts are among them.
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
app.command("encode", cls=Command)(encode.encode)
app.command("plan", cls=Command)(plan.plan)
app.command("sweep", cls=Command)(sweep.sweep)
app.command("fit", cls=Command)(fit.fit)
app.command("inspect", cls=Command)(inspect.inspect)
app.command("verify", cls=Command)(verify.verify)
app.command("report", cls=Command)(report.report)
app.command("doctor", cls=Command)(doctor.doctor)


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
    """Carry out a command line.

    Returns:
        The exit code: 0 done, 1 a fault of embedkit, 2 usage, 3 input, 4 model, 5 output, 75 stopped.
    """
    with printing.forgiving_streams():
        code = _ended(lambda: _carry_out(arguments), resumable=_is_resumable(arguments))
        if code:
            # What stdout still holds may not fit where it goes; an error that was told already stays the one.
            with contextlib.suppress(EmbedkitError, ReaderGone):
                sys.stdout.flush()
            return code
        return _ended(sys.stdout.flush)


_TO_STDOUT = (("-o", "-"), ("--output", "-"))


def _is_resumable(arguments: Sequence[str]) -> bool:
    """Whether a command takes --on-exists resume: what is written to stdout cannot be resumed."""
    to_stdout = "--output=-" in arguments or any(pair in _TO_STDOUT for pair in pairwise(arguments))
    return list(arguments[:1]) in (["encode"], ["sweep"]) and not to_stdout


def _carry_out(arguments: Sequence[str]) -> int:
    # Not `app(...)`: that ends the process with 1 at any broken pipe, be it stderr's or a worker's.
    try:
        with command_tree().make_context("embedkit", list(arguments)) as context:
            command_tree().invoke(context)
    except typer.Exit as end:
        return end.exit_code
    return 0


def _ended(action: Callable[[], int | None], *, resumable: bool = False) -> int:  # noqa: PLR0911 - a way out for each kind of failure
    """Do something, and tell how it ended as an exit code."""
    try:
        return action() or 0
    except EmbedkitError as error:
        return _say(error.message, error.hint, error.exit_code)
    except ReaderGone:
        return 0
    except (KeyboardInterrupt, typer.Abort):
        return _say_stopped(resumable=resumable)
    except WRONG_USAGE as wrong:
        if type(wrong).__name__ == "NoArgsIsHelpError":
            print(wrong, file=sys.stderr)
            return 2
        told = explained(wrong)
        return _say(told.message, told.hint, told.exit_code)
    except (MemoryError, OSError, RuntimeError) as fault:
        refused = refusal_of_machine(fault)
        return _say(refused.message, refused.hint, refused.exit_code) if refused else _say_fault(fault)
    # The last net, for panics of Rust's too, which are no Exception: a message might hold row content, a place
    # cannot.
    except BaseException as fault:  # noqa: BLE001
        return _say_fault(fault)


def main() -> NoReturn:
    """The command `embedkit`."""
    printing.hold_descriptors()
    _leave_no_core_files()
    arguments = sys.argv[1:]
    # A command that has work to save has handlers of its own while it runs.
    leave_on_signal(lambda: _say_stopped(resumable=_is_resumable(arguments)))
    code = run(arguments)
    # A reader thread may still wait for stdin, and taking torch down costs time that nobody gains from.
    os._exit(code)


def _leave_no_core_files() -> None:
    """A core file is what was in memory, texts too."""
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))


def _say_fault(fault: BaseException) -> int:
    frame = traceback.extract_tb(fault.__traceback__)[-1]
    place = f"{Path(frame.filename).name}, line {frame.lineno}, in {frame.name}"
    return _say(
        f"a fault of embedkit: {type(fault).__name__} at {place}",
        "please report this line with your versions (`embedkit doctor`)",
        1,
    )


def _say_stopped(*, resumable: bool) -> int:
    hint = "the same command with --on-exists resume goes on" if resumable else "run the command again"
    return _say("stopped by a signal", hint, Stopped.exit_code)


def _say(message: str, hint: str, code: int) -> int:
    print(f"error: {message}\nhint: {hint}", file=sys.stderr)
    return code
