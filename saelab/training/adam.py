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
        # Adam's fused kernel is fast on contiguous memory, and an encoder's features are contiguous as rows.
        self.weights = {
            name: sae.features_first(name, parameter.detach())
            for name, parameter in sae.named_parameters()
            if parameter.requires_grad
        }
        """What is trained, by parameter name, features first."""
        first = next(iter(self.weights.values()), sae.W_dec)
        self._is_compiled = (
            first.device.type == "cpu"
            and first.dtype in (torch.float32, torch.float64)
            and all(weight.is_contiguous() for weight in self.weights.values())
            and workers.compiled() is not None
        )
        self._torch = torch.optim.Adam(
            [{"params": [weight], "lr_factor": sae.lr_factors.get(name, 1.0)} for name, weight in self.weights.items()],
            betas=betas,
            eps=EPS,
            fused=True,
        )

    @property
    def moments(self) -> dict[str, dict[str, Tensor]]:
        """By parameter name, features first: ``exp_avg_sq``, ``exp_avg`` where it is kept, and ``step``."""
        return {name: self._torch.state[weight] for name, weight in self.weights.items()}

    def restore(self, moments: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Go on from the ``moments`` of another run of the same SAE, on any device."""
        for name, weight in self.weights.items():
            state = {key: tensor.to(weight.device) for key, tensor in moments[name].items()}
            if state and not self._is_compiled:
                state.setdefault("exp_avg", torch.zeros_like(weight))
            self._torch.state[weight] = state

    def step(self, lr: float) -> None:
        """Update every parameter that has a gradient."""
        for name, weight in self.weights.items():
            parameter = self._sae.get_parameter(name)
            if parameter.data_ptr() != weight.data_ptr():
                raise RuntimeError("the SAE was moved or converted while it trained; make a new Trainer for it")
            weight.grad = None if parameter.grad is None else self._sae.features_first(name, parameter.grad)
        if self._is_compiled:
            self._compiled_step(lr)
            return
        self._sae.project_decoder_gradient()
        for group in self._torch.param_groups:
            group["lr"] = lr * group["lr_factor"]
        self._torch.step()
        self._sae.normalize_decoder()

    def _compiled_step(self, lr: float) -> None:
        beta1, beta2 = self._betas
        jobs: list[workers.Job] = []
        work = 0
        for name, weight in self.weights.items():
            if weight.grad is None:
                continue
            state = self._torch.state[weight]
            if "exp_avg_sq" not in state:
                state |= {"step": torch.tensor(0.0), "exp_avg_sq": torch.zeros_like(weight)}
            if beta1 and "exp_avg" not in state:
                state["exp_avg"] = torch.zeros_like(weight)
            state["step"] += 1
            n = int(state["step"])
            kept = ("exp_avg", "exp_avg_sq") if beta1 else ("exp_avg_sq", "exp_avg_sq")
            arrays = [tensor.numpy() for tensor in (weight, weight.grad.contiguous(), *(state[key] for key in kept))]
            is_decoder = name == "W_dec" and self._sae.has_unit_decoder
            if weight.ndim == 1:
                arrays = [array[None] for array in arrays]
            number = arrays[0].dtype.type
            rate = lr * self._sae.lr_factors.get(name, 1.0) / (1 - beta1**n)
            numbers = (beta1, beta2, rate, 1 / math.sqrt(1 - beta2**n), EPS)
            arguments = (*arrays, *map(number, numbers), is_decoder)
            jobs.append((functools.partial(_update, arguments), len(arrays[0])))
            work += 4 * weight.numel()
        workers.run(work, *jobs)


def _update(arguments: tuple[Any, ...], first: int, last: int, part: int) -> None:
    workers.loops().adam(first, last, part, *arguments)
