"""Differential privacy without clipping: sensitivities from contracts, noise, accounting, audits.

Everywhere in this part two data sets are neighbours if one has one record more: add/remove adjacency.
"""
