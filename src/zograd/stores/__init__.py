"""Stores own every d-sized tensor and are the only place where a Vector becomes numbers."""

from zograd.stores.store import Block, Iterate, Leaf, Rate, Rounding, Store

__all__ = ["Block", "Iterate", "Leaf", "Rate", "Rounding", "Store"]
