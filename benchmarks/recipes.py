"""`python -m benchmarks.recipes RUN ...`: what finished runs of recipes gave, for `ncfmkit recipes`.

A run counts where its settings are the recipe's own, apart from the seed, the students per score and the machine, and
where it trained its own pool. It replaces the recipe's earlier measurement. A run by another recipe and flags counts
too, where its settings are those of `--recipe`.
"""

import argparse
import dataclasses
import datetime
import json
import sys
from pathlib import Path

from benchmarks.checkout import ROOT, commit
from ncfmkit.config import Settings, from_dict, load_recipe
from ncfmkit.errors import UserError
from ncfmkit.measured import FILE, Measurement, Measurements, recipe_digest
from ncfmkit.networks import resolve_network
from ncfmkit.run import RunDirectory
from ncfmkit.sets import set_file

PLACE = ROOT / "ncfmkit" / "recipes" / FILE


def measured(path: Path, revision: str, recipe: str | None = None) -> Measurement:
    """The measurement that a run directory holds, of its own recipe or of another one.

    Raises:
        UserError: the run is not finished, has no score, or has other settings than its recipe.
    """
    run = RunDirectory.open(path)
    info, scores = run.info(), run.scores()
    settings = from_dict(info.settings)
    settings = dataclasses.replace(settings, recipe=recipe or settings.recipe)
    if info.status != "done" or scores is None or info.pool is None or info.timings is None:
        raise UserError(f"{path} is not finished, or was not scored")
    other = _differences(settings, info.data.size)
    if other:
        raise UserError(f"{path} has other settings than the recipe {settings.recipe}: {', '.join(other)}")
    (row, *_) = scores.rows
    return Measurement(
        recipe=settings.recipe,
        recipe_sha256=recipe_digest(settings.recipe),
        mean=row.last.mean,
        std=row.last.std,
        n=row.n,
        best=row.best.mean,
        soft_labels=set_file.load(path).soft_labels is not None,
        seed=settings.seed,
        pool_seconds=info.pool.seconds,
        distill_seconds=info.timings.distill_seconds,
        student_seconds=row.seconds / row.n,
        device=f"{scores.device}, {scores.precision}",
        commit=revision,
        date=datetime.date.today().isoformat(),
    )


def _differences(settings: Settings, size: int) -> list[str]:
    """Sections in which a run's settings are not its recipe's."""
    recipe = load_recipe(settings.recipe)
    free = {name: getattr(settings.student, name) for name in ("repeats", "evaluations")}
    recipe = dataclasses.replace(
        recipe,
        network=resolve_network(recipe.network, size),
        student=dataclasses.replace(recipe.student, **free),
        seed=settings.seed,
        runtime=settings.runtime,
    )
    return [f.name for f in dataclasses.fields(Settings) if getattr(settings, f.name) != getattr(recipe, f.name)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run directory")
    parser.add_argument("--commit", help="the commit that made the runs; default: that of the checkout")
    parser.add_argument("--recipe", help="the recipe whose settings they have; default: the one they were started with")
    arguments = parser.parse_args()
    revision = arguments.commit or commit()
    if revision is None:
        parser.error("--commit: no git repository here")
    try:
        found = [measured(path, revision, arguments.recipe) for path in arguments.runs]
    except UserError as error:
        sys.exit(str(error))
    kept = Measurements.read(PLACE).recipes if PLACE.exists() else {}
    content = Measurements(recipes={**kept, **{m.recipe: m for m in found}}).to_dict()
    PLACE.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    for m in found:
        print(f"{m.recipe}: {100 * m.mean:.1f} ± {100 * m.std:.1f} (n = {m.n})")


if __name__ == "__main__":
    main()
