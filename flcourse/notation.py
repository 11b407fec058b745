"""The course's letters: each symbol of the pages with its name in the code.

The notation page is made from `NAMES`, and a test checks that every code name really is a
parameter or a field somewhere in the package, so page and code cannot drift apart.
"""

from __future__ import annotations

from typing import NamedTuple


class Name(NamedTuple):
    """One quantity: LaTeX symbol, name in code, meaning, unit or shape, first chapter."""

    symbol: str
    code: str
    meaning: str
    unit: str
    chapter: str


NAMES: tuple[Name, ...] = (
    Name(r"n", "num_clients", "clients that a data set is divided among", "count", "01"),
    Name(r"q", "fraction", "share of the clients that take part in a round", "0 to 1", "01"),
    Name(r"E", "epochs", "passes of a client over its own data in a round", "count", "01"),
    Name(r"B", "batch_size", "samples in one local step", "count", "01"),
    Name(r"\eta", "lr", "step length of local training", "–", "01"),
    Name(r"\eta_s", "server_lr", "step length of the server along the mean update", "–", "01"),
    Name(r"T", "rounds", "rounds of training", "count", "01"),
    Name(r"w", "model", "the global model; as a row, all its values end to end", "`[d]`", "01"),
    Name(
        r"\Delta_k", "rows", "updates, one client a row: local − global", "`[n, d]` float32", "01"
    ),
    Name(r"n_k", "weights", "sample counts of the clients, beside their rows", "`[n]`", "01"),
    Name(
        r"\bar\Delta",
        "step",
        "weighted mean of the updates (or another rule's answer)",
        "`[d]`",
        "01",
    ),
    Name(r"\alpha", "alpha", "Dirichlet concentration; smaller means less alike", "> 0", "01"),
    Name(r"\mu", "proximal", "FedProx: strength of the pull to the global model", "≥ 0", "01"),
    Name(
        r"\beta", "server_momentum", "part of the last step that the server keeps", "0 to 1", "01"
    ),
    Name(r"x", "inputs", "pictures, records or texts", "see below", "02"),
    Name(r"y", "labels", "true classes", "`[b]` int64", "02"),
    Name(r"L", "loss", "cross-entropy, mean over a batch", "nats", "02"),
    Name(r"s", "seed", "start of every random draw", "integer", "01"),
    Name(r"\bar p", "mean_prediction", "mean softmax of a model over a batch", "`[k]`", "04"),
    Name(r"g", "gradients", "the gradient that was sent, by parameter", "as the weights", "03"),
    Name(r"\hat x", "images", "the attacker's picture", "`[b, c, h, w]`", "03"),
    Name(r"\delta", "delta", "the loss's gradient by a layer's output", "as the output", "05"),
    Name(r"z", "z", "output of a linear layer or convolution", "`[o]`, `[o, h, w]`", "05"),
    Name(r"h", "features", "a layer's input behind an activation", "as the input", "05"),
    Name(r"G", "matrix", "shifted copies of δ: a channel → its part of ∂W", "`[o·k·k, h·w]`", "05"),
    Name(r"\tau", "steps", "local steps behind one update", "count", "06"),
    Name(r"C", "clip_norm", "a message is shortened to this length", "> 0", "06"),
    Name(r"\sigma", "noise_std", "standard deviation of the noise on each value", "> 0", "06"),
    Name(r"z = \sigma/C", "noise_multiplier", "noise relative to the clipping norm", "> 0", "10"),
    Name(r"\varepsilon", "epsilon", "the odds may move by a factor of e to this", "≥ 0", "10"),
    Name(r"\delta\ \text{(privacy)}", "delta", "what may lie beyond that", "0 to 1", "10"),
    Name(r"\beta(\alpha)", "alpha", "what the best test misses at α false alarms", "0 to 1", "10"),
    Name(r"q\ \text{(privacy)}", "sample_rate", "chance to take part in a step", "0 to 1", "11"),
    Name(r"R(\alpha)", "order", "Rényi divergence of a step at order α > 1", "nats", "11"),
    Name(r"2^k", "bits", "modulus of masked words; k is 8 to 64", "integer", "13"),
    Name(r"t", "threshold", "shares that open a secret, of the h that there are", "count", "13"),
    Name(r"f", "num_byzantine", "clients that may send anything", "count", "15"),
    Name(r"s\ \text{(lie)}", "scale", "a liar sends this much of the opposite", "> 0", "15"),
    Name(r"v", "start", "the place from which centred clipping measures", "`[d]`", "15"),
)
