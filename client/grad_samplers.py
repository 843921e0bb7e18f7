"""Per-user gradients of the recommender's own layers, registered with Opacus.

Each function gets a layer's input and the gradient of its output, users first, and returns one gradient per user and
parameter. Linear layers, LoRA's included, are covered by Opacus itself.
"""

from __future__ import annotations

import torch
from opacus.grad_sample.utils import register_grad_sampler
from torch import Tensor, nn

from common.model.layers import ItemBias, ItemFactors, Scale


@register_grad_sampler(Scale)
def scale_grad_sample(layer: Scale, activations: list[Tensor], backprops: Tensor) -> dict[nn.Parameter, Tensor]:
    """``(B, 1)``: sum over everything of input times gradient."""
    per_user = (activations[0].to(backprops.dtype) * backprops).flatten(1).sum(1)
    return {layer.weight: per_user.unsqueeze(1)}


@register_grad_sampler(ItemBias)
def item_bias_grad_sample(layer: ItemBias, activations: list[Tensor], backprops: Tensor) -> dict[nn.Parameter, Tensor]:
    """``(B, n_items)``: sum over positions."""
    return {layer.weight: backprops.flatten(1, -2).sum(1)}


@register_grad_sampler(ItemFactors)
def item_factors_grad_sample(layer: ItemFactors, activations: list[Tensor], backprops: Tensor) -> dict[nn.Parameter, Tensor]:
    """``(B, n_items, dim)``: of a look-up, gradients added at the items met; of scores, an outer product per user."""
    x = activations[0]
    if x.is_floating_point():
        return {layer.weight: torch.einsum("bln,bld->bnd", backprops, x.to(backprops.dtype))}
    out = torch.zeros(len(x), *layer.weight.shape, dtype=backprops.dtype, device=backprops.device)
    index = x.unsqueeze(-1).expand(-1, -1, layer.weight.shape[1])
    return {layer.weight: out.scatter_add_(1, index, backprops)}
