"""Several processes that train one SAE together, through Hugging Face's accelerate; or a single one."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from saelab.data.batches import Share

if TYPE_CHECKING:
    from accelerate import Accelerator


class Together:
    """What a trainer has to ask of the other processes; without an accelerator there are none."""

    def __init__(self, accelerator: "Accelerator | None") -> None:
        self._accelerator = accelerator
        self.is_main = accelerator is None or accelerator.is_main_process
        self.share = Share() if accelerator is None else Share(accelerator.process_index, accelerator.num_processes)

    @torch.no_grad()
    def take_from_main(self, module: nn.Module) -> None:
        """Move ``module`` to the accelerator's device, and give it the main process's weights."""
        if self._accelerator is None:
            return
        from accelerate.utils import broadcast

        module.to(self._accelerator.device)
        if self.share.n_processes > 1:
            for tensor in (*module.parameters(), *module.buffers()):
                tensor.copy_(broadcast(tensor.detach().contiguous()))

    def place(self, tensor: Tensor) -> Tensor:
        """``(n_processes, ...)``: this process's tensor in its own place, zeros in the others; `add_up` fills these."""
        places = tensor.new_zeros(self.share.n_processes, *tensor.shape)
        places[self.share.process] = tensor
        return places

    @torch.no_grad()
    def add_up(self, tensors: Sequence[Tensor]) -> None:
        """Put into each tensor the sum of all processes' tensors, in one exchange for each type."""
        assert self._accelerator is not None
        for kind in dict.fromkeys(tensor.dtype for tensor in tensors):
            ours = [tensor for tensor in tensors if tensor.dtype == kind]
            flat = torch.cat([tensor.reshape(-1) for tensor in ours])
            total = self._accelerator.reduce(flat, reduction="sum")
            for tensor, part in zip(ours, total.split([tensor.numel() for tensor in ours]), strict=True):
                tensor.copy_(part.view_as(tensor))
