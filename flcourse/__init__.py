"""Federated Learning, Attacked and Defended: the code that the chapters import.

Each module is importable and readable alone; see ``flcourse.fedavg`` for a round in five lines.
"""

__version__ = "0.1.0"
