"""The hidden activations of a network's blocks, in which samples can be compared."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import NamedTuple

from torch import Tensor, nn

from fmcore.models.networks import ResidualMLP


class Tap(NamedTuple):
    """Where a block's activation is read: the module's input if `given`, else its output.

    It is (B, C, H, W) or (B, C, L) if it `has_positions`, else (B, F).
    """

    module: nn.Module
    given: bool
    has_positions: bool


class _Enough(Exception):
    """Ends a network's pass once all that was asked for is there."""


def taps(network: nn.Module) -> dict[str, Tap]:
    """The blocks whose activations a network offers, by name, in the order they run; other networks offer none.

    Those of an MLP are `block1`, `block2`, ...: its hidden state after each. Those of U-Nets carry the names that
    diffusers gives them: `mid_block`, and e.g. `up_blocks.0.resnets.1`, the last of each level on the way up.
    """
    if isinstance(network, ResidualMLP):
        after = [*list(network.norms)[1:], network.norm]
        return {f"block{i}": Tap(module, given=True, has_positions=False) for i, module in enumerate(after, 1)}
    unet = getattr(network, "unet", None)
    if unet is None:
        return {}
    found = {} if unet.mid_block is None else {"mid_block": Tap(unet.mid_block, given=False, has_positions=True)}
    for level, block in enumerate(unet.up_blocks):
        last = len(block.resnets) - 1
        found[f"up_blocks.{level}.resnets.{last}"] = Tap(block.resnets[last], given=False, has_positions=True)
    return found


def activations(network: nn.Module, names: Sequence[str], run: Callable[[], object]) -> dict[str, Tensor]:
    """The activations of these blocks while `run()` evaluates the network once; the pass stops after the last one.

    Raises:
        ValueError: if the network does not offer one of them.
    """
    offered = taps(network)
    for name in names:
        if name not in offered:
            raise ValueError(f"unknown block {name!r}: expected one of {', '.join(offered) or 'none'}")
    found: dict[str, Tensor] = {}
    with _reading({name: offered[name] for name in names}, found), suppress(_Enough):
        run()
    return found


@contextmanager
def _reading(wanted: dict[str, Tap], found: dict[str, Tensor]) -> Iterator[None]:
    def take(name: str, value: Tensor) -> None:
        found[name] = value
        if len(found) == len(wanted):
            raise _Enough

    handles = []
    for name, tap in wanted.items():
        if tap.given:
            hook = tap.module.register_forward_pre_hook(lambda _, given, name=name: take(name, given[0]))
        else:
            hook = tap.module.register_forward_hook(lambda _, given, out, name=name: take(name, out))
        handles.append(hook)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
