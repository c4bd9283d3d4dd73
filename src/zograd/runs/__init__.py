"""Runs on disk: their folder, the report about them, the plan before them, and the memory that they take."""
