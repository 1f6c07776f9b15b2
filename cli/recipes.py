"""`ncfmkit recipes`."""

from collections.abc import Sequence
from typing import Annotated

import typer

from ncfmkit.cli import options as o


def recipes(
    name: Annotated[str | None, typer.Argument(help="recipe to print", autocompletion=o.complete_recipe)] = None,
    *,
    data: Annotated[bool, typer.Option("--data", help="list the kinds of real data")] = False,
    networks: Annotated[bool, typer.Option("--networks", help="list the networks")] = False,
    json: o.Json = False,
) -> None:
    """Lists recipes, kinds of data or networks, or prints a recipe."""
    from ncfmkit import config
    from ncfmkit.errors import UserError

    if [name is not None, data, networks].count(True) > 1:
        raise UserError("expected the name of a recipe, --data or --networks, got several of these: keep one")
    if name:
        text = config.recipe_text(name)
        if json:
            o.print_json(config.to_dict(config.load_recipe(name)))
        else:
            print(text, end="")
        return
    if not data and not networks:
        _list_recipes(json)
        return
    if data:
        from ncfmkit.real.sources import SOURCES

        title, rows = "data", {s.name: s.summary for s in SOURCES}
    else:
        from ncfmkit.networks import NETWORKS

        title, rows = "network", {n: row.summary for n, row in NETWORKS.items()}
    if json:
        o.print_json(rows)
        return
    _print_table([title, "description"], list(rows.items()))


def _list_recipes(json: bool) -> None:
    """What each is, and what it was measured to give."""
    from ncfmkit import config
    from ncfmkit.measured import measurements

    found = measurements()
    described = {name: config.recipe_description(name) for name in config.recipe_names()}
    if json:
        rows = {
            name: {"description": text, "measured": found[name].to_dict() if name in found else None}
            for name, text in described.items()
        }
        o.print_json(rows)
        return
    _print_table(
        ["recipe", "description", "measured"],
        [(name, text, found[name].describe() if name in found else "not yet") for name, text in described.items()],
    )


def _print_table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(*titles, box=box.SIMPLE_HEAD)
    for cells in rows:
        table.add_row(*cells)
    Console(highlight=False).print(table)
