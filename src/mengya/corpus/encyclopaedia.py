"""Entries of an encyclopaedia that say nothing: only tables of parameters, or a line or two."""

from __future__ import annotations

import re

from mengya.corpus.normalise import HAN

_HAN = re.compile(f"[{HAN}]")
MIN_HAN = 30
# Headings whose sections are tables and lists; each also after 主要, 基本, 产品, 详细 and the like.
_TABLES = re.compile(
    r"(?:(?:重要|主要|基本|基础|产品|商品|技术|规格|性能|详细|配置|参考|相关|个人|人物|球员|公司|企业|学校|影片|图书|其他|外部)*"
    r"(?:参数|资料|信息|规格|联系方式|联系地址|联系我们|地址|电话|目录|章节|曲目|曲目列表|专辑曲目|演员表|演职员表|剧集列表|"
    r"获奖记录|获奖情况|链接|扩展阅读|延伸阅读|词条图册|图片|图集|价格|报价|售价|条码|版本))+[:：]?"
)
_MAX_HEADING = 20  # characters


def _is_table(heading: str) -> bool:
    return len(heading) <= _MAX_HEADING and _TABLES.fullmatch(heading) is not None


def encyclopaedia_reason(text: str) -> str | None:
    """ "encyclopaedia_stub" under 30 Han characters, "encyclopaedia_table" under 30 outside sections of tables; or None.

    `text` is "title\\n\\n[summary\\n\\n]heading\\ncontent\\n\\n…", as format `baidubaike` makes it. A paragraph without
    a heading belongs to the section before it.
    """
    if len(_HAN.findall(text)) < MIN_HAN:
        return "encyclopaedia_stub"
    in_table = has_table = False
    prose = 0
    for paragraph in text.split("\n\n")[1:]:
        heading, line_end, _ = paragraph.partition("\n")
        if line_end and len(heading) <= _MAX_HEADING and not heading.endswith(("。", "！", "？", "，", "；")):
            in_table = _is_table(heading.strip())
            has_table |= in_table
        if not in_table:
            prose += len(_HAN.findall(paragraph))
    return "encyclopaedia_table" if has_table and prose < MIN_HAN else None
