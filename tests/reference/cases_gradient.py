"""The cases of `methods/gradient.py`."""

import papers
from problems import Case

from zograd.sets import L1Ball

CASES = [
    Case("zo_sgd", papers.zo_sgd, {"lr": 1e-2, "n": 2}),
    Case("mezo", papers.mezo, {"lr": 1e-2}),
    Case("mezo_momentum", papers.heavy_ball_from_scalars, {"lr": 1e-3, "replay": True}, "replay"),
    Case("mezo_momentum", papers.heavy_ball_from_scalars, {"lr": 1e-3, "replay": True, "window": 3}, "window"),
    Case("mezo_momentum", papers.heavy_ball, {"lr": 1e-3, "replay": False}, "slot"),
    Case("zo_adam", papers.zo_adam, {"lr": 1e-2}),
    Case("zo_adafactor", papers.zo_adafactor, {"lr": 1e-2}, shapes=papers.MATRICES),
    Case("zo_sign", papers.zo_sign, {"lr": 1e-2, "n": 3}),
    Case("fzoo", papers.fzoo, {"lr": 1e-2, "n": 4}),
    Case("rank", papers.rank, {"lr": 1e-2, "n": 5}),
    Case("rank", papers.rank, {"lr": 1e-2, "n": 6, "weights": "log"}, "log"),
    Case("rank", papers.rank, {"lr": 1e-2, "n": 7, "weights": "top", "top": 2}, "top"),
    Case("frank_wolfe", papers.frank_wolfe, {"set": L1Ball(4.0), "n": 2}, pulls=True),
]
