import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from saelab import GatedSAE
from saelab.sae.gated import Ablation


def random_gated(seed: int, *ablations: Ablation) -> GatedSAE:
    sae = GatedSAE(6, 24, ablations=ablations, dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.add_(0.5 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return sae


@given(st.integers(0, 1000), st.sampled_from([-0.5, 0.0, 0.7]), st.sampled_from([(), ("no_r_mag",)]))
def test_a_gated_sae_and_its_jumprelu_have_the_same_codes(
    seed: int, gate_threshold: float, ablations: tuple[Ablation, ...]
) -> None:
    sae = random_gated(seed, *ablations)
    sae.gate_threshold = gate_threshold
    x = torch.randn(50, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    jumprelu = sae.to_jumprelu()
    assert 0 < int((jumprelu.threshold < 0).sum()) < sae.d_sae  # both kinds of threshold are met
    torch.testing.assert_close(jumprelu.encode(x), sae.encode(x), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(jumprelu(x), sae(x), rtol=1e-10, atol=1e-12)


def test_natural_b_mag_leaves_a_rescaled_relu_and_the_original_alone() -> None:
    sae, x = random_gated(0), torch.randn(50, 6, dtype=torch.float64)
    before, natural = sae.b_mag.clone(), sae.with_natural_b_mag()
    expected = natural.gate(natural.project(x)).relu() * sae.r_mag.exp()
    torch.testing.assert_close(natural.encode(x), expected)
    assert torch.equal(sae.b_mag, before) and not torch.equal(natural.b_mag, before)


def test_untied_encoders_have_no_jumprelu_and_no_natural_b_mag() -> None:
    sae = random_gated(0, "untied_encoders")
    with pytest.raises(ValueError, match="untied encoders cannot be written as a JumpReLU"):
        sae.to_jumprelu()
    with pytest.raises(ValueError, match="untied encoders cannot be given a natural b_mag"):
        sae.with_natural_b_mag()


def test_wrong_presets_and_ablations_get_a_sentence() -> None:
    with pytest.raises(ValueError, match="collection of unfrozen_decoder, no_r_mag.*'no_aux'"):
        GatedSAE(4, 4, ablations=["no_aux"])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="collection of"):
        GatedSAE(4, 4, ablations="no_r_mag")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="those of preset 'paper'"):
        GatedSAE(4, 4, preset="norm_weighted", ablations=["no_r_mag"])
