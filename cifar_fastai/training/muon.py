"""Muon for convolutional nets: torch's, with each kernel as a matrix, and SGD for all else.

    Learner(dls, model, opt_func=optimizer("muon", mom=.6), lr=.24)
"""
import torch
from torch import Tensor
from torch.optim._muon import muon
from torch.optim.sgd import sgd

__all__ = ["KernelMuon"]


class KernelMuon(torch.optim.Muon):
    """`torch.optim.Muon` (Jordan 2024) for convolutions: a kernel (out, in, h, w) counts as the matrix
    (out, in·h·w) and is brought to the norm √out before each step, as only its direction matters before a
    norm layer. Norms, biases and linear layers learn by Nesterov SGD at the same rate."""

    def __init__(
        self,
        params,
        lr: float = 0.24,
        weight_decay: float = 0.0,    # of what SGD trains, coupled; kernels have a fixed norm instead
        momentum: float = 0.6,        # of the kernels
        sgd_momentum: float = 0.85,   # of the rest
        ns_steps: int = 3,            # Newton-Schulz steps that make the update orthogonal
    ):
        torch.optim.Optimizer.__init__(self, params, {
            "lr": lr, "weight_decay": weight_decay, "momentum": momentum, "sgd_momentum": sgd_momentum,
            "ns_steps": ns_steps})

    @torch.no_grad()
    def step(self, closure=None):
        "One step; `closure` computes the loss again, as for any torch optimiser"
        if closure is None: loss = None
        else:
            with torch.enable_grad(): loss = closure()
        for group in self.param_groups:
            found = [p for p in group["params"] if p.grad is not None]
            self._step_kernels(group, [p for p in found if p.ndim == 4])
            self._step_rest(group, [p for p in found if p.ndim != 4])
        return loss

    def _step_kernels(self, group: dict, kernels: list[Tensor]) -> None:
        for p in kernels: p.mul_(len(p) ** 0.5 / p.norm().clamp_min(1e-12))
        momenta = [self._momentum(p) for p in kernels]
        muon([_matrix(p, p) for p in kernels], [_matrix(p.grad, p) for p in kernels],
             [_matrix(m, p) for m, p in zip(momenta, kernels)], lr=group["lr"], weight_decay=0.0,
             momentum=group["momentum"], nesterov=True, ns_coefficients=(3.4445, -4.7750, 2.0315),
             eps=1e-7, ns_steps=group["ns_steps"], adjust_lr_fn="original", has_complex=False)

    def _step_rest(self, group: dict, params: list[Tensor]) -> None:
        sgd(params, [p.grad for p in params], [self._momentum(p) for p in params],
            weight_decay=group["weight_decay"], momentum=group["sgd_momentum"], lr=group["lr"], dampening=0.0,
            nesterov=True, maximize=False, foreach=True)

    def _momentum(self, p: Tensor) -> Tensor:
        state = self.state[p]
        if "momentum_buffer" not in state: state["momentum_buffer"] = torch.zeros_like(p)
        return state["momentum_buffer"]


def _matrix(
    t: Tensor,    # a kernel, its gradient or its momentum: (out, in, h, w)
    like: Tensor, # the kernel, whose order of memory decides the order of the columns
) -> Tensor:      # (out, in·h·w): a view of `t` if it has the same order
    last = not like.is_contiguous() and like.is_contiguous(memory_format=torch.channels_last)
    return (t.permute(0, 2, 3, 1) if last else t).flatten(1)
