"""The sparse autoencoders: parameters, encode, decode and loss of each architecture.

Notation (paper: Rajamanoharan et al. 2024, arXiv 2404.16014v2): x is ``(batch, d_in)``, codes f(x) ``(batch, d_sae)``.
Losses sum squared error over ``d_in`` and average over the batch; they expect activations scaled so that
E||x||^2 = d_in (`saelab.harvest` does it). The paper's lambda is for the *mean* over d_in: multiply it by d_in.
"""

from abc import ABC, abstractmethod
from typing import ClassVar, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from saelab.sparse import DenseEntries, Entries, find_entries

Preset = Literal["paper", "norm_weighted"]


class SAELoss(NamedTuple):
    """The terms of a loss, each a scalar tensor; ``total = reconstruction + l1 * sparsity + aux * auxiliary``."""

    total: Tensor
    """What training minimises."""
    reconstruction: Tensor
    """E||x - reconstruction||^2: summed over d_in, averaged over the batch."""
    sparsity: Tensor
    """E||.||_1 of the (gate) pre-activations after ReLU, before its coefficient."""
    auxiliary: Tensor
    """The gated SAE's E||x - recon_frozen(relu(pi_gate))||^2, before its coefficient; zero for a standard SAE."""


class TrainingPass(NamedTuple):
    """One forward pass under a loss: what a training step needs to know, from a single encoder matmul."""

    loss: SAELoss
    reconstruction: Tensor
    """``(batch, d_in)``."""
    l0: Tensor
    """Mean number of features on, a scalar."""


def check_activations(x: Tensor, d_in: int | None = None) -> None:
    """Refuse what cannot be activations: not floating point, empty, of another width than ``d_in``, NaN or infinite.

    Raises
    ------
    TypeError, ValueError
        With what was wrong, what is allowed and what to do.
    """
    if not isinstance(x, Tensor) or not x.is_floating_point():
        got = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(f"activations must be a floating-point torch.Tensor, not {got}; try torch.as_tensor(x).float()")
    if x.ndim == 0 or x.numel() == 0:
        raise ValueError(f"activations are empty: shape {tuple(x.shape)}; expected (batch, d_in) with at least one row")
    if d_in is not None and x.shape[-1] != d_in:
        raise ValueError(
            f"activations have width {x.shape[-1]}, but this SAE was made for d_in={d_in}; "
            "harvest from the hook it was trained on, or make an SAE with that d_in"
        )
    if not torch.isfinite(x).all():
        bad = int((~torch.isfinite(x)).sum())
        raise ValueError(
            f"activations hold {bad} NaN or infinite value(s) among {x.numel()}; drop those rows or harvest in float32"
        )


class SparseAutoencoder(nn.Module, ABC):
    """What every architecture shares: a tied-at-birth encoder and decoder, one preset, one gate threshold.

    A new architecture derives from this class, names its `feature_parameters`, implements `gate`, `activate` and
    `training_pass`, and adds itself to `ARCHITECTURES`. All start from the `Entries` of ``u = (x - b_dec) @ W_enc``: a
    step costs one encoder matmul.

    Parameters
    ----------
    d_in, d_sae
        Width of the activations and number of features.
    preset
        ``"paper"``: decoder rows of exactly unit norm (the trainer projects the gradient and renormalises), plain L1,
        and for gated SAEs a frozen decoder in the auxiliary term. ``"norm_weighted"``: free decoder norm, L1 weighted
        by the live decoder norm, auxiliary term not frozen (what SAELens trains). Mixing the two is worse than either.
    seed
        Of the random unit-norm decoder; the encoder starts as its transpose, all biases at zero.
    """

    architecture: ClassVar[str]
    """Its name in `ARCHITECTURES`."""
    feature_parameters: ClassVar[tuple[str, ...]]
    """Names of its parameters of shape ``(d_sae,)``; they start at zero."""
    W_enc: nn.Parameter
    W_dec: nn.Parameter
    b_dec: nn.Parameter

    def __init__(
        self,
        d_in: int,
        d_sae: int,
        *,
        preset: Preset = "paper",
        seed: int = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if d_in < 1 or d_sae < 1:
            raise ValueError(f"d_in and d_sae must be at least 1, not {d_in} and {d_sae}")
        if preset not in get_args(Preset):
            raise ValueError(f"preset must be one of {', '.join(get_args(Preset))}, not {preset!r}")
        self.d_in, self.d_sae, self.preset = d_in, d_sae, preset
        self.gate_threshold = 0.0
        """A feature is on where its gate pre-activation exceeds this; 0 in the paper. May be changed at any time."""
        rows = torch.randn(d_sae, d_in, generator=torch.Generator().manual_seed(seed))
        rows = (rows / rows.norm(dim=1, keepdim=True)).to(device=device, dtype=dtype or torch.get_default_dtype())
        self.W_dec = nn.Parameter(rows)
        # Feature by feature in memory, as the decoder is: the sparse step reads and writes whole features.
        self.W_enc = nn.Parameter(rows.clone().T)
        self.b_dec = nn.Parameter(rows.new_zeros(d_in))
        for name in self.feature_parameters:
            self.register_parameter(name, nn.Parameter(rows.new_zeros(d_sae)))

    @abstractmethod
    def gate(self, entries: Entries) -> Tensor:
        """Gate pre-activations at ``entries``; on is what exceeds `gate_threshold`."""

    @abstractmethod
    def activate(self, entries: Entries) -> Tensor:
        """Codes at ``entries``: no matmul, so that many thresholds can be tried on the same."""

    @abstractmethod
    def training_pass(self, x: Tensor, *, l1_coefficient: float, aux_coefficient: float = 1.0) -> TrainingPass:
        """Loss, reconstruction and L0 of one batch ``(batch, d_in)``; only its width is checked, for speed."""

    def project(self, x: Tensor) -> DenseEntries:
        """The encoder's one matmul: every entry of ``u = (x - b_dec) @ W_enc``, ``(..., d_in)`` to ``(..., d_sae)``."""
        return DenseEntries((x - self.b_dec) @ self.W_enc)

    def encode(self, x: Tensor) -> Tensor:
        """Codes of ``x``: ``(..., d_in)`` to ``(..., d_sae)``, non-negative. Raises like `check_activations`."""
        check_activations(x, self.d_in)
        return self.activate(self.project(x))

    def decode(self, codes: Tensor) -> Tensor:
        """Reconstruction from codes: ``(..., d_sae)`` to ``(..., d_in)``."""
        if codes.shape[-1] != self.d_sae:
            raise ValueError(f"codes have width {codes.shape[-1]}, but this SAE has d_sae={self.d_sae} features")
        return codes @ self.W_dec + self.b_dec

    def forward(self, x: Tensor) -> Tensor:
        """Reconstruction of ``x``: ``(..., d_in)`` to ``(..., d_in)``."""
        return self.decode(self.encode(x))

    def loss(self, x: Tensor, *, l1_coefficient: float, aux_coefficient: float = 1.0) -> SAELoss:
        """The training loss of a batch ``(batch, d_in)``, term by term; differentiable."""
        check_activations(x, self.d_in)
        return self.training_pass(x, l1_coefficient=l1_coefficient, aux_coefficient=aux_coefficient).loss

    @torch.no_grad()
    def project_decoder_gradient(self) -> None:
        """Remove from the decoder's gradient what would change a row's norm (preset "paper"; paper, appendix D)."""
        if self.preset == "paper" and self.W_dec.grad is not None:
            unit = self.W_dec / self.W_dec.norm(dim=1, keepdim=True)
            self.W_dec.grad -= (self.W_dec.grad * unit).sum(dim=1, keepdim=True) * unit

    @torch.no_grad()
    def normalize_decoder(self) -> None:
        """Give every decoder row unit norm again (preset "paper"), after an optimiser's step."""
        if self.preset == "paper":
            self.W_dec.div_(self.W_dec.norm(dim=1, keepdim=True))

    def _entries(self, x: Tensor, bias: Tensor, floor: float) -> Entries:
        """All entries, or those above ``floor`` with ``bias`` where it is faster and gives the same."""
        if x.ndim != 2:
            raise ValueError(f"a loss takes activations (batch, d_in), not {tuple(x.shape)}; try x.flatten(0, -2)")
        if x.shape[1] != self.d_in:
            check_activations(x, self.d_in)  # raises, with the sentence
        return find_entries(x, self.b_dec, self.W_enc, bias, floor=floor)

    def _l1(self, entries: Entries, positive: Tensor) -> Tensor:
        """E||positive||_1, weighted by the live decoder norms in the norm-weighted preset."""
        if self.preset == "norm_weighted":
            positive = positive * entries.per_feature(self.W_dec.norm(dim=1))
        return entries.mean_sum(positive)

    def extra_repr(self) -> str:
        return f"d_in={self.d_in}, d_sae={self.d_sae}, preset={self.preset!r}, gate_threshold={self.gate_threshold:g}"


def _squared_error(x: Tensor, reconstruction: Tensor) -> Tensor:
    return (x - reconstruction).square().sum(dim=-1).mean()


class StandardSAE(SparseAutoencoder):
    """ReLU encoder, L1 penalty: ``codes = relu(pi)``, ``pi = (x - b_dec) @ W_enc + b_enc`` (paper, eq. 1-4).

    A `gate_threshold` other than 0 switches features off below it: ``codes = relu(pi) * (pi > gate_threshold)``.
    """

    architecture = "standard"
    feature_parameters = ("b_enc",)
    b_enc: nn.Parameter

    def gate(self, entries: Entries) -> Tensor:
        return entries.u + entries.per_feature(self.b_enc)

    def activate(self, entries: Entries) -> Tensor:
        pi = self.gate(entries)
        return pi.relu() * (pi > self.gate_threshold)

    def training_pass(self, x: Tensor, *, l1_coefficient: float, aux_coefficient: float = 1.0) -> TrainingPass:
        """``aux_coefficient`` is accepted and unused: a standard SAE has no auxiliary term."""
        entries = self._entries(x, self.b_enc, floor=0.0)
        codes = self.activate(entries)
        reconstruction = entries.decode(codes, self.W_dec) + self.b_dec
        error, sparsity = _squared_error(x, reconstruction), self._l1(entries, self.gate(entries).relu())
        loss = SAELoss(error + l1_coefficient * sparsity, error, sparsity, torch.zeros_like(error))
        return TrainingPass(loss, reconstruction, (codes > 0).count_nonzero() / len(x))


class GatedSAE(SparseAutoencoder):
    """Gate and magnitude from one shared encoder (paper, eq. 5-8 and appendix G).

    With ``u = (x - b_dec) @ W_enc``: ``pi_gate = u + b_gate``, ``pi_mag = u * exp(r_mag) + b_mag``,
    ``codes = (pi_gate > gate_threshold) * relu(pi_mag)``. The L1 and the auxiliary term see ``relu(pi_gate)``; in the
    paper preset the auxiliary decode gives no gradient to ``W_dec`` and ``b_dec``.
    """

    architecture = "gated"
    feature_parameters = ("b_gate", "b_mag", "r_mag")
    b_gate: nn.Parameter
    b_mag: nn.Parameter
    r_mag: nn.Parameter

    def gate(self, entries: Entries) -> Tensor:
        return entries.u + entries.per_feature(self.b_gate)

    def activate(self, entries: Entries) -> Tensor:
        pi_mag = entries.u * entries.per_feature(self.r_mag.exp()) + entries.per_feature(self.b_mag)
        return (self.gate(entries) > self.gate_threshold) * pi_mag.relu()

    def training_pass(self, x: Tensor, *, l1_coefficient: float, aux_coefficient: float = 1.0) -> TrainingPass:
        # The L1 and auxiliary terms see every positive pi_gate, also where a threshold above 0 keeps the feature off.
        entries = self._entries(x, self.b_gate, floor=min(0.0, self.gate_threshold))
        codes = self.activate(entries)
        reconstruction = entries.decode(codes, self.W_dec) + self.b_dec
        error = _squared_error(x, reconstruction)
        gate = self.gate(entries).relu()
        sparsity = self._l1(entries, gate)
        frozen = self.preset == "paper"
        W_dec, b_dec = (self.W_dec.detach(), self.b_dec.detach()) if frozen else (self.W_dec, self.b_dec)
        auxiliary = _squared_error(x, entries.decode(gate, W_dec) + b_dec)
        total = error + l1_coefficient * sparsity + aux_coefficient * auxiliary
        loss = SAELoss(total, error, sparsity, auxiliary)
        return TrainingPass(loss, reconstruction, (codes > 0).count_nonzero() / len(x))


ARCHITECTURES: dict[str, type[SparseAutoencoder]] = {sae.architecture: sae for sae in (StandardSAE, GatedSAE)}
"""Every architecture by name."""
