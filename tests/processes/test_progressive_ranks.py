"""Real processes share one pool, and hand it on to another number of them."""

from functools import cache

import datasets
import pytest
import torch
from safetensors.torch import load_file, save_file

from unmask import (
    Bell,
    Beta,
    Blockwise,
    Clipped,
    IndependentMasking,
    MaskedDiffusionLM,
    ProgressiveUnmasking,
    RowStream,
    Scores,
)
from unmask.processes import dealt_anew
from unmask.store.checkpoint import load_state, save_state

LENGTHS = [3, 9, 14, 1, 6, 11, 2, 8, 5, 12]
BATCH, LENGTH, VOCABULARY = 8, 15, 12
PAPER = [
    ProgressiveUnmasking(stages=4, pool="batch"),
    ProgressiveUnmasking(stages=6, threshold=0.4, policy="margin"),  # as many rows as the batch, by itself
    ProgressiveUnmasking(stages=20, policy="random", time=Clipped(0.3, 1.0)),
    ProgressiveUnmasking(stages=((0, 3), (4, 9), (9, 5)), policy="entropy", time=Beta(1, 0.7)),
]
POOLED = [
    ProgressiveUnmasking(stages=4, pool=24),
    ProgressiveUnmasking(stages=3, threshold=0.4, policy="margin", pool=16, time=Bell()),
    ProgressiveUnmasking(stages=((0, 3), (4, 2), (9, 5)), policy="random", pool=16),
    Blockwise(ProgressiveUnmasking(stages=3, threshold=0.5, pool=16), 4),
    Blockwise(ProgressiveUnmasking(stages=((0, 2), (7, 4)), policy="entropy", pool=24), ((0, 20), (4, 2), (8, 1))),
]
CONFIGS = PAPER + POOLED
RESUMED = [PAPER[3], *POOLED]
WORLDS = (2, 4)
STEPS, LEG = 14, 5  # of a history; of a leg of a run that is handed on


@cache
def rows():
    tokens = [[(7 * r + 3 * p) % (VOCABULARY - 1) for p in range(n + 1)] for r, n in enumerate(LENGTHS)]
    return datasets.Dataset.from_dict({"tokens": tokens, "maskable": [[False] + [True] * n for n in LENGTHS]})


@cache
def model():
    from transformers import LlamaConfig

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        initializer_range=0.5,
    )  # fmt: skip
    return MaskedDiffusionLM.from_config(config, VOCABULARY - 1).double().eval()


def scored(denoiser, batch, needs, micro_batch):
    """The scores of a step's rows, by forwards of a few rows each."""
    with torch.no_grad():
        parts = [
            denoiser(batch[start : start + micro_batch], needs=needs).scores
            for start in range(0, len(batch), micro_batch)
        ]
    names = [name for name, value in vars(parts[0]).items() if value is not None]
    return Scores(**{name: torch.cat([getattr(part, name) for part in parts]) for name in names})


def started(config, rank, world_size):
    return config.start(RowStream(rows(), seed=3, rank=rank, world_size=world_size), BATCH, seed=3)


def drawn(process, steps, denoiser, micro_batch=2):
    """[steps, B, .] all that a process draws: row, draw, then mask and rate of each position."""
    found = []
    for _ in range(steps):
        batch = process.draw()
        process.observe(scored(denoiser, batch, process.needs, micro_batch))
        real = batch.clean.attention
        columns = [batch.clean.row[:, None].double(), batch.clean.draw[:, None].double()]
        for values in (batch.masked.double(), batch.rate * real):
            columns.append(torch.nn.functional.pad(values, (0, LENGTH - batch.clean.length)))
        found.append(torch.cat(columns, 1))
    return torch.stack(found)


def history(rank, world_size, micro_batch=BATCH, configs=CONFIGS):
    """Everything this rank draws, for each config."""
    return {
        str(CONFIGS.index(config)): drawn(started(config, rank, world_size), STEPS, model(), micro_batch)
        for config in configs
    }


def left(folder, name, number, world_size):
    """What all ranks left of a run."""
    return [load_state(folder / f"{name}{number}-{rank}-of-{world_size}") for rank in range(world_size)]


def leg(rank, world_size, folder, name, before=0):
    """Take every run from where `before` ranks left it, or its start; do some steps, and leave it to the next."""
    found = {}
    for number, config in enumerate(RESUMED):
        process = started(config, rank, world_size)
        if before:
            process.load_state_dict(dealt_anew(left(folder, name, number, before), rank, world_size))
        found[str(number)] = drawn(process, LEG, model())
        save_state(folder / f"{name}{number}-{rank}-of-{world_size}", process.state_dict())
    return found


def one_rank(rank, world_size, folder):
    torch.distributed.init_process_group("gloo")
    passed = leg(rank, world_size, folder, "passed", world_size // 2)
    save_file(passed, folder / f"passed-{rank}-of-{world_size}.safetensors")
    if world_size == 2:
        save_file(history(rank, world_size), folder / f"history-{rank}-of-{world_size}.safetensors")
    else:
        leg(rank, world_size, folder, "fresh")


def joined(folder, name, world_size):
    parts = [load_file(folder / f"{name}-{rank}-of-{world_size}.safetensors") for rank in range(world_size)]
    return {number: torch.cat([part[number] for part in parts], 1) for number in parts[0]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory, forked_ranks):
    """Where one rank left the first leg, and then two and four left theirs; two their histories too."""
    folder = tmp_path_factory.mktemp("ranks")
    save_file(leg(0, 1, folder, "passed"), folder / "passed-0-of-1.safetensors")
    for size in WORLDS:
        codes = forked_ranks(lambda rank, size=size: one_rank(rank, size, folder), size, limit=240)
        assert codes == [0] * size
    return folder


@pytest.fixture(scope="module")
def whole():
    """The history of one process that forwards the whole batch at once."""
    return history(0, 1)


def name_of(config):
    return f"{type(config).__name__}-{CONFIGS.index(config)}"


@pytest.mark.parametrize("config", CONFIGS, ids=name_of)
def test_the_rows_masks_and_rates_of_two_ranks_are_those_of_one_slot_by_slot(folder, whole, config):
    number = str(CONFIGS.index(config))
    one = whole[number]
    assert torch.equal(joined(folder, "history", 2)[number], one)
    assert int(one[:, :, 1].max()) >= 1  # more than an epoch went by


@pytest.mark.parametrize("number", range(len(PAPER)))
def test_ranks_are_refilled_unevenly(whole, number):
    """Guards the test above: rows are dealt in numbers that differ between the ranks."""
    rows = whole[str(number)][:, :, :2]
    refills = (rows[1:] != rows[:-1]).any(2)
    assert (refills[:, : BATCH // 2].sum(1) != refills[:, BATCH // 2 :].sum(1)).any()


@pytest.fixture(scope="module")
def alone():
    """All legs by one process."""
    return [drawn(started(config, 0, 1), 4 * LEG, model()) for config in RESUMED]


def continued(number, states):
    """Go on with one rank."""
    process = started(RESUMED[number], 0, 1)
    process.load_state_dict(dealt_anew(states, 0, 1))
    return drawn(process, LEG, model())


each = pytest.mark.parametrize("number", range(len(RESUMED)), ids=lambda number: name_of(RESUMED[number]))


@each
def test_a_run_handed_from_one_rank_to_two_to_four_to_one_is_that_of_one(folder, alone, number):
    legs = [joined(folder, "passed", world_size)[str(number)] for world_size in (1, *WORLDS)]
    legs.append(continued(number, left(folder, "passed", number, 4)))
    assert torch.equal(torch.cat(legs), alone[number])


@each
def test_so_is_a_run_whose_ranks_had_rows_of_different_lengths(folder, alone, number):
    """Nor have their rows as many blocks then."""
    states = left(folder, "fresh", number, 4)
    assert torch.equal(continued(number, states), alone[number][LEG : 2 * LEG])


def test_the_rows_of_some_ranks_were_shorter_than_those_of_others(folder):
    """Guards the test above."""
    for name, configs in (("revealed", RESUMED), ("stage", [c for c in RESUMED if isinstance(c, Blockwise)])):
        widths = [
            {state["pool"][name].shape[1] for state in left(folder, "fresh", RESUMED.index(config), 4)}
            for config in configs
        ]
        assert max(len(width) for width in widths) > 1


def test_a_pool_that_does_not_divide_into_the_ranks_is_refused(folder):
    states = left(folder, "fresh", 0, 4)
    with pytest.raises(ValueError, match="8 rows does not divide into 3 ranks"):
        dealt_anew(states, 0, 3)
    independent = IndependentMasking().start(RowStream(rows()), BATCH).state_dict()
    assert dealt_anew([independent] * 2, 2, 3) == independent  # nothing of it belongs to a rank


@pytest.mark.parametrize("micro_batch", [1, 4])
def test_the_size_of_the_forwards_changes_nothing(whole, micro_batch):
    found = history(0, 1, micro_batch, [PAPER[1], POOLED[3]])
    assert all(torch.equal(found[name], whole[name]) for name in found)


def test_refills_over_ranks_that_are_not_connected_raise(stream_of, random_scores):
    process = ProgressiveUnmasking(stages=4).start(stream_of([5] * 4, rank=1, world_size=2), 4)
    batch = process.draw()
    with pytest.raises(RuntimeError, match=r"torch\.distributed"):
        process.observe(random_scores(batch.masked.shape, torch.Generator().manual_seed(0)))
