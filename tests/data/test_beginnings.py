"""What stands before a text: as the tokenizer itself does, and the same wherever rows are made or scored."""

import json
from dataclasses import replace

import datasets
import pytest
import torch
from tokenizers.processors import BertProcessing, RobertaProcessing, TemplateProcessing
from transformers import AutoTokenizer, GPT2Config, PreTrainedTokenizerFast

from unmask import Decoding, MaskedDiffusionLM, TokenBatch, generate
from unmask.data import TextTokenizer, bpe_tokenizer, character_tokenizer, chat_rows, prompt_rows, tokenize
from unmask.evaluation.generative import sample_tokens, text_length
from unmask.evaluation.harness import HarnessModel
from unmask.evaluation.likelihood import LikelihoodConfig, likelihood
from unmask.evaluation.tasks import AnswerTask
from unmask.parts import CorpusData, PromptData, TextData

SPECIAL = ("<bos>", "<cls>", "<eos>", "<mask>")
NAMES = {"bos_token": "<bos>", "eos_token": "<eos>", "mask_token": "<mask>"}
# What a template puts around a text, and what of it stands before.
TEMPLATES = {
    "none": (lambda ids: None, ()),
    "bos": (lambda ids: TemplateProcessing(single="<bos> $A", special_tokens=ids[:1]), ("<bos>",)),
    "end": (lambda ids: TemplateProcessing(single="$A <eos>", special_tokens=ids[2:3]), ()),
    "two": (
        lambda ids: TemplateProcessing(single="<cls> <bos> $A <eos>", special_tokens=ids[:3]),
        ("<cls>", "<bos>"),
    ),
    "bert": (lambda ids: BertProcessing(ids[2], ids[1]), ("<cls>",)),
    "roberta": (lambda ids: RobertaProcessing(ids[2], ids[1]), ("<cls>",)),
}
TEXTS = ["a fox ran", "it hid", "so it was lost and found again"]
DOCUMENTS = datasets.Dataset.from_dict({"text": TEXTS, "prompt": TEXTS, "response": TEXTS[::-1]})
CHAT = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}" + (
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


@pytest.fixture(scope="module")
def hugging_face():
    """A function that makes a tokenizer of transformers with one of `TEMPLATES`."""

    def make(template: str, **names) -> PreTrainedTokenizerFast:
        backend = bpe_tokenizer(TEXTS, 270).tokenizer
        backend.add_special_tokens(list(SPECIAL))
        backend.post_processor = TEMPLATES[template][0]([(token, backend.token_to_id(token)) for token in SPECIAL])
        return PreTrainedTokenizerFast(tokenizer_object=backend, **(NAMES | names))

    return make


@pytest.fixture(scope="module")
def writer(hugging_face):
    """A function that makes a tiny model of the tokenizers above."""

    def make(shifted: bool = False) -> MaskedDiffusionLM:
        torch.manual_seed(0)
        tokenizer = TextTokenizer.from_hugging_face(hugging_face("none"))
        sizes = {"n_positions": 32, "n_embd": 16, "n_layer": 1, "n_head": 2, "bos_token_id": None}
        config = GPT2Config(vocab_size=tokenizer.vocab_size, **sizes)
        return MaskedDiffusionLM.from_config(config, tokenizer.mask_token_id, shifted=shifted).double()

    return make


@pytest.mark.parametrize("template", TEMPLATES)
def test_policies(hugging_face, template, tmp_path):
    theirs, own = hugging_face(template), TEMPLATES[template][1]
    whole = theirs("so it was")["input_ids"]
    for policy, wanted in (("tokenizer", own), ("none", ()), ("bos", ("<bos>",))):
        ours = TextTokenizer.from_hugging_face(theirs, policy)
        assert tuple(map(ours.tokenizer.id_to_token, ours.prefix)) == wanted
        text = ours.encode("so it was").tolist()  # what stands before a text is no part of it
        assert text == theirs("so it was", add_special_tokens=False)["input_ids"]
        ours.save(tmp_path / policy)
        loaded = TextTokenizer.load(tmp_path / policy)
        assert (loaded.prefix, loaded.fingerprint) == (ours.prefix, ours.fingerprint)
        begins = AutoTokenizer.from_pretrained(tmp_path / policy)("so it was")["input_ids"]
        assert begins[: len(wanted) + len(text)] == [*ours.prefix, *text]
    assert theirs("so it was")["input_ids"] == whole  # not changed
    assert TextTokenizer.from_hugging_face(theirs).prefix == tuple(whole[: len(own)])


def test_the_flag_of_transformers_counts(hugging_face):
    """Tokenizers without a template of their own are given one by `add_bos_token`."""
    backend = hugging_face("none").backend_tokenizer
    theirs = PreTrainedTokenizerFast(tokenizer_object=backend, add_bos_token=True, **NAMES)
    assert TextTokenizer.from_hugging_face(theirs).prefix == (theirs.bos_token_id,)


def test_a_tokenizer_that_cannot_write_x():
    form = json.loads(character_tokenizer(["ACGT"]).tokenizer.to_str())
    form["model"]["unk_token"] = "no such token"
    form["post_processor"] = json.loads(TemplateProcessing(single="A $A", special_tokens=[("A", 0)]).__getstate__())
    backend = character_tokenizer(["ACGT"]).tokenizer.from_str(json.dumps(form))
    assert TextTokenizer(backend, eos_token_id=5, mask_token_id=6).prefix == (0,)


def test_what_is_made_here_begins_with_nothing():
    for made in (character_tokenizer(alphabet="27"), character_tokenizer(TEXTS), bpe_tokenizer(TEXTS, 270)):
        assert made.prefix == ()


def test_mistakes(hugging_face):
    with pytest.raises(ValueError, match=r"needs a tokenizer with a BOS token: set tokenizer\.bos_token"):
        TextTokenizer.from_hugging_face(hugging_face("bert", bos_token=None), "bos")
    with pytest.raises(ValueError, match="beginning"):
        TextTokenizer.from_hugging_face(hugging_face("bert"), "eos")
    with pytest.raises(ValueError, match="the vocabulary 'letters' has no BOS token"):
        TextData(beginning="bos")
    for data in (TextData, CorpusData, PromptData):
        with pytest.raises(ValueError, match="beginning"):
            data(beginning="eos")


def rows_of(tokenizer: PreTrainedTokenizerFast, beginning: str, ending: str) -> dict[str, list[dict]]:
    """Rows by every maker there is, by its name."""
    text = TextTokenizer.from_hugging_face(tokenizer, beginning)
    length = 80 + len(text.prefix)
    tokenizer.chat_template = CHAT
    turns = [[{"role": "user", "content": t}, {"role": "assistant", "content": t}] for t in TEXTS]
    chats = datasets.Dataset.from_dict({"messages": turns})
    options = {"length": length, "ending": ending}
    return {
        "packed": list(tokenize(DOCUMENTS, "text", text, 7 + len(text.prefix), ending=ending)),
        "document": list(tokenize(DOCUMENTS, "text", text, packing="document", **options)),
        "cut": list(tokenize(DOCUMENTS, "text", text, 7 + len(text.prefix), "document", ending)),
        "prompts": list(prompt_rows(DOCUMENTS, text, **options)),
        "chats": list(chat_rows(chats, tokenizer, beginning=beginning, **options)),
    }


@pytest.mark.filterwarnings("ignore:1 of 3 texts are longer than")
@pytest.mark.parametrize("ending", ["trained", "untrained", "eos_as_padding"])
@pytest.mark.parametrize("template", ["none", "bos", "two"])
def test_every_row_begins_with_the_prefix_given_and_is_else_the_same(hugging_face, template, ending):
    tokenizer = hugging_face(template)
    prefix = list(TextTokenizer.from_hugging_face(tokenizer).prefix)
    found, plain = rows_of(tokenizer, "tokenizer", ending), rows_of(tokenizer, "none", ending)
    for name, rows in found.items():
        expected = [
            {"tokens": prefix + row["tokens"], "maskable": [False] * len(prefix) + row["maskable"]}
            for row in plain[name]
        ]
        assert rows == expected, name


def test_a_beginning_that_the_chat_template_writes_is_not_repeated(hugging_face):
    tokenizer = hugging_face("bos")
    tokenizer.chat_template = "{{ bos_token }}" + CHAT
    chats = datasets.Dataset.from_dict({"messages": [[{"role": r, "content": "hi"} for r in ("user", "assistant")]]})
    for beginning in ("tokenizer", "bos", "none"):
        (row,) = chat_rows(chats, tokenizer, length=64, beginning=beginning)
        assert row["tokens"].count(tokenizer.bos_token_id) == 1
        assert row["tokens"][0] == tokenizer.bos_token_id
        assert not row["maskable"][0]


def test_a_row_needs_room_for_its_beginning(hugging_face):
    text = TextTokenizer.from_hugging_face(hugging_face("two"))
    with pytest.raises(ValueError, match="length must be at least 3, got 2"):
        tokenize(DOCUMENTS, "text", text, 2)


# --- what is generated and scored begins as what is trained ---


@pytest.mark.parametrize("shifted", [False, True])
def test_samples_begin_as_rows_do(hugging_face, writer, shifted):
    model, text = writer(shifted), TextTokenizer.from_hugging_face(hugging_face("two"))
    row, decoding = torch.arange(3), Decoding(policy="random", temperature=1.0)
    for prompt in ([], text.encode("it").tolist()):
        given = torch.tensor([*text.prefix, *prompt])
        tokens = torch.zeros(3, 12 + 2, dtype=torch.int64)
        tokens[:, : len(given)] = given
        maskable = (torch.arange(14) >= len(given)).expand(3, -1)
        batch = TokenBatch(tokens, maskable, torch.ones_like(maskable), row, torch.zeros_like(row), torch.ones(3))
        made = generate(model, batch, decoding, seed=3, end_token_id=text.end_token_id).tokens
        found, _ = sample_tokens(model, text, 3, 12, decoding, seed=3, prompt=prompt)
        assert torch.equal(found, made[:, 2:])
    assert text_length(model, text) == 30
    assert text_length(model, text, rows=16) == 14  # what begins a row is of those that were learnt too


@pytest.mark.parametrize("shifted", [False, True])
def test_lm_eval_s_rows_begin_as_rows_do(hugging_face, writer, shifted):
    tokenizer, model = hugging_face("bos"), writer(shifted)
    text = TextTokenizer.from_hugging_face(tokenizer)
    tokenizer.chat_template = "{{ bos_token }}" + CHAT
    adapter = HarnessModel(model, text, 32)
    (row,) = prompt_rows(
        datasets.Dataset.from_dict({"prompt": ["a fox"], "response": [" ran"]}),
        text,
        prompt="{prompt}",
        length=32,
        ending="untrained",
    )
    ours = {name: [values[:-1]] for name, values in row.items()}  # lm-eval's pairs have no end
    nats = likelihood(model, datasets.Dataset.from_dict(ours), LikelihoodConfig()).nats

    class Pair:
        args = ("a fox", " ran")

    assert adapter.loglikelihood([Pair()])[0][0] == pytest.approx(-float(nats[0]))

    class Spelt:
        args = ("<bos>a fox", " ran")  # as chat templates write it

    chats = HarnessModel(model, text, 32, chat=tokenizer)
    assert chats.loglikelihood([Spelt()]) == chats.loglikelihood([Pair()]) == adapter.loglikelihood([Pair()])


def test_questions_begin_as_rows_do(hugging_face, tmp_path):
    text = TextTokenizer.from_hugging_face(hugging_face("bos"))
    text.save(tmp_path)
    file = tmp_path / "questions.jsonl"
    file.write_text(json.dumps({"question": "1+1", "answer": "2"}) + "\n")
    task = AnswerTask(tokenizer=str(tmp_path), source=str(file), answer_length=4)
    assert task.load()[0]["tokens"][:4] == [*text.prefix, *text.encode("1+1\n").tolist()][:4]
    assert not task.load()[0]["maskable"][0]


@pytest.mark.parametrize("beginning", ["tokenizer", "none", "bos"])
def test_a_run_that_is_opened_has_the_beginning_that_trained_it(hugging_face, tmp_path, beginning):
    hugging_face("two").save_pretrained(tmp_path / "pretrained")
    (tmp_path / "texts.jsonl").write_text(
        "".join(json.dumps({"text": f"{t} {i}"}) + "\n" for t in TEXTS for i in range(20))
    )
    files = str(tmp_path / "texts.jsonl")
    data = TextData(source=files, vocabulary=str(tmp_path / "pretrained"), length=16, beginning=beginning)
    data.tokenizer().save(tmp_path / "saved")  # as checkpoints do
    opened = replace(data.with_tokenizer(tmp_path / "saved"), beginning="tokenizer")
    assert opened.tokenizer().fingerprint == data.tokenizer().fingerprint
    assert list(opened.load()) == list(data.load())
    assert len(data.tokenizer().prefix) == {"tokenizer": 2, "none": 0, "bos": 1}[beginning]
    assert all(row["maskable"].count(False) == len(data.tokenizer().prefix) for row in data.load())
