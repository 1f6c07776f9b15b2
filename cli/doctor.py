"""`ncfmkit doctor`."""

from ncfmkit.cli import options as o


def doctor(*, json: o.Json = False) -> None:
    """Shows devices, precisions, ONNX providers, cache and versions."""
    from ncfmkit.jobs.doctor import examine

    findings = examine()
    if json:
        o.print_json(findings)
        return
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, show_header=False)
    table.add_column()
    table.add_column(overflow="fold")
    for key, value in findings.items():
        table.add_row(key, escape(str(value)))
    Console(highlight=False).print(table)
