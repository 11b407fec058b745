"""Mistakes people really make in the exercises of chapter 02, and what they must be told."""

ALL = {"network", "curious server", "malicious server", "malicious clients", "colluders"}
RIGHT = {
    "transport encryption": {"network"},
    "secure aggregation": {"network", "curious server"},
    "clipping": set(),
    "noise at the server": {"malicious clients"},
    "noise on the device": ALL,
}

WRONG = {
    "02.1": [
        ("first row", lambda w, b: w[0] / b[0], "0 is divided by 0"),
        ("argmax without abs", lambda w, b: w[b.argmax()] / b[b.argmax()], "0 is divided by 0"),
        ("mean of all ratios", lambda w, b: (w / b[:, None]).mean(0), "0 is divided by 0"),
        ("all rows", lambda w, b: w / b[:, None], "choose the one"),
        ("wrong axis", lambda w, b: w / b, "RuntimeError"),
        ("sum by sum", lambda w, b: w.sum(0) / b.sum(), "adds up to 0"),
        ("first row that is not zero", lambda w, b: (w[b != 0] / b[b != 0][:, None])[0],
         "tiny bias gradient"),
        ("not divided", lambda w, b: w[b.abs().argmax()], "still times δ"),
        ("multiplied", lambda w, b: w[b.abs().argmax()] * b[b.abs().argmax()], "multiply"),
        ("kept dimension", lambda w, b: (w / b[:, None])[b.abs().argmax()][None], "shape"),
    ],
    "02.3": [
        ("encryption stops the server",
         RIGHT | {"transport encryption": {"network", "curious server"}}, "it decrypts"),
        ("secure aggregation stops a malicious server",
         RIGHT | {"secure aggregation": {"network", "curious server", "malicious server"}},
         "puppets"),
        ("secure aggregation stops all but one",
         RIGHT | {"secure aggregation": {"network", "curious server", "colluders"}}, "subtract"),
        ("clipping hides", RIGHT | {"clipping": ALL}, "direction still holds the data"),
        ("noise at the server stops the server",
         RIGHT | {"noise at the server": {"curious server", "malicious clients"}},
         "before it adds the noise"),
        ("device noise forgets colluders",
         RIGHT | {"noise on the device": ALL - {"colluders"}}, "do not know the noise"),
        ("text for a set", RIGHT | {"transport encryption": "network"}, "braces"),
        ("misspelt", RIGHT | {"clipping": {"the server"}}, "no adversary 'the server'"),
        ("a layer missing", {k: v for k, v in RIGHT.items() if k != "clipping"}, "is missing"),
        ("half filled", RIGHT | {"clipping": ...}, "not filled in"),
    ],
    "02.2": [
        ("sign turned", lambda m, o, t: (o < t).float().mean() - (m < t).float().mean(),
         "sign is turned"),
        ("hits only", lambda m, o, t: (m < t).float().mean(), "false alarms"),
        ("accuracy", lambda m, o, t: ((m < t).sum() + (o >= t).sum()) / (len(m) + len(o)),
         "accuracy"),
        ("counts", lambda m, o, t: (m < t).sum() - (o < t).sum(), "counts are subtracted"),
        ("precision", lambda m, o, t: (m < t).sum() / ((m < t).sum() + (o < t).sum()),
         "precision"),
        ("one denominator", lambda m, o, t: ((m < t).sum() - (o < t).sum()) / (len(m) + len(o)),
         "same number"),
    ],
}  # fmt: skip
