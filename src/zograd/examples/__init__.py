"""Runnable examples: each script shows one method at work and checks its claims. `zograd examples` lists them."""

from zograd.gallery import Claim, Figure, Finding, Gallery, Line

__all__ = ["GALLERY", "Claim", "Figure", "Finding", "Line"]

GALLERY = Gallery("zograd.examples")
"""All scripts of this package."""
