"""`python -m zograd`."""

from zograd.cli import main

main()
