"""Keys and values of the tokens read so far, for decoding one token at a time."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mengya.model.config import ModelConfig

# B rows, K KV heads, S key positions, T new tokens, D head width


class KVCache:
    """A cache of ragged rows. Row b holds `lengths[b]` tokens at slots 0 ... length - 1.

    Slot = position (no left padding), so a query at position p may see the slots <= p of its row and nothing else.
    What lies beyond a row's length (the right padding of a ragged prefill, what a former row left) is overwritten
    before any query can see it. There is memory for `num_rows` rows from the start; those in use are the first of them.

    Keys and values are (layer, B, K, S, D), S being the slots allocated so far, of `num_slots` at most: a layer's slice
    is one contiguous batch of matrices. Attention reads it whole, the unwritten slots masked: bmm would copy a slice
    S' < S (measured at 256 rows and 100 of 160 slots in bfloat16: 5.9 ms, against 1.6 ms contiguous). So S follows the
    longest row in use, up and down.
    """

    def __init__(
        self,
        config: ModelConfig,
        num_rows: int,
        num_slots: int,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        shape = (config.num_layers, num_rows, config.num_kv_heads, 0, config.head_width)
        self.keys_LBKSD = torch.zeros(shape, dtype=dtype, device=device)
        self.values_LBKSD = torch.zeros(shape, dtype=dtype, device=device)
        self.num_slots = num_slots
        self._slots_N: Tensor | None = None  # where `write` puts new tokens, the same in every layer
        self._all_rows_B = torch.arange(num_rows, device=device)
        self._set_lengths([0] * num_rows)

    @property
    def num_rows(self) -> int:
        """The rows in use."""
        return len(self.lengths)

    def positions(self, num_new: int) -> Tensor:
        """positions_BT of the next `num_new` tokens of every row."""
        return self._lengths_B[:, None] + torch.arange(num_new, device=self._lengths_B.device)

    def reserve(self, num_new: int) -> int:
        """The number of slots a query may be masked to, room for `num_new` more tokens in the longest row included."""
        needed, allocated = self.longest + num_new, self.keys_LBKSD.shape[3]
        assert needed <= self.num_slots
        # An eighth more than needed, so that a long text is not copied too often, and a multiple of 64.
        wanted = min(-(-(needed + needed // 8) // 64) * 64, self.num_slots)
        # Memory is given back where that saves a quarter of what attention reads; less is not worth the copy.
        if needed > allocated or wanted <= allocated * 3 // 4:
            # Zeros, not empty: an unwritten slot has weight 0, and 0 times an accidental NaN would be NaN.
            padding = (0, 0, 0, wanted - allocated)
            self.keys_LBKSD = F.pad(self.keys_LBKSD, padding).contiguous()
            self.values_LBKSD = F.pad(self.values_LBKSD, padding).contiguous()
        self._slots_N = None
        return self.keys_LBKSD.shape[3]

    def write(self, layer: int, k_BKTD: Tensor, v_BKTD: Tensor, positions_BT: Tensor) -> tuple[Tensor, Tensor]:
        """The layer's keys and values (B, K, S, D) with the new ones in their reserved slots, those of `positions`.

        Where rows are fresh, only the new ones (S = T): there is nothing else to see.
        """
        keys_BKSD, values_BKSD = self.keys_LBKSD[layer, : self.num_rows], self.values_LBKSD[layer, : self.num_rows]
        start, stop = self.longest, self.longest + k_BKTD.shape[2]
        if self._is_level:
            keys_BKSD[:, :, start:stop] = k_BKTD
            values_BKSD[:, :, start:stop] = v_BKTD
            return (keys_BKSD, values_BKSD) if start else (k_BKTD, v_BKTD)
        B, K, S, D = keys_BKSD.shape
        if self._slots_N is None:
            heads_BK1 = torch.arange(B * K, device=positions_BT.device).view(B, K, 1)
            self._slots_N = (heads_BK1 * S + positions_BT[:, None]).flatten()
        keys_BKSD.view(-1, D).index_copy_(0, self._slots_N, k_BKTD.reshape(-1, D))
        values_BKSD.view(-1, D).index_copy_(0, self._slots_N, v_BKTD.reshape(-1, D))
        return keys_BKSD, values_BKSD

    def advance(self, num_new: list[int]) -> None:
        """Count the real tokens just written to each row; the rest of a ragged block was padding."""
        self._set_lengths([length + new for length, new in zip(self.lengths, num_new, strict=True)])

    def compact(self, keep_rows: list[int]) -> None:
        """Row i becomes what row keep_rows[i] was; the others are free. Only rows that move are copied.

        A row may move to a place that is freed by this call, not to that of a row that moves too.
        """
        assert len(set(keep_rows)) == len(keep_rows) <= self.num_rows
        lengths = [self.lengths[row] for row in keep_rows]
        for new, old in enumerate(keep_rows):
            if new != old:
                assert new not in keep_rows
                self._copy_row(new, self, old, lengths[new])
        self._set_lengths(lengths)

    def append(self, other: KVCache, rows: list[int]) -> None:
        """Copies of these rows of another cache (one row as often as it is named) take the next free rows."""
        num_old, new_lengths = self.num_rows, [other.lengths[row] for row in rows]
        assert num_old + len(rows) <= len(self._all_rows_B)
        self._set_lengths(self.lengths + new_lengths)
        self.reserve(0)
        for place, (row, length) in enumerate(zip(rows, new_lengths, strict=True)):
            self._copy_row(num_old + place, other, row, length)

    def truncate(self, length: int) -> None:
        """Forget every token from position `length` on, in all rows."""
        self._set_lengths([min(old, length) for old in self.lengths])

    def _copy_row(self, new: int, source: KVCache, old: int, length: int) -> None:
        self.keys_LBKSD[:, new, :, :length] = source.keys_LBKSD[:, old, :, :length]
        self.values_LBKSD[:, new, :, :length] = source.values_LBKSD[:, old, :, :length]

    def _set_lengths(self, lengths: list[int]) -> None:
        # The lengths twice: on the device for positions, here so that no shape has to wait for the device.
        self.lengths, self.longest = lengths, max(lengths, default=0)
        assert self.longest <= self.num_slots
        self._is_level = min(lengths, default=0) == self.longest
        self._lengths_B = torch.tensor(lengths, dtype=torch.long, device=self._all_rows_B.device)
