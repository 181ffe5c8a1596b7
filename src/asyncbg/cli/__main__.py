"""``python -m asyncbg.cli``."""

from asyncbg.cli.main import main

main()
