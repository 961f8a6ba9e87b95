"""What the parser of bodies says of bodies that are wrong, place by place."""

import json
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from api.bodies import MAX_DEPTH, BodyParser, depth
from api.routes.examples import JOBS
from services.contracts.errors import ErrorCode, InvalidSpec, LensdError, Violation
from services.contracts.job import JobSpec
from services.contracts.patching import PatchingSpec

PARSER: BodyParser[JobSpec] = BodyParser(TypeAdapter(JobSpec))
PATCHING: dict[str, Any] = {
    "kind": "patching",
    "model": "tiny",
    "method": {"type": "activation_patching", "site": "resid_pre"},
    "pairs": [{"clean": "a", "corrupted": "b", "answer": "c", "foil": "d"}],
}
METHOD = PATCHING["method"]


def refusal(raw: bytes) -> LensdError:
    with pytest.raises(LensdError) as caught:
        PARSER.parse(raw)
    return caught.value


def violations(**changed: object) -> dict[str, str]:
    """Pointer → message of what is wrong with a good job after `changed`."""
    error = refusal(json.dumps({**PATCHING, **changed}).encode())
    assert isinstance(error, InvalidSpec)
    assert {violation.code for violation in error.violations} == {ErrorCode.INVALID_REQUEST}
    return {violation.pointer: violation.message for violation in error.violations}


def test_a_good_body_becomes_its_specification() -> None:
    assert isinstance(PARSER.parse(json.dumps(PATCHING).encode()), PatchingSpec)


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"", "the body is empty"),
        (b" \n", "the body is empty"),
        (b"{", "line 1, column 2"),
        (b'{"kind": "patching"} x', "Extra data at line 1, column 22"),
        (b'{"kind": NaN}', "NaN is not JSON"),
        (b'{"kind": -Infinity}', "-Infinity is not JSON"),
        (b'{"kind": "a", "kind": "b"}', 'the key "kind" appears twice'),
        (b'{"kind": "\xff"}', "byte 10 (0xff) is not UTF-8"),
        (b"\xff\xfe{\x00}\x00", "byte 0 (0xff) is not UTF-8"),
        (b"\xef\xbb\xbf{}", "not valid JSON"),
        (b'{"kind": "\\ud800"}', "unexpected end of hex escape"),
        (b'{"kind": ' + b"1" * 5_000 + b"}", "number out of range"),
        (b"{'kind': 1}", "line 1, column 2"),
    ],
)
def test_what_is_not_json_is_refused_with_its_place(raw: bytes, reason: str) -> None:
    error = refusal(raw)
    assert error.code is ErrorCode.INVALID_JSON
    assert reason in error.message


@pytest.mark.parametrize("raw", [b"[" * 100_000, b'{"a":' * 40 + b"1" + b"}" * 40, b"[" * 33 + b"]" * 33])
def test_a_body_that_nests_too_deep_is_refused_before_it_is_parsed(raw: bytes) -> None:
    assert refusal(raw).code is ErrorCode.BODY_TOO_DEEP


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (b"1", 0),
        (b"[]", 1),
        (b'{"a": [1, {"b": []}], "c": {}}', 4),
        (b'["[[[[", "\\"[[["]', 1),
        (b"[[],[[]]]", 3),
        (b"[" * MAX_DEPTH + b"]" * MAX_DEPTH, MAX_DEPTH),
    ],
)
def test_depth_counts_brackets_outside_strings(raw: bytes, expected: int) -> None:
    assert depth(raw, at_most=MAX_DEPTH) == expected


@pytest.mark.parametrize("piece", [b'\\"', b'"', b'"\\', b"[]", b"["])
def test_no_body_takes_long_to_be_refused(piece: bytes) -> None:
    started = time.process_time()
    refusal(b'"' + piece * (999_999 // len(piece)))
    refusal(piece * (1_000_000 // len(piece)))
    assert time.process_time() - started < 2


@pytest.mark.parametrize("raw", [b"5", b"null", b'"text"', b"[]"])
def test_a_body_that_is_not_an_object_is_told_so(raw: bytes) -> None:
    error = refusal(raw)
    assert isinstance(error, InvalidSpec)
    assert [violation.pointer for violation in error.violations] == [""]
    assert error.violations[0].message.endswith("expected an object")


def test_an_unknown_kind_names_the_known_ones() -> None:
    (message,) = violations(kind="patchin").values()
    assert message.startswith("\"patchin\" is not known: expected one of 'patching', 'attribution', 'features'")
    assert all(f"'{job['kind']}'" in message for job in JOBS.values())


def test_a_missing_kind_names_the_known_ones() -> None:
    error = refusal(b"{}")
    assert isinstance(error, InvalidSpec)
    assert error.violations[0].pointer == "/kind"
    assert "'patching'" in error.message


def test_an_unknown_field_names_the_allowed_ones() -> None:
    found = violations(method={**METHOD, "sites": 1})
    expected = '"sites" is not a field here: allowed are heads, layers, mode, positions, site, type'
    assert found == {"/method/sites": expected}


def test_a_missing_field_is_pointed_at_where_it_should_be() -> None:
    assert violations(pairs=[{"clean": "a"}]) == {"/pairs/0/corrupted": '"corrupted" is missing'}


def test_a_wrong_value_names_the_allowed_ones() -> None:
    found = violations(method={**METHOD, "site": "resid"}, priority="soon")
    assert found["/method/site"].startswith("\"resid\" is not accepted here: expected one of 'embed', 'resid_pre',")
    assert found["/priority"] == "\"soon\" is not accepted here: expected one of 'interactive' or 'batch'"


def test_tags_of_unions_never_show_in_pointers() -> None:
    tokens = {"type": "tokens", "tokens": [1, "2", -3], "extra": 1}
    assert set(violations(pairs=[{"clean": tokens, "corrupted": "b"}])) == {
        "/pairs/0/clean/tokens/1",
        "/pairs/0/clean/extra",
    }


def test_a_member_called_like_a_tag_does_not_mislead_the_pointer() -> None:
    found = violations(metric={"type": "logit_diff", "logit_diff": {"position": 1}, "position": "last"})
    assert set(found) == {"/metric/logit_diff", "/metric/position"}


def test_the_branches_of_a_union_make_one_sentence() -> None:
    found = violations(method={**METHOD, "positions": [None, 2.5, "two words"]})
    assert found == {
        "/method/positions/0": "null is not accepted here: expected an integer or a string",
        "/method/positions/1": "2.5 is not accepted here: expected an integer or a string",
        "/method/positions/2": r'"two words" is not accepted here: expected text that matches ^[^\s]+$',
    }


def test_a_prompt_of_the_wrong_type_names_both_forms() -> None:
    expected = {"/pairs/0/clean": "7 is not accepted here: expected a string or an object"}
    assert violations(pairs=[{"clean": 7, "corrupted": "b"}]) == expected


def test_a_list_is_not_also_called_too_short_because_its_items_are_wrong() -> None:
    assert set(violations(pairs=[{"clean": "", "corrupted": "b"}])) == {"/pairs/0/clean"}
    assert violations(pairs=[]) == {"/pairs": "a list of 0 is not accepted here: expected at least 1 item(s)"}


def test_numbers_are_strict_and_bounded() -> None:
    found = violations(method={**METHOD, "layers": ["5", 1.0, True, -1, 10**30]})
    assert found["/method/layers/0"] == '"5" is not accepted here: expected an integer'
    assert found["/method/layers/2"] == "true is not accepted here: expected an integer"
    assert found["/method/layers/3"] == "-1 is not accepted here: expected a number of at least 0"
    assert found["/method/layers/4"].endswith("expected a number of at most 1000")


def test_a_number_too_large_to_be_finite_is_refused() -> None:
    raw = json.dumps({**PATCHING, "deadline_s": 1}).replace('"deadline_s": 1', '"deadline_s": 1e999')
    error = refusal(raw.encode())
    assert "expected a finite number" in error.message


def test_a_key_that_is_too_long_is_shown_as_a_key() -> None:
    (message,) = violations(metadata={"k" * 65: "v"}).values()
    assert message.startswith('the key "kkk')
    assert message.endswith("expected at most 64 characters")


def test_pointers_escape_as_rfc_6901_asks() -> None:
    assert set(violations(**{"a/b~c": 1})) == {"/a~1b~0c"}


def test_no_more_than_a_hundred_characters_of_a_value_are_echoed() -> None:
    (message,) = violations(label="x" * 100_000).values()
    assert message.count("x") <= 100
    assert "100,000 characters" in message or "100,001" in message


def test_hundreds_of_thousands_of_errors_are_counted_and_not_listed() -> None:
    found = violations(pairs=[0] * 100_000)
    assert list(found) == [""]
    assert "100,001 errors" in found[""] or "100,002 errors" in found[""]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
FIELDS = ("kind", "model", "method", "pairs", "metric", "positions", "metadata", "deadline_s", "type", "tokens", "sae")


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(st.sampled_from(FIELDS) | st.text(max_size=5), JSON, max_size=5))
def test_any_object_is_read_or_refused_with_pointers_into_it(changed: dict[str, Any]) -> None:
    body = {**PATCHING, **changed}
    with suppress(_NotJson):
        for violation in _violations_of(json.dumps(body).encode()):
            assert violation.pointer == "" or _reaches(body, violation.pointer)
            assert len(violation.message) < 600


class _NotJson(Exception):
    """The text that Hypothesis made is none that JSON can carry (a lone surrogate)."""


def _violations_of(raw: bytes) -> Sequence[Violation]:
    try:
        PARSER.parse(raw)
    except InvalidSpec as error:
        return error.violations
    except LensdError as error:
        raise _NotJson from error
    return ()


def _reaches(body: Any, pointer: str) -> bool:
    """Whether all of `pointer` but its last step, which may be what is missing, leads somewhere in `body`."""
    *steps, _ = [step.replace("~1", "/").replace("~0", "~") for step in pointer[1:].split("/")]
    for step in steps:
        if isinstance(body, list) and step.isdecimal() and int(step) < len(body):
            body = body[int(step)]
        elif isinstance(body, dict) and step in body:
            body = body[step]
        else:
            return False
    return True
