"""What a step asks of the device: few operations beside the model's own, and one answer at most to wait for."""

from __future__ import annotations

import pytest
import torch

from unmask import ELBO, Bell, Blockwise, ExactCount, IndependentMasking, MaskedMean, ProgressiveUnmasking, RowMean
from unmask.testing.launches import count_launches, counting_device
from unmask.training.callbacks import Callback

MOST = 30
"""Operations of a step beside the model's."""
ARMS = {
    "standard": (IndependentMasking(coupling="stratified"), ELBO(), 0),
    "bell": (IndependentMasking(Bell(), ExactCount(), "stratified"), MaskedMean(), 0),
    "puma": (ProgressiveUnmasking(stages=4, threshold=0.5), RowMean(), 1),  # the scores, before the next draw
    "puma in blocks": (Blockwise(ProgressiveUnmasking(stages=4), 27), RowMean(), 1),  # both copies of the rows
}


@pytest.fixture
def device():
    """The simulated device, which counts; accelerate finds it as it finds a GPU."""
    with counting_device() as counts:
        yield counts


@pytest.mark.parametrize("parts", [1, 4])
@pytest.mark.parametrize(("masking", "objective", "waits"), ARMS.values(), ids=ARMS)
def test_a_step_waits_for_no_more_than_the_scores(trainer, build, device, masking, objective, waits, parts):
    """However many parts it is run in; and masking adds few operations to those of the model."""
    model = build(tie_word_embeddings=False).to(device.device)
    settings = {"batch_size": 8, "micro_batch_size": 8 // parts, "log_every": 1000, "precision": "fp32"}
    settings["optimizer"] = lambda groups: torch.optim.AdamW(groups, fused=True)  # as on CUDA
    run = trainer("run", model=model, masking=masking, objective=objective, **settings)
    found = count_launches(run, device)
    assert len(found.waits) == waits, found.waits
    assert found.parts == parts
    assert 0 < found.masking <= MOST
    assert found.model > 100 * parts


class Waits(Callback):
    """What the host waited for from one step's figures to the next one's, the reading of them included."""

    def __init__(self, device):
        self.device, self.found = device, []

    def step(self, step, metrics):
        self.found.append(list(self.device.waits))
        self.device.waits.clear()


@pytest.mark.parametrize("name", ["standard", "puma"])
def test_a_step_of_the_loop_reads_two_copies_and_nothing_else(trainer, build, device, name):
    """Scores and losses in one, the gradient's norm in another: both are queued on CUDA long before they are read."""
    masking, objective, _ = ARMS[name]
    seen, model = Waits(device), build(tie_word_embeddings=False).to(device.device)
    settings = {
        "optimizer": lambda groups: torch.optim.AdamW(groups, fused=True),
        "micro_batch_size": 4,
        "log_every": 1,
    }
    trainer("run", model=model, masking=masking, objective=objective, callbacks=[seen], **settings).train()
    assert len(seen.found) == 6
    assert seen.found[1:] == [["aten._to_copy.default"] * 2] * 5


def test_what_makes_the_host_wait_is_counted(device):
    """Negative controls."""
    x = torch.arange(4.0).to(device.device)
    for ask in (
        lambda: x.cpu(),
        lambda: x.sum().item(),
        lambda: x.nonzero(),
        lambda: x[x > 1],
        lambda: bool((x > 1).any()),
        lambda: torch.zeros(4).copy_(x),
    ):
        device.waits.clear()
        ask()
        assert len(device.waits) == 1
    device.waits.clear()
    before = device.operations
    assert (x[1:] + 1).shape == (3,)
    assert device.operations == before + 1
    assert device.waits == []
