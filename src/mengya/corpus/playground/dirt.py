"""Planted dirt whose truth is known: duplicates, near duplicates, boilerplate, broken text, advertisements."""

# ruff: noqa: E501 (Han characters count as two columns)
from __future__ import annotations

import re
from dataclasses import dataclass
from random import Random

SHARES = {
    "exact_duplicate": 0.03,
    "near_duplicate": 0.04,
    "boilerplate": 0.02,
    "broken": 0.015,
    "advertisement": 0.015,
    "boilerplate_line": 0.02,
}
MIN_NEAR_JACCARD = 0.85
BOILERPLATE = (
    "版权声明：本站文章未经许可不得转载。", "转载请注明出处，违者必究。", "首页 > 文章 > 正文", "上一篇 下一篇 返回顶部", "责任编辑：本站编辑部", "本文来自网友投稿，不代表本站观点。",
    "关注我们的公众号，获取更多内容。", "点赞 收藏 分享 评论", "Copyright © 2026 All Rights Reserved", "关于我们 | 联系我们 | 网站地图 | 招聘信息", "登录 注册 忘记密码", "阅读全文 展开更多 查看评论",
    "免责声明：本站内容仅供参考。", "打印本页 关闭窗口",
)  # fmt: skip
_INSERTIONS = ("的确，", "其实，", "听说，", "据说，", "当然，", "确实，", "总之，", "原来，")
_TAILS = ("就这样。", "是真的。", "说完了。", "你看。", "多好啊。")
_OPENERS = (
    "限时优惠！",
    "重磅好消息！",
    "错过再等一年！",
    "全场五折起！",
    "老板亏本大甩卖！",
    "独家福利来了！",
    "手慢无！",
    "今日特价！",
)
_OFFERS = (
    "{g}只要{p}元，包邮到家。", "现在购买{g}，买一送一。", "原价{q}元的{g}，今天只卖{p}元。", "前{m}名下单再送{g}一份。", "{g}厂家直销，支持货到付款。", "凭优惠券购买{g}立减{m}元。", "{g}热销{q}件，好评如潮。",
)  # fmt: skip
_CALLS = (
    "加微信{i}领取优惠券。", "点击链接 http://www.{i}.com 立即抢购！", "添加客服微信：{i}，先到先得。", "扫描二维码进群，微信号{i}。", "咨询热线400-{d}，欢迎来电。", "QQ群{d}，进群免费领取。",
)  # fmt: skip
_GOODS = (
    "减肥茶",
    "手机壳",
    "保健品",
    "面膜",
    "运动鞋",
    "充电宝",
    "理财课程",
    "电饭锅",
    "旅游套餐",
    "奢侈手表",
    "护肤套装",
    "养生壶",
)


@dataclass(frozen=True, slots=True)
class Planted:
    """A dirty text; `index` is the clean document that it was made from, where there is one."""

    text: str
    dirt: str
    index: int | None = None


def shingles(text: str, size: int = 5) -> set[str]:
    return {text[start : start + size] for start in range(max(1, len(text) - size + 1))}


def jaccard(left: str, right: str) -> float:
    """Share of character 5-grams that two texts have in common, of all that either has."""
    a, b = shingles(left), shingles(right)
    return len(a & b) / len(a | b)


def _words(text: str) -> str:
    return re.sub(r"\W", "", text)


def exact_duplicate(rng: Random, text: str) -> str:
    """The text itself, or with differences of white space and width that normalisation removes."""
    full_width = str.maketrans("0123456789", "０１２３４５６７８９")
    return rng.choice(
        (
            text,
            text + "\n",
            "  " + text,
            text.replace("\n", "\r\n") + " ",
            text.translate(full_width) + "\u3000",
            "\n" + text.replace("\n", " \n") + "\t\n",
        )
    )


def near_duplicate(rng: Random, text: str) -> str | None:
    """The text with one or a few small edits that leave its facts true; None where it is too short to stay near."""
    for _ in range(8):
        edited = text
        for _ in range(rng.choice((1, 1, 1, 2, 2))):
            stops = [i for i, char in enumerate(edited[:-1]) if char == "。" and edited[i + 1] not in "\n，。"]
            if not stops:
                return None
            place = rng.choice(stops)
            edit = rng.randrange(4)
            if edit < 2:
                edited = edited[: place + 1] + rng.choice(_INSERTIONS) + edited[place + 1 :]
            elif edit == 2:
                edited = edited[:place] + "！" + edited[place + 1 :]
            elif edited.endswith("。"):
                edited += rng.choice(_TAILS)
        # A change of punctuation alone is an exact duplicate to whoever ignores punctuation.
        words, edited_words = _words(text), _words(edited)
        similar = min(jaccard(edited, text), jaccard(edited_words, words)) >= MIN_NEAR_JACCARD
        if similar and edited_words != words:
            return edited
    return None


def boilerplate(rng: Random) -> str:
    return "\n".join(rng.sample(BOILERPLATE, rng.randint(3, 6)))


def boilerplate_line(rng: Random, text: str) -> str:
    line = rng.choice(BOILERPLATE)
    return f"{line}\n{text}" if rng.random() < 0.3 else f"{text}\n{line}"


def broken(rng: Random, text: str) -> str:
    """Text damaged beyond repair: wrong decoding, control characters, symbols without words, bytes as hex."""
    kind = rng.randrange(5)
    if kind == 0:
        return text.encode("gb18030").decode("latin-1")
    if kind == 1:
        return "".join(rng.choice(("锟斤拷", "烫烫烫", "�", "屯屯屯", "��")) for _ in range(rng.randint(20, 50)))
    if kind == 2:
        return "".join(rng.choice("★☆■◆□●○▲△※→←↑↓=-_*#~+|/") * rng.randint(1, 6) for _ in range(rng.randint(20, 45)))
    if kind == 3:
        # Half of the characters are lost: what remains is no text, even when the control characters are taken out.
        return "".join(char if rng.random() < 0.5 else rng.choice(("\x00", "\x07", "\x1b[0m", "�")) for char in text)
    return " ".join(f"{rng.randrange(256):02x}" for _ in range(rng.randint(40, 90)))


def advertisement(rng: Random) -> str:
    goods = rng.sample(_GOODS, 3)
    lines = [rng.choice(_OPENERS)]
    for item in goods:
        price = rng.randint(9, 99)
        lines.append(rng.choice(_OFFERS).format(g=item, p=price, q=price * rng.randint(3, 9), m=rng.randint(5, 50)))
    handle = "".join(rng.choice("abcdefghkmnpqrstwxyz") for _ in range(5)) + str(rng.randint(10, 9999))
    lines += [call.format(i=handle, d=rng.randint(1000000, 9999999)) for call in rng.sample(_CALLS, 2)]
    return "".join(lines)


def plant(rng: Random, texts: list[str]) -> list[Planted]:
    """Dirt in the shares of `SHARES` of the clean `texts`; of a "boilerplate_line" the original is replaced, not repeated.

    Every document is the origin of at most one planted text, so each duplicate has one known partner.
    """
    counts = {dirt: round(share * len(texts)) for dirt, share in SHARES.items()}
    unused = iter(rng.sample(range(len(texts)), len(texts)))
    planted = [Planted(boilerplate(rng), "boilerplate") for _ in range(counts["boilerplate"])]
    planted += [Planted(advertisement(rng), "advertisement") for _ in range(counts["advertisement"])]
    for _ in range(counts["exact_duplicate"]):
        index = next(unused)
        planted.append(Planted(exact_duplicate(rng, texts[index]), "exact_duplicate", index))
    for _ in range(counts["broken"]):
        planted.append(Planted(broken(rng, texts[next(unused)]), "broken"))
    for _ in range(counts["boilerplate_line"]):
        index = next(unused)
        planted.append(Planted(boilerplate_line(rng, texts[index]), "boilerplate_line", index))
    remaining = counts["near_duplicate"]
    for index in unused:
        if not remaining:
            break
        if (edited := near_duplicate(rng, texts[index])) is not None:
            planted.append(Planted(edited, "near_duplicate", index))
            remaining -= 1
    return planted
