"""Scripts that show one thing each: what they find, how they are listed, drawn and described on the site."""

from zograd.gallery.finding import Claim, Figure, Finding, Line
from zograd.gallery.index import About, Gallery, Ran

__all__ = ["About", "Claim", "Figure", "Finding", "Gallery", "Line", "Ran"]
