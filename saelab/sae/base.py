"""The sparse autoencoders: parameters, encode, decode and loss of each architecture.

Notation (paper: Rajamanoharan et al. 2024, arXiv 2404.16014v2): x is ``(batch, d_in)``, codes f(x) ``(batch, d_sae)``.
Losses sum squared error over ``d_in`` and average over the batch; they expect activations scaled so that
E||x||^2 = d_in (`saelab.harvest` does it). The paper's lambda is for the *mean* over d_in: multiply it by d_in.
"""

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from saelab.errors import InputError, InputTypeError
from saelab.sae.sparse import DenseEntries, Entries, find_entries

Preset = Literal["paper", "norm_weighted"]
ENCODER_SCALE = 0.1
"""What the encoder's columns start at, as a share of the decoder's rows; the paper does not say. On layer 2 of the
embedded model, 2000 steps, a gated SAE then ended at FVU 0.16 with L0 18, against 0.24 with L0 26 at a share of 1."""


class SAELoss(NamedTuple):
    """The terms of a loss, each a scalar tensor; ``total = reconstruction + l1 * sparsity + aux * auxiliary``."""

    total: Tensor
    """What training minimises."""
    reconstruction: Tensor
    """E||x - reconstruction||^2: summed over d_in, averaged over the batch."""
    sparsity: Tensor
    """E||.||_1 of the (gate) pre-activations after ReLU, before its coefficient."""
    auxiliary: Tensor
    """The gated SAE's E||x - recon_frozen(relu(pi_gate))||^2, before its coefficient; zero for the others."""


class TrainedOn(NamedTuple):
    """Which activations an SAE was trained on: what it takes to put it back into its model."""

    model_name: str
    """The model, by the name that `saelab.load_language_model` takes."""
    hook: str
    """Where in the model, a TransformerLens name."""
    scale: float
    """What the model's own activations were multiplied by."""


class TrainingPass(NamedTuple):
    """One forward pass under a loss: what a training step needs to know, from a single encoder matmul."""

    loss: SAELoss
    residual: Tensor
    """``reconstruction - x``, ``(batch, d_in)``."""
    l0: Tensor
    """Mean number of features on, a scalar."""
    fired: Tensor
    """``(d_sae,)``, boolean: which features were on anywhere in the batch, or would be at a `gate_threshold` of 0."""


class Look(NamedTuple):
    """How an architecture is drawn, in every figure and widget: told from the others in colour and without."""

    light: str
    """Its colour on a light page; at least 3:1 against white."""
    dark: str
    """Its colour on a dark page."""
    marker: str
    """A marker of matplotlib's: one of ``o s ^ D v P * X``."""
    dash: tuple[float, ...] = ()
    """Lengths of dash and gap in line widths; empty for a solid line."""
    width: float = 1.8
    """Of its lines, in points."""


def check_activations(x: Tensor, d_in: int | None = None) -> None:
    """Refuse what cannot be activations: not floating point, empty, of another width than ``d_in``, NaN or infinite.

    Raises
    ------
    TypeError, ValueError
        With what was wrong, what is allowed and what to do.
    """
    if not isinstance(x, Tensor) or not x.is_floating_point():
        got = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise InputTypeError(
            f"activations must be a floating-point torch.Tensor, not {got}; try torch.as_tensor(x).float()"
        )
    if x.ndim == 0 or x.numel() == 0:
        raise InputError(f"activations are empty: shape {tuple(x.shape)}; expected (batch, d_in) with at least one row")
    if d_in is not None and x.shape[-1] != d_in:
        raise InputError(
            f"activations have width {x.shape[-1]}, but this SAE was made for d_in={d_in}; "
            "harvest from the hook it was trained on, or make an SAE with that d_in"
        )
    # In parts: asked of all at once, isfinite takes a copy of what may be most of the memory.
    broken = [part for part in torch.split(x, 4096) if not part.isfinite().all()]
    if broken:
        bad = sum(int((~part.isfinite()).count_nonzero()) for part in broken)
        raise InputError(
            f"activations hold {bad} NaN or infinite value(s) among {x.numel()}; drop those rows or harvest in float32"
        )


class SparseAutoencoder(nn.Module, ABC):
    """What every architecture shares: an encoder, a decoder, one gate threshold, and the loss of one preset.

    With ``u = (x - b_dec) @ W_enc``, the gate is ``pi_gate = u + gate_bias`` and
    ``codes = (pi_gate > gate_threshold) * magnitude``. A new architecture derives from this class, names its
    `feature_parameters`, gives `gate_bias`, `magnitude` and `magnitude_line`, and adds itself to `ARCHITECTURES`. The
    magnitude works on the `Entries` of ``u``, so that a step costs one encoder matmul.

    Parameters
    ----------
    d_in, d_sae
        Width of the activations and number of features.
    preset
        ``"paper"``: decoder rows of exactly unit norm (the trainer projects the gradient and renormalises), plain L1,
        and for gated SAEs a frozen decoder in the auxiliary term. ``"norm_weighted"``: free decoder norm, L1 weighted
        by the live decoder norm, auxiliary term not frozen (what SAELens trains). Mixing the two is worse than either.
    seed
        Of the random unit-norm decoder; the encoder starts as `ENCODER_SCALE` times its transpose, all biases at zero.
    device
        ``"auto"`` takes a GPU where there is one.
    """

    architecture: ClassVar[str]
    """Its name in `ARCHITECTURES`, where defining the class puts it."""
    label: ClassVar[str]
    """What figures and widgets call it, in lower case but for a proper name."""
    look: ClassVar[Look]
    """How figures and widgets draw it."""
    frozen_parameters: ClassVar[tuple[str, ...]] = ()
    """Names of its parameters that training leaves as they are."""
    W_enc: nn.Parameter
    W_dec: nn.Parameter
    b_dec: nn.Parameter

    def __init_subclass__(cls, **rest: Any) -> None:
        super().__init_subclass__(**rest)
        if "architecture" in vars(cls):
            ARCHITECTURES[cls.architecture] = cls

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
            raise InputError(f"d_in and d_sae must be at least 1, not {d_in} and {d_sae}")
        if preset not in get_args(Preset):
            raise InputError(f"preset must be one of {', '.join(get_args(Preset))}, not {preset!r}")
        self.d_in, self.d_sae, self.preset = d_in, d_sae, preset
        self.gate_threshold = 0.0
        """A feature is on where its gate pre-activation exceeds this; 0 in the paper. May be changed at any time."""
        self.trained_on: TrainedOn | None = None
        """Which activations it was trained on, where `saelab.Trainer` had a store of them; kept in its file."""
        if device == "auto":
            device = torch.accelerator.current_accelerator() or "cpu"
        rows = torch.randn(d_sae, d_in, generator=torch.Generator().manual_seed(seed))
        rows = (rows / rows.norm(dim=1, keepdim=True)).to(device=device, dtype=dtype or torch.get_default_dtype())
        self.W_dec = nn.Parameter(rows)
        # Feature by feature in memory, as the decoder is: the sparse step reads and writes whole features.
        self.W_enc = nn.Parameter((ENCODER_SCALE * rows).T)
        self.b_dec = nn.Parameter(rows.new_zeros(d_in))
        for name in self.feature_parameters:
            self.register_parameter(name, nn.Parameter(rows.new_zeros(d_sae)))
        for name in self.frozen_parameters:
            self.get_parameter(name).requires_grad_(False)

    @property
    @abstractmethod
    def feature_parameters(self) -> tuple[str, ...]:
        """Names of its parameters of shape ``(d_sae,)``; they start at zero."""

    @property
    @abstractmethod
    def gate_bias(self) -> Tensor:
        """``(d_sae,)``: the gate's pre-activation is ``u + gate_bias``."""

    @abstractmethod
    def magnitude(self, entries: Entries, pi_gate: Tensor) -> Tensor:
        """What a feature's code is where it is on, non-negative; in the shape of ``pi_gate``."""

    @abstractmethod
    def magnitude_line(self) -> tuple[Tensor, Tensor]:
        """Slope and shift, ``(d_sae,)`` each, without a gradient: ``magnitude = relu(slope * pi_gate + shift)``.

        The shift is what a feature jumps by at a gate threshold of 0. Without it, the magnitude is a rescaled ReLU of
        the gate's pre-activation: the natural reference point of the paper's appendix E.

        Raises
        ------
        ValueError
            Untied encoders: gate and magnitude then look along different directions.
        """

    def auxiliary(self, x: Tensor, entries: Entries, pi_gate: Tensor) -> Tensor | None:
        """The auxiliary term of the loss, a scalar, where there is one."""
        return None

    def gate(self, entries: Entries) -> Tensor:
        """Gate pre-activations at ``entries``; on is what exceeds `gate_threshold`."""
        return entries.u + entries.per_feature(self.gate_bias)

    def activate(self, entries: Entries) -> Tensor:
        """Codes at ``entries``: no encoder matmul, so that many thresholds can be tried on the same."""
        pi_gate = self.gate(entries)
        return (pi_gate > self.gate_threshold) * self.magnitude(entries, pi_gate)

    def project(self, x: Tensor) -> DenseEntries:
        """The encoder's one matmul: every entry of ``u = (x - b_dec) @ W_enc``, ``(..., d_in)`` to ``(..., d_sae)``."""
        xc = x - self.b_dec
        return DenseEntries(xc @ self.W_enc, xc)

    def encode(self, x: Tensor) -> Tensor:
        """Codes of ``x``: ``(..., d_in)`` to ``(..., d_sae)``, non-negative. Raises like `check_activations`."""
        check_activations(x, self.d_in)
        return self.activate(self.project(x))

    def decode(self, codes: Tensor) -> Tensor:
        """Reconstruction from codes: ``(..., d_sae)`` to ``(..., d_in)``."""
        if codes.shape[-1] != self.d_sae:
            raise InputError(f"codes have width {codes.shape[-1]}, but this SAE has d_sae={self.d_sae} features")
        return codes @ self.W_dec + self.b_dec

    def forward(self, x: Tensor) -> Tensor:
        """Reconstruction of ``x``: ``(..., d_in)`` to ``(..., d_in)``."""
        return self.decode(self.encode(x))

    def loss(self, x: Tensor, *, l1_coefficient: float, aux_coefficient: float = 1.0) -> SAELoss:
        """The training loss of a batch ``(batch, d_in)``, term by term; differentiable."""
        check_activations(x, self.d_in)
        return self.training_pass(x, l1_coefficient=l1_coefficient, aux_coefficient=aux_coefficient).loss

    def training_pass(self, x: Tensor, *, l1_coefficient: float, aux_coefficient: float = 1.0) -> TrainingPass:
        """Loss, residual and L0 of one batch ``(batch, d_in)``; only its width is checked, for speed.

        ``aux_coefficient`` is unused where the architecture has no auxiliary term.
        """
        entries = self._entries(x)
        pi_gate = self.gate(entries)
        magnitude = self.magnitude(entries, pi_gate)
        codes = (pi_gate > self.gate_threshold) * magnitude
        residual = entries.decode(codes, self.W_dec, self.b_dec - x)
        error = _mean_square(residual)
        sparsity = self._l1(entries, self.penalized(pi_gate, codes))
        auxiliary = self.auxiliary(x, entries, pi_gate)
        total = error + l1_coefficient * sparsity
        if auxiliary is not None:
            total = total + aux_coefficient * auxiliary
        loss = SAELoss(total, error, sparsity, torch.zeros_like(error) if auxiliary is None else auxiliary)
        # A feature that only a raised threshold keeps off still learns: it is not dead.
        fired = entries.fired(codes if self.gate_threshold <= 0 else (pi_gate > 0) * magnitude)
        return TrainingPass(loss, residual.detach(), (codes > 0).count_nonzero() / len(x), fired)

    def penalized(self, pi_gate: Tensor, codes: Tensor) -> Tensor:
        """What the L1 penalty weighs: every positive gate pre-activation, also where a threshold keeps it off."""
        return pi_gate.relu()

    @torch.no_grad()
    def project_decoder_gradient(self) -> None:
        """Remove from the decoder's gradient what would change a row's norm (preset "paper"; paper, appendix D)."""
        if self.preset == "paper" and self.W_dec.grad is not None:
            # bmm sums each row's products without writing them to memory first.
            along = self.W_dec.grad.unsqueeze(1).bmm(self.W_dec.unsqueeze(2)).squeeze(2)
            along /= self.W_dec.norm(dim=1, keepdim=True).square()
            self.W_dec.grad.addcmul_(along, self.W_dec, value=-1)

    @torch.no_grad()
    def normalize_decoder(self) -> None:
        """Give every decoder row unit norm again (preset "paper"), after an optimiser's step."""
        if self.preset == "paper" and self.W_dec.requires_grad:
            self.W_dec.div_(self.W_dec.norm(dim=1, keepdim=True))

    def features_first(self, name: str, tensor: Tensor) -> Tensor:
        """A view ``(d_sae, ...)`` of the parameter called ``name``, its gradient or its moments."""
        return tensor.T if name in ("W_enc", "W_mag") else tensor

    def settings(self) -> dict[str, Any]:
        """The constructor's arguments that make an SAE of the same kind, as plain values."""
        return {"d_in": self.d_in, "d_sae": self.d_sae, "preset": self.preset}

    def _entries(self, x: Tensor) -> Entries:
        """All entries, or those that matter to the loss where that is faster and gives the same."""
        if x.ndim != 2:
            raise InputError(f"a loss takes activations (batch, d_in), not {tuple(x.shape)}; try x.flatten(0, -2)")
        if x.shape[1] != self.d_in:
            check_activations(x, self.d_in)  # raises, with the sentence
        return find_entries(x, self.b_dec, self.W_enc, self.gate_bias, floor=min(0.0, self.gate_threshold))

    def _l1(self, entries: Entries, positive: Tensor) -> Tensor:
        """E||positive||_1, weighted by the live decoder norms in the norm-weighted preset."""
        if self.preset == "norm_weighted":
            positive = positive * entries.per_feature(self.W_dec.norm(dim=1))
        return entries.mean_sum(positive)

    def extra_repr(self) -> str:
        settings = {**self.settings(), "gate_threshold": self.gate_threshold}
        return ", ".join(f"{name}={value!r}" for name, value in settings.items())


def _mean_square(residual: Tensor) -> Tensor:
    """E||residual||^2: summed over d_in, averaged over the batch."""
    flat = residual.flatten().to(torch.promote_types(residual.dtype, torch.float32))
    return flat.dot(flat) / len(residual)


ARCHITECTURES: dict[str, type[SparseAutoencoder]] = {}
"""Every architecture by name."""
