"""What the report calls things: stages and metrics in both languages, and how a value is written.

A metric is named STAGE.NAME in manifests; the words hang on NAME alone, so they are the same for every stage. A name
that is not here is shown as it stands: a new metric appears in the report before anyone has named it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from mengya.console import duration, number

Kind = Literal["number", "percent", "seconds", "bytes", "count"]


class Words(NamedTuple):
    zh: str
    en: str
    kind: Kind = "number"


STAGES = {
    "corpus": Words("语料", "Corpus"),
    "tokenizer": Words("分词器", "Tokenizer"),
    "shards": Words("分片", "Token shards"),
    "pretrain": Words("预训练", "Pretraining"),
    "sft": Words("指令微调", "Instruction tuning"),
    "preferences": Words("偏好数据", "Preference pairs"),
    "reward": Words("奖励模型", "Reward model"),
    "dpo": Words("直接偏好优化", "DPO"),
    "ppo": Words("强化学习", "PPO"),
    "grpo": Words("组相对强化学习", "GRPO"),
    "evaluate": Words("评测", "Evaluation"),
}

METRICS = {
    "kept_share": Words("成对的提示", "prompts that gave a pair", "percent"),
    "chosen_longer_share": Words("较好的回答更长", "better answer is the longer", "percent"),
    "chosen_accuracy": Words("较好的回答正确率", "better answers that are right", "percent"),
    "rejected_accuracy": Words("较差的回答正确率", "worse answers that are right", "percent"),
    "bits_per_byte": Words("每字节比特", "bits per byte"),
    "answer_bits_per_byte": Words("回答的每字节比特", "bits per byte of answers"),
    "loss": Words("训练损失", "training loss"),
    "validation_loss": Words("验证损失", "validation loss"),
    "unigram_loss": Words("一元模型损失", "unigram baseline loss"),
    "trigram_loss": Words("三元模型损失", "trigram baseline loss"),
    "cloze_accuracy": Words("填空正确率", "cloze accuracy", "percent"),
    "qa_accuracy": Words("问答正确率", "question accuracy", "percent"),
    "multi_turn_accuracy": Words("多轮正确率", "multi-turn accuracy", "percent"),
    "identity_accuracy": Words("身份正确率", "identity accuracy", "percent"),
    "arithmetic_accuracy": Words("算术正确率", "arithmetic accuracy", "percent"),
    "gold_score": Words("金标得分", "gold score"),
    "guard_score": Words("守卫题得分", "score on guard prompts"),
    "rollouts": Words("采样轮数", "rollouts", "count"),
    "groups": Words("有差别的组", "groups that teach", "count"),
    "chosen_nll": Words("好回答的损失", "loss of chosen answers, nats a token"),
    "distinct_2": Words("不同的二字组", "distinct 2-grams", "percent"),
    "refusals": Words("拒答率", "refusal rate", "percent"),
    "score": Words("奖励模型打分", "reward-model score"),
    "value_mean": Words("平均价值", "mean value"),
    "policy_loss": Words("策略损失", "policy loss"),
    "clip_share": Words("截断比例", "clipped tokens", "percent"),
    "kl_to_old": Words("与旧策略的 KL", "KL to the old policy"),
    "reward_chosen": Words("隐式奖励", "implicit reward"),
    "repetition": Words("重复度", "repetition", "percent"),
    "list_accuracy": Words("列举正确率", "list accuracy", "percent"),
    "rewriting_accuracy": Words("改写正确率", "rewriting accuracy", "percent"),
    "unknown_accuracy": Words("知道自己不知道", "admits what it does not know", "percent"),
    "held_out_entity_accuracy": Words("只在文档里见过的人", "people known from documents only", "percent"),
    "sampled_accuracy": Words("抽样回答正确率", "accuracy of sampled answers", "percent"),
    "politeness": Words("礼貌", "politeness"),
    "answer_tokens": Words("回答长度", "answer length, tokens"),
    "refusal_rate": Words("拒答率", "refusal rate", "percent"),
    "pair_accuracy": Words("成对判断正确率", "pair accuracy", "percent"),
    "length_only_accuracy": Words("仅凭长度的正确率", "length-only baseline", "percent"),
    "characters_only_accuracy": Words("仅凭用字的正确率", "characters-only baseline", "percent"),
    "answer_only_accuracy": Words("不看问题的正确率", "accuracy without the prompt", "percent"),
    "length_matched_accuracy": Words("长度相近时的正确率", "accuracy on pairs of like length", "percent"),
    "member_accuracy": Words("各成员的正确率", "accuracy of a member", "percent"),
    "mean_accuracy": Words("成员均值的正确率", "accuracy of the members' mean", "percent"),
    "margin_over_baselines": Words("高出最好基线", "lower end above the best baseline", "percent"),
    "calibration_error": Words("校准误差", "expected calibration error", "percent"),
    "length_correlation": Words("与长度的相关", "correlation with length (Pearson)"),
    "length_rank_correlation": Words("与长度的秩相关", "correlation with length (Spearman)"),
    "best_baseline": Words("最好的基线", "best baseline"),
    "judge_accuracy": Words("裁判模型的正确率", "accuracy of the held-out judge", "percent"),
    "judge_score": Words("裁判模型打分", "score by the held-out judge"),
    "pairs_of_judge": Words("留给裁判的偏好对", "pairs set apart for the judge", "count"),
    "prompts_of_judge": Words("留给裁判的提示", "prompts set apart for the judge", "count"),
    "win_rate_vs_sft": Words("对指令微调的胜率", "win rate against SFT", "percent"),
    "kl_to_sft": Words("与指令微调的 KL", "KL to SFT, nats"),
    "exact_duplicate_recall": Words("完全重复召回率", "exact-duplicate recall", "percent"),
    "near_duplicate_recall": Words("近似重复召回率", "near-duplicate recall", "percent"),
    "near_duplicate_precision": Words("近似重复精确率", "near-duplicate precision", "percent"),
    "chars_per_token": Words("每词元字符数", "characters per token"),
    "bytes_per_token": Words("每词元字节数", "bytes per token"),
    "characters_per_token": Words("每词元字符数", "characters per token"),
    "vocabulary_used": Words("用到的词表", "vocabulary used", "percent"),
    "vocab_size": Words("词表大小", "vocabulary", "count"),
    "texts": Words("文本", "texts", "count"),
    "bytes": Words("字节", "bytes", "count"),
    "step": Words("步数", "steps", "count"),
    "skipped_steps": Words("跳过的步", "skipped steps", "count"),
    "overflowed_steps": Words("溢出的步", "steps in which fp16 overflowed", "count"),
    "rewinds": Words("回退次数", "rewinds", "count"),
    "rate_factor": Words("学习率倍数", "factor of the learning rates"),
    "train_tokens": Words("语料词元数", "tokens of the corpus", "count"),
    "train_seconds": Words("训练用时", "training time", "seconds"),
    "padding_share": Words("填充比例", "padding", "percent"),
    "split_documents": Words("跨行的文档", "documents longer than a row", "count"),
    "cropped_tokens": Words("截去的词元", "tokens cropped", "count"),
    "windows": Words("每遍窗口数", "windows an epoch", "count"),
    "epochs": Words("遍数", "epochs"),
    "pairs_per_second": Words("每秒偏好对", "pairs per second", "count"),
    "tokens": Words("词元数", "tokens", "count"),
    "pairs": Words("偏好对", "pairs", "count"),
    "parameters": Words("参数量", "parameters", "count"),
    "tokens_per_second": Words("每秒词元", "tokens per second", "count"),
    "seconds": Words("用时", "time", "seconds"),
    "peak_memory_bytes": Words("内存峰值", "peak memory", "bytes"),
    "lr": Words("学习率", "learning rate"),
    "grad_norm": Words("梯度范数", "gradient norm"),
    "reward": Words("奖励", "reward"),
    "kl": Words("KL 散度", "KL, nats per answer"),
    "kl_coefficient": Words("KL 系数", "KL coefficient"),
    "entropy": Words("熵", "entropy, nats per token"),
    "value_loss": Words("价值损失", "value loss"),
    "length": Words("回答长度", "answer length, tokens"),
    "end_rate": Words("正常结束比例", "ended answers", "percent"),
    "accuracy": Words("成对判断正确率", "pair accuracy", "percent"),
    "validation_accuracy": Words("验证正确率", "validation accuracy", "percent"),
    "margin": Words("奖励差", "reward margin"),
    "documents": Words("文档", "documents", "count"),
    "records": Words("条数", "records", "count"),
    "characters": Words("字符", "characters", "count"),
}

STEPS_AND_REASONS = {
    "read": "读入",
    "normalise": "规范化",
    "rules": "规则过滤",
    "boilerplate": "样板文字",
    "exact_duplicates": "完全去重",
    "near_duplicates": "近似去重",
    "duplicates": "去重",
    "kept": "保留",
    "exact_duplicate": "完全重复",
    "near_duplicate": "近似重复",
    "mojibake": "乱码",
    "too_short": "过短",
    "too_long": "过长",
    "low_han_share": "汉字太少",
    "many_symbols": "符号太多",
    "many_urls": "网址太多",
    "many_digits": "数字太多",
    "repeated_lines": "重复行",
    "repeated_ngrams": "重复片段",
    "advertisement": "广告",
    "spam": "垃圾网页",
    "search_snippet": "搜索结果页",
    "notices": "全是声明",
    "few_common_characters": "不成文章",
    "few_stops": "缺少标点",
    "encyclopaedia_stub": "词条太短",
    "encyclopaedia_table": "只有参数表",
    "contamination": "剔除评测题",
    "empty": "空",
    "equal_answers": "两个回答相同",
    "duplicate_prompt": "重复的问题",
    "near_duplicate_prompts": "问题近似去重",
    "near_duplicate_prompt": "近似重复的问题",
    "repeated_sentences": "反复出现的句子",
    "duplicate_pair": "重复的偏好对",
    "length_balance": "平衡长度",
    "invalid_json": "不是 JSON",
    "invalid_csv": "不是 CSV",
    "not_an_object": "不是对象",
    "wrong_number_of_fields": "列数不对",
    "undecodable": "无法解码",
    "nul_bytes": "含 NUL 字节",
    "line_too_long": "行太长",
    "lone_surrogate": "孤立代理字符",
    "empty_file": "空文件",
    "right": "对错",
    "answering": "作答或回避",
    "concise": "简洁或重复",
    "polite": "礼貌或无礼",
}
"""Chinese for the names of funnel steps, of reasons to drop or reject, and of reasons to prefer."""


TRANSFORMATIONS = {
    "mojibake": "修复乱码",
    "control_characters": "控制字符",
    "half_width": "全角转半角",
    "entities": "HTML 实体",
    "unicode": "Unicode 规范化",
    "simplified": "繁体转简体",
    "literal_newlines": "字面换行符",
    "markup": "残留标记",
    "reference_marks": "引用角标",
    "full_width": "标点转全角",
    "lost_icons": "丢失的图标",
    "white_space": "空白",
    "repeated_punctuation": "重复标点",
    "repeated_paragraphs": "重复段落",
    "personal_data": "个人信息脱敏",
}
"""Chinese for the names of cleaning's transformations."""


@dataclass(frozen=True)
class Value:
    """A measured number with its 95% interval and sample size, where they are known."""

    value: float
    low: float | None = None
    high: float | None = None
    n: int | None = None


def as_value(raw: Any) -> Value | None:
    """A metric of a manifest (a number, or {"value", "low", "high", "n"}); None where there is no finite number."""
    if isinstance(raw, dict):
        parts = {key: raw.get(key) for key in ("value", "low", "high", "n")}
    else:
        parts = {"value": raw, "low": None, "high": None, "n": None}
    main = parts["value"]
    if parts["n"] == 1:  # summary.json gives a plain measurement as n = 1 with low = high = value: no interval at all
        parts |= {"low": None, "high": None, "n": None}
    if isinstance(main, bool) or not isinstance(main, int | float) or not math.isfinite(main):
        return None
    return Value(**parts)  # type: ignore[arg-type]


def metric_words(name: str) -> Words:
    """Words for `STAGE.NAME`, `STAGE.NAME.PART` or a bare NAME."""
    parts = name.split(".")
    for part in (parts if parts[0] not in STAGES else parts[1:]) or parts:
        if part in METRICS:
            rest = parts[parts.index(part) + 1 :]
            suffix = f" · {'.'.join(rest)}" if rest else ""
            known = METRICS[part]
            return Words(known.zh + suffix, known.en + suffix, known.kind)
    plain = (parts[-1] if len(parts) > 1 else name).replace("_", " ")
    kind: Kind = "percent" if plain.endswith(("accuracy", "rate", "recall", "precision", "share")) else "number"
    return Words("", plain, kind)


def shown(name: str, value: float, *, signed: bool = False) -> str:
    """The value as the metric's kind is written; a signed percent is a difference in percentage points."""
    kind = metric_words(name).kind
    sign = "+" if signed and value > 0 else "−" if value < 0 else ""
    size = abs(value)
    if kind == "percent":
        return f"{sign}{100 * size:.1f}" + (" pp" if signed else "%")
    if kind == "seconds":
        return sign + (f"{size:.1f} s" if size < 60 else duration(size))
    if kind == "bytes":
        return sign + (f"{size / 2**30:.2f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB")
    if kind == "count":
        return sign + short_count(size)
    return sign + (f"{size:.3f}" if 0.001 <= size < 10 else number(size))


def interval(name: str, value: Value) -> str:
    """`[78.1%, 86.0%]`, or nothing where no interval is known."""
    if value.low is None or value.high is None:
        return ""
    return f"[{shown(name, value.low)}, {shown(name, value.high)}]"


def short_count(value: float) -> str:
    """`9,812`, `2.31 M`, `1.1 B`: counts above a hundred thousand by their first three digits."""
    for unit, size in (("B", 1e9), ("M", 1e6)):
        if value >= size:
            return f"{value / size:#.3g}".rstrip(".") + f" {unit}"
    return f"{value:,.0f}"
