"""The benchmark of secure aggregation: it runs, and the stored file meets what was promised."""

import json

import numpy as np
import pytest

from benchmarks import secagg

STORED = secagg.RESULT.exists()


def test_the_raw_stream_covers_the_same_bytes(monkeypatch):
    calls = []
    monkeypatch.setattr(secagg, "Cipher", lambda *_: _Counting(calls))
    secagg.cipher_stream(10 * secagg.BLOCK_BYTES)
    assert sum(calls) == 10 * secagg.BLOCK_BYTES


class _Counting:
    def __init__(self, calls):
        self.calls = calls

    def encryptor(self):
        return self

    def update_into(self, source, target):
        assert len(target) >= len(source)
        self.calls.append(len(source))


def test_small_rounds_are_verified():
    record = secagg.large(12, 4, 50)
    assert record["dropped"] == 1 and record["error"] <= record["error bound"]
    assert record["sent over a plain uint32 vector"] > 1


def test_a_wrong_sum_is_noticed(monkeypatch):
    right = secagg.secure_sum

    def wrong(vectors, **options):
        result = right(vectors, **options)
        result.total[0] += 1e-3
        return result

    monkeypatch.setattr(secagg, "secure_sum", wrong)
    with pytest.raises(AssertionError, match="the sum is off"):
        secagg.one_round(np.zeros((4, 3)), [1])


def test_sharing_and_masking_report_what_they_time():
    assert secagg.sharing(10, turns=1)["threshold"] == 7
    record = secagg.masking(1000, 3, 1)
    assert record["neighbours"] == 3 and record["share of the raw stream"] > 0


def test_the_published_settings():
    for found in secagg.published_setting().values():
        assert found["floor"] < found["ours"] <= found["the paper states"]


@pytest.mark.skipif(not STORED, reason="not measured on this machine yet")
def test_the_stored_file_meets_the_targets():
    stored = json.loads(secagg.RESULT.read_text(encoding="utf-8"))
    assert set(stored) == set(secagg.parts(tiny=True, limit=1))
    found = {name: part["found"] for name, part in stored.items()}
    masks = found["masking"]
    assert masks["share of the raw stream"] >= 0.70
    assert max(masks["peak bytes beyond the vector"].values()) < 2**20
    faster = found["Flower"]["times faster"]
    assert faster["masked input, with quantisation"] >= 4
    assert faster["key sharing, signatures not checked"] >= 50
    assert faster["whole client"] >= 15 and faster["server"] >= 30
    sparse, full = found["sparse round"], found["complete round"]
    assert (sparse["clients"], sparse["neighbours"], sparse["dropped"]) == (1000, 100, 100)
    assert sparse["sent over a plain uint32 vector"] <= 1.05
    assert full["sent over a plain uint32 vector"] <= 1.25
