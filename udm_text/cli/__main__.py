"""`python -m udm_text.cli` is the command where it is not on the path."""

from . import main

main()
