"""The methods of `methods/evolution.py` as their papers write them; see `papers.py` for the form.

D, C and sigma are kept apart and every point has a row of its own here, as in the papers; the library keeps one number
a weight, and sums over the population first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np
import numpy.typing as npt
from scipy.optimize import brentq

Array = npt.NDArray[np.float64]
Loss = Callable[[Array], float]
Directions = Iterable[Array]


def first_sigma(x0: Array, sigma: float | None) -> float:
    """The standard deviation at the start; our default is 0.3 |x0| / sqrt(d)."""
    return 0.3 * float(np.sqrt(np.mean(x0**2))) if sigma is None else sigma


def ascending(f: Loss, points: Array) -> npt.NDArray[np.intp]:
    """The numbers of the points, the best first."""
    return np.argsort([f(p) for p in points], kind="stable")


def snes(f: Loss, x0: Array, directions: Directions, *, mu: float, sigma: float | None = None) -> Iterator[Array]:
    """SNES (Schaul et al. 2011), Algorithm 2: mu += eta_mu sigma grad_mu, sigma *= exp(eta_sigma/2 grad_sigma)."""
    d = x0.size
    x, s = x0, np.full(d, first_sigma(x0, sigma))
    eta = (3 + np.log(d)) / (5 * np.sqrt(d))
    for Z in directions:
        k = np.arange(1, len(Z) + 1)
        u = np.maximum(0, np.log(len(Z) / 2 + 1) - np.log(k))
        u = u / u.sum() - 1 / len(Z)
        best = Z[ascending(f, x + s * Z)]
        x = x + s * (u @ best)
        s = s * np.exp(eta / 2 * (u @ (best**2 - 1)))
        yield x


def sep_cma(f: Loss, x0: Array, directions: Directions, *, mu: float, sigma: float | None = None) -> Iterator[Array]:
    """CMA-ES (Hansen 2016, Fig. 6) with a diagonal C and rates (d + 2) / 3 times as fast (Ros and Hansen 2008)."""
    d = x0.size
    x, s = x0, first_sigma(x0, sigma)
    C, p_s, p_c = np.ones(d), np.zeros(d), np.zeros(d)
    for g, Z in enumerate(directions):
        half = len(Z) // 2
        w = np.log((len(Z) + 1) / 2) - np.log(np.arange(1, half + 1))
        w = w / w.sum()
        m_eff = 1 / np.sum(w**2)
        c_s = (m_eff + 2) / (d + m_eff + 5)
        d_s = 1 + 2 * max(0, np.sqrt((m_eff - 1) / (d + 1)) - 1) + c_s
        c_c = (4 + m_eff / d) / (d + 4 + 2 * m_eff / d)
        c_1 = 2 / ((d + 1.3) ** 2 + m_eff) * (d + 2) / 3
        c_m = min(1 - c_1, 2 * (m_eff - 2 + 1 / m_eff) / ((d + 2) ** 2 + m_eff) * (d + 2) / 3)
        chi = np.sqrt(d) * (1 - 1 / (4 * d) + 1 / (21 * d**2))

        Y = np.sqrt(C) * Z
        Y = Y[ascending(f, x + s * Y)[:half]]
        y_w = w @ Y
        x = x + s * y_w
        p_s = (1 - c_s) * p_s + np.sqrt(c_s * (2 - c_s) * m_eff) * y_w / np.sqrt(C)
        h = np.linalg.norm(p_s) / np.sqrt(1 - (1 - c_s) ** (2 * (g + 1))) < (1.4 + 2 / (d + 1)) * chi
        p_c = (1 - c_c) * p_c + h * np.sqrt(c_c * (2 - c_c) * m_eff) * y_w
        C = (1 + c_1 * (1 - h) * c_c * (2 - c_c) - c_1 - c_m) * C + c_1 * p_c**2 + c_m * (w @ Y**2)
        s = s * np.exp(c_s / d_s * (np.linalg.norm(p_s) / chi - 1))
        yield x


def natural_gradient(y: Array, v: Array) -> tuple[Array, Array]:
    """(s, t): the natural gradient of ln p(y) for y = (x - m) / (sigma D), in ln D and v |v|.

    Nomura and Ono 2022, Algorithm 1, from VD-CMA (Akimoto, Auger and Hansen 2014, Theorem 3.6).
    """
    n = np.linalg.norm(v)
    u = v / n
    uu, gamma = u**2, 1 + n**2
    a = min(1.0, np.sqrt(n**4 + (2 * gamma - np.sqrt(gamma)) / uu.max()) / (2 + n**2))
    b = -(1 - a**2) * n**4 / gamma + 2 * a**2
    inverse = 1 / (2 - (b + 2 * a**2) * uu)
    t = y * (y @ u) - u * ((y @ u) ** 2 + gamma) / 2
    s = y**2 - n**2 / gamma * (y @ u) * y * u - 1
    s = s - a / gamma * ((2 + n**2) * u * t - n**2 * (u @ t) * uu)
    s = inverse * s - b / (1 + b * (uu @ (inverse * uu))) * ((inverse * uu) @ s) * inverse * uu
    t = t - a * ((2 + n**2) * u * s - (s @ uu) * u)
    return s, t


def cr_fm_nes(f: Loss, x0: Array, directions: Directions, *, mu: float, sigma: float | None = None) -> Iterator[Array]:
    """CR-FM-NES (Nomura and Ono 2022), Algorithm 1, on rows z_1 .. z_m of which both signs are taken.

    The last row of the first step is sqrt(d) times the first v.
    """
    d = x0.size
    m, s, D, v = x0, first_sigma(x0, sigma), np.ones(d), np.zeros(d)
    p_s, p_c = np.zeros(d), np.zeros(d)
    for g, V in enumerate(directions):
        half = V[:-1]
        v = V[-1] / np.sqrt(d) if g == 0 else v
        Z = np.stack([sign * z for z in half for sign in (1, -1)])
        n = len(Z)
        w_hat = np.maximum(0, np.log(n / 2 + 1) - np.log(np.arange(1, n + 1)))
        w_rank = w_hat / w_hat.sum() - 1 / n
        m_eff = 1 / np.sum((w_rank + 1 / n) ** 2)
        c_s = (m_eff + 2) / (d + m_eff + 5)
        c_c = (4 + m_eff / d) / (d + 4 + 2 * m_eff / d)
        c_1 = (d - 5) / 6 * 2 / ((d + 1.3) ** 2 + m_eff)
        chi = np.sqrt(d) * (1 - 1 / (4 * d) + 1 / (21 * d**2))

        unit = v / np.linalg.norm(v)
        Y = Z + (np.sqrt(1 + v @ v) - 1) * np.outer(Z @ unit, unit)
        order = ascending(f, m + s * D * Y)
        Z, Y = Z[order], Y[order]
        p_s = (1 - c_s) * p_s + np.sqrt(c_s * (2 - c_s) * m_eff) * (w_rank @ Z)
        w, eta_s = w_rank, 1.0
        if np.linalg.norm(p_s) >= chi:
            h = brentq(lambda h: (1 + h**2) * np.exp(h**2 / 2) / 0.24 - 10 - d, 0, 10, xtol=1e-15, rtol=1e-15)
            w = w_hat * np.exp(h * min(1, np.sqrt(n / d)) * np.linalg.norm(Z, axis=1))
            w = w / w.sum() - 1 / n
        elif np.linalg.norm(p_s) >= 0.1 * chi:
            eta_s = np.tanh((0.024 * n + 0.7 * d + 20) / (d + 12))
        else:
            eta_s = 2 * np.tanh((0.025 * n + 0.75 * d + 10) / (d + 4))
        eta_b = np.tanh((min(0.02 * n, 3 * np.log(d)) + 5) / (0.23 * d + 25))
        m = m + s * D * (w @ Y)
        p_c = (1 - c_c) * p_c + np.sqrt(c_c * (2 - c_c) * m_eff) * D * (w @ Y)
        S, T = zip(*(natural_gradient(y, v) for y in (*Y, p_c / D)), strict=True)
        rates = np.append(eta_b * w, c_1)
        v, D = v + (rates @ np.array(T)) / np.linalg.norm(v), D + (rates @ np.array(S)) * D
        D = D / np.exp(np.mean(np.log(D)) + np.log(1 + v @ v) / (2 * d))
        s = s * np.exp(eta_s / 2 * np.sum(w @ (Z**2 - 1)) / d)
        yield m
