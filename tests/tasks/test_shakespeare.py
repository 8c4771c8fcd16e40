import pytest
import torch

from latewood.errors import RequestError, WorkError
from latewood.tasks.shakespeare import shakespeare

pytestmark = pytest.mark.usefixtures("clean_places")

TEXT = "".join(chr(97 + (k * k) % 23) for k in range(997)) + "é\n "


@pytest.fixture
def text_folder(tmp_path):
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "input.txt").write_text(TEXT, encoding="utf-8")
    return str(tmp_path / "text")


def spell(codes):
    vocabulary = sorted(set(TEXT))
    return "".join(vocabulary[code] for code in codes)


def test_windows_are_the_text_and_targets_are_one_further(text_folder):
    task = shakespeare(folder=text_folder, context=10)
    inputs, targets = task.train.gather(torch.arange(len(task.train)))
    assert inputs.dtype == targets.dtype == torch.int64
    assert spell(inputs.flatten().tolist()) == TEXT[: inputs.numel()]
    assert spell(targets.flatten().tolist()) == TEXT[1 : targets.numel() + 1]
    assert len(task.train) == (900 - 1) // 10


def test_parts_are_ninety_and_five_percent(text_folder):
    task = shakespeare(folder=text_folder, context=10)
    inputs, targets = task.validation.gather(torch.arange(len(task.validation)))
    assert spell(inputs.flatten().tolist()) == TEXT[900:940]
    assert spell(targets[-1].tolist()) == TEXT[931:941]
    assert spell(task.validation.characters.tolist()) == TEXT[900:950]


def test_vocabulary_is_that_of_the_whole_text(text_folder):
    task = shakespeare(folder=text_folder, context=10)
    assert task.model_arguments["vocabulary"] == len(set(TEXT))
    assert task.model_arguments["context"] == 10
    assert task.example_inputs[0].shape == (1, 10)
    assert (task.headline, task.higher_is_better) == ("bits_per_character", False)


def test_stride_overlaps_training_windows_only(text_folder):
    task = shakespeare(folder=text_folder, context=10, stride=3)
    inputs, _ = task.train.gather(torch.tensor([0, 1, 5]))
    assert [spell(row.tolist()) for row in inputs] == [TEXT[s : s + 10] for s in (0, 3, 15)]
    assert len(task.train) == (900 - 11) // 3 + 1
    assert len(task.validation) == len(shakespeare(folder=text_folder, context=10).validation)


@pytest.mark.parametrize("model", ["transformer", "lstm_language_model"])
def test_fits_its_models(text_folder, model):
    from latewood import models

    task = shakespeare(folder=text_folder, context=10)
    vocabulary = task.model_arguments["vocabulary"]
    sizes = {"width": 8, "layers": 1, "heads": 2, "context": 10}
    arguments = sizes if model == "transformer" else {"hidden": 8}
    network = getattr(models, model)(vocabulary=vocabulary, **arguments)
    batch = task.validation.gather(torch.arange(2))
    scores = task.objective.evaluate(network, batch, torch.Generator())
    assert 0 < float(scores["bits_per_character"]) < 10


def test_the_longest_context(text_folder):
    assert len(shakespeare(folder=text_folder, context=49).validation) == 1
    with pytest.raises(RequestError, match="context: got 50; expected at most 49"):
        shakespeare(folder=text_folder, context=50)


@pytest.mark.parametrize("name", ["context", "stride"])
def test_numbers_out_of_range(text_folder, name):
    with pytest.raises(RequestError, match=f"{name}: got 0"):
        shakespeare(folder=text_folder, **{name: 0})


@pytest.mark.parametrize(
    ("content", "error", "said"),
    [
        (b"", RequestError, r"input\.txt: is empty"),
        (b"x", RequestError, "context: got 128; expected at most 0"),
        (b"abc\xff\xfe", WorkError, r"input\.txt: is not UTF-8 text at byte 3"),
    ],
)
def test_bad_texts(tmp_path, content, error, said):
    (tmp_path / "input.txt").write_bytes(content)
    with pytest.raises(error, match=said):
        shakespeare(folder=str(tmp_path))


def test_missing_text_and_missing_folder(tmp_path):
    with pytest.raises(RequestError, match=r"has no input\.txt"):
        shakespeare(folder=str(tmp_path))
    with pytest.raises(RequestError, match=r"data/shakespeare, .*data/tinyshakespeare"):
        shakespeare()
