from __future__ import annotations

import itertools
import json
import math
import subprocess
import sys
import time

import arviz as az
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor
from torch.distributions import biject_to, constraints
from torch.fx.experimental.proxy_tensor import make_fx

from zoo.errors import EngineError, NonFiniteError, PairError, UnknownNameError
from zoo.inference import _nuts_worker as worker
from zoo.inference import library, nuts
from zoo.inference.potential import Potential, fold_constants
from zoo.inference.program import no_compiler
from zoo.inference.tries import ACCEPT, stubborn

needs_compiler = pytest.mark.skipif(bool(no_compiler()), reason=f"no compiled library: {no_compiler()}")
DOUBLE = {"dtype": torch.float64}
STATS = {"diverging", "energy", "lp", "tree_depth", "acceptance_rate", "step_size", "n_steps"}


# -------------------------------------------------------------------------------------------------------- models
def plane(batch):
    """Bivariate normal: mean (1, -2), variances 4 and 1, correlation 0.8."""
    covariance = torch.tensor([[4.0, 1.6], [1.6, 1.0]])
    pyro.sample("theta", dist.MultivariateNormal(torch.tensor([1.0, -2.0]), covariance))


def wide(batch):
    """200 independent normals with scales from 0.1 to 10."""
    pyro.sample("theta", dist.Normal(batch["loc"], batch["scale"]).to_event(1))


WIDE = {"loc": torch.linspace(-3, 3, 200, **DOUBLE), "scale": torch.logspace(-1, 1, 200, **DOUBLE)}
SCHOOLS = {
    "y": torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0]),
    "sigma": torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0]),
}


def schools(batch, centred):
    mu = pyro.sample("mu", dist.Normal(torch.zeros(()), 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0 * torch.ones(())))
    with pyro.plate("school", 8):
        if centred:
            theta = pyro.sample("theta", dist.Normal(mu, tau))
        else:
            theta = mu + tau * pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
        pyro.sample("y", dist.Normal(theta, batch["sigma"]), obs=batch["y"])


def counts(batch):
    """Conjugate: Dirichlet with multinomial counts, Gamma with Poisson counts, and a support that is itself latent."""
    weights = pyro.sample("weights", dist.Dirichlet(torch.ones(3)))
    with pyro.plate("rate_index", 2):
        rate = pyro.sample("rate", dist.Gamma(2.0 * torch.ones(()), 1.0))
    top = pyro.sample("top", dist.Uniform(torch.ones(()), 2.0))
    pyro.sample("below", dist.Uniform(torch.zeros(()), top))
    pyro.sample("n", dist.Multinomial(total_count=30, probs=weights), obs=batch["n"])
    pyro.sample("k", dist.Poisson(rate).to_event(1), obs=batch["k"])


COUNTS = {"n": torch.tensor([18.0, 9.0, 3.0]), "k": torch.tensor([4.0, 0.0])}


def mixture(batch):
    """Two known components, an unknown weight; the labels are summed out."""
    weight = pyro.sample("weight", dist.Beta(torch.ones(()), 1.0))
    with pyro.plate("datum", len(batch["x"])):
        label = pyro.sample("label", dist.Bernoulli(weight))
        pyro.sample("x", dist.Normal(3.0 * label, 1.0), obs=batch["x"])


MIXTURE = {"x": torch.tensor([-0.3, 0.4, 2.6, 3.3, 1.4, 2.9, 0.1])}


def simple(batch):
    pyro.sample("theta", dist.Normal(torch.zeros(2), 1.0).to_event(1))


def standard_error(values: Tensor) -> float:
    """Monte Carlo standard error of the mean of one quantity, (chain, draw)."""
    return float(az.mcse(values.numpy()))


def effective(values: Tensor) -> float:
    return float(az.ess(values.numpy()))


def assert_mean(values: Tensor, expected: float, *, sigmas: float = 5.0) -> None:
    assert abs(float(values.double().mean()) - expected) < sigmas * standard_error(values.double())


# ------------------------------------------------------------------------------------------------------ fixtures
@pytest.fixture(scope="module")
def wide_samples():
    return nuts.sample(wide, WIDE, chains=2, warmup=500, draws=1000, seed=3, workers=2)


@pytest.fixture(scope="module")
def counts_samples():
    return nuts.sample(counts, COUNTS, chains=4, warmup=500, draws=1000, seed=1)


@pytest.fixture(scope="module")
def plane_samples():
    """In worker processes, uncompiled."""
    return nuts.sample(plane, {}, chains=2, warmup=200, draws=500, seed=5, compile=False, workers=2)


# ------------------------------------------------------------------------------------------------------ accuracy
def test_moments_in_two_dimensions(plane_samples):
    theta = plane_samples.chains["theta"]
    assert theta.shape == (2, 500, 2)
    assert plane_samples.info["engine"] == "processes"
    assert plane_samples.info["reason"] == "compile=False"
    for k, (mean, variance) in enumerate([(1.0, 4.0), (-2.0, 1.0)]):
        assert_mean(theta[..., k], mean)
        assert_mean((theta[..., k] - mean) ** 2, variance)
    assert_mean((theta[..., 0] - 1.0) * (theta[..., 1] + 2.0), 1.6)


def test_moments_in_two_hundred_dimensions(wide_samples):
    theta = wide_samples.chains["theta"]
    z = (theta - WIDE["loc"]) / WIDE["scale"]
    errors = torch.tensor([standard_error(z[..., k]) for k in range(200)])
    score = z.mean((0, 1)) / errors
    assert float((score**2).mean()) == pytest.approx(1.0, abs=0.5)  # 200 standard scores: sd of the mean square 0.1
    assert float(z.var(dim=(0, 1)).mean()) == pytest.approx(1.0, abs=0.03)
    assert int(wide_samples.stats["diverging"].sum()) == 0


def test_statistics(wide_samples):
    stats = wide_samples.stats
    assert set(stats) == STATS
    assert all(s.shape == (2, 1000) for s in stats.values())
    assert stats["diverging"].dtype == torch.bool
    theta = wide_samples.chains["theta"]
    expected = dist.Normal(WIDE["loc"], WIDE["scale"]).to_event(1).log_prob(theta)
    torch.testing.assert_close(stats["lp"], expected)
    # Kinetic energy is chi-squared with 200 degrees of freedom, halved.
    assert float((stats["energy"] + stats["lp"]).mean()) == pytest.approx(100.0, rel=0.05)
    assert float(stats["acceptance_rate"].mean()) == pytest.approx(wide_samples.info["target_accept"], abs=0.1)
    assert bool((stats["n_steps"] < 2.0 ** (stats["tree_depth"].double() + 1)).all())
    info = wide_samples.info
    assert json.loads(json.dumps(info)) == info
    assert info["evaluations"] > int(stats["n_steps"].sum())


@needs_compiler
def test_library_is_used(wide_samples):
    assert wide_samples.info["engine"] == "library"
    assert wide_samples.info["compiled"] is True
    assert wide_samples.info["reason"] == ""


def test_eight_schools_against_published_summaries():
    # posteriordb, eight_schools-eight_schools_noncentered: mu 4.41 +- 0.03, tau 3.60 +- 0.03.
    samples = nuts.sample(lambda b: schools(b, False), SCHOOLS, chains=4, warmup=1000, draws=2000, seed=0)
    for site, mean, error in (("mu", 4.41, 0.03), ("tau", 3.60, 0.03)):
        draws = samples.chains[site]
        assert abs(float(draws.mean()) - mean) < 4 * math.hypot(error, standard_error(draws)), site
        assert effective(draws) > 400


def test_centred_eight_schools_diverges():
    # One run may see few: which trajectories enter the funnel's neck turns on rounding, so runs are taken together.
    counts = {True: 0, False: 0}
    for centred in counts:
        for seed in range(4):
            samples = nuts.sample(lambda b: schools(b, centred), SCHOOLS, seed=seed, target_accept=0.8)  # noqa: B023
            counts[centred] += int(samples.stats["diverging"].sum())
            assert samples.info["divergences"] == int(samples.stats["diverging"].sum())
            assert samples.info["tries"] == []
    assert counts[True] >= 40
    assert counts[True] > 3 * counts[False]


def test_smaller_steps_do_not_hide_a_funnel():
    samples = nuts.sample(lambda b: schools(b, True), SCHOOLS, seed=0)
    assert [w["target_accept"] for w in samples.info["tries"] if w["chain"] == 0] == list(ACCEPT[1:])
    assert len(stubborn(samples.info["tries"])) >= 2
    assert samples.info["target_accept"] == 0.99
    assert samples.info["divergences"] > 0 or effective(samples.chains["tau"]) < 400


def test_constrained_sites(counts_samples):
    chains = counts_samples.chains
    assert {n: tuple(c.shape) for n, c in chains.items()} == {
        "weights": (4, 1000, 3),
        "rate": (4, 1000, 2),
        "top": (4, 1000),
        "below": (4, 1000),
    }
    torch.testing.assert_close(chains["weights"].sum(-1), torch.ones(4, 1000, **DOUBLE))
    assert bool((chains["weights"] > 0).all())
    assert bool((chains["rate"] > 0).all())
    for k, mean in enumerate([19 / 33, 10 / 33, 4 / 33]):
        assert_mean(chains["weights"][..., k], mean)
    for k, (a, b) in enumerate([(6.0, 2.0), (2.0, 2.0)]):
        assert_mean(chains["rate"][..., k], a / b)
        assert_mean((chains["rate"][..., k] - a / b) ** 2, a / b**2)


def test_support_that_depends_on_another_latent(counts_samples):
    top, below = counts_samples.chains["top"], counts_samples.chains["below"]
    assert bool(((below > 0) & (below < top)).all())
    assert_mean(top, 1.5)
    assert_mean(below / top, 0.5)
    assert float(below.max()) > 1.7


def test_enumerated_latents_are_summed_out():
    samples = nuts.sample(mixture, MIXTURE, chains=4, warmup=300, draws=1000, seed=2)
    assert set(samples.chains) == {"weight"}
    grid = torch.linspace(0, 1, 10_001, **DOUBLE)[1:-1]
    x = MIXTURE["x"].double()[:, None]
    normal = dist.Normal(torch.zeros((), **DOUBLE), 1.0)
    density = (grid * normal.log_prob(x - 3.0).exp() + (1 - grid) * normal.log_prob(x).exp()).log().sum(0).exp()
    density = density / density.sum()
    mean = float((grid * density).sum())
    assert_mean(samples.chains["weight"], mean)
    assert_mean((samples.chains["weight"] - mean) ** 2, float(((grid - mean) ** 2 * density).sum()))


# ----------------------------------------------------------------------------------------------- reproducibility
def test_draws_depend_on_seed_and_chain_alone(wide_samples):
    settings = {"warmup": 500, "draws": 1000}
    alone = nuts.sample(wide, WIDE, chains=3, seed=3, workers=1, **settings)
    other = nuts.sample(wide, WIDE, chains=1, seed=4, workers=1, **settings)
    assert torch.equal(alone.chains["theta"][:2], wide_samples.chains["theta"])
    assert not torch.equal(alone.chains["theta"][2], alone.chains["theta"][1])
    assert not torch.equal(other.chains["theta"][0], alone.chains["theta"][0])


def test_processes_equal_this_process(plane_samples):
    here = nuts.sample(plane, {}, chains=2, warmup=200, draws=500, seed=5, compile=False, workers=1)
    assert here.info["engine"] == "python"
    assert torch.equal(here.chains["theta"], plane_samples.chains["theta"])
    assert torch.equal(here.stats["energy"], plane_samples.stats["energy"])


class World:
    """What a call must leave as it was."""

    def __enter__(self):
        pyro.clear_param_store()
        pyro.param("kept", torch.tensor(1.5))
        torch.manual_seed(11)
        self.random, self.threads = torch.get_rng_state(), torch.get_num_threads()
        self.grad = torch.is_grad_enabled()
        return self

    def __exit__(self, *_):
        assert dict(pyro.get_param_store().items()).keys() == {"kept"}
        assert torch.equal(torch.get_rng_state(), self.random)
        assert torch.get_default_dtype() == torch.float32
        assert torch.get_num_threads() == self.threads
        assert torch.is_grad_enabled() == self.grad
        assert not pyro.poutine.runtime._PYRO_STACK
        pyro.clear_param_store()


@pytest.mark.parametrize("settings", [{"compile": False, "workers": 1}, {"sampler": "pyro"}])
def test_global_state_is_left_alone(settings):
    def model(batch):
        pyro.param("own", torch.ones(()))
        simple(batch)

    with World(), torch.no_grad():
        nuts.sample(model, {}, chains=1, warmup=5, draws=5, **settings)
    with World(), pytest.raises(KeyboardInterrupt):
        nuts.sample(model, {}, chains=1, warmup=20, draws=20, progress=interrupt, **settings)

    def broken(batch):
        raise RuntimeError("no such thing")

    with World(), pytest.raises(PairError, match=r"RuntimeError: no such thing \(test_nuts.py, line \d+, in broken\)"):
        nuts.sample(broken, {}, **settings)


def interrupt(_chains):
    raise KeyboardInterrupt


@needs_compiler
def test_interrupted_threads_end():
    begin = time.monotonic()
    with World(), pytest.raises(KeyboardInterrupt):
        nuts.sample(wide, WIDE, chains=2, warmup=10_000_000, draws=1, workers=2, progress=interrupt)
    assert time.monotonic() - begin < 30


# ------------------------------------------------------------------------------------------------ other samplers
def test_pyro_sampler_gives_the_same_type():
    samples = nuts.sample(simple, {}, chains=2, warmup=100, draws=150, seed=1, sampler="pyro")
    assert samples.chains["theta"].shape == (2, 150, 2)
    assert samples.chains["theta"].dtype == torch.float64
    assert set(samples.stats) == STATS
    assert all(s.shape == (2, 150) for s in samples.stats.values())
    assert_mean(samples.chains["theta"][..., 0], 0.0)
    theta = samples.chains["theta"]
    torch.testing.assert_close(samples.stats["lp"], dist.Normal(0.0, 1.0).log_prob(theta).sum(-1))
    assert float(samples.stats["acceptance_rate"].mean()) == pytest.approx(0.85, abs=0.12)
    assert bool((samples.stats["acceptance_rate"] <= 1 + 1e-9).all())
    kinetic = samples.stats["energy"][:, 1:] + samples.stats["lp"][:, :-1]  # energy of the start of each trajectory
    assert bool((kinetic > 0).all())
    again = nuts.sample(simple, {}, chains=1, warmup=100, draws=150, seed=1, sampler="pyro")
    assert torch.equal(again.chains["theta"][0], samples.chains["theta"][0])


def test_single_precision():
    samples = nuts.sample(plane, {}, chains=2, warmup=300, draws=500, seed=2, dtype="float32", workers=1)
    assert samples.chains["theta"].dtype == torch.float32
    assert_mean(samples.chains["theta"][..., 0].double(), 1.0)


def test_model_that_cannot_be_traced():
    def model(batch):
        theta = pyro.sample("theta", dist.Normal(torch.zeros(()), 1.0))
        pyro.sample("y", dist.Normal(theta if theta.item() < 100 else -theta, 1.0), obs=torch.tensor(2.0))

    samples = nuts.sample(model, {}, chains=1, warmup=100, draws=200, seed=1)
    assert samples.info["engine"] == "python"
    assert "cannot be traced at site 'theta'" in samples.info["reason"]
    assert_mean(samples.chains["theta"], 1.0)


def test_without_a_compiler(monkeypatch):
    monkeypatch.setattr(nuts, "no_compiler", lambda: "no C++ compiler is installed")
    samples = nuts.sample(simple, {}, chains=1, warmup=20, draws=20)
    assert samples.info["compiled"] is False
    assert samples.info["reason"] == "no C++ compiler is installed"


def test_wrong_library_is_refused(monkeypatch):
    monkeypatch.setattr(worker.Compiled, "evaluate", lambda self, flat: (0.0, np.zeros(self.size)))
    samples = nuts.sample(simple, {}, chains=1, warmup=20, draws=20)
    assert "differs from the eager one" in samples.info["reason"]
    assert samples.info["engine"] == "python"


@needs_compiler
@pytest.mark.parametrize("crash", [False, True])
def test_large_graph_is_compiled_in_a_child(monkeypatch, tmp_path, crash):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))  # where no run before has compiled it
    monkeypatch.setattr(library, "LARGE", 0)
    real, asked = library.subprocess.run, []

    def run(command, **options):
        if "zoo.inference._compile_worker" in command:
            asked.append(command)
            command = [sys.executable, "-c", "import os; os.abort()"] if crash else command
        return real(command, **options)

    monkeypatch.setattr(library.subprocess, "run", run)
    samples = nuts.sample(simple, {}, chains=1, warmup=20, draws=20)
    assert len(asked) == 1
    assert ("the compiler ended with status -6" in samples.info["reason"]) is crash
    assert samples.info["engine"] == ("python" if crash else "library")


def test_progress():
    seen: list[list[nuts.Chain]] = []
    nuts.sample(
        simple, {}, chains=2, warmup=100, draws=200, compile=False, workers=1, progress=lambda c: seen.append(list(c))
    )
    assert [c.draws for c in seen[-1]] == [300, 300]
    assert all(c.total == 300 and c.chain == k for s in seen for k, c in enumerate(s))
    assert all(a.draws <= b.draws for s, t in itertools.pairwise(seen) for a, b in zip(s, t, strict=True))
    assert seen[-1][0].step_size > 0


def test_terminal_display(capsys):
    nuts.sample(simple, {}, chains=1, warmup=20, draws=30, compile=False, workers=1, progress=True)
    assert "50/50" in capsys.readouterr().out


# -------------------------------------------------------------------------------------------------------- errors
def test_discrete_latent_without_enumeration_is_named():
    def model(batch):
        rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
        pyro.sample("events", dist.Poisson(rate))

    with pytest.raises(PairError, match=r"site 'events' is a discrete latent \(Poisson\)"):
        nuts.sample(model, {})


def test_mini_batches_are_refused():
    def model(batch):
        theta = pyro.sample("theta", dist.Normal(0.0, 1.0))
        with pyro.plate("datum", 10, subsample=torch.arange(4)):
            pyro.sample("y", dist.Normal(theta, 1.0), obs=torch.zeros(4))

    with pytest.raises(PairError, match="plate 'datum' at site 'y' holds 4 of 10 rows"):
        nuts.sample(model, {})


def test_random_numbers_outside_sites_are_refused():
    def model(batch):
        theta = pyro.sample("theta", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        kept = torch.nn.functional.dropout(theta, 0.5, training=True)
        pyro.sample("y", dist.Normal(kept, 1.0).to_event(1), obs=torch.zeros(3))

    with pytest.raises(PairError, match=r"random numbers outside its sample sites .*eval\(\) mode"):
        nuts.sample(model, {})


def test_non_finite_density_names_the_site():
    def model(batch):
        theta = pyro.sample("theta", dist.Normal(torch.zeros(()), 1.0))
        pyro.sample("fine", dist.Normal(theta, 1.0), obs=torch.tensor(0.0))
        pyro.factor("y", theta - float("inf"))

    with pytest.raises(NonFiniteError, match=r"chain 0: .* site 'y' has log probability -inf"):
        nuts.sample(model, {})


def test_non_finite_gradient_names_the_latent():
    def model(batch):
        theta = pyro.sample("theta", dist.Normal(torch.zeros(()), 1.0))
        pyro.sample("fine", dist.Normal(torch.zeros(()), 1.0))
        root = (theta - theta.detach()).abs().sqrt()  # 0, with an infinite slope
        pyro.sample("y", dist.Normal(root, 1.0), obs=torch.tensor(1.0))

    with pytest.raises(NonFiniteError, match="the gradient of latent site 'theta' is not finite"):
        nuts.sample(model, {})


def test_model_without_continuous_latents():
    with pytest.raises(PairError, match="no continuous latent"):
        nuts.sample(lambda b: pyro.sample("z", dist.Bernoulli(0.5)), {})


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"chains": 0}, "chains is 0; it must be at least 1"),
        ({"draws": 0}, "draws is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"target_accept": 1.0}, "target_accept is 1.0"),
        ({"max_treedepth": 0}, "max_treedepth is 0"),
        ({"sampler": "pyro", "low_rank_mass_matrix": True}, "low_rank_mass_matrix"),
    ],
)
def test_settings_out_of_range(settings, text):
    with pytest.raises(EngineError, match=text):
        nuts.sample(simple, {}, **settings)


def test_unknown_names():
    with pytest.raises(UnknownNameError, match="did you mean 'nutpie'"):
        nuts.sample(simple, {}, sampler="nutpi")
    with pytest.raises(UnknownNameError, match="did you mean 'float64'"):
        nuts.sample(simple, {}, dtype="float46")


def test_dead_worker_is_reported_with_its_complaint(monkeypatch):
    hand_over = nuts._hand_over

    def spoil(potential, folder):
        command = hand_over(potential, folder)
        (folder / "graph.pt").write_bytes(b"not a graph")
        return command

    monkeypatch.setattr(nuts, "_hand_over", spoil)
    with World(), pytest.raises(EngineError, match=r"chain \d: its process ended with status 1: .*Error"):
        nuts.sample(simple, {}, chains=2, compile=False, workers=2)


def test_killed_worker_is_reported(monkeypatch):
    give = nuts._Worker.give

    def give_and_kill(self, chain, *order):
        give(self, chain, *order)
        if chain == 1:
            self.process.kill()

    monkeypatch.setattr(nuts._Worker, "give", give_and_kill)
    with pytest.raises(EngineError, match="chain 1: its process ended with status -9"):
        nuts.sample(simple, {}, chains=2, warmup=100_000, compile=False, workers=2)


def test_workers_die_with_their_parent(tmp_path):
    potential = Potential(simple, {})
    options = worker.Options(warmup=10_000_000, draws=1, seed=0, target_accept=0.8, max_treedepth=10, low_rank=False)
    command = nuts._hand_over(potential, tmp_path)
    np.save(tmp_path / "initial-0.npy", potential.initial(0, 0))
    child = subprocess.Popen(
        command,
        env=library.child_environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert child.stdin is not None
    assert child.stdout is not None
    order = {"chain": 0, "options": worker.asdict(options), "initial": "initial-0.npy"}
    child.stdin.write(json.dumps(order).encode() + b"\n")
    child.stdin.flush()
    assert b"progress" in child.stdout.readline()
    child.stdin.close()
    assert child.wait(timeout=30) == 3
    child.stdout.close()


# ----------------------------------------------------------------------------------------------------- potential
def test_potential_is_joint_plus_jacobian():
    potential = Potential(counts, COUNTS)
    flat = torch.from_numpy(potential.initial(0, 0))
    assert potential.size == 2 + 2 + 1 + 1
    values = potential.constrain(flat)
    weights, rate, top, below = (values[n] for n in potential.names)
    one = torch.ones((), **DOUBLE)
    expected = (
        dist.Dirichlet(torch.ones(3, **DOUBLE)).log_prob(weights)
        + dist.Gamma(2.0 * one, one).log_prob(rate).sum()
        + dist.Uniform(one, 2 * one).log_prob(top)
        + dist.Uniform(0 * one, top).log_prob(below)
        + dist.Multinomial(30, probs=weights).log_prob(COUNTS["n"].double())
        + dist.Poisson(rate).log_prob(COUNTS["k"].double()).sum()
    )
    start = 0
    supports = [
        constraints.simplex,
        constraints.positive,
        constraints.interval(1.0, 2.0),
        constraints.interval(0.0, top),
    ]
    for value, support, size in zip(values.values(), supports, (2, 2, 1, 1), strict=True):
        transform = biject_to(support)
        before = flat[start : start + size].reshape(transform.inv(value).shape)
        torch.testing.assert_close(transform(before), value)
        expected = expected + transform.log_abs_det_jacobian(before, value).sum()
        start += size
    torch.testing.assert_close(potential.log_density(flat), expected)
    value, gradient = potential.value_and_gradient(flat)
    torch.testing.assert_close(value, expected)
    step = 1e-6 * torch.eye(potential.size, **DOUBLE)
    slope = [(potential.log_density(flat + e) - potential.log_density(flat - e)) / 2e-6 for e in step]
    torch.testing.assert_close(gradient, torch.stack(slope), rtol=1e-6, atol=1e-6)


def test_enumerated_potential():
    potential = Potential(mixture, MIXTURE)
    flat = torch.tensor([0.7], **DOUBLE)
    weight = torch.sigmoid(flat)
    x = MIXTURE["x"].double()
    normal = dist.Normal(torch.zeros((), **DOUBLE), 1.0)
    expected = (weight * normal.log_prob(x - 3.0).exp() + (1 - weight) * normal.log_prob(x).exp()).log().sum()
    expected = expected + (weight * (1 - weight)).log().sum()
    torch.testing.assert_close(potential.value_and_gradient(flat)[0], expected)


def test_module_of_another_dtype_is_evaluated_in_double():
    module = torch.nn.Linear(2, 1)  # float32

    def model(batch):
        theta = pyro.sample("theta", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.module("layer", module)
        pyro.sample("y", dist.Normal(module(theta).squeeze(-1), 1.0), obs=batch["y"])

    potential = Potential(model, {"y": torch.tensor(0.5)})
    value, _ = potential.value_and_gradient(torch.tensor([0.3, -0.2], **DOUBLE))
    assert value.dtype == torch.float64
    assert module.weight.dtype == torch.float32
    theta, normal = torch.tensor([0.3, -0.2], **DOUBLE), dist.Normal(torch.zeros((), **DOUBLE), 1.0)
    mean = theta @ module.weight[0].double() + module.bias[0].double()
    expected = normal.log_prob(theta).sum() + normal.log_prob(0.5 - mean)
    torch.testing.assert_close(value, expected.detach())


def test_initial_points_depend_on_seed_and_chain():
    potential = Potential(simple, {})
    points = [potential.initial(0, 0), potential.initial(0, 1), potential.initial(1, 0)]
    assert np.array_equal(points[0], potential.initial(0, 0))
    assert len({p.tobytes() for p in points}) == 3
    assert all(np.all(np.abs(p) < 2) for p in points)


def test_model_errors_at_the_starting_point_are_reported():
    def model(batch):
        theta = pyro.sample("theta", dist.Normal(torch.zeros(()), 1.0))
        if theta.item() > -100:
            raise ValueError("the model is broken")

    with pytest.raises(ValueError, match="the model is broken"):
        nuts.sample(model, {})


@pytest.mark.parametrize("square", [False, True])
def test_folding_shares_a_matrix_and_its_transpose(square):
    matrix = torch.randn(4, 4 if square else 3, generator=torch.Generator().manual_seed(0), **DOUBLE)

    def function(x):
        once = torch.zeros(len(matrix), **DOUBLE)
        once[:] = matrix @ x  # written in place
        mask = torch.ones(len(matrix), **DOUBLE).cumsum(0) > 2
        return matrix.T @ (once * torch.full((), 2.0, **DOUBLE)), once[mask]

    x = torch.randn(matrix.shape[1], generator=torch.Generator().manual_seed(1), **DOUBLE)
    graph, constants = fold_constants(make_fx(function)(x), x)
    assert sorted(tuple(c.shape) for c in constants) == sorted([tuple(matrix.shape), (len(matrix) - 2,)])
    y = torch.randn(matrix.shape[1], generator=torch.Generator().manual_seed(2), **DOUBLE)
    for _ in range(2):
        for ours, theirs in zip(graph(y, *constants), function(y), strict=True):
            torch.testing.assert_close(ours, theirs)


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_library_equals_graph(dtype):
    def model(batch):
        scale = pyro.sample("scale", dist.HalfNormal(torch.ones(())))
        factor = pyro.sample("factor", dist.LKJCholesky(3, torch.tensor(2.0)))
        x = batch["x"]
        kernel = (scale * torch.exp(-((x[:, None] - x) ** 2)) + 0.1 * torch.eye(len(x))) * factor[1, 1]
        pyro.sample("y", dist.MultivariateNormal(torch.zeros(len(x)), kernel), obs=batch["y"])

    batch = {"x": torch.linspace(0, 1, 6), "y": torch.arange(6.0)}
    potential = Potential(model, batch, dtype=dtype)
    assert potential.reason == ""
    example = (torch.zeros(potential.size, dtype=dtype), *potential.constants)
    path = library.build(potential.graph, example)
    compiled = worker.Compiled(library=path, size=potential.size, dtype=dtype, constants=potential.constants)
    precision = 1e-10 if dtype == torch.float64 else 2e-4
    for chain in range(3):
        point = potential.initial(0, chain)
        value, gradient = compiled.evaluate(point)
        right, slope = potential.value_and_gradient(torch.from_numpy(point))
        assert value == pytest.approx(float(right), rel=precision)
        np.testing.assert_allclose(gradient, slope.double().numpy(), rtol=precision, atol=precision * 10)
    assert library.build(potential.graph, example) == path
