"""The book's two data sets, read offline; the same split and the same order every time."""

from lipbook.data.images import Split, digits, fashion_mnist

__all__ = ["Split", "digits", "fashion_mnist"]
