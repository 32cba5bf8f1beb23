"""``python -m mlops_ext``: the command line, where its script is not on PATH."""

from mlops_ext.cli import main

main()
