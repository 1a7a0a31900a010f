import datasets
import pytest

from unmask.data.checks import check_rows
from unmask.parts import RowsOnDisk


def columns(tokens, maskable):
    return datasets.Dataset.from_dict({"tokens": tokens, "maskable": maskable})


WRONG = {
    "tokens": [None, [1, None], [None, None], [1.5, 2.0]],
    "maskable": [None, [True, None], [None, None]],
}


@pytest.mark.parametrize("other", [[1], [1, 2]], ids=["of other lengths", "of one length"])
@pytest.mark.parametrize(("column", "wrong"), [(name, row) for name, rows in WRONG.items() for row in rows])
def test_rows_with_nulls_and_fractions_are_named(column, wrong, other, tmp_path):
    """As tables have them whose cells are empty; numpy makes of these what is no number, no length, or False."""
    columns = {"tokens": [other] * 7, "maskable": [[True] * len(other)] * 7}
    columns[column] = [*columns[column][:5], wrong, *columns[column][6:]]
    columns["tokens"] = [[float(i) for i in row] if wrong == [1.5, 2.0] and row else row for row in columns["tokens"]]
    data = datasets.Dataset.from_dict(columns)
    for chunk in (1, 3, 100):
        with pytest.raises(ValueError, match=f"^row 5 of the data set holds .* in `{column}`"):
            check_rows(data, 9, 10, chunk=chunk)
    data.to_parquet(tmp_path / "rows.parquet")
    if column == "tokens" and wrong != [1.5, 2.0]:
        with pytest.raises(ValueError, match=r"^row 5 of .*rows\.parquet holds .* in `tokens`"):
            RowsOnDisk(str(tmp_path / "rows.parquet"), divided=True).load()


def test_check_rows_finds_the_shortest_and_the_longest_of_the_rows_chosen_not_of_the_table_behind_them():
    lengths = [3, 9, 5, 7] * 6
    data = datasets.Dataset.from_dict(
        {"tokens": [[1] * n for n in lengths], "maskable": [[True] * n for n in lengths]}
    )
    for chunk in (1, 5, 100):
        assert check_rows(data, 9, 10, chunk=chunk) == (3, 9)
        assert check_rows(data.select([0, 2, 4, 14]), 9, 10, chunk=chunk) == (3, 5)
        others = data.filter(lambda row: len(row["tokens"]) != 9).shuffle(seed=0)
        assert check_rows(others, 9, 10, chunk=chunk) == (3, 7)


def test_check_rows_names_the_first_row_that_cannot_be_trained_on(dataset_of):
    good = columns([[7, 1, 2], [7, 3]], [[False, True, True], [False, True]])
    check_rows(good, mask_token_id=9, vocab_size=10, shifted=True)
    cases = {
        "row 1 .* mask token 3": (good, {"mask_token_id": 3, "vocab_size": 10}),
        "row 0 .* vocabulary of 7": (good, {"mask_token_id": 6, "vocab_size": 7}),
        "row 1 .* no maskable": (columns([[1], [2, 3]], [[True], [False, False]]), {}),
        "row 1 .* `maskable` of different length": (columns([[7, 1, 2], [7, 3]], [[False, True, True], [True]]), {}),
        "row 0 .* `guide` of different length": (good.add_column("guide", [[0.5], [0.5, 0.5]]), {}),
        "row 1 .* `document` of different length": (
            good.add_column("document", [[0, 0, 0], [0, 0, 1]]),
            {"shifted": True},
        ),
        "row 1 .* first position": (columns([[7, 1], [2, 3]], [[False, True], [True, False]]), {"shifted": True}),
    }
    for message, (dataset, options) in cases.items():
        for chunk in (1, 10):
            with pytest.raises(ValueError, match=message):
                check_rows(dataset, **{"mask_token_id": 9, "vocab_size": 10, **options}, chunk=chunk)
