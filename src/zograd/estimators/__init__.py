"""Estimators: generators that yield points, receive losses and return a gradient estimate."""

from zograd.estimators.differences import Central, Forward, OneSided, Spread
from zograd.estimators.ranked import Ranked

__all__ = ["Central", "Forward", "OneSided", "Ranked", "Spread"]
