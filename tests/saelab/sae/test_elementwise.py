"""Gates and magnitudes: every class moves its thresholds and magnitudes as computed directly, or refuses."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from saelab import ElementwiseSAE, GatedSAE, JumpReLUSAE, RescaleShiftSAE, SparseAutoencoder, StandardSAE
from saelab.sae.sparse import Entries
from saelab.sae.thresholds import Gates, threshold_curves, with_thresholds

TIED: dict[str, Callable[[], ElementwiseSAE]] = {
    "standard": lambda: StandardSAE(6, 20, dtype=torch.float64),
    "gated": lambda: GatedSAE(6, 20, dtype=torch.float64),
    "gated, no r_mag": lambda: GatedSAE(6, 20, ablations=["no_r_mag"], dtype=torch.float64),
    "rescale-and-shift": lambda: RescaleShiftSAE(6, 20, dtype=torch.float64),
    "jumprelu": lambda: JumpReLUSAE(6, 20, dtype=torch.float64),
}
ALL: dict[str, Callable[[], ElementwiseSAE]] = {
    **TIED,
    "gated, untied": lambda: GatedSAE(6, 20, ablations=["untied_encoders"], dtype=torch.float64),
}
GATE_THRESHOLDS = [-0.4, 0.0, 0.3]


def random_sae(name: str, gate_threshold: float) -> ElementwiseSAE:
    sae = ALL[name]()
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.add_(0.4 * torch.randn_like(parameter))
    sae.gate_threshold = gate_threshold
    return sae


def inputs() -> Tensor:
    return 1 + torch.randn(60, 6, dtype=torch.float64)


@pytest.mark.parametrize("make", [StandardSAE, GatedSAE, RescaleShiftSAE])
def test_gate_threshold_switches_codes_but_leaves_l1_and_auxiliary_alone(make: type[ElementwiseSAE]) -> None:
    sae, x = make(8, 32), torch.randn(64, 8)
    with torch.no_grad():
        sae.W_enc.copy_(sae.W_dec.T)
    before, loss = sae.encode(x), sae.loss(x)
    sae.gate_threshold = 0.7
    after = sae.encode(x)
    gate = sae.gate(sae.project(x))
    assert torch.equal(after, before * (gate > 0.7))
    assert 0 < int((after > 0).sum()) < int((before > 0).sum())
    raised = sae.loss(x)
    assert raised.reconstruction.item() != loss.reconstruction.item()
    assert raised.terms == loss.terms and list(loss.terms) == [term.name for term in make.terms]


@pytest.mark.parametrize("gate_threshold", GATE_THRESHOLDS)
@pytest.mark.parametrize("name", TIED)
def test_every_class_and_its_jumprelu_have_the_same_codes(name: str, gate_threshold: float) -> None:
    sae, x = random_sae(name, gate_threshold), inputs()
    jumprelu = sae.to_jumprelu()
    assert type(jumprelu) is JumpReLUSAE and jumprelu.gate_threshold == 0
    assert 0 < int((sae.encode(x) > 0).sum()) < 60 * 20
    torch.testing.assert_close(jumprelu.encode(x), sae.encode(x), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(jumprelu(x), sae(x), rtol=1e-10, atol=1e-12)
    assert sae.gate_threshold == gate_threshold


@pytest.mark.parametrize("gate_threshold", GATE_THRESHOLDS)
@pytest.mark.parametrize("name", ALL)
def test_thresholds_of_features_own_move_their_gates_and_no_magnitude(name: str, gate_threshold: float) -> None:
    sae, x = random_sae(name, gate_threshold), inputs()
    own, before = 0.5 * torch.randn(20, dtype=torch.float64), sae.encode(x)
    entries = sae.project(x)
    pi_gate = sae.gate(entries)
    expected = (pi_gate > gate_threshold + own) * sae.magnitude(entries, pi_gate)
    assert not torch.equal(expected, before)
    torch.testing.assert_close(sae.with_own_thresholds(own).encode(x), expected, rtol=1e-10, atol=1e-12)
    assert torch.equal(sae.encode(x), before)  # it was a copy


@pytest.mark.parametrize("gate_threshold", GATE_THRESHOLDS)
@pytest.mark.parametrize("name", ALL)
def test_shifted_magnitudes_move_no_gate(name: str, gate_threshold: float) -> None:
    sae, x = random_sae(name, gate_threshold), inputs()
    by, before = 0.5 * torch.randn(20, dtype=torch.float64), sae.encode(x)
    entries = sae.project(x)
    pi_gate = sae.gate(entries)
    if isinstance(sae, GatedSAE) and "untied_encoders" in sae.ablations:
        line = (x - sae.b_dec) @ sae.W_mag + sae.b_mag
    else:
        slope, shift = sae.magnitude_line()
        line = slope * pi_gate + shift
    expected = (pi_gate > gate_threshold) * (line + by).relu()
    assert not torch.equal(expected, before)
    torch.testing.assert_close(sae.with_shifted_magnitudes(by).encode(x), expected, rtol=1e-10, atol=1e-12)
    assert torch.equal(sae.encode(x), before)


class Squared(ElementwiseSAE):
    """One's own class, whose magnitude is no line: it has no place for thresholds of features' own."""

    label = "squared"
    feature_parameters = ("b_enc",)

    @property
    def gate_bias(self) -> Tensor:
        return self.get_parameter("b_enc")

    def magnitude(self, entries: Entries, pi_gate: Tensor) -> Tensor:
        return pi_gate.square()

    def magnitude_line(self) -> tuple[Tensor, Tensor]:
        raise ValueError("a squared SAE has no line")


class Absolute(SparseAutoencoder):
    """One's own class without a gate."""

    label = "absolute"
    formula = "|u|"
    feature_parameters = ()

    def activate(self, entries: Entries) -> Tensor:
        return entries.u.abs()


def test_what_a_class_has_no_parameters_for_is_refused_and_never_ignored() -> None:
    sae, x = Squared(6, 20, dtype=torch.float64), inputs()
    with pytest.raises(ValueError, match="a squared SAE has no parameters for features' own thresholds"):
        sae.with_own_thresholds(torch.ones(20))
    with pytest.raises(ValueError, match="a squared SAE has no parameter that shifts its magnitudes"):
        sae.with_shifted_magnitudes(torch.ones(20))
    with pytest.raises(ValueError, match="no parameters for features' own thresholds"):
        with_thresholds(sae, own_thresholds={3: 0.5})
    with pytest.raises(ValueError, match="has no line"):
        with_thresholds(sae, natural=0.5)
    raised = with_thresholds(sae, gate_threshold=0.1)  # what it has
    assert torch.equal(raised.encode(x), sae.encode(x) * (sae.gate(sae.project(x)) > 0.1))


@pytest.mark.parametrize(
    "look",
    [
        lambda sae, x: with_thresholds(sae, gate_threshold=0.5),
        lambda sae, x: threshold_curves(sae, x, [0.5]),
        lambda sae, x: Gates(sae, x),
    ],
)
def test_an_sae_without_a_gate_is_refused_with_those_that_have_one(
    look: Callable[[SparseAutoencoder, Tensor], object],
) -> None:
    with pytest.raises(
        TypeError,
        match=r"an? absolute SAE has no gate threshold: its codes are \|u\|; .* takes one of standard, .*JumpReLU",
    ):
        look(Absolute(6, 20, dtype=torch.float64), inputs())
