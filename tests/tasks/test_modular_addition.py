import random

import pytest
import torch

from latewood.errors import RequestError
from latewood.models import grokking_transformer
from latewood.tasks.modular_addition import modular_addition


def whole(dataset):
    return dataset.gather(torch.arange(len(dataset)))


def test_the_papers_split():
    task = modular_addition()
    assert (len(task.train), len(task.validation)) == (3830, 8939)


@pytest.mark.parametrize("seed", [0, 3])
def test_the_table_shuffled_by_python(seed):
    task = modular_addition(p=7, fraction=0.5, seed=seed)
    triples = [(i, j, 7) for i in range(7) for j in range(7)]
    random.seed(seed)
    random.shuffle(triples)
    tokens, labels = whole(task.train)
    assert tokens.tolist() == [list(triple) for triple in triples[:24]]
    assert labels.tolist() == [(i + j) % 7 for i, j, _ in triples[:24]]
    tokens, labels = whole(task.validation)
    assert tokens.tolist() == [list(triple) for triple in triples[24:]]
    assert labels.tolist() == [(i + j) % 7 for i, j, _ in triples[24:]]


def test_pythons_generator_is_left_alone():
    before = random.getstate()
    modular_addition(p=5, fraction=0.5)
    assert random.getstate() == before


def test_fits_its_model():
    task = modular_addition(p=5, fraction=0.5)
    arguments = {key: task.model_arguments[key] for key in ("vocabulary", "context")}
    model = grokking_transformer(**arguments, width=8, heads=2, hidden=8)
    scores = task.objective.evaluate(model, whole(task.validation), torch.Generator())
    assert set(scores) == {"loss", "accuracy"}
    assert model(*task.example_inputs).shape[-1] == 6


@pytest.mark.parametrize("arguments", [{"p": 1}, {"fraction": 0.0}, {"fraction": 1.0}])
def test_bad_arguments(arguments):
    with pytest.raises(RequestError, match=f"{next(iter(arguments))}: got"):
        modular_addition(**arguments)
