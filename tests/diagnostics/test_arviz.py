"""Both majors of ArviZ give the same numbers, and take what the zoo exports."""

import math
import subprocess
import sys

import arviz as az
import matplotlib.pyplot as plt
import numpy as np
import pytest
import xarray as xr
from known_fits import normal_chains, normal_loo, normal_mean, sampled

from tests.wheels import environment
from zoo.diagnostics import _arviz, inference, known, predictive
from zoo.diagnostics.psis import psis

CURRENT = int(az.__version__.split(".")[0]) >= 1


@pytest.fixture(scope="module")
def chains():
    """Four autocorrelated chains, two of them shifted; the stream of a bit generator never changes."""
    noise = np.random.Generator(np.random.Philox(7)).random((4, 500)) - 0.5
    values = np.empty_like(noise)
    values[:, 0] = noise[:, 0]
    for t in range(1, 500):
        values[:, t] = 0.6 * values[:, t - 1] + noise[:, t]
    return values + np.array([0.0, 0.0, 0.05, 0.2])[:, None]


# ------------------------------------------------------------------------------------------------------- numbers
@pytest.mark.parametrize(
    ("measure", "expected"),
    [
        (az.rhat, 1.0602452841190193),
        (lambda x: az.rhat(x, method="rank"), 1.0602452841190193),
        (az.ess, 239.05997501398335),
        (lambda x: az.ess(x, method="bulk"), 239.05997501398335),
        (_arviz.tail_ess, 775.2745815861886),
        (lambda x: az.ess(x, method="mean"), 262.4430983525098),
        (lambda x: az.ess(x, method="sd"), 871.7421754216873),
        (lambda x: az.mcse(x, method="mean"), 0.023753506067805883),
        (lambda x: az.mcse(x, method="sd"), 0.007947108466671416),
        (lambda x: az.bfmi(x)[3], 0.7733777845021576),
    ],
    ids=["rhat", "rhat rank", "ess", "ess bulk", "ess tail", "ess mean", "ess sd", "mcse mean", "mcse sd", "bfmi"],
)
def test_chains_are_judged_alike(chains, measure, expected):
    assert float(measure(chains)) == pytest.approx(expected, rel=1e-9)  # by ArviZ 0.23.4


def test_weights_are_smoothed_alike():
    logs = -0.8 * np.log1p(-np.random.Generator(np.random.Philox(8)).random((2, 1_000)))
    weights, k = psis(logs, 0.5)
    np.testing.assert_allclose(k, [0.5882057335463281, 0.8106365934868911], rtol=1e-9)  # by ArviZ 0.23.4
    np.testing.assert_allclose(weights.max(1), [-2.9131533265998, -2.1660962164585227], rtol=1e-9)
    np.testing.assert_allclose(np.exp(weights).sum(1), 1.0, rtol=1e-12)
    if not CURRENT:
        theirs = az.psislw(logs, 0.5)
        np.testing.assert_allclose(weights, theirs[0], rtol=1e-9)
        np.testing.assert_allclose(k, theirs[1], rtol=1e-9)


@pytest.mark.parametrize("shape", [-0.3, 0.2, 0.7, 1.5])
def test_the_shape_of_a_known_tail_is_found(shape):
    """The upper tail of a generalised Pareto distribution is one of the same shape."""
    chances = (np.arange(50_000) + 0.5) / 50_000
    quantiles = np.expm1(-shape * np.log1p(-chances)) / shape + 1
    assert float(psis(np.log(quantiles))[1]) == pytest.approx(shape, abs=0.05)


def test_weights_without_a_tail():
    none = psis(np.full(100, 3.0))
    assert none[1] == math.inf
    np.testing.assert_allclose(none[0], -math.log(100))
    ties = psis(np.repeat([0.0, 1.0], [50, 50]))  # a tail of one value
    assert ties[1] == math.inf
    np.testing.assert_allclose(np.exp(ties[0]).sum(), 1.0)
    one = psis(np.where(np.arange(100) == 7, 0.0, -np.inf))  # a single weight
    assert one[1] == math.inf
    assert np.exp(one[0][7]) == 1.0
    assert psis(np.zeros((3, 0, 10)))[1].shape == (3, 0)
    assert psis(np.zeros(1))[0] == 0.0
    assert inference.khat(np.full(10, -np.inf)) == math.inf


def test_what_is_given_stays_as_it_is():
    logs = np.random.default_rng(0).normal(size=(2, 100))
    before = logs.copy()
    psis(logs)
    np.testing.assert_array_equal(logs, before)


# -------------------------------------------------------------------------------------------------------- export
def test_the_export_is_what_the_installed_arviz_takes():
    fit = known.normal(0)
    data = fit.to_arviz(num_draws=200)
    assert isinstance(data, xr.DataTree if CURRENT else az.InferenceData)
    assert data.posterior["mu"].dims == ("chain", "draw")
    assert data.attrs["creation_library"] == "pyro-zoo"
    assert az.summary(data, kind="stats").index.tolist() == ["mu"]
    assert float(az.ess(data)["mu"]) > 50


def test_leave_one_out_agrees_with_arviz():
    model, _, data = normal_mean()
    posterior = sampled(model, data, normal_chains(data))
    ours, theirs = predictive.leave_one_out(posterior), az.loo(posterior.to_arviz(), pointwise=True)
    total, pointwise, effective = (
        (theirs.elpd, theirs.elpd_i, theirs.p) if CURRENT else (theirs.elpd_loo, theirs.loo_i, theirs.p_loo)
    )
    # ArviZ 1 takes one draw fewer into the tail.
    accuracy = 2e-3 if CURRENT else 1e-6
    np.testing.assert_allclose(ours.elpd, pointwise.values, atol=accuracy)
    np.testing.assert_allclose(ours.pareto_k, theirs.pareto_k.values, atol=0.03 if CURRENT else 1e-6)
    assert ours.effective == pytest.approx(float(effective), abs=30 * accuracy)
    assert ours.total == pytest.approx(float(total), abs=30 * accuracy)
    assert ours.total == pytest.approx(float(normal_loo(data.train["y"]).sum()), abs=0.2)


@pytest.mark.parametrize(
    "plot", ["plot_autocorr", "plot_energy", "plot_ess", "plot_forest", "plot_rank", "plot_trace", "plot_ppc"]
)
def test_plots_take_the_export(plot):
    name = "plot_ppc_dist" if CURRENT and plot == "plot_ppc" else plot
    fit = known.normal(0)
    chained = sampled(fit.pair.model, fit.data, {"mu": fit.draws(200)["mu"].reshape(2, 100)})
    getattr(az, name)(chained.to_arviz(num_draws=50))
    assert plt.get_fignums()
    plt.close("all")


# ------------------------------------------------------------------------------------------------ other versions
@pytest.mark.parametrize("wanted", ["arviz==0.22.0", "arviz==0.23.4"])
def test_other_versions(wanted, tmp_path):
    """The tests of this file again, with the oldest ArviZ that is supported and the last one before ArviZ 1."""
    version = wanted.partition("==")[2]
    if az.__version__ == version:
        pytest.skip("the installed one")
    folder = tmp_path / "wheels"
    where = environment(folder, wanted)
    command = [sys.executable, "-c", "import arviz; print(arviz.__version__)"]
    found = subprocess.run(command, env=where, capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert found.stdout.split() == [version], found.stderr[-2000:]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__, "-k", "not other_versions"]
    done = subprocess.run(command, env=where, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-4000:]
