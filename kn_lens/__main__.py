"""``python -m kn_lens``."""

from kn_lens.cli import main

main()
