"""`ncfmkit pretrain`: only the extractor pool."""

from ncfmkit.config import Settings
from ncfmkit.distillation.pool import Pool, open_pool
from ncfmkit.jobs.setup import resolve
from ncfmkit.progress import notice
from ncfmkit.real.store import RealData
from ncfmkit.runtime import Runtime


def pretrain(real: RealData, settings: Settings, runtime: Runtime) -> Pool:
    """Only the extractor pool: trains what the cache lacks."""
    settings = resolve(settings, real)
    notice(f"device: {runtime.describe()}")
    return open_pool(real, settings.network, settings.pool, seed=settings.seed, runtime=runtime)
