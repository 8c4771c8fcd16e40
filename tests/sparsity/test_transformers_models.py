"""Masks on models of transformers: what is masked, exact zeros, ties, and files that load again."""

import warnings

import pytest
import torch

from latewood.core import select_parameters
from latewood.core.masks import density_of
from latewood.sparsity import (
    ContinuousSparsification,
    FixedMasks,
    GradualMagnitudePruning,
    Ticket,
    prune_smallest,
    random_masks,
    snapshot,
)
from latewood.sparsity.maskable_weights import maskable

STEPS = 10
NAMES = ("gpt2", "bert", "t5", "llama", "mixtral", "whisper", "vit", "mamba")


def weights_of(model):
    return {weight.name: weight.stored.detach() for weight in maskable(model)}


METHODS = {
    "continuous_sparsification": lambda model: ContinuousSparsification(
        model, total_steps=STEPS, density=0.4
    ),
    "gradual_magnitude_pruning": lambda model: GradualMagnitudePruning(
        model, total_steps=STEPS, density=0.4
    ),
    "smallest": lambda model: FixedMasks(model, prune_smallest(weights_of(model), fraction=0.6)),
    "random": lambda model: FixedMasks(
        model, random_masks(weights_of(model), density=0.4, seed=0), scale=1.5
    ),
    "ticket": lambda model: Ticket(
        random_masks(weights_of(model), density=0.4, seed=0), snapshot(model), {}
    ).rewind(model),
}


def train(model, inputs, method):
    optimizer = torch.optim.AdamW(
        [{"params": [p for p in model.parameters() if p.requires_grad]}], lr=1e-3
    )
    for _ in range(STEPS):
        outputs = model(**inputs)
        loss = outputs.logits.square().mean() + method.penalty()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        method.step()
