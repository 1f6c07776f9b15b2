"""`ncfmkit pretrain`."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from ncfmkit.cli import options as o

if TYPE_CHECKING:
    from ncfmkit.real.arguments import DataArguments


@o.settings_flags("data", "network", "pool", "runtime", "seed")
def pretrain(
    data: Annotated[
        "DataArguments", typer.Argument(help="digits, cifar10, ... or a path; `ncfmkit recipes --data` lists both")
    ],
    *,
    recipe: o.Recipe = None,
    set_: o.Set = None,
    json: o.Json = False,
    overrides: dict[str, Any],
) -> None:
    """Trains the extractor pool alone; `distill` with the same settings then finds it in the cache."""
    from ncfmkit.distillation.pool import pool_line
    from ncfmkit.jobs import pretrain as job
    from ncfmkit.jobs import setup

    pool = job.pretrain(data, setup.make_settings(data.data, recipe, overrides))
    if json:
        o.print_json({"key": pool.key, "accuracies": pool.accuracies, "seconds": pool.seconds})
    else:
        print(pool_line(pool))
