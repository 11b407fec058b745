"""A round of secure aggregation whose messages a test can hold, alter and hand on."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from flcourse.secagg import STAGES, Client, Server, Setup, directory, new_identities

Alter = Callable[[str, int, bytes], bytes]


def unaltered(stage: str, index: int, message: bytes) -> bytes:
    return message


class Round:
    """Clients with random words, a server, and the messages that wait for each client."""

    def __init__(self, n: int = 6, length: int = 5, **options) -> None:
        self.keys = new_identities(n)
        self.setup = Setup(directory(self.keys), length, **options)
        top = 2**self.setup.bits - 1
        words = np.random.default_rng(n).integers(0, top, (n, length), np.uint64, endpoint=True)
        self.words = words.astype(np.uint32 if self.setup.bits <= 32 else np.uint64)
        self.clients = [Client(self.setup, i, w, k) for i, (w, k) in enumerate(zip(self.words, self.keys, strict=True))]  # fmt: skip  # noqa: E501
        self.server = Server(self.setup)
        self.inbox: dict[int, bytes] = dict.fromkeys(range(n), b"")

    def answer(self, index: int) -> bytes:
        """What client ``index`` sends in the stage that is open."""
        step = getattr(self.clients[index], self.server.stage)
        message = self.inbox[index]
        return step(message) if message else step()

    def stage(self, alter: Alter = unaltered) -> None:
        """One stage; ``alter`` changes what travels from the server to each client."""
        for index in self.inbox:
            self.server.receive(self.answer(index))
        stage = STAGES[len(self.server.alive)]
        replies = self.server.advance()
        self.inbox = {i: alter(stage, i, message) for i, message in replies.items()}

    def until(self, stage: str) -> Round:
        """Everything before ``stage``."""
        while self.server.stage != stage:
            self.stage()
        return self

    def finish(self) -> np.ndarray:
        """The rest; the server's total."""
        return self.until("done").server.total()

    def expected(self) -> np.ndarray:
        """The survivors' sum modulo 2^bits, in Python integers."""
        total = [
            sum(int(self.words[i, j]) for i in self.server.survivors) % 2**self.setup.bits
            for j in range(self.setup.length)
        ]
        return np.array(total, dtype=self.words.dtype)
