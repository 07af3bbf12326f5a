"""Our Muon takes PyTorch's steps, to the last bit."""

import pytest
import torch

from mengya.train.muon import Muon

SHAPES = [(192, 192), (512, 192), (192, 512), (192, 192), (192, 512), (64, 192), (512, 192)]


@pytest.mark.parametrize("nesterov", [True, False])
def test_every_step_is_pytorchs(nesterov: bool) -> None:
    generator = torch.Generator().manual_seed(1)
    first = [torch.randn(shape, generator=generator) for shape in SHAPES]
    sides = []
    for kind in (torch.optim.Muon, Muon):
        parameters = [torch.nn.Parameter(matrix.clone()) for matrix in first]
        sides.append((parameters, kind(parameters, lr=0.02, weight_decay=0.1, nesterov=nesterov)))
    for _ in range(5):
        gradients = [torch.randn(shape, generator=generator) for shape in SHAPES]
        for parameters, optimizer in sides:
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient.clone()
            optimizer.step()
    (theirs, their_optimizer), (ours, our_optimizer) = sides
    for number, (a, b) in enumerate(zip(theirs, ours, strict=True)):
        assert torch.equal(a, b), SHAPES[number]
        assert torch.equal(their_optimizer.state[a]["momentum_buffer"], our_optimizer.state[b]["momentum_buffer"])


def test_a_parameter_without_a_gradient_stays() -> None:
    parameters = [torch.nn.Parameter(torch.ones(4, 4)), torch.nn.Parameter(torch.ones(4, 4))]
    optimizer = Muon(parameters, lr=0.1)
    parameters[0].grad = torch.eye(4)
    optimizer.step()
    assert not torch.equal(parameters[0], torch.ones(4, 4))
    assert torch.equal(parameters[1], torch.ones(4, 4))
