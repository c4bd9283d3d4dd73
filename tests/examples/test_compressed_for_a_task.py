"""Rows 33 and 63: what the example prunes and factorises, against NumPy."""

from __future__ import annotations

import copy

import numpy as np
import torch

from zograd import compress
from zograd.examples.compressed_for_a_task import data, fisher, measured, pruned, trained, weighted_error


def test_the_pruned_network_is_that_of_numpy() -> None:
    sets = data(0)
    net = trained(*sets["any"], 0, 20)
    new = pruned(net, sets, "task", 0.5)
    x, w = sets["task"][0].numpy(), net[0].weight.numpy()
    scores = np.abs(w) * np.sqrt((x**2).sum(0))
    gone = np.argsort(scores, axis=1, kind="stable")[:, :32]
    expected = w.copy()
    np.put_along_axis(expected, gone, 0.0, axis=1)
    np.testing.assert_array_equal(new[0].weight, expected)
    assert torch.equal(new[4].weight, net[4].weight), "the output layer stays"
    assert measured(net, *sets["test"]) != measured(new, *sets["test"])


def test_weights_of_rows_and_the_least_weighted_error() -> None:
    sets = data(0)
    net = trained(*sets["any"], 0, 20)
    rows = fisher(net, sets, 1)
    d = rows["autograd"]["0"].numpy()
    w = net[0].weight.numpy()
    rank = compress.rank_of(w.shape, 0.4)
    s = np.linalg.svd(np.maximum(d, 1e-6 * d.max())[:, None] * w, compute_uv=False)
    thin = copy.deepcopy(net)
    compress.factorise_(thin, compress.linear_layers(thin, "0"), 0.4, rows["autograd"])
    assert np.isclose(weighted_error(net, thin, {"0": rows["autograd"]["0"]}), (s[rank:] ** 2).sum(), rtol=1e-6)
