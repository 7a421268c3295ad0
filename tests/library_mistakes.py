"""What a program may get wrong, and the line that answers it: `python library_mistakes.py` prints each as JSON.

It runs in a process of its own, without the type checks that the tests put around every function of fmcore.
"""

import json
import warnings

import numpy as np
import torch
from torch import nn

import fmcore
from fmcore.flow.couplings import Independent

X1 = torch.randn(600, 2, generator=torch.Generator().manual_seed(0))
LABEL = torch.arange(600) % 3


class Net(nn.Module):
    """A class that was not called."""


REFUSED = {
    "a list": (lambda: fmcore.fit("mlp", [[1.0, 2.0]]), TypeError, "data: expected an array, .* got list"),
    "no data": (lambda: fmcore.fit("mlp", X1[:0]), ValueError, "data: expected samples, got none"),
    "texts": (lambda: fmcore.fit("mlp", np.array(["a"])), TypeError, "data: expected a tensor or a NumPy array"),
    "whole numbers": (lambda: fmcore.fit("mlp", X1.long()), TypeError, r"x1: expected floats, or 8-bit.*int64"),
    "name": (lambda: fmcore.fit("mpl", X1), ValueError, "network: expected one of mlp, unet, unet1d, got 'mpl'"),
    "class": (lambda: fmcore.fit(Net, X1), TypeError, "network: expected a name .* got the class Net"),
    "images": (lambda: fmcore.fit("unet", X1), ValueError, "unet needs images"),
    "labels": (
        lambda: fmcore.fit("mlp", X1, labels=LABEL[:5]),
        ValueError,
        "labels: expected one for each of 600",
    ),
    "few classes": (
        lambda: fmcore.fit("mlp", X1, labels=LABEL, num_classes=2),
        ValueError,
        "labels: expected 0 to 1",
    ),
    "dropout": (lambda: fmcore.fit("mlp", X1, label_dropout=0.1), ValueError, "label_dropout: expected 0"),
    "path": (lambda: fmcore.fit("mlp", X1, path="lin"), ValueError, "path: expected one of linear, .*got 'lin'"),
    "a class of paths": (
        lambda: fmcore.flow_objective(Independent(X1), fmcore.flow.paths.Linear, batch_size=2),
        TypeError,
        r"path: expected an object, got the class Linear: Linear\(\)",
    ),
    "times": (lambda: fmcore.fit("mlp", X1, times=3), TypeError, "times: expected a name"),
    "coupling": (
        lambda: fmcore.fit("mlp", X1, coupling="ot"),
        ValueError,
        "coupling: expected one of independent",
    ),
    "precision": (lambda: fmcore.fit("mlp", X1, precision="fp8"), ValueError, "unknown precision 'fp8'"),
    "source": (
        lambda: fmcore.fit("mlp", X1, x0=X1[:, :1]),
        ValueError,
        r"source: expected samples of shape \(2,\)",
    ),
    "beside pairs": (
        lambda: fmcore.fit("mlp", fmcore.Pairs(X1, X1), x0=X1),
        ValueError,
        "x0: expected none beside a Pairs",
    ),
    "weighting": (
        lambda: fmcore.flow_objective(Independent(X1), batch_size=2, weighting="foo"),
        ValueError,
        "weighting: expected one of none, data, noise, inverse_noise, got 'foo'",
    ),
    "no coupling": (
        lambda: fmcore.flow_objective(X1, batch_size=2),
        TypeError,
        "coupling: expected one, e.g. Ind",
    ),
    "t, x": (lambda: fmcore.integrate(lambda t, x: x, X1, 2, "euler"), TypeError, r"x first, got one of \(t, x\)"),
    "x alone": (lambda: fmcore.integrate(lambda x: x, X1, 2, "euler"), TypeError, r"got one of \(x\)"),
    "no field": (lambda: fmcore.integrate(3, X1, 2, "euler"), TypeError, r"expected a field of \(x, t\) or"),
    "steps": (lambda: fmcore.integrate(lambda x, t: x, X1, 2.0, "euler"), TypeError, "grid: expected a number of"),
    "solver": (lambda: fmcore.integrate(lambda x, t: x, X1, 2, "eul"), ValueError, "unknown solver 'eul'"),
    "array": (
        lambda: fmcore.integrate(lambda x, t: x, X1.numpy(), 2, "euler"),
        TypeError,
        "x: expected a tensor of",
    ),
    "label": (
        lambda: fmcore.integrate(lambda x, t: x, X1, 2, "euler", LABEL),
        ValueError,
        r"labels were given to a field of \(x, t\)",
    ),
    "beyond the data": (
        lambda: fmcore.integrate(lambda x, t: x, X1, torch.tensor([0.0, 0.5, 1.1]), "sde"),
        ValueError,
        "runs from noise at 0 to data at 1 only",
    ),
}


def answers() -> dict[str, list[str]]:
    """The kind and the text of each error."""
    found = {}
    for name, (call, _, _) in REFUSED.items():
        try:
            call()
            found[name] = ["", "nothing was refused"]
        except Exception as error:
            found[name] = [type(error).__name__, str(error)]
    return found


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    print(json.dumps(answers()))
