"""Data of the user's own: what is chosen from them, what is refused, and that nothing but them becomes data."""

from __future__ import annotations

import gzip
import json
import random
import warnings
from dataclasses import replace

import pytest
from datasets import Dataset
from transformers import PreTrainedTokenizerFast

from unmask.cli.options import named_recipe
from unmask.config import from_json, to_json
from unmask.data import character_tokenizer, load_documents
from unmask.data.documents import JSON_LINES, belongs
from unmask.data.passages import passages
from unmask.data.sequences import found_alphabet, read_sequences
from unmask.evaluation.tasks import same_answer
from unmask.evaluation.tasks.text import read_rows
from unmask.parts.sizes import fitting_length, fitting_model, fitting_steps
from unmask.recipes import PromptData, RowsOnDisk, SequenceData, TextData, TextModel, rows, sequences, sft, text

PROTEIN = "ACDEFGHIKLMNPQRSTVWY"


def strings(alphabet, count, seed=0, least=20, most=60):
    chance = random.Random(seed)
    return ["".join(chance.choices(alphabet, k=chance.randint(least, most))) for _ in range(count)]


@pytest.fixture
def qa(tmp_path):
    """Questions with numbers as answers."""
    path = tmp_path / "qa.csv"
    lines = [f"{i % 9} plus {i},{i % 9 + i}" for i in range(120)]
    path.write_text("question,answer\n" + "\n".join(lines) + "\n")
    return path


@pytest.fixture
def fasta(tmp_path):
    path = tmp_path / "proteins.fasta"
    path.write_text("".join(f">sp|P{i} a name=b\n{s[:15]}\n{s[15:]}\n" for i, s in enumerate(strings(PROTEIN, 80))))
    return path


SPLITS = "train", "validation"


def prompts(path, **fields):
    return PromptData(str(path), prompt="question", response="answer", **fields)


@pytest.mark.parametrize("ending", JSON_LINES)
def test_json_lines_are_read_by_either_name_everywhere(ending, tmp_path, monkeypatch):
    """As texts, as rows and as questions, and the advice for a file is that for questions."""
    monkeypatch.chdir(tmp_path)
    name = f"a{ending}"
    lines = [{"text": f"t{i}", "tokens": [i, 1], "maskable": [False, True]} for i in range(6)]
    (tmp_path / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert len(load_documents(name, "all")) == 6
    assert RowsOnDisk(name, divided=True).load()[0]["maskable"] == [False, True]
    assert read_rows(name, None, "test", ("text",), 2)["text"][:] == ["t0", "t1"]
    with pytest.raises(ValueError, match=f"sft --data.source {name}"):
        named_recipe("train", [name])


# --- what is chosen ---


def test_length_covers_all_rows_or_all_but_a_few():
    assert fitting_length([5, 9, 20], most=256) == 24
    assert fitting_length([*range(1, 100), 1000], most=256) == 96  # 95 of 100 rows fit
    assert fitting_length([1000] * 50, most=256) == 256


def test_sizes_follow_the_documented_rule():
    small, large = fitting_model(30, 29, 64, 10_000), fitting_model(30, 29, 64, 10_000_000)
    assert (small.layers, small.width, small.positions, small.mask) == (4, 128, 64, 29)
    assert (large.layers, large.width) == (6, 256)
    assert fitting_steps(10_000, 128, small)["batch_size"] == 16
    assert [fitting_steps(n, 128, small)["steps"] for n in (100, 1600, 10**6)] == [500, 1000, 2000]
    own = fitting_steps(100, 128, small, steps=40, batch_size=4)
    assert (own["steps"], own["batch_size"], own["warmup_steps"], own["evaluate_every"]) == (40, 4, 2, 4)


def test_prompts_choose_and_save_their_numbers(qa):
    run = sft("puma", prompts(qa))
    assert run == sft("puma", prompts(qa))
    assert (run.data.vocabulary, run.data.length) == ("characters", 16)
    assert (run.model.vocab_size, run.model.positions) == (run.data.tokenizer().vocab_size, 16)
    assert (run.training.steps, run.training.batch_size) == (500, 64)
    assert from_json(json.loads(json.dumps(to_json(run)))) == run
    own = sft("puma", prompts(qa, length=32, vocabulary="bpe", vocab_size=300), steps=7)
    assert (own.data.length, own.model.positions, own.training.steps) == (32, 32, 7)


def test_prompt_and_response_are_rows(qa):
    run = sft(data=prompts(qa))
    tokenizer, train, apart = run.data.tokenizer(), run.data.load(), run.data.held_out()
    texts = {tokenizer.first_text(row) for row in train["tokens"]}
    assert "1 plus 1\n2" in texts | {tokenizer.first_text(row) for row in apart["tokens"]}
    assert not texts & {tokenizer.first_text(row) for row in apart["tokens"]}
    for tokens, maskable in zip(train["tokens"], train["maskable"], strict=True):
        assert tokenizer.decode(tokens[: maskable.index(True)]).endswith("\n")


def test_numbers_of_json_lines_are_text(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(json.dumps({"q": f"{i}?", "a": i}) for i in range(80)))
    data = PromptData(str(path), prompt="Say {q} ", response="a").fitted()
    assert data.tokenizer().first_text(data.load()["tokens"][0]).startswith("Say ")


def test_few_texts_are_divided_into_passages(tmp_path):
    path = tmp_path / "book.txt"
    path.write_text(
        "\n\n".join(f"Chapter {i}. " + "The cat sat on the mat, number by number. " * 60 for i in range(40))
    )
    run = text(data=TextData(str(path), vocabulary="auto", divided="auto"))
    assert (run.data.divided, run.data.vocabulary) == ("passages", "characters")
    run.data.check()
    assert 0 < len(run.data.held_out()) < len(run.data.load())
    pieces = passages(path.read_text())
    assert max(map(len, pieces)) <= 2000
    assert "".join(" ".join(pieces).split()) == "".join(path.read_text().split())


def test_a_column_of_a_table_is_prose(tmp_path):
    path = tmp_path / "a.parquet"
    Dataset.from_dict({"body": [f"text number {i} of many" for i in range(60)]}).to_parquet(path)
    run = text(data=TextData(str(path), column="body", vocabulary="auto", divided="auto"))
    assert run.data.divided == "documents"
    with pytest.raises(ValueError, match=r"no column 'text'; it has \['body'\]"):
        text(data=TextData(str(path), vocabulary="auto", divided="auto"))


# --- sequences ---


@pytest.mark.parametrize(
    ("letters", "name"),
    [
        ("ACGT", "dna"),
        ("ACGTN", "dna"),
        ("acgt", "dna"),
        ("ACGU", "rna"),
        (PROTEIN, "protein"),
        ("CNO()=1c", "()1=CNOc"),
    ],
)
def test_alphabets_are_found(letters, name):
    assert found_alphabet(strings(letters, 50)) == name


@pytest.mark.parametrize("ending", [".csv", ".tsv", ".json", ".parquet", *JSON_LINES])
def test_sequences_of_a_table_are_one_column_whatever_its_form(ending, tmp_path):
    """JSON lines were read as lines of letters, braces and names included."""
    written = strings(PROTEIN, 80)
    table = Dataset.from_dict({"sequence": written, "y": list(range(80))}).to_pandas()
    path = tmp_path / f"p{ending}"
    if ending in (".csv", ".tsv"):
        table.to_csv(path, index=False, sep="," if ending == ".csv" else "\t")
    elif ending == ".parquet":
        table.to_parquet(path)
    else:  # as pandas writes it: no blank between name and value
        table.to_json(path, orient="records", lines=ending != ".json")
    data = SequenceData(str(path)).fitted()
    assert data.alphabet == "protein"
    assert {data.tokenizer().first_text(row) for row in data.load()["tokens"]} <= set(written)


@pytest.mark.parametrize("kind", [PromptData, TextData])
def test_an_end_of_text_that_the_tokenizer_does_not_name_is_an_option(kind, qa, tmp_path):
    """BERT has [SEP] alone: no recipe of one's own data could start from it."""
    letters = character_tokenizer([qa.read_text()])
    fast = PreTrainedTokenizerFast(tokenizer_object=letters.tokenizer, mask_token="<|mask|>", sep_token="9")
    fast.save_pretrained(tmp_path / "named")
    columns = {"column": "question"} if kind is TextData else {"prompt": "question", "response": "answer"}
    data = kind(str(qa), vocabulary=str(tmp_path / "named"), length=32, **columns)
    with pytest.raises(ValueError, match=r"no end-of-text token: .*--data\.end-token"):
        data.tokenizer()
    with pytest.raises(ValueError, match=r"has no token '\[SEP\]'"):
        replace(data, end_token="[SEP]").tokenizer()
    data = replace(data, end_token="9")
    assert data.tokenizer().eos_token_id == letters.tokenizer.token_to_id("9")
    data.tokenizer().save(tmp_path / "saved")
    assert data.with_tokenizer(tmp_path / "saved").tokenizer().eos_token_id == data.tokenizer().eos_token_id


def test_headers_never_become_data(fasta, tmp_path):
    written = strings(PROTEIN, 80)
    assert list(read_sequences(fasta)) == written
    packed = tmp_path / "p.txt.gz"
    packed.write_bytes(gzip.compress(fasta.read_bytes()))
    assert list(read_sequences(packed)) == written
    lines = tmp_path / "lines.txt"
    lines.write_text("\n".join(written))
    assert list(read_sequences(lines)) == written
    run = sequences(data=SequenceData(str(fasta)))
    assert (run.data.alphabet, run.data.too_long, run.data.length) == ("protein", "cut", 64)
    made = {
        run.data.tokenizer().first_text(row)
        for part in (run.data.load(), run.data.held_out())
        for row in part["tokens"]
    }
    assert made <= set(written)


def test_text_refuses_fasta(fasta, tmp_path):
    hidden = tmp_path / "hidden.txt"
    hidden.write_bytes(fasta.read_bytes())
    for path in (fasta, hidden):
        with pytest.raises(ValueError, match=r"is FASTA.*sequences --data.source"):
            load_documents(path, "all")
    mail = tmp_path / "mail.txt"
    mail.write_text("> you wrote\n> this and that\nand I say no\n")
    assert len(load_documents(mail, "all")) == 1


def test_long_dna_is_windowed_and_nothing_is_lost(tmp_path):
    genome = strings("ACGT", 1, least=5000, most=5000)[0]
    path = tmp_path / "genome.fa"
    path.write_text(f">chromosome\n{genome}\n")
    data = SequenceData(str(path)).fitted()
    assert (data.alphabet, data.too_long, data.length) == ("dna", "window", 256)
    counted = sum(len(data._part(str(path), part)) for part in ("train", "validation", "test"))
    assert counted == -(-5000 // 256)


def test_cut_sequences_are_counted(fasta):
    with pytest.warns(UserWarning, match=r"\d+ of \d+ texts are longer than 24 tokens and were cut.*--data\.length"):
        SequenceData(str(fasta), length=24).load()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"alphabet": "dna"}, "80 of 80 sequences .* not in the alphabet dna: 'E' 'F'"),
        ({"alphabet": "proteine"}, "unknown alphabet 'proteine'; did you mean 'protein'"),
        ({"alphabet": "protien"}, "unknown alphabet 'protien'; did you mean 'protein'"),
        ({"alphabet": "Smile"}, "unknown alphabet 'Smile'; did you mean 'smiles'"),
    ],
)
def test_letters_outside_the_alphabet_are_named(fasta, fields, message):
    with pytest.raises(ValueError, match=message):
        SequenceData(str(fasta), **fields).fitted()


@pytest.mark.parametrize("alphabet", ["ACGT", "acgt", "HP", "ab", "AUGC", "dna", "SMILES", "LMNOPQRST", PROTEIN])
def test_letters_are_no_misspelt_name(alphabet):
    assert SequenceData("a.txt", alphabet=alphabet).alphabet == alphabet


@pytest.mark.parametrize("ending", [".smi", ".SMI", ".smi.gz"])
def test_names_beside_smiles_are_not_read(ending, tmp_path):
    path = tmp_path / f"drugs{ending}"
    text = b"SMILES\tname\nCCO\tethanol\n\nc1ccccc1 benzene ring\nCC(=O)O\n"
    path.write_bytes(gzip.compress(text) if ending.endswith("gz") else text)
    assert list(read_sequences(path)) == ["CCO", "c1ccccc1", "CC(=O)O"]
    (tmp_path / "drugs.txt").write_bytes(text)
    with pytest.raises(ValueError, match=r"drugs\.txt:1 holds white space"):
        list(read_sequences(tmp_path / "drugs.txt"))


# --- rows ---


def few_rows() -> Dataset:
    """Forty rows of a vocabulary of eleven."""
    return Dataset.from_dict(
        {"tokens": [[i % 11, i % 7, i] for i in range(11)] * 4, "maskable": [[False, True, True]] * 44}
    )


def test_rows_from_disk_hold_out_some(tmp_path):
    few_rows().save_to_disk(tmp_path / "rows")
    run = rows(data=RowsOnDisk(str(tmp_path / "rows"), divided=True))
    trained, apart = (set(map(tuple, part["tokens"])) for part in (run.data.load(), run.data.held_out()))
    assert trained
    assert apart
    assert not trained & apart
    assert (run.model.vocab_size, run.model.mask, run.model.positions) == (12, 11, 3)
    with pytest.raises(ValueError, match=r"--data\.held-out-source, or hold some out with --data\.divided"):
        RowsOnDisk(str(tmp_path / "rows")).held_out()


def test_a_function_s_module_is_imported_only_where_it_is_named():
    saved = to_json(RowsOnDisk(few_rows, divided=True))
    assert saved["source"] == f"{__name__}:few_rows"
    with pytest.raises(ValueError, match=f"only if you say so: --module {__name__}"):
        from_json(saved).load()
    import sys

    assert len(from_json(saved, [sys.modules[__name__]]).load()) > 0


# --- answers ---


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [("Paris", " paris ", True), ("new  York", "New York", True), ("1,200.50", "$1200.5", True), ("7", "07.0", True),
     ("7", "seven", False), ("7 apples", "7", False), ("", "7", False), ("-3", "3", False)],
)  # fmt: skip
def test_answers_are_the_same_as_words_or_as_numbers(a, b, same):
    assert same_answer(a, b) is same


# --- what is refused ---


def test_messages_name_the_option(qa, tmp_path):
    few = tmp_path / "few.csv"
    few.write_text("question,answer\na,b\nc,d\n")
    empty = tmp_path / "empty.csv"
    empty.write_text("")
    for data, message in (
        (prompts(few), r"is held out.*--data\.held-out-source"),
        (prompts(empty), r"empty\.csv is empty"),
        (
            PromptData(str(qa), prompt="question", response="reply"),
            r"no column 'reply'; it has \['question', 'answer'\]\. Name your own by prompt \(--data\.prompt\) and",
        ),
        (PromptData(str(qa), prompt="question", response="anser"), r"did you mean 'answer'\? Name your own"),
    ):
        with pytest.raises(ValueError, match=message):
            sft(data=data)
    with pytest.raises(ValueError, match=r"Name your own by column \(--data\.column\)"):
        text(data=TextData(str(qa), column="words", vocabulary="auto", divided="auto"))
    with pytest.raises(ValueError, match=r"Name your own by column \(--data\.column\)"):
        sequences(data=SequenceData(str(qa), column="protein"))
    one = tmp_path / "one.csv"  # one of its rows is held out, and an interval needs two
    learnt, apart = ([q for q in map(str, range(99)) if belongs({"question": q}, s, "question")] for s in SPLITS)
    one.write_text("question,answer\n" + "".join(f"{q},b\n" for q in (*learnt[:9], apart[0])))
    with pytest.raises(ValueError, match=r"1 document of .*one\.csv is held out, and 2 must be"):
        sft(data=prompts(one))
    run = sft(data=prompts(qa))
    for changed, message in (
        (replace(run, model=replace(run.model, positions=8)), r"--data\.length 8, or --model\.positions 16"),
        (replace(run, model=replace(run.model, vocab_size=9)), r"--model\.vocab-size"),
        (sft(), r"no data: name them as source \(--data\.source FILE\)"),
    ):
        with pytest.raises(ValueError, match=message):
            changed.check(tmp_path / "run")


@pytest.mark.parametrize("part", SPLITS)
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("token", "said"), [(-1, "holds a token below 0"), (99, "holds a token outside the vocabulary of 12")]
)
def test_every_row_is_looked_at_wherever_it_lies(part, stream, token, said, tmp_path):
    """Those that are held out too; a token below 0 is named by its row in the source, as no vocabulary has it."""
    chance = random.Random(0)
    made = [[chance.randrange(10) for _ in range(8)] for _ in range(300)]
    apart = [belongs({"tokens": [*row[:7], token]}, "validation", "tokens") for row in made]
    at = next(i for i in range(150, 300) if apart[i] == (part == "validation"))
    made[at][7] = token
    Dataset.from_list([{"tokens": row, "maskable": [True] * 8} for row in made]).save_to_disk(str(tmp_path / "rows"))
    data = RowsOnDisk(str(tmp_path / "rows"), divided=True, stream=stream)
    model = TextModel(vocab_size=12, mask_token_id=11, layers=1, width=16, heads=2)
    named = f"row {at} of .*rows" if token < 0 and not stream else r"row \d+ of the (data set|held-out rows)"
    with pytest.raises(ValueError, match=f"{named} {said}"):
        replace(rows(data=data, steps=1, batch_size=4), model=model).train(tmp_path / "run")


def test_what_is_neither_trained_on_nor_held_out_is_counted(qa, fasta, tmp_path):
    for data, total in ((prompts(qa), 120), (SequenceData(str(fasta)), 80)):
        left = data.left_for_tests()
        assert left > 0
        assert len(data.fitted().load()) + len(data.held_out()) + left == total
        assert replace(data, held_out_source=str(qa)).left_for_tests() == 0


@pytest.mark.parametrize("shared", [0, 3, 40])
def test_held_out_rows_that_are_trained_on_are_warned_of(shared, tmp_path):
    chance = random.Random(0)
    made = [[chance.randrange(10) for _ in range(chance.randint(6, 9))] for _ in range(80)]
    for name, part in (("rows", made[:40]), ("apart", made[40 - shared : 80 - shared])):
        Dataset.from_list([{"tokens": r, "maskable": [True] * len(r)} for r in part]).save_to_disk(
            str(tmp_path / name)
        )
    data = RowsOnDisk(str(tmp_path / "rows"), str(tmp_path / "apart"))
    model = TextModel(vocab_size=12, mask_token_id=11, layers=1, width=16, heads=2)
    run = replace(rows(data=data, steps=1, batch_size=4), model=model)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        run.train(tmp_path / "run")
    found = [str(warning.message) for warning in said if "trained on too" in str(warning.message)]
    assert [line.split(" held-out")[0] for line in found] == ([f"{shared} of the 40"] if shared else [])
