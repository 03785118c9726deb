"""Training: a plain loop that every chapter's networks come from."""

from lipbook.training.loop import fit

__all__ = ["fit"]
