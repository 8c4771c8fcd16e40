"""One process of a sharded run: every optimizer against an unsharded copy of it.

Arguments: rank, number of processes, path of a file to meet in.
"""

import os
import sys
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor, init_device_mesh
from torch.nn.parallel import DistributedDataParallel

from latewood.optim import CSGD, AdaBound, AvaGrad, DelayedAdam

CASES = [
    *(
        (AvaGrad, {"gamma_mode": mode, "gamma_scope": scope})
        for mode in ("aligned", "official", "paper")
        for scope in ("global", "tensor")
    ),
    (AvaGrad, {"fused": False}),
    (DelayedAdam, {}),
    (AdaBound, {}),
    (CSGD, {"momentum": 0.9}),
]


def network():
    torch.manual_seed(0)
    # 5 and 1 rows over two processes: an uneven and an empty shard.
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1)).double()


def train(model, optimizer, data):
    for batch in data:
        optimizer.zero_grad()
        model(batch).square().mean().backward()
        optimizer.step()


def whole(tensor):
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def compare(name, model, optimizer, plain, plain_optimizer):
    for a, b in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(whole(a.detach()), b.detach(), rtol=1e-12, atol=1e-14, msg=name)
    for group, other in zip(optimizer.param_groups, plain_optimizer.param_groups, strict=True):
        if isinstance(group.get("gamma"), torch.Tensor):
            torch.testing.assert_close(group["gamma"], other["gamma"], rtol=1e-12, atol=0.0)


def fully_sharded(mesh, data):
    for optimizer_class, options in CASES:
        plain, model = network(), network()
        for layer in (model[0], model[2], model):
            fully_shard(layer, mesh=mesh)
        optimizers = [optimizer_class(m.parameters(), lr=0.05, **options) for m in (model, plain)]
        train(model, optimizers[0], data)
        train(plain, optimizers[1], data)
        compare(
            f"fsdp {optimizer_class.__name__} {options}", model, optimizers[0], plain, optimizers[1]
        )


def replicated(data):
    plain, model = network(), network()
    wrapped = DistributedDataParallel(model)
    optimizers = [AvaGrad(m.parameters(), lr=0.05) for m in (model, plain)]
    train(wrapped, optimizers[0], data)
    train(plain, optimizers[1], data)
    compare("ddp", model, optimizers[0], plain, optimizers[1])


def mixed(mesh):
    values = [
        torch.randn(5, 2, generator=torch.Generator().manual_seed(k)).double() for k in (0, 1, 2)
    ]
    placements = [[Shard(0)], [Replicate()], None]
    sharded = [
        nn.Parameter(v.clone() if p is None else distribute_tensor(v, mesh, p))
        for v, p in zip(values, placements, strict=True)
    ]
    plain = [nn.Parameter(v.clone()) for v in values]
    optimizers = [AvaGrad(p, eps=0.01) for p in (sharded, plain)]
    for step in range(4):
        for k, (a, b) in enumerate(zip(sharded, plain, strict=True)):
            generator = torch.Generator().manual_seed(10 * step + k)
            b.grad = torch.randn(5, 2, generator=generator).double()
            a.grad = b.grad.clone()
            if placements[k] is not None:
                a.grad = distribute_tensor(b.grad, mesh, placements[k])
        for optimizer in optimizers:
            optimizer.step()
    for a, b in zip(sharded, plain, strict=True):
        torch.testing.assert_close(whole(a.detach()), b.detach(), rtol=1e-12, atol=1e-14)


def whole_parameters(rank):
    """Each process holds other parameters; a process without gradients must not hang the rest."""
    values = [torch.ones(3).double(), torch.ones(7).double()]
    mine = nn.Parameter(values[rank].clone())
    plain = [nn.Parameter(value.clone()) for value in values]
    optimizer = AvaGrad([mine], eps=0.01, process_group=dist.group.WORLD)
    other = AvaGrad(plain, eps=0.01)
    for step in range(5):
        for k, p in enumerate(plain):
            generator = torch.Generator().manual_seed(10 * step + k)
            p.grad = torch.randn(p.shape, generator=generator).double() * 10.0**-k
        if step == 2:
            plain[1].grad = None
        mine.grad = None if plain[rank].grad is None else plain[rank].grad.clone()
        optimizer.step()
        other.step()
    torch.testing.assert_close(mine, plain[rank], rtol=1e-12, atol=1e-14)


def main(rank, size, meeting):
    dist.init_process_group(
        "gloo", init_method=f"file://{meeting}", rank=rank, world_size=size,
        timeout=timedelta(seconds=60),
    )  # fmt: skip
    mesh = init_device_mesh("cpu", (size,))
    generator = torch.Generator().manual_seed(3)
    data = [torch.randn(4, 3, generator=generator).double() for _ in range(4)]
    fully_sharded(mesh, data)
    replicated(data)
    mixed(mesh)
    whole_parameters(rank)
    dist.barrier()
    dist.destroy_process_group()
    # gloo's own threads sometimes abort an ordinary exit on a loaded machine, when all is checked.
    os._exit(0)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
