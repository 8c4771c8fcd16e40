"""One process of a sharded run: the spectra that all find together, against those of one alone.

Arguments: rank, number of processes, path of a file to meet in, folder to write to.
"""

import os
import sys
import time
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import init_device_mesh
from torch.nn.parallel import DistributedDataParallel

from latewood.errors import WorkError
from latewood.spectra import SpectralProbe, read_alignments, read_snapshot, snapshot_paths


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 40), nn.Linear(40, 50))


def step(model, number):
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.01 * number


def walk(model, folder, **options):
    probe = SpectralProbe(model, folder=folder, vectors=4, pairs="auto", **options)
    said = []
    for number in range(7):
        said += probe.observe(number)
        step(model, number)
    said += probe.finish()
    return [
        (each.step, {k: v for k, v in each.values.items() if k not in ("lag", "dropped")})
        for each in said
    ]


def kept(folder):
    return {
        number: (
            [(s.name, s.shape, s.values.tobytes(), s.left.tobytes()) for s in spectra],
            read_alignments(path),
        )
        for number, path in snapshot_paths(folder).items()
        if (spectra := read_snapshot(path, vectors=True))
    }


def union_is_that_of_one(rank, folder):
    alone = walk(network(), folder / f"alone {rank}", every=2)
    mesh = init_device_mesh("cpu", (2,))
    sharded = network()
    for layer in (sharded[0], sharded[2], sharded[3], sharded):
        fully_shard(layer, mesh=mesh)
    for name, model, worker in (
        ("replicated", DistributedDataParallel(network()), False),
        ("beside", DistributedDataParallel(network()), True),
        ("sharded", sharded, False),
        ("sharded beside", sharded, True),
    ):
        if name == "sharded beside":
            with torch.no_grad():
                for own, fresh in zip(model.parameters(), network().parameters(), strict=True):
                    own.copy_(own - own)
                    own += torch.distributed.tensor.distribute_tensor(fresh, mesh, own.placements)
        place = folder / name
        said = walk(model, place, every=2, shard=True, worker=worker)
        dist.barrier()
        assert kept(place) == kept(folder / f"alone {rank}"), name
        if rank:
            assert said == [], name
            continue
        assert said == alone, name


def each_does_its_part(rank, folder):
    probe = SpectralProbe(network(), every=1, shard=True, worker=True)
    probe.observe(0)
    measurement = probe._worker._futures[0].result()
    names = [measured.spectrum.name for measured in measurement.matrices]
    assert names == (["0.weight", "3.weight"] if rank == 0 else ["2.weight"]), names
    probe.finish()


def auto_is_agreed(rank, folder):
    probe = SpectralProbe(network(), every="auto", shard=True, total_steps=60, budget=0.9)
    # A process that had long used up its budget would not observe, were it asked alone.
    probe._schedule.spent = 1e9 * rank
    seen = []
    for number in range(61):
        if probe.observe(number):
            seen.append(number)
        time.sleep(0.003)
    counts = [None, None]
    dist.all_gather_object(counts, probe._schedule.count)
    assert counts[0] == counts[1]
    assert seen == [] if rank else len(seen) == counts[0] and {0, 60} <= set(seen), seen


def an_error_reaches_all(rank, folder):
    probe = SpectralProbe(network(), every=1, shard=True)
    if rank == 1:
        probe._measurer._matrices.measure = lambda *samples, **options: 1 / 0
    try:
        probe.observe(0)
    except WorkError as error:
        assert rank == 0 and "process 1: ZeroDivisionError" in str(error)
    except ZeroDivisionError:
        assert rank == 1
    else:
        raise AssertionError("no error")


def main():
    rank, world, meeting, folder = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
    dist.init_process_group(
        "gloo",
        init_method=f"file://{meeting}",
        rank=rank,
        world_size=world,
        timeout=timedelta(seconds=150),
    )
    torch.set_num_threads(1)
    for check in (
        union_is_that_of_one,
        each_does_its_part,
        auto_is_agreed,
        an_error_reaches_all,
    ):
        check(rank, Path(folder))
    dist.barrier()
    dist.destroy_process_group()
    # gloo's own threads sometimes abort an ordinary exit on a loaded machine, when all is checked.
    os._exit(0)


if __name__ == "__main__":
    main()
