"""Norms of one linear map. Nothing here knows of a model."""
