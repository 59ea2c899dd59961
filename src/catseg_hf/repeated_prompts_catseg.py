"""Labels whose prompts are the same, such as "snow" and "Snow": of these classes only the first one is ever found."""

from collections.abc import Sequence

import torch
import torch.distributed
from transformers.utils import logging


logger = logging.get_logger(__name__)

MAX_GROUPS = 5
# The published protocol prompts these names of ADE20K's 847 with their first synonym, though others have it too.
REPEATED_BY_PROTOCOL = frozenset(
    {
        "bag",
        "bag, handbag, pocketbook, purse",
        "bag, traveling bag, travelling bag, grip, suitcase",
        "basket, basketball hoop, hoop",
        "basket, handbasket",
        "control panel",
        "control panel, instrument panel, control board, board, panel",
        "grill",
        "grill, grille, grillwork",
        "patio",
        "patio, terrace",
        "pier",
        "pier, wharf, wharfage, dock",
        "pipe, pipage, piping",
        "pipe, tube",
        "pot",
        "pot, flowerpot",
        "screen, crt screen",
        "screen, silver screen, projection screen",
    }
)


def repeated_prompts(labels: Sequence[str], input_ids: torch.LongTensor) -> list[list[str]]:
    """
    Labels that have all their prompts in common, in their order.

    Args:
        labels (`Sequence[str]`): The T labels.
        input_ids (`torch.LongTensor` of shape (T, L) or (T, P, L)): Their prompts.

    Returns:
        `list[list[str]]`: Groups of two labels or more, without those of ADE20K's 847 names that the published
        protocol prompts alike.
    """
    groups: dict[tuple[int, ...], list[str]] = {}
    for label, prompts in zip(labels, input_ids.flatten(1).tolist(), strict=True):
        groups.setdefault(tuple(prompts), []).append(label)
    return [group for group in groups.values() if len(group) > 1 and not REPEATED_BY_PROTOCOL.issuperset(group)]


def describe_repeated_prompts(labels: Sequence[str], input_ids: torch.LongTensor) -> str | None:
    """What to tell the user about [`repeated_prompts`], if there are any."""
    groups = repeated_prompts(labels, input_ids)
    if not groups:
        return None
    named = "; ".join(" and ".join(map(repr, group)) for group in groups[:MAX_GROUPS])
    more = f"; and {len(groups) - MAX_GROUPS} more such groups" if len(groups) > MAX_GROUPS else ""
    return (
        f"Labels have the same prompt: {named}{more}. Only the first of them is ever found, the others get no pixel: "
        "keep one, or give them different words (case does not count, and of 'tree, oak' only 'tree' does)."
    )


def warn_of_repeated_prompts(labels: Sequence[str], input_ids: torch.LongTensor):
    """Warns of [`repeated_prompts`], once for the same labels, in the first of several processes."""
    message = describe_repeated_prompts(labels, input_ids)
    has_rank = torch.distributed.is_available() and torch.distributed.is_initialized()
    if message is not None and not (has_rank and torch.distributed.get_rank()):
        logger.warning_once(message)
