"""`ncfmkit pretrain`: only the extractor pool."""

from ncfmkit.config import Settings
from ncfmkit.distillation import pool
from ncfmkit.jobs.setup import resolved
from ncfmkit.progress import notice
from ncfmkit.real.arguments import DataArguments
from ncfmkit.runtime import choose_runtime


def pretrain(arguments: DataArguments, settings: Settings) -> pool.Pool:
    """Only the extractor pool: trains what the cache lacks."""
    runtime = choose_runtime(settings.runtime)
    real = arguments.open(settings)
    settings = resolved(settings, real)
    notice(f"device: {runtime.describe()}")
    return pool.open_pool(real, settings.network, settings.pool, seed=settings.seed, runtime=runtime)
