"""The course's outline: all twenty chapters, written or not.

The intro page's map is drawn from it. A chapter counts as written once `chapters/NAME.md` exists;
until then the map shows it in grey, without a link.
"""

from __future__ import annotations

from typing import NamedTuple


class Part(NamedTuple):
    """A stretch of the course with its own question."""

    title: str
    colour: str  # the actor it is about; a colour role of assets/flcourse.css
    chapters: tuple[Entry, ...]


class Entry(NamedTuple):
    """One chapter: its two-digit number, short title and the question that it answers."""

    number: str
    title: str
    question: str


PARTS = (
    Part(
        "Learn together",
        "client",
        (
            Entry("01", "FedAvg", "Can strangers train one model?"),
            Entry("02", "Threat models", "Who sees what?"),
        ),
    ),
    Part(
        "Attack privacy",
        "attacker",
        (
            Entry("03", "Gradient leakage", "What does one gradient give away?"),
            Entry("04", "Label leakage", "Can the server read your label?"),
            Entry("05", "Closed form", "When is a gradient invertible?"),
            Entry("06", "The attack lab", "Which signal leaks, under which conditions?"),
            Entry("07", "Priors", "What if the attacker knows what pictures look like?"),
            Entry("08", "Malicious server", "What if the server lies?"),
            Entry("09", "Membership", "Was your data used?"),
        ),
    ),
    Part(
        "Defend privacy",
        "defence",
        (
            Entry("10", "Differential privacy", "What does ε buy?"),
            Entry("11", "Composition", "How much privacy is left?"),
            Entry("12", "DP training", "What does privacy cost in training?"),
            Entry("13", "Secure aggregation", "How can a server add numbers it cannot read?"),
            Entry("14", "Encryption", "Can one compute on ciphertexts?"),
        ),
    ),
    Part(
        "Survive liars",
        "warning",
        (
            Entry("15", "Byzantine clients", "What can one liar do to an average?"),
            Entry("16", "The matrix", "Which rule survives which lie?"),
            Entry("17", "Backdoors", "What can liars do together?"),
        ),
    ),
    Part(
        "Put it together",
        "server",
        (
            Entry("18", "In production", "Does it hold on a real server?"),
            Entry("19", "Capstone", "What is closed, what is open, what did it cost?"),
        ),
    ),
)
