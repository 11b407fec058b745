"""Attacks on the messages of federated learning: what they see and get. Chapters 03 to 06."""
