"""Bits per byte: what is measured stands for all sources, and a uniform model gives the number known by hand."""

import math

import pytest
import torch
from small_tokenizer import small_tokenizer

from mengya.corpus.records import Document
from mengya.data.shard_writer import write_shards
from mengya.data.shards import TokenShards
from mengya.evaluate.likelihood import bits_per_byte, spread
from mengya.model.config import ModelConfig
from mengya.model.transformer import Transformer


def test_spread_takes_from_every_part_in_order():
    assert spread(3, 10) == [0, 3, 6]
    assert spread(20, 4) == [0, 1, 2, 3]
    assert spread(5, 0) == []


def test_few_documents_still_come_from_every_source(tmp_path):
    tokenizer = small_tokenizer()
    documents = [Document(f"小明看见{number}个苹果。", source) for source in "甲乙丙" for number in range(20)]
    write_shards(iter(documents), tokenizer, tmp_path)
    shards = TokenShards(tmp_path)
    config = ModelConfig(vocab_size=tokenizer.vocab_size, width=8, num_layers=1, num_heads=1, max_positions=16)
    model = Transformer(config)
    torch.nn.init.zeros_(model.output_weight_VC)  # every token equally likely
    overall, by_source = bits_per_byte(model, shards, 6)
    assert set(by_source) == {"甲", "乙", "丙"}
    chosen = [0, 10, 20, 30, 40, 50]
    bits = sum(len(shards[i]) - 1 for i in chosen) * math.log2(tokenizer.vocab_size)
    assert overall["value"] == pytest.approx(bits / sum(int(shards.bytes_N[i]) for i in chosen), rel=1e-5)
