"""Likelihoods against exact enumeration, and what must not change them."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import product

import pytest
import torch
from datasets import Dataset
from transformers import GPT2Config, LlamaConfig, LlamaForCausalLM

from unmask import (
    ELBO,
    PPOTS,
    Bell,
    Bernoulli,
    Beta,
    Blockwise,
    Clipped,
    ExactCount,
    IndependentMasking,
    MaskedDiffusionLM,
    ProgressiveUnmasking,
    Uniform,
)
from unmask.data.text import load_text
from unmask.data.tokenizers import bpe_tokenizer, character_tokenizer
from unmask.evaluation.estimate import ratio
from unmask.evaluation.likelihood import LikelihoodConfig, RowNats, characters, likelihood, losses
from unmask.testing import TabularWorld, exact_elbo, tabular_model


@pytest.fixture(scope="module")
def world():
    return TabularWorld.random(length=3, vocab_size=2, error=1.0)


@pytest.fixture(scope="module")
def model(world):
    return tabular_model(world)


def rows_of(tokens, maskable=None) -> Dataset:
    flags = [[True] * len(row) for row in tokens] if maskable is None else maskable
    return Dataset.from_dict({"tokens": tokens, "maskable": flags})


def drawn(world, count, seed=0) -> Dataset:
    """Strings of the world; every third row's first position is given, so that L_eff differs."""
    strings, probability = world.strings()
    generator = torch.Generator().manual_seed(seed)
    tokens = strings[torch.multinomial(probability, count, replacement=True, generator=generator)].tolist()
    return rows_of(tokens, [[i % 3 > 0, *[True] * (world.length - 1)] for i in range(count)])


@pytest.fixture(scope="module")
def small():
    """A real model in float64, and rows of three lengths."""
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=12, n_positions=16, n_embd=16, n_layer=1, n_head=2, bos_token_id=None, eos_token_id=None
    )
    model = MaskedDiffusionLM.from_config(config, 11).double()
    lengths = [5, 9, 16, 7, 16, 3, 11]
    tokens = [[(3 * r + 5 * i) % 11 for i in range(n)] for r, n in enumerate(lengths)]
    return model, rows_of(tokens, [[False] + [True] * (n - 1) for n in lengths])


def config_of(**options) -> LikelihoodConfig:
    return LikelihoodConfig(**options)


MASKINGS = [
    IndependentMasking(),
    IndependentMasking(mask=ExactCount(), coupling="stratified"),
    IndependentMasking(Bell(), Bernoulli(), "stratified"),
    IndependentMasking(mask=ExactCount(), coupling="antithetic"),
    IndependentMasking(mask=ExactCount(), coupling="stratified", pair="mirror"),
]


@pytest.mark.parametrize("masking", MASKINGS, ids=repr)
def test_estimate_agrees_with_the_exact_elbo_row_by_row(world, model, masking):
    """Many samples of each row: the mean lies within five standard errors of the enumerated value."""
    tokens = [[0, 1, 1], [1, 0, 0], [1, 1, 1]]
    exact = exact_elbo(world.rows(torch.tensor(tokens)), world.nll)
    count = 64
    runs = torch.stack(
        [likelihood(model, rows_of(tokens), config_of(masking=masking, samples=8, seed=s)).nats for s in range(count)]
    )
    error = runs.std(0) / count**0.5
    assert ((runs.mean(0) - exact).abs() < 5 * error + 1e-9).all()


@pytest.mark.parametrize(
    ("repeats", "least", "most"), [(60, 0.88, 1.0), pytest.param(400, 0.92, 0.98, marks=pytest.mark.slow)]
)
def test_intervals_cover_the_exact_value(world, model, repeats, least, most):
    """95% intervals over sets of 30 rows of two lengths: how often the world's exact ELBO per token lies inside."""
    strings, probability = world.strings()
    nats, tokens = 0.0, 0.0
    for given, share in ((True, 1 / 3), (False, 2 / 3)):
        maskable = torch.ones_like(strings, dtype=torch.bool)
        maskable[:, 0] = not given
        elbo = exact_elbo(world.rows(strings, maskable), world.nll)
        nats += share * float((probability * elbo).sum())
        tokens += share * float(maskable[0].sum())
    rows = 30
    found = likelihood(model, drawn(world, repeats * rows), config_of(samples=2), batch_size=4000)
    covered = 0
    for part in torch.arange(repeats * rows).view(repeats, rows):
        estimate = RowNats("", found.nats[part], found.tokens[part]).nats_per_token
        covered += estimate.low <= nats / tokens <= estimate.high
    assert least <= covered / repeats <= most
    whole = found.nats_per_token
    assert whole.low <= nats / tokens <= whole.high


def test_an_interval_that_forgets_the_mask_noise_within_rows_does_not_cover(world, model):
    """Negative control: samples of a row that count as rows of their own give intervals that are too short."""
    repeats, rows, samples = 40, 20, 16
    strings, probability = world.strings()
    truth = float((probability * exact_elbo(world.rows(strings), world.nll)).sum()) / world.length
    generator = torch.Generator().manual_seed(3)
    place = torch.multinomial(probability, repeats * rows, replacement=True, generator=generator)
    every = losses(model, rows_of(strings[place].tolist()), config_of(samples=samples), batch_size=4000)
    nats = torch.cat([(ELBO().weights(batch).double() * nll).sum(1) for batch, nll in every])
    nats = nats.view(repeats, rows, samples)
    honest = [ratio(part.mean(1), torch.full((rows,), world.length)) for part in nats]
    order = torch.randperm(rows * samples, generator=generator)  # or they would be neighbours, and taken together
    pretended = [ratio(part.flatten()[order], torch.full((rows * samples,), world.length)) for part in nats]
    covered, short = (sum(e.low <= truth <= e.high for e in found) / repeats for found in (honest, pretended))
    assert covered > 0.88
    assert short < 0.75


def test_each_row_is_measured_at_rates_and_masks_of_its_own(model):
    """Or the noise of the masks would not average out over rows, and no interval would know."""
    config = config_of(masking=IndependentMasking(), samples=3)
    drawn = [batch for batch, _ in losses(model, rows_of([[0, 1, 1]] * 40), config)]
    rates = torch.cat([batch.rate for batch in drawn]).flatten()
    assert len(rates.unique()) == 120
    of_rows = rates.view(40, 3).double()
    assert abs(float(torch.corrcoef(of_rows.T[:2])[0, 1])) < 5 / 40**0.5
    again = torch.cat([batch.rate for batch, _ in losses(model, rows_of([[0, 1, 1]] * 40), replace(config, seed=1))])
    assert not torch.equal(again.flatten(), rates)


BLOCKS = [
    Blockwise(IndependentMasking(), size=4),
    Blockwise(IndependentMasking(mask=ExactCount(), coupling="stratified"), size=4),
    Blockwise(IndependentMasking(coupling="stratified", pair="mirror"), size=5),
]


@pytest.mark.parametrize("masking", [*MASKINGS, *BLOCKS], ids=repr)
@pytest.mark.parametrize("batch_size", [1, 3, 8, 1000])
def test_batch_size_changes_no_number(small, masking, batch_size):
    model, rows = small
    config = config_of(masking=masking, samples=4)
    expected = likelihood(model, rows, config, batch_size=64).nats
    assert torch.allclose(likelihood(model, rows, config, batch_size=batch_size).nats, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("masking", [MASKINGS[1], *BLOCKS], ids=repr)
def test_a_row_s_value_does_not_depend_on_its_neighbours_or_padding(small, masking):
    model, rows = small
    config = config_of(masking=masking, samples=4)
    expected = likelihood(model, rows, config).nats
    first = likelihood(model, rows.select(range(2)), config).nats
    assert torch.allclose(first, expected[:2], rtol=0, atol=1e-12)
    other = likelihood(model, rows, replace(config, seed=1)).nats
    assert ((other - expected).abs() > 1e-3).any()  # the noise does count


def test_single_precision_agrees_to_one_in_a_hundred_thousand(small):
    model, rows = small
    config = config_of(samples=4)
    double = likelihood(model, rows, config, batch_size=3).nats_per_token.value
    single = likelihood(model.float(), rows, config, batch_size=64).nats_per_token.value
    model.double()
    assert abs(single - double) < 1e-5


def test_models_are_measured_under_the_same_masks(world, model):
    """A paired difference is far narrower than the difference of two independent intervals."""
    rows = drawn(world, 60)
    a = likelihood(model, rows)
    b = likelihood(tabular_model(TabularWorld(world.joint, error=1.05)), rows)
    paired, apart = a.difference(b), a.nats_per_token
    assert paired.high - paired.low < 0.2 * (apart.high - apart.low)
    assert math.isclose(paired.value, a.nats_per_token.value - b.nats_per_token.value, abs_tol=1e-12)
    same = a.difference(likelihood(model, rows, batch_size=7))
    assert max(abs(same.low), abs(same.high)) < 1e-12


def test_what_has_no_density_or_leaves_rates_out_is_refused():
    with pytest.raises(ValueError, match="cannot state the density"):
        LikelihoodConfig(masking=ProgressiveUnmasking())
    with pytest.raises(ValueError, match="rates over all of"):
        LikelihoodConfig(masking=IndependentMasking(Clipped(0.001, 1.0)))
    with pytest.raises(ValueError, match="fitted to a model"):
        LikelihoodConfig(masking=IndependentMasking(PPOTS()))
    with pytest.raises(ValueError, match="samples"):
        LikelihoodConfig(samples=0)
    with pytest.raises(ValueError, match="at least 2 rows"):
        _ = RowNats("", torch.ones(1), torch.ones(1)).nats_per_token


def test_blocks_of_one_are_the_chain_rule_whatever_is_drawn():
    """A shifted model with blocks of one position: every draw of a row gives its causal log-likelihood exactly."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=12, hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2
    )
    causal = LlamaForCausalLM(config).double().eval()
    tokens = torch.tensor([[1, 5, 2, 7, 3], [4, 4, 9, 0, 8]])
    with torch.no_grad():
        logits = causal(input_ids=tokens).logits[:, :-1].clone()
    logits[..., 11] = -torch.inf  # the mask token takes no part
    expected = -logits.log_softmax(-1).gather(-1, tokens[:, 1:, None]).sum((1, 2))
    model = MaskedDiffusionLM.from_hf(causal, 11, shifted=True)
    rows = rows_of(tokens.tolist(), [[False] + [True] * 4] * 2)
    blocks = Blockwise(IndependentMasking(mask=ExactCount()), size=1)
    for samples, seed in ((1, 0), (3, 7)):
        found = likelihood(model, rows, config_of(masking=blocks, samples=samples, seed=seed))
        assert torch.allclose(found.nats, expected, atol=1e-6)  # weights are single precision


def test_blocks_that_change_with_the_step_are_refused():
    with pytest.raises(ValueError, match="choose one number"):
        LikelihoodConfig(masking=Blockwise(IndependentMasking(), size=((0, 1), (10, 4))))


def test_blocks_with_causal_rows_are_two_bounds_and_refused():
    """Some draws of a row would be of its blocks, others from left to right, and the mean of neither."""
    with pytest.raises(ValueError, match=r"two bounds.*causal=0.*size 1"):
        LikelihoodConfig(masking=Blockwise(IndependentMasking(), size=4, causal=0.5))
    LikelihoodConfig(masking=Blockwise(IndependentMasking(), size=4))


def test_differences_of_other_rows_are_refused(world, model):
    a, b = (likelihood(model, drawn(world, n)) for n in (4, 5))
    with pytest.raises(ValueError, match="same rows"):
        a.difference(b)
    other = config_of(masking=IndependentMasking())
    with pytest.raises(ValueError, match="same number"):
        a.difference(likelihood(model, drawn(world, 4), other))


def test_the_ratio_s_interval_is_the_delta_method_s():
    """Against 20,000 simulated sets of rows: the mean squared error of the ratio is the squared standard error."""
    generator = torch.Generator().manual_seed(0)
    units = torch.randint(1, 20, (20_000, 40), generator=generator).double()
    values = units * 2 + units.sqrt() * torch.randn(units.shape, generator=generator, dtype=torch.float64)
    truth = float(((values.sum(1) / units.sum(1)) - 2).square().mean().sqrt())
    reach = torch.tensor(
        [ratio(v, u).high - ratio(v, u).value for v, u in zip(values[:300], units[:300], strict=True)]
    )
    assert abs(float(reach.mean()) / 2.0227 / truth - 1) < 0.05  # Student's t on 39 degrees of freedom


def test_a_row_without_units_counts_with_its_nats():
    """Bits per character of texts one of whose rows holds no character; the residuals by hand, and a control."""
    values, units = torch.tensor([10.0, 12, 10, 30]), torch.tensor([5, 5, 6, 0])
    found = ratio(values, units)
    assert found.value == 62 / 16
    residuals = torch.tensor([10.0, 12, 10, 30]) - found.value * units
    error = float((residuals.square().sum() * 4 / 3).sqrt()) / 16
    assert found.high - found.value == pytest.approx(3.182446 * error)  # Student's t on 3 degrees of freedom
    assert RowNats("", values, units).bits_per(units).value == pytest.approx(62 / 16 / math.log(2))
    nothing = torch.zeros(3)
    assert ratio(torch.cat([values, nothing]), torch.cat([units, nothing])) == found


@pytest.mark.parametrize(
    ("values", "units", "words"),
    [((1.0, 2.0), (0, 0), "none has a unit"), ((1.0, 0.0), (2, 0), "at least 2 rows"), ((), (), "at least 2 rows")],
)
def test_no_ratio_of_nothing(values, units, words):
    with pytest.raises(ValueError, match=words):
        ratio(torch.tensor(values), torch.tensor(units))


def test_training_mode_and_weights_are_left_alone(small):
    model, rows = small
    model.train()
    before = [p.clone() for p in model.parameters()]
    likelihood(model, rows)
    assert model.training
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_units_of_text(tmp_path):
    (tmp_path / "a.txt").write_text("the übermut of it. " * 20)
    tokenizer = character_tokenizer(["the übermut of it. "])
    rows = load_text(tmp_path / "a.txt", "all", tokenizer=tokenizer, length=16)
    letters, octets = characters(rows, tokenizer), characters(rows, tokenizer, "bytes")
    assert int(letters.sum()) == 380
    assert int(octets.sum()) == 400
    found = RowNats("", letters.double(), letters)
    assert math.isclose(found.bits_per_token.value, 1 / math.log(2))
    assert math.isclose(found.bits_per(octets).value, 380 / 400 / math.log(2))
    assert math.isclose(found.perplexity.value, math.e)


def test_a_wide_interval_of_few_rows_ends_at_an_infinite_perplexity():
    found = RowNats("nats", torch.tensor([10.0, 300.0]).double(), torch.tensor([1, 1])).perplexity
    assert found.value == pytest.approx(math.exp(155))
    assert (found.low, found.high) == (pytest.approx(0), math.inf)


def test_protocol_refuses_what_the_objective_refuses():
    """One contract: what ELBO refuses is refused here, whatever is put together, and heavy-tailed weights besides."""
    times, masks, pairs = (
        (Uniform(), Bell(), Beta(2, 1), Clipped(0.2, 0.9)),
        (Bernoulli(), ExactCount()),
        (None, "mirror"),
    )
    inner = [
        IndependentMasking(time, mask, coupling, pair)
        for time, mask, coupling, pair in product(times, masks, ("independent", "stratified", "antithetic"), pairs)
    ]
    every = [*inner, *(Blockwise(masking, size=2) for masking in inner), ProgressiveUnmasking()]
    refused = {}
    for contract in (ELBO().check, lambda masking: LikelihoodConfig(masking=masking)):
        found = set()
        for masking in every:
            try:
                contract(masking)
            except ValueError:
                found.add(repr(masking))
        refused[contract] = found
    of_objective, of_likelihood = refused.values()
    heavy = {
        repr(m) for masking in inner if masking.time == Beta(2, 1) for m in (masking, Blockwise(masking, size=2))
    }
    assert of_objective | heavy == of_likelihood
    assert not of_objective & heavy
    assert 0 < len(of_objective) < len(every)


@pytest.mark.parametrize(
    ("coupling", "pair", "together"),
    [("antithetic", None, 2), ("stratified", "mirror", 2), ("antithetic", "complement", 4)],
)
@pytest.mark.parametrize("cut", [lambda m: m, lambda m: Blockwise(m, size=2)], ids=["rows", "blocks"])
def test_samples_that_do_not_divide_are_refused_by_their_name(small, coupling, pair, together, cut):
    masking = cut(IndependentMasking(coupling=coupling, pair=pair))
    with pytest.raises(ValueError, match=f"samples={together + 1} does not divide into the {together} that"):
        LikelihoodConfig(masking, samples=together + 1)
    LikelihoodConfig(masking, samples=2 * together)


@pytest.mark.parametrize("length", [5, 16, 64])
def test_rows_that_cut_characters_make_them_no_more(length):
    """Else bits per byte would flatter short rows of text that is not Latin."""
    text = "語言模型的困惑度與字節數有關，ὅτι καλῶς ἔχει. naïve café — 𝄞 ein Süß. " * 12
    tokenizer = bpe_tokenizer([text[:16]], vocab_size=270)
    tokens = tokenizer.encode(text).tolist()
    rows = [tokens[i : i + length] for i in range(0, len(tokens), length)]
    dataset = Dataset.from_dict({"tokens": rows, "maskable": [[True] * len(row) for row in rows]})
    assert int(characters(dataset, tokenizer).sum()) == len(text)
    octets, cuts = int(characters(dataset, tokenizer, "bytes").sum()), len(rows) - 1
    assert len(text.encode()) - 2 * cuts <= octets <= len(text.encode())


def test_end_of_text_tokens_are_no_characters():
    tokenizer = character_tokenizer(["abc"])
    tokens = [*tokenizer.encode("abc").tolist(), *[tokenizer.eos_token_id] * 3]
    rows = Dataset.from_dict({"tokens": [tokens, tokens], "maskable": [[True] * 6] * 2})
    assert characters(rows, tokenizer).tolist() == [3, 3]
