"""Names of nodes and edges, and which writer comes before which reader."""

from typing import Any

import pytest

from services.contracts.errors import ErrorCode
from services.contracts.model import ModelFacts
from services.contracts.node import Edge, Reader, Writer, comes_before, node_violations, readers_of, writers_of


def facts(**changes: Any) -> ModelFacts:
    sizes = {"layers": 2, "heads": 4, "kv_heads": 2, "d_model": 32, "d_head": 8, "d_mlp": 48}
    plain = {
        "id": "tiny",
        "name": "tiny",
        "family": "llama",
        "revision": "0",
        "source": "folder",
        "weights_sha256": "",
        "tokenizer_sha256": "",
        "vocabulary": 320,
        "context": 128,
        "bos_token_id": None,
        "prepends_bos": False,
        "has_chat_template": False,
        "parallel_blocks": False,
        "post_norms": False,
        "logit_soft_cap": None,
        "sites": (),
        "weight_bytes": 0,
        "token_layers_per_second": 1.0,
    }
    return ModelFacts.model_validate(plain | sizes | changes)


def nodes(model: ModelFacts) -> list[Writer | Reader]:
    return [*writers_of(model), *readers_of(model)]


def test_every_name_reads_back_as_what_it_names() -> None:
    for writer in writers_of(facts()):
        assert Writer.parse(str(writer)) == writer
        for reader in readers_of(facts()):
            assert Reader.parse(str(reader)) == reader
            assert Edge.parse(str(Edge(writer, reader))) == Edge(writer, reader)
    assert Edge.parse("a9.h6->a10.h0<q>") == Edge(Writer("head", 9, 6), Reader("head", 10, 0, "q"))


@pytest.mark.parametrize("name", ["", "a9", "h6", "a9.h6<q>", "a9.h06", "m-1", "m3 ", "logits", "a99999.h0"])
def test_what_names_no_writer_is_refused_with_what_would(name: str) -> None:
    with pytest.raises(ValueError, match=r"called input, a9.h6 \(a head\) and m3"):
        Writer.parse(name)


@pytest.mark.parametrize("name", ["", "input", "a9.h6<z>", "m3<q>", "a9.h6.q"])
def test_what_names_no_reader_is_refused_with_what_would(name: str) -> None:
    with pytest.raises(ValueError, match=r"called a10.h0<q>, m3 and logits"):
        Reader.parse(name)


def test_a_head_as_reader_must_say_by_which_of_its_inputs() -> None:
    with pytest.raises(ValueError, match=r"say which, as a9.h6<q>, a9.h6<k> or a9.h6<v>"):
        Reader.parse("a9.h6")


def test_an_edge_needs_an_arrow() -> None:
    with pytest.raises(ValueError, match="does not name an edge"):
        Edge.parse("a9.h6-a10.h0<q>")


def test_a_model_has_its_nodes_in_the_order_in_which_it_computes_them() -> None:
    writers = [str(writer) for writer in writers_of(facts())]
    assert writers == ["input", *(f"a0.h{h}" for h in range(4)), "m0", *(f"a1.h{h}" for h in range(4)), "m1"]
    readers = [str(reader) for reader in readers_of(facts(layers=1))]
    assert readers == [
        *(f"a0.h{h}<q>" for h in range(4)),
        "a0.h0<k>",
        "a0.h1<k>",
        "a0.h0<v>",
        "a0.h1<v>",
        "m0",
        "logits",
    ]


def test_a_model_of_attention_alone_has_no_mlps() -> None:
    alone = facts(d_mlp=0)
    assert not any(node.kind == "mlp" for node in nodes(alone))
    (violation,) = node_violations(Writer("mlp", 0), alone, "/here")
    assert violation.code is ErrorCode.UNKNOWN_SITE
    assert "attention alone" in violation.message


@pytest.mark.parametrize(
    ("edge", "sequential", "parallel"),
    [
        ("input->a0.h0<q>", True, True),
        ("input->logits", True, True),
        ("m1->logits", True, True),
        ("a0.h0->m0", True, False),
        ("a0.h0->a0.h1<q>", False, False),
        ("a0.h0->a1.h1<k>", True, True),
        ("m0->a1.h0<v>", True, True),
        ("m0->m0", False, False),
        ("m0->a0.h0<q>", False, False),
        ("m0->m1", True, True),
        ("a1.h0->m0", False, False),
        ("a1.h0->a0.h0<q>", False, False),
    ],
)
def test_a_writer_comes_before_what_reads_the_stream_after_it(edge: str, sequential: bool, parallel: bool) -> None:
    parsed = Edge.parse(edge)
    for parallel_blocks, expected in ((False, sequential), (True, parallel)):
        assert comes_before(parsed.writer, parsed.reader, facts(parallel_blocks=parallel_blocks)) is expected


@pytest.mark.parametrize(
    ("node", "code", "message"),
    [
        (Writer("head", 2, 0), ErrorCode.UNKNOWN_LAYER, "a2.h0 does not exist: tiny has layers 0..1"),
        (Writer("mlp", 7), ErrorCode.UNKNOWN_LAYER, "m7 does not exist: tiny has layers 0..1"),
        (Writer("head", 0, 4), ErrorCode.UNKNOWN_HEAD, "a0.h4 does not exist: tiny has heads 0..3"),
        (Reader("head", 0, 2, "v"), ErrorCode.UNKNOWN_HEAD, "a0.h2<v> does not exist: tiny has KV heads 0..1"),
    ],
)
def test_a_node_that_the_model_lacks_is_refused(node: Writer | Reader, code: ErrorCode, message: str) -> None:
    (violation,) = node_violations(node, facts(), "/here")
    assert (violation.pointer, violation.code) == ("/here", code)
    assert violation.message.startswith(message)


def test_every_node_of_a_model_exists() -> None:
    for node in nodes(facts()):
        assert not list(node_violations(node, facts(), "/here"))
