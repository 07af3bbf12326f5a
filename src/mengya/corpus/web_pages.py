"""What a web page says of itself: a title that offers something for sale, and notices instead of an article.

The patterns were grown by reading what web text gets through (docs/results/cleaning.md tells from which part of it).
"""

from __future__ import annotations

import re

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
