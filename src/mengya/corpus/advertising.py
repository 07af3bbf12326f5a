"""Terms of selling, contact, gambling, vice and quackery. Own list, to be grown by reading what gets through.

`offers_spam` looks at titles, where a page says what it is for; `notice_share` at what an account says of itself.
Reports about a swindle or a casino use these words too, so the rule that asks (`clean.advertisement`) wants several
distinct ones, standing densely.
"""

from __future__ import annotations

import re

_TERMS: dict[str, str] = {
    "contact": """
        加微信 加我微信 微信号 微信同号 同微信 加V信 加薇信 威信号 扫码 扫一扫 扫描二维码 长按二维码 识别二维码 二维码加
        关注公众号 关注我们 关注微信 公众号回复 私信我 点击链接 点击下方 点击蓝字 点击上方 点击进入 点击购买 点击领取
        戳链接 阅读原文 复制链接 复制这条 立即下载 下载APP 下载app 免费下载 在线咨询 咨询热线 咨询电话 联系电话
        订购热线 订购电话 服务热线 热线电话 联系客服 在线客服 客服微信 客服QQ 联系QQ QQ群 加群 进群 欢迎来电 来电咨询
        欢迎咨询 致电咨询 拨打电话""",
    "selling": """
        免费领取 免费试用 免费试听 免费咨询 免费报名 限时优惠 限时抢购 限时特价 限时秒杀 优惠券 领券 领取优惠
        优惠价 特价 特惠 折扣 立减 满减 包邮 秒杀 抢购 原价 现价 仅售 仅需 买一送一 买二送一 清仓 甩卖 大促 下单
        立即购买 马上购买 立即抢购 厂家直销 批发价 量大从优 全国招商 诚招代理 招商加盟 加盟热线
        免费加盟 招代理 一件代发 货到付款 假一赔十 正品保证 送货上门 名额有限 先到先得 机会难得 不容错过 优质服务 价格合理
        价格优惠 竭诚为您""",
    "money": """
        日赚 月入过万 轻松赚钱 兼职赚钱 在家赚钱 躺赚 稳赚 高额返利 返利 返现 刷单 内部渠道 内幕消息 荐股 牛股 代开发票
        代办 办证 无抵押 秒批 当天放款 快速放款 低息贷款 贷款热线 小额贷款 民间贷款 急用钱 不成功不收费 高价回收 诚招加盟""",
    "gambling": """
        博彩 彩金 首存 注册送 投注 时时彩 六合彩 百家乐 真人娱乐 娱乐城 棋牌平台 赌场官网 澳门新葡京 葡京娱乐 体育投注
        网上赌博""",
    "gambling sites": """
        在线博彩 博彩网 博彩平台 娱乐平台 娱乐注册 娱乐官网 娱乐官方 赛车娱乐 北京赛车 幸运飞艇 彩票平台 彩票代理 开奖记录 开奖直播
        平台注册""",
    "trade": """
        诚招 加盟商 主营产品 推荐产品 销售区域 销售热线 销售电话 产品型号 厂家供应 厂家批发 价格表 预约电话 维修热线 售后维修 售后服务热线
        团队扶持 颁发授权 激活邀请码 邀请码 提额 套现 微店 一手货源 工厂货源 实物拍摄 正品推荐 抢购方式 推广价 先验货 验货后 七天无理由
        7天无理由 咨询客服""",
    "vice": "裸聊 约炮 一夜情 成人视频 成人电影 激情视频 同城交友",
    "quackery": "壮阳 丰胸 祛斑 减肥茶 无效退款 根治 祖传秘方 包治 药到病除",
}
ADVERTISING_TERMS: tuple[str, ...] = tuple(term for terms in _TERMS.values() for term in terms.split())
# Longest first, so that "加微信" is not found inside "请加微信号" as a second term.
_PATTERN = re.compile("|".join(map(re.escape, sorted(ADVERTISING_TERMS, key=lambda term: (-len(term), term)))))


_OFFERS = {term for kind in ("contact", "selling", "trade", "gambling sites") for term in _TERMS[kind].split()}
_REPORT = re.compile("警方|民警|公安|法院|检察|执法|查处|诈骗|骗子|嫌疑人|被告")


def advertising_terms(text: str) -> list[str]:
    """The terms that stand in `text`, in order, with repetition."""
    return _PATTERN.findall(text)


def sells(terms: list[str]) -> bool:
    """Whether any of `terms` sells or asks to get in touch; an article on Macau's casinos does neither."""
    return not _OFFERS.isdisjoint(terms)


def is_report(text: str) -> bool:
    """Whether police, courts or swindlers are named: such a text is likelier about advertisements than one."""
    return _REPORT.search(text) is not None


# What spam pages put into their title, over text taken from elsewhere. Each must be an offer by itself: 金沙 and 永利 are
# a ruin and a fund as well, 赌博 is what the police report, and people talk about 裸聊.
_SPAM = re.compile(
    # gambling
    "博彩|娱乐城|时时彩|六合彩|(?:北京|极速|幸运)赛车|幸运(?:飞艇|28)|赛车(?:[Pp][Kk]|群|微信)|[Pp][Kk]10|百家乐|老虎机|"
    "真人(?:娱乐|荷官|视讯|赌)|炸金花|棋牌(?:游戏|平台|下载|中心|室)|(?:体育|足球|篮球|彩票|赛车|飞艇)投注|投注(?:网|平台|技巧)|网上赌场|"
    "赌场(?:网|官|\\d)|新葡京|葡京(?:娱乐|赌)|[Bb]et365|[Aa][Gg](?:亚游|真人)|[Uu][Ee][Dd](?:体育|bet)|电子游艺|游艺平台|"
    "(?:娱乐|彩票|赌博|亚洲)(?:官方)?(?:官网|平台|注册|开户|代理|网址|在线)|澳门[^，。：]{0,6}(?:开户|网址|网站|官网)|"
    "开奖(?:记录|直播)|码中特|特码|杀[一二三]码|[打猜解]一个?(?:生)?肖|精准[一二三四五六]?肖|(?:线上|网上)娱乐|娱乐国际|世界杯娱乐|"
    "赌(?:球|博)(?:[Aa][Pp][Pp]|网|平台|信誉)|赌场[^，。]{0,6}_|龙虎和|快乐十分|彩票网|棋牌_|[网沙利发]开户_|娱乐[_-]|"
    # sex
    "外围女|外围模特|楼凤|援交|小姐\\)?联系方式|会所一条龙|一条龙(?:全套)?服务|全套服务|上门服务[^，。]{0,6}(?:微信|电话)|"
    "成人(?:视频|电影|小说|网站)|激情(?:视频|小说)|色情(?:网站|小说|电影)|"
    # forged goods and papers, loans, numbers
    "(?:高仿|精仿|复刻)[^，。：医]{0,14}(?:包|表|鞋|衣|装|货|价格|代理|皮带|腰带|眼镜)|[^，。]{0,8}(?:高仿|精仿)货源|原单[^，。]{0,6}(?:代购|货源|批发|在哪|包)|"
    "(?:代开|哪里[有能可以]*开)[^，。]{0,4}票|假(?:病历|文凭|毕业证|学历|身份证)[^，。]{0,6}(?:办|怎么|开|多少)|代办(?:证件|学历|毕业证)|办[^，。]{0,6}毕业证|"
    "代(?:办|做)?(?:真实)?银行流水|(?:资质|执照|公司)代办|(?:私家|知名|著名)侦探|侦探公司|"
    "白条[^，。]{0,6}套现|花呗[^，。]{0,4}(?:套现|提现)|本地套现|套现方法|无抵押贷款|(?:私人|民间|急用钱)(?:放款|贷款|借钱)|靓号|吉祥号"
)
_TITLE = 48  # characters in which a title without a line of its own stands
# What reports about such things say in the same breath.
_IN_THE_NEWS = re.compile(
    "警|公安|法院|检察|执法|查[处获封]|打[击掉]|取缔|骗|被[抓捕判罚]|落网|涉嫌|犯罪|案|举报|曝|揭|专项|整治|诱|彩民|记者"
)


# A shop's page: its title names goods or a service and asks for buyers, and its text is the seller speaking.
_SHOP = re.compile(
    "厂家|批发|价格|报价|多少钱|哪里[有能可]|哪家(?:好|强|专业)|公司电话|供应|直[供销]|经销商|采购|出售|回收|加盟|货源|生产基地|官方?维修|售后|维修[点部]|"
    "托运|专线|包车|代写|代理|安装|定制|租赁|有限公司|广告服务|产品展示|免费试"
)
_SELLER = re.compile(
    "[我本]公司|我厂|本厂|厂家|有限公司位|专业(?:生产|从事|提供|承接)|主营|本?产品|型号|规格|联系(?:电话|方式|人|我们)|咨询|欢迎|优质|价格|报价|客户|详情请|供应|"
    "直供|直销|批发|定做|定制|售后|质优|齐全|承接|施工队|微信|[Qq][Qq]|电话|热线|服务"
)
_SELLER_MENTIONS, _SELLER_DENSITY = 5, 100  # so many different words or more, and one word in so many characters


def offers_spam(text: str) -> bool:
    """Whether the title offers gambling, sex, forged goods or papers, or goods that the text then sells throughout.

    Titles of reports, by their words, are spared.
    """
    title = text.split("\n", 1)[0][:_TITLE]
    if _IN_THE_NEWS.search(title):
        return False
    if _SPAM.search(title):
        return True
    if not _SHOP.search(title):
        return False
    words = _SELLER.findall(text)
    return len(set(words)) >= _SELLER_MENTIONS and len(words) * _SELLER_DENSITY >= len(text)


_CLAUSE = re.compile(r"[^。！？!?；;，,\s]+")
_NOTICE = re.compile(
    "原标题|声明|版权|转载|责任编辑|责编|不代表|仅代表|扫码|二维码|公众号|微信号|点击[^。]{0,12}(?:关注|蓝字|阅读|观看|进入|下载)|长按|关注(?:我们|我|公众|微信|报道)|"
    "蓝色字体|放心关注|每天都有分享|阅读本文前|点赞|投稿|爆料|首页|上一[篇页]|下一[篇页]|返回搜狐|登录|阅读全?[原全]文|查看更多|免费(?:订阅|收到)|商务合作|广告(?:合作|投放|招商)|"
    "https?://|www\\.|©|[Cc]opyright|[Ii][Cc][Pp]备|国内统一刊号|更多精彩|下载附件|如有关于作品|联系我们|举报(?:热线|邮箱|原因)|侵权"
)
_HAN = re.compile("[\u3400-\u9fff]")
_NOTICE_PAGE = 2000  # characters; a longer text has something else to say
_NOTHING_ELSE = 80  # Han characters beside the notices, from which there is something to read


def notice_share(text: str) -> float:
    """The share of Han characters in clauses that are a notice, or that say what an earlier clause, a headline, said.

    0 where 80 Han characters and more stand beside them.
    """
    if len(text) > _NOTICE_PAGE:
        return 0.0
    seen = ""
    total = notices = 0
    for clause in _CLAUSE.findall(text):
        characters = "".join(_HAN.findall(clause))
        total += len(characters)
        if _NOTICE.search(clause) or characters in seen:
            notices += len(characters)
        else:
            seen += characters + "\n"
    return notices / total if total and total - notices < _NOTHING_ELSE else 0.0
