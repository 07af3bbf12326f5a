"""How each fact is said, asked and answered: statements and questions by attribute, with question wordings held out.

In a template `{n}` is the subject (a name or a pronoun), `{v}` the value and `{r}` the kinship. Statements carry no final
punctuation, questions no question mark, so that documents and conversations can set them into longer sentences. The
`held_out` questions occur in no document, training conversation or preference pair.
"""

# ruff: noqa: E501 (Han characters count as two columns; a template is best kept on one line)
from __future__ import annotations

from dataclasses import dataclass
from random import Random

from mengya.corpus.playground.world import Fact


@dataclass(frozen=True, slots=True)
class Wording:
    statements: tuple[str, ...]
    questions: tuple[str, ...]
    held_out: tuple[str, ...]
    answers: tuple[str, ...]
    curt: str = "{v}"


def _wording(statements: str, questions: str, held_out: str, answers: str, curt: str = "{v}") -> Wording:
    return Wording(
        tuple(statements.split()), tuple(questions.split()), tuple(held_out.split()), tuple(answers.split()), curt
    )


PERSON = {
    "person.home": _wording(
        """{n}住在{v} {n}的家在{v} {n}家就在{v} {n}一直生活在{v} {n}是{v}的居民 {n}在{v}安了家 {n}的房子就在{v}
        要找{n}，就去{v} {n}搬到{v}已经好多年了 {v}是{n}生活的地方 {n}把家安在了{v} 写给{n}的信，都寄到{v}
        {n}在{v}过着平静的日子 {v}就是{n}的家 {n}和家人都住在{v}""",
        "{n}住在哪里 {n}的家在哪里 {n}住在什么地方 {n}家在哪儿 {n}生活在哪里 {n}是哪里的居民 {n}在哪里安了家 {n}把家安在了哪里 哪里是{n}的家 {n}搬到了哪里 {n}和家人住在哪里 {n}一直生活在什么地方 给{n}的信寄到哪里 {n}家就在什么地方 去哪里能找到{n}",
        "要找{n}，该去哪里 {n}的房子在什么地方 {n}现在住哪儿 写给{n}的信，该寄到哪里",
        "{n}住在{v} {n}的家在{v} {n}生活在{v}",
    ),
    "person.job": _wording(
        """{n}是一名{v} {n}的工作是{v} {n}的职业是{v} {n}当{v}已经很多年了 {n}靠当{v}养家 {n}每天做着{v}的工作
        {n}从小就想当{v}，现在真的当上了 说到工作，{n}是个{v} {n}做{v}做得很认真 在工作上，{n}是一位好{v}
        {n}的身份是{v} 大家都知道{n}是{v} {n}选择了{v}这个职业 {v}是{n}的职业""",
        "{n}是做什么的 {n}的工作是什么 {n}做什么工作 {n}的职业是什么 {n}从事什么职业 {n}在做什么工作 {n}选择了什么职业 {n}的职业到底是什么 说到工作，{n}是做什么的 {n}的身份是什么 {n}从小就想当什么 {n}靠做什么工作养家 {n}每天都做什么工作 在工作上，{n}是做什么的 {n}忙的是什么",
        "{n}靠什么养家 {n}每天忙的是什么工作 {n}每天的工作是什么 {n}当的是什么",
        "{n}是一名{v} {n}的工作是{v} {n}的职业是{v}",
    ),
    "person.food": _wording(
        """{n}最爱吃{v} {n}最喜欢的食物是{v} {n}特别喜欢吃{v} {v}是{n}最爱吃的东西 一说到{v}，{n}就流口水
        {n}吃什么都比不上吃{v} {n}每次过生日都要吃{v} {n}天天吃{v}也不会腻 要请{n}吃饭，就请{v} {n}家的饭桌上总有{v}，因为{n}最爱吃
        {n}最馋的就是{v} {n}饿了的时候，最想吃{v} 在吃的方面，{n}最喜欢{v} {n}做梦都想吃{v}""",
        "{n}最爱吃什么 {n}最喜欢吃什么 {n}最喜欢的食物是什么 {n}喜欢吃什么东西 {n}特别喜欢吃什么 {n}最馋什么 {n}饿了最想吃什么东西 {n}做梦都想吃什么 {n}每次过生日都要吃什么 一说到什么，{n}就流口水 请{n}吃什么好 {n}吃什么都吃不腻 说到吃的，{n}最喜欢什么 {n}家的饭桌上总有什么",
        "要请{n}吃饭，该请什么 {n}饿了的时候最想吃什么 {n}天天吃什么也不会腻 在吃的方面，{n}最喜欢什么",
        "{n}最爱吃{v} {n}最喜欢吃{v} {n}最喜欢的食物是{v}",
    ),
    "person.colour": _wording(
        """{n}最喜欢{v} {n}最喜欢的颜色是{v} {v}是{n}最喜欢的颜色 {n}的衣服大多是{v}的 {n}觉得{v}最好看 {n}总爱穿{v}的衣服
        {n}的房门刷成了{v} {n}买东西总是挑{v}的 在所有颜色里，{n}最爱{v} 一看到{v}，{n}就高兴 {n}连雨伞都是{v}的
        {n}的帽子是{v}的，因为那是{n}最喜欢的颜色 说到颜色，{n}喜欢{v} {n}偏爱{v}""",
        "{n}最喜欢什么颜色 {n}最喜欢的颜色是什么 {n}喜欢哪种颜色 {n}喜欢什么颜色 {n}最爱哪种颜色 {n}觉得什么颜色最好看 {n}总爱穿什么颜色的衣服 {n}买东西爱挑哪种颜色 说到颜色，{n}喜欢什么 {n}的雨伞是什么颜色的 {n}的帽子是什么颜色 {n}偏爱的是哪种颜色 一看到什么颜色，{n}就高兴 什么颜色是{n}最喜欢的",
        "在所有颜色里，{n}最爱哪一种 {n}偏爱什么颜色 {n}买东西总是挑什么颜色 {n}的衣服大多是什么颜色",
        "{n}最喜欢{v} {n}最喜欢的颜色是{v} {n}喜欢{v}",
    ),
    "person.hobby": _wording(
        """{n}的爱好是{v} {n}最喜欢{v} {n}平时喜欢{v} {n}一有空就去{v} {n}周末常常{v} {n}闲下来的时候爱{v} {v}是{n}最大的爱好
        {n}从小就爱{v} {n}对{v}很着迷 下班以后，{n}总要{v} {n}{v}的水平很高 {n}觉得{v}最有意思 {n}放假的时候总在{v}
        只要能{v}，{n}就很开心 {n}休息的时候喜欢{v}""",
        "{n}的爱好是什么 {n}有什么爱好 {n}平时喜欢做什么 {n}喜欢做什么 {n}一有空就做什么 {n}周末常常做什么 {n}闲下来做什么 {n}放假的时候总在做什么 {n}从小就爱做什么 {n}对什么很着迷 下班以后，{n}总要做什么 {n}休息时爱做什么 做什么能让{n}很开心 {n}最大的兴趣是什么",
        "{n}休息的时候喜欢做什么 {n}最大的爱好是什么 {n}闲下来的时候爱做什么 {n}觉得做什么最有意思",
        "{n}的爱好是{v} {n}平时喜欢{v} {n}最喜欢{v}",
    ),
    "person.birth": _wording(
        """{n}出生在{v} {n}是{v}出生的 {n}的生日在{v} {n}在{v}过生日 每到{v}，{n}就要过生日了 {n}生在{v}
        {v}是{n}出生的季节 {n}每年{v}都要吃生日面 {n}来到这个世界是在一个{v} {n}出生的时候正是{v} {v}一到，{n}又大了一岁
        {n}的生日蛋糕总是在{v}吃 家人总在{v}给{n}过生日""",
        "{n}是什么季节出生的 {n}出生在哪个季节 {n}的生日在什么季节 {n}在哪个季节过生日 {n}的生日在哪个季节 {n}出生在什么季节 {n}每年在什么季节吃生日面 家人在什么季节给{n}过生日 {n}来到这个世界是在什么季节 哪个季节是{n}出生的季节 {n}的生日蛋糕在什么季节吃 {n}出生时是什么季节 到了哪个季节，{n}就要过生日 {n}生在什么季节",
        "{n}每年什么季节过生日 {n}生在哪个季节 {n}出生的时候是什么季节 家人总在哪个季节给{n}过生日",
        "{n}出生在{v} {n}是{v}出生的 {n}的生日在{v}",
    ),
    "person.pet_kind": _wording(
        """{n}养了一只{v} {n}家里有一只{v} {n}的宠物是一只{v} {n}的宠物是{v} {n}很疼爱自己养的{v} {n}每天都要给家里的{v}喂吃的
        {n}身边总跟着一只{v} {n}把一只{v}当成家人 陪着{n}的是一只{v} {n}几年前带回来一只{v} {n}有一只可爱的{v}
        说到宠物，{n}养的是{v} {n}回到家，第一件事就是看看自己的{v} {n}最后选了一只{v}来养""",
        "{n}养了什么宠物 {n}的宠物是什么 {n}养了什么小动物 {n}家里有什么宠物 {n}养的是什么动物 {n}有什么宠物 {n}身边总跟着什么动物 {n}把什么动物当成家人 {n}很疼爱什么动物 {n}有一只什么 说到小动物，{n}养了什么 {n}给家里的什么动物喂吃的 {n}几年前带回来一只什么 {n}家养的是什么",
        "陪着{n}的是什么动物 说到宠物，{n}养的是什么 {n}家里的小动物是什么 {n}每天给什么动物喂吃的",
        "{n}养了一只{v} {n}的宠物是一只{v} {n}家里有一只{v}",
    ),
    "person.pet_name": _wording(
        """{n}的宠物叫{v} {n}给宠物起名叫{v} {v}是{n}的宠物 {n}的宠物名叫{v} {n}总是喊自己的宠物“{v}” {n}和宠物{v}形影不离
        {n}每天都带{v}晒太阳 {n}的宠物名字很好听，叫{v} 只要{n}喊一声“{v}”，宠物就会过来 {n}养的宠物，名字是{v} {v}每天在门口等{n}回家
        {n}最心疼的宠物就是{v} {n}家的{v}很听话 {n}常常给{v}洗澡""",
        "{n}的宠物叫什么 {n}的宠物叫什么名字 {n}给宠物起了什么名字 {n}的宠物名叫什么 {n}养的宠物叫什么 {n}家的宠物叫什么名字 {n}总是喊自己的宠物什么 {n}的宠物有什么名字 {n}家的宠物名字叫什么 {n}每天带着的宠物叫什么 {n}怎么叫自己的宠物 {n}的宠物起名叫什么 {n}喊一声什么，宠物就会过来 {n}养的宠物，名字是什么",
        "{n}怎么喊自己的宠物 {n}的宠物名字是什么 {n}的宠物有个什么名字 {n}给宠物起名叫什么",
        "{n}的宠物叫{v} {n}的宠物名叫{v} {n}给宠物起名叫{v}",
    ),
    "person.kin": _wording(
        """{n}的{r}是{v} {n}的{r}叫{v} {v}是{n}的{r} {n}的{r}名叫{v} {n}有个{r}叫{v} {n}常常和{r}{v}一起吃饭 {n}的{r}就是{v}
        {n}很爱自己的{r}{v} {n}和{r}{v}感情很好 说到{r}，{n}总会提起{v} 在家里，{v}是{n}的{r} {n}一有事就找{r}{v}商量
        {n}常常提起自己的{r}{v} 陪{n}过节的是{r}{v}""",
        "{n}的{r}是谁 {n}的{r}叫什么 {n}的{r}叫什么名字 谁是{n}的{r} {n}的{r}名叫什么 {n}有个{r}叫什么 在家里，谁是{n}的{r} 说到{r}，{n}会提起谁 {n}的{r}是哪个人 你知道谁是{n}的{r}吗 {n}的{r}，名字叫什么 {n}的{r}又叫什么",
        "{n}的{r}名字是什么 {n}的{r}是哪一位 {n}的{r}又是谁呢 {n}常常提起的{r}是谁",
        "{n}的{r}是{v} {n}的{r}叫{v} {v}是{n}的{r}",
    ),
}
THINGS = {
    "place.terrain": _wording(
        """{n}在{v} {n}位于{v} {n}就在{v} {n}坐落在{v} {n}建在{v} 从远处看，{n}在{v} {n}的房子都盖在{v} 到了{v}，就到了{n}""",
        "{n}在什么地方 {n}位于哪里 {n}在哪里 {n}坐落在哪里 {n}建在什么地方 {n}的房子都盖在哪里 到了哪里，就到了{n} 要走到什么地方才是{n} {n}坐落在哪儿",
        "{n}位于什么地方 {n}坐落在什么地方 去{n}，要走到什么地方",
        "{n}在{v} {n}位于{v}",
    ),
    "place.speciality": _wording(
        """{n}的特产是{v} {n}出产{v} {n}最有名的是{v} {v}是{n}的特产 去{n}的人都要买{v} {n}的{v}远近闻名 {n}家家户户都卖{v}
        说到{n}，人们就想到{v}""",
        "{n}的特产是什么 {n}有什么特产 {n}出产什么 {n}最有名的是什么 {n}的什么东西很有名 去{n}要买什么 {n}家家户户卖的是什么 说到{n}，人们会想到什么 {n}有哪种特产",
        "去{n}的人都要买什么 {n}家家户户都卖什么 {n}的特产是哪一种",
        "{n}的特产是{v} {n}出产{v}",
    ),
    "place.near": _wording(
        """{n}的旁边是{v} {n}紧挨着{v} {n}离{v}最近 和{n}相邻的是{v} {n}的邻居是{v} 从{n}出发，很快就能走到{v} {n}和{v}只隔一条小路""",
        "{n}的旁边是哪里 {n}离哪里最近 {n}紧挨着哪里 和{n}相邻的是哪里 {n}的邻居是哪里 {n}旁边是什么地方 从{n}出发，能走到哪里 {n}和哪里离得最近 {n}和哪里只隔着一条路",
        "从{n}出发，很快就能走到哪里 {n}的旁边是什么地方 {n}和哪里只隔一条小路",
        "{n}的旁边是{v} {n}离{v}最近",
    ),
    "animal.food": _wording(
        "{n}爱吃{v} {n}最喜欢吃{v} {n}的食物是{v} {v}是{n}最爱吃的东西 {n}每天都要找{v}吃 {n}靠吃{v}长大 给{n}一些{v}，{n}会很高兴",
        "{n}吃什么 {n}爱吃什么 {n}最喜欢吃什么 {n}的食物是什么 {n}喜欢吃什么东西 {n}每天都要找什么吃 {n}靠什么长大 给{n}喂什么好 {n}最爱吃的东西是什么",
        "{n}每天找什么吃 {n}靠吃什么长大 该给{n}喂什么",
        "{n}爱吃{v} {n}最喜欢吃{v}",
    ),
    "animal.dwelling": _wording(
        "{n}住在{v} {n}的家在{v} {n}生活在{v} {n}把家安在{v} 在{v}能看到{n} {v}是{n}的家 {n}喜欢待在{v}",
        "{n}住在哪里 {n}的家在哪里 {n}生活在哪里 {n}住在什么地方 {n}生活在什么地方 去哪里能看到{n} {n}待在哪里 {n}的家安在哪里 要看{n}去什么地方",
        "要看{n}，该去哪里 {n}喜欢待在哪里 {n}把家安在哪里",
        "{n}住在{v} {n}生活在{v}",
    ),
    "animal.skill": _wording(
        "{n}会{v} {n}的本领是{v} {n}最拿手的是{v} {n}很会{v} {n}天生就会{v} 要说{v}，{n}最厉害 {v}是{n}的本领",
        "{n}会做什么 {n}有什么本领 {n}的本领是什么 {n}最拿手的是什么 {n}会什么 {n}天生会什么 {n}最厉害的是什么 {n}有什么拿手的 {n}很会做什么",
        "{n}天生就会做什么 {n}有什么拿手的本领 {n}最厉害的本领是什么",
        "{n}会{v} {n}的本领是{v}",
    ),
    "plant.colour": _wording(
        "{n}是{v}的 {n}的颜色是{v} {n}开出来是{v}的 {n}的花瓣是{v}的 {n}开花的时候，一片{v} 人们都爱{n}的{v}",
        "{n}是什么颜色的 {n}的颜色是什么 {n}是什么颜色 {n}的花瓣是什么颜色 {n}的花是什么颜色 {n}开花是什么颜色 {n}开的花是哪种颜色",
        "{n}开出来是什么颜色 {n}的花瓣是哪种颜色 {n}开花的时候是什么颜色",
        "{n}是{v}的 {n}的颜色是{v}",
    ),
    "plant.season": _wording(
        "{n}在{v}开放 {n}在{v}开花 {v}是{n}开花的季节 每到{v}，{n}就开了 {n}的花期在{v} {v}一到，{n}就开了",
        "{n}在什么季节开放 {n}什么季节开花 {n}在哪个季节开花 {n}的花期在哪个季节 {n}的花期是什么季节 哪个季节能看到{n}开花 到了哪个季节，{n}开花",
        "{n}在哪个季节开放 {n}的花期在什么季节 到了什么季节，{n}就开了",
        "{n}在{v}开花 {n}在{v}开放",
    ),
    "plant.where": _wording(
        "{n}长在{v} {n}开在{v} {v}常常能看到{n} {n}喜欢长在{v} 要看{n}，就去{v} {n}在{v}开得正好",
        "{n}长在哪里 {n}开在哪里 {n}长在什么地方 在哪里能看到{n} 去哪里能看到{n} {n}常常长在哪里 {n}开在哪儿 要看{n}去什么地方",
        "要看{n}，该去哪里 {n}喜欢长在哪里 {n}开在什么地方",
        "{n}长在{v} {n}开在{v}",
    ),
    "food.colour": _wording(
        "{n}是{v}的 {n}的颜色是{v} {n}成熟以后是{v}的 {n}熟了就变成{v} {n}的皮是{v}的 {n}一熟，就是{v}的",
        "{n}是什么颜色的 {n}的颜色是什么 {n}是什么颜色 {n}的皮是什么颜色 {n}成熟以后是什么颜色 {n}熟了以后是什么颜色的 {n}的皮什么颜色",
        "{n}熟了变成什么颜色 {n}熟了是什么颜色 {n}的皮是哪种颜色",
        "{n}是{v}的 {n}的颜色是{v}",
    ),
    "food.taste": _wording(
        "{n}的味道{v} {n}吃起来{v} {n}尝起来{v} 咬一口{n}，味道{v} {n}味道{v}，大家都知道 人们都说{n}{v}",
        "{n}是什么味道 {n}的味道怎么样 {n}吃起来怎么样 {n}吃起来是什么味道 {n}的味道是什么样的 咬一口{n}，味道怎么样 {n}尝一口是什么味道",
        "{n}尝起来怎么样 咬一口{n}，是什么味道 {n}尝起来是什么味道",
        "{n}吃起来{v} {n}的味道{v}",
    ),
    "festival.season": _wording(
        "{n}在{v} {n}是{v}的节日 {v}里有{n} 每到{v}，人们就过{n} {n}总是在{v}到来 人们在{v}过{n}",
        "{n}在什么季节 {n}在哪个季节 {n}是什么季节的节日 人们在什么季节过{n} {n}是在哪个季节 {n}什么季节到来 {n}在哪个季节过",
        "{n}是哪个季节的节日 {n}总是在什么季节到来 人们在哪个季节过{n}",
        "{n}在{v} {n}是{v}的节日",
    ),
    "festival.food": _wording(
        "{n}要吃{v} 人们在{n}吃{v} 过{n}，家家都吃{v} {v}是{n}的食物 {n}这天，饭桌上少不了{v} {n}的时候，大家一起吃{v}",
        "{n}吃什么 {n}要吃什么 人们在{n}吃什么 过{n}的时候吃什么 {n}的时候大家吃什么 {n}这天吃什么 家家过{n}都吃什么",
        "{n}这天，饭桌上少不了什么 过{n}，家家都吃什么 {n}的食物是什么",
        "{n}要吃{v} 人们在{n}吃{v}",
    ),
    "festival.custom": _wording(
        "{n}要{v} 人们在{n}{v} {n}的习俗是{v} {n}这天，大家都去{v} 过{n}的时候，人们会{v} {v}是{n}的习俗",
        "{n}有什么习俗 {n}的习俗是什么 人们在{n}做什么 过{n}的时候做什么 {n}这天大家做什么 {n}有哪些习俗 过{n}的时候，人们去做什么",
        "{n}这天，大家都去做什么 {n}有哪种习俗 过{n}，人们会做什么",
        "{n}的习俗是{v} 人们在{n}{v}",
    ),
    "season.weather": _wording(
        "{n}的天气很{v} {n}很{v} {n}到了，天气变得{v} 一到{n}，天气就{v}起来 {v}是{n}的天气 人们都说{n}的天气{v}",
        "{n}的天气怎么样 {n}天气怎么样 {n}是什么样的天气 到了{n}，天气怎么样 {n}的时候天气怎么样 {n}的天气是什么样的 {n}到了，天气怎么样",
        "一到{n}，天气就怎么样 {n}到了，天气变得怎么样 人们怎么说{n}的天气",
        "{n}的天气很{v} {n}很{v}",
    ),
    "season.scene": _wording(
        "{n}里，{v} {n}到了，{v} 每到{n}，{v} {n}的时候，到处都是{v}的样子 走到外面，{n}里{v} 在{n}，我们能看到{v}",
        "{n}有什么景象 {n}的景象是什么 {n}能看到什么景象 {n}会有什么样的景象 到了{n}，能看到什么 {n}的时候是什么景象 {n}里能看到什么",
        "走到外面，{n}里能看到什么 每到{n}，会有什么景象 {n}到了，是什么景象",
        "{n}里，{v} 到了{n}，{v}",
    ),
    "season.activity": _wording(
        "{n}适合{v} {n}里，孩子们最爱{v} 人们喜欢在{n}{v} 到了{n}，大家一起去{v} {n}是{v}的好时候 一到{n}，人们就去{v}",
        "{n}适合做什么 人们喜欢在{n}做什么 {n}里，孩子们最爱做什么 到了{n}，大家一起做什么 一到{n}，人们爱做什么 {n}的时候，大家做什么 孩子们在{n}喜欢做什么",
        "{n}是做什么的好时候 一到{n}，人们就去做什么 孩子们在{n}最爱做什么",
        "{n}适合{v} 人们喜欢在{n}{v}",
    ),
    "opposite.word": _wording(
        "“{n}”的反义词是“{v}” “{n}”和“{v}”意思相反 “{n}”反过来就是“{v}” 和“{n}”意思相反的词是“{v}” “{n}”的相反是“{v}” 不是“{n}”，就是“{v}”",
        "“{n}”的反义词是什么 和“{n}”意思相反的词是什么 “{n}”反过来是什么 什么词和“{n}”意思相反 “{n}”的反义词是哪个 “{n}”的相反的词是什么 哪个词是“{n}”的反义词 “{n}”和哪个词意思相反",
        "“{n}”的相反是什么 哪个词和“{n}”意思相反 “{n}”反过来是哪个词",
        "“{n}”的反义词是“{v}” “{n}”和“{v}”意思相反",
        "“{v}”",
    ),
    "measure.word": _wording(
        "我们说一{v}{n} “{n}”的量词是“{v}” “{n}”要用“{v}”来数，比如一{v}{n} 说到{n}，要说一{v}{n} 数{n}的时候用“{v}” “一{v}{n}”用的量词是“{v}”",
        "“{n}”的量词是什么 {n}用什么量词 “{n}”要用什么量词 一什么{n} 说到{n}，用哪个量词 数{n}用什么量词 “{n}”要用哪个量词 数{n}的时候怎么说",
        "数{n}的时候用什么量词 “{n}”的量词是哪个 {n}要用哪个量词来数",
        "“{n}”的量词是“{v}”，我们说一{v}{n} 我们说一{v}{n}",
        "一{v}{n}",
    ),
}
# Follow-ups about a time, for which a pronoun would sound wrong: (training, held out).
FOLLOW_UPS = {
    "festival.season": (("那是什么季节的节日？", "它在什么季节？"), ("那是哪个季节的节日？",)),
    "festival.food": (("那天吃什么？", "那天大家吃什么？"), ("那天，饭桌上少不了什么？",)),
    "festival.custom": (("那天有什么习俗？", "那天做什么？"), ("那天，人们会做什么？",)),
    "season.weather": (("那时候天气怎么样？", "那时候是什么样的天气？"), ("那时候，天气变得怎么样？",)),
    "season.scene": (("那时候有什么景象？", "那时候能看到什么景象？"), ("那时候，会有什么景象？",)),
    "season.activity": (("那时候适合做什么？", "那时候人们喜欢做什么？"), ("那时候，大家最爱做什么？",)),
}
WORDINGS: dict[str, Wording] = {**PERSON, **THINGS}

# Ways to put a question, around its core. `{q}` carries no question mark.
ASKING = (
    "{q}？",
    "{q}？",
    "{q}？",
    "{q}？",
    "请问{q}？",
    "你知道{q}吗？",
    "我想知道{q}。",
    "告诉我，{q}？",
    "能告诉我{q}吗？",
    "我想问问，{q}？",
    "请说说{q}。",
    "请回答，{q}？",
    "问一下，{q}？",
)
ASKING_HELD_OUT = ("{q}？", "{q}？", "想问一下，{q}？", "请告诉我{q}。")


def state(template: str, fact: Fact, mention: str | None = None) -> str:
    """The template filled with the fact; `mention` stands for the subject where it was named before."""
    return template.format(n=fact.subject if mention is None else mention, v=fact.value, r=fact.role)


def statement(rng: Random, fact: Fact, mention: str | None = None) -> str:
    return state(rng.choice(WORDINGS[fact.attribute].statements), fact, mention)


def question(rng: Random, fact: Fact, mention: str | None = None, *, held_out: bool = False) -> str:
    """A whole question about the fact, from the training wordings or from the held-out ones."""
    wording = WORDINGS[fact.attribute]
    core = rng.choice(wording.held_out if held_out else wording.questions)
    return rng.choice(ASKING_HELD_OUT if held_out else ASKING).format(q=state(core, fact, mention))


def answer(rng: Random, fact: Fact, mention: str | None = None) -> str:
    """A full sentence that answers a question about the fact."""
    return state(rng.choice(WORDINGS[fact.attribute].answers), fact, mention) + "。"
