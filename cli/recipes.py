"""`ncfmkit recipes`."""

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

    if name:
        text = config.recipe_text(name)
        if json:
            o.print_json(config.to_dict(config.load_recipe(name)))
        else:
            print(text, end="")
        return
    title, rows = "recipe", {r: config.recipe_description(r) for r in config.recipe_names()}
    if data:
        from ncfmkit.real.sources import SOURCES

        title, rows = "data", {s.name: s.summary for s in SOURCES}
    if networks:
        from ncfmkit.networks import NETWORKS

        title, rows = "network", {n: row.summary for n, row in NETWORKS.items()}
    if json:
        o.print_json(rows)
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(title, "description", box=box.SIMPLE_HEAD)
    for key, text in rows.items():
        table.add_row(key, text)
    Console(highlight=False).print(table)
