"""A layer that shows what a training run feeds to a model."""

from torch import nn


class Spy(nn.Module):
    """Passes its input on, and keeps each input with the mode it came in; copies keep it in the same list."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __deepcopy__(self, memo):
        twin = Spy()
        twin.seen = self.seen
        return twin

    def forward(self, x):
        self.seen.append((self.training, x.detach().clone()))
        return x
