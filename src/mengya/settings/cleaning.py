"""How documents are cleaned: a key for every step."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import AfterValidator, BeforeValidator, PlainSerializer

from mengya.settings.base import Fraction, Positive, Settings


class CleaningSettings(Settings):
    """Steps of cleaning, each under its own name: what is changed (bools), then why a document is dropped.

    A threshold of `null` switches its rule off. Shares are of the characters that are not white space, unless said.
    """

    mojibake: bool = True
    """Repair text that was decoded wrongly (ftfy)."""
    control_characters: bool = True
    """Remove control, invisible and private-use characters; one kind of space and of line end."""
    half_width: bool = True
    """Latin letters and digits half width."""
    entities: bool = True
    """Unescape HTML entities where no markup stands beside them."""
    unicode: bool = True
    """Unicode normal form C."""
    simplified: bool = False
    """Traditional characters to simplified ones (needs `pip install 'mengya[opencc]'`)."""
    literal_newlines: bool = True
    """A backslash and an n between Chinese sentences become a line end."""
    markup: bool = True
    """Remove style attributes without their tags, and captions of forum attachments."""
    reference_marks: bool = True
    """Remove [1-2] after Chinese text."""
    full_width: bool = True
    """Punctuation between Chinese characters full width."""
    lost_icons: bool = True
    """Remove question marks that stand where a page had an icon."""
    white_space: bool = True
    """Remove spaces in and around Chinese text, at line ends, and blank lines after the first."""
    repeated_punctuation: bool = True
    """Cut runs of one mark."""
    repeated_paragraphs: bool = True
    """Keep each paragraph of a document once."""
    personal_data: bool = False
    """Mask mobile and identity numbers, e-mail addresses and bank cards. Off: in technical text they are examples."""
    min_han: int = 10
    """A document with fewer Han characters is dropped."""
    max_characters: Positive | None = 500_000
    """A longer document is dropped: it is a dump, not a text."""
    encyclopaedia: bool = False
    """Drop entries "title, blank line, heading, content …" of tables only, or with fewer than 30 Han characters."""
    min_han_share: Fraction | None = 0.3
    max_symbol_share: Fraction | None = 0.3
    """Characters that are neither letters, digits, Han nor common punctuation."""
    max_url_share: Fraction | None = 0.3
    max_digit_share: Fraction | None = 0.3
    max_mojibake_share: Fraction | None = 0.03
    """Characters that only a wrong decoding gives."""
    max_repeated_line_share: Fraction | None = 0.3
    """Lines that stood before in the same document, by characters."""
    max_repeated_ngram_share: Fraction | None = 0.6
    """Of the 10-character n-grams."""
    max_notice_share: Fraction | None = None
    """Of Han characters: notices (follow us, copyright …) and sentences that stood before. Web text: 0.6."""
    min_common_share: Fraction | None = None
    """Of Han characters: the commonest of Chinese prose, without which it is a list or word salad. Web text: 0.1."""
    min_stop_share: Fraction | None = None
    """Of punctuation to Han characters; below it a text without the characters of prose is a list. Web text: 0.015."""
    search_snippets: bool = False
    """Drop results pages of search engines: "3小时前 - …", cut-off sentences."""
    spam: bool = False
    """Drop pages whose title offers gambling, sex, forged goods or papers, and pages of shops."""
    max_advertising_terms: int | None = 3
    """Distinct terms from which a text is an advertisement; in short ones fewer do, long ones need a density too."""


TRANSFORMATION_KEYS = (
    "mojibake", "control_characters", "half_width", "entities", "unicode", "simplified", "literal_newlines", "markup",
    "reference_marks", "full_width", "lost_icons", "white_space", "repeated_punctuation", "repeated_paragraphs",
    "personal_data",
)  # fmt: skip
"""Keys of what is changed in a text, in the order in which it is done; all others say why a document is dropped."""

MESSAGE_KEYS = ("mojibake", "control_characters", "white_space", "personal_data")
"""Transformations that leave code, line breaks, punctuation and digits of an answer as they are: those that messages of
conversations and pairs get where `corpus` has them on. `white_space` is of their two ends only. Not `unicode`: all that it
changed in 24,154 real conversations was a lesson on normal forms."""

RULE_SETS: dict[str, dict[str, Any]] = {
    "web": {
        "personal_data": True,
        "max_notice_share": 0.6,
        "min_common_share": 0.1,
        "min_stop_share": 0.015,
        "search_snippets": True,
        "spam": True,
    },
    "encyclopaedia": {"encyclopaedia": True},
}
"""Named values of a source's `rules`: web pages as they come, and entries of an encyclopaedia."""


def _named_rules(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    if value not in RULE_SETS:
        close = difflib.get_close_matches(value, RULE_SETS, n=1)
        mend = f"did you mean {close[0]!r}?" if close else f"name one of {', '.join(RULE_SETS)}"
        raise ValueError(f"{mend}, or give keys of cleaning: {{min_han: 30}}")
    return RULE_SETS[value]


def only_transformations(rules: Mapping[str, Any]) -> None:
    """ValueError for a key that judges documents, where the source has conversations or pairs."""
    for name in rules:
        if name not in TRANSFORMATION_KEYS:
            raise ValueError(
                f"rules of conversations and pairs change text only: {name} is for documents, leave it out"
            )


if TYPE_CHECKING:
    Rules = dict[str, Any]
else:
    # Kept as a dict, not as the model: a resolved recipe must store what was written and not the defaults beside it.
    Rules = Annotated[
        CleaningSettings,
        BeforeValidator(_named_rules),
        AfterValidator(lambda rules: rules.model_dump(exclude_unset=True)),
        PlainSerializer(lambda rules: rules),
    ]
