"""The command line: one file per command. It installs as ``ncfmkit.cli``."""

if __name__ != "ncfmkit.cli":
    raise ImportError("import ncfmkit.cli: the folder cli/ is only where the package ncfmkit.cli is kept")
