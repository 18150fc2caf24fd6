"""Adam's step on an SAE, with decoder rows that stay at unit norm."""

import functools
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from saelab.sae import workers
from saelab.sae.base import SparseAutoencoder

EPS = 1e-8


class Adam:
    """Adam on the parameters of ``sae`` that are trained (Kingma and Ba 2015, algorithm 1), from their gradients.

    Where the preset asks for decoder rows of unit norm, their gradient is projected before and they are renormalised
    after (`SparseAutoencoder.project_decoder_gradient`, `normalize_decoder`), on a CPU in a single pass over memory.

    Parameters
    ----------
    sae
        Each of its ``lr_factors`` multiplies the learning rate of a parameter.
    betas
        With a first one of 0, as by default, the first moment is the gradient itself and is not kept.
    """

    def __init__(self, sae: SparseAutoencoder, betas: tuple[float, float]) -> None:
        self._sae = sae
        self._betas = betas
        self._parameters = {name: one for name, one in sae.named_parameters() if one.requires_grad}
        # An encoder's features are contiguous as rows.
        self.weights = {name: sae.features_first(name, one.detach()) for name, one in self._parameters.items()}
        """What is trained, by parameter name, features first."""
        is_compiled = workers.compiled() is not None and all(
            weight.device.type == "cpu" and weight.dtype in (torch.float32, torch.float64) and weight.is_contiguous()
            for weight in self.weights.values()
        )
        self._torch: torch.optim.Adam | None = None
        """None where the update is the compiled one."""
        self._own: dict[str, dict[str, Tensor]] = {name: {} for name in self.weights}
        self._arrays: dict[str, tuple[Any, ...]] = {}
        """Of each parameter updated so far: step, weight, first and second moment as the compiled loop takes them."""
        if not is_compiled:
            groups = [
                {"params": [one], "lr_factor": sae.lr_factors.get(name, 1.0)} for name, one in self.weights.items()
            ]
            self._torch = torch.optim.Adam(groups, betas=betas, eps=EPS, fused=True)

    @property
    def moments(self) -> dict[str, dict[str, Tensor]]:
        """By parameter name, features first: ``exp_avg_sq``, ``exp_avg`` where it is kept, and ``step``."""
        if self._torch is None:
            return self._own
        return {name: self._torch.state[weight] for name, weight in self.weights.items()}

    def restore(self, moments: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Go on from the ``moments`` of another run of the same SAE, on any device."""
        self._arrays.clear()
        for name, weight in self.weights.items():
            state = {key: tensor.to(weight.device) for key, tensor in moments[name].items()}
            if self._torch is None:
                self._own[name] = state
                continue
            if state:
                state.setdefault("exp_avg", torch.zeros_like(weight))
            self._torch.state[weight] = state

    def forget_gradients(self) -> None:
        """Leave every parameter without a gradient."""
        for parameter in self._parameters.values():
            parameter.grad = None

    def step(self, lr: float) -> None:
        """Update every parameter that has a gradient."""
        for name, weight in self.weights.items():
            parameter = self._parameters[name]
            if parameter.data_ptr() != weight.data_ptr():
                raise RuntimeError("the SAE was moved or converted while it trained; make a new Trainer for it")
            gradient = parameter.grad
            # Both updates take gradients to be laid out in memory as the weights are, torch's without asking.
            weight.grad = None if gradient is None else self._sae.features_first(name, gradient).contiguous()
        if self._torch is None:
            self._compiled_step(lr)
        else:
            self._sae.project_decoder_gradient()
            for group in self._torch.param_groups:
                group["lr"] = lr * group["lr_factor"]
            self._torch.step()
            self._sae.normalize_decoder()
        self._sae.restrain_decoder()

    def _compiled_step(self, lr: float) -> None:
        beta1, beta2 = self._betas
        jobs: list[workers.Job] = []
        work = 0
        for name, weight in self.weights.items():
            if weight.grad is None:
                continue
            if name not in self._arrays:
                self._arrays[name] = self._arrays_of(name, weight)
            step, values, mean, square = self._arrays[name]
            step += 1
            n, kind = float(step), values.dtype
            rate = lr * self._sae.lr_factors.get(name, 1.0) / (1 - beta1**n)
            numbers = (beta1, beta2, rate, 1 / math.sqrt(1 - beta2**n), EPS)
            keeps_norms = name == "W_dec" and self._sae.has_unit_decoder
            gradient = weight.grad.numpy().reshape(values.shape)
            arguments = (values, gradient, mean, square, *(workers.number(one, kind) for one in numbers), keeps_norms)
            jobs.append((functools.partial(_update, arguments), len(values)))
            work += 4 * values.size
        workers.run(work, *jobs)

    def _arrays_of(self, name: str, weight: Tensor) -> tuple[Any, ...]:
        state = self._own[name]
        if "exp_avg_sq" not in state:
            state |= {"step": torch.tensor(0.0), "exp_avg_sq": torch.zeros_like(weight)}
        if self._betas[0] and "exp_avg" not in state:
            state["exp_avg"] = torch.zeros_like(weight)
        square = state["exp_avg_sq"]
        mean = state["exp_avg"] if self._betas[0] else square  # which is not used
        rows = (array[None] if array.ndim == 1 else array for array in (weight.numpy(), mean.numpy(), square.numpy()))
        return state["step"].numpy(), *rows


def _update(arguments: tuple[Any, ...], first: int, last: int, part: int) -> None:
    workers.loops().adam(first, last, part, *arguments)
