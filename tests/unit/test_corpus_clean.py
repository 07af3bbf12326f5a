"""Normalising keeps Chinese Chinese; rules drop junk for the reason they name and leave good text alone."""

from __future__ import annotations

import random

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mengya.corpus.boilerplate import Boilerplate
from mengya.corpus.clean import first_reason, normalise, without_repeated_paragraphs
from mengya.settings import CorpusSettings

SETTINGS = CorpusSettings()
GOOD = (
    "清晨的集市很热闹，卖菜的阿姨把带着露水的青菜一把一把摆好，孩子们围着糖画摊子不肯走。",
    "水在一个标准大气压下于100摄氏度沸腾。海拔每升高300米，沸点大约降低1摄氏度，所以高山上煮饭要用高压锅。",
    "def 求和(数列):\n    结果 = 0\n    for 数 in 数列:\n        结果 += 数\n    return 结果\n"
    "上面的函数把列表里的数一个一个加起来，再把总和还给调用它的人。",
    "警方通报：嫌疑人以刷单返利为名，让受害人扫描二维码、点击链接，又说稳赚不赔，诈骗数十万元，现已被公安机关抓获。",
    "请跟我算：13减5等于8。7加9等于16。20减12等于8。3乘6等于18。15减6等于9。10加10等于20。",
    "执法人员查处了七个卖六合彩码报的摊点，点击链接看现场。" + "摊主说，六合彩害人，再不碰六合彩了。" * 4,
    "妈妈让我给外婆打电话，问她周末要不要一起包饺子。外婆说好，还说要带自己种的韭菜来。",
)


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("ＡＢＣ１２３，全角标点：不变！", "ABC123，全角标点：不变！"),
        ("\ufeff零\u200b宽\u00ad字符\x00\x1b", "零宽字符"),
        ("中 国 人 民 站 起 来 了", "中国人民站起来了"),
        ("苹果 香蕉 橘子", "苹果 香蕉 橘子"),
        ("你好 ， 世界 。 再见", "你好，世界。再见"),
        ("　　段首缩进。\r\n\r\n\r\n\r\n下一段。  ", "段首缩进。\n\n下一段。"),
        ("真的吗？？？？太好了！！！！", "真的吗？太好了！"),
        ("说不清。。。。", "说不清……"),
        ("北京[1-2]是首都。[3][12]", "北京是首都。"),
        ("array[1] 与 a[i]", "array[1] 与 a[i]"),
        ("第一段。\\n第二段", "第一段。\n第二段"),
        ("记者走访\\n▼\\n「单车」出现\\n- 完 -", "记者走访\n▼\n「单车」出现\n- 完 -"),
        ('print("你好\\n")', 'print("你好\\n")'),
        ("C:\\new 文件夹、[^\\n] 与 a\\nb", "C:\\new 文件夹、[^\\n] 与 a\\nb"),
        ("他说:“好,走吧!”于是走了;真的?\n是,", "他说：“好，走吧！”于是走了；真的？\n是，"),
        ("for 数 in 数列:\n    f(甲, 乙), 1:2", "for 数 in 数列:\n    f(甲, 乙), 1:2"),
        ("监制：刘宝 ? ? ? 责任编辑：牛旭 ? 王蓉", "监制：刘宝 责任编辑：牛旭 王蓉"),
        ("好吗? 好。大小 = 真 ? 大 : 小", "好吗? 好。大小 = 真 ? 大 : 小"),
        ("买&nbsp;卖&amp;租", "买 卖&租"),
        ("写作 <b>&lt;b&gt;</b>", "写作 <b>&lt;b&gt;</b>"),
        ("if x:\n    y = 1  \n\treturn", "if x:\n    y = 1\n\treturn"),
        ("cafe\u0301 与 \uf900", "café 与 豈"),
        ("这是正常文字".encode().decode("latin-1"), "这是正常文字"),
        ("👨\u200d👩\u200d👧 一家", "👨\u200d👩\u200d👧 一家"),
    ],
)
def test_text_is_brought_into_one_form(raw: str, expected: str) -> None:
    assert normalise(raw) == expected


@settings(max_examples=300, deadline=None)
@example("！ ！")
@example("北京[1] 。")
@example("&amp;lt;")
@given(st.text(alphabet=st.sampled_from("中文。，！？,?:…—[1]- ab\n\t\u3000Ａ１&lt;\\n\x00~."), max_size=60))
def test_normalising_a_normal_text_changes_nothing(text: str) -> None:
    once = normalise(text)
    assert normalise(once) == once


def test_a_paragraph_that_stands_twice_is_kept_once_and_short_lines_repeat() -> None:
    paragraph = "这是一个足够长的段落，它在网页上因为排版的错误出现了两次。"
    refrain = "小河弯弯流向东"
    text = f"{refrain}\n{paragraph}\n{refrain}\n{paragraph}"
    assert without_repeated_paragraphs(text) == f"{refrain}\n{paragraph}\n{refrain}"


@pytest.mark.parametrize("text", GOOD)
def test_good_text_is_kept(text: str) -> None:
    assert first_reason(normalise(text), SETTINGS) is None


@pytest.mark.parametrize(
    ("reason", "text"),
    [
        ("too_short", "短。"),
        ("too_long", GOOD[0] * 20_000),
        ("low_han_share", GOOD[0] + "the quick brown fox jumps over the lazy dog " * 10),
        ("mojibake", GOOD[4].encode().decode("gb18030", "replace")),
        ("mojibake", GOOD[0] + "锟斤拷锟斤拷"),
        ("many_symbols", GOOD[0] + "★▲█◆※" * 10),
        ("many_urls", GOOD[0] + "https://example.org/a/b/c?d=e " * 2),
        ("many_digits", GOOD[0] + "13800000000 " * 4),
        ("repeated_lines", "天上星星亮晶晶\n" * 10 + GOOD[0]),
        ("repeated_ngrams", GOOD[0] * 6),
        ("advertisement", "本店新到羽绒服，限时优惠，原价599，现价仅售199，全国包邮，喜欢的朋友加微信下单。"),
        ("advertisement", "想学好英语吗？名师小班，免费试听，名额有限，点击链接报名，或拨打咨询热线。" + GOOD[0]),
        ("advertisement", "".join(f"{place}哪里能办小额贷款？欢迎来电。" for place in "东西南北上下左右城乡")),
    ],
)
def test_junk_is_dropped_for_its_reason(reason: str, text: str) -> None:
    assert first_reason(text, SETTINGS) == reason


def test_thresholds_are_obeyed() -> None:
    text = GOOD[0]
    assert first_reason(text, CorpusSettings(min_han=1000)) == "too_short"
    assert first_reason(text, CorpusSettings(max_characters=10)) == "too_long"
    advertisement = "全国包邮，加微信下单，把家里用旧的东西换成新的，一年四季都合适。"
    assert first_reason(advertisement, CorpusSettings(max_advertising_terms=3)) == "advertisement"
    assert first_reason(advertisement, CorpusSettings(max_advertising_terms=9)) is None


def test_lines_that_recur_over_a_source_are_removed_and_only_there() -> None:
    notice = "版权声明：本文由用户上传，转载请注明出处。"
    menu = "今天 天气 财经 体育 娱乐"
    greeting = "祝你身体健康，万事如意！"
    entry = "# 常见说明\n传染性：无传染性疾病"
    rng = random.Random(0)
    own = ["".join(rng.choices("春夏秋冬风花雪月山水", k=12)) for _ in range(50)]
    texts = [f"{line}\n{entry}\n{notice}\n{menu}\n}};" for line in own]
    texts = [f"{text}\n{greeting}" if number < 15 else text for number, text in enumerate(texts)]
    boilerplate = Boilerplate(min_documents=10, min_share=0.5)
    for text in texts:
        boilerplate.count("a", text)
    for text in texts[:10]:
        boilerplate.count("b", text)
    assert boilerplate.strip("a", texts[0]) == (f"{own[0]}\n{entry}\n}};\n{greeting}", [notice, menu])
    assert boilerplate.strip("b", texts[0]) == (texts[0], [])  # 10 documents, not more than 10


def test_a_notice_after_the_last_sentence_is_boilerplate_and_a_signature_is_not() -> None:
    boilerplate = Boilerplate(min_documents=10, min_share=0.5)
    for number in range(20):
        boilerplate.count("a", f"第{number}件事讲完了。返回首页，查看更多 责任编辑：")
    text = "事情说完了。返回首页，查看更多 责任编辑："
    assert boilerplate.strip("a", text) == ("事情说完了。", ["返回首页，查看更多 责任编辑："])
    assert boilerplate.strip("a", "事情说完了。责任编辑：王小明") == ("事情说完了。责任编辑：王小明", [])
