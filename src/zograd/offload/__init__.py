"""Weights that do not fit: in files that are mapped into memory, or in RAM and copied to a device block by block."""
