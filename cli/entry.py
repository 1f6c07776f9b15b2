"""The console script, and `python -m ncfmkit`: answers Ctrl-C before anything else is imported."""

import os
from _signal import (  # what `signal` wraps in enums, which take long to import
    SIG_IGN,
    SIGINT,
    SIGTERM,
    getsignal,
    signal,
)


def run() -> None:
    """Runs the command line and exits."""
    for number in (SIGINT, SIGTERM):
        if getsignal(number) != SIG_IGN:
            signal(number, _leave)
    from ncfmkit import interrupts

    interrupts.install()
    from ncfmkit.cli import main

    try:
        main.run()
    except SystemExit as ending:
        interrupts.end(ending.code if isinstance(ending.code, int) else bool(ending.code))
        raise


def _leave(number: int, frame: object) -> None:
    """While :mod:`ncfmkit.interrupts` is imported."""
    os.write(2, b"ncfmkit: interrupted: nothing was written\n")
    os._exit(130)
