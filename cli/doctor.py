"""`ncfmkit doctor`."""

from ncfmkit.cli import options as o


def doctor(*, json: o.Json = False) -> None:
    """Says what this machine offers: device, precision, compilation, caches, versions of what matters."""
    from ncfmkit.doctor import examine

    findings = examine()
    if json:
        o.print_json(findings)
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, show_header=False)
    for key, value in findings.items():
        table.add_row(key, str(value))
    Console(highlight=False).print(table)
