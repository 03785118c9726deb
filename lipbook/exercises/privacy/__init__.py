"""Checks of the exercises of Part V."""
