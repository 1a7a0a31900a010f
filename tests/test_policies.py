import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unmask import Scores
from unmask.policies import POLICIES, STATISTICS, needs, needs_of, resolve, top

every_policy = pytest.mark.parametrize("name", POLICIES)


def logits(seed, rows=3, length=7, vocabulary=5):
    return 3 * torch.randn(rows, length, vocabulary, generator=torch.Generator().manual_seed(seed)).double()


def scores_of(x):
    return Scores.from_logits(x, needs=STATISTICS)


def uniforms(seed, shape=(3, 7)):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


DEFINITIONS = {
    "confidence": lambda p, noise: p.max(-1).values,
    "margin": lambda p, noise: p.sort(-1).values[..., -1] - p.sort(-1).values[..., -2],
    "entropy": lambda p, noise: (p * p.log()).sum(-1),
    "random": lambda p, noise: noise,
    "left_to_right": lambda p, noise: -torch.arange(7.0).expand(3, 7),
    "right_to_left": lambda p, noise: torch.arange(7.0).expand(3, 7),
}


@every_policy
@given(seed=st.integers(0, 10_000))
@settings(max_examples=20, deadline=None)
def test_each_policy_orders_positions_as_its_definition_does(name, seed):
    x, noise = logits(seed), uniforms(seed)
    priority = resolve(name)(scores_of(x), noise)
    expected = DEFINITIONS[name](x.softmax(-1), noise)
    assert torch.equal(priority.argsort(1), expected.argsort(1))


@pytest.mark.parametrize("name", ["confidence", "margin", "entropy"])
def test_a_certain_position_comes_before_a_doubtful_one(name):
    x = torch.zeros(1, 3, 5).double()
    x[0, 1, 2] = 9.0  # all but certain; the others are uniform
    priority = resolve(name)(scores_of(x), uniforms(0, (1, 3)))
    assert priority.argmax(1).item() == 1


@every_policy
@given(seed=st.integers(0, 10_000))
@settings(max_examples=10, deadline=None)
def test_no_policy_looks_at_hidden_tokens(name, seed):
    scores, noise = scores_of(logits(seed)), uniforms(seed)
    peeking = Scores(scores.log_confidence, scores.margin, scores.entropy, nll=uniforms(seed + 1))
    assert torch.equal(resolve(name)(scores, noise), resolve(name)(peeking, noise))


@every_policy
def test_a_policy_reads_only_the_statistics_it_declares(name):
    policy, x, noise = resolve(name), logits(0), uniforms(0)
    full = scores_of(x)
    declared = Scores.from_logits(x, needs=needs_of(policy))
    assert torch.equal(policy(full, noise), policy(declared, noise))
    for statistic in set(STATISTICS) - set(needs_of(policy)):
        spoilt = {s: getattr(full, s) for s in STATISTICS} | {statistic: torch.full_like(noise, torch.nan)}
        assert torch.equal(policy(full, noise), policy(Scores(**spoilt), noise))


@given(
    priority=st.lists(st.sampled_from([-1.0, 0.0, 0.5, 2.0]), min_size=1, max_size=9),
    count=st.integers(0, 10),
    data=st.data(),
)
@settings(max_examples=80, deadline=None)
def test_top_takes_the_highest_priorities_and_of_equal_ones_the_lower_positions(priority, count, data):
    masked = data.draw(st.lists(st.booleans(), min_size=len(priority), max_size=len(priority)))
    found = top(torch.tensor([priority]), torch.tensor([masked]), torch.tensor([count]))
    order = sorted((-value, i) for i, value in enumerate(priority) if masked[i])
    assert found[0].nonzero()[:, 0].tolist() == sorted(i for _, i in order[:count])


@given(seed=st.integers(0, 10_000))
@settings(max_examples=20, deadline=None)
def test_what_is_chosen_does_not_depend_on_other_rows_or_on_the_visible_positions(seed):
    priority = uniforms(seed, (4, 6))
    masked = uniforms(seed + 1, (4, 6)) < 0.5
    count = torch.tensor([0, 1, 2, 6])
    found = top(priority, masked, count)
    spoilt = torch.where(masked, priority, torch.nan)
    assert torch.equal(found, top(spoilt, masked, count))
    for row in range(4):
        one = slice(row, row + 1)
        assert torch.equal(found[one], top(priority[one], masked[one], count[one]))


def test_a_priority_of_minus_infinity_comes_last_but_comes():
    masked = torch.tensor([[False, True, True]])
    priority = torch.tensor([[0.0, -torch.inf, 1.0]])
    assert top(priority, masked, torch.tensor([1])).tolist() == [[False, False, True]]
    assert top(priority, masked, torch.tensor([2])).tolist() == [[False, True, True]]


def test_nan_and_misshapen_priorities_are_refused():
    masked, one = torch.ones(1, 3, dtype=torch.bool), torch.tensor([1])
    with pytest.raises(ValueError, match="NaN"):
        top(torch.tensor([[0.0, torch.nan, 1.0]]), masked, one)
    with pytest.raises(ValueError, match="shape"):
        top(torch.zeros(1, 4), masked, one)


def test_policies_are_found_by_name_and_functions_are_taken_as_they_are():
    def mine(scores, noise):
        return noise

    assert resolve(mine) is mine
    assert needs_of(mine) == STATISTICS
    assert all(resolve(name) is policy for name, policy in POLICIES.items())
    with pytest.raises(ValueError, match="did you mean 'confidence'"):
        resolve("confidense")
    with pytest.raises(ValueError, match="nll"):
        needs("nll")
