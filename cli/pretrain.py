"""`ncfmkit pretrain`."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from ncfmkit.cli import options as o

if TYPE_CHECKING:
    from ncfmkit.real.arguments import DataArguments


@o.settings_flags(*o.READS["pretrain"])
def pretrain(
    data: Annotated[
        "DataArguments",
        typer.Argument(
            help="digits, cifar10, ... or a path; `ncfmkit recipes --data` lists what it can be",
            autocompletion=o.complete_data,
        ),
    ],
    *,
    recipe: o.Recipe = None,
    set_: o.Set = None,
    dry_run: o.DryRun = False,
    json: o.Json = False,
    overrides: dict[str, Any],
) -> None:
    """Trains only the extractor pool, for later runs of `distill`.

    `distill` with the same settings finds the pool in the cache.
    """
    from ncfmkit.jobs import pretrain as job
    from ncfmkit.jobs.setup import make_settings, open_data
    from ncfmkit.progress import notice
    from ncfmkit.runtime import choose_runtime

    settings = make_settings(data.data, recipe, overrides)
    runtime = choose_runtime(settings.runtime)
    real = open_data(data, settings)
    if dry_run:
        notice(f"device: {runtime.describe()}")
        o.show_estimate(job.estimate(real, settings, runtime), json)
        return
    pool = job.pretrain(real, settings, runtime)
    if json:
        o.print_json({"key": pool.key, "accuracies": pool.accuracies, "seconds": pool.seconds})
    else:
        print(pool.describe())
