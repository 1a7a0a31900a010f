"""The head inside what wraps modules: torch.compile, DDP and FSDP2 change neither loss, scores nor gradients."""

import pytest
import torch
from torch import nn
from torch.distributed import init_process_group
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from unmask import MaskedHead
from unmask.models.head import masked_cross_entropy

D, V, MASK = 8, 12, 11
NEEDS = ("log_confidence", "margin")


class Model(nn.Module):
    """A tied head on an embedding and a layer, called as one module, so that a wrapper gathers its weights."""

    def __init__(self):
        super().__init__()
        self.embedding, self.layer = nn.Embedding(V, D), nn.Linear(D, D)
        output = nn.Linear(D, V, bias=False)
        output.weight = self.embedding.weight
        self.head = MaskedHead(output)

    def forward(self, tokens, targets, weights):
        return self.head(self.layer(self.embedding(tokens)), targets, weights, MASK, NEEDS)


def build():
    torch.manual_seed(0)
    return Model().double()


def compare_with_one(share):
    """By one of two ranks: what is gathered from its share of the rows is compared with one process's whole."""
    init_process_group("gloo")
    mesh = init_device_mesh("cpu", (2,))
    tokens, targets = torch.randint(MASK, (2, 10), generator=torch.Generator().manual_seed(0))
    weights = torch.rand(10, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    alone = build()
    loss, nll, found = alone(tokens, targets, weights)
    loss.backward()
    expected = {name: p.grad for name, p in alone.named_parameters()}

    def compare(wrapped):
        for _ in range(2):  # the second step finds buffers of the first
            wrapped.zero_grad()
            mine, my_nll, my_found = wrapped(tokens[share], targets[share], 2 * weights[share])  # averaged
            mine.backward()
            torch.testing.assert_close(my_nll, nll[share])
            for name in NEEDS:
                torch.testing.assert_close(my_found[name], found[name][share])
            for name, parameter in wrapped.named_parameters():
                got = parameter.grad
                got = got.full_tensor() if isinstance(got, DTensor) else got
                torch.testing.assert_close(got, expected[name.removeprefix("module.")])

    compare(DistributedDataParallel(build()))
    sharded = build()
    fully_shard(sharded.layer, mesh=mesh)
    fully_shard(sharded, mesh=mesh)
    compare(sharded)


def leaves(count, dtype=torch.float64):
    generator = torch.Generator().manual_seed(count)
    hidden = torch.randn(count, D, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    weight = torch.randn(V, D, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    return hidden, weight, torch.randint(MASK, (count,), generator=generator), torch.rand(count).to(dtype)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("autocast", [False, True])
def test_a_compiled_caller_gets_the_same(autocast):
    """Several row counts, so that shapes turn dynamic; gradients pass on to what comes before the head."""
    torch.manual_seed(0)
    layer = nn.Linear(D, D).to(torch.float32 if autocast else torch.float64)

    def step(hidden, weight, targets, token_weights):
        return masked_cross_entropy(layer(hidden), weight, None, targets, token_weights, MASK, NEEDS)

    compiled = torch.compile(step, backend="aot_eager")
    for count in (5, 9, 1, 0):
        hidden, weight, targets, token_weights = leaves(count, torch.float32 if autocast else torch.float64)
        results = []
        for function in (step, compiled):
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                loss, nll, found = function(hidden, weight, targets, token_weights)
            assert not nll.requires_grad
            results.append((loss, nll, found, torch.autograd.grad(loss, (hidden, weight, layer.weight))))
        torch.testing.assert_close(results[0], results[1])


def test_a_compiled_caller_is_told_about_a_second_backward():
    hidden, weight, targets, token_weights = leaves(4)
    compiled = torch.compile(
        lambda x: masked_cross_entropy(2 * x, weight, None, targets, token_weights, MASK), backend="aot_eager"
    )
    loss, _, _ = compiled(hidden)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="run the forward again"):
        loss.backward()


@pytest.mark.parametrize(
    "shares", [(slice(5), slice(5, 10)), (slice(0), slice(10))], ids=["even", "one rank without a mask"]
)
def test_two_processes_get_the_gradients_of_one_under_ddp_and_fsdp2(forked_ranks, shares):
    """Half of the rows each, or all on one of them; the weight is tied to the embedding."""
    assert forked_ranks(lambda rank: compare_with_one(shares[rank])) == [0, 0]
