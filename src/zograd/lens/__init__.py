"""Evaluating a loss at a point other than the weights, without writing to the weights."""
