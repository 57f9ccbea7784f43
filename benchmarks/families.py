"""Write docs/families.md: `python benchmarks/families.py`, about a minute. With `--all`, print instead for every causal
class of transformers that a small configuration can build whether our text is `generate`'s own: about five minutes."""

import sys
import time
from pathlib import Path

from transformers import logging


def main() -> None:
    sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
    from families.causal_classes import outcomes as outcomes_of_all
    from families.cells import COLUMNS
    from families.table import DOCUMENT, outcome, write_table
    from families.zoo import ALL

    logging.set_verbosity_error()
    if "--all" in sys.argv[1:]:
        for name, found in outcomes_of_all():
            print(f"{name}: {found}", flush=True)
        return
    began, outcomes = time.process_time(), {}
    for family in ALL:
        outcomes |= {(family.title, column): outcome(family, column) for column in COLUMNS}
        print(family.title, *(outcomes[family.title, column][:3] for column in COLUMNS), file=sys.stderr)
    DOCUMENT.parent.mkdir(exist_ok=True)
    DOCUMENT.write_text(write_table(outcomes), "utf-8")
    refused = sum(text != "yes" for text in outcomes.values())
    print(f"{len(outcomes)} cells, {refused} refused, {time.process_time() - began:.0f} s of CPU: {DOCUMENT}")


if __name__ == "__main__":
    main()
