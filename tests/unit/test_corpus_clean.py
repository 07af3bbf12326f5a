"""Normalising keeps Chinese Chinese; rules drop junk for the reason they name and leave good text alone."""

from __future__ import annotations

import json
import random
import re
import sys
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mengya.corpus.boilerplate import Boilerplate
from mengya.corpus.clean import RULES, SETTING_OF, TRANSFORMATIONS, clean, clean_batch, first_reason, normalise
from mengya.corpus.normalise import _converter, repeated_paragraphs
from mengya.corpus.personal import BANK_CARD, EMAIL, IDENTITY, MOBILE, identity_check_digit, passes_luhn, personal_data
from mengya.errors import UserError
from mengya.recipe import load_recipe
from mengya.settings import RULE_SETS, CleaningSettings, CorpusSettings

SETTINGS = CorpusSettings()
WEB = CleaningSettings(**RULE_SETS["web"])
GOOD = (
    "清晨的集市很热闹，卖菜的阿姨把带着露水的青菜一把一把摆好，孩子们围着糖画摊子不肯走。",
    "水在一个标准大气压下于100摄氏度沸腾。海拔每升高300米，沸点大约降低1摄氏度，所以高山上煮饭要用高压锅。",
    "def 求和(数列):\n    结果 = 0\n    for 数 in 数列:\n        结果 += 数\n    return 结果\n"
    "上面的函数把列表里的数一个一个加起来，再把总和还给调用它的人。",
    "警方通报：嫌疑人以刷单返利为名，让受害人扫描二维码、点击链接，又说稳赚不赔，诈骗数十万元，现已被公安机关抓获。",
    "请跟我算：13减5等于8。7加9等于16。20减12等于8。3乘6等于18。15减6等于9。10加10等于20。",
    "执法人员查处了七个卖六合彩码报的摊点，点击链接看现场。" + "摊主说，六合彩害人，再不碰六合彩了。" * 4,
    "今晨五点，城北的桥通车了，第一班公共汽车载着上学的孩子驶过河面。https://news.example.org/2024/03/01/bridge/9e411382c07b65fe.html",
    "折扣在后台设置：打开折扣页，选折扣组，填折扣率，再选折扣的起止日期。一件商品有几个折扣时，只用最大的折扣；折扣不能叠加，除非折扣组允许折扣相加。",
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
    assert repeated_paragraphs(text) == f"{refrain}\n{paragraph}\n{refrain}"


@pytest.mark.parametrize("text", GOOD)
@pytest.mark.parametrize("cleaning", [SETTINGS, WEB], ids=["default", "web"])
def test_good_text_is_kept(text: str, cleaning: CleaningSettings) -> None:
    assert first_reason(normalise(text), cleaning) is None


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


SURNAMES = "张王李赵刘陈杨黄周吴徐孙朱胡郭何罗高宋郑"
NAMES = "伟芳娜洋静帆磊敏强军霞涛勇艳杰娟超婷浩宇丽刚平辉玲桂英华玉兰琴飞云鹏莉洁倩雪慧颖琳鑫斌波海龙凤梅春秋冬松柏青红燕晶亮岩峰"
PROSE = (
    "记者昨天从市水务局了解到，今年的供水工程已经过半。到了明年春天，老城区每一户居民家里的水管都会换成新的，水压不足的问题也会得到解决。"
    "家住城北的王大爷说，以前夏天的时候常常没有水用，只好提着桶到楼下去接；现在好了，他打算把家里的旧水缸送给外孙养鱼。"
)


@pytest.mark.parametrize(
    ("reason", "text"),
    [
        ("spam", "某某娱乐城官方网址_中国新闻\n" + PROSE),
        ("spam", "高仿名牌女包货源\n" + PROSE),
        (
            "spam",
            "某县玻璃钢化粪池价格 本公司专业生产化粪池，型号齐全，欢迎来电咨询，厂家直销，价格优惠，联系电话见下。",
        ),
        ("search_snippet", "某市召开会议_某网 3小时前 - 会议指出，要抓好今年的各项工作，为明年打好.."),
        ("search_snippet", "第一件事还没有说完.. 第二件事也是只有开头.. 这里的第三件事也一样.."),
        (
            "notices",
            "城北大桥今天通车 原标题：城北大桥今天通车 本文仅代表作者本人观点，不代表本站立场，转载请注明来源。",
        ),
        ("few_common_characters", "".join(chr(0x5000 + 37 * number % 4000) for number in range(200)) + "。，" * 20),
        (
            "few_stops",
            "下面是我们今天在学校里值班的人和他们的家人 "
            + " ".join(map("".join, zip(SURNAMES * 3, NAMES, strict=True))),
        ),
    ],
)
def test_the_dirt_of_the_web_is_dropped_when_its_rules_are_on(reason: str, text: str) -> None:
    assert clean(text, WEB).reason == reason
    assert clean(text, SETTINGS).reason != reason


@pytest.mark.parametrize(
    "title",
    [
        "民警端掉网上赌球平台",
        "男子沉迷时时彩被骗十万元",
        "百度高仿医院卷土重来",
        "澳门赌场的历史",
        "市场上水果的价格降了",
        "供应商的难处",
    ],
)
def test_news_about_spam_and_about_prices_is_no_spam(title: str) -> None:
    assert clean(f"{title}\n{PROSE}", WEB).reason is None


def off(key: str) -> CleaningSettings:
    none = type(None) in getattr(CleaningSettings.model_fields[key].annotation, "__args__", ())
    return CleaningSettings(**{key: None if none else 0})


def test_every_step_and_every_rule_has_its_key() -> None:
    keys = set(CleaningSettings.model_fields)
    assert {name for name, _ in TRANSFORMATIONS} | set(SETTING_OF.values()) == keys
    assert len(RULES) == len(set(SETTING_OF.values()))


def test_every_step_is_named_when_it_changes_a_text_and_does_nothing_when_it_is_off() -> None:
    dirty = {
        "mojibake": "这是正常文字".encode().decode("latin-1"),
        "control_characters": "你好\x00世界",
        "half_width": "Ａ股",
        "entities": "买&amp;卖",
        "unicode": "cafe\u0301 很好",
        "literal_newlines": "第一段。\\n第二段",
        "markup": '一段话。style="margin: 0;"style="color: red;"又一段。a.png (8.5 KB， 下载次数: 0)下载附件保存到相册昨天 23:42 上传',
        "reference_marks": "北京[1-2]是首都。",
        "full_width": "好,走吧",
        "lost_icons": "编辑 ? ? 王蓉",
        "white_space": "你好 。",
        "repeated_punctuation": "真的吗？？",
        "repeated_paragraphs": "\n".join(["这是一个足够长的段落，它在网页上因为排版的错误出现了两次。"] * 2),
        "personal_data": "请打13912345678找我",
    }
    everything = CleaningSettings(personal_data=True)
    for name, text in dirty.items():
        assert clean(text, everything).changed[0] == name
        assert name not in clean(text, everything.model_copy(update={name: False})).changed
    assert set(dirty) == {name for name, _ in TRANSFORMATIONS} - {"simplified"}
    text = "北京[1]是Ａ股上市公司的首都,请打13912345678！！"
    assert clean(text, everything).changed == (
        *("half_width", "reference_marks", "full_width", "repeated_punctuation", "personal_data"),
    )


def test_markup_that_is_meant_stays() -> None:
    text = '写 <p class="a" style="color: red;"> 或 <img alt="图" src="a.png">，再上传文件。'
    assert clean(text, SETTINGS).text == text


@pytest.mark.parametrize(
    ("reason", "text"),
    [
        ("too_short", "短。"),
        ("too_long", GOOD[0] * 20_000),
        ("mojibake", GOOD[0] + "锟斤拷锟斤拷"),
        ("low_han_share", GOOD[0] + "the quick brown fox jumps over the lazy dog " * 10),
        ("many_symbols", GOOD[0] + "★▲█◆※" * 10),
        ("many_urls", GOOD[0] + "https://example.org/a/b/c?d=e " * 2),
        ("many_digits", GOOD[0] + "13800000000 " * 4),
        ("repeated_lines", "天上星星亮晶晶\n" * 10 + GOOD[0]),
        ("repeated_ngrams", GOOD[0] * 6),
        ("advertisement", "本店新到羽绒服，限时优惠，原价599，现价仅售199，全国包邮，喜欢的朋友加微信下单。"),
    ],
)
def test_a_rule_that_is_off_drops_nothing(reason: str, text: str) -> None:
    assert first_reason(text, off(SETTING_OF[reason])) != reason


def test_a_batch_is_cleaned_text_by_text() -> None:
    texts = [*GOOD, "短。", ""]
    assert clean_batch(texts, SETTINGS) == [clean(text, SETTINGS) for text in texts]


# Made for this test: the first district of Beijing, the seventh of March 1900, number 851.
ID_17 = "11010119000307851"
ID = ID_17 + identity_check_digit(ID_17)


def test_check_digits_are_those_of_the_standards() -> None:
    assert identity_check_digit("11010519491231002") == "X"  # the example of GB 11643-1999
    assert identity_check_digit("44052418800101001") == "4"  # its other example
    assert passes_luhn("79927398713")  # the example of ISO/IEC 7812-1's usual descriptions
    assert not any(passes_luhn(f"7992739871{digit}") for digit in "012456789")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("请打13912345678。", f"请打{MOBILE}。"),
        ("手机+86 139-1234-5678，186 1234 5678", f"手机{MOBILE}，{MOBILE}"),
        (f"身份证{ID}号", f"身份证{IDENTITY}号"),
        ("身份证11010519491231002x", f"身份证{IDENTITY}"),
        ("信箱 wang.xiaoming@mail.example-firm.com.cn，", f"信箱 {EMAIL}，"),
        ("卡号6212345678901232。", f"卡号{BANK_CARD}。"),
        ("6212 3456 7890 1232", BANK_CARD),
        ("银行卡 4111111111111111", f"银行卡 {BANK_CARD}"),
    ],
)
def test_personal_data_is_masked(text: str, expected: str) -> None:
    assert personal_data(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "12345加67890等于80235，13减5等于8。",
        "12912345678 与 10012345678",  # no prefix in service
        "订单号813912345678，流水号1391234567890",  # a part of a longer number
        "营业额13912345678元",
        "3.13912345678",
        "commit 9e13912345678f",
        "110101190002308515",  # the thirtieth of February
        f"{ID[:17]}{(int(ID[17]) + 1) % 10}",  # a wrong check digit
        "订单4111111111111111",  # passes Luhn, but nobody says that it is a card
        "6212345678901233",  # fails Luhn
        "git@github.com:a/b.git、user@example.com 与 @property",
        "服务热线 400-879-6626，总机 0471-6635129，拨 110",
    ],
)
def test_other_numbers_and_addresses_are_not(text: str) -> None:
    assert personal_data(text) == text


def test_a_list_of_numbers_is_dropped_before_it_is_masked_and_its_sample_is_masked() -> None:
    text = GOOD[0] + "13900000000 " * 4
    cleaned = clean(text, CleaningSettings(personal_data=True))
    assert cleaned.reason == "many_digits"
    assert "139" not in cleaned.text


ENTRY = "某型水泵\n\n重要参数\n流量：25立方米每小时\n扬程：32米\n功率：4千瓦\n\n联系方式\n地址：某省某市某路一百号，某某水泵厂销售部"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (ENTRY, "encyclopaedia_table"),
        (ENTRY.replace("重要参数", "个人资料"), "encyclopaedia_table"),
        (ENTRY + "\n\n历史\n" + GOOD[0], None),
        (ENTRY.replace("\n\n重要", f"\n\n{GOOD[0]}\n\n重要"), None),  # a summary before the tables
        ("某型水泵\n\n某型水泵是一种水泵，用来抽水。", "encyclopaedia_stub"),
        ("泰山\n\n" + GOOD[0], None),
    ],
)
def test_entries_of_tables_and_stubs_are_dropped_from_an_encyclopaedia(text: str, reason: str | None) -> None:
    assert clean(text, CleaningSettings(encyclopaedia=True)).reason == reason
    assert clean(text, SETTINGS).reason is None


def test_traditional_characters_are_simplified_by_their_words() -> None:
    pytest.importorskip("opencc", reason="pip install 'mengya[opencc]'")
    assert (
        clean("頭髮很乾，皇后後天發現乾隆的硯臺。", CleaningSettings(simplified=True)).text
        == "头发很干，皇后后天发现乾隆的砚台。"
    )
    assert clean(GOOD[0], CleaningSettings(simplified=True)).text == clean(GOOD[0], SETTINGS).text


def test_without_opencc_the_way_to_install_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    _converter.cache_clear()
    monkeypatch.setitem(sys.modules, "opencc", None)
    with pytest.raises(UserError, match=r"mengya\[opencc\]"):
        clean(GOOD[0], CleaningSettings(simplified=True))


RECIPE = """name: small
corpus:
  max_digit_share: 0.2
  documents:
    - {path: a.txt}
    - {path: b.txt, rules: {min_han: 30, max_url_share: null}}
    - {path: c.txt, rules: web}
"""


def test_rules_of_a_source_stand_over_those_of_the_corpus(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    recipe = load_recipe(tmp_path / "recipe.yaml")
    plain, own, web = (recipe.corpus.cleaning(source.rules) for source in recipe.corpus.documents)
    assert (plain.min_han, plain.max_url_share, plain.max_digit_share) == (10, 0.3, 0.2)
    assert (own.min_han, own.max_url_share, own.max_digit_share) == (30, None, 0.2)
    assert web == plain.model_copy(update=RULE_SETS["web"])
    # What is stored with a run reads back as it was, and not with defaults for rules.
    assert type(recipe).model_validate(recipe.model_dump(mode="json")) == recipe
    assert recipe.model_dump()["corpus"]["documents"][1]["rules"] == {"min_han": 30, "max_url_share": None}


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("min_han: 30", "min_hann: 30", "recipe.yaml:6: unknown key .*min_hann.*did you mean 'min_han'"),
        ("min_han: 30", "min_han_share: 30", "recipe.yaml:6: .*min_han_share: 30 is not allowed"),
        ("rules: web", "rules: wbe", "recipe.yaml:7: .*did you mean 'web'"),
    ],
)
def test_a_slip_in_rules_is_named_with_its_line(tmp_path: Path, old: str, new: str, said: str) -> None:
    (tmp_path / "recipe.yaml").write_text(RECIPE.replace(old, new), encoding="utf-8")
    with pytest.raises(UserError, match=said):
        load_recipe(tmp_path / "recipe.yaml")


def test_the_labels_name_two_hundred_pages_by_hash_alone() -> None:
    labels = json.loads((Path(__file__).parents[1] / "data" / "web_news_labels.json").read_text(encoding="utf-8"))
    pages = [*labels["random"], *labels["near"]]
    assert len(set(pages)) == 200
    assert all(re.fullmatch("[0-9a-f]{32}", page) for page in pages)
    assert set(labels["in_near"]) <= set(labels["random"])
    assert {*labels["random"].values(), *labels["near"].values()} == {"keep", "drop"} == set(labels["criteria"])


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
