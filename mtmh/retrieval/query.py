"""What a request asks for, with the defaults for what it leaves open; checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mtmh.config import RetrievalConfig
from mtmh.errors import RequestError
from mtmh.retrieval.merge import head_quotas, head_shares, named_shares


def asked_settings(
    defaults: RetrievalConfig, k: int | None, k_ann: int | None, num_probes: int | None, alpha: float | None
) -> RetrievalConfig:
    """The settings of a request; None: the default.

    Raises:
        RequestError: one is out of range; the message names it.
    """
    k = k if k is not None else defaults.k
    # A larger K than the default asks for at least as many candidates.
    k_ann = k_ann if k_ann is not None else max(defaults.k_ann, k)
    num_probes = num_probes if num_probes is not None else defaults.num_probes
    alpha = alpha if alpha is not None else defaults.alpha
    for name, value in (("k", k), ("k_ann", k_ann), ("num_probes", num_probes)):
        if value < 1:
            raise RequestError(f"{name} is {value}, expected at least 1")
    if k > k_ann:
        raise RequestError(f"k is {k}, more than the {k_ann} candidates of a head (k_ann)")
    if not 0.0 <= alpha <= 100.0:
        raise RequestError(f"alpha is {alpha}, expected a percentage from 0 to 100")
    return defaults.model_copy(update={"k": k, "k_ann": k_ann, "num_probes": num_probes, "alpha": alpha})


def head_slots(
    settings: RetrievalConfig, heads: Sequence[str], alpha: float | None, shares: Mapping[str, float] | None
) -> list[int]:
    """Answers of each head, ``settings.k`` in all.

    Args:
        settings: of the request.
        heads: names, the engagement head first.
        alpha: as the request has it; None: it has none.
        shares: share of each head instead.

    Raises:
        RequestError: both are given, or shares that are none.
    """
    if shares is None:
        return head_quotas(head_shares(settings.alpha, len(heads)), settings.k)
    if alpha is not None:
        raise RequestError("alpha and shares both divide the answers among the heads: give one of them")
    return head_quotas(named_shares(shares, heads), settings.k)
