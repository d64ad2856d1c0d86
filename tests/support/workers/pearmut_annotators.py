"""Annotators in Pearmut's own environment: add campaigns, then judge everything in them.

    PYTHON pearmut_annotators.py CAMPAIGNS.json SCORES.json

Runs in the folder where Pearmut keeps its data. SCORES.json maps texts of translations to scores.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

from pearmut import cli  # type: ignore[import-not-found]


def judged(item: dict[str, Any], scores: dict[str, float]) -> dict[str, Any]:
    """An answer as Pearmut's page sends it: the errors that were marked, and a score."""
    return {
        letter: {"score": scores[text], "error_spans": item["error_spans"][letter]}
        for letter, text in item["tgt"].items()
    }


def main(campaigns: str, scores_file: str) -> None:
    """Adds the campaigns by Pearmut's command, and answers as each of their users."""
    sys.argv = ["pearmut", "add", campaigns]
    cli.main()
    from pearmut import app  # type: ignore[import-not-found]

    with open(scores_file, encoding="utf-8") as file:
        scores = json.load(file)
    shown = 0
    for campaign, users in app.progress_data.items():
        for user in users:
            who = {"campaign_id": campaign, "user_id": user}
            while True:
                request = app.NextItemRequest(**who)
                answer = json.loads(asyncio.run(app._get_next_item(request)).body)
                if answer["status"] == "goodbye":
                    break
                payload = {
                    "item": answer["payload"],
                    "annotation": [judged(item, scores) for item in answer["payload"]],
                    "actions": [{"time": 1.0, "action": "load"}, {"time": 2.0, "action": "submit"}],
                }
                number = answer["info"]["item_i"]
                response = app.LogResponseRequest(**who, item_i=number, payload=payload)
                assert asyncio.run(app._log_response(response)).status_code == 200
                shown += 1
        print(campaign, json.dumps(app.compute_model_scores(campaign)))
    print("tasks:", shown)


if __name__ == "__main__":
    main(*sys.argv[1:])
