"""Stores own every d-sized tensor and are the only place where a Vector becomes numbers."""

from zograd.stores.iterate import Iterate, Rate
from zograd.stores.leaf import Block, Leaf
from zograd.stores.leaves import Rounding
from zograd.stores.store import GradientSource, InputSource, Store

__all__ = ["Block", "GradientSource", "InputSource", "Iterate", "Leaf", "Rate", "Rounding", "Store"]
