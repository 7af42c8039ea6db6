"""The model computes what its equations say: values and gradients against a token-by-token reference."""

import random

import pytest
import torch

from tests.model.reference import Reference
from tests.model.shapes import inputs, random_settings, small_model


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("flavour", ["paper", "megatron", "copy-ready"])
def test_values_and_gradients_are_the_reference_s(flavour, seed):
    rng = random.Random(f"{flavour}{seed}")
    settings = random_settings(rng, flavour)
    chunk, k, r = rng.randint(1, 4), rng.randint(1, 3), rng.randint(1, 6)
    tokens = rng.randint(1, 11)
    built = r + rng.randint(0, 2)
    model = small_model(settings, chunk=chunk, retrieved=built, seed=seed).double()
    x, neighbours, mask, y = inputs(rng, batch=1, tokens=tokens, chunk=chunk, k=k, r=r)
    y[0, -1] = 3
    if seed % 3 == 0:
        mask = None
    losses = model(x, neighbours, mask, y)
    losses.sum().backward()

    weights = {name: p.detach().clone().requires_grad_() for name, p in model.named_parameters()}
    logits = Reference(weights, settings, chunk, built).logits(
        x[0].tolist(), neighbours[0].tolist(), None if mask is None else mask[0].tolist()
    )
    kept = y[0] >= 0
    wanted = -logits.log_softmax(-1)[kept].gather(1, y[0][kept][:, None]).squeeze(1)
    wanted.sum().backward()

    torch.testing.assert_close(model(x, neighbours, mask)[0], logits, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(losses[0][kept].double(), wanted, atol=1e-5, rtol=1e-5)
    assert (losses[0][~kept] == 0).all()
    largest = max(1.0, *(w.grad.abs().max().item() for w in weights.values() if w.grad is not None))
    for name, parameter in model.named_parameters():  # the loss and rope's angles are fp32
        expected = weights[name].grad
        expected = torch.zeros_like(weights[name]) if expected is None else expected
        got = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        torch.testing.assert_close(got, expected, atol=2e-6 * largest, rtol=2e-5, msg=lambda m, n=name: f"{n}: {m}")


def test_retrieval_reaches_the_logits_of_the_reference():
    rng = random.Random(0)
    settings = random_settings(rng, "copy-ready")
    model = small_model(settings)
    x, neighbours, mask, _ = inputs(rng, missing=False)
    assert (model(x, neighbours, mask) - model(x)).abs().max() > 1e-2


def test_the_head_s_own_loss_is_in_the_gradient_and_not_in_the_value():
    rng = random.Random(3)
    settings = random_settings(rng, "copy-ready").model_copy(update={"copy_output": True})
    model = small_model(settings).double()
    x, neighbours, mask, y = inputs(rng, batch=2)
    gradients = []
    for share in (0.0, 1.0, 3.0):
        losses = model(x, neighbours, mask, y, share)
        assert torch.equal(losses, model(x, neighbours, mask, y))
        gradients.append(torch.autograd.grad(losses.sum(), list(model.parameters()), allow_unused=True))
    length = [name for name, _ in model.named_parameters()].index("copier.length")
    assert all(torch.equal(gradients[0][length], other[length]) for other in gradients[1:])
    none, once, thrice = (torch.cat([g.flatten() for g in each if g is not None]) for each in gradients)
    torch.testing.assert_close(thrice - none, 3 * (once - none), atol=1e-5, rtol=1e-4)
    assert not torch.allclose(none, once)
