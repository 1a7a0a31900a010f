"""The decoding of one row, kept to be watched: it is that of `generate`, and says what each step did."""

from __future__ import annotations

import pytest
import torch
from datasets import Dataset

from unmask.data.sudoku import MASK_TOKEN
from unmask.data.tokenizers import bpe_tokenizer, character_tokenizer
from unmask.evaluation.tasks import AdditionTask, SudokuTask
from unmask.evaluation.trace import Trace, example_of, read_trace, trace_of
from unmask.parts import HeldOutLikelihood
from unmask.sampling import Decoding, generate


def _replayed(trace: Trace) -> list[list[str | None]]:
    """What stands on the board after each step."""
    shown, boards = list(trace.start), []
    for step in trace.steps:
        for position, word in step:
            shown[position] = word
        boards.append(list(shown))
    return boards


@pytest.mark.parametrize("decoding", [Decoding(), Decoding(tokens_per_step=3, remasking=0.4)])
def test_steps_replayed_end_where_decoding_does(build, rows, decoding):
    example, model, boards = example_of(rows, decoding), build(std=0.5), []
    trace = trace_of(model, example, seed=3)
    masked = []
    made = generate(
        model,
        example.row,
        decoding,
        seed=3,
        on_step=lambda step, tokens, hidden: (boards.append(tokens[0].tolist()), masked.append(hidden[0].tolist())),
    )
    assert [[None if token == MASK_TOKEN else str(token) for token in board] for board in boards] == _replayed(trace)
    assert _replayed(trace)[-1] == [str(token) for token in made.tokens[0].tolist()]
    assert [word is None for word in trace.start] == example.row.maskable[0].tolist()
    again = any(word is None for step in trace.steps for _, word in step)
    assert again == (decoding.remasking > 0)


def test_the_row_with_the_most_to_unmask_is_shown(rows):
    shown = example_of(rows, Decoding()).row
    assert int(shown.maskable.sum()) == max(map(sum, rows["maskable"]))
    with pytest.raises(ValueError, match="there is no row to show"):
        example_of(rows.select([]), Decoding())


def test_a_row_without_anything_given_shows_its_first_quarter():
    free = Dataset.from_dict({"tokens": [list(range(8))], "maskable": [[True] * 8]})
    assert HeldOutLikelihood().example(free).row.maskable[0].tolist() == [False] * 2 + [True] * 6


def test_tasks_write_their_tokens_as_people_do():
    board = SudokuTask(form="pair", clues=(40, 45), puzzles=2, final_puzzles=2).example()
    assert (board.columns, board.first) == (9, 81)
    addition = AdditionTask(digits=2, puzzles=2, final_puzzles=2)
    row = addition.example().row.tokens[0].tolist()
    written = "".join(map(addition.word, row))
    first, rest = written.split("+")
    second, total = rest.split("=")
    assert int(first) + int(second) == int(total)


def test_words_read_as_they_do_within_a_text():
    texts = ["the cat sat on the mat"] * 8
    for tokenizer in (character_tokenizer(texts), bpe_tokenizer(texts, 270)):
        tokens = tokenizer.encode(texts[0]).tolist()
        assert "".join(map(tokenizer.word, tokens)) == texts[0]
        assert tokenizer.word(tokenizer.mask_token_id) == tokenizer.mask_token


def test_a_trace_is_read_as_it_was_written(tmp_path, build, rows):
    assert read_trace(tmp_path) is None
    trace = trace_of(build(), example_of(rows, Decoding(tokens_per_step=20), columns=9))
    trace.save(tmp_path)
    saved = read_trace(tmp_path)
    assert saved is not None
    assert saved["start"] == trace.start
    assert [[tuple(change) for change in step] for step in saved["steps"]] == trace.steps
    assert (saved["truth"], saved["columns"]) == (trace.truth, 9)
    assert torch.is_grad_enabled()
