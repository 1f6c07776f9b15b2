"""The console script, and `python -m ncfmkit`: answers Ctrl-C before anything else is imported."""

from ncfmkit import interrupts


def run() -> None:
    """Runs the command line and exits."""
    interrupts.install()
    from ncfmkit.cli import main

    try:
        main.run()
    except SystemExit as ending:
        interrupts.end(ending.code if isinstance(ending.code, int) else bool(ending.code))
        raise
