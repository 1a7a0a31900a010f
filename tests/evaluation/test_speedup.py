"""Comparisons from saved metrics alone, on small curves written by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from unmask.evaluation.speedup import TARGETS, Arm, TargetRow, targets_reached


def _write(folder: Path, curve: list[tuple[int, float, float]]) -> Path:
    """A run's folder with evaluations (step, seconds, solved) and a training line between."""
    folder.mkdir()
    lines = []
    for step, seconds, solved in curve:
        point = {"kind": "evaluation", "step": step, "seconds": seconds, "tokens": step * 100, "solved": solved}
        lines += [{"kind": "train", "step": step, "loss": 1.0}, point | {"interval": [solved / 2, 1.0]}]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "config.json").write_text('{"training": {"steps": 40}}')
    return folder


@pytest.fixture
def arms(tmp_path):
    slow = _write(tmp_path / "slow", [(0, 0.0, 0.0), (10, 1.0, 0.3), (20, 2.0, 0.5), (30, 3.0, 0.49), (40, 4.0, 0.7)])
    fast = _write(tmp_path / "fast", [(0, 0.0, 0.0), (10, 2.0, 0.5), (20, 4.0, 0.8), (40, 8.0, 0.96)])
    return [Arm.load(slow), Arm.load(str(fast))]


def test_arm_holds_its_evaluations_and_config(arms):
    slow, fast = arms
    assert (slow.name, fast.name) == ("slow", "fast")
    assert [point["step"] for point in slow.curve] == [0, 10, 20, 30, 40]
    assert fast.final["solved"] == 0.96
    assert slow.config == {"training": {"steps": 40}}
    assert slow.tokens_per_second == pytest.approx(4000 / 4.0)


@pytest.mark.parametrize(
    ("target", "step"), [(0.0, 0), (0.25, 10), (0.3, 10), (0.31, 20), (0.5, 20), (0.6, 40), (0.7, 40), (0.71, None)]
)
def test_reached_is_the_first_evaluation_at_or_above_the_target(arms, target, step):
    point = arms[0].reached(target)
    assert (point and point["step"]) == step


def test_losses_are_compared_at_the_first_arm_s_own_levels(arms):
    def falling(arm, *nats):
        points = [point | {"nats_per_token": n} for point, n in zip(arm.curve, nats, strict=True)]
        return Arm(arm.name, [{k: v for k, v in point.items() if k != "solved"} for point in points], {})

    first, second = falling(arms[0], 3.0, 2.5, 2.0, 1.9, 1.8), falling(arms[1], 3.0, 2.0, 1.85, 1.7)
    assert not first.measure.rises
    rows = {row.target: row.steps for row in targets_reached([first, second])}
    assert rows == {2.5: (10, 10), 2.0: (20, 10), 1.9: (30, 20), 1.8: (40, 40)}
    assert list(rows) == sorted(rows, reverse=True)


def test_evaluations_without_a_known_measure_are_refused(arms):
    with pytest.raises(ValueError, match="have none of solved, nats_per_token"):
        _ = Arm("x", [{"step": 0, "tokens": 1}], {}).measure


def test_targets_compare_steps_and_seconds(arms):
    rows = {row.target: row for row in targets_reached(arms)}
    assert list(rows) == [0.25, 0.5, 0.7, 0.8, 0.9, 0.95]
    assert (rows[0.25].steps, rows[0.25].seconds) == ((10, 10), (1.0, 2.0))
    assert rows[0.5].steps == (20, 10)
    assert rows[0.8].steps == (None, 20)
    assert set(rows) < set(TARGETS)  # 0.98 was reached by none


def test_ratio_is_the_first_arms_cost_over_the_others(arms):
    rows = {row.target: row for row in targets_reached(arms)}
    assert rows[0.5].ratio(1) == rows[0.5].ratio(1, "steps") == 2.0
    assert rows[0.5].ratio(1, "seconds") == 1.0
    assert rows[0.25].ratio(1, "seconds") == 0.5  # slower, and said so
    assert rows[0.5].ratio(0) == 1.0
    assert rows[0.8].ratio(1) is None
    assert TargetRow(0.5, (0, 10), (0.0, 1.0)).ratio(1) is None


def test_targets_reached_before_training_by_all_are_no_comparison(tmp_path):
    ready = [Arm.load(_write(tmp_path / name, [(0, 0.0, 0.6), (10, 1.0, 0.75)])) for name in ("a", "b")]
    assert [row.target for row in targets_reached(ready)] == [0.7]


def test_order_of_arms_turns_the_ratio_round(arms):
    forth = {row.target: row.ratio(1) for row in targets_reached(arms)}
    back = {row.target: row.ratio(1) for row in targets_reached(arms[::-1])}
    for target, ratio in forth.items():
        assert (ratio is None) == (back[target] is None)
        assert ratio is None or ratio * back[target] == pytest.approx(1)


def test_folders_without_a_curve_are_named(tmp_path):
    with pytest.raises(ValueError, match="holds no run"):
        Arm.load(tmp_path)
    with pytest.raises(ValueError, match="has no evaluation in its metrics"):
        Arm.load(_write(tmp_path / "empty", []))
