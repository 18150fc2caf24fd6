"""The JumpReLU SAE's loss and pseudo-gradients (arXiv 2407.14435, eq. 9, 11, 12), and what they do in training."""

import pytest
import torch

from saelab import JumpReLUSAE, Trainer, TrainingConfig, evaluate, superposition
from saelab.sae import sparse

ALWAYS_SPARSE, ALWAYS_DENSE = 1.0, -1.0


def by_hand(gate_threshold: float) -> JumpReLUSAE:
    """For one input x and two features: ``z = (x - 0.5, x - 1.9)``, ``reconstruction = f_0 + 2 f_1``."""
    sae = JumpReLUSAE(1, 2, bandwidth=1, dtype=torch.float64)
    with torch.no_grad():
        sae.W_enc.fill_(1)
        sae.W_dec.copy_(torch.tensor([[1.0], [2.0]]))
        sae.b_enc.copy_(torch.tensor([-0.5, -1.9], dtype=torch.float64))
        sae.threshold.copy_(torch.tensor([1.25, 0.5]))
    sae.gate_threshold = gate_threshold
    return sae


@pytest.mark.parametrize("share", [ALWAYS_SPARSE, ALWAYS_DENSE])
@pytest.mark.parametrize(
    ("gate_threshold", "x", "terms", "expected"),
    [
        # z = (1.5, 0.1), on and off, both within 0.5 of their threshold; codes (1.5, 0), dr = -1, dcodes = (-1, -2).
        # dthreshold = -(threshold * dcodes + 3): -(1.25 * -1 + 3) and -(0.5 * -2 + 3)
        (
            0.0, [2.0], [3.25, 0.25, 1],
            {"W_enc": [-2, 0], "W_dec": [-1.5, 0], "b_dec": [0], "b_enc": [-1, 0], "threshold": [-1.75, -2]},
        ),
        # z = (3.5, 2.1), both on, both outside of the band: no gradient of the thresholds. dr = 2 (7.7 - 4) = 7.4
        (
            0.0, [4.0], [13.69 + 6, 13.69, 2],
            {
                "W_enc": [29.6, 59.2], "W_dec": [25.9, 15.54], "b_dec": [7.4 - 22.2], "b_enc": [7.4, 14.8],
                "threshold": [0, 0],
            },
        ),
        # z = (0.5, -0.9), both off, both outside.
        (
            0.0, [1.0], [1, 1, 0],
            {"W_enc": [0, 0], "W_dec": [0, 0], "b_dec": [-2], "b_enc": [0, 0], "threshold": [0, 0]},
        ),
        # The means over the first two.
        (
            0.0, [2.0, 4.0], [(3.25 + 19.69) / 2, (0.25 + 13.69) / 2, 1.5],
            {
                "W_enc": [13.8, 29.6], "W_dec": [12.2, 7.77], "b_dec": [-7.4], "b_enc": [3.2, 7.4],
                "threshold": [-0.875, -1],
            },
        ),
        # As the first, the thresholds at 1.3 and 0.55.
        (
            0.05, [2.0], [3.25, 0.25, 1],
            {"W_enc": [-2, 0], "W_dec": [-1.5, 0], "b_dec": [0], "b_enc": [-1, 0], "threshold": [-1.7, -1.9]},
        ),
        # At 1.65 and 0.9 both are off, the first within the band; dr = -4.
        (
            0.4, [2.0], [4, 4, 0],
            {"W_enc": [0, 0], "W_dec": [0, 0], "b_dec": [-4], "b_enc": [0, 0], "threshold": [1.65 * 4 - 3, 0]},
        ),
        # At 0.65 and -0.1 both are on. The second is within its band, but below 0 nothing jumps: the relu comes first.
        (
            -0.6, [2.0], [6.09, 0.09, 2],
            {
                "W_enc": [-1.2, -2.4], "W_dec": [-0.9, -0.06], "b_dec": [-0.6 + 1.8], "b_enc": [-0.6, -1.2],
                "threshold": [0, 0],
            },
        ),
    ],
)  # fmt: skip
def test_loss_and_pseudo_gradients_are_those_computed_by_hand(
    monkeypatch: pytest.MonkeyPatch,
    share: float,
    gate_threshold: float,
    x: list[float],
    terms: list[float],
    expected: dict[str, list[float]],
) -> None:
    monkeypatch.setattr(sparse, "DENSE_ABOVE", share)
    sae = by_hand(gate_threshold)
    loss = sae.loss(torch.tensor(x, dtype=torch.float64).unsqueeze(1), l0_coefficient=3)
    assert list(loss.terms) == ["l0_penalty"]
    assert [term.item() for term in (loss.total, loss.reconstruction, *loss.terms.values())] == pytest.approx(terms)
    torch.autograd.backward(loss.total)
    for name, parameter in sae.named_parameters():
        found = [0.0] * parameter.numel() if parameter.grad is None else parameter.grad.flatten().tolist()
        assert found == pytest.approx(expected[name], abs=1e-12), name


def test_codes_are_those_above_the_threshold_and_not_those_at_it() -> None:
    sae = JumpReLUSAE(1, 1, dtype=torch.float64)
    with torch.no_grad():
        sae.W_enc.fill_(1)
        sae.b_enc.fill_(-0.5)
        sae.threshold.fill_(1.5)
    x = torch.tensor([[2.0]], dtype=torch.float64)  # z = 1.5 does not exceed it
    assert sae.encode(x).item() == 0 and sae.loss(x).reconstruction.item() == 4
    assert sae.encode(x + 0.25).item() == 1.75


@pytest.mark.parametrize("gate_threshold", [-0.6, 0.0, 0.4])
def test_the_l0_term_is_the_number_of_features_on(gate_threshold: float) -> None:
    sae, x = JumpReLUSAE(8, 30), torch.randn(50, 8)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    sae.gate_threshold = gate_threshold
    assert sae.loss(x).terms["l0_penalty"].item() == pytest.approx((sae.encode(x) > 0).sum().item() / 50)


def test_thresholds_stay_at_least_0_and_a_rising_penalty_lowers_l0() -> None:
    x = superposition(32, 16, 0.05, n_samples=4096).activations
    l0s, config = [], TrainingConfig(n_steps=600, batch_size=256, lr=3e-3, resample_every=0)
    for l0_coefficient in (0.1, 0.5, 2.0):
        sae = JumpReLUSAE(16, 64)
        trainer = Trainer(sae, x, config, l0_coefficient=l0_coefficient)
        for _ in trainer:
            assert bool((sae.threshold >= 0).all())
        assert bool((sae.threshold > 0).any())  # they are trained
        l0s.append(evaluate(sae, x).l0)
    assert l0s[0] > 1.2 * l0s[1] > 1.2**2 * l0s[2] > 0, l0s


def test_thresholds_below_0_are_0_after_the_first_step() -> None:
    sae, x = JumpReLUSAE(4, 6), torch.randn(20, 4)
    with torch.no_grad():
        sae.threshold.fill_(-3)
    Trainer(sae, x, TrainingConfig(n_steps=1)).run(progress=False)
    assert torch.equal(sae.threshold.detach(), torch.zeros(6))


@pytest.mark.parametrize("bandwidth", [0, -1, float("inf"), float("nan")])
def test_a_bandwidth_that_is_none_is_refused(bandwidth: float) -> None:
    with pytest.raises(ValueError, match="bandwidth must be a positive number"):
        JumpReLUSAE(4, 6, bandwidth=bandwidth)
