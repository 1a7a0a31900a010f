"""The law of what is sampled, by exact enumeration: a grid of uniform numbers stands for all of them."""

import itertools

import pytest
import torch

from unmask import Decoding, generate, noise
from unmask.policies import POLICIES
from unmask.testing import TabularWorld, tabular_model

GRID = 12
AGREE = torch.tensor([[[3.0, 1.0], [1.0, 1.0]], [[1.0, 1.0], [1.0, 3.0]]])
"""Joint of three bits that like to agree: every conditional is a multiple of 1/12."""


@pytest.fixture
def drive(monkeypatch):
    """Let row r see digit i of r, base GRID, as the uniform number of position i; order noise stays as it is.

    A position is revealed once, so the rows together see every combination of the numbers that matter, once.
    """
    genuine = noise.uniforms

    def build(length):
        def driven(seed, row, draw, size, *, purpose, salt):
            if purpose != noise.Purpose.SAMPLE or salt % 2 == 0:  # one order for all rows
                return genuine(seed, row // GRID**length, draw, size, purpose=purpose, salt=salt)
            digit = row[:, None] // GRID ** torch.arange(size) % GRID
            return (digit + 0.5) / GRID

        monkeypatch.setattr(noise, "uniforms", driven)

    return build


def law(world, decoding, orders=1):
    """Sampled law [orders, V, ..., V] of the world's denoiser; each order is noise of another row number."""
    count = GRID**world.length
    batch = world.rows(torch.zeros(orders * count, world.length, dtype=torch.int64))
    tokens = generate(tabular_model(world), batch, decoding).tokens.view(orders, count, world.length)
    code = (tokens * world.vocab_size ** torch.arange(world.length - 1, -1, -1)).sum(-1)
    found = torch.stack([torch.bincount(c, minlength=world.joint.numel()) for c in code])
    return found.view(orders, *world.joint.shape).double() / count


def surest_of_all(scores, noise):
    """A user's policy that does not say what it needs."""
    return scores.margin - scores.entropy


@pytest.mark.parametrize("policy", [*POLICIES, surest_of_all])
@pytest.mark.parametrize("options", [{}, {"steps": 3}, {"steps": 5}, {"block_size": 2}], ids=str)
def test_one_token_a_step_samples_the_joint_exactly(drive, policy, options):
    drive(3)
    world = TabularWorld(AGREE)
    found = law(world, Decoding(policy, temperature=1.0, **options), orders=7)
    torch.testing.assert_close(found, world.joint.expand_as(found), rtol=0, atol=1e-12)


def test_two_tokens_a_step_do_not():
    """Negative control: drawn together, the two bits are independent, though they must be equal."""
    world = TabularWorld(torch.tensor([[0.5, 1e-9], [1e-9, 0.5]]))
    batch = world.rows(torch.zeros(2000, 2, dtype=torch.int64))
    model = tabular_model(world)
    for step, equal in ((1, 1.0), (2, 0.5)):
        tokens = generate(model, batch, Decoding("random", tokens_per_step=step, temperature=1.0)).tokens
        assert float((tokens[:, 0] == tokens[:, 1]).double().mean()) == pytest.approx(equal, abs=4 * 0.5 / 2000**0.5)


def test_two_tokens_a_step_sample_the_product_of_marginals_exactly(drive):
    drive(3)
    world = TabularWorld(AGREE)
    (found,) = law(world, Decoding("left_to_right", tokens_per_step=2, temperature=1.0))
    pair, joint = torch.full((2, 2), 0.25, dtype=torch.float64), world.joint
    expected = pair[..., None] * joint / joint.sum(-1, keepdim=True)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    assert (found - joint).abs().max() > 0.05


def test_given_tokens_condition_the_law(drive):
    """Infilling: the middle is given, both sides follow the joint given it."""
    drive(3)
    world = TabularWorld(AGREE)
    tokens = torch.zeros(GRID**3, 3, dtype=torch.int64)
    tokens[:, 1] = 1
    batch = world.rows(tokens, maskable=torch.tensor([True, False, True]).expand_as(tokens))
    made = generate(tabular_model(world), batch, Decoding("margin", temperature=1.0)).tokens
    assert (made[:, 1] == 1).all()
    for a, c in itertools.product((0, 1), repeat=2):
        share = ((made[:, 0] == a) & (made[:, 2] == c)).double().mean()
        assert float(share) == pytest.approx(float(world.joint[a, 1, c] / world.joint[:, 1].sum()), abs=1e-12)


@pytest.mark.parametrize("rule", ["cap", "rescale"])
def test_tokens_drawn_again_keep_their_law(rule):
    """Where positions are independent every order and every second draw samples the joint."""
    torch.manual_seed(0)
    parts = torch.rand(3, 3) + 0.2
    world = TabularWorld(torch.einsum("i,j,k->ijk", *parts))
    count = 4000
    batch = world.rows(torch.zeros(count, 3, dtype=torch.int64))
    decoding = Decoding("random", steps=8, temperature=1.0, remasking=0.7, remasking_rule=rule)
    made = generate(tabular_model(world), batch, decoding)
    assert made.forwards > 4 * count
    code = (made.tokens * torch.tensor([9, 3, 1])).sum(1)
    expected = count * world.joint.flatten()
    chi = ((torch.bincount(code, minlength=27) - expected) ** 2 / expected).sum()
    assert float(chi) < 26 + 4 * 52**0.5
