"""Every coupling there is, on the same images, and pairs to be changed."""

from dataclasses import dataclass

import torch

from fmcore.flow.couplings import (
    Flipped,
    Independent,
    Indexed,
    LabelDropout,
    MinibatchOT,
    Mixture,
    Pairs,
    Sharded,
    Slerped,
    Stored,
)
from fmcore.flow.pixels import dequantise
from fmcore.flow.rng import generator, noise

COUNT, SHAPE, NULL = 12, (1, 2, 2), 99
PIXELS = torch.arange(COUNT, dtype=torch.uint8).reshape(-1, 1, 1, 1).expand(COUNT, *SHAPE).contiguous()
X1 = dequantise(PIXELS)  # each image says which it is
LABEL = torch.arange(COUNT) * 7 % 5


def family(label):
    """Every coupling there is, on the same images."""
    x0 = noise(0, "stored", 0, COUNT, SHAPE)
    independent, pixels = Independent(X1, label), Independent(PIXELS, label)
    stored, halves = Stored(Pairs(x0, X1, label)), Stored(Pairs(x0.half(), X1.half(), label))
    ot = MinibatchOT(independent)
    parts = [Pairs(x0[a:b], X1[a:b], None if label is None else label[a:b]) for a, b in ((0, 5), (5, COUNT))]
    return {
        "independent": independent,
        "independent pixels": pixels,
        "items": Indexed([(x, int(k)) for x, k in zip(X1, label, strict=True)] if label is not None else list(X1)),
        "stored": stored,
        "stored halves": halves,
        "sharded": Sharded(tuple(parts)),
        "minibatch OT": ot,
        "minibatch OT of pixels": MinibatchOT(pixels),
        "mixture": Mixture((independent, stored, ot), (0.5, 0.3, 0.2)),
        "mixture that ends": Mixture((halves, pixels), (0.25, 0.75), until=0.5),
        "slerped": Slerped(stored, 0.13),
        "flipped": Flipped(pixels),
        "all at once": Slerped(Flipped(Mixture((ot, Flipped(halves)), (0.5, 0.5))), 0.5),
        **({} if label is None else {"label dropout": LabelDropout(Flipped(independent), 0.5, NULL)}),
    }


COUPLINGS, BARE = family(LABEL), family(None)


def which(x1):
    """The images' numbers."""
    number = ((x1.double() + 1) * 127.5).round().long()
    assert (number == number[:, :1, :1, :1]).all()
    return number[:, 0, 0, 0]


def same(a, b):
    return all((u is v is None) or torch.equal(u, v) for u, v in zip(a, b, strict=True))


@dataclass(frozen=True)
class Given:
    """A coupling that returns the pairs it was given, and says that it is slow if told so."""

    pairs: Pairs
    slow: bool = False

    def __len__(self):
        return len(self.pairs.x0)

    def __call__(self, count, generator, progress=0.0):
        return Pairs(*(None if part is None else part[:count] for part in self.pairs))


def given_pairs(count, *shape, slow=False, label=None):
    x0, x1 = torch.randn((2, count, *shape), generator=generator(0, "given"))
    return Given(Pairs(x0, x1, label), slow)


WIDE = given_pairs(500, 3, 16, 16)
