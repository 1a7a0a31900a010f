import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from unmask import (
    CART,
    ELBO,
    PPOTS,
    Bell,
    Bernoulli,
    Beta,
    Blockwise,
    Clipped,
    ExactCount,
    IndependentMasking,
    MaskedHead,
    MaskedMean,
    ProgressiveUnmasking,
    RowMean,
    Uniform,
)

OBJECTIVES = [RowMean(), MaskedMean(), ELBO()]
LENGTHS = [1, 5, 2, 7, 3, 4, 6, 2]
each = pytest.mark.parametrize("objective", OBJECTIVES, ids=repr)


@pytest.fixture(scope="module")
def drawn(stream_of):
    """Draw 8 rows of unequal length, with rates so low that some get no mask; rows weigh unequally."""

    def draw(seed, masking=None):
        masking = masking or IndependentMasking(time=Beta(a=1.0, b=2.0))
        batch = masking.start(stream_of(LENGTHS, seed=seed), len(LENGTHS), seed).draw()
        generator = torch.Generator().manual_seed(seed)
        batch.clean.weight.copy_(torch.rand(len(batch), generator=generator) + 0.5)
        return batch, torch.rand(batch.masked.shape, generator=generator, dtype=torch.float64)

    return draw


def loss_by_hand(objective, batch, nll):
    """The formulas of docs/estimators.md, token by token; where there are blocks, each stands for a row."""
    total, normaliser = 0.0, 0.0
    block = torch.zeros_like(batch.clean.tokens) if batch.block is None else batch.block
    rate, density = (x.expand(batch.masked.shape) for x in (batch.rate, batch.density))
    for row, b in ((r, b) for r in range(len(batch)) for b in block[r].unique().tolist()):
        here = block[row] == b
        masked = (batch.masked[row] & here).nonzero()[:, 0].tolist()
        if isinstance(objective, RowMean):
            normaliser += float(batch.clean.weight[row]) if masked else 0
        elif isinstance(objective, MaskedMean):
            normaliser += len(masked) * float(batch.clean.weight[row])
        else:
            normaliser += int((batch.clean.maskable[row] & here).sum())
        for position in masked:
            weight = float(batch.clean.weight[row])
            if isinstance(objective, RowMean):
                weight /= len(masked)
            elif isinstance(objective, ELBO):
                weight /= float(rate[row, position]) * float(density[row, position])
            total += weight * float(nll[row, position])
    return total, normaliser


@each
@example(seed=525, size=None)  # no mask
@given(seed=st.integers(0, 1000), size=st.sampled_from([None, 1, 2, 3]))
@settings(max_examples=25, deadline=None)
def test_the_loss_is_the_formula_of_the_contract(drawn, objective, seed, size):
    masking = IndependentMasking(time=Beta(a=1.0, b=2.0))
    batch, nll = drawn(seed, masking if size is None else Blockwise(masking, size))
    found = (objective.weights(batch) * nll).sum(), objective.normaliser(batch)
    assert tuple(map(float, found)) == pytest.approx(loss_by_hand(objective, batch, nll), rel=1e-5)


@each
@given(seed=st.integers(0, 1000), size=st.sampled_from([None, 2]), data=st.data())
@settings(max_examples=20, deadline=None)
def test_weights_and_normaliser_do_not_depend_on_the_split_into_micro_batches(drawn, objective, seed, size, data):
    batch, _ = drawn(seed, None if size is None else Blockwise(IndependentMasking(time=Beta(a=1.0, b=2.0)), size))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(batch)), max_size=4)))
    parts = [slice(a, b) for a, b in zip([0, *cuts], [*cuts, len(batch)], strict=True)]
    assert torch.equal(torch.cat([objective.weights(batch[part]) for part in parts]), objective.weights(batch))
    whole = objective.normaliser(batch)
    assert float(sum(objective.normaliser(batch[part]) for part in parts)) == float(whole)
    assert whole.dtype == torch.float64


@each
@pytest.mark.parametrize("size", [1, 3, 8])
def test_gradients_accumulated_over_micro_batches_are_those_of_the_whole_batch(drawn, objective, size):
    batch, _ = drawn(3)
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(*batch.masked.shape, 4, generator=generator, dtype=torch.float64)

    def gradient(size):
        torch.manual_seed(1)
        head = MaskedHead(torch.nn.Linear(4, 1000, dtype=torch.float64))
        scale = objective.weights(batch) / objective.normaliser(batch)
        for start in range(0, len(batch), size):
            part = slice(start, start + size)
            masked = batch.masked[part]
            loss, _, _ = head(
                hidden[part][masked], batch.clean.tokens[part][masked], scale[part][masked], mask_token_id=999
            )
            loss.backward()
        return head.output.weight.grad

    assert gradient(size).abs().max() > 0
    assert torch.allclose(gradient(size), gradient(len(batch)), rtol=1e-6, atol=1e-12)


@each
def test_a_row_without_a_mask_adds_no_weight_and_counts_as_the_contract_says(drawn, objective):
    seed = next(seed for seed in range(100) if not drawn(seed)[0].masked.any(1).all())
    batch, _ = drawn(seed)
    empty = ~batch.masked.any(1)
    weights = objective.weights(batch)
    assert weights.isfinite().all()
    assert weights[empty].abs().sum() == 0
    without = objective.normaliser(batch[~empty])
    extra = float(objective.normaliser(batch) - without)
    assert extra == (float(batch.clean.effective_length[empty].sum()) if isinstance(objective, ELBO) else 0)
    assert torch.equal(weights[~empty], objective.weights(batch[~empty]))


@each
def test_weights_vanish_where_nothing_is_masked_and_grow_with_the_row_weight(drawn, objective):
    batch, _ = drawn(0)
    weights = objective.weights(batch)
    assert torch.equal(weights > 0, batch.masked)
    batch.clean.weight.mul_(2)
    assert torch.allclose(objective.weights(batch), 2 * weights)


@each
def test_a_batch_without_any_mask_has_finite_weights(masked_batch, objective):
    rate = torch.full((2, 1), 0.1, dtype=torch.float64)
    batch = masked_batch([[1, 2], [3, 4]], [[False, False], [False, False]], rate, torch.ones_like(rate))
    assert objective.weights(batch).abs().sum() == 0


def test_row_mean_gives_each_row_one_vote_and_masked_mean_each_token(masked_batch):
    batch = masked_batch([[1, 2, 3], [4, 5, 6]], [[True, True, True], [False, True, False]])
    assert RowMean().weights(batch).sum(1).tolist() == pytest.approx([1, 1])
    assert MaskedMean().weights(batch).sum(1).tolist() == [3, 1]


@pytest.mark.parametrize("coupling", ["independent", "stratified"])
@pytest.mark.parametrize("pair", [None, "mirror"])
def test_row_mean_with_exact_count_and_uniform_time_is_the_elbo_per_token(drawn, coupling, pair):
    masking = IndependentMasking(mask=ExactCount(), coupling=coupling, pair=pair)
    batch, nll = drawn(0, masking)
    row_mean = (RowMean().weights(batch) * nll).sum(1)
    elbo = (ELBO().weights(batch) * nll).sum(1) / batch.clean.effective_length
    assert torch.allclose(row_mean, elbo, rtol=1e-6)


@pytest.mark.parametrize("rule", [Bernoulli(), ExactCount()], ids=repr)
@pytest.mark.parametrize("time", [Uniform(), Bell(), Beta(a=2.0, b=1.5)], ids=repr)
@pytest.mark.parametrize(
    "options", [{}, {"coupling": "antithetic"}, {"pair": "mirror", "mirror_below": 0.7}], ids=str
)
def test_the_elbo_of_drawn_batches_is_right_on_average(stream_of, rule, time, options):
    """A loss of n² / L for n masked tokens has Σ h_n / n = (L + 1) / 2."""
    length, total, rows = 5, 0.0, 0
    masking = IndependentMasking(time=time, mask=rule, **options)
    process = masking.start(stream_of([length] * 50), 2000)
    values = []
    for _ in range(5):
        batch = process.draw()
        nll = batch.masked.sum(1, keepdim=True) / length * batch.masked
        values.append((ELBO().weights(batch) * nll).sum(1).double())
        total, rows = total + float(ELBO().normaliser(batch)), rows + len(batch)
    values = torch.cat(values)
    assert total == length * rows
    # Pairs are not independent: the error is that of half as many draws at worst.
    error = float(values.std()) * (2 / len(values)) ** 0.5
    assert abs(float(values.mean()) - (length + 1) / 2) < 4 * error


def test_the_elbo_refuses_what_it_cannot_be_unbiased_for(stream_of):
    puma = ProgressiveUnmasking(stages=4)
    with pytest.raises(ValueError, match="density"):
        ELBO().check(puma)
    with pytest.raises(ValueError, match="density"):
        ELBO().weights(puma.start(stream_of([4, 5]), 2).draw())
    with pytest.raises(ValueError, match=r"0\.3, 0\.8"):
        ELBO().check(IndependentMasking(time=Clipped()))
    ELBO().check(IndependentMasking(time=Clipped(low=0.0, high=1.0)))
    ELBO().check(IndependentMasking(time=Bell(), mask=ExactCount(), coupling="stratified", pair="mirror"))
    for objective in (RowMean(), MaskedMean()):
        objective.check(puma)
        objective.check(IndependentMasking(time=Clipped()))


@pytest.mark.parametrize("objective", [RowMean(), MaskedMean()], ids=repr)
@pytest.mark.parametrize("blocks", [None, 3])
def test_a_mean_of_equal_losses_is_that_loss_whatever_the_rows_weigh(drawn, objective, blocks):
    """Z holds the importance that the weights hold."""
    inner = IndependentMasking(time=Beta(a=1.0, b=2.0))
    batch, _ = drawn(3, inner if blocks is None else Blockwise(inner, blocks))
    assert batch.clean.weight.std() > 0.1
    assert float(objective.weights(batch).double().sum() / objective.normaliser(batch)) == pytest.approx(1)


@pytest.mark.parametrize("objective", [RowMean(), MaskedMean(), CART()], ids=repr)
@pytest.mark.parametrize(
    "time", [PPOTS(), PPOTS(online=True), PPOTS().start()], ids=["measured", "online", "running"]
)
def test_fitted_rates_are_refused_where_their_weight_is_left_out(objective, time):
    masking = IndependentMasking(time)
    with pytest.raises(ValueError, match=r"leaves out the weight 1 / density .* Use objective ELBO"):
        objective.check(masking)
    ELBO().check(masking)
