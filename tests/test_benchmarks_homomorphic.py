"""The benchmark's own code runs, extrapolates in proportion, and stops at a wrong sum."""

import json

import pytest

pytest.importorskip("phe")
pytest.importorskip("tenseal")

from benchmarks import homomorphic as benchmark


@pytest.mark.parametrize("case", benchmark.CASES, ids=lambda case: case.name)
def test_a_case_is_measured_and_extrapolated(case):
    found = benchmark.measure(benchmark.tiny(case)._replace(num_clients=2))
    assert 0 < found["error"] <= found["error_bound"]
    assert (found["error_of_the_cipher"] < 1e-9) == found["exact_in_fixed_point"]
    update = benchmark.extrapolated(found, values=10 * found["num_values"])
    assert update["extrapolated"] is True
    name = "encrypt_seconds_a_client"
    assert update[name] == pytest.approx(10 * found[name])
    assert update["megabytes_up"] == pytest.approx(
        10 * found["num_values"] * found["bytes_a_value_up"] / 1e6
    )
    json.dumps([found, update])


def test_a_wrong_sum_stops_the_script(monkeypatch):
    right = benchmark.KeyHolder.decrypt
    monkeypatch.setattr(benchmark.KeyHolder, "decrypt", lambda self, m: right(self, m) + 1e-3)
    with pytest.raises(AssertionError, match="above its bound"):
        benchmark.measure(benchmark.tiny(benchmark.CASES[3]))


def test_the_stored_numbers_say_which_of_them_are_extrapolated():
    stored = json.loads(benchmark.RESULT.read_text(encoding="utf-8"))
    assert [row["name"] for row in stored["rows"]] == [case.name for case in benchmark.CASES]
    for row in stored["rows"]:
        assert row["update"]["extrapolated"] is True and row["error"] <= row["error_bound"]
        if "update_measured" in row:
            measured = row["update_measured"]
            assert measured["extrapolated"] is False
            near = row["update"]["encrypt_seconds_a_client"] / measured["encrypt_seconds_a_client"]
            assert 0.4 < near < 2.5
    assert stored["paillier_by_crt"]["ratio_median"] > 2
