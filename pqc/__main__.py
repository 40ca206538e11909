"""`python -m pqc`."""

from pqc.cli import main

main()
