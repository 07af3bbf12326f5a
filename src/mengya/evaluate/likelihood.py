"""What a language model gives to texts that exist: log-probabilities, bits per byte, cloze answers, KL."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from mengya.corpus.records import Cloze, Conversation
from mengya.data.loader import one_pass
from mengya.data.packing import Examples
from mengya.data.shards import TokenShards
from mengya.evaluate.score import Estimate, proportion, ratio
from mengya.model.texts import hidden_at
from mengya.model.transformer import Transformer
from mengya.objectives.language_model import next_token_loss
from mengya.objectives.preference import completion_logps, lengths_to_read
from mengya.objectives.terms import token_logps
from mengya.tokenizer.encode import ChatTokenizer
from mengya.train.parallel import World

LN2 = 0.6931471805599453
_TOKENS_A_BATCH = 16_384
_LOGITS_A_BATCH = 2**27
"""Half a gigabyte of float32, of which a log-softmax holds a few at a time: a vocabulary of 65,000 took 9 GB."""


def _tokens_a_batch(model: Transformer) -> int:
    return min(_TOKENS_A_BATCH, _LOGITS_A_BATCH // model.config.vocab_size)


def _completions(
    model: Transformer, sequences: Sequence[Sequence[int]], starts: Sequence[int]
) -> Iterator[tuple[list[int], Tensor, Tensor]]:
    """(places in `sequences`, ids_BT, completion_BT) of batches by length, the longest first.

    Padded on the right. `completion_BT` is True from `starts[i]` on.
    """
    device = model.output_weight_VC.device
    order = sorted(range(len(sequences)), key=lambda i: len(sequences[i]))
    while order:
        longest = len(sequences[order[-1]])
        rows = order[-max(1, _tokens_a_batch(model) // longest) :]
        del order[-len(rows) :]
        ids_BT = torch.zeros(len(rows), longest, dtype=torch.long)
        completion_BT = torch.zeros(len(rows), longest, dtype=torch.bool)
        for b, i in enumerate(rows):
            ids_BT[b, : len(sequences[i])] = torch.tensor(sequences[i])
            completion_BT[b, starts[i] : len(sequences[i])] = True
        yield rows, ids_BT.to(device), completion_BT.to(device)


@torch.inference_mode()
def sequence_logps(model: Transformer, sequences: Sequence[Sequence[int]], starts: Sequence[int]) -> list[float]:
    """Σ log p(token | all before it) over the tokens from `starts[i]` on, for each sequence, in nats."""
    found = [0.0] * len(sequences)
    for rows, ids_BT, completion_BT in _completions(model, sequences, starts):
        logps_B: Tensor = completion_logps(model, ids_BT, completion_BT)
        for b, i in enumerate(rows):
            found[i] = logps_B[b].item()
    return found


@torch.inference_mode()
def sequence_logps_and_entropies(
    model: Transformer, sequences: Sequence[Sequence[int]], starts: Sequence[int]
) -> tuple[list[float], list[float]]:
    """`sequence_logps`, and of the same pass Σ H(p(· | all before it)) over the same tokens, in nats."""
    logps, entropies = [0.0] * len(sequences), [0.0] * len(sequences)
    for rows, ids_BT, completion_BT in _completions(model, sequences, starts):
        rows_N, columns_N = completion_BT[:, 1:].nonzero(as_tuple=True)
        logits_NV = model.logits(hidden_at(model, ids_BT, lengths_to_read(completion_BT), rows_N, columns_N))
        log_p_NV = logits_NV.float().log_softmax(-1)
        entropy_N = -(log_p_NV.exp() * log_p_NV).sum(-1)
        zeros_B = torch.zeros(len(rows), device=ids_BT.device)
        logps_B = zeros_B.index_add(0, rows_N, token_logps(logits_NV, ids_BT[rows_N, columns_N + 1]))
        entropies_B = zeros_B.index_add(0, rows_N, entropy_N)
        for b, i in enumerate(rows):
            logps[i], entropies[i] = logps_B[b].item(), entropies_B[b].item()
    return logps, entropies


@torch.inference_mode()
def packed_loss(model: Transformer, examples: Examples, row_length: int, world: World | None = None) -> float:
    """Mean −log p of all targets of `examples`, in nats, packed into rows just as in training.

    With a `world` each rank reads its share of the rows, and all get the mean over all of them.
    """
    loss, count = 0.0, 0
    rows = _tokens_a_batch(model) // row_length + 1
    rank, ranks = (0, 1) if world is None else (world.rank, world.size)
    for batch in one_pass(examples, row_length=row_length, micro_batch_rows=rows, pad_id=0, rank=rank, world=ranks):
        terms = next_token_loss(model, batch.to(model.output_weight_VC.device))
        loss, count = loss + terms.loss_sum.item(), count + terms.count
    if world is not None:
        summed = torch.tensor([loss, count], dtype=torch.float64)
        world.sum_([summed])
        loss, count = summed[0].item(), int(summed[1])
    return loss / max(1, count)


def spread(wanted: int, total: int) -> list[int]:
    """At most `wanted` indices, evenly over range(total): held-out data stands in files source by source."""
    count = min(wanted, total)
    return [k * total // count for k in range(count)]


def document_bits(model: Transformer, shards: TokenShards, chosen: Sequence[int]) -> tuple[list[float], list[float]]:
    """(bits, UTF-8 bytes) of each of these documents. That a document ends is predicted too. A document longer than the
    model's positions is read in pieces, each without the one before it."""
    length = model.config.max_positions
    pieces: list[list[int]] = []
    owners: list[int] = []
    for owner, i in enumerate(chosen):
        tokens = shards[i].tolist()
        for start in range(0, len(tokens) - 1, length - 1):
            pieces.append(tokens[start : start + length])
            owners.append(owner)
    nats = [0.0] * len(chosen)
    for owner, logp in zip(owners, sequence_logps(model, pieces, [1] * len(pieces)), strict=True):
        nats[owner] -= logp
    return [value / LN2 for value in nats], [float(shards.bytes_N[i]) for i in chosen]


def bits_per_byte(model: Transformer, shards: TokenShards, num_documents: int) -> tuple[Estimate, dict[str, Estimate]]:
    """Bits per UTF-8 byte of at most `num_documents` documents, over all and by source: comparable between tokenizers,
    unlike the loss per token."""
    chosen = spread(num_documents, len(shards))
    bits, sizes = document_bits(model, shards, chosen)
    by_source = {}
    for index, source in enumerate(shards.source_names):
        mine = [k for k, i in enumerate(chosen) if shards.source_ids_N[i] == index]
        if mine:
            by_source[source] = ratio([bits[i] for i in mine], [sizes[i] for i in mine])
    return ratio(bits, sizes), by_source


def answer_bits(
    model: Transformer, tokenizer: ChatTokenizer, conversations: Sequence[Conversation]
) -> tuple[list[float], list[float]]:
    """(bits, UTF-8 bytes) of the last answer of each held-out conversation that fits, given all before it."""
    sequences, starts, sizes = [], [], []
    for conversation in conversations:
        prompt, _ = tokenizer.render(conversation.messages[:-1], add_generation_prompt=True)
        whole, _ = tokenizer.render(conversation.messages)
        if len(whole) <= model.config.max_positions:
            sequences.append(whole)
            starts.append(len(prompt))
            sizes.append(float(len(conversation.messages[-1].content.encode())))
    return [-logp / LN2 for logp in sequence_logps(model, sequences, starts)], sizes


def answer_bits_per_byte(model: Transformer, tokenizer: ChatTokenizer, conversations: list[Conversation]) -> Estimate:
    """Bits per UTF-8 byte of the last answer of held-out conversations, given all before it."""
    return ratio(*answer_bits(model, tokenizer, conversations))


def cloze_accuracy(model: Transformer, tokenizer: ChatTokenizer, clozes: list[Cloze]) -> Estimate:
    """Share of clozes whose true continuation has the highest log-probability a byte.

    The prefix stands at a document's start. Per byte, because the choices differ in length (Gao 2021, "acc_norm").
    """
    sequences, starts = [], []
    for cloze in clozes:
        prefix = [tokenizer.end_of_text_id, *tokenizer.encode(cloze.prefix)]
        for choice in cloze.choices:
            sequences.append([*prefix, *tokenizer.encode(choice)])
            starts.append(len(prefix))
    scores = iter(sequence_logps(model, sequences, starts))
    hits = 0
    for cloze in clozes:
        per_byte = [next(scores) / len(choice.encode()) for choice in cloze.choices]
        hits += max(range(len(per_byte)), key=per_byte.__getitem__) == cloze.answer
    return proportion(hits, len(clozes))
