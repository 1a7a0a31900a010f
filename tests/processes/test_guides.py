"""The column `guide`: stored orders drive chains as their policy would, and entropies are the model's."""

from dataclasses import replace

import pytest
import torch
from datasets import Dataset

from unmask import (
    ELBO,
    GIFT,
    Blockwise,
    Decoding,
    IndependentMasking,
    ProgressiveUnmasking,
    RowStream,
    add_entropies,
    add_order,
)
from unmask.policies import left_to_right, needs, resolve, stored
from unmask.testing import TabularWorld, chain_states, tabular_model

WORLD = TabularWorld.random(length=3, vocab_size=2, seed=4)
STRINGS, PROBABILITY = WORLD.strings()
MODEL = tabular_model(WORLD)


def rows(tokens=STRINGS, maskable=None):
    maskable = torch.ones_like(tokens, dtype=torch.bool) if maskable is None else maskable
    return Dataset.from_dict({"tokens": tokens.tolist(), "maskable": maskable.tolist()})


def chain_of(masking, data, model=MODEL, steps=24):
    """Masks of a running chain, fed with the model's scores."""
    process = masking.start(RowStream(data), len(data))
    found = []
    for _ in range(steps):
        batch = process.draw()
        found.append((batch.clean.row.clone(), batch.masked.clone()))
        process.observe(model(batch, needs=process.needs).scores)
    return found


def test_the_chain_keeps_to_the_stored_order_from_its_start_on():
    options = {"stages": 3, "pool": "batch"}
    along = chain_of(ProgressiveUnmasking(policy="stored", **options), add_order(MODEL, rows(), left_to_right))
    lengths = set()
    for _, masked in along:
        assert torch.equal(masked, masked.sort(1).values)  # what is hidden is the end of the row
        lengths |= set(masked.sum(1).tolist())
    assert lengths == {1, 2, 3}
    plain = chain_of(ProgressiveUnmasking(policy="left_to_right", **options), rows())
    assert any(not torch.equal(masked, masked.sort(1).values) for _, masked in plain)  # a random start


def test_a_teachers_order_is_the_order_in_which_it_would_reveal():
    """One position at a time, the most confident first, by the world's own conditionals."""
    guide = torch.tensor(add_order(MODEL, rows())["guide"])
    for tokens, order in zip(STRINGS, guide, strict=True):
        masked = torch.ones(1, 3, dtype=torch.bool)
        for step in range(3):
            p = WORLD.log_probabilities(tokens[None], masked).exp().amax(-1)
            best = int(p.masked_fill(~masked, -1).argmax())
            assert order[best] == step
            masked[0, best] = False


def test_what_is_given_is_no_part_of_the_order():
    maskable = torch.tensor([[True, False, True]]).expand(8, -1)
    guide = torch.tensor(add_order(MODEL, rows(maskable=maskable))["guide"])
    assert (guide[:, [0, 2]].sort(1).values == torch.tensor([0.0, 1.0])).all()


@pytest.mark.parametrize(("bound", "steps"), [(0.0, 3), (100.0, 1)])
def test_an_entropy_bound_reveals_as_many_as_it_allows(bound, steps):
    guide = torch.tensor(add_order(MODEL, rows(), "entropy", entropy_bound=bound)["guide"])
    assert guide.amax() == steps - 1
    plain = torch.tensor(add_order(MODEL, rows(), "entropy")["guide"])
    if bound == 0:
        assert torch.equal(guide, plain)


@pytest.mark.parametrize("policy", ["entropy", "left_to_right"])
@pytest.mark.parametrize("bound", [0.2, 0.5, 0.69, 1.2])
def test_an_entropy_bound_is_on_all_entropies_of_a_step_but_the_largest(bound, policy):
    """By hand, over every string: as many of the policy's first as the rule allows, and one at least."""
    guide = torch.tensor(add_order(MODEL, rows(), policy, entropy_bound=bound)["guide"])
    for tokens, order in zip(STRINGS, guide.tolist(), strict=True):
        hidden, step, due = [0, 1, 2], 0, [0.0] * 3
        while hidden:
            masked = torch.tensor([[i in hidden for i in range(3)]])
            p = WORLD.log_probabilities(tokens[None], masked)[0].exp()
            entropy = torch.special.entr(p).sum(-1).tolist()
            ranked = sorted(hidden, key=entropy.__getitem__) if policy == "entropy" else hidden
            count = 1
            while count < len(ranked):
                more = [entropy[i] for i in ranked[: count + 1]]
                if sum(more) - max(more) > bound:
                    break
                count += 1
            for i in ranked[:count]:
                due[i] = step
            hidden, step = sorted(ranked[count:]), step + 1
        assert order == due


def moved(order):
    """By how much a chain along `order` [strings, L] moves what is learnt, in total variation: by enumeration."""

    def rows_of(strings):
        number = (strings * torch.tensor([4, 2, 1])).sum(1)
        return replace(WORLD.rows(strings), guide=order[number].double())

    masking = ProgressiveUnmasking(stages=3, policy="stored")
    laws = [law for entry in range(3) for law in chain_states(masking, WORLD, entry=entry, rows=rows_of)]
    found = {}
    for law in laws:
        for string, seen, p in zip(law.string.tolist(), law.revealed.tolist(), law.probability.tolist(), strict=True):
            tokens = STRINGS[string].tolist()
            context = tuple(t if r else WORLD.mask_token_id for t, r in zip(tokens, seen, strict=True))
            for i in (i for i in range(3) if not seen[i]):
                found.setdefault((context, i), torch.zeros(2, dtype=torch.float64))[tokens[i]] += p
    distances = []
    for (context, i), count in found.items():
        hidden = torch.tensor([context]) == WORLD.mask_token_id
        truth = WORLD.log_probabilities(torch.tensor([context]).masked_fill(hidden, 0), hidden)[0, i].exp()
        distances.append(float((count / count.sum() - truth).abs().sum()) / 2)
    return max(distances)


def test_a_teachers_order_leaves_the_minimiser_and_one_that_peeks_does_not():
    assert moved(torch.tensor(add_order(MODEL, rows())["guide"])) < 1e-9
    assert moved(torch.tensor(add_order(MODEL, rows(), "margin", entropy_bound=0.9)["guide"])) < 1e-9
    assert moved(STRINGS) > 0.1  # zeros first: the order tells of what is hidden


def test_where_a_chain_could_leave_its_order_it_is_refused():
    with pytest.raises(ValueError, match="fast-forward"):
        ProgressiveUnmasking(policy="stored", threshold=0.9)
    with pytest.raises(ValueError, match="whole rows"):
        Blockwise(ProgressiveUnmasking(policy="stored"), 2)


def test_without_a_column_the_policy_says_what_is_missing():
    with pytest.raises(ValueError, match=r"unmask\.add_order"):
        chain_of(ProgressiveUnmasking(policy="stored", pool="batch"), rows(), steps=1)
    with pytest.raises(ValueError, match="reads a data set's rows, and decoding has none"):
        Decoding(policy="stored")
    assert resolve("stored") is stored


@needs("margin")
def smallest_margin(scores, noise):
    return -scores.margin


def test_an_order_may_come_from_any_policy():
    guide = torch.tensor(add_order(MODEL, rows(), smallest_margin)["guide"])
    assert (guide.sort(1).values == torch.arange(3.0)).all()
    with pytest.raises(ValueError, match="at least 0"):
        add_order(MODEL, rows(), entropy_bound=-1.0)


def test_entropies_are_those_of_the_wholly_masked_row():
    maskable = torch.tensor([[True, False, True]]).expand(8, -1)
    data = add_entropies(MODEL, rows(maskable=maskable), batch_size=3)
    guide = torch.tensor(data["guide"], dtype=torch.float64)
    p = WORLD.log_probabilities(STRINGS, maskable).exp()
    expected = -(p * p.log()).sum(-1) * maskable
    assert torch.allclose(guide, expected, atol=1e-6)
    batch = IndependentMasking(mask=GIFT()).start(RowStream(data), 4).draw()
    assert ELBO().weights(batch).isfinite().all()
    again = add_entropies(MODEL, data)  # in place of the column that is there
    assert again["guide"] == data["guide"]
