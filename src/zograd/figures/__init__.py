"""Figures of the talks and papers that zograd began with, computed anew. `zograd figures` lists them."""

from zograd.gallery import Claim, Figure, Finding, Gallery, Line

__all__ = ["GALLERY", "Claim", "Figure", "Finding", "Line"]

GALLERY = Gallery("zograd.figures")
"""All scripts of this package."""
