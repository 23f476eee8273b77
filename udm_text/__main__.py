"""`python -m udm_text` is the command `udm`, where that is not on the path."""

from .cli import main

main()
