"""New sequences at the end of a run fit into the rows that it had, whatever stands before a sequence."""

import pytest
import torch
from datasets import Dataset
from transformers import LlamaConfig

from unmask import MaskedDiffusionLM
from unmask.data.beginnings import with_beginning
from unmask.data.tokenizers import TextTokenizer, character_tokenizer
from unmask.parts import HeldOutSequences

LENGTH = 12
SIZES = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}


@pytest.mark.parametrize(("beginning", "shifted"), [("none", False), ("bos", False), ("bos", True), ("none", True)])
def test_new_sequences_are_as_long_as_the_rows_are_behind_their_beginning(beginning, shifted):
    plain = character_tokenizer(["ACDEFGHIKL"])
    begun = with_beginning(plain.tokenizer, beginning, plain.tokenizer.id_to_token(plain.eos_token_id))
    tokenizer = TextTokenizer(begun, plain.eos_token_id, plain.mask_token_id)
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=tokenizer.vocab_size, max_position_embeddings=LENGTH, **SIZES)
    model = MaskedDiffusionLM.from_config(config, tokenizer.mask_token_id, shifted)
    given = int(beginning == "bos" or shifted)
    row = [plain.eos_token_id] * given + tokenizer.encode("ACDEFGHIKLAC").tolist()[given:]
    flags = [False] * given + [True] * (LENGTH - given)
    held_out = Dataset.from_dict({"tokens": [row] * 4, "maskable": [flags] * 4})
    found = HeldOutSequences(texts=8).start_text(held_out, tokenizer)(model, True)
    assert max(map(len, found["samples"])) <= LENGTH - given
    assert len(found["samples"]) == 8
