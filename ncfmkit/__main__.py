"""`python -m ncfmkit`: the command line where its console script is not on the path."""

from ncfmkit.cli.entry import run

if __name__ == "__main__":
    run()
