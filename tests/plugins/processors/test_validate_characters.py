"""Characters that text cannot hold cost one character, never a push: lone surrogates, bytes that are not UTF-8, NUL."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import event, example, given, settings
from hypothesis import strategies as st

from pipeline import Context, EventBatch, Invalid, Malformed
from pipeline.testing import NopHost
from plugins.processors.validate import ValidateConfig, ValidateProcessor
from plugins.processors.validate.characters import PIECE_BYTES, check_utf8, repaired

pytestmark = pytest.mark.anyio

NOW = datetime(2026, 7, 1, 12, 0, tzinfo=UTC)
REPLACED = "invalid characters were replaced by U+FFFD"
GOOD = b'{"type":"custom","value":1}'
DAMAGE = {
    "a lone high surrogate": rb"\ud83c",
    "a lone low surrogate": rb"\udf89",
    "a pair in the wrong order": rb"\udf89\ud83c",
    "a high surrogate twice": rb"\ud83c\ud83c",
    "a high surrogate and a letter": rb"\ud83cx",
    "a high surrogate and a quote": rb"\ud83c\"",
    "in capitals": rb"\uD83C",
    "a surrogate in UTF-8": b"\xed\xa0\xbc",
    "a byte that UTF-8 never has": b"\xff",
    "the begin of a character": b"\xf0\x9f\x8e",
    "the end of a character": b"\x89",
    "an overlong slash": b"\xc0\xaf",
    "beyond Unicode": b"\xf4\x90\x80\x80",
    "an escaped NUL": rb"\u0000",
    "a NUL": b"\0",
    "behind an escaped backslash": rb"\\\ud83c",
}
"""What a string may hold, as it stands in JSON."""
SOUND = {
    "a pair": (rb"\ud83c\udf89", "\U0001f389"),
    "a pair in capitals": (rb"\uD83C\uDF89", "\U0001f389"),
    "an escaped backslash before it": (rb"\\ud83c", r"\ud83c"),
    "an escaped backslash before a NUL": (rb"\\u0000", r"\u0000"),
    "two escaped backslashes": (rb"\\\\u0000", r"\\u0000"),
    "U+FFFD": ("\ufffd".encode(), "\ufffd"),
    "U+FFFD, escaped": (rb"\ufffd", "\ufffd"),
    "U+FFFE": ("\ufffe".encode(), "\ufffe"),
    "U+E000": (rb"\ue000", "\ue000"),
}


def processor() -> ValidateProcessor:
    """With its defaults."""
    return ValidateProcessor("validate", ValidateConfig(), NopHost())


async def decode(document: bytes) -> tuple[EventBatch, Context]:
    """What becomes of a document."""
    context = Context("req_1")
    context.received_at = NOW
    return await processor().decode(document, context), context


def expected(body: bytes) -> Any:
    """The text of a string that has this in JSON, by other means: Python's own decoder keeps lone surrogates."""
    return replaced(json.loads(f'"{body.decode(errors="replace")}"', strict=False))


def replaced(value: Any) -> Any:
    """The value with U+FFFD where text cannot hold what it has."""
    match value:
        case str():
            return re.sub("[\0\ud800-\udfff]", "\ufffd", value)
        case list():
            return [replaced(each) for each in value]
        case dict():
            return {replaced(key): replaced(each) for key, each in value.items()}
        case _:
            return value


def document(metric: bytes, before: bytes = b"") -> bytes:
    """A document of a good metric, this one, and a good one."""
    return b'{%s"service":"s","metrics":[%s,%s,%s]}' % (before, GOOD, metric, GOOD)


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
async def test_in_a_value_it_is_replaced_and_a_warning_names_the_path(damage: bytes) -> None:
    metric = (
        b'{"type":"custom","value":1,"dimensions":{"tool":"a%sb","ok":"c"},"metadata":{"k":["%s"],"a b":"%s","n":1}}'
    )
    batch, context = await decode(document(metric % (damage, damage, damage)))
    held = expected(damage)
    assert "\ufffd" in held
    assert batch.events[1].dimensions == {"tool": f"a{held}b", "ok": "c"}
    assert batch.events[1].metadata == {"k": [held], "a b": held, "n": 1}
    assert (len(batch), context.errors, context.rejected) == (3, [], 0)
    assert context.listed_warnings() == [
        f"metrics[1].dimensions.tool: {REPLACED}",
        f"metrics[1].metadata.k: {REPLACED}",
        f"metrics[1].metadata.'a b': {REPLACED}",
    ]


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
async def test_in_an_ignored_field_it_changes_nothing_and_there_is_no_warning(damage: bytes) -> None:
    body = document(
        b'{"type":"custom","value":1,"unknown":{"%s":"%s"}}' % (damage, damage), b'"x%s":["%s"],' % (damage, damage)
    )
    batch, context = await decode(body)
    assert len(batch) == 3
    assert (context.errors, context.warnings) == ([], [])


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
async def test_in_a_name_it_rejects_that_metric_or_is_named(damage: bytes) -> None:
    batch, context = await decode(document(b'{"type":"custom","value":1,"dimensions":{"%s":1}}' % damage))
    assert len(batch) == 2
    (error,) = context.errors
    assert error.startswith("metrics[1].dimensions: names must be [A-Za-z_]")
    assert context.warnings == []

    batch, context = await decode(document(b'{"type":"custom","value":1,"metadata":{"%s":1}}' % damage))
    name = expected(damage)
    assert batch.events[1].metadata == {name: 1}
    assert context.warnings == [f"metrics[1].metadata.{name!a}: {REPLACED}"]


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
async def test_where_nothing_may_replace_it_the_field_is_named(damage: bytes) -> None:
    for field in (
        b'"type":"%s","value":1',
        b'"type":"custom","value":"%s"',
        b'"type":"custom","value":1,"timestamp":"%s"',
    ):
        batch, context = await decode(document(b"{%s}" % (field % damage)))
        assert (len(batch), len(context.errors), context.warnings) == (2, 1, [])
    for name in (b"service", b"instance_id"):
        with pytest.raises(Invalid) as caught:
            await decode(b'{"service":"s","%s":"%s","metrics":[%s]}' % (name, damage, GOOD))
        assert [detail["loc"] for detail in caught.value.details] == [["body", name.decode()]]
    batch, context = await decode(b'{"service":"s","version":"%s","metrics":[%s]}' % (damage, GOOD))
    assert (batch.version, context.warnings) == (expected(damage), [f"version: {REPLACED}"])


@pytest.mark.parametrize(("sound", "text"), SOUND.values(), ids=SOUND)
async def test_what_only_looks_like_it_stays_as_it_is(sound: bytes, text: str) -> None:
    metric = b'{"type":"custom","value":1,"metadata":{"k":"%s"}}' % sound
    batch, context = await decode(document(metric))
    assert (batch.events[1].metadata, context.warnings) == ({"k": text}, [])
    # The same beside what is damaged.
    batch, context = await decode(document(metric[:-2] + rb',"d":"\ud83c"}}'))
    assert batch.events[1].metadata == {"k": text, "d": "\ufffd"}
    assert f"metrics[1].metadata.d: {REPLACED}" in context.warnings
    assert len(context.warnings) == 1 or sound == SOUND["U+FFFD"][0]


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
async def test_what_is_not_json_is_malformed_all_the_same(damage: bytes) -> None:
    whole = document(b'{"type":"custom","value":1,"metadata":{"k":"%s"}}' % damage)
    for end in range(whole.index(damage), whole.index(damage) + len(damage) + 1):
        with pytest.raises(Malformed):
            await decode(whole[:end])
    for outside in (b"%s{}", b'{"service":"s",%s"metrics":[]}', b'{"service":"s","metrics":[]}%s'):
        with pytest.raises(Malformed):
            await decode(outside % damage)


async def test_a_body_that_is_cut_inside_a_character_is_malformed() -> None:
    for cut in (
        b'{"service":"s","x":"\xc3',
        b'{"service":"s"}\xf0\x9f\x8e',
        rb'{"service":"s","x":"\ud83',
        b"\xe2\x82",
    ):
        with pytest.raises(Malformed):
            await decode(cut)


async def test_of_a_thousand_values_a_hundred_are_named() -> None:
    metric = rb'{"type":"custom","value":1,"dimensions":{"tool":"\ud83c"}}'
    batch, context = await decode(b'{"service":"s","metrics":[%s]}' % b",".join([metric] * 1000))
    assert len(batch) == 1000
    assert len(context.listed_warnings()) == 101
    assert context.listed_warnings()[-1] == "and 900 more"
    assert context.outcome(1000).warnings == tuple(context.listed_warnings())


@pytest.mark.parametrize("damage", [*DAMAGE.values(), *(sound for sound, _ in SOUND.values())])
@pytest.mark.parametrize("offset", range(-20, 3))
async def test_a_large_document_is_repaired_in_pieces_and_that_makes_no_difference(damage: bytes, offset: int) -> None:
    body = b'"%s%s%s%s"' % (b"x" * (PIECE_BYTES + offset), damage, b"y" * 50, rb"\ud800")
    repair = await repaired(body)
    assert repair is not None
    assert json.loads(repair.document, strict=False) == expected(body[1:-1])


@pytest.mark.parametrize("text", ["a", "é", "€", "\U0001f389"])
def test_a_large_document_is_checked_in_pieces_and_the_place_of_a_bad_byte_is_right(text: str) -> None:
    for before in range(5):
        body = b"x" * before + text.encode() * PIECE_BYTES
        check_utf8(body)
        with pytest.raises(UnicodeDecodeError) as caught:
            check_utf8(body + b"\xff")
        assert caught.value.start == len(body)


strings = st.lists(
    st.one_of(
        st.sampled_from(
            [*DAMAGE.values(), *(sound for sound, _ in SOUND.values()), rb"\n", rb"\"", rb"\\", rb"\u0041"]
        ),
        st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters='"\\'), max_size=3).map(str.encode),
        st.binary(max_size=2).filter(lambda some: not set(some) & {*b'"\\', *range(1, 32)}),
    ),
    max_size=4,
).map(b"".join)
"""The bytes between the quotes of a string."""


@st.composite
def values(draw: st.DrawFn, deep: int = 2) -> bytes:
    """Any JSON, as bytes."""
    kind = draw(st.sampled_from(["string", "string", "string", "number", "list", "object"] if deep else ["string"]))
    if kind == "list":
        return b"[%s]" % b",".join(draw(st.lists(values(deep - 1), max_size=3)))
    if kind == "object":
        return b"{%s}" % b",".join(
            b'"%s":%s' % (draw(strings), draw(values(deep - 1))) for _ in range(draw(st.integers(0, 3)))
        )
    return b"1" if kind == "number" else b'"%s"' % draw(strings)


@st.composite
def metrics(draw: st.DrawFn) -> bytes:
    """A metric with damage anywhere."""
    fields = [b'"type":"%s"' % draw(st.sampled_from([b"custom"] * 9) | strings), b'"value":1']
    names = st.from_regex(r"[a-z]{1,3}", fullmatch=True).map(str.encode)
    for field in (b"dimensions", b"metadata"):
        each = [
            b'"%s":%s' % (draw(names | strings), draw(values(0 if field == b"dimensions" else 2)))
            for _ in range(draw(st.integers(0, 3)))
        ]
        fields.append(b'"%s":{%s}' % (field, b",".join(each)))
    if draw(st.booleans()):
        fields.append(b'"%s":%s' % (draw(strings), draw(values())))
    return b"{%s}" % b",".join(fields)


@st.composite
def documents(draw: st.DrawFn) -> bytes:
    """A document with damage anywhere."""
    fields = [b'"service":"s"', b'"metrics":[%s]' % b",".join(draw(st.lists(metrics(), min_size=1, max_size=3)))]
    if draw(st.booleans()):
        fields.append(b'"%s":%s' % (draw(strings), draw(values())))
    if draw(st.booleans()):
        fields.append(b'"version":"%s"' % draw(strings))
    return b"{%s}" % b",".join(draw(st.permutations(fields)))


async def outcome(body: bytes) -> tuple[str, list[str], list[str]]:
    """What becomes of it, the errors, and the warnings."""
    context = Context("req_1")
    context.received_at = NOW
    try:
        became = repr(await processor().decode(body, context))
    except (Invalid, Malformed) as refusal:
        became = f"{refusal} {getattr(refusal, 'details', None)}"
    return became, context.errors, context.warnings


TWO_NAMES = b'{"service":"s","metrics":[{"type":"custom","value":1,"dimensions":{},"metadata":{%s}}]}'


@settings(deadline=None)
@given(body=documents())
@example(body=TWO_NAMES % rb'"\ud83c":"a","\ud83d":"b","\ud83c":"c"')
@example(body=TWO_NAMES % b'"\xf0\x9f\x8e":"a","\xff":"\xed\xa0\xbc","\xf0\x9f\x8e":"\xff"')
@example(body=TWO_NAMES % rb'"\ud83c":"a","\ufffd":"b"')
@example(body=TWO_NAMES % rb'"\ufffd":"a","b":"\ud83c"')
@example(body=TWO_NAMES % rb'"\ufffe\ud83c":"a"')
@example(body=TWO_NAMES % '"\ufffe\\ud83c":"\\uffff"'.encode())
async def test_a_damaged_document_is_what_it_is_with_u_fffd_in_its_place(body: bytes) -> None:
    # Of two names that became one, the last value counts, as of any name that stands twice.
    held = json.loads(
        body.decode(errors="replace"), strict=False, object_pairs_hook=lambda pairs: {replaced(k): v for k, v in pairs}
    )
    sound = json.dumps(replaced(held), ensure_ascii=False).encode()
    became, errors, warnings = await outcome(body)
    assert (became, errors) == (await outcome(sound))[:2]
    event("warned" if warnings else "not warned")

    # With a lone surrogate for what is no UTF-8, Python's decoder says which values have any. U+FFFD itself could not be told from that.
    if "EventBatch" not in became or "\ufffd".encode() in body:
        return
    marked = json.loads(
        body.decode(errors="replace").replace("\ufffd", "\udc80"),
        strict=False,
        object_pairs_hook=lambda pairs: {re.sub("[\0\ud800-\udfff]", "\udc80", k): v for k, v in pairs},
    )
    refused = {int(number) for number in re.findall(r"^metrics\[(\d+)\]", "\n".join(errors), re.MULTILINE)}
    damaged = ["version"] if isinstance(version := marked.get("version"), str) and replaced(version) != version else []
    for index, metric in enumerate(marked["metrics"]):
        for field in ("dimensions", "metadata") if index not in refused else ():
            for name, value in metric[field].items():
                if replaced(name) != name or replaced(value) != value:
                    shown = replaced(name)
                    plain = shown if shown.isascii() and shown.isidentifier() else ascii(shown)
                    damaged.append(f"metrics[{index}].{field}.{plain}")
    assert [warning.removesuffix(f": {REPLACED}") for warning in warnings] == damaged
