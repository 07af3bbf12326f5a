"""Personal data masked: mobile and identity numbers, e-mail addresses and bank cards become placeholders.

What is checked is what makes a number personal, so that sums, serial numbers and prices stay: prefixes in use, dates,
check digits, and that the number is not a part of a longer one.
"""

from __future__ import annotations

import re
from datetime import date

MOBILE, IDENTITY, EMAIL, BANK_CARD = "〔手机号〕", "〔身份证号〕", "〔邮箱〕", "〔银行卡号〕"

_BEFORE, _AFTER = r"(?<![0-9A-Za-z_])(?<![0-9][.\-/])", r"(?![0-9A-Za-z_]|[.\-/][0-9])"
# Two digits of the province (GB/T 2260), four of the county, the birthday, a serial number, the check digit.
_IDENTITY = re.compile(
    rf"{_BEFORE}(?:1[1-5]|2[1-3]|3[1-7]|4[1-6]|5[0-4]|6[1-5]|71|8[1-3])\d{{4}}"
    rf"((?:18|19|20)\d\d)(0[1-9]|1[0-2])(0[1-9]|[12]\d|3[01])\d{{3}}[0-9Xx]{_AFTER}"
)
_CARD = re.compile(rf"{_BEFORE}[3-6]\d{{3}}(?:([ -]?)\d{{4}})(?:\1\d{{4}}){{2}}(?:\1\d{{1,3}})?{_AFTER}")
_CARD_IS_MEANT = re.compile("卡|账号|帐号|账户|帐户|银行|开户")
_CONTEXT = 16  # characters before a number
# Ranges in service; 1(7)00 and others of virtual operators included, 1(4)[0-4], 1(5)4, 1(6)[0134789] are none.
_MOBILE = re.compile(
    rf"{_BEFORE}(?:(?:\+|00)?86[ -]?)?1(?:3\d|4[5-9]|5[0-35-9]|6[2567]|7[0-8]|8\d|9[0-35-9])([ -]?)\d{{4}}\1\d{{4}}"
    rf"{_AFTER}(?!\s*[元万亿个人吨米次年%％])"
)
_EMAIL = re.compile(
    r"(?<![\w.+-])[A-Za-z0-9][\w.+-]{0,63}@(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.)+[A-Za-z]{2,18}(?![A-Za-z0-9_]|[(:/])",
    re.ASCII,
)
# Not a person's: the addresses of manuals (RFC 2606) and of Git over SSH.
_NOBODY = re.compile(r"^git@|@(?:[\w-]+\.)*(?:example\.\w+|localhost|test|invalid)$", re.IGNORECASE | re.ASCII)

_WEIGHTS = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)


def identity_check_digit(first_17: str) -> str:
    """The last character of a resident identity number (GB 11643-1999; ISO 7064, MOD 11-2)."""
    return "10X98765432"[sum(weight * int(digit) for weight, digit in zip(_WEIGHTS, first_17, strict=True)) % 11]


def passes_luhn(digits: str) -> bool:
    """Whether the check digit of a card number is right (ISO/IEC 7812-1, annex B)."""
    total = sum(map(int, digits[-1::-2])) + sum(sum(divmod(2 * int(digit), 10)) for digit in digits[-2::-2])
    return total % 10 == 0


def _identity(match: re.Match[str]) -> str:
    number = match[0].upper()
    try:
        date(int(match[1]), int(match[2]), int(match[3]))
    except ValueError:
        return match[0]  # the thirtieth of February
    return IDENTITY if identity_check_digit(number[:17]) == number[17] else match[0]


def _card(match: re.Match[str]) -> str:
    digits = re.sub("[ -]", "", match[0])
    if not 16 <= len(digits) <= 19 or not passes_luhn(digits):
        return match[0]
    # One random number in ten passes Luhn. 62 is UnionPay's own; other schemes' numbers must be called a card.
    before = match.string[max(0, match.start() - _CONTEXT) : match.start()]
    return BANK_CARD if digits.startswith("62") or _CARD_IS_MEANT.search(before) else match[0]


def _email(match: re.Match[str]) -> str:
    return match[0] if _NOBODY.search(match[0]) else EMAIL


_DIGITS = re.compile(r"\d{3}[ -]?\d{4}[ -]?\d{4}", re.ASCII)  # each of the numbers has such a part


def personal_data(text: str) -> str:
    """`text` with 〔手机号〕, 〔身份证号〕, 〔邮箱〕 and 〔银行卡号〕 in the place of such data."""
    if _DIGITS.search(text):
        text = _IDENTITY.sub(_identity, text)
        text = _CARD.sub(_card, text)
        text = _MOBILE.sub(MOBILE, text)
    return _EMAIL.sub(_email, text) if "@" in text else text
