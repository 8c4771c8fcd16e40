"""A run under watch: what watchers see, in which order, and that they leave nothing behind."""

import pytest
import torch
from torch import nn

from latewood.core.coupling.trace import prepared, run_model
from latewood.core.coupling.watched_run import ModuleCall, Watcher, module_calls, watched


class Diary(Watcher):
    """Writes down what happens, and computes on the way."""

    def __init__(self):
        self.pages = []

    def before(self, operation):
        torch.ones(2) + 1
        self.pages.append(f"{operation.name}?")

    def after(self, operation):
        torch.ones(2) + 1
        self.pages.append(f"{operation.name} in {operation.modules[-1][0] or 'the model'}")
        self.last = operation
        return operation.output

    def entered(self, call):
        call.first + 1
        self.pages.append(f"into {call.name or 'the model'}")

    def left(self, call, output):
        torch.ones(2) + 1
        self.pages.append(f"out of {call.name or 'the model'}")


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x):
        return torch.relu(self.layer(x))


INPUTS = torch.ones(2, 3)


def run(model, *watchers, inputs=INPUTS):
    with prepared(model), watched(model, *watchers):
        return run_model(model, inputs)


def test_operations_and_modules_are_seen_before_and_after_and_watchers_are_not():
    diary = Diary()
    run(Net(), diary)
    expected = [
        *("into the model", "into layer", "linear?", "linear in layer", "out of layer"),
        *("relu?", "relu in the model", "out of the model"),
    ]
    assert [page for page in diary.pages if not page.startswith("get")] == expected


def test_what_a_watcher_returns_reaches_the_code_and_the_next_watcher():
    class Doubling(Watcher):
        def after(self, operation):
            return operation.output * 2 if operation.name == "relu" else operation.output

    diary = Diary()
    model = Net()
    output = run(model, Doubling(), diary)
    assert torch.equal(output, 2 * model(INPUTS)) and torch.equal(diary.last.output, output)


def test_an_operation_says_what_it_changed_in_place():
    class InPlace(nn.Module):
        def forward(self, x):
            y = x + 0
            y[0].add_(1)
            return y.mul_(2)

    changes = {}

    class Changes(Watcher):
        def after(self, operation):
            changes[operation.name] = (len(operation.changed), operation.in_place)
            return operation.output

    run(InPlace(), Changes())
    assert changes["mul"] == (1, True) and changes["getitem"] == (0, False)
    with torch.inference_mode():
        of_inference = torch.ones(2, 3)
    run(Net(), Changes(), inputs=of_inference)
    assert changes["linear"] == (0, False)


def test_a_module_that_raises_is_not_taken_for_one_that_runs():
    class Failing(nn.Module):
        def forward(self, x):
            raise ValueError

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.failing, self.layer = Failing(), nn.Linear(3, 3)

        def forward(self, x):
            try:
                return self.failing(x)
            except ValueError:
                return self.layer(x) + 1

    diary = Diary()
    run(Net(), diary)
    assert diary.pages[-2:] == ["add in the model", "out of the model"]


def test_a_run_inside_a_hook_is_seen_by_its_own_watchers_only():
    inner, outer = Diary(), Diary()

    class Again(Watcher):
        def left(self, call, output):
            if call.name == "layer" and not inner.pages:
                with watched(call.module, inner):
                    call.module(*call.positional)

    run(Net(), outer, Again())
    assert [page for page in inner.pages if page.startswith("linear")] == [
        "linear?", "linear in the model"
    ]  # fmt: skip
    assert sum(page.startswith("linear?") for page in outer.pages) == 1


def test_calls_are_told_apart_and_hooks_come_off():
    model, calls = nn.Linear(3, 3), []

    def left(call, output):
        calls.append((call, output))

    with module_calls({"it": model}, lambda call: None, left):
        model(INPUTS)
        model(input=INPUTS)
    first, second = (call for call, _ in calls)
    assert isinstance(first, ModuleCall) and first != second
    assert first.first is INPUTS and second.first is None and second.named == {"input": INPUTS}
    assert not model._forward_hooks and not model._forward_pre_hooks


@pytest.mark.parametrize("fails", [False, True])
def test_a_prepared_model_is_as_before_afterwards(fails):
    class Remembering(nn.Module):
        def forward(self, x):
            self.seen = x
            assert not self.training and not torch.is_grad_enabled()
            assert not fails
            return x

    model = Remembering()
    if fails:
        with pytest.raises(AssertionError):
            run(model, Watcher())
    else:
        run(model, Watcher())
    assert model.training and not hasattr(model, "seen") and not model._forward_hooks
