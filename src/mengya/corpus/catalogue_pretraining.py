"""Public Chinese pretraining text."""

from __future__ import annotations

from mengya.corpus.dataset import Dataset

PRETRAINING = (
    Dataset(
        name="wikipedia-cn-20230720-filtered",
        kind="document",
        format="wikipedia_cn",
        files=("wikipedia-cn-20230720-filtered.json",),
        huggingface="pleisto/wikipedia-cn-20230720-filtered",
        modelscope="AI-ModelScope/wikipedia-cn-20230720-filtered",
        licence="CC BY-SA 3.0",
        language="zh",
        size="254,547 articles, 524 MB",
        note="One JSON array; the text is in `completion`. Templates, redirects and disambiguations are filtered out.",
    ),
    Dataset(
        name="baidubaike-563w",
        kind="document",
        format="baidubaike",
        files=("*563w_baidubaike*.json*",),
        huggingface="xuqinyang/BaiduBaike-5.63M",
        modelscope="fq980207/563w_baidubaike",
        licence="none stated; text crawled from Baidu Baike",
        language="zh",
        size="5,634,898 articles, 16 GB",
        note="`summary` may be null. Of its entries baby-llama2-chinese kept 3.6 M that are not short, 2.7 M after MinHash.",
    ),
    Dataset(
        name="c4-zh",
        kind="document",
        format="text",
        files=("multilingual/c4-zh.tfrecord-*.json.gz",),
        huggingface="allenai/c4",
        licence="ODC-BY; the pages' own rights remain",
        language="zh",
        note="The Chinese part of mC4, 1,024 files of the web as it came: advertisements, adult spam, traditional "
        "characters. Take some: `--files 'multilingual/c4-zh.tfrecord-0000*'`. Listing the repository takes a while.",
    ),
    Dataset(
        name="wudao-corpora",
        kind="document",
        format="title_content",
        files=("*part-*.json",),
        homepage="https://data.baai.ac.cn/details/WuDaoCorporaText",
        licence="BAAI's own terms, accepted on registration",
        language="zh",
        size="200 GB",
        note="WuDaoCorpus2.0_base_200G: many JSON arrays, sorted by topic. No hub has it; register, unpack the .rar and "
        "say path:.",
    ),
    Dataset(
        name="skypile-150b",
        kind="document",
        format="text",
        files=("data/*.jsonl",),
        huggingface="Skywork/SkyPile-150B",
        modelscope="AI-ModelScope/SkyPile-150B",
        licence="Skywork Community License",
        language="zh",
        size="233 M pages, 620 GB",
        note="File names tell crawl and quality (head, middle): `--files 'data/2020-40_zh_head_000*'` takes a part.",
    ),
    Dataset(
        name="shibing624-medical-pretrain",
        kind="document",
        format="text",
        files=("pretrain/train_encyclopedia.json", "pretrain/medical_book_zh.json"),
        huggingface="shibing624/medical",
        licence="Apache-2.0; research only, say its authors",
        language="zh",
        size="about 360,000 encyclopaedia entries and 8,500 pieces of textbooks",
        note="JSON lines despite the suffix. Textbooks are cut into pieces in the middle of sentences.",
    ),
    Dataset(
        name="chatglm2-tokens",
        kind="tokens",
        format=None,
        files=("*.bin",),
        homepage="https://github.com/DLLXW/baby-llama2-chinese",
        licence="those of its sources: Wikipedia, Baidu Baike, mC4, WuDao, shibing624/medical",
        language="zh",
        size="63.4 G tokens, 118 GB in 34 files",
        note="Headerless uint16 ids of the ChatGLM2 tokenizer (64,793 of them), documents ended by its eos. On Baidu "
        "disk alone, so no `get`: name all the files in `shards.token_files`.",
    ),
)
