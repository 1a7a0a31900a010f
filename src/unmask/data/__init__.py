"""Rows, as Hugging Face data sets, and the stream that deals them."""

from unmask.data.arithmetic import load_addition
from unmask.data.checks import check_rows
from unmask.data.corpora import GSM8K, LM1B, OPENWEBTEXT, TINYGSM, PromptCorpus, TextCorpus
from unmask.data.documents import load_documents, stream_documents
from unmask.data.endings import Rainbow
from unmask.data.importance import RowImportance
from unmask.data.stream import RowStream
from unmask.data.streamed import rows_of
from unmask.data.sudoku import load_sudoku
from unmask.data.supervised import chat_rows, prompt_rows
from unmask.data.syntax import with_syntax
from unmask.data.text import load_text, stream_text, tokenize, tokenize_stream
from unmask.data.tokenizers import TextTokenizer, bpe_tokenizer, character_tokenizer

__all__ = [
    "GSM8K",
    "LM1B",
    "OPENWEBTEXT",
    "TINYGSM",
    "PromptCorpus",
    "Rainbow",
    "RowImportance",
    "RowStream",
    "TextCorpus",
    "TextTokenizer",
    "bpe_tokenizer",
    "character_tokenizer",
    "chat_rows",
    "check_rows",
    "load_addition",
    "load_documents",
    "load_sudoku",
    "load_text",
    "prompt_rows",
    "rows_of",
    "stream_documents",
    "stream_text",
    "tokenize",
    "tokenize_stream",
    "with_syntax",
]
