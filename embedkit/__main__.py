"""The entry point of `embedkit` and `python -m embedkit`."""

from __future__ import annotations

import os
import sys
from typing import NoReturn

from embedkit.engines.signals import leave_on_signal
from embedkit.errors import Stopped


def main() -> NoReturn:
    """Runs the command line. A signal ends it with two lines, even while its modules are imported."""
    try:
        leave_on_signal(_print_stopped)
        from embedkit.cli import main as run_command_line

        run_command_line()
    except KeyboardInterrupt:
        _print_stopped()
        os._exit(Stopped.exit_code)


def _print_stopped() -> None:
    if sys.stderr is not None:
        sys.stderr.write("error: stopped by a signal\nhint: run the command again\n")
        sys.stderr.flush()


if __name__ == "__main__":
    main()
