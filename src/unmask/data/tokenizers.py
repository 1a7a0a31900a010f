"""Text to tokens and back, with an end-of-text and a mask token: made here, read from a folder, or Hugging Face's."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerBase

from unmask.config import check_name, require
from unmask.data.beginnings import Beginning, prefix_of, with_beginning
from unmask.data.columns import PathLike

EOS_TOKEN = "<|endoftext|>"
MASK_TOKEN = "<|mask|>"
UNKNOWN_TOKEN = "<|unknown|>"
TOKENIZER_FILE, CONFIG_FILE = "tokenizer.json", "tokenizer_config.json"

#: The 27 characters of text8: a token's number is its place here.
LETTERS = " abcdefghijklmnopqrstuvwxyz"

_ONE_CHARACTER = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
# Anything but a letter goes before letters are lowered: some foreign letters have an English lower case.
_ONLY_LETTERS = normalizers.Sequence(
    [normalizers.Replace(Regex("[^a-zA-Z]+"), " "), normalizers.Lowercase(), normalizers.Strip()]
)


@dataclass(frozen=True, eq=False)
class TextTokenizer:
    """A tokenizer of the `tokenizers` library, with the two tokens that masked diffusion needs.

    Special tokens are never read from a text: a document that spells out "<|mask|>" gives ordinary tokens.

    Args:
        tokenizer: the tokenizer itself. Its padding and truncation are not used, and of its template of special
            tokens only what stands before a text: `prefix`.
        eos_token_id: the token between two documents.
        mask_token_id: the token that stands for a masked one; no text gives it.
    """

    tokenizer: Tokenizer
    eos_token_id: int
    mask_token_id: int

    def __post_init__(self) -> None:
        self.tokenizer.encode_special_tokens = True  # as text, that is
        self.tokenizer.no_padding()
        self.tokenizer.no_truncation()

    @cached_property
    def vocab_size(self) -> int:
        """V: one more than the largest token, the end-of-text and mask tokens included."""
        return max(self.tokenizer.get_vocab(with_added_tokens=True).values()) + 1

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (64 hexadecimal digits) of its JSON and its two tokens: equal for tokenizers that do the same."""
        whole = f"{self.tokenizer.to_str()} {self.eos_token_id} {self.mask_token_id}"
        return hashlib.sha256(whole.encode()).hexdigest()

    @cached_property
    def prefix(self) -> tuple[int, ...]:
        """What its own template puts before every text, such as BOS: rows begin so (see `unmask.data.beginnings`)."""
        return prefix_of(self.tokenizer)

    @property
    def mask_token(self) -> str:
        """How the mask token is spelt."""
        return self._spelt(self.mask_token_id)

    @property
    def marks_ends(self) -> bool:
        """Whether the end-of-text token is a token of its own. If not it is the space, an ordinary character."""
        return self._spelt(self.eos_token_id) != " "

    @cached_property
    def suppress_tokens(self) -> tuple[int, ...]:
        """Tokens that no text should be given when it is generated: the one for what the vocabulary cannot write."""
        model = json.loads(self.tokenizer.to_str())["model"]
        spelt = model.get("unk_token")
        unknown = model.get("unk_id") if spelt is None else self.tokenizer.token_to_id(spelt)
        return () if unknown in (None, self.eos_token_id) else (unknown,)

    @property
    def ends(self) -> dict[str, Any]:
        """Where a text that is generated ends, and what it never holds: options of `unmask.generate`."""
        return {"end_token_id": self.end_token_id, "suppress_tokens": self.suppress_tokens}

    def unwritten(self, text: str) -> list[str]:
        """The characters of a text that the vocabulary loses or has no token for, each once, in their order."""
        found = list(dict.fromkeys(text))
        return [
            character
            for character, tokens in zip(found, self.encode_all(found), strict=True)
            if not (len(tokens) or character.isspace()) or np.isin(tokens, self.suppress_tokens).any()
        ]

    def encode(self, text: str) -> np.ndarray:
        """Return the tokens of a text, int32 [n]. Adds no special token."""
        return self.encode_all([text])[0]

    def encode_all(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Return the tokens of each text, int32 [n]; faster than one text at a time.

        Raises:
            ValueError: for a text that the tokenizer cannot write, as when it knows no token for what is unknown.
        """
        if self._table is not None:
            return [_look_up(text, *self._table) for text in texts]
        try:
            encodings = self.tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        except Exception as error:  # the library raises nothing more special
            raise ValueError(f"the tokenizer cannot write these texts: {error}") from None
        return [np.array(encoding.ids, dtype=np.int32) for encoding in encodings]

    def named(self, tokens: Iterable[int | str]) -> tuple[int, ...]:
        """Ids of tokens that are named by id, or by a text: then all that it is written with.

        Raises:
            ValueError: for a text that holds what the tokenizer does not know, or an id that it has not.
        """
        found: dict[int, None] = {}
        for token in tokens:
            ids = [token] if isinstance(token, int) else self.encode(token).tolist()
            lost = isinstance(token, str) and (not token.strip() or self.unwritten(token))
            if lost or not all(0 <= i < self.vocab_size for i in ids):
                raise ValueError(
                    f"the tokenizer of these rows has no token for {token!r}: give Delimiters or SyRM tokens that it "
                    "has, as in --masking \"IndependentMasking(mask=Delimiters(tokens=('.',)))\""
                )
            found |= dict.fromkeys(ids)
        return tuple(found)

    def decode(self, tokens: Iterable[int]) -> str:
        """Return the text of tokens [n], NumPy, torch or a list. Special tokens are spelt out."""
        return self.tokenizer.decode([int(token) for token in tokens], skip_special_tokens=False)

    def word(self, token: int) -> str:
        """How a token reads within a text, behind another one: with the space before it, if it begins a word."""
        once, twice = self.decode([token]), self.decode([token, token])
        return (twice.removeprefix(once) if twice.startswith(once) else once) or self._spelt(token)

    @property
    def end_token_id(self) -> int | None:
        """The token behind which a text has ended; None where it is an ordinary character."""
        return self.eos_token_id if self.marks_ends else None

    def first_text(self, tokens: Iterable[int]) -> str:
        """Return the text of tokens [n] before the first end-of-text token; of all where the space is that token."""
        every = [int(token) for token in tokens]
        ended = self.marks_ends and self.eos_token_id in every
        return self.decode(every[: every.index(self.eos_token_id)] if ended else every)

    def save(self, folder: PathLike) -> None:
        """Write tokenizer.json and tokenizer_config.json, the files that transformers' `AutoTokenizer` opens."""
        config = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
        config["mask_token"] = self.mask_token
        if self.marks_ends:  # else an ordinary character, which nobody else should treat as special
            config["eos_token"] = self._spelt(self.eos_token_id)
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / TOKENIZER_FILE).write_text(
            self.tokenizer.to_str(pretty=True), encoding="utf-8"
        )  # an OSError, if any
        (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: PathLike) -> TextTokenizer:
        """Read what `save` wrote, or any Hugging Face folder with a fast tokenizer.

        Without an end-of-text token in the folder, documents are joined by the space.

        Raises:
            FileNotFoundError: if a file is missing.
            ValueError: if the tokenizer has no mask token, or neither an end-of-text token nor a space.
        """
        folder = Path(folder)
        form = (folder / TOKENIZER_FILE).read_text(encoding="utf-8")
        config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
        tokenizer = Tokenizer.from_str(form)
        ids = {}
        for name, default in (("eos_token", " "), ("mask_token", None)):
            token = config.get(name) or default
            token = token["content"] if isinstance(token, dict) else token
            ids[name] = None if token is None else tokenizer.token_to_id(token)
            if ids[name] is None:
                raise ValueError(
                    f"the tokenizer in {folder} has no {name}; add one to its vocabulary and name it in {CONFIG_FILE}"
                )
        return cls(tokenizer, eos_token_id=ids["eos_token"], mask_token_id=ids["mask_token"])

    @classmethod
    def from_hugging_face(
        cls, tokenizer: PreTrainedTokenizerBase, beginning: Beginning = "tokenizer"
    ) -> TextTokenizer:
        """Copy a fast tokenizer of transformers, such as `unmask.from_pretrained` returns; it is not changed.

        Args:
            tokenizer: with a mask token and an end-of-text token.
            beginning: what stands before every text; see `unmask.data.beginnings`.

        Raises:
            ValueError: if it is not a fast one, has no mask token or no end-of-text token, or no BOS token where one
                is asked for.
        """
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if not isinstance(backend, Tokenizer):
            raise ValueError(
                f"{type(tokenizer).__name__} is not a fast tokenizer: it has no tokenizer.json. Make rows of its ids "
                "yourself (columns tokens and maskable), or give a fast one"
            )
        mask, eos = tokenizer.mask_token_id, tokenizer.eos_token_id
        if not isinstance(mask, int):
            raise ValueError(
                "the tokenizer has no mask token: take it from unmask.from_pretrained(name, mask_token=...), which "
                "adds one to tokenizer and model"
            )
        if not isinstance(eos, int):
            raise ValueError(
                "the tokenizer has no end-of-text token: name one of its tokens, as in "
                "tokenizer.eos_token = tokenizer.sep_token, or --data.end-token '[SEP]'"
            )
        copy = Tokenizer.from_str(backend.to_str())  # ours reads special tokens as text, theirs must not
        copy = with_beginning(copy, beginning, tokenizer.bos_token)
        return cls(copy, eos_token_id=eos, mask_token_id=mask)

    @classmethod
    def check(cls, tokenizer: Any) -> None:
        """Raise TypeError for anything but a `TextTokenizer`, such as a tokenizer of transformers."""
        if not isinstance(tokenizer, cls):
            raise TypeError(
                f"expected a TextTokenizer, got {type(tokenizer).__name__}: of a fast tokenizer of transformers "
                "TextTokenizer.from_hugging_face(tokenizer) makes one"
            )

    def check_model(self, mask_token_id: int, vocab_size: int) -> None:
        """Raise ValueError unless a model with this mask token and V tokens can read what the tokenizer writes."""
        require(
            self.vocab_size <= vocab_size,
            f"the tokenizer has {self.vocab_size} tokens, the model {vocab_size}: they do not belong together; build "
            f"the model with vocab_size={self.vocab_size} (--model.vocab-size), or take both from "
            "unmask.from_pretrained",
        )
        require(
            self.mask_token_id == mask_token_id,
            f"the tokenizer's mask token is {self.mask_token_id} (of {self.vocab_size} tokens), the model's "
            f"{mask_token_id} (of {vocab_size}): build the model with vocab_size={self.vocab_size} "
            f"and mask_token_id={self.mask_token_id} (--model.vocab-size, --model.mask-token-id), or take both from "
            "unmask.from_pretrained",
        )

    def missing(self, vocab_size: int) -> list[int]:
        """The ids below `vocab_size` that no token has, ascending."""
        return sorted(set(range(vocab_size)).difference(self.tokenizer.get_vocab(with_added_tokens=True).values()))

    def _spelt(self, token: int) -> str:
        spelt = self.tokenizer.id_to_token(token)
        if spelt is None:
            raise ValueError(f"the tokenizer has no token {token}")
        return spelt

    @cached_property
    def _table(self) -> tuple[np.ndarray, bool] | None:
        """What `_look_up` needs; None unless this is a character tokenizer."""
        form = json.loads(self.tokenizer.to_str())
        plain, letters = (json.loads(_characters({"a": 0}, n).to_str()) for n in (None, _ONLY_LETTERS))
        only_letters = form["normalizer"] == letters["normalizer"]
        if form["pre_tokenizer"] != plain["pre_tokenizer"] or form["model"]["type"] != "WordLevel":
            return None
        if form["normalizer"] is not None and not only_letters:
            return None
        if not all(token["special"] for token in form["added_tokens"]):
            return None  # longer tokens, which are read from texts
        vocabulary = form["model"]["vocab"]
        if only_letters and vocabulary != {character: i for i, character in enumerate(LETTERS)}:
            return None  # another alphabet, or in another order
        other = vocabulary.get(" " if only_letters else form["model"]["unk_token"])
        if other is None:
            return None  # what is unknown ends in an error, which is the library's to raise
        characters = {ord(token): i for token, i in vocabulary.items() if len(token) == 1}
        if only_letters:
            characters |= {ord(chr(code).upper()): i for code, i in characters.items()}
        table = np.full(max(characters, default=0) + 2, other, dtype=np.int32)
        table[list(characters)] = list(characters.values())
        return table, only_letters


def character_tokenizer(texts: Iterable[str] | None = None, alphabet: Literal["27"] | None = None) -> TextTokenizer:
    """Make a tokenizer with one token a character.

    Args:
        texts: what to take the characters from, in code point order. After them come a token for characters
            that do not occur here, the end-of-text token and the mask token.
        alphabet: "27" for text8's alphabet instead (`texts` is then not read): the space is token 0, the letters
            a to z are 1 to 26 and the mask is 27. Texts are lowered, each run of anything else, digits and
            accented letters included, becomes one space, and spaces at the ends are dropped. There is no
            end-of-text token in it: `eos_token_id` is the space, so packed documents read as one text.

    Raises:
        ValueError: for another alphabet, or without texts where they are needed.
    """
    if alphabet is not None:
        check_name("alphabet", alphabet, ("27",))
        vocabulary = {character: i for i, character in enumerate(LETTERS)}
        return _with_special_tokens(_characters(vocabulary, _ONLY_LETTERS), eos_token=" ")
    characters = sorted(set().union(*(set(text) for text in texts or ())))
    if not characters:
        raise ValueError("there are no characters in the texts; give texts to learn from, or alphabet='27'")
    return _with_special_tokens(_characters({token: i for i, token in enumerate([*characters, UNKNOWN_TOKEN])}))


def bpe_tokenizer(texts: Iterable[str], vocab_size: int) -> TextTokenizer:
    """Train a byte-level BPE tokenizer, which can write any text. The end-of-text and mask tokens come last.

    Args:
        texts: what to learn the merges from: the training split alone, to be strict.
        vocab_size: number of tokens, at least 258: 256 bytes and the two special tokens. Few texts may not
            have as many; then `TextTokenizer.vocab_size` is lower.

    Raises:
        ValueError: for a smaller vocabulary.
    """
    if vocab_size < 258:
        raise ValueError(f"vocab_size must be at least 258 (256 bytes and two special tokens), got {vocab_size}")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocab_size - 2, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    return _with_special_tokens(tokenizer)


def _characters(vocabulary: dict[str, int], normalizer: Any = None) -> Tokenizer:
    """A tokenizer that looks each character up after normalising the text."""
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN_TOKEN))
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = _ONE_CHARACTER
    tokenizer.decoder = decoders.Fuse()
    return tokenizer


def _with_special_tokens(tokenizer: Tokenizer, eos_token: str = EOS_TOKEN) -> TextTokenizer:
    """Add the mask token and, unless it is an ordinary token, the end-of-text token."""
    known = tokenizer.get_vocab()
    tokenizer.add_special_tokens([token for token in (eos_token, MASK_TOKEN) if token not in known])
    ids = tokenizer.get_vocab(with_added_tokens=True)
    return TextTokenizer(tokenizer, eos_token_id=ids[eos_token], mask_token_id=ids[MASK_TOKEN])


def _look_up(text: str, table: np.ndarray, only_letters: bool) -> np.ndarray:
    """Do what a character tokenizer does, int32 [n], a hundred times as fast.

    Args:
        text: the text.
        table: [C + 1] the token of each code point below C, then that of all others.
        only_letters: collapse runs of token 0, the space, and drop it at the ends.
    """
    codes = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
    tokens = table[np.minimum(codes, len(table) - 1)]
    if only_letters:
        is_space = tokens == 0
        follows_space = np.concatenate([[True], is_space[:-1]])[: len(tokens)]
        tokens = tokens[~(is_space & follows_space)]
        if len(tokens) and tokens[-1] == 0:
            tokens = tokens[:-1]
    return tokens
