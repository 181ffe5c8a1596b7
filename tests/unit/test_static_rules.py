"""The semgrep rules of the gate: each has an example it must find and one it must leave alone."""

import re
from pathlib import Path

GATE = Path(__file__).parents[2] / ".ci"


def test_every_rule_has_a_bad_and_a_good_example() -> None:
    """``semgrep scan --test`` in the gate proves each of them; a rule without one would be proved by nothing."""
    rules = re.findall(r"^  - id: ([\w-]+)$", (GATE / "semgrep.yml").read_text("utf-8"), re.MULTILINE)
    examples = (GATE / "semgrep.py").read_text("utf-8")

    assert len(rules) == len(set(rules)) > 10
    assert set(re.findall(r"^# ruleid: ([\w-]+)$", examples, re.MULTILINE)) == set(rules)
    assert set(re.findall(r"^# ok: ([\w-]+)$", examples, re.MULTILINE)) == set(rules)
    assert "--test --config .ci/semgrep.yml" in (GATE / "run").read_text("utf-8")
