"""The pool: which chains train at a step, what new rows cost, what is saved of it, and where it lives."""

import copy
import hashlib
import json
import re

import datasets
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unmask import Blockwise, Clipped, ProgressiveUnmasking, RowStream
from unmask.data.streamed import StreamedRows
from unmask.store.checkpoint import load_state, save_state

LENGTHS = [5, 17, 3, 30, 9, 22, 1, 12]
POOLED = [
    ProgressiveUnmasking(stages=4, pool=12),
    ProgressiveUnmasking(stages=((0, 3), (5, 7)), threshold=0.6, policy="margin", time=Clipped(0.3, 1.0), pool=16),
    Blockwise(ProgressiveUnmasking(stages=3, threshold=0.5, pool=12), ((0, 7), (4, 3))),
]


@pytest.fixture(scope="module")
def start(stream_of):
    def make(config, batch_size=4, lengths=LENGTHS, seed=0, rank=0, world_size=1, **options):
        stream = stream_of(lengths, seed=seed, rank=rank, world_size=world_size)
        return config.start(stream, batch_size, seed, **options)

    return make


@pytest.fixture(scope="module")
def drive(random_scores):
    """Do some steps; yields the places that train, and the batch, before its scores are observed."""

    def run(process, steps, seed=0):
        generator = torch.Generator().manual_seed(seed)
        for _ in range(steps):
            turn, batch = process.turn, process.draw()
            yield turn, batch
            process.observe(random_scores(batch.masked.shape, generator))

    return run


def orders(process, sweeps):
    """[sweeps, slots, turns] in which each slot deals its chains, by number within the slot."""
    found = []
    for step in range(sweeps * process.turns):
        process.step = step
        found.append(process.turn)
    turn = torch.stack(found).view(sweeps, process.turns, process.slots).transpose(1, 2)
    own = turn - process.turns * torch.arange(process.slots)[:, None]
    assert ((own >= 0) & (own < process.turns)).all()  # every slot has chains of its own
    return own


# --- who trains ---


@given(
    batch=st.integers(1, 7), turns=st.integers(1, 9), ranks=st.integers(1, 3), seed=st.integers(0, 999),
)  # fmt: skip
@settings(max_examples=20, deadline=None)
def test_every_chain_trains_once_in_a_sweep_and_the_order_belongs_to_seed_sweep_and_slot(
    start, batch, turns, ranks, seed
):
    size = batch * ranks
    config, other = (ProgressiveUnmasking(stages=k, pool=turns * n) for k, n in ((3, size), (8, size + ranks)))
    one = orders(start(config, size, seed=seed), 3)
    assert (one.sort(2).values == torch.arange(turns)).all()
    parts = [orders(start(config, size, seed=seed, rank=r, world_size=ranks), 3) for r in range(ranks)]
    assert torch.equal(torch.cat(parts, 1), one)
    more = orders(start(other, size + ranks, lengths=[4, 4], seed=seed), 3)
    assert torch.equal(more[:, :size], one)  # other stages, data and numbers of slots do not touch it


def test_orders_differ_between_sweeps_slots_and_seeds_and_favour_no_place(start):
    process = start(ProgressiveUnmasking(stages=2, pool=24), 4)
    found = orders(process, 300)  # of six chains in four slots
    assert len(found.flatten(0, 1).unique(dim=0)) > 550  # of 720, in 1,200 draws
    assert (found[0] != found[0, :1]).any(1)[1:].all()
    assert not torch.equal(found[:2], orders(start(ProgressiveUnmasking(stages=2, pool=24), 4, seed=1), 2))
    counts = torch.stack([(found == chain).sum((0, 1)) for chain in range(6)]).double()  # [chain, turn]
    assert float(((counts - 200) ** 2 / 200).sum()) < 25 + 5 * 50**0.5
    # What is last in one sweep may be first in the next: that is chance alone.
    again = (found[1:, :, 0] == found[:-1, :, -1]).double().mean()
    assert abs(float(again) - 1 / 6) < 5 * (5 / 36 / 1196) ** 0.5


@pytest.mark.parametrize("config", POOLED, ids=str)
def test_what_is_drawn_are_the_chains_whose_turn_it_is_and_no_other_moves(start, drive, config):
    process, visits, before, size = start(config), [], None, 0
    for turn, batch in drive(process, 3 * process.turns):
        assert torch.equal(process.clean[turn].row, batch.clean.row)
        pairs = list(zip(batch.clean.row.tolist(), batch.clean.draw.tolist(), strict=True))
        assert len(set(pairs)) == len(turn)
        if before is not None and process.blocks.size == size:
            waiting = torch.ones(process.pool, dtype=torch.bool)
            waiting[visits[-1]] = False
            row, draw, revealed = before
            assert torch.equal(process.clean.row[waiting], row[waiting])
            assert torch.equal(process.clean.draw[waiting], draw[waiting])
            assert torch.equal(process.revealed[waiting], revealed[waiting])
        visits.append(turn)
        size = process.blocks.size
        before = process.clean.row.clone(), process.clean.draw.clone(), process.revealed.clone()
    for sweep in torch.stack(visits).view(3, -1):
        assert sweep.sort().values.tolist() == list(range(process.pool))


@given(batch=st.integers(1, 24), turns=st.integers(1, 6), stages=st.integers(1, 30), seed=st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_each_batch_of_the_first_sweep_has_one_chain_of_each_stratum_of_the_stages(start, batch, turns, stages, seed):
    process = start(ProgressiveUnmasking(stages=stages, pool=batch * turns), batch, lengths=[70] * 5, seed=seed)
    slot = torch.arange(batch)
    first, last = slot * stages // batch, -(-(slot + 1) * stages // batch) - 1
    for step in range(turns):
        process.step = step
        stage = process.stage[process.turn, 0]
        assert ((stage >= first) & (stage <= last)).all()
        counts = torch.bincount(stage, minlength=stages)
        if batch % stages == 0:
            assert (counts == batch // stages).all()
        elif batch > stages:  # a stage may gain or lose at both of its ends
            assert ((counts - batch / stages).abs() < 2).all()
        else:
            assert int(counts.max()) <= 2
    pool = torch.bincount(process.stage[:, 0], minlength=stages)
    assert int(pool.max() - pool.min()) <= 1


# --- what it costs ---


@given(batch=st.integers(1, 6), turns=st.integers(1, 5), stages=st.integers(1, 9), sweeps=st.integers(1, 12))
@settings(max_examples=15, deadline=None)
def test_new_rows_come_as_chains_end_and_no_more_than_the_batch_a_step(start, drive, batch, turns, stages, sweeps):
    """Without a threshold, a chain that entered at stage s has ended every K visits from its (K - s)-th on."""
    config = ProgressiveUnmasking(stages=stages, pool=batch * turns)
    process = start(config, batch, lengths=[12, 20, 15])
    first, refills = process.stage[:, 0].clone(), []
    for _ in drive(process, sweeps * turns):
        refills.append(process.metrics.get("refills", 0.0))
    refills.append(process.metrics["refills"])
    assert max(refills) <= batch
    assert sum(refills) == int(((sweeps + first) // stages).sum())
    assert process.rows.position == process.pool + sum(refills)
    assert abs(sum(refills) - process.pool * sweeps / stages) <= process.pool * (stages - 1) / stages


@given(batch=st.integers(1, 600), rows=st.integers(1, 200_000))
def test_the_pool_of_our_choice_is_32_batches_but_no_more_than_the_data(batch, rows):
    size = ProgressiveUnmasking().pool_size(batch, rows)
    assert size % batch == 0
    assert batch <= size <= 32 * batch
    assert size <= rows or size == batch
    assert size + batch > min(rows, 32 * batch)  # no larger pool would do
    assert ProgressiveUnmasking(pool="batch").pool_size(batch, rows) == batch
    assert ProgressiveUnmasking(pool=3 * batch).pool_size(batch, rows) == 3 * batch  # rows may come more than once


@given(batch=st.integers(2, 50), pool=st.integers(1, 500))
def test_a_pool_that_is_no_multiple_of_the_batch_is_refused_with_one_that_is(batch, pool):
    if pool % batch == 0:
        return
    with pytest.raises(ValueError, match=f"pool {pool} is no multiple of batch_size {batch}") as refused:
        ProgressiveUnmasking(pool=pool).pool_size(batch, 10)
    suggested = int(re.search(r"use (\d+)", str(refused.value)).group(1))
    assert ProgressiveUnmasking(pool=suggested).pool_size(batch, 10) == suggested
    assert abs(suggested - pool) < batch


def test_a_process_has_the_pool_that_its_config_says(start):
    assert start(ProgressiveUnmasking(), 2, lengths=[4] * 9).pool == 8
    process = start(ProgressiveUnmasking(pool=20), 4, rank=1, world_size=2)
    assert (process.pool, process.turns, len(process.clean), len(process.turn)) == (20, 5, 10, 2)
    with pytest.raises(ValueError, match=r"no multiple .* use 8"):
        start(ProgressiveUnmasking(pool=9), 4)


# --- the paper's process ---


BEFORE_POOLS = [  # recorded from the process before pools existed, commit 8460382
    (ProgressiveUnmasking(stages=8, pool="batch"), "5c0a547c40eccaf1"),
    (ProgressiveUnmasking(stages=3, threshold=0.6, policy="margin", pool="batch"), "7adade46d1a642da"),
    (ProgressiveUnmasking(stages=20, policy="random", pool="batch"), "8233bde27a644ebf"),
    (
        ProgressiveUnmasking(stages=((0, 3), (5, 9), (11, 4)), policy="entropy", threshold=0.5, pool="batch"),
        "eeead60ecccb2c39",
    ),
    (ProgressiveUnmasking(stages=5, threshold=0.3, pool="batch"), "3a8710c65520c1a5"),
]


@pytest.mark.parametrize(("config", "digest"), BEFORE_POOLS, ids=lambda value: str(value)[:40])
def test_a_pool_of_the_batch_is_the_process_of_before_bit_for_bit(stream_of, random_scores, config, digest):
    process = config.start(stream_of(LENGTHS, seed=3, gaps=True), 6, 3)
    generator, found = torch.Generator().manual_seed(0), hashlib.sha256()
    for _ in range(20):
        batch = process.draw()
        for row, draw, masked, real in zip(
            batch.clean.row.tolist(), batch.clean.draw.tolist(), batch.masked, batch.clean.attention, strict=True
        ):
            found.update(json.dumps([row, draw, masked[real].int().tolist()]).encode())
        scores = random_scores((6, 50), generator)
        process.observe(scores.map(lambda x, length=batch.clean.length: x[:, :length]))
    assert found.hexdigest()[:16] == digest


# --- what is saved of it ---


@pytest.mark.parametrize("done", [0, 2, 4, 7])
@pytest.mark.parametrize("config", POOLED, ids=str)
def test_a_run_resumed_from_a_file_within_a_sweep_goes_on_bit_for_bit(start, drive, same, tmp_path, config, done):
    original = start(config)
    list(drive(original, done))
    save_state(tmp_path / "state", original.state_dict())
    resumed = start(config)
    list(drive(resumed, 3, seed=9))
    resumed.load_state_dict(load_state(tmp_path / "state"))
    steps = 2 * original.turns + 1
    for (turn, a), (other, b) in zip(drive(original, steps), drive(resumed, steps), strict=True):
        assert torch.equal(turn, other)
        assert same(a, b)
    assert original.metrics == resumed.metrics


def test_a_sweep_goes_on_where_it_was(start, drive):
    """The control: with the steps counted from anew, others would train."""
    process = start(POOLED[0])
    list(drive(process, 2))
    state = process.state_dict()
    following = process.turn
    process.load_state_dict(state | {"step": 0})
    assert not torch.equal(process.turn, following)


@pytest.mark.parametrize("config", POOLED, ids=str)
def test_neither_a_saved_nor_a_loaded_state_moves_on_with_the_run(start, drive, config):
    process = start(config)
    list(drive(process, 2))
    saved = process.state_dict()
    frozen = copy.deepcopy(saved)
    list(drive(process, 12))
    other = start(config)
    other.load_state_dict(saved)
    list(drive(other, 12))
    assert saved["rows"] == frozen["rows"]
    assert saved["step"] == frozen["step"]
    for name, value in frozen["pool"].items():
        assert torch.equal(saved["pool"][name], value), name


@pytest.mark.parametrize("size", [None, 8, 1])
def test_a_pool_of_4096_rows_of_512_tokens_is_saved_in_less_than_25_megabytes(tmp_path, size):
    tokens = np.arange(512 * 512).reshape(512, 512)
    data = datasets.Dataset.from_dict({"tokens": tokens, "maskable": np.ones((512, 512), dtype=bool)})
    config = ProgressiveUnmasking(pool=4096)
    process = (config if size is None else Blockwise(config, size)).start(RowStream(data), 32)
    save_state(tmp_path / "state", process.state_dict())
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) < 25e6


def test_a_pool_of_streamed_rows_with_all_columns_is_as_small_and_comes_back(tmp_path):
    place = np.broadcast_to(np.arange(512), (512, 512))
    rows = {"tokens": np.arange(512 * 512).reshape(512, 512), "maskable": np.ones((512, 512), dtype=bool)}
    data = datasets.Dataset.from_dict(rows | {"guide": place * 1.0, "document": place // 100})
    process = ProgressiveUnmasking(pool=4096).start(StreamedRows(data.to_iterable_dataset()), 32)
    save_state(tmp_path / "state", process.state_dict())
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) < 25e6
    other = ProgressiveUnmasking(pool=4096).start(StreamedRows(data.to_iterable_dataset()), 32)
    other.load_state_dict(load_state(tmp_path / "state"))
    for name in ("tokens", "maskable", "attention", "guide", "document"):
        before, after = (getattr(one.clean, name) for one in (process, other))
        assert before.dtype == after.dtype
        assert torch.equal(before, after), name


@pytest.mark.parametrize("value", [0.1, 1e300, float("nan"), -(2.0**40)])
def test_a_guide_that_smaller_numbers_do_not_hold_is_kept_as_it_is(value):
    rows = datasets.Dataset.from_dict({"tokens": [[1, 2]], "maskable": [[True, True]], "guide": [[value, 1.0]]})
    process = ProgressiveUnmasking(stages=2).start(StreamedRows(rows.to_iterable_dataset()), 1)
    kept = process.state_dict()["pool"]["kept_guide"].double()
    assert torch.equal(kept.nan_to_num(7.0), process.clean.guide.nan_to_num(7.0))


def changed(dataset, row, tokens=None, maskable=None):
    rows = {"tokens": list(dataset["tokens"]), "maskable": list(dataset["maskable"])}
    rows["tokens"][row] = rows["tokens"][row] if tokens is None else tokens(rows["tokens"][row])
    rows["maskable"][row] = rows["maskable"][row] if maskable is None else maskable(rows["maskable"][row])
    return RowStream(datasets.Dataset.from_dict(rows))


@pytest.mark.parametrize(
    "change",
    [
        {"tokens": lambda row: [*row[:-1], row[-1] + 1]},
        {"tokens": lambda row: [row[1], row[0], *row[2:]]},
        {"maskable": lambda row: [*row[:-2], False, row[-1]]},
        {"tokens": lambda row: row[:-1], "maskable": lambda row: row[:-1]},
        {"tokens": lambda row: [*row, 7], "maskable": lambda row: [*row, True]},
        {"tokens": lambda row: [*row, *range(30)], "maskable": lambda row: [*row, *[True] * 30]},
    ],
    ids=["token", "order", "clue", "shorter", "longer", "longer than any"],
)
def test_a_pool_whose_rows_have_changed_is_refused(dataset_of, change):
    data, config = dataset_of([9, 14, 6, 8, 10, 7]), ProgressiveUnmasking(stages=3, pool=4)
    state = config.start(RowStream(data), 2).state_dict()
    held = state["pool"]["row"].tolist()
    absent = next(row for row in range(6) if row not in held)
    resumed = config.start(changed(data, absent, **change), 2)
    resumed.load_state_dict(_unnoticed(state, resumed))  # nothing of it is in the pool
    for row in held:
        resumed = config.start(changed(data, row, **change), 2)
        with pytest.raises(ValueError, match="others or in another order"):
            resumed.load_state_dict(state)
        with pytest.raises(ValueError, match="it has changed since"):
            resumed.load_state_dict(_unnoticed(state, resumed))


def _unnoticed(state, process):
    """The state, as if the stream's fingerprint, which is of some rows alone, did not tell its rows from these."""
    return {**state, "rows": state["rows"] | {"sample": process.rows.state_dict()["sample"]}}


# --- where it lives ---


@pytest.mark.parametrize("config", [*POOLED, ProgressiveUnmasking(pool="batch")], ids=str)
def test_batches_are_on_the_device_asked_for_and_all_else_on_the_cpu(start, drive, config):
    """On the meta device nothing can be read, so nothing that the process decides hangs on what it handed out."""
    there, here = start(config, device="meta"), start(config)
    steps = 2 * here.turns + 1
    for (_, batch), (_, expected) in zip(drive(there, steps), drive(here, steps), strict=True):
        assert torch.equal(batch.rate, expected.rate)  # float64 stays on the host, see `Tensors.to`
        found = [batch.masked, *(v for v in vars(batch.clean).values() if v is not None)]
        found += [] if batch.block is None else [batch.block]
        assert {tensor.device.type for tensor in found} == {"meta"}
        assert batch.masked.shape == expected.masked.shape
    for name, value in here.state_dict()["pool"].items():
        assert torch.equal(there.state_dict()["pool"][name], value)


@pytest.mark.parametrize("config", POOLED, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_scores_are_taken_in_whatever_precision_they_come(start, random_scores, same, config, dtype):
    processes = [start(config) for _ in range(2)]
    generator = torch.Generator().manual_seed(0)
    for _ in range(2 * processes[0].turns):
        batches = [process.draw() for process in processes]
        assert same(*batches)
        scores = random_scores(batches[0].masked.shape, generator).map(lambda score: score.to(dtype))
        processes[0].observe(scores)
        processes[1].observe(scores.map(torch.Tensor.double))
