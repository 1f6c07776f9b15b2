"""The learned sampler in a run of its own: does what it learned tell the images apart where it was not trained?"""

import torch

from ncfmkit.config import load_recipe, override
from ncfmkit.distillation import step as step_module
from ncfmkit.distillation.initial import initialize
from ncfmkit.distillation.loop import prepare
from ncfmkit.distillation.memory import Plan
from ncfmkit.distillation.pool import open_pool
from ncfmkit.distillation.problem import Problem, State
from ncfmkit.real.arguments import DataArguments
from ncfmkit.rng import keyed_rng
from ncfmkit.runtime import Runtime

HELD_OUT = range(10_000, 10_012)  # steps that no run reaches


def held_out_ncfd(problem: Problem, state: State, plan: Plan) -> torch.Tensor:
    """The NCFD of each step in `HELD_OUT`, mean over classes, at the images and psi of the state."""
    found = []
    for state.step in HELD_OUT:
        shared = keyed_rng(problem.seed, "step", state.step)
        problem.pool.blend(problem.architecture.matcher, int(shared.integers(len(problem.pool))), shared.random())
        draws = step_module.draw(problem, state.step)
        freq_TD = step_module.make_frequencies(state, draws.noise)
        assert freq_TD is not None
        state.images.grad = torch.zeros_like(state.images)
        ncfd_C, _, _ = step_module._match(problem, state, plan, draws, freq_TD.detach())
        found.append(ncfd_C.mean())
    return torch.stack(found)


def test_trained_psi_raises_the_ncfd_on_draws_beyond_the_run(runtime: Runtime) -> None:
    """The digits' recipe with its own rate for psi, but narrower, with a smaller pool and fewer steps.

    Measured over three seeds: 2% to 6% above psi as it starts. An ascent on the unweighted mean gains 0.002%.
    """
    smaller = {"network.width": 32, "pool.members": 2, "pool.epochs": 2, "distill.real_batch": 32, "distill.steps": 60}
    settings = override(load_recipe("digits"), smaller)
    d = settings.distill
    assert (d.sampler, d.sampler_lr, d.matching_weight) == ("learned", 1e-3, 300)
    real = DataArguments(data="digits").open(settings)
    pool = open_pool(real, [settings.network], settings.pool, seed=0, runtime=runtime)
    images = initialize(d.init, real, ipc=d.ipc, factor=d.factor, seed=0)
    problem, state, plan = prepare(real, settings, pool, images, runtime)
    assert state.psi is not None
    initial = {name: value.clone() for name, value in state.psi.state_dict().items()}
    for _ in range(d.steps):
        step_module.distill_step(problem, state, plan)
    trained = held_out_ncfd(problem, state, plan)
    state.psi.load_state_dict(initial)
    assert float(trained.mean() / held_out_ncfd(problem, state, plan).mean()) > 1.005
