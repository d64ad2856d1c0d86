"""The pairs that ALMA's own code takes from its rows."""

from __future__ import annotations

from typing import Any

# ALMA's schema: its own rule, ours, and the datasets library read the pairs back.


def alma_rule(row: dict[str, Any], pairs: set[str], scorer: str) -> list[tuple[str, str, str]]:
    """(direction, chosen, rejected), as ALMA's `cpo_prompt_function` and `get_chosen_reject`."""
    pairs_taken = []
    source, target = row["language_pair"].split("-")
    for direction, into, out_of in (
        (f"{source}-{target}", target, source),
        (f"{target}-{source}", source, target),
    ):
        assert isinstance(row[out_of], str) and isinstance(row[into], str)  # both make prompts
        required = row["required_directions"]
        if direction not in pairs or (required != "" and required.split("-")[1] != into):
            continue
        if row["Delta"] != 0:
            better, worse = ("gpt4", "alma") if row["Delta"] > 0 else ("alma", "gpt4")
            pairs_taken.append((direction, row[f"{better}_{into}"], row[f"{worse}_{into}"]))
            continue
        sentences = [row[into], row[f"gpt4_{into}"], row[f"alma_{into}"]]
        scores = [row[f"{name}_{into}_{scorer}"] for name in ("ref", "gpt4", "alma")]
        best, worst = scores.index(max(scores)), scores.index(min(scores))
        pairs_taken.append((direction, sentences[best], sentences[worst]))
    return pairs_taken
