"""Rules of matrices, of cosines and of the Fisher matrix: the recurrences in NumPy, and their cases."""

import numpy as np
from problems import Case
from scipy.fft import dct

from zograd.rules import Signs, Sinkhorn

MATRICES = ((4, 3), (8,))
WIDE = ((2, 6), (8,))


def two_point(f, x, V, mu):
    """(1/n) sum_j (f(x + mu v_j) - f(x - mu v_j)) / (2 mu) v_j."""
    return np.mean([(f(x + mu * v) - f(x - mu * v)) / (2 * mu) * v for v in V], axis=0)


def each_matrix(shape, *maps):
    """The map on the matrix of twelve elements and on the column of eight, end to end."""

    def apply(x):
        first, second = maps * 2 if len(maps) == 1 else maps
        return np.concatenate([first(x[:12].reshape(shape)).ravel(), second(x[12:].reshape(8, 1)).ravel()])

    return apply


def polar(C):
    """U V^T of C = U S V^T over the singular values that are not 0."""
    U, s, Vt = np.linalg.svd(C, full_matrices=False)
    r = int(np.sum(s > 1e-14 * max(s[0], 1e-300)))
    return U[:, :r] @ Vt[:r] if s[0] > 0 else 0 * C


def quintic(X, steps=5):
    """Muon's Newton-Schulz iteration (Jordan et al. 2024)."""
    norm = np.linalg.norm(X)
    X = X / norm if norm > 0 else X
    for _ in range(steps):
        A = X @ X.T
        X = 3.4445 * X + (-4.7750 * A + 2.0315 * A @ A) @ X
    return X


def lion_k(f, x0, directions, dK, *, lr, mu, beta1=0.9, beta2=0.99, weight_decay=0.0):
    x, m = x0, np.zeros_like(x0)
    for V in directions:
        g = two_point(f, x, V, mu)
        x = x - lr * (dK(beta1 * m + (1 - beta1) * g) + weight_decay * x)
        m = beta2 * m + (1 - beta2) * g
        yield x


def zo_lion_rows(f, x0, directions, **settings):
    """Lion-K (arXiv 2310.05898) with K(C) = sqrt(columns) sum_i |C_i|_2."""
    rows = each_matrix((4, 3), lambda C: C / np.maximum(np.linalg.norm(C, axis=1, keepdims=True), 1e-300))
    scale = np.repeat([np.sqrt(3), 1.0], [12, 8])
    return lion_k(f, x0, directions, lambda c: scale * rows(c), **settings)


def zo_lion_nuclear(f, x0, directions, **settings):
    """Lion-K with K the sum of the singular values of each leaf: its gradient is the polar factor."""
    return lion_k(f, x0, directions, each_matrix((4, 3), polar), **settings)


TINY = np.finfo(float).eps ** (2 / 3)
"""What is smaller, relative to the largest, is 0 by rounding."""


def positive_qr(A, before):
    """Gram-Schmidt; a column of A that depends on others is replaced by what is left of one of `before`."""
    k, columns = len(A), {}

    def rest(v):
        for _ in range(2):
            v = v - sum((u * (u @ v) for u in columns.values()), np.zeros(k))
        return v

    for j in range(k):
        v = rest(A[:, j])
        if np.linalg.norm(v) > TINY * np.linalg.norm(A, axis=0).max():
            columns[j] = v / np.linalg.norm(v)
    for j in [j for j in range(k) if j not in columns]:
        v = next(v for i in range(k) if (v := rest(before[:, (j + i) % k])) @ v > 0.5 / k)
        columns[j] = v / np.linalg.norm(v)
    return np.stack([columns[j] for j in range(k)], axis=1)


def sinkhorn(X, passes=5):
    for _ in range(passes):
        for axis in (1, 0):
            rms = np.sqrt(np.mean(X**2, axis=axis, keepdims=True))
            X = X / np.where(rms > 0, rms, 1)
    return X


def aro_on(shape):
    def aro(f, x0, directions, *, lr, mu, beta=0.95, base=None, weight_decay=0.0):
        """ARO (arXiv 2602.09006): M <- b M + (1 - b) G, R <- QR(M f(R'^T M)^T), W <- W - lr R f(R^T M)."""
        base = sinkhorn if base is None or isinstance(base, Sinkhorn) else np.sign
        x, m, rotations = x0, np.zeros_like(x0), {}

        def turned(M):
            M = M if M.shape[0] <= M.shape[1] else M.T
            R = rotations.get(M.shape, np.eye(len(M)))

            def f(S):
                return base(np.where(np.abs(S) > TINY * np.abs(S).max(), S, 0))

            R = rotations[M.shape] = positive_qr(M @ f(R.T @ M).T, R)
            return R @ f(R.T @ M)

        back = each_matrix(shape, *(lambda M: turned(M) if M.shape[0] <= M.shape[1] else turned(M).T for _ in "ab"))
        for V in directions:
            m = beta * m + (1 - beta) * two_point(f, x, V, mu)
            x = (1 - lr * weight_decay) * x - lr * back(m)
            yield x

    return aro


def aro(f, x0, directions, **settings):
    """ARO on a leaf that is turned from the right."""
    return aro_on((4, 3))(f, x0, directions, **settings)


def aro_wide(f, x0, directions, **settings):
    """ARO on a leaf that is turned from the left."""
    return aro_on((2, 6))(f, x0, directions, **settings)


def chosen_cosines(G, rank):
    """S = G Q by SciPy's orthonormal DCT of type 2, the strongest columns, and those columns of Q."""
    S = dct(G, axis=1, norm="ortho")
    chosen = np.sort(np.argsort(-np.abs(S).sum(0), kind="stable")[:rank])
    Q = dct(np.eye(G.shape[1]), axis=1, norm="ortho")
    return S[:, chosen], Q[:, chosen], chosen


def trion(f, x0, directions, *, lr, mu, rank=16, beta=0.95, weight_decay=0.0):
    """Trion (arXiv 2505.17967): momentum with what the cosines leave out, orthogonalised on the cosines."""
    x, m = x0, np.zeros_like(x0)
    for V in directions:
        m = m + two_point(f, x, V, mu)
        parts, moves = [], []
        for M in (m[:12].reshape(4, 3), m[12:].reshape(8, 1)):
            S, Q, _ = chosen_cosines(M, rank)
            parts.append((M - (1 - beta) * S @ Q.T).ravel())
            moves.append((np.sqrt(max(1, M.shape[0] / M.shape[1])) * quintic(S) @ Q.T).ravel())
        m = np.concatenate(parts)
        x = (1 - lr * weight_decay) * x - lr * np.concatenate(moves)
        yield x


def dct_adamw(
    f, x0, directions, *, lr, mu, rank=16, beta1=0.9, beta2=0.999, eps=1e-8, refresh=1, feedback=False, weight_decay=0.0
):
    """DCT-AdamW (arXiv 2505.17967): moments of S_I, rotated by Q_I_old^T Q_I_new when I changes."""
    x, error, kept = x0, np.zeros_like(x0), [None, None]
    for t, V in enumerate(directions):
        g = two_point(f, x, V, mu) + (error if feedback else 0)
        moves, rests = [], []
        for k, G in enumerate((g[:12].reshape(4, 3), g[12:].reshape(8, 1))):
            S, Q, chosen = chosen_cosines(G, rank)
            if kept[k] is None:
                m = v = np.zeros_like(S)
            else:
                m, v, old = kept[k]
                if t % refresh:
                    Q = dct(np.eye(G.shape[1]), axis=1, norm="ortho")[:, old]
                    S, chosen = G @ Q, old
                else:
                    turn = dct(np.eye(G.shape[1]), axis=1, norm="ortho")[:, old].T @ Q
                    m, v = m @ turn, v @ turn**2
            m, v = beta1 * m + (1 - beta1) * S, beta2 * v + (1 - beta2) * S**2
            kept[k] = m, v, chosen
            step = m / (1 - beta1 ** (t + 1)) / (np.sqrt(np.maximum(v, 0) / (1 - beta2 ** (t + 1))) + eps)
            moves.append((step @ Q.T).ravel())
            rests.append((G - S @ Q.T).ravel())
        error = np.concatenate(rests)
        x = (1 - lr * weight_decay) * x - lr * np.concatenate(moves)
        yield x


def mfac(f, x0, directions, *, lr, mu, window=16, damping=1e-2, weight_decay=0.0):
    """M-FAC (arXiv 2107.03356) with the d x d matrix: x <- x - lr (damping I + G^T G / m)^-1 g."""
    x, past = x0, []
    for V in directions:
        past = [two_point(f, x, V, mu), *past[: window - 1]]
        G = np.array(past)
        H = damping * np.eye(x.size) + G.T @ G / len(past)
        x = (1 - lr * weight_decay) * x - lr * np.linalg.solve(H, past[0])
        yield x


def salaad(f, x0, directions, *, lr, mu, rank=0.25, density=0.05, rho=1.0, gain=0.02, every=20, weight_decay=0.0):
    """SALAAD (arXiv 2602.00942) on the matrix; the column of eight moves by descent."""
    x, M = x0, x0[:12].reshape(4, 3)
    S, Y, a, b = np.zeros((4, 3)), np.zeros((4, 3)), 0.0, 0.0
    for t, V in enumerate(directions, 1):
        g = two_point(f, x, V, mu)
        g[:12] += rho * (x[:12] - M.ravel())
        x = (1 - lr * weight_decay) * x - lr * g
        if t % every == 0:
            X = x[:12].reshape(4, 3)
            U, s, Vt = np.linalg.svd(X - S + Y, full_matrices=False)
            s = np.maximum(s - a / rho, 0)
            L = U @ np.diag(s) @ Vt
            Z = X - L + Y
            S = np.sign(Z) * np.maximum(np.abs(Z) - b / rho, 0) * (np.abs(Z) > TINY * np.abs(X).max())
            Y = Y + X - L - S
            M = L + S - Y
            k = next((k for k in range(1, 4) if (s[:k] ** 2).sum() >= 0.999 * (s**2).sum() > 0), 0)
            a = max(0.0, a + gain * rho * (k / 3 - rank))
            b = max(0.0, b + gain * rho * (np.mean(S != 0) - density))
        yield x


OURS = ("n", "law")
CASES = [
    Case("zo_lion_rows", zo_lion_rows, {"lr": 1e-2, "n": 2}, shapes=MATRICES),
    Case("zo_lion_nuclear", zo_lion_nuclear, {"lr": 1e-2, "n": 2}, shapes=MATRICES),
    Case("aro", aro, {"lr": 1e-2, "n": 2}, shapes=MATRICES),
    Case("aro", aro, {"lr": 1e-2, "n": 2, "base": Signs()}, "signs", shapes=MATRICES),
    Case("aro", aro_wide, {"lr": 1e-2, "n": 2}, "wide", shapes=WIDE),
    Case("trion", trion, {"lr": 1e-2, "n": 2, "rank": 2}, shapes=MATRICES),
    Case("dct_adamw", dct_adamw, {"lr": 1e-2, "n": 2, "rank": 2, "eps": 1e-4}, shapes=MATRICES),
    Case("dct_adamw", dct_adamw, {"lr": 1e-2, "n": 2, "rank": 2, "eps": 1e-4, "refresh": 7, "feedback": True},
         "feedback", shapes=MATRICES),
    Case("salaad", salaad, {"lr": 1e-2, "n": 2, "every": 7}, shapes=MATRICES, pulls=True),
    Case("mfac", mfac, {"lr": 1e-2, "n": 2, "window": 7}),
]  # fmt: skip
