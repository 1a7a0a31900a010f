"""The order of chains and of decoding, and how far they agree."""

import math
from dataclasses import replace

import matplotlib.image
import pytest
import torch
from datasets import Dataset
from scipy.stats import kendalltau
from transformers import GPT2Config

from unmask import (
    Clipped,
    Decoding,
    IndependentMasking,
    MaskedDiffusionLM,
    ProgressiveUnmasking,
    Trainer,
    TrainingConfig,
    generate,
)
from unmask.evaluation.order import agreement, chain_order, order_over_training
from unmask.report.figures import plot_order
from unmask.testing import TabularWorld, tabular_model
from unmask.testing.device import Float32Device

WORLD = TabularWorld.random(length=5, vocab_size=2, error=1.0, seed=4)


def test_the_same_order_agrees_wholly_and_the_reverse_not_at_all():
    order = torch.stack([torch.randperm(9, generator=torch.Generator().manual_seed(r)) for r in range(5)])
    for other, tau in ((order, 1.0), (3 * order + 2, 1.0), (8 - order, -1.0)):
        found = agreement(order, other)
        assert found.tau == pytest.approx(tau)
        assert (found.low, found.high) == pytest.approx((tau, tau), abs=1e-9)
        assert found.rows == 5


def test_orders_without_anything_in_common_agree_by_chance_alone():
    generator = torch.Generator().manual_seed(0)
    found = [agreement(*torch.rand(2, 100, 12, generator=generator).argsort(2)) for _ in range(20)]
    assert sum(each.low < 0 < each.high for each in found) >= 17
    # The variance of tau without ties is 2 (2n + 5) / (9 n (n - 1)); t of eleven degrees of freedom is 2.2.
    width = sum(each.high - each.low for each in found) / 20
    assert width == pytest.approx(2 * 2.2 * (2 * 29 / (9 * 12 * 11) / 100) ** 0.5, rel=0.15)


def test_tau_counts_ties_and_only_what_both_orders_chose():
    first = torch.tensor([[-1, 0, 0, 1, 2, -1], [0, 0, 0, 0, 0, 0], [-1, -1, 3, -1, -1, -1]])
    second = torch.tensor([[5, 1, 0, 2, 2, 7], [0, 1, 2, 3, 4, 5], [1, 2, 3, 4, 5, 0]])
    found = agreement(first, second)
    assert found.rows == 1  # rows without an order say nothing
    assert found.tau == pytest.approx(kendalltau([0, 0, 1, 2], [1, 0, 2, 2]).statistic)
    assert math.isnan(found.low)
    with pytest.raises(ValueError, match="no row has two positions"):
        agreement(first[1:], second[1:])


@pytest.mark.parametrize("policy", ["confidence", "margin", "entropy", "right_to_left"])
def test_along_the_models_own_answer_the_chain_goes_as_the_model_decodes(policy):
    """Without a random start and with one token a step, teacher forcing on its own output changes nothing."""
    model = tabular_model(WORLD)
    rows = WORLD.rows(WORLD.strings()[0])
    decoded = generate(model, rows, Decoding(policy=policy))
    own = WORLD.rows(decoded.tokens)
    order = chain_order(model, own, ProgressiveUnmasking(stages=1000, policy=policy))
    assert torch.equal(order, decoded.step)


def test_on_other_rows_the_chain_goes_its_own_way():
    """The control: the order depends on what is revealed."""
    model, rows = tabular_model(WORLD), WORLD.rows(WORLD.strings()[0])
    masking = ProgressiveUnmasking(stages=1000)
    decoded = generate(model, rows, Decoding())
    found = agreement(chain_order(model, rows, masking), decoded.step)
    assert found.high < 1


@pytest.mark.parametrize("masking", [ProgressiveUnmasking(stages=2), ProgressiveUnmasking(stages=3, threshold=0.6)])
def test_every_position_has_its_step_and_the_random_start_none(masking):
    model, strings = tabular_model(WORLD), WORLD.strings()[0]
    maskable = torch.ones_like(strings, dtype=torch.bool)
    maskable[:, 2] = False
    order = chain_order(model, WORLD.rows(strings, maskable), masking)
    assert (order[:, 2] == -1).all()
    for row in order:
        steps = sorted(set(row.tolist()) - {-1})
        assert steps == list(range(len(steps)))
        assert 1 <= len(steps) <= masking.stages + 1  # the last are what is left at the end
    assert (order[:, [0, 1, 3, 4]] == -1).any()  # some rows enter with a token revealed


def test_what_a_chain_leaves_masked_comes_last():
    model, rows = tabular_model(WORLD), WORLD.rows(WORLD.strings()[0])
    whole = chain_order(model, rows, ProgressiveUnmasking(stages=1000))
    half = chain_order(model, rows, ProgressiveUnmasking(stages=1000, time=Clipped(0.5, 1.0)))
    assert torch.equal(half, whole.clamp(max=3))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Train a tiny model on rows of two tokens; returns its folder."""

    def train(masking):
        folder = tmp_path_factory.mktemp("run") / "run"
        torch.manual_seed(0)
        config = GPT2Config(
            vocab_size=6, n_positions=8, n_embd=16, n_layer=1, n_head=2, bos_token_id=None, eos_token_id=None
        )
        training = TrainingConfig(
            steps=6, batch_size=4, checkpoint_every=2, keep_checkpoints=5, threads=1, tracker="none", precision="fp32"
        )
        model = MaskedDiffusionLM.from_config(config, 5)
        Trainer(model, masking, ROWS, config=training, out=folder).train()
        return folder

    return train


ROWS = Dataset.from_dict(
    {"tokens": [[(r * (p + 1)) % 5 for p in range(8)] for r in range(12)], "maskable": [[False] + [True] * 7] * 12}
)


def test_every_checkpoint_of_a_run_is_compared_with_the_final_models_decoding(run, tmp_path):
    folder = run(ProgressiveUnmasking(stages=((0, 4), (3, 7)), policy="margin"))
    records = order_over_training(folder, ROWS, rows=9)
    assert [record["step"] for record in records] == [2, 4, 6]
    for record in records:
        assert set(record) == {"step", "tau", "low", "high", "rows"}
        assert -1 <= record["low"] <= record["tau"] <= record["high"] <= 1 + 1e-9
        assert 1 < record["rows"] <= 9
    assert records == order_over_training(folder, ROWS, rows=9)
    plot_order({"puma": records}, tmp_path / "order.png", title="a title")
    plot_order({"puma": records[:2]}, tmp_path / "other.png")
    one, other = (matplotlib.image.imread(tmp_path / f"{name}.png") for name in ("order", "other"))
    assert one.shape[:2] > (300, 300)
    assert one.shape != other.shape or (one != other).any()


def test_a_run_without_a_chain_or_data_or_anything_says_so(run, tmp_path):
    folder = run(IndependentMasking())
    with pytest.raises(ValueError, match="has no chain"):
        order_over_training(folder, ROWS)
    assert len(order_over_training(folder, ROWS, masking=ProgressiveUnmasking(stages=4))) == 3
    with pytest.raises(ValueError, match="give the rows by `dataset`"):
        order_over_training(folder, masking=ProgressiveUnmasking())
    with pytest.raises(ValueError, match=r"no config\.json"):
        order_over_training(tmp_path)


@pytest.mark.parametrize("policy", ["confidence", "random", "entropy"])
def test_chains_are_followed_under_a_model_on_a_device(policy):
    """Apple's, by name: it has no float64, which chains need."""
    rows, masking = WORLD.rows(WORLD.strings()[0]), ProgressiveUnmasking(stages=3, policy=policy, threshold=0.6)
    order = chain_order(tabular_model(WORLD).float(), rows, masking)
    with Float32Device() as device:
        model = tabular_model(WORLD).float().to(device.device)
        assert torch.equal(chain_order(model, rows, masking), order)
        there = chain_order(model, rows.to(device.device), masking)
        assert there.device == device.device
        assert torch.equal(there.cpu(), order)


def test_neither_the_pool_nor_the_rows_beside_it_change_the_order_of_a_chain():
    model, rows = tabular_model(WORLD), WORLD.rows(WORLD.strings()[0])
    masking = ProgressiveUnmasking(stages=3, threshold=0.6, pool="batch")
    order = chain_order(model, rows, masking)
    assert torch.equal(chain_order(model, rows, replace(masking, pool=640)), order)
    assert torch.equal(chain_order(model, rows[slice(7, 9)], masking), order[7:9])
