"""The command `embedkit`, which is `python -m embedkit`, too."""

from __future__ import annotations

import os
import sys
from typing import NoReturn

from embedkit.engines.signals import leave_on_signal
from embedkit.errors import Stopped


def main() -> NoReturn:
    """Carry out the command line. While its modules are imported, too, a signal ends it in two lines."""
    try:
        leave_on_signal(_say_stopped)
        from embedkit.cli import main as carry_out

        carry_out()
    except KeyboardInterrupt:
        _say_stopped()
        os._exit(Stopped.exit_code)


def _say_stopped() -> None:
    if sys.stderr is not None:
        sys.stderr.write("error: stopped by a signal\nhint: run the command again\n")
        sys.stderr.flush()


if __name__ == "__main__":
    main()
