"""A user's own reward for the tests: how many different characters an answer has; on some answers it fails on purpose."""


def score(prompt, answer, meta):
    assert prompt[-1]["role"] == "user"
    assert "kind" in meta
    if len(answer) % 5 == 3:
        raise ValueError("an unlucky length")
    if len(answer) % 5 == 4:
        return float("nan")
    return len(set(answer)) / 10
