"""Noise sigma and radius R of the target, from the kernel's spectrum alone: REML, GCV and their intervals.

Model: P r ~ N(0, P (tau^2 K_n + sigma^2 I) P), so the d = m - q coefficients z_i in the eigenvectors of P K_n P are
independent with variance tau^2 lambda_i + sigma^2 = tau^2 (lambda_i + mu), mu = sigma^2 / tau^2.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import scipy

from stopwise.linearized.spectrum import Spectrum

METHODS = ("reml", "gcv")
GRID_POINTS = 161
# A likelihood that varies by less than this over the whole grid says nothing about mu.
FLAT_LIKELIHOOD = 1e-6


@dataclass(frozen=True)
class Noise:
    """Estimated noise and radius, in the units of the outputs.

    ``sigma``; ``tau`` = the prior radius (R^2 = tau^2, the expected squared RKHS norm per direction); ``mu`` =
    sigma^2/tau^2; ``rkhs_norm_prior`` = tau; ``rkhs_norm_fit`` = the norm of the ridge fit at mu. ``flags``:
    ``sigma_at_boundary`` (sigma -> 0: no answer of worst_case, sure, balance or discrepancy), ``not_identifiable``
    (flat spectrum), ``no_signal`` (tau -> 0: sigma is the root mean square of P r, R = 0), ``zero_residual``. Intervals
    are 95 %, (nan, nan) until ``noise_intervals`` fills them.
    """

    sigma: float
    tau: float
    mu: float
    rkhs_norm_prior: float
    rkhs_norm_fit: float
    method: str
    flags: tuple[str, ...] = ()
    sigma_interval: tuple[float, float] = (np.nan, np.nan)
    rkhs_norm_interval: tuple[float, float] = (np.nan, np.nan)

    @property
    def usable(self) -> bool:
        """Whether sigma may be plugged into a rule."""
        return not {"sigma_at_boundary", "not_identifiable"} & set(self.flags)

    def radius(self, kind: str = "prior") -> float:
        """Return R by name: ``prior`` (tau) or ``fit``."""
        if kind not in ("prior", "fit"):
            raise ValueError(f"stopping.radius: {kind!r} is not one of prior, fit")
        return self.rkhs_norm_prior if kind == "prior" else self.rkhs_norm_fit


def estimate_noise(spec: Spectrum, residual: np.ndarray, method: str = "reml", sigma: float | None = None) -> Noise:
    """Estimate sigma and R from the residual r = y - f0 ([m] or [examples, columns]) and the spectrum.

    ``reml``: maximise the likelihood of z exactly, profiled to one dimension: for each mu, tau^2 = mean z^2/(lambda +
    mu); minimise d log tau^2(mu) + sum log(lambda + mu) on a log grid, then by bounded search in the best cell
    (Patterson & Thompson 1971). ``gcv``: mu minimises (1/m)|(I-H)r|^2 / (1 - tr H/m)^2 of ridge regression (Golub,
    Heath & Wahba 1979), sigma^2 = |(I-H)r|^2 / (m - tr H), tau^2 = sigma^2/mu. With ``sigma`` given only tau is
    estimated (by likelihood). Examples that repeat another with the same residual are left out. Cost O(161 m). Raises
    ValueError for an unknown method.
    """
    if method not in METHODS:
        raise ValueError(f"noise method {method!r} is not one of {', '.join(METHODS)}")
    distinct, rows = spec.without_repeats(residual)
    if rows.size < spec.m:
        return _of_all(estimate_noise(distinct, spec.rows(residual)[rows], method, sigma), spec.m / rows.size)
    lam, z = spec.eigenvalues[: spec.degrees], spec.coefficients(residual)[: spec.degrees]
    energy = float(np.mean(z**2))
    scale = float(np.sqrt(np.mean(spec.rows(residual) ** 2)))
    if energy <= (1e-12 * scale) ** 2:
        return Noise(0.0, 0.0, np.nan, 0.0, 0.0, method, ("zero_residual", "sigma_at_boundary"))
    if "zero_kernel" in spec.flags:
        return _finish(spec, lam, z, np.inf, sigma or np.sqrt(energy), method, ("no_signal",))
    if sigma is not None:
        return _given_sigma(spec, lam, z, sigma, method)
    if "flat_spectrum" in spec.flags or lam.size < 3:
        return Noise(np.nan, np.nan, np.nan, np.nan, np.nan, method, ("not_identifiable",))
    objective = _reml_objective if method == "reml" else _gcv_objective(spec)
    grid = mu_grid(lam)
    values = objective(grid, lam, z)
    flags: tuple[str, ...] = ()
    if np.ptp(values) < FLAT_LIKELIHOOD * (1 if method == "reml" else np.abs(values).max()):
        return Noise(np.nan, np.nan, np.nan, np.nan, np.nan, method, ("not_identifiable",))
    best = int(np.argmin(values))
    if best == grid.size - 1:
        return _finish(spec, lam, z, np.inf, np.sqrt(energy), method, ("no_signal",))
    if best == 0:
        flags = ("sigma_at_boundary",)
        mu = float(grid[0])
    else:
        mu = _refine(lambda u: float(objective(np.exp([u]), lam, z)[0]), np.log(grid), best)
    if method == "reml":
        tau2 = float(np.mean(z**2 / (lam + mu)))
        s2 = mu * tau2
    else:
        s2 = float(_gcv_sigma2(np.array([mu]), lam, z)[0])
    return _finish(spec, lam, z, mu, 0.0 if flags else np.sqrt(s2), method, flags, np.sqrt(s2 / mu))


def _of_all(noise: Noise, share: float) -> Noise:
    """Express tau and mu, estimated on m / share rows, for the kernel of all m: tau^2 K/m is the same prior."""
    low, high = noise.rkhs_norm_interval
    return replace(
        noise,
        tau=noise.tau * share**0.5,
        mu=noise.mu / share,
        rkhs_norm_prior=noise.rkhs_norm_prior * share**0.5,
        rkhs_norm_interval=(low * share**0.5, high * share**0.5),
    )


def mu_grid(lam: np.ndarray, points: int = GRID_POINTS) -> np.ndarray:
    """Return the log grid of mu: from 1e-4 of the smallest eigenvalue that is not rounding to 1e4 lambda_1.

    Beyond its ends the likelihood is its limit: sigma = 0 below (the prediction of every direction is already its full
    coefficient), tau = 0 above.
    """
    floor = lam[lam > 1e-12 * lam[0]].min()
    return np.geomspace(1e-4 * floor, 1e4 * lam[0], points)


def _refine(f, log_grid: np.ndarray, best: int) -> float:
    """Bounded minimisation of f(log mu) between the neighbours of the best grid point; returns mu."""
    found = scipy.optimize.minimize_scalar(
        f, bounds=(log_grid[best - 1], log_grid[best + 1]), method="bounded", options={"xatol": 1e-10}
    )
    return float(np.exp(found.x))


def _reml_objective(mu: np.ndarray, lam: np.ndarray, z: np.ndarray) -> np.ndarray:
    """-2 log likelihood up to a constant, tau^2 profiled out: d log mean(z^2/(lam+mu)) + sum log(lam+mu)."""
    shifted = lam + np.asarray(mu)[:, None]
    return lam.size * np.log(np.mean(z**2 / shifted, axis=1)) + np.log(shifted).sum(axis=1)


def _gcv_objective(spec: Spectrum):
    m, q = spec.m, spec.m - spec.degrees

    def objective(mu: np.ndarray, lam: np.ndarray, z: np.ndarray) -> np.ndarray:
        kept = np.asarray(mu)[:, None] / (lam + np.asarray(mu)[:, None])
        df = q + lam.size - kept.sum(axis=1)
        return ((kept * z) ** 2).sum(axis=1) / m / np.maximum(1 - df / m, 1e-12) ** 2

    return objective


def _gcv_sigma2(mu: np.ndarray, lam: np.ndarray, z: np.ndarray) -> np.ndarray:
    """|(I-H)r|^2 / (m - tr H) at each mu, with m - tr H = sum mu/(lam+mu) over the d directions."""
    kept = mu[:, None] / (lam + mu[:, None])
    return ((kept * z) ** 2).sum(axis=-1) / kept.sum(axis=-1)


def _given_sigma(spec: Spectrum, lam: np.ndarray, z: np.ndarray, sigma: float, method: str) -> Noise:
    """Maximise the likelihood over tau with sigma known; tau = 0 is flagged ``no_signal``."""
    if not sigma > 0:
        raise ValueError(f"sigma must be positive, found {sigma}")
    grid = mu_grid(lam)

    def objective(mu: np.ndarray) -> np.ndarray:
        variance = (sigma**2 / np.asarray(mu))[:, None] * lam + sigma**2
        return (np.log(variance) + z**2 / variance).sum(axis=1)

    best = int(np.argmin(objective(grid)))
    if best == grid.size - 1:
        return _finish(spec, lam, z, np.inf, sigma, method, ("no_signal",))
    mu = float(grid[0]) if best == 0 else _refine(lambda u: float(objective(np.exp([u]))[0]), np.log(grid), best)
    return _finish(spec, lam, z, mu, sigma, method, (), sigma / np.sqrt(mu))


def _finish(
    spec: Spectrum, lam: np.ndarray, z: np.ndarray, mu: float, sigma: float, method: str, flags: tuple, tau: float = 0.0
) -> Noise:
    fit = 0.0 if np.isinf(mu) else float(np.sqrt((lam * z**2 / (lam + mu) ** 2).sum() / spec.m))
    return Noise(float(sigma), float(tau), mu, float(tau), fit, method, flags)


def noise_intervals(
    spec: Spectrum, residual: np.ndarray, noise: Noise, level: float = 0.95, draws: int = 200, seed: int = 0
) -> Noise:
    """Return ``noise`` with intervals of sigma and of the prior radius tau filled in.

    ``reml``: the profile likelihood region {-2 log L <= minimum + chi2_1(level)}, projected on sigma and on tau; for
    each mu the region of tau^2 is explicit (Lambert W). ``gcv``: percentiles of ``draws`` parametric resamples of z
    from the fitted model, minimised on a grid of mu. Unusable noise is returned as it is, and so is
    ``no_signal`` by gcv. Cost O(161 m), times draws for gcv.
    """
    if not noise.usable or (noise.method == "gcv" and "no_signal" in noise.flags):
        return noise
    distinct, rows = spec.without_repeats(residual)
    if rows.size < spec.m:
        share = spec.m / rows.size
        known = spec.rows(residual)[rows]
        return _of_all(noise_intervals(distinct, known, _of_all(noise, 1 / share), level, draws, seed), share)
    lam, z = spec.eigenvalues[: spec.degrees], spec.coefficients(residual)[: spec.degrees]
    if noise.method == "reml":
        sigmas, taus = _profile_region(lam, z, level)
    else:
        sigmas, taus = _resampled(spec, lam, noise, level, draws, seed)
    return replace(noise, sigma_interval=sigmas, rkhs_norm_interval=taus)


def _profile_region(lam: np.ndarray, z: np.ndarray, level: float) -> tuple[tuple[float, float], tuple[float, float]]:
    grid = mu_grid(lam, 4 * GRID_POINTS)
    profile, d = _reml_objective(grid, lam, z), lam.size
    # The level's quantile of chi^2 with one degree of freedom is 2 gammaincinv(1/2, level).
    # With x = tau^2 / tau^2(mu), the criterion exceeds its profile by d (log x + 1/x - 1): at most ``room``.
    room = profile.min() + 2 * scipy.special.gammaincinv(0.5, level) - profile
    inside = room >= 0
    mu, c = grid[inside], room[inside] / d
    best = np.mean(z**2 / (lam + mu[:, None]), axis=1)
    low, high = (-1 / np.real(scipy.special.lambertw(-np.exp(-1 - c), k)) for k in (-1, 0))
    ends = []
    for unit in (mu, np.ones_like(mu)):
        ends.append((float(np.sqrt((low * best * unit).min())), float(np.sqrt((high * best * unit).max()))))
    (s_low, s_high), (t_low, t_high) = ends
    if inside[0]:
        s_low = 0.0
    if inside[-1]:
        t_low = 0.0
    return (s_low, s_high), (t_low, t_high)


def _resampled(
    spec: Spectrum, lam: np.ndarray, noise: Noise, level: float, draws: int, seed: int
) -> tuple[tuple[float, float], tuple[float, float]]:
    rng = np.random.default_rng(seed)
    energy = (rng.standard_normal((draws, lam.size)) ** 2) * (noise.tau**2 * lam + noise.sigma**2)
    grid = mu_grid(lam)
    kept = grid[:, None] / (lam + grid[:, None])
    left = energy @ (kept**2).T
    trace = kept.sum(axis=1)
    mu = np.argmin(left / (trace / spec.m) ** 2, axis=1)
    sigma = np.sqrt(left[np.arange(draws), mu] / trace[mu])
    tau = sigma / np.sqrt(grid[mu])
    tails = [(1 - level) / 2, (1 + level) / 2]
    (s_low, s_high), (t_low, t_high) = (np.quantile(x, tails) for x in (sigma, tau))
    return (float(s_low), float(s_high)), (float(t_low), float(t_high))
