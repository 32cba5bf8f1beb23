"""``python -m mlops_ext``: the command line, if its script is not on PATH."""

from mlops_ext.cli import main

main()
