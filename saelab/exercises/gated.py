"""Exercises of tutorial 04: codes and loss of a gated SAE, its JumpReLU threshold, the role of the auxiliary term."""

from collections.abc import Callable

import torch
from torch import Tensor

from saelab.exercises.verdicts import Mistake, exercise, expect, expect_choice, expect_gradients


@exercise
def gated_codes(answer: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]) -> None:
    """``answer(u, b_gate, r_mag, b_mag)`` are a gated SAE's codes (Rajamanoharan et al. 2024, eq. 6 and 7).

    ``codes = (u + b_gate > 0) * relu(u * exp(r_mag) + b_mag)``: ``u`` ``(batch, d_sae)``, the others ``(d_sae,)``.
    """
    generator = torch.Generator().manual_seed(1)
    u = torch.randn(16, 5, generator=generator, requires_grad=True)
    b_gate = torch.tensor([-0.3, 0.4, 0.0, 0.6, -0.8], requires_grad=True)
    r_mag = torch.tensor([0.4, -0.3, 0.6, 0.2, -0.5], requires_grad=True)
    b_mag = torch.tensor([0.5, -0.4, 0.3, 0.1, -0.2], requires_grad=True)
    leaves = {"u": u, "b_gate": b_gate, "r_mag": r_mag, "b_mag": b_mag}
    seen = answer(u, b_gate, r_mag, b_mag)
    pi_gate, pi_mag = u + b_gate, u * r_mag.exp() + b_mag
    gate, soft = (pi_gate > 0).float(), torch.sigmoid(pi_gate)
    expected = gate * pi_mag.relu()
    threshold = "the gate is taken from the magnitude path; which path decides whether a feature is on?"
    expect(
        "codes of 16 inputs",
        seen,
        expected,
        "compute pi_gate and pi_mag on separate lines: one says whether a feature is on, the other how strongly",
        [
            Mistake(gate * pi_mag, "a code is negative where the gate is open and pi_mag is below 0; codes never are"),
            Mistake(pi_mag.relu(), threshold),
            Mistake(
                soft * pi_mag.relu(), "this gate is soft, so it scales codes; a gate is either open or shut, 1 or 0"
            ),
            Mistake(pi_gate.relu() * pi_mag.relu(), "how far the gate is open must not matter to the code"),
            Mistake(pi_gate.relu(), "this is a standard SAE's code: the magnitude path is missing"),
            Mistake(gate, "the gate alone says whether a feature is on; how strongly comes from pi_mag"),
            Mistake(gate * (u * r_mag + b_mag).relu(), "r_mag is a logarithm: 0 stands for a factor of 1"),
            Mistake(
                gate * ((u + b_gate) * r_mag.exp() + b_mag).relu(),
                "b_gate has got into the magnitude: the two paths share u and nothing after it",
            ),
            Mistake(gate * ((u + b_mag) * r_mag.exp()).relu(), "b_mag is rescaled, too; rescale u first, then add it"),
            Mistake((u + b_mag > 0) * (u * r_mag.exp() + b_gate).relu(), "b_gate and b_mag are swapped"),
            Mistake((pi_gate < 0) * pi_mag.relu(), "this gate is open where pi_gate is below 0"),
        ],
    )
    through = gate + soft - soft.detach()
    expect_gradients(
        "codes.sum()",
        seen,
        leaves,
        expected,
        "the gradient is that of pi_mag where the feature is on; the gate acts as a constant",
        [
            Mistake(
                through * pi_mag.relu(),
                "a straight-through estimator lets a gradient flow through the gate; a step has none, which is "
                "why there is an auxiliary term",
            ),
            Mistake(
                (gate + pi_gate - pi_gate.detach()) * pi_mag.relu(),
                "a gradient flows through the gate, as if it were pi_gate itself; a step has none",
            ),
            Mistake(
                gate * (u.detach() * r_mag.exp() + b_mag).relu(),
                "u is detached, so the encoder learns nothing; detach nothing, as a step has no gradient anyway",
            ),
        ],
    )


def _loss(case: tuple[Tensor, ...], l1: float, mistake: str = "") -> Tensor:
    """The gated loss, or its value under a given mistake."""
    x, W_enc, b_gate, r_mag, b_mag, W_dec, b_dec = case
    centre = {"input detached": b_dec.detach(), "not centred": torch.zeros_like(b_dec)}.get(mistake, b_dec)
    u = (x - centre) @ W_enc
    pi_gate, pi_mag = u + b_gate, u * r_mag.exp() + b_mag
    codes = (pi_gate > 0) * pi_mag.relu()
    gate = pi_gate.relu()
    penalised = {"l1 on codes": codes, "l1 without relu": pi_gate.abs()}.get(mistake, gate)
    of_auxiliary = {"aux of codes": codes, "aux no gradient": gate.detach()}.get(mistake, gate)
    W = W_dec if mistake in ("not frozen", "W_dec not frozen") else W_dec.detach()
    b = b_dec if mistake in ("not frozen", "b_dec not frozen") else b_dec.detach()
    error = (x - codes @ W_dec - b_dec).square()
    auxiliary = (x - of_auxiliary @ W - b).square()
    sparsity = penalised.mean() if mistake == "l1 mean" else penalised.sum(1).mean()
    if mistake == "mean":
        return error.mean() + l1 * sparsity + auxiliary.mean()
    if mistake == "batch sum":
        return error.sum() + l1 * penalised.sum() + auxiliary.sum()
    total = error.sum(1).mean() + l1 * sparsity
    return total if mistake == "no aux" else total + auxiliary.sum(1).mean()


_VALUE_MISTAKES = {
    "mean": "the squared error is averaged over d_in, too; sum over d_in, then average over the batch",
    "batch sum": "this is the sum over the batch; E is its mean",
    "l1 on codes": "the L1 penalty is on the codes; it must be on what decides whether a feature is on, or magnitudes "
    "shrink again",
    "l1 without relu": "the L1 penalty counts gates that are shut as well; take relu(pi_gate)",
    "l1 mean": "the L1 norm is a sum over features; only the batch is averaged",
    "no aux": "the third term is missing: only the L1 penalty would move the gate's bias",
    "aux of codes": "the auxiliary term reconstructs from the codes; its purpose is to train the gate, relu(pi_gate)",
    "not centred": "b_dec is not subtracted from x before the encoder",
}
_GRADIENT_MISTAKES = {
    "not frozen": "the auxiliary term trains W_dec and b_dec; its decoder is frozen, so what has to be detached?",
    "W_dec not frozen": "the auxiliary term trains W_dec, as only b_dec is frozen in its decode",
    "b_dec not frozen": "the auxiliary term trains b_dec in its decode; the decoder's bias must be frozen there, too",
    "input detached": "the b_dec that is subtracted from x still gets gradients; only the auxiliary *decode* is frozen",
    "aux no gradient": "the auxiliary term trains nothing: relu(pi_gate) is detached, too; freeze only the decoder",
}


@exercise
def gated_loss(answer: Callable[..., Tensor]) -> None:
    """``answer(x, W_enc, b_gate, r_mag, b_mag, W_dec, b_dec, l1)`` is a gated SAE's loss, a scalar tensor.

    Source: Rajamanoharan et al. (2024), eq. 8 and appendix G; errors summed over d_in, averaged over the batch.
    """
    generator = torch.Generator().manual_seed(2)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    x = normal(12, 4)
    leaves = {
        "W_enc": normal(4, 6),
        "b_gate": 0.3 * normal(6),
        "r_mag": 0.3 * normal(6),
        "b_mag": 0.3 * normal(6),
        "W_dec": torch.nn.functional.normalize(normal(6, 4)),
        "b_dec": 0.5 * normal(4),
    }
    for leaf in leaves.values():
        leaf.requires_grad_(True)
    case = (x, *leaves.values())
    seen, expected = answer(*case, 0.7), _loss(case, 0.7)
    expect(
        "loss of 12 inputs",
        seen,
        expected,
        "compute the three terms on separate lines: error, l1 times sparsity, auxiliary error",
        [Mistake(_loss(case, 0.7, name), hint) for name, hint in _VALUE_MISTAKES.items()],
    )
    expect_gradients(
        "the loss",
        seen,
        leaves,
        expected,
        "the value is right; for each term, ask which tensors it may train",
        [Mistake(_loss(case, 0.7, name), hint) for name, hint in _GRADIENT_MISTAKES.items()],
    )


@exercise
def jumprelu_threshold(answer: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
    """``answer(b_gate, r_mag, b_mag)`` is theta, ``(d_sae,)``: the gate is open where ``pi_mag > theta``.

    Source: Rajamanoharan et al. (2024), appendix E; theta = b_mag - exp(r_mag) * b_gate.
    """
    b_gate, r_mag = torch.tensor([-1.0, 0.5, -0.4, 1.2]), torch.tensor([0.7, -0.2, 0.0, 0.3])
    b_mag = torch.tensor([0.3, 0.9, -1.1, 0.2])
    scale = r_mag.exp()
    right = b_mag - scale * b_gate
    expect(
        "theta of four features",
        answer(b_gate, r_mag, b_mag),
        right,
        "the gate opens at u = -b_gate: what is pi_mag there?",
        [
            Mistake(
                b_mag + scale * b_gate, "check the sign: with a low b_gate, the gate opens late, at a large pi_mag"
            ),
            Mistake(-right, "this is minus the threshold: pi_mag > theta has to mean u > -b_gate"),
            Mistake(b_mag - b_gate, "this is right only if exp(r_mag) is 1; u is rescaled before b_mag is added"),
            Mistake(b_mag - r_mag * b_gate, "r_mag is the logarithm of the factor on u"),
            Mistake(-b_gate, "this is the threshold on u; a JumpReLU compares z = pi_mag with its threshold"),
            Mistake(-scale * b_gate, "this is the threshold on u * exp(r_mag), before b_mag is added"),
            Mistake(b_mag - b_gate / scale, "u is multiplied by exp(r_mag) on its way to pi_mag, not divided"),
            Mistake(right.relu(), "a threshold may be negative; only codes may not"),
        ],
    )


@exercise
def without_auxiliary(answer: str) -> None:
    """``answer``: without its auxiliary term, a gated SAE's L0 ``rises``, ``falls`` or ``stays`` at the same L1."""
    expect_choice(
        answer,
        "falls",
        {
            "rises": "b_gate has no gradient from the reconstruction; which term is left to move it, and which way?",
            "stays": "the auxiliary term is the one that opens gates; what does the L1 penalty do without it?",
        },
    )
