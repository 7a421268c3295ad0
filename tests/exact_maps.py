"""The flow map from a Gaussian to another in closed form, as a network with a second time."""

import torch

MEAN, STD = 1.5, 0.4


class ExactMap(torch.nn.Module):
    """u(x, t, s) of noise and data paired at random (`independent`), or each noise with mean + std noise.

    Random pairs: x_t has the mean m t and the deviation g(t) = sqrt((1 - t)^2 + std^2 t^2), and the flow keeps
    (x - m t) / g(t). Pairs of one line each: g(t) = 1 - t + std t instead. `off` adds a multiple of
    sin(x) (1 + s - t) to u; `wrong` distorts it.
    """

    has_second_time = True

    def __init__(self, *, independent, wrong=None):
        super().__init__()
        self.independent, self.wrong = independent, wrong
        self.off = torch.nn.Parameter(torch.zeros((), dtype=torch.float64))

    def scale(self, t):
        return ((1 - t) ** 2 + STD**2 * t**2).sqrt() if self.independent else 1 - t + STD * t

    def velocity(self, x, t):
        g = self.scale(t)
        slope = (-(1 - t) + STD**2 * t) / g if self.independent else torch.full_like(t, STD - 1)
        return MEAN + (x - MEAN * t) / g * slope

    def forward(self, x, t, label, s=None):
        x, t = x.double(), t.double()[:, None]
        s = t if s is None else s.double()[:, None]
        if self.wrong == "swapped times":
            t, s = s, t
        same = s == t
        span = torch.where(same, 1.0, s - t)
        end = MEAN * s + (x - MEAN * t) / self.scale(t) * self.scale(s)
        u = torch.where(same, self.velocity(x, t), (end - x) / span)
        if self.wrong == "velocity instead of its mean":
            u = self.velocity(x, t)
        if self.wrong == "backwards":
            u = -u
        return u + self.off * x.sin() * (1 + (s - t))
