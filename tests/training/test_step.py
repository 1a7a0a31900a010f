"""One call a step in a loop of one's own does what the Trainer does, also with a model that makes its own logits."""

from functools import partial

import pytest
import torch
from datasets import Dataset
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from unmask import (
    CAP,
    CART,
    ELBO,
    LIFT,
    PAPL,
    PPOTS,
    Decoding,
    ExactCount,
    IndependentMasking,
    MaskedDiffusionLM,
    MaskedMean,
    ProgressiveUnmasking,
    RowImportance,
    RowMean,
    SyRM,
    TrainingStep,
    Uniform,
    generate,
)
from unmask.data.sudoku import MASK_TOKEN, load_sudoku
from unmask.distributed import whole
from unmask.evaluation.likelihood import LikelihoodConfig, likelihood
from unmask.models.denoiser import STREAM_LOOKED_AT
from unmask.training.optimizer import parameter_groups

MEASURED = PPOTS(2, grid=4, rows=2, masks=2)
MASKINGS = {
    "independent": IndependentMasking(mask=ExactCount(), coupling="stratified", pair="mirror"),
    "P-POTS of held-out rows": IndependentMasking(MEASURED, ExactCount()),
    "P-POTS of gradients": IndependentMasking(PPOTS(2, grid=4, rows=2, masks=2, moment="gradient"), ExactCount()),
    "P-POTS of the steps' losses": IndependentMasking(PPOTS(2, grid=4, online=True), ExactCount()),
    "puma": ProgressiveUnmasking(stages=4, threshold=0.15),
}
OBJECTIVES = [RowMean(), ELBO(), PAPL(), LIFT(), CAP(), CART(), SyRM()]


class Denoiser(nn.Module):
    """A module that knows nothing of this library: tokens and attention to logits."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, tokens, attention):
        return self.model.head.output(
            self.model.backbone(input_ids=tokens, attention_mask=attention).last_hidden_state
        )


def objective_of(masking):
    return ELBO() if isinstance(getattr(masking, "time", None), PPOTS) else RowMean()


def by_hand(model, masking, rows, held_out, steps=6, saved=None, **options):
    """A loop of one's own; stops after half of the steps and goes on in a new one."""
    optimizer = torch.optim.AdamW(parameter_groups(model, 0.01), lr=1e-3, betas=(0.9, 0.98))
    options = {"objective": objective_of(masking), "held_out": held_out, "micro_batch_size": 3, **options}
    losses, learnt, state = [], [], None
    for part in range(2):
        step = TrainingStep(masking, rows, 8, **options)
        if part:
            step.load_state_dict(state)
        for _ in range(steps // 2):
            losses.append(float(step(model)))
            optimizer.step()
            optimizer.zero_grad()
            learnt.append(dict(step.learnt))
        state = step.state_dict()
    return losses, learnt


@pytest.mark.parametrize("name", [*MASKINGS, "importance"])
def test_a_loop_of_ones_own_is_the_trainers_to_the_bit(name, trainer, build, rows):
    """Refits, importance, chains and a stop between included; the optimiser's settings are the Trainer's."""
    masking = MASKINGS.get(name, MASKINGS["independent"])
    importance = RowImportance() if name == "importance" else None
    if importance is not None:
        masking = IndependentMasking(mask=ExactCount())
    made = partial(torch.optim.AdamW, betas=(0.9, 0.98))
    run = trainer(
        masking=masking,
        objective=objective_of(masking),
        micro_batch_size=3,
        optimizer=made,
        learning_rate=lambda step: 1e-3,
        clip_norm=1e9,
        weight_decay=0.01,
        ema_decay=None,
        importance=importance,
    )
    run.train()
    model = build()
    losses, learnt = by_hand(model, masking, rows, load_sudoku("test", limit=5), importance=importance)
    theirs, mine = run.model.state_dict(), model.state_dict()
    assert all(torch.equal(theirs[key], mine[key]) for key in mine), name
    assert losses[0] > losses[-1] or name != "independent"
    assert any(learnt) == ("held-out" in name or "P-POTS" in name)


@pytest.mark.parametrize("masking", [MASKINGS["independent"], ProgressiveUnmasking(stages=4, pool=16)], ids=repr)
def test_a_streamed_data_set_trains_as_its_rows_on_disk_do_a_stop_between_included(masking, build, rows):
    """Their pool is filled, and their place is found again, before the model is known."""
    on_disk, streamed = (by_hand(build(), masking, some, None) for some in (rows, rows.to_iterable_dataset()))
    assert streamed == on_disk


def test_rows_of_a_stream_that_are_read_before_the_model_is_known_are_looked_at_once_it_is(build, rows):
    masking, late = ProgressiveUnmasking(pool=16), 100 + STREAM_LOOKED_AT
    some = [rows[i % len(rows)] for i in range(late + 10)]
    good = TrainingStep(masking, Dataset.from_list(some).to_iterable_dataset(), 8)
    some[late]["tokens"] = [MASK_TOKEN, *some[late]["tokens"][1:]]
    stream = Dataset.from_list(some).to_iterable_dataset()
    fresh, resumed = TrainingStep(masking, stream, 8), TrainingStep(masking, stream, 8)
    resumed.load_state_dict(fresh.state_dict())
    for step in (fresh, resumed):
        for _ in range(2):  # it is refused for as long as it is so
            with pytest.raises(ValueError, match=f"row {late} of the data set already holds the mask token"):
                step(build())
    good(build())


def test_without_refits_the_rates_stay_uniform_and_the_weights_differ(build, rows):
    """The control: what a loop that never refits would train."""
    refitted, plain = build(), build()
    held_out = load_sudoku("test", limit=5)
    by_hand(refitted, MASKINGS["P-POTS of held-out rows"], rows, held_out)
    by_hand(plain, IndependentMasking(Uniform(), ExactCount()), rows, held_out, objective=ELBO())
    assert any(not torch.equal(a, b) for a, b in zip(refitted.parameters(), plain.parameters(), strict=True))


@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda objective: type(objective).__name__)
def test_a_model_of_logits_trains_as_the_same_model_with_the_masked_head(objective, build, rows):
    """Loss, gradient, nll and every statistic, of objectives that reweight too."""
    wrapped = build(double=True, std=0.5)
    plain = MaskedDiffusionLM.from_logits(Denoiser(wrapped), MASK_TOKEN)
    puzzles = rows.add_column("guide", [[i % 2 for i in range(81)]] * len(rows))  # SyRM's
    step = TrainingStep(IndependentMasking(mask=ExactCount()), puzzles, 8, objective=objective)
    batch = step.process.draw()
    weights = objective.weights(batch) / objective.normaliser(batch)
    needs = ("margin", "entropy")
    found = []
    for model in (wrapped, plain):
        model.zero_grad()
        output = model(batch, weights, needs=needs, objective=objective)
        output.loss.backward()
        found.append((output, [p.grad.clone() for p in wrapped.parameters() if p.grad is not None]))
    (one, gradients), (other, same) = found
    torch.testing.assert_close(one.loss, other.loss)
    torch.testing.assert_close(one.nll, other.nll)
    torch.testing.assert_close(gradients, same)
    for name in ("log_confidence", *needs):
        torch.testing.assert_close(getattr(one.scores, name), getattr(other.scores, name))


def test_the_length_of_the_gradient_is_that_of_the_logits(build, rows):
    model = MaskedDiffusionLM.from_logits(Denoiser(build(double=True, std=0.5)), MASK_TOKEN)
    step = TrainingStep(IndependentMasking(mask=ExactCount()), rows, 4)
    batch, seen = step.process.draw(), {}
    inside = model.backbone.model.register_forward_hook(lambda module, given, logits: seen.update(logits=logits))
    weights = RowMean().weights(batch) / RowMean().normaliser(batch)
    output = model(batch, weights, needs=("gradient",))
    inside.remove()
    (slope,) = torch.autograd.grad(output.loss, seen["logits"])
    torch.testing.assert_close(output.gradient, slope.norm(dim=-1))


@pytest.mark.parametrize("name", MASKINGS)
def test_a_model_of_logits_trains_under_every_masking_and_is_judged_and_decoded_like_others(name, build, rows):
    model = MaskedDiffusionLM.from_logits(Denoiser(build(std=0.2)), MASK_TOKEN)
    before = likelihood(model, load_sudoku("test", limit=4), LikelihoodConfig(samples=2)).nats_per_token.value
    step = TrainingStep(
        MASKINGS[name], rows, 8, objective=objective_of(MASKINGS[name]), held_out=load_sudoku("test", limit=5)
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(12):
        step(model)
        optimizer.step()
        optimizer.zero_grad()
    after = likelihood(model, load_sudoku("test", limit=4), LikelihoodConfig(samples=2)).nats_per_token.value
    assert after < before - 0.1
    puzzles = step.process.rows.rows(torch.arange(2))
    made = generate(model, puzzles, Decoding(steps=4)).tokens
    assert not (made == MASK_TOKEN).any()
    assert torch.equal(made[~puzzles.maskable], puzzles.tokens[~puzzles.maskable])


@pytest.mark.parametrize("how", ["wrapped", "sharded", "summed"])
def test_two_ranks_share_a_step(how, build, rows, forked_ranks, tmp_path):
    """In micro-batches: gradient and loss are those of one rank, refits included.

    The model is inside DistributedDataParallel, sharded by FSDP2, or bare, with gradients summed by hand.
    """
    held_out, masking = load_sudoku("test", limit=5), MASKINGS["P-POTS of held-out rows"]

    def train(model, inside):
        step = TrainingStep(masking, rows, 8, objective=ELBO(), held_out=held_out, micro_batch_size=2)
        optimizer = torch.optim.SGD(inside.parameters(), lr=0.1)
        losses = []
        for _ in range(4):
            losses.append(step(model))
            if how == "summed" and torch.distributed.is_initialized():
                for weight in inside.parameters():
                    if weight.grad is not None:
                        torch.distributed.all_reduce(weight.grad)
            optimizer.step()
            optimizer.zero_grad()
        return torch.stack(losses)

    def work(rank):
        torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
        inside = build(double=True)
        if how == "sharded":
            fully_shard(inside)
        losses = train(DistributedDataParallel(inside) if how == "wrapped" else inside, inside)
        torch.distributed.all_reduce(losses)
        weights = {name: whole(weight) for name, weight in inside.state_dict().items()}
        if rank == 0:
            torch.save({"losses": losses, **weights}, tmp_path / "two.pt")
        torch.distributed.destroy_process_group()

    assert forked_ranks(work) == [0, 0]
    two = torch.load(tmp_path / "two.pt", weights_only=True)
    inside = build(double=True)
    # Weights of the loss are fp32, so its last digits depend on how it is summed.
    torch.testing.assert_close(two.pop("losses"), train(inside, inside), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(two, dict(inside.state_dict()), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("saved", "now"), [("independent", "puma"), ("puma", "independent")])
def test_a_state_of_another_kind_of_masking_is_refused(saved, now, rows):
    state = TrainingStep(MASKINGS[saved], rows, 8).state_dict()
    with pytest.raises(ValueError, match="the saved state is of another kind of masking"):
        TrainingStep(MASKINGS[now], rows, 8).load_state_dict(state)


def test_a_step_that_was_made_before_its_ranks_are_known_is_refused(build, rows, forked_ranks, tmp_path):
    """Each rank would train on all rows, the same ones, and sum their gradients."""

    def work(rank):
        step, model = TrainingStep(IndependentMasking(), rows, 8), build()
        torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
        with pytest.raises(ValueError, match=rf"made as rank 0 of 1, and is called as rank {rank} of 2: start"):
            step(model)
        torch.distributed.destroy_process_group()

    assert forked_ranks(work) == [0, 0]


@pytest.mark.parametrize("policy", ["confidence", "random"])
def test_a_loss_that_is_not_finite_moves_no_chain_and_the_rows_are_named(policy, build, rows):
    step, model = TrainingStep(ProgressiveUnmasking(stages=4, policy=policy, pool="batch"), rows, 8), build()
    step(model)
    before = step.process.revealed.clone()
    with torch.no_grad():
        model.head.output.weight[0] = torch.nan
    with pytest.raises(FloatingPointError, match=r"not finite in rows \[\d+, .*\] of the data set"):
        step(model)
    assert torch.equal(step.process.revealed, before)
    plain = TrainingStep(MASKINGS["independent"], rows, 8)
    assert plain(model).isnan()  # nobody here has waited for it


class Tokens(nn.Sequential):
    """Logits of the tokens alone."""

    def __init__(self, vocab_size=8, width=4):
        super().__init__(nn.Embedding(vocab_size, width), nn.Linear(width, vocab_size))


def test_what_cannot_be_wrapped_or_trained_is_refused(build, rows, short_rows):
    with pytest.raises(ValueError, match=r"Tokens\(tokens \[B, L\], attention \[B, L\]\).*attention=False"):
        MaskedDiffusionLM.from_logits(Tokens(), 0)
    with pytest.raises(ValueError, match=r"must return logits \[B, L, V\].*\(2, 8\)"):
        MaskedDiffusionLM.from_logits(nn.Sequential(Tokens(), nn.Flatten(0, 1)), 0, attention=False)
    with pytest.raises(ValueError, match="mask_token_id 8 is outside the vocabulary of 8"):
        MaskedDiffusionLM.from_logits(Tokens(), 8, attention=False)
    with pytest.raises(ValueError, match=r"Linear is no Hugging Face model.*from_logits"):
        MaskedDiffusionLM.from_hf(nn.Linear(2, 2), 0)
    step = TrainingStep(IndependentMasking(), short_rows, 2, objective=MaskedMean())
    with pytest.raises(TypeError, match=r"expected a MaskedDiffusionLM, got Tokens.*from_logits"):
        step(Tokens())
    with pytest.raises(ValueError, match="micro_batch_size must be at least 1"):
        TrainingStep(IndependentMasking(), short_rows, 2, micro_batch_size=0)
    with pytest.raises(ValueError, match="held_out"):
        TrainingStep(MASKINGS["P-POTS of held-out rows"], rows, 8, objective=ELBO())
    holds_the_mask = MaskedDiffusionLM.from_logits(Tokens(), 7, attention=False)
    with pytest.raises(ValueError, match="mask token"):
        step(holds_the_mask)


def test_padding_is_not_shown_to_a_model_of_tokens_alone():
    rows = Dataset.from_dict({"tokens": [[1, 2, 3], [1, 2]], "maskable": [[True] * 3, [True] * 2]})
    step = TrainingStep(IndependentMasking(), rows, 2, objective=MaskedMean())
    with pytest.raises(ValueError, match=r"padding.*attention=True"):
        step(MaskedDiffusionLM.from_logits(Tokens(), 7, attention=False))


class Misshapen(RowMean):
    """An objective of one's own with a slip."""

    def __init__(self, wrong):
        self.wrong = wrong

    def weights(self, batch):
        found = super().weights(batch)
        return {"row": found.sum(1, keepdim=True), "list": found.tolist()}.get(self.wrong, found)

    def normaliser(self, batch):
        found = super().normaliser(batch)
        return {"float": float(found), "vector": found[None]}.get(self.wrong, found)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("row", r"weights must be a tensor \[B, L\].*\[8, 81\], got torch.Size\(\[8, 1\]\)"),
        ("list", r"weights must be a tensor .* got list"),
        ("float", "normaliser must be a tensor of one number, got 8.0"),
        ("vector", r"normaliser must be a tensor of one number, got tensor\(\[8"),
    ],
)
def test_an_objective_whose_weights_or_normaliser_cannot_be_one_is_told_so(build, rows, wrong, said):
    step = TrainingStep(IndependentMasking(mask=ExactCount()), rows, 8, objective=Misshapen(wrong))
    with pytest.raises(ValueError, match=said):
        step(build())
