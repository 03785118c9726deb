"""Checks of the exercises of Part II."""
