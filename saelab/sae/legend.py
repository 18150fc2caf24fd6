"""What tables and figures call architectures, and the order in which they list them."""

from collections.abc import Iterable

from saelab.sae.base import ARCHITECTURES

FIRST = ("standard", "rescale_shift", "gated")
"""The course's three lead every legend, from the baseline to its subject; the others follow as they were registered."""


def label_of(name: str) -> str:
    """The label of an architecture; any other name stands for itself."""
    return ARCHITECTURES[name].label if name in ARCHITECTURES else name


def in_order(names: Iterable[str]) -> list[str]:
    """Each name once: registered architectures in the order of legends, then all others as they come."""
    given = dict.fromkeys(names)
    registered = [name for name in dict.fromkeys((*FIRST, *ARCHITECTURES)) if name in ARCHITECTURES and name in given]
    return registered + [name for name in given if name not in ARCHITECTURES]
