"""Batch-norm statistics as the training rows give them."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from lightning_cvxsnn.network.isolation import forward_of, reset_neurons


def adapting_batch_norms(module: nn.Module) -> list[_BatchNorm]:
    """The batch norms that training updates: in training mode, with running statistics. Frozen ones are left out."""
    return [m for m in module.modules() if isinstance(m, _BatchNorm) and m.training and m.track_running_stats]


@torch.no_grad()
def estimate_batch_norm(module: nn.Module, layers: list[_BatchNorm], inputs: Iterable[Any]) -> None:
    """Set the running statistics of ``layers`` to their averages over ``inputs``, one pass.

    A fresh Conv-BN-LIF stack is alive in training, where batches are normalised, and dead in evaluation, where the
    running statistics are still those of the constructor. Call it inside ``undisturbed``, which puts the user's
    buffers back.

    Args:
        module: The network.
        layers: The batch norms to estimate, from ``adapting_batch_norms``.
        inputs: Batches of inputs.
    """
    momenta = [layer.momentum for layer in layers]
    try:
        for layer in layers:
            layer.reset_running_stats()
            layer.momentum = None  # cumulative average
            layer.train()
        for x in inputs:
            reset_neurons(module)
            forward_of(module)(x)
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
            layer.eval()
