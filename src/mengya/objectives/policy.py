"""Policy optimisation on answers, PPO and GRPO: advantages and the clipped losses (B rows, T answer tokens).

`mask_BT` is True on the answer's tokens, its end token included; everything outside it is ignored.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def k1(logps_BT: Tensor, reference_logps_BT: Tensor) -> Tensor:
    """KL(π ‖ π_ref) of every token by the k1 estimator, (B, T): log π − log π_ref; unbiased, may be negative."""
    return logps_BT - reference_logps_BT


def k2(logps_BT: Tensor, reference_logps_BT: Tensor) -> Tensor:
    """KL(π ‖ π_ref) of every token by the k2 estimator, (B, T): ½ (log π − log π_ref)²; little variance, biased."""
    return 0.5 * (logps_BT - reference_logps_BT) ** 2


def k3(logps_BT: Tensor, reference_logps_BT: Tensor) -> Tensor:
    """KL(π ‖ π_ref) of every token by the k3 estimator, (B, T): e^d − 1 − d with d = log π_ref − log π.

    Unbiased and never negative (Schulman 2020, "Approximating KL divergence"; Shao et al. 2024, eq. 4).
    """
    d_BT = reference_logps_BT - logps_BT
    return d_BT.exp() - 1 - d_BT


KL_ESTIMATORS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"k1": k1, "k2": k2, "k3": k3}


def kl_penalised_rewards(
    score_B: Tensor,
    logps_BT: Tensor,
    reference_logps_BT: Tensor,
    mask_BT: Tensor,
    kl_coefficient: float,
    estimator: str = "k1",
) -> Tensor:
    """Reward of every token: −β KL(π ‖ π_ref) by `estimator`, plus the answer's score on its last token.

    Ziegler et al. 2019, eq. 2; Ouyang et al. 2022, §3.5, both with k1, log π − log π_ref (Schulman 2020).
    """
    rewards_BT = -kl_coefficient * KL_ESTIMATORS[estimator](logps_BT, reference_logps_BT) * mask_BT
    last_B = mask_BT.long().cumsum(1).argmax(1)
    return rewards_BT.scatter_add(1, last_B[:, None], score_B[:, None])


def gae(rewards_BT: Tensor, values_BT: Tensor, mask_BT: Tensor, gamma: float, lambda_: float) -> tuple[Tensor, Tensor]:
    """Advantages and returns, each (B, T): A_t = Σ_k (γλ)^k δ_{t+k}, δ_t = r_t + γ V_{t+1} − V_t (Schulman et al. 2016,
    eq. 16). An answer is a whole episode: the value after its last token is 0."""
    advantages_BT = torch.zeros_like(rewards_BT)
    running_B = torch.zeros_like(rewards_BT[:, 0])
    next_value_B = torch.zeros_like(running_B)
    for t in reversed(range(rewards_BT.shape[1])):
        inside_B = mask_BT[:, t]
        delta_B = rewards_BT[:, t] + gamma * next_value_B - values_BT[:, t]
        running_B = torch.where(inside_B, delta_B + gamma * lambda_ * running_B, running_B)
        next_value_B = torch.where(inside_B, values_BT[:, t], next_value_B)
        advantages_BT[:, t] = torch.where(inside_B, running_B, 0.0)
    return advantages_BT, (advantages_BT + values_BT) * mask_BT


def whiten(x_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """Zero mean, unit variance over the masked entries, of the whole batch (Huang et al. 2024, detail 8)."""
    inside_N = x_BT[mask_BT]
    scale = inside_N.std(unbiased=False).clamp_min(1e-6)
    return (x_BT - inside_N.mean()) / scale * mask_BT


def clipped_losses(
    logps_BT: Tensor, old_logps_BT: Tensor, advantages_BT: Tensor, clip: float, clip_high: float | None = None
) -> Tensor:
    """−min(ρ A, clip(ρ, 1 − ε, 1 + ε_high) A) of every token, (B, T), ρ = π/π_old (Schulman et al. 2017, eq. 7).

    A higher upper bound lets unlikely tokens grow (Yu et al. 2025, "DAPO", eq. 10); without one both bounds are `clip`.
    """
    ratio_BT = (logps_BT - old_logps_BT).exp()
    unclipped_BT = ratio_BT * advantages_BT
    clipped_BT = ratio_BT.clamp(1 - clip, 1 + (clip if clip_high is None else clip_high)) * advantages_BT
    return -torch.minimum(unclipped_BT, clipped_BT)


def policy_loss(logps_BT: Tensor, old_logps_BT: Tensor, advantages_BT: Tensor, mask_BT: Tensor, clip: float) -> Tensor:
    """Σ of the clipped losses over the answer's tokens."""
    return (clipped_losses(logps_BT, old_logps_BT, advantages_BT, clip) * mask_BT).sum()


def group_advantages(rewards_PG: Tensor, valid_PG: Tensor, *, divide_by_deviation: bool) -> Tensor:
    """(P, G): the reward of each of G answers to a prompt less their mean, by their standard deviation or not.

    Shao et al. 2024 ("DeepSeekMath"), §4.1.2; without the division Liu et al. 2025 ("Dr. GRPO"). Answers that are not
    valid have no reward: they count for nothing, and their advantage is 0.
    """
    num_valid_P1 = valid_PG.sum(1, keepdim=True).clamp_min(1)
    mean_P1 = (rewards_PG * valid_PG).sum(1, keepdim=True) / num_valid_P1
    advantages_PG = (rewards_PG - mean_P1) * valid_PG
    if divide_by_deviation:
        deviation_P1 = (advantages_PG.square().sum(1, keepdim=True) / num_valid_P1).sqrt()
        advantages_PG = advantages_PG / deviation_P1.clamp_min(1e-6)
    return advantages_PG


def value_loss(
    values_BT: Tensor, old_values_BT: Tensor, returns_BT: Tensor, mask_BT: Tensor, clip: float | None
) -> Tensor:
    """Σ ½ max((V − R)², (clip(V, V_old ± ε) − R)²) over the answer's tokens (PPO's reference implementation).

    Without `clip` Σ ½ (V − R)², as in eq. 9 of Schulman et al. 2017.
    """
    errors_BT = (values_BT - returns_BT) ** 2
    if clip is not None:
        clipped_BT = old_values_BT + (values_BT - old_values_BT).clamp(-clip, clip)
        errors_BT = torch.maximum(errors_BT, (clipped_BT - returns_BT) ** 2)
    return 0.5 * (errors_BT * mask_BT).sum()


def adapt_kl_coefficient(coefficient: float, kl: float, target: float, gain: float = 0.1) -> float:
    """The next KL coefficient: raised when KL per answer is above target, lowered below.

    β (1 + K e), e = clip(KL / target − 1, ±0.2), K = 0.1 (Ziegler et al. 2019, eq. 4): at most 2% a rollout.
    """
    error = min(max(kl / target - 1, -0.2), 0.2)
    return coefficient * (1 + gain * error)
