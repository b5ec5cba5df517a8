"""``python -m lightning_synth``."""

from lightning_synth.cli import main

main()
