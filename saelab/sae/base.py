"""What every sparse autoencoder shares: encoder, decoder, how a loss is put together; and the registry of them.

Notation (paper: Rajamanoharan et al. 2024, arXiv 2404.16014v2): x is ``(batch, d_in)``, codes f(x) ``(batch, d_sae)``.
Losses sum squared error over ``d_in`` and average over the batch; they expect activations scaled so that
E||x||^2 = d_in (`saelab.harvest` does it). The lambda of the paper's gated SAEs is for the *mean* over d_in: multiply
it by d_in if the paper's activations have that scale, too. The paper's baselines also divide the error by E||x||^2
(appendix D.1.1).
"""

import functools
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, ClassVar, Literal, NamedTuple, Self, TypedDict, get_args

import numpy as np
import torch
from torch import Tensor, nn

from saelab.devices import automatic_device
from saelab.errors import InputError, InputTypeError
from saelab.quantities import QUANTITIES, Quantity, Spread, pooling_dtype
from saelab.sae import workers
from saelab.sae.declarations import ForeignForm, Knob, Look, LossTerm, Moment
from saelab.sae.sparse import DenseEntries, Entries, rows_of

Preset = Literal["paper", "norm_weighted"]
ENCODER_SCALE = 0.1
"""Length of the encoder's first columns, as a share of the decoder's rows; the paper does not say. On layer 2 of the
embedded model, 2000 steps, a gated SAE then ended at FVU 0.16 with L0 18, against 0.24 with L0 26 at a share of 1."""

L1_COEFFICIENT = Knob(
    name="l1_coefficient",
    label="L1 penalty",
    short="L1",
    symbol="\N{GREEK SMALL LETTER LAMDA}",
    meaning="Price of one unit of feature activation, against squared error summed over the activation's width.",
    default=4.0,
    range=(0.25, 16.0),
    scale="log",
    warms_up=True,
)
SPARSITY = LossTerm("sparsity", "L1 term", L1_COEFFICIENT, hue="l0")
"""E||.||_1 of (gate) pre-activations after ReLU."""


class Shared(TypedDict, total=False):
    """The keywords that every architecture's constructor takes, see `SparseAutoencoder`."""

    preset: Preset
    seed: int
    frozen: Collection[str]
    decoder_cosine: float | None
    device: torch.device | str | None
    dtype: torch.dtype | None


class SAELoss(NamedTuple):
    """A loss: ``total = reconstruction + sum of coefficient * term``. All are scalar tensors."""

    total: Tensor
    """What training minimises."""
    reconstruction: Tensor
    """E||x - reconstruction||^2: summed over d_in, averaged over the batch."""
    terms: Mapping[str, Tensor]
    """The other terms by name, before their coefficients (`SparseAutoencoder.terms`)."""


class TrainedOn(NamedTuple):
    """Which activations an SAE was trained on: what it takes to put it back into its model."""

    model_name: str
    """The model, by the name that `saelab.load_language_model` takes."""
    hook: str
    """Where in the model, a TransformerLens name."""
    scale: float
    """What the model's own activations were multiplied by."""


class Encoded(NamedTuple):
    """A batch under a loss: the entries that matter to it, and what stands at each of them."""

    entries: Entries
    pre: Tensor
    """Pre-activations; those of the gate where there is one."""
    codes: Tensor
    firing: Tensor
    """Positive where a feature counts as alive."""


class TrainingPass(NamedTuple):
    """One forward pass under a loss: what a training step needs to know, from a single encoder matmul."""

    loss: SAELoss
    reconstruction: Tensor
    """``(batch, d_in)``, as the next."""
    residual: Tensor
    """``reconstruction - x``, from ``b_dec - x``, so that it keeps its digits where both are large."""
    l0: Tensor
    """Mean number of features on, a scalar."""
    fired: Tensor
    """``(d_sae,)``, boolean: which features were on anywhere in the batch, or would be at a gate threshold of 0."""
    observed: Mapping[str, Tensor]
    """What `SparseAutoencoder.observe` gave."""


class BatchSums(NamedTuple):
    """Sums over a batch: what a record of training needs, and what several processes add up.

    On the batch's device, in the type of `pooling_dtype`.
    """

    means: Tensor
    """L0, the total loss, the reconstruction error and the other terms of the loss in order."""
    products: Tensor
    """r.r, x.r and e.e with the reconstruction r and the residual e."""
    spread: Spread
    """Of x."""

    @classmethod
    @torch.no_grad()
    def of(cls, x: Tensor, result: TrainingPass) -> Self:
        """Of a batch ``(n, d_in)``."""
        loss, kind = result.loss, pooling_dtype(x)
        means = torch.stack([result.l0, loss.total, loss.reconstruction, *loss.terms.values()]).to(kind) * len(x)
        rows = (x, result.reconstruction, result.residual)
        kinds = {values.dtype for values in rows} if x.device.type == "cpu" else set()
        loops = workers.compiled() if kinds in ({torch.float32}, {torch.float64}) else None
        if loops is not None:
            sums, mean = np.empty(4), np.empty(x.shape[1])
            loops.sum_errors(*(rows_of(values) for values in rows), sums, mean)
            *products, squares = torch.from_numpy(sums)
            spread = Spread(squares.new_full((), len(x)), torch.from_numpy(mean), squares)
            return cls(means, torch.stack(products), spread)
        wide, r, e = (values.to(kind).flatten() for values in rows)
        return cls(means, torch.stack([r.dot(r), wide.dot(r), e.dot(e)]), Spread.of(x))

    @classmethod
    def added(cls, parts: Iterable[Self]) -> Self:
        """Of a batch whose rows are those of ``parts``."""
        means, products, spreads = zip(*parts, strict=True)
        return cls(torch.stack(means).sum(dim=0), torch.stack(products).sum(dim=0), Spread.pooled(spreads))


class GradientPass(NamedTuple):
    """A pass whose gradient the parameters hold."""

    sums: BatchSums
    fired: Tensor
    """As in `TrainingPass`."""
    observed: Mapping[str, Tensor]
    """As in `TrainingPass`."""


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
    """Base of every architecture: codes come from ``u = (x - b_dec) @ W_enc``; the decoder is linear.

    A new architecture is a class in a file of its own. It names itself (`architecture`), says which parameters of shape
    ``(d_sae,)`` it has (`feature_parameters`) and what its codes are (`activate`), and lists the terms of its loss
    (`terms`) with their values (`loss_terms`). Defining the class registers it. If each feature decides for itself
    whether it is on, derive from `saelab.ElementwiseSAE`, which has gate thresholds and sparse steps.

    Parameters
    ----------
    d_in, d_sae
        Width of the activations and number of features.
    preset
        ``"paper"``: decoder rows of exactly unit norm (the trainer projects the gradient and renormalises), plain L1,
        and for gated SAEs a frozen decoder in the auxiliary term. ``"norm_weighted"``: free decoder norm, L1 weighted
        by the live decoder norm, auxiliary term not frozen (what SAELens trains). Mixing the two is worse than either.
    seed
        Seed of the random unit-norm decoder; the encoder starts as `ENCODER_SCALE` times its transpose, biases at zero.
    frozen
        Names of parameters that training leaves as they are, such as ``("W_dec",)``: the SAE is then a control for a
        trained one (`saelab.CONTROLS`). The same as ``requires_grad_(False)`` on each: files, checkpoints and sweeps
        keep which parameters are frozen, however they came to be.
    decoder_cosine
        Keep each decoder row within this cosine, from -1 to 1, of where it started; None leaves the rows free.
    device
        ``"auto"`` takes a GPU where there is one.
    """

    architecture: ClassVar[str]
    """Its name in `ARCHITECTURES`, where defining the class puts it."""
    label: ClassVar[str] = ""
    """What figures and widgets call it, in lower case but for proper names; by default its name."""
    look: ClassVar[Look] = Look("#6b6b6b", "#a6a6a6", "X", width=1.0)
    """How figures and widgets draw it."""
    formula: ClassVar[str] = ""
    """Its codes in one line."""
    terms: ClassVar[tuple[LossTerm, ...]] = ()
    """The terms of its loss beside the reconstruction error."""
    live_settings: ClassVar[tuple[Knob, ...]] = ()
    """Its attributes that may be set at any time and act at once."""
    sparsity_knob: ClassVar[Knob | None] = None
    """Which of its knobs a sweep varies, trading sparsity for reconstruction; None where it has no such knob."""
    trains_from_scratch: ClassVar[bool] = True
    """Whether it can be trained from random weights."""
    revives_dead_features: ClassVar[bool] = False
    """Whether its loss trains dead features itself, so that a trainer does not resample them by default."""
    shares_a_batch: ClassVar[bool] = True
    """Whether several processes can each take rows of a batch: false where codes depend on the batch's other rows."""
    ablation_labels: ClassVar[Mapping[str, str]] = {}
    """What its constructor's ``ablations`` may list, and what widgets call each."""
    frozen_parameters: ClassVar[tuple[str, ...]] = ()
    """Names of its parameters that training leaves as they are in every SAE of this architecture."""
    lr_factors: ClassVar[Mapping[str, float]] = {}
    """Factors on the trainer's learning rate, by parameter name."""
    foreign: ClassVar[ForeignForm | None] = None
    """Its form in other libraries; see `portable`."""
    W_enc: nn.Parameter
    W_dec: nn.Parameter
    b_dec: nn.Parameter

    def __init_subclass__(cls, **rest: Any) -> None:
        super().__init_subclass__(**rest)
        if "architecture" in vars(cls):
            _register(cls)

    def __init__(
        self,
        d_in: int,
        d_sae: int,
        *,
        preset: Preset = "paper",
        seed: int = 0,
        frozen: Collection[str] = (),
        decoder_cosine: float | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if d_in < 1 or d_sae < 1:
            raise InputError(f"d_in and d_sae must be at least 1, not {d_in} and {d_sae}")
        if preset not in get_args(Preset):
            raise InputError(f"preset must be one of {', '.join(get_args(Preset))}, not {preset!r}")
        self.d_in, self.d_sae, self.preset = d_in, d_sae, preset
        self.trained_on: TrainedOn | None = None
        """Which activations it was trained on, where `saelab.Trainer` had a store of them; kept in its file."""
        for knob in self.live_settings:
            setattr(self, knob.name, int(knob.default) if knob.is_whole else knob.default)
        if device == "auto":
            device = automatic_device()
        rows = torch.randn(d_sae, d_in, generator=torch.Generator().manual_seed(seed))
        rows = (rows / rows.norm(dim=1, keepdim=True)).to(device=device, dtype=dtype or torch.get_default_dtype())
        self.W_dec = nn.Parameter(rows)
        for name in self.encoder_parameters:
            # Feature by feature in memory, as the decoder is: the sparse step reads and writes whole features.
            self.register_parameter(name, nn.Parameter((ENCODER_SCALE * rows).T))
        self.b_dec = nn.Parameter(rows.new_zeros(d_in))
        for name in self.feature_parameters:
            self.register_parameter(name, nn.Parameter(rows.new_zeros(d_sae)))
        self.freeze(self.frozen_parameters)
        self.freeze(frozen)
        self.decoder_cosine: float | None = None
        """Least cosine of a decoder row with where it started, if `hold_decoder` set one."""
        if decoder_cosine is not None:
            self.hold_decoder(decoder_cosine)

    @property
    @abstractmethod
    def feature_parameters(self) -> tuple[str, ...]:
        """Names of its parameters of shape ``(d_sae,)``; they start at zero."""

    @abstractmethod
    def activate(self, entries: Entries) -> Tensor:
        """Codes, non-negative, from all entries of ``u``, ``(..., d_sae)``: no encoder matmul."""

    def encode_for_loss(self, x: Tensor) -> Encoded:
        """A batch ``(batch, d_in)`` as its loss sees it; at all entries by default."""
        entries = self.project(x)
        codes = self.activate(entries)
        return Encoded(entries, entries.u, codes, codes)

    def loss_terms(self, x: Tensor, encoded: Encoded, residual: Tensor, moment: Moment) -> Mapping[str, Tensor]:
        """The terms of the loss by name, before their coefficients; one that is left out is zero.

        ``residual`` is ``reconstruction - x``, ``(batch, d_in)``. Coefficients are the trainer's; a term that changes
        with the step of training reads ``moment``.
        """
        return {}

    @torch.no_grad()
    def observe(self, encoded: Encoded) -> Mapping[str, Tensor]:
        """What `after_update` has to know of a batch, by name; nothing by default.

        Keep numbers and not the batch's codes: what is ``(batch, d_sae)`` should be free again before the update.
        """
        return {}

    @classmethod
    def knobs(cls) -> dict[str, Knob]:
        """Every knob by name: the coefficients of its loss, then its live settings."""
        return {knob.name: knob for knob in (*(term.coefficient for term in cls.terms), *cls.live_settings)}

    @property
    def encoder_parameters(self) -> tuple[str, ...]:
        """Names of its parameters of shape ``(d_in, d_sae)``."""
        return ("W_enc",)

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

    def loss(self, x: Tensor, *, moment: Moment = Moment(), **coefficients: float) -> SAELoss:  # noqa: B008 - a tuple
        """The training loss of a batch ``(batch, d_in)``, term by term; differentiable.

        ``coefficients`` are those of `terms`, such as ``l1_coefficient=4``; by default their defaults. Raises a
        TypeError for another name.
        """
        check_activations(x, self.d_in)
        usual = {term.coefficient.name: term.coefficient.default for term in self.terms}
        if unknown := coefficients.keys() - usual.keys():
            has = f"it has {', '.join(usual)}" if usual else "it has none"
            raise InputTypeError(f"the loss of a {self.label} SAE has no {', '.join(sorted(unknown))}; {has}")
        return self.training_pass(x, {**usual, **coefficients}, moment).loss

    def training_pass(self, x: Tensor, coefficients: Mapping[str, float], moment: Moment = Moment()) -> TrainingPass:  # noqa: B008
        """Loss, residual and L0 of one batch ``(batch, d_in)``; only its shape is checked, for speed."""
        self._check_shape(x)
        return self._loss_of(x, self.encode_for_loss(x), coefficients, moment)

    def _check_shape(self, x: Tensor) -> None:
        if x.ndim != 2:
            raise InputError(f"a loss takes activations (batch, d_in), not {tuple(x.shape)}; try x.flatten(0, -2)")
        if x.shape[1] != self.d_in:
            check_activations(x, self.d_in)  # raises, with the sentence

    def _loss_of(self, x: Tensor, encoded: Encoded, coefficients: Mapping[str, float], moment: Moment) -> TrainingPass:
        decoded = encoded.entries.decode(encoded.codes, self.W_dec)
        residual = decoded + (self.b_dec - x)
        error = mean_square(residual)
        values = self.loss_terms(x, encoded, residual, moment)
        total = error
        for term in self.terms:
            if term.name in values:
                total = total + coefficients[term.coefficient.name] * values[term.name]
        loss = SAELoss(total, error, {term.name: values.get(term.name, torch.zeros_like(error)) for term in self.terms})
        l0 = (encoded.codes > 0).count_nonzero() / len(x)
        fired = encoded.entries.fired(encoded.firing)
        reconstruction = decoded.detach() + self.b_dec.detach()
        return TrainingPass(loss, reconstruction, residual.detach(), l0, fired, self.observe(encoded))

    def gradient_pass(
        self,
        x: Tensor,
        coefficients: Mapping[str, float],
        moment: Moment = Moment(),  # noqa: B008
        *,
        share: float = 1.0,
    ) -> GradientPass:
        """Put the gradient of ``share`` times the loss of ``x`` into the parameters, which hold none."""
        self._check_shape(x)
        return self._backward_in_parts(
            x, lambda first, last: self.encode_for_loss(x[first:last]), coefficients, moment, share
        )

    def _backward(
        self, x: Tensor, encoded: Encoded, coefficients: Mapping[str, float], moment: Moment, share: float
    ) -> GradientPass:
        result = self._loss_of(x, encoded, coefficients, moment)
        total = result.loss.total
        torch.autograd.backward(total if share == 1 else total * share)
        return GradientPass(BatchSums.of(x, result), result.fired, result.observed)

    def _backward_in_parts(
        self,
        x: Tensor,
        encode: Callable[[int, int], Encoded],
        coefficients: Mapping[str, float],
        moment: Moment,
        share: float,
    ) -> GradientPass:
        """`_backward` where torch has work on matrices of ``(batch, d_sae)``; ``encode`` takes the rows of a part."""
        by_rows = self.shares_a_batch and type(self).observe is SparseAutoencoder.observe
        plain = x.device.type == "cpu" and not torch.is_autocast_enabled("cpu")
        parts = workers.large_parts(len(x), self.W_enc.numel()) if by_rows and plain else ()
        if len(parts) < 2:
            with workers.with_openmp():
                return self._backward(x, encode(0, len(x)), coefficients, moment, share)
        parameters = [parameter for parameter in self.parameters() if parameter.requires_grad]
        passes: dict[int, tuple[BatchSums, Tensor, tuple[Tensor | None, ...]]] = {}

        def take(first: int, last: int, part: int) -> None:
            rows = x[first:last]
            result = self._loss_of(rows, encode(first, last), coefficients, moment)
            total = result.loss.total * (share * len(rows) / len(x))
            gradients = torch.autograd.grad(total, parameters, allow_unused=True)
            passes[part] = BatchSums.of(rows, result), result.fired, gradients

        workers.run_parts([functools.partial(take, *part) for part in parts])
        sums, fired, gradients = zip(*(passes[part] for part in range(len(parts))), strict=True)
        for parameter, *of_parts in zip(parameters, *gradients, strict=True):
            there = [gradient for gradient in of_parts if gradient is not None]
            parameter.grad = sum(there[1:], there[0]) if there else None
        return GradientPass(BatchSums.added(sums), torch.stack(fired).any(dim=0), {})

    @property
    def frozen(self) -> tuple[str, ...]:
        """Names of the parameters that training leaves as they are."""
        return tuple(name for name, parameter in self.named_parameters() if not parameter.requires_grad)

    def freeze(self, names: Collection[str]) -> None:
        """Have training leave these parameters as they are; a ValueError for a name that the SAE does not have."""
        parameters = dict(self.named_parameters())
        unknown = {names} if isinstance(names, str) else set(names) - parameters.keys()
        if unknown:
            raise InputError(
                f"frozen must be a collection of names of parameters, not understood: {', '.join(sorted(unknown))}; "
                f"a {self.label} SAE has {', '.join(parameters)}"
            )
        for name in names:
            parameters[name].requires_grad_(False)

    @torch.no_grad()
    def hold_decoder(self, cosine: float) -> None:
        """From now on, have training keep each decoder row within ``cosine`` of where it is now.

        Raises a ValueError for what is no cosine.
        """
        if not -1 <= cosine <= 1:
            raise InputError(f"decoder_cosine must lie between -1 and 1, not {cosine}")
        self.decoder_cosine = float(cosine)
        self.register_buffer("decoder_start", nn.functional.normalize(self.W_dec, dim=1))

    @torch.no_grad()
    def restrain_decoder(self) -> None:
        """Turn each decoder row that left the cone around its start (`hold_decoder`) back to the cone's surface."""
        if self.decoder_cosine is None or not self.W_dec.requires_grad:
            return
        start = self.get_buffer("decoder_start")
        norms = self.W_dec.norm(dim=1, keepdim=True)
        along = (self.W_dec * start).sum(dim=1, keepdim=True)
        across = nn.functional.normalize(self.W_dec - along * start, dim=1)
        surface = self.decoder_cosine * start + math.sqrt(1 - self.decoder_cosine**2) * across
        left = along < self.decoder_cosine * norms
        self.W_dec.copy_(torch.where(left, norms * nn.functional.normalize(surface, dim=1), self.W_dec))

    @torch.no_grad()
    def project_decoder_gradient(self) -> None:
        """Remove what would change a row's norm from the decoder's gradient (preset "paper"; Bricken et al. 2023)."""
        if self.has_unit_decoder and self.W_dec.grad is not None:
            # bmm sums each row's products without writing them to memory first.
            along = self.W_dec.grad.unsqueeze(1).bmm(self.W_dec.unsqueeze(2)).squeeze(2)
            along /= self.W_dec.norm(dim=1, keepdim=True).square()
            self.W_dec.grad.addcmul_(along, self.W_dec, value=-1)

    @torch.no_grad()
    def normalize_decoder(self) -> None:
        """Give every decoder row unit norm again (preset "paper"; paper, appendix D), after an optimiser's step."""
        if self.has_unit_decoder:
            self.W_dec.div_(self.W_dec.norm(dim=1, keepdim=True))

    @torch.no_grad()
    def after_update(self, observed: Mapping[str, Tensor]) -> None:
        """Restore what has to hold after an optimiser's step, beside the decoder's norms.

        ``observed`` is what `observe` gave of the batch; nothing in one of several processes that had no row of it.
        """

    @property
    def has_unit_decoder(self) -> bool:
        """Whether training keeps the decoder's rows at unit norm."""
        return self.preset == "paper" and self.W_dec.requires_grad

    def features_first(self, name: str, tensor: Tensor) -> Tensor:
        """A view ``(d_sae, ...)`` of the parameter called ``name``, its gradient or its moments."""
        return tensor.T if name in self.encoder_parameters else tensor

    def settings(self) -> dict[str, Any]:
        """The constructor's arguments that make an SAE of the same kind, as plain values."""
        return {"d_in": self.d_in, "d_sae": self.d_sae, "preset": self.preset}

    def portable(self, *, as_jumprelu: bool = False) -> "SparseAutoencoder":
        """An SAE with the same codes, of a class with a form in other libraries (`foreign`), all of it in its tensors.

        Raises
        ------
        ValueError
            There is none; says why, and what to do.
        """
        if as_jumprelu:
            raise InputError(
                f"a {self.label} SAE cannot be written as a JumpReLU SAE: whether a feature is on does not depend on "
                "that feature alone; leave as_jumprelu out"
            )
        if self.foreign is None:
            raise InputError(f"a {type(self).__name__} has no form in other libraries; keep it with saelab.save")
        return self

    def weighted_by_norms(self, entries: Entries, positive: Tensor) -> Tensor:
        """Values at ``entries`` for an L1 penalty: times the live decoder norms in the norm-weighted preset."""
        norms = self.live_norms()
        return positive if norms is None else positive * entries.per_feature(norms)

    def live_norms(self) -> Tensor | None:
        """Norms of the decoder's rows, ``(d_sae,)``, where they weight the L1 penalty: in the norm-weighted preset."""
        return self.W_dec.norm(dim=1) if self.preset == "norm_weighted" else None

    def extra_repr(self) -> str:
        settings = {**self.settings(), **{knob.name: getattr(self, knob.name) for knob in self.live_settings}}
        if frozen := tuple(name for name in self.frozen if name not in self.frozen_parameters):
            settings["frozen"] = frozen
        if self.decoder_cosine is not None:
            settings["decoder_cosine"] = self.decoder_cosine
        return ", ".join(f"{name}={value!r}" for name, value in settings.items())


def mean_square(residual: Tensor) -> Tensor:
    """E||residual||^2: summed over d_in, averaged over the batch."""
    flat = residual.flatten().to(torch.promote_types(residual.dtype, torch.float32))
    return flat.dot(flat) / len(residual)


ARCHITECTURES: dict[str, type[SparseAutoencoder]] = {}
"""Every architecture by name; defining a class with an `architecture` of its own adds it."""


def label_of(name: str) -> str:
    """The label of an architecture; any other name stands for itself."""
    return ARCHITECTURES[name].label if name in ARCHITECTURES else name


def quantity_of(column: str) -> Quantity:
    """What a column of a table is: one of `QUANTITIES`, a knob or a term of a loss; any other stands for itself."""
    if column in QUANTITIES:
        return QUANTITIES[column]
    for cls in ARCHITECTURES.values():
        if column in cls.knobs():
            return cls.knobs()[column].quantity
        for term in cls.terms:
            if term.name == column:
                return term.quantity
    label = column.replace("_", " ")
    return Quantity(column, label, "", digits=None, axis=label)


def in_order(names: Iterable[str]) -> list[str]:
    """Each name once: architectures in the order in which they were registered, then all others as they come."""
    given = dict.fromkeys(names)
    return [name for name in ARCHITECTURES if name in given] + [name for name in given if name not in ARCHITECTURES]


def _register(cls: type[SparseAutoencoder]) -> None:
    name = cls.architecture
    if not re.fullmatch(r"[\w-]+", name):
        raise InputError(
            f"{cls.__name__} cannot be called {name!r}: an architecture's name is part of file names on every system; "
            "make it of letters, digits, _ and -, and give it a `label` for people"
        )
    taken = ARCHITECTURES.get(name)
    # One's own class may be defined again, as a notebook's cell does when it is run again.
    if taken is not None and taken.__module__.startswith("saelab."):
        raise InputError(
            f"the architecture {name!r} is saelab.{taken.__name__}; give {cls.__name__} an `architecture` of its own"
        )
    for reserved in (*cls.knobs(), *(term.name for term in cls.terms)):
        if reserved in QUANTITIES:
            raise InputError(
                f"{cls.__name__} cannot call a knob or a term of its loss {reserved!r}: tables have a column of that "
                f"name, {QUANTITIES[reserved].meaning}; call it otherwise"
            )
    for other in ARCHITECTURES.values():
        for knob in other.knobs().values() if other is not taken else ():
            if cls.knobs().get(knob.name, knob) != knob:
                raise InputError(
                    f"{cls.__name__} declares another knob {knob.name!r} than {other.__name__}; a name means the same "
                    "in every architecture: use that one, or call yours otherwise"
                )
    cls.label = cls.label if "label" in vars(cls) else name.replace("_", " ")
    ARCHITECTURES[name] = cls
