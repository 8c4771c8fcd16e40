"""The worked step of the spec: mask, loss, gradients and logits to the printed digits."""

import torch
from torch import nn
from torch.nn import functional as F

from latewood.sparsity.structured import StructuredSparsification


def test_one_step_of_the_spec():
    model = nn.Sequential(nn.Linear(2, 3, bias=False), nn.ReLU(), nn.Linear(3, 2, bias=False))
    model.double()
    inputs = torch.tensor([[1, 2], [-1, 0.5]], dtype=torch.float64)
    method = StructuredSparsification(
        model,
        inputs[:1],
        budget={"parameters": 0.5},
        total_steps=10,
        steps_per_epoch=1,
        preset="paper",
    )
    # Unit 1 is absent; what is left of the two layers is the spec's.
    state = method.state_dict()
    state["ready"], state["step"] = 2, 2
    state["anatomy"]["present"] = [torch.tensor([True, False, True])]
    state["logits"] = [torch.tensor([0.5, -1.0, 0.25], dtype=torch.float64)]
    state["clocks"] = [torch.tensor([2, 0, 1])]
    state["weights"] = (-0.15, 0.0)
    method.reshape(state)
    method.load_state_dict(state)
    first = model[0].weight
    last = model[2].parametrizations.weight.original
    with torch.no_grad():
        first.copy_(torch.tensor([[0.4, 0.3], [-0.6, 0.1]], dtype=torch.float64))
        last.copy_(torch.tensor([[0.7, 0.3], [-0.1, 0.6]], dtype=torch.float64))
    logits = method.parameter_groups()[0]["params"][0]

    gate = model[2].parametrizations.weight[0].gates[0]
    expected = torch.tensor([2.511886431510, 1, 1.584893192461], dtype=torch.float64)
    torch.testing.assert_close(gate.temperature, expected, rtol=0, atol=5e-13)
    expected = torch.tensor([0.778326964528, 0.268941421370, 0.597779929656], dtype=torch.float64)
    torch.testing.assert_close(gate.factors().detach(), expected, rtol=0, atol=5e-13)

    entropy = F.cross_entropy(model(inputs), torch.tensor([1, 0]))
    loss = entropy + method.penalty()
    loss.backward()
    assert abs(entropy.item() - 0.902653200637315) < 1e-15
    assert abs(loss.item() - 0.655895953304148) < 1e-15
    expected = [[0.202621435018, 0.405242870035], [-0.047443594839, 0.023721797419]]
    check(first.grad, expected)
    expected = [[0.253276793772, -0.102794455484], [-0.253276793772, 0.102794455484]]
    check(last.grad, expected)
    check(logits.grad, [0.047815248851, -0.029491789986, -0.037501845530])
    optimizer = torch.optim.SGD([logits], lr=0.1, weight_decay=1e-6)
    optimizer.step()
    check(logits.detach(), [0.495218425115, -0.997050721001, 0.253750159553])


def check(found, expected):
    expected = torch.tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(found, expected, rtol=0, atol=5e-13)


def test_the_weight_of_the_penalty_is_the_specs():
    from latewood.sparsity.structured.logit_dynamics import penalty_weight

    assert abs(penalty_weight(0.5, sparsity=0.8, wanted=0.5, normalised=False) + 0.15) < 1e-15
