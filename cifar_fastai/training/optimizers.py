"""Optimisers by name, as fastai's Learner and its callbacks take them.

    Learner(dls, model, opt_func=optimizer("adamw"))
    optimizer("sgd", mom=0.9)                          # torch's own, with Nesterov's momentum
    optimizer("muon", mom=0.9)                         # of each kernel as a matrix
"""
import inspect
from functools import partial
from itertools import islice

import torch
from fastai.callback.training import GradientAccumulation
from fastai.optimizer import Lamb, Larc, OptimWrapper, QHAdam, detuplify_pg, ranger, set_item_pg
from fastai.torch_core import norm_bias_params
from torch import Tensor, nn
from torch.optim.sgd import sgd

from ..errors import UnknownName
from ..models import head_of

__all__ = ["KernelMuon", "OPTIMIZERS", "TorchOptimizer", "batches_a_step", "groups_apart",
           "norms_and_biases", "optimizer"]


class KernelMuon(torch.optim.Optimizer):
    """Muon (Jordan 2024) for convolutions: `torch.optim.Muon`'s step, not rounded to bf16, of a kernel (out,
    in, h, w) as a matrix (out, in·h·w), brought to the norm √out before each step, as only its direction
    matters before a norm layer. Norms, biases and linear layers learn by Nesterov SGD at the same rate."""
    highest_peak = 1.5     # times the rate with the lowest loss of a range test: no gradient shortens a step

    def __init__(
        self,
        params,
        lr: float = 0.24,
        weight_decay: float = 0.0,    # of what SGD trains, coupled; kernels have a fixed norm instead
        momentum: float = 0.6,        # of the kernels: for batches of 2,000, smaller ones want more
        sgd_momentum: float = 0.85,   # of the rest
        ns_steps: int = 3,            # Newton-Schulz steps that make the update orthogonal
    ):
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum,
                                  "sgd_momentum": sgd_momentum, "ns_steps": ns_steps})

    @torch.no_grad()
    def step(self, closure=None):
        "One step; `closure` computes the loss again, as for any torch optimiser"
        with torch.enable_grad(): loss = closure and closure()
        for group in self.param_groups:
            found = [p for p in group["params"] if p.grad is not None]
            self._step_kernels(group, [p for p in found if p.ndim == 4])
            self._step_rest(group, [p for p in found if p.ndim != 4])
        return loss

    def _step_kernels(self, group: dict, kernels: list[Tensor]) -> None:
        momentum = group["momentum"]
        for p in kernels:
            mean = self._momentum(p).lerp_(p.grad, 1 - momentum)
            g = p.grad.lerp(mean, momentum).flatten(1)       # Nesterov's
            p.mul_(len(p) ** 0.5 / p.norm().clamp_min(1e-12))
            rate = group["lr"] * max(1, len(g) / g.shape[1]) ** 0.5
            p.sub_(_orthogonal(g, group["ns_steps"]).view(p.shape), alpha=rate)

    def _step_rest(self, group: dict, params: list[Tensor]) -> None:
        sgd(params, [p.grad for p in params], [self._momentum(p) for p in params],
            weight_decay=group["weight_decay"], momentum=group["sgd_momentum"], lr=group["lr"], dampening=0.0,
            nesterov=True, maximize=False, foreach=True)

    def _momentum(self, p: Tensor) -> Tensor:
        state = self.state[p]
        if "momentum_buffer" not in state: state["momentum_buffer"] = torch.zeros_like(p)
        return state["momentum_buffer"]


def _orthogonal(g: Tensor, steps: int) -> Tensor:
    """The matrix `g` with singular values near one, by `torch.optim.Muon`'s X ← (a + bA + cA²)X, A = XXᵀ. All
    factors are polynomials of A, so that only small matrices are multiplied until the end"""
    if len(g) > g.shape[1]: return _orthogonal(g.T, steps).T
    g = g / g.norm().clamp_min(1e-7)
    gram = g @ g.T
    product = torch.eye(len(g), device=g.device, dtype=g.dtype)
    for _ in range(steps):
        factor = torch.addmm(gram, gram, gram, beta=-4.7750, alpha=2.0315)
        factor.diagonal().add_(3.4445)
        product, gram = factor @ product, factor @ gram @ factor
    return product @ g


TORCH = {n.lower(): getattr(torch.optim, n) for n in ("SGD", "Adam", "AdamW", "NAdam", "RAdam", "RMSprop",
         "Adagrad", "Adadelta", "Adamax", "ASGD")} | {"muon": KernelMuon}
FASTAI = {"ranger": ranger, "lamb": Lamb, "larc": Larc, "qhadam": QHAdam}
OPTIMIZERS = (*TORCH, *FASTAI)


class TorchOptimizer(OptimWrapper):
    """A torch optimiser as fastai's callbacks expect theirs: `hypers` holds numbers alone and can be written
    to; parameters with a rate or decay of their own stay in their layer group, where `freeze` and slices
    find them"""
    n_layers, factors = None, ((1.0, 1.0),)   # layer groups; of rate and decay, for torch's groups of each

    @property
    def _layers(self) -> list[list[dict]]:
        "torch's groups of each layer group"
        n, groups = self.n_layers, self.opt.param_groups
        return [groups[k::n] for k in range(n)] if n else [[group] for group in groups]

    def set_apart(self, params, lr: float = 1.0, wd: float = 1.0) -> None:
        "Multiply the rate and the decay of `params` by these factors from now on"
        chosen, layers = {id(p) for p in params}, self._layers
        self.n_layers, self.factors = len(layers), (*self.factors, (lr, wd))
        for layer in layers:
            taken = [p for group in layer for p in group["params"] if id(p) in chosen]
            for group in layer: group["params"] = [p for p in group["params"] if id(p) not in chosen]
            first = layer[0]
            self.opt.add_param_group({**first, "params": taken, "lr": first["lr"] * lr,
                                      "weight_decay": first.get("weight_decay", 0) * wd})

    @property
    def hypers(self): return [_Hypers(self, layer) for layer in self._layers]

    def _set_hyper(self, k, v):
        for layer, v_ in zip(self._layers, v): self._set(layer, k, v_)

    def _set(self, layer, k, v):
        for group, (lr, wd) in zip(layer, self.factors):
            set_item_pg(group, self.bwd_map[k], v * {"lr": lr, "wd": wd}.get(k, 1))

    @property
    def param_lists(self): return [[p for group in layer for p in group["params"]] for layer in self._layers]
    @param_lists.setter
    def param_lists(self, v):
        for layer, params in zip(self._layers, v):
            params = iter(params)
            for group in layer: group["params"] = list(islice(params, len(group["params"])))


class _Hypers(dict):
    """The numbers of a layer group by fastai's names, without torch's None and booleans, which no log takes.
    What is set here is set in torch's groups (`ReduceLROnPlateau` does that)"""

    def __init__(self, opt: TorchOptimizer, layer: list[dict]):
        super().__init__({opt.fwd_map.get(k, k): v for k, v in detuplify_pg(layer[0]).items()
                          if isinstance(v, (int, float, torch.Tensor)) and not isinstance(v, bool)})
        self._put = partial(opt._set, layer)

    def __setitem__(self, k, v):
        self._put(k, v)
        super().__setitem__(k, v)

    def __reduce__(self): return dict, (dict(self),)   # a copy is of the numbers, not of the optimiser


def norms_and_biases(model: nn.Module) -> list[nn.Parameter]:
    "fastai's `norm_bias_params`, and the scales of group norms, which it does not know"
    scales = [m.weight for m in model.modules() if isinstance(m, nn.GroupNorm) and m.affine]
    return [*norm_bias_params(model, with_bias=True), *scales]


def groups_apart(
    model: nn.Module,
    spared: list[nn.Parameter],     # that have no decay
    bias_lr: float,                 # rate of the biases but the head's, × the others'; decay ÷ it
    head_lr: float,                 # the same of the last linear layer
) -> list[tuple]:                   # parameters, factor of their rate, factor of their decay
    "What `TorchOptimizer.set_apart` is to do, in this order"
    apart, head = [(spared, 1.0, 0.0)] if spared else [], head_of(model)
    if bias_lr != 1:
        own = {id(p) for p in head}
        biases = [p for n, p in model.named_parameters() if n.endswith("bias") and id(p) not in own]
        apart.append((biases, bias_lr, 0.0 if spared else 1 / bias_lr))
    if head_lr != 1: apart.append((head, head_lr, 1 / head_lr))
    if head_lr != 1 and spared: apart.append((head[1:], head_lr, 0.0))
    return apart


def batches_a_step(learn) -> int:
    "How many batches make one step: several where gradients are accumulated"
    wanted = [cb.n_acc for cb in learn.cbs if isinstance(cb, GradientAccumulation)]
    return max([1, *(-(-n // learn.dls.train.bs) for n in wanted)])


def optimizer(
    opt,               # "sgd" (Nesterov), another of `OPTIMIZERS`, or an `opt_func`, which is given back
    mom: float = 0.9,  # momentum, or beta1
    **kwargs,          # further arguments of the optimiser
):                     # an `opt_func`
    "An optimiser by name, as a fastai `opt_func`: torch's own through `OptimWrapper`, or fastai's"
    if isinstance(opt, partial) and opt.func is OptimWrapper:
        return partial(TorchOptimizer, *opt.args, **opt.keywords)
    if callable(opt) or isinstance(opt, OptimWrapper): return opt
    if opt in FASTAI: return partial(FASTAI[opt], mom=mom, **kwargs)
    if opt not in TORCH: raise UnknownName("optimiser", opt, OPTIMIZERS)
    known = inspect.signature(TORCH[opt]).parameters
    given = {"momentum": mom, "nesterov": mom > 0, "betas": (mom, 0.999), "foreach": True}
    return partial(TorchOptimizer, opt=TORCH[opt], **{k: v for k, v in given.items() if k in known} | kwargs)
