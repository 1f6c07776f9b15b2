"""`ncfmkit pretrain`."""

from typing import Any

from ncfmkit.cli import options as o


@o.settings_flags("data", "network", "pool", "runtime", "seed")
def pretrain(
    data: o.DataArgument,
    *,
    recipe: o.Recipe = None,
    data_root: o.DataRoot = None,
    download: o.Download = False,
    skip_bad: o.SkipBad = False,
    set_: o.Set = None,
    json: o.Json = False,
    overrides: dict[str, Any],
) -> None:
    """Trains the extractor pool alone; `distill` with the same settings then finds it in the cache."""
    from ncfmkit.distillation.pool import pool_line
    from ncfmkit.jobs import pretrain as job
    from ncfmkit.jobs import setup
    from ncfmkit.real.arguments import DataArguments

    arguments = DataArguments(data=data, data_root=data_root, download=download, skip_bad=skip_bad)
    pool = job.pretrain(arguments, setup.make_settings(data, recipe, overrides))
    if json:
        o.print_json({"key": pool.key, "accuracies": pool.accuracies, "seconds": pool.seconds})
    else:
        print(pool_line(pool))
