"""The command line: the only place that knows Typer, prints, and turns errors into exit codes.

`main` is the command `embedkit`. Nothing here imports torch.
"""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import typer

from embedkit.cli import doctor, encode, fit, inspect, plan, report, sweep, verify
from embedkit.errors import EmbedkitError

app = typer.Typer(
    name="embedkit",
    help="Exact embeddings of tables of texts from frozen transformer encoders.",
    # Plain help and plain errors: rich's tracebacks show local variables, and texts are among them.
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
app.command("encode")(encode.encode)
app.command("plan")(plan.plan)
app.command("sweep")(sweep.sweep)
app.command("fit")(fit.fit)
app.command("inspect")(inspect.inspect)
app.command("verify")(verify.verify)
app.command("report")(report.report)
app.command("doctor")(doctor.doctor)


@app.callback(invoke_without_command=True)
def _root(
    *, version: bool = typer.Option(False, "--version", help="Show the version and exit.", is_eager=True)
) -> None:
    if version:
        import embedkit

        print(f"embedkit {embedkit.__version__}")
        raise typer.Exit


#: What Typer raises for a wrong command line, whichever click it carries.
_WRONG_USAGE: type[Exception] = typer.BadParameter.__mro__[2]


def run(arguments: Sequence[str]) -> int:  # noqa: PLR0911 - a way out for each kind of failure
    """Carry out a command line.

    Returns:
        The exit code: 0 done, 1 a fault of embedkit, 2 usage, 3 input, 4 model, 5 output, 75 stopped.
    """
    try:
        code = app(list(arguments), standalone_mode=False)
    except EmbedkitError as error:
        return _say(error.message, error.hint, error.exit_code)
    except (BrokenPipeError, SystemExit):
        # Whoever read our output has had enough, as `head` does; that is no failure. Typer makes a SystemExit
        # of a broken pipe, and of nothing else here.
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115 - nothing left to flush
        return 0
    except (KeyboardInterrupt, typer.Abort):
        return _say("stopped", "the same command with --on-exists resume goes on", 75)
    except _WRONG_USAGE as wrong:
        if type(wrong).__name__ == "NoArgsIsHelpError":
            print(wrong, file=sys.stderr)
            return 2
        told = wrong.format_message() if hasattr(wrong, "format_message") else str(wrong)
        sentence = " ".join(told.split()).rstrip(".")
        return _say(sentence, "`embedkit --help` and `embedkit COMMAND --help` list what there is", 2)
    # The last net, for panics of Rust's too, which are no Exception: a message might hold row content, a place
    # cannot.
    except BaseException as fault:  # noqa: BLE001
        frame = traceback.extract_tb(fault.__traceback__)[-1]
        place = f"{Path(frame.filename).name}, line {frame.lineno}, in {frame.name}"
        return _say(
            f"a fault of embedkit: {type(fault).__name__} at {place}",
            "please report this line with your versions (`embedkit doctor`)",
            1,
        )
    return code if isinstance(code, int) else 0


def main() -> NoReturn:
    """The command `embedkit`."""
    _leave_no_core_files()
    code = run(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    # A reader thread may still wait for stdin, and taking torch down costs time that nobody gains from.
    os._exit(code)


def _leave_no_core_files() -> None:
    """A core file is what was in memory, texts too."""
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))


def _say(message: str, hint: str, code: int) -> int:
    print(f"error: {message}\nhint: {hint}", file=sys.stderr)
    return code
