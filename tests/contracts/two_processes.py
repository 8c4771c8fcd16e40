"""One of two processes that train every registered entry together and compare their bits.

Arguments: rank, number of processes, path of a file to meet in, folder for what probes write.
"""

import hashlib
import os
import sys
import warnings
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from entries import cases
from short_training import STEPS_PER_EPOCH, TOTAL_STEPS, Training, batch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel


class OwnSamples(Training):
    """A training whose process sees other samples than its neighbours."""

    def samples(self):
        return batch(self.network, 100 * dist.get_rank() + self.steps)


def distributed(model):
    # A mask that is fixed on the way stops its logits: without this they would be waited for.
    return DistributedDataParallel(model, find_unused_parameters=True)


def digest(node):
    """A fingerprint of all bits in a tree; the statistics of batch norms are each process's own."""
    fingerprint = hashlib.sha256()

    def add(value, where):
        if isinstance(value, dict):
            for key in value:
                if "running_" not in str(key):
                    add(value[key], f"{where}/{key}")
        elif isinstance(value, list | tuple):
            for index, item in enumerate(value):
                add(item, f"{where}/{index}")
        elif isinstance(value, Tensor):
            fingerprint.update(f"{where}{value.dtype}{tuple(value.shape)}".encode())
            fingerprint.update(value.detach().contiguous().flatten().view(torch.uint8).numpy())
        else:
            fingerprint.update(f"{where}{value!r}".encode())

    add(node, "")
    return fingerprint.hexdigest()


def agree(what, where):
    """Fails in both processes unless they hold the same."""
    held = [None] * dist.get_world_size()
    dist.all_gather_object(held, digest(what))
    assert len(set(held)) == 1, f"{where}: the processes hold different bits"


def train(case, network, folder):
    where = f"{case} {network}"
    training = OwnSamples(case, network, folder=folder, wrap=distributed)
    while training.steps < TOTAL_STEPS:
        training.run(training.steps + STEPS_PER_EPOCH)
        agree(training.state(), f"{where} after step {training.steps}")
    metrics = [method.metrics() for method in training.methods]
    agree(metrics, f"{where}, metrics")
    training.wrapped = None
    agree(training.finish().state_dict(), f"{where}, finalized")
    if dist.get_rank() == 0 and training.probes:
        assert TOTAL_STEPS in training.seen, f"{where}: the first process has seen nothing"


def main(rank, size, meeting, folder):
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{meeting}", rank=rank, world_size=size,
        timeout=timedelta(seconds=60),
    )  # fmt: skip
    for case in cases("method", "probe", "optimizer"):
        for network in ["mlp", "convnet", "lstm"] if case.kind == "method" else ["mlp"]:
            print(case, network, flush=True)
            train(case, network, Path(folder) / f"{case}-{network}-{rank}")
    dist.barrier()
    dist.destroy_process_group()
    # gloo's own threads sometimes abort an ordinary exit on a loaded machine, when all is checked.
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4])
