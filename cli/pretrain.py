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
    from ncfmkit.jobs import pretrain as job
    from ncfmkit.jobs.setup import make_settings
    from ncfmkit.real.arguments import DataArguments
    from ncfmkit.runtime import choose_runtime

    arguments = DataArguments(data=data, data_root=data_root, download=download, skip_bad=skip_bad)
    settings = make_settings(data, recipe, overrides)
    runtime = choose_runtime(settings.runtime)
    pool = job.pretrain(arguments.open(settings), settings, runtime)
    if json:
        o.print_json({"key": pool.key, "accuracies": pool.accuracies, "seconds": pool.seconds})
    else:
        print(pool.describe())
