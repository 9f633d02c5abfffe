"""What each check does, in one sentence for somebody who meets it for the first time."""

from __future__ import annotations

__all__ = ["MEANING"]

MEANING: dict[str, str] = {
    "optimiser_stationarity": (
        "Variational inference improves its guide step by step; if the loss still falls where the training "
        "stopped, the guide is not yet the best that it could be."
    ),
    "pareto_k": (
        "Each draw of the guide is weighted by how much more probable the model finds it than the guide "
        "does; where a few draws carry most of the weight (a large k-hat), the guide misses part of the "
        "posterior."
    ),
    "pareto_k_rows": (
        "Here every row has latents of its own, and each row's own part of the guide is compared with its posterior."
    ),
    "moment_bounds": (
        "From the importance weights follows how far the guide's means and spreads can be from the right "
        "ones at most; a small bound is a guarantee, a large one says nothing either way."
    ),
    "reweighted_moments": (
        "Where the importance weights can be trusted, they can also be used: weighted means and standard deviations "
        "are those of the posterior, and show by how much the guide is off."
    ),
    "funnel": (
        "Where a scale can be close to zero, the quantities below it must squeeze into a narrow neck, which "
        "guides and samplers easily miss."
    ),
    "restart_agreement": (
        "The same fit from other starting points should end at the same posterior; where it does not, chance "
        "decided where this one ended."
    ),
    "vi_against_nuts": (
        "NUTS draws from the posterior itself, if slowly, so that the means and spreads of the guide can be "
        "held against its own."
    ),
    "simulation_calibration": (
        "Parameters are drawn from the prior, data are simulated from them and fitted again; over many such "
        "fits the true value must be as likely at any rank among the fitted draws."
    ),
    "interval_coverage": "Over many fits to simulated data, a 90% interval must hold the true value nine times in ten.",
    "r_hat": (
        "Chains start far apart; R-hat compares the spread of all of them with that of each, and is 1 when "
        "they describe the same distribution."
    ),
    "ess": (
        "Draws of a chain resemble the ones before them; the effective sample size says how many independent "
        "draws they are worth."
    ),
    "divergences": (
        "A divergence is a draw at which the simulation inside the sampler broke down; it marks a region of "
        "the posterior that the sampler could not enter."
    ),
    "e_bfmi": (
        "The sampler changes its energy from draw to draw; where these changes are small beside the whole "
        "spread of the energy, it walks through the tails too slowly."
    ),
    "prior_predictive_check": (
        "Data are simulated before any were seen, from the prior alone; if the observed ones are unlike all "
        "of them, prior and data contradict each other."
    ),
    "power_scaling": (
        "Prior and likelihood are each made a little stronger and weaker; a posterior that moves along with "
        "the prior rests on it, not on the data."
    ),
    "predictive_check": (
        "Data are simulated from the fitted model; if they differ from the observed ones in something as "
        "plain as the mean or the spread, the model does not describe the data."
    ),
    "calibration": (
        "Of all predictions that are made with 80% probability, 80% should come true, which is counted on "
        "rows that were not fitted."
    ),
    "scores": (
        "Every prediction says how well it expects to do; on rows that were not fitted, this is compared "
        "with how well it did."
    ),
    "selective_prediction": (
        "If the rows about which the fit is least sure are set aside, it should err less on those that are left."
    ),
    "out_of_distribution": (
        "The fit is shown rows of another kind, and should be less sure about them than about rows of the "
        "kind that it was fitted to."
    ),
    "loo": (
        "Leave-one-out says how well each row is predicted by a fit to all others; it is computed from this "
        "one fit, which fails for a row without which the posterior would be a different one."
    ),
    "k_fold": (
        "The model is fitted again without each part of the rows and predicts that part, which takes longer "
        "than leave-one-out but rests on no approximation of it."
    ),
}
"""Name of the check -> the sentence."""
