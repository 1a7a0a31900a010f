"""Propositions 1 and 2 of arXiv 2602.10314 on worlds small enough to list every state."""

import pytest
import torch

from unmask import Bell, Beta, Clipped, ProgressiveUnmasking
from unmask.policies import POLICIES, needs
from unmask.testing import TabularWorld, chain_difference, chain_states, check_chain

WORLD = TabularWorld.random(length=3, vocab_size=2, error=1.0, seed=1)


@needs("margin", "entropy")
def own(scores, noise):
    """A user's policy: mixes statistics, and breaks near ties by the order of the noise."""
    return (4 * (scores.margin - scores.entropy)).round() + noise


@pytest.mark.parametrize("threshold", [None, 0.6, 0.75])
@pytest.mark.parametrize("policy", [*POLICIES, own], ids=[*POLICIES, "own"])
def test_the_chain_meets_the_states_of_inference_with_the_joint_posterior(policy, threshold):
    check_chain(ProgressiveUnmasking(stages=2, policy=policy, threshold=threshold), WORLD)


@pytest.mark.parametrize(
    "options",
    [
        {"stages": 1},
        {"stages": 5},
        {"stages": 4, "time": Clipped(0.4, 1.0)},
        {"stages": 4, "time": Beta(1, 0.5)},
        {"stages": 3, "time": Clipped(0.3, 0.9), "threshold": 0.7},
        {"stages": 3, "time": Bell(), "threshold": 0.7},
        {"stages": 7, "threshold": 0.7},
        {"stages": 6, "threshold": 0.65, "time": Beta(1, 0.4)},
        {"stages": 6, "threshold": 0.65, "time": Beta(1, 2.5), "pool": 4096},
        {"stages": ((0, 3), (10, 6))},
    ],
    ids=str,
)
def test_so_does_every_form_of_the_chain(options):
    check_chain(ProgressiveUnmasking(**options), WORLD)


def test_so_does_a_longer_row_of_more_tokens():
    world = TabularWorld.random(length=4, vocab_size=2, error=0.5, seed=2)
    assert chain_difference(ProgressiveUnmasking(stages=3, threshold=0.8), world) < 1e-9
    world = TabularWorld.random(length=3, vocab_size=3, error=0.5, seed=3)
    assert chain_difference(ProgressiveUnmasking(stages=2, policy="random"), world) < 1e-9


@pytest.mark.parametrize("threshold", [None, 0.7])
def test_strings_that_cannot_occur_do_no_harm(threshold):
    joint = torch.zeros(2, 2, 2)
    joint[0, 0, 0], joint[0, 1, 1], joint[1, 1, 1] = 0.5, 0.2, 0.3
    check_chain(ProgressiveUnmasking(stages=2, threshold=threshold), TabularWorld(joint))


def peek(tokens, masked):
    """Scores that are surer where the hidden token is a one."""
    log_p = WORLD.log_probabilities(tokens, masked)
    return (log_p * (1 + 2 * (tokens == 1))[..., None]).log_softmax(-1)


def test_scores_that_peek_at_hidden_tokens_are_found_out():
    with pytest.raises(AssertionError, match="look at hidden tokens"):
        check_chain(ProgressiveUnmasking(stages=2), WORLD, peek)


def test_inference_by_a_product_of_marginals_meets_other_states():
    """Two tokens that are always equal: revealed at once, each by itself, they come out different half the time."""
    equal = torch.zeros(2, 2, 2, dtype=torch.float64)
    equal[0, 0], equal[1, 1] = 0.3, 0.2
    world = TabularWorld(equal + 1e-9)
    config = ProgressiveUnmasking(stages=3, threshold=0.55)
    check_chain(config, world)
    assert chain_difference(config, world, joint=False) > 0.05


def test_the_enumerated_law_is_whole_and_loses_only_chains_that_end():
    laws = chain_states(ProgressiveUnmasking(stages=4), WORLD)
    mass = [float(law.probability.sum()) for law in laws]
    assert mass[0] == pytest.approx(1)
    assert mass == sorted(mass, reverse=True)
    assert len(laws) <= 4
    for law in laws:
        assert (~law.revealed).any(1).all()


@pytest.mark.parametrize("policy", ["confidence", "random"])
def test_positions_that_are_given_stay_out_of_the_law(policy):
    """Rows whose first token is given are those of the shorter worlds that it leaves."""
    config = ProgressiveUnmasking(stages=2, policy=policy)

    def given(strings):
        return WORLD.rows(strings, torch.tensor([False, True, True]).expand(strings.shape))

    laws = chain_states(config, WORLD, rows=given)
    share = WORLD.joint.sum((1, 2))
    for first in range(2):
        world = TabularWorld(WORLD.joint[first])

        def predict(tokens, masked, first=first):
            whole = torch.cat([torch.full_like(tokens[:, :1], first), tokens], 1)
            return WORLD.log_probabilities(whole, torch.cat([torch.zeros_like(masked[:, :1]), masked], 1))[:, 1:]

        for law, shorter in zip(laws, chain_states(config, world, predict), strict=True):
            here = law.string // 4 == first
            assert torch.equal(law.string[here] % 4, shorter.string)
            assert torch.equal(law.revealed[here, 1:], shorter.revealed)
            torch.testing.assert_close(law.probability[here], share[first] * shorter.probability)


def learnt(config, predict_of, rounds=240):
    """Train free logits for every visible context on the exact expected loss, the chain driven by the model itself.

    Returns the largest error of a probability at the states that the final chain visits, and their number.
    """
    strings, _ = WORLD.strings()
    place = (WORLD.vocab_size + 1) ** torch.arange(WORLD.length)
    table = torch.zeros(int(place[-1]) * 3, WORLD.length, WORLD.vocab_size, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([table], lr=0.1, betas=(0.8, 0.95))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, rounds)

    def model(tokens, masked):
        code = (tokens.masked_fill(masked, WORLD.mask_token_id) * place).sum(1)
        return table[code].log_softmax(-1)

    def visited():
        with torch.no_grad():
            laws = chain_states(config, WORLD, predict_of(model))
        tokens = torch.cat([strings[law.string] for law in laws])
        return tokens, ~torch.cat([law.revealed for law in laws]), torch.cat([law.probability for law in laws])

    for _ in range(rounds):
        tokens, masked, weight = visited()
        nll = -model(tokens, masked).gather(-1, tokens[..., None])[..., 0]
        loss = (weight * (nll * masked).sum(1) / masked.sum(1)).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    tokens, masked, weight = visited()
    code = (tokens.masked_fill(masked, WORLD.mask_token_id) * place).sum(1)
    often = torch.bincount(code, weight, len(table))[code] > 1e-3
    with torch.no_grad():
        found = model(tokens[often], masked[often]).exp()
    truth = TabularWorld(WORLD.joint).log_probabilities(tokens[often], masked[often]).exp()
    error = (found - truth).abs().amax(-1) * masked[often]
    return float(error.max()), len(code[often].unique())


@pytest.mark.parametrize("options", [{"policy": "confidence"}, {"policy": "entropy", "threshold": 0.8}], ids=str)
def test_a_model_that_drives_its_own_chain_learns_the_true_conditionals(options):
    error, states = learnt(ProgressiveUnmasking(stages=3, **options), lambda model: model)
    assert states >= 8
    assert error < 1e-3


def test_it_learns_other_conditionals_where_the_chain_peeks():
    def peeking(model):
        return lambda tokens, masked: (model(tokens, masked) * (1 + 2 * (tokens == 1))[..., None]).log_softmax(-1)

    error, _ = learnt(ProgressiveUnmasking(stages=3), peeking, rounds=120)
    assert error > 0.05
