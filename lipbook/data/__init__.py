"""The book's two data sets, read offline, and its four networks; the same every time."""

from lipbook.data.checkpoints import network
from lipbook.data.dataset import Dataset
from lipbook.data.fashion import DataFileError, fashion_mnist
from lipbook.data.handwritten import digits

__all__ = ["DataFileError", "Dataset", "digits", "fashion_mnist", "network"]
