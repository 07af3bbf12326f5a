"""Terms of selling, contact, gambling, vice and quackery. Own list, to be grown by reading what gets through.

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
_CALLS = {term for kind in ("contact", "gambling sites") for term in _TERMS[kind].split()}
_REPORT = re.compile("警方|民警|公安|法院|检察|执法|查处|诈骗|骗子|嫌疑人|被告")


def advertising_terms(text: str) -> list[str]:
    """The terms that stand in `text`, in order, with repetition."""
    return _PATTERN.findall(text)


def sells(terms: list[str]) -> bool:
    """Whether any of `terms` sells or asks to get in touch; an article on Macau's casinos does neither."""
    return not _OFFERS.isdisjoint(terms)


def calls(terms: list[str]) -> bool:
    """Whether any of `terms` asks to get in touch or to bet; a manual that says 折扣 fifty times does not."""
    return not _CALLS.isdisjoint(terms)


def is_report(text: str) -> bool:
    """Whether police, courts or swindlers are named: such a text is likelier about advertisements than one."""
    return _REPORT.search(text) is not None
