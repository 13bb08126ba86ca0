"""Decay fits on spectra of known law, and what they predict."""

import numpy as np
import pytest
import scipy

from stopwise.linearized.decay import (
    alignment,
    decay_fit,
    effective_dimension,
    half_sample_eigenvalues,
    least_squares,
    numerical_rank,
    predicted_rate,
    spectrum_convergence,
    stable_rank,
)
from stopwise.linearized.spectrum import Spectrum
from stopwise.linearized.spectrum_rows import decay_row, spectrum_rows
from stopwise.studies.synthetic import Problem


def sample_eigenvalues(name, m, seed=0):
    sample = Problem.of(name).draw(m, np.random.default_rng(seed))
    return np.linalg.eigvalsh(sample.matrix / m)[::-1].clip(0), sample.matrix


@pytest.mark.parametrize(("two_beta", "noise"), [(1.2, 0.0), (2.0, 0.05), (4.0, 0.05)])
def test_power_laws_are_recognised_with_their_exponent(two_beta, noise):
    rng = np.random.default_rng(0)
    lam = np.sort(np.arange(1, 201) ** -two_beta * np.exp(noise * rng.standard_normal(200)))[::-1]
    fit = decay_fit(lam)
    assert fit.kind == "power"
    assert fit.exponent == pytest.approx(two_beta, rel=0.02), "5 % noise on 99 eigenvalues moves the slope by 1 %"
    assert fit.beta == fit.exponent / 2
    np.testing.assert_allclose(np.log(fit.predict([2, 50])), np.log(lam[[1, 49]]), atol=0.2)


def test_exponential_decay_is_recognised_with_its_rate():
    fit = decay_fit(np.exp(-0.15 * np.arange(120)))
    assert fit.kind == "exponential"
    assert fit.exponent == pytest.approx(0.15, rel=1e-6)
    assert fit.errors["exponential"] < fit.errors["power"]


def test_finite_rank_is_a_cliff_and_not_a_fast_decay():
    lam = np.concatenate([[1.0, 0.9, 0.5, 0.2], np.full(30, 1e-17)])
    assert numerical_rank(lam) == 4
    fit = decay_fit(lam)
    assert (fit.kind, fit.rank) == ("finite_rank", 4)
    assert fit.predict([4, 5])[1] == 0
    assert decay_fit(np.exp(-1.5 * np.arange(60))).kind == "exponential", "reaches rounding without a cliff"


def test_the_law_of_a_sampled_kernel_is_found():
    for name, kind in (
        ("finite_rank", "finite_rank"),
        ("beta1", "power"),
        ("beta2", "power"),
        ("exponential", "exponential"),
    ):
        lam, _ = sample_eigenvalues(name, 128)
        assert decay_fit(lam).kind == kind, name
    lam, _ = sample_eigenvalues("beta1", 256)
    # Empirical eigenvalues of 256 points scatter by about sqrt(2/256) each and bend down slowly.
    assert decay_fit(lam).exponent == pytest.approx(2.0, rel=0.1)


def test_half_samples_of_one_example_give_no_interval():
    """Three examples of two columns with an intercept: a half has no degrees of freedom."""
    j = np.random.default_rng(3).standard_normal((6, 9))
    samples = half_sample_eigenvalues(j @ j.T, 2, True, draws=5)
    assert [s.size for s in samples] == [0] * 5
    assert decay_fit(np.linalg.eigvalsh(j @ j.T)[::-1], samples).interval_kind == "regression"


def test_half_samples_give_an_interval_that_holds_the_exponent():
    lam, matrix = sample_eigenvalues("beta1", 160)
    samples = half_sample_eigenvalues(matrix, draws=60, seed=1)
    assert len(samples[0]) == 80
    fit = decay_fit(lam, samples)
    assert fit.interval_kind == "half-samples"
    assert fit.interval[0] < fit.exponent < fit.interval[1]
    assert fit.interval[0] < 2.1 < fit.interval[1] + 0.3
    again = half_sample_eigenvalues(matrix, draws=60, seed=1)
    np.testing.assert_array_equal(samples[3], again[3])


def test_half_samples_take_whole_examples_and_project_the_intercept_out():
    rng = np.random.default_rng(2)
    j = rng.standard_normal((12, 40)) + 3.0
    plain = half_sample_eigenvalues(j @ j.T, columns=2, draws=4)
    centred = half_sample_eigenvalues(j @ j.T, columns=2, intercept=True, draws=4)
    assert {len(x) for x in plain} == {6}
    assert {len(x) for x in centred} == {4}
    assert max(x[0] for x in centred) < min(x[0] for x in plain), "the common mode of size 3 is gone"


def test_effective_dimension_stable_rank_and_alignment():
    lam = np.array([4.0, 2.0, 1.0, 0.0])
    assert effective_dimension(lam, 1.0) == pytest.approx(4 / 5 + 2 / 3 + 1 / 2)
    np.testing.assert_allclose(effective_dimension(lam, np.array([1e-12, 1e12])), [3, 0], atol=1e-9)
    assert stable_rank(lam) == 7 / 4
    assert stable_rank(np.zeros(3)) == 0
    z = np.array([3.0, 0.0, 4.0])
    np.testing.assert_allclose(alignment(z), [9 / 25, 9 / 25, 1])
    assert alignment(z, 2) == 9 / 25
    assert alignment(z, 9) == 1
    assert alignment(np.zeros(3), 1) == 0
    with pytest.raises(ValueError, match="mu > 0"):
        effective_dimension(lam, 0.0)


def test_predicted_rates_are_those_of_the_theorem():
    fit = decay_fit(np.arange(1, 301) ** -2.0)
    rate = predicted_rate(fit)
    assert rate.slope == pytest.approx(-2 / 3, rel=1e-6)
    assert rate.interval[0] <= rate.slope <= rate.interval[1]
    exponential = decay_fit(np.exp(-0.2 * np.arange(100)))
    assert predicted_rate(exponential, 100).slope == pytest.approx(-1 + 1 / np.log(100))
    assert predicted_rate(decay_fit(np.r_[1.0, 0.5, np.zeros(9)])).slope == -1


def test_impossible_fits_are_refused():
    with pytest.raises(ValueError, match="all zero"):
        decay_fit(np.zeros(5))
    with pytest.raises(ValueError, match="needs 3 eigenvalues"):
        decay_fit(np.array([1.0, 0.5]), kind="power")
    with pytest.raises(ValueError, match="not one of"):
        decay_fit(np.ones(5), kind="cubic")


def test_the_spectrum_converges_on_nested_samples():
    _, matrix = sample_eigenvalues("beta1", 256, seed=3)
    rows = spectrum_convergence(matrix, sizes=[32, 64, 128, 256], top=5)
    assert [r["n"] for r in rows] == [32, 64, 128, 256]
    assert rows[-1]["change"] == 0
    assert rows[0]["change"] > rows[2]["change"], "the first eigenvalues settle as n grows"
    # Population eigenvalue of phi_1 is 1; 256 examples know it to about sqrt(2/256).
    assert rows[-1]["eigenvalues"][0] == pytest.approx(1.0, abs=0.25)
    assert rows[0]["effective_dimension"] < rows[-1]["effective_dimension"] * 1.5


def test_a_repeated_example_does_not_pass_for_a_finite_rank():
    rng = np.random.default_rng(5)
    u = np.linalg.qr(rng.standard_normal((60, 60)))[0]
    matrix = 60 * (u * np.arange(1.0, 61) ** -1.5) @ u.T
    rows = np.r_[np.arange(60), 4]
    again, r = Spectrum.of(matrix[np.ix_(rows, rows)]), rng.standard_normal(61)
    assert decay_fit(again.eigenvalues).kind == "finite_rank"
    alone, found = decay_row(60, Spectrum.of(matrix), r[:60], "reml"), decay_row(61, again, r, "reml")
    assert found["kind"] == alone["kind"] == "power"
    assert found["exponent"] == pytest.approx(alone["exponent"])
    fitted = [row["fitted"] for row in spectrum_rows(61, again, r)]
    expected = [row["fitted"] for row in spectrum_rows(60, Spectrum.of(matrix), r[:60])]
    assert fitted[5] == pytest.approx(expected[5] * 60 / 61)


@pytest.mark.parametrize("size", [2, 3, 40])
def test_the_line_is_that_of_scipy(size):
    rng = np.random.default_rng(size)
    x, y = np.log(np.arange(1, size + 1)), rng.normal(size=size)
    expected = scipy.stats.linregress(x, y)
    assert least_squares(x, y) == (expected.slope, expected.intercept, expected.stderr)


def test_constant_values_have_a_level_line():
    assert least_squares(np.arange(4.0), np.ones(4)) == (0.0, 1.0, 0.0)
