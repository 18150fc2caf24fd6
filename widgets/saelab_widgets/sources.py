"""Where a widget has its SAE from: an SAE itself, its file, or another widget, which it then follows."""

import os
from collections.abc import Callable
from typing import TYPE_CHECKING

import traitlets
from torch import Tensor

import saelab
from saelab.data.labelled import LabelledSplit
from saelab.errors import InputTypeError
from saelab.sae.base import SparseAutoencoder

if TYPE_CHECKING:
    from saelab_widgets.instrument import Instrument


class HasSAE(traitlets.HasTraits):
    """A widget whose SAE others can follow. Whenever `sae` is another, or has changed, it calls `_sae_has_changed`."""

    sae_version = traitlets.Int(0)
    """Grows with each change; not sent to the page."""

    @property
    def sae(self) -> SparseAutoencoder:
        """The SAE as it stands."""
        raise NotImplementedError

    @property
    def test_x(self) -> Tensor | None:
        """Activations that the SAE has not been trained on, ``(n, d_in)``, where the widget has some."""
        return None

    @property
    def sentiment(self) -> LabelledSplit | None:
        """Probe inputs at the SAE's hook and in its scale, where the widget has some."""
        return None

    def _sae_has_changed(self) -> None:
        self.sae_version += 1


Source = SparseAutoencoder | str | os.PathLike[str] | HasSAE
"""What the widgets take as ``sae``."""


def sae_of(source: Source) -> SparseAutoencoder:
    """The SAE that ``source`` is, holds (a path is read by `saelab.load`), or shows at the moment.

    Raises
    ------
    TypeError
        Anything else.
    """
    if isinstance(source, SparseAutoencoder):
        return source
    if isinstance(source, HasSAE):
        return source.sae
    if isinstance(source, str | os.PathLike):
        return saelab.load(source)
    raise InputTypeError(
        f"sae must be a saelab SAE, the path of its file, or a widget that has one, not {type(source).__name__}"
    )


def follow(widget: "Instrument", source: object, changed: Callable[[], None]) -> None:
    """Call ``changed`` whenever the SAE of ``source`` changes, in whichever thread, until ``widget`` is closed.

    Where both have a trait ``feature``, the two are linked: choosing one here chooses it there.
    """
    if not isinstance(source, HasSAE):
        return

    def on_change(_: object) -> None:
        if widget.comm is None:  # closed
            source.unobserve(on_change, "sae_version")
        else:
            changed()

    source.observe(on_change, "sae_version")
    if widget.has_trait("feature") and source.has_trait("feature"):
        traitlets.link((source, "feature"), (widget, "feature"))
