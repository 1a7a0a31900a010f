"""A whole run on a device without float64, as on an Apple laptop: rates, weights and Z are the host's work."""

from __future__ import annotations

import pytest
import torch
from accelerate.state import PartialState

from unmask import (
    CAP,
    ELBO,
    PPOTS,
    Bell,
    Blockwise,
    Decoding,
    ExactCount,
    IndependentMasking,
    MaskedMean,
    ProgressiveUnmasking,
    RowImportance,
    RowMean,
    RowStream,
    generate,
)
from unmask.evaluation.exact import order_likelihood
from unmask.evaluation.likelihood import likelihood
from unmask.testing.device import DeviceTensor, Float32Device
from unmask.training import read_metrics
from unmask.training.state import load_moments


@pytest.fixture
def device(monkeypatch):
    """The simulated device, which accelerate finds as it finds a GPU."""
    monkeypatch.setitem(PartialState().__dict__, "device", Float32Device.device)
    with Float32Device():
        yield Float32Device.device


ARMS = {
    "standard": (IndependentMasking(coupling="stratified"), ELBO()),
    "exact count": (IndependentMasking(mask=ExactCount()), RowMean()),
    "bell": (IndependentMasking(Bell(), coupling="antithetic", pair="mirror"), MaskedMean()),
    "P-POTS": (IndependentMasking(PPOTS(refit_every=2, grid=12, rows=2, masks=2)), ELBO()),
    "P-POTS of the gradient": pytest.param(
        IndependentMasking(PPOTS(refit_every=2, grid=12, rows=2, masks=2, moment="gradient")),
        ELBO(),
        marks=pytest.mark.slow,
    ),
    "P-POTS online": pytest.param(
        IndependentMasking(PPOTS(refit_every=2, grid=12, online=True)), ELBO(), marks=pytest.mark.slow
    ),
    "blocks": (Blockwise(IndependentMasking(), 27), ELBO()),
    "PUMA": (ProgressiveUnmasking(stages=4, threshold=0.2), RowMean()),
}


@pytest.mark.parametrize(("masking", "objective"), ARMS.values(), ids=ARMS)
def test_a_run_needs_no_float64_on_its_device_and_trains_the_same_weights(
    trainer, build, device, weights_in, masking, objective
):
    found = {}
    for name in ("host", "device"):
        PartialState().__dict__["device"] = device if name == "device" else torch.device("cpu")
        model = build(tie_word_embeddings=False).to(PartialState().device)
        settings = {"batch_size": 4, "micro_batch_size": 3, "ema_decay": 0.9, "steps": 3}
        run = trainer(name, model=model, masking=masking, objective=objective, **settings)
        found[name] = weights_in(run.train())
        assert isinstance(run.model.head.output.weight, DeviceTensor) == (name == "device")
    logged = [read_metrics(run.out.with_name(name), "train") for name in found]
    for ours, theirs in zip(*logged, strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-4)
        assert ours["weight_ess"] == pytest.approx(theirs["weight_ess"], rel=1e-3)
    for name, weight in found["host"].items():
        torch.testing.assert_close(found["device"][name], weight, rtol=1e-4, atol=1e-4)


def test_weights_that_look_at_the_model_need_none_whatever_the_rows_carry(trainer, build, device, rows):
    guide = [[float(place % 2) for place in range(len(row))] for row in rows["tokens"]]
    model, few = build(tie_word_embeddings=False).to(device), rows.add_column("guide", guide)
    settings = {"batch_size": 4, "steps": 2, "importance": RowImportance(uniform=0.5)}
    run = trainer(model=model, dataset=few, masking=IndependentMasking(), objective=CAP(), **settings)
    run.train()
    assert isinstance(run.model.head.output.weight, DeviceTensor)


def _state(run):
    """Device, dtype and values of all that a run's optimiser keeps."""
    names = {parameter: name for name, parameter in run.model.named_parameters()}
    return {
        (names[parameter], key): (value.device, value.dtype, value.detach().cpu())
        for parameter, state in run.optimizer.state.items()
        for key, value in state.items()
    }


KINDS = ["cpu", "simulated", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.mark.parametrize("kind", KINDS)
def test_a_resumed_run_has_every_tensor_where_it_was(trainer, build, request, kind):
    """Also the step counts, which a fused AdamW keeps on its device and a plain one on the CPU."""
    if kind == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    if kind == "simulated":
        request.getfixturevalue("device")
    place = PartialState().device

    def make():
        model = build(tie_word_embeddings=False).to(place)
        return trainer("run", model=model, steps=2, ema_decay=0.9)

    run = make()
    run.train()
    resumed = make()
    resumed.train(resume=True)
    saved, found = _state(run), _state(resumed)
    assert saved.keys() == found.keys()
    assert len(saved) == 3 * sum(1 for _ in run.model.parameters())
    for name, (device, dtype, value) in saved.items():
        assert found[name][:2] == (device, dtype), name
        assert torch.equal(found[name][2], value), name
    for ours, theirs in ((run.model.state_dict(), resumed.model.state_dict()), _averages(run, resumed)):
        assert {n: (t.device, t.dtype) for n, t in ours.items()} == {
            n: (t.device, t.dtype) for n, t in theirs.items()
        }


def _averages(*runs):
    return tuple(run.average.weights(run.model) for run in runs)


def test_an_optimiser_that_counts_steps_on_its_device_gets_them_back_there(build, tmp_path):
    """As a fused AdamW on CUDA does. Here its tensors have no numbers, but a place."""
    model = build().to("meta")
    optimizer = torch.optim.AdamW(model.parameters(), capturable=True)
    names = {parameter: name for name, parameter in model.named_parameters()}
    moments = {
        name: {"step": torch.tensor(3.0), "exp_avg": torch.zeros(p.shape), "exp_avg_sq": torch.zeros(p.shape)}
        for p, name in names.items()
    }
    load_moments(optimizer, names, moments)
    for state in optimizer.state.values():
        assert {value.device.type for value in state.values()} == {"meta"}
    assert len(optimizer.state) == len(names)


def test_what_measures_and_decodes_needs_no_float64_on_its_device(build, device, rows):
    host = build(std=0.3, tie_word_embeddings=False)
    model = build(std=0.3, tie_word_embeddings=False).to(device)
    few = rows.select(range(2))
    ours, theirs = (likelihood(m, few).nats_per_token.value for m in (model, host))
    assert ours == pytest.approx(theirs, rel=1e-5)
    batch = RowStream(few).rows(torch.arange(2))
    for decoding in (
        Decoding("margin", tokens_per_step=9),
        Decoding("random", steps=6, schedule="cosine", temperature=1.0, top_p=0.9, block_size=27, remasking=0.2),
    ):
        made, there = (
            generate(m, b, decoding, end_token_id=1) for m, b in ((host, batch), (model, batch.to(device)))
        )
        assert isinstance(there.tokens, DeviceTensor)
        assert torch.equal(there.tokens.cpu(), made.tokens)
    walked = [order_likelihood(m, few, "entropy", block_size=40).nats for m in (model, host)]
    torch.testing.assert_close(*walked, rtol=1e-5, atol=0)


def test_the_simulated_device_refuses_what_a_real_one_refuses(device):
    x = torch.arange(3).to(device)
    assert (x.device, x.tolist(), float(x.sum() / torch.tensor(2.0))) == (device, [0, 1, 2], 1.5)
    for refused in (
        lambda: x.double(),
        lambda: x.to(torch.float64),
        lambda: torch.zeros(3, dtype=torch.float64).to(device),
        lambda: torch.zeros(3, dtype=torch.float64, device=device),
        lambda: x / torch.tensor(2.0, dtype=torch.float64),
    ):
        with pytest.raises(RuntimeError, match="no float64"):
            refused()
    with pytest.raises(RuntimeError, match="is on the device and another"):
        x + torch.arange(3)
    with pytest.raises(RuntimeError, match="is on the device and another"):
        torch.arange(3).index_add(0, x, x)
