"""What comes from a network is a message or a stranger's."""

import resource

import pytest

from mindmodel.parallel.json_lines import MAX_LINE_BYTES, Stranger, allow_connections, decode, encode


def test_a_message_comes_as_it_was_sent_on_one_line():
    message = {"text": "two\nlines \u4e2d", "list": [1, 2.5, None, True]}
    assert encode(message).count(b"\n") == 1 and decode(encode(message)) == message


def test_what_no_text_can_hold_does_not_stop_a_message():
    assert decode(encode({"path": "a\udcff"})) == {"path": "a?"}


@pytest.mark.parametrize(
    "line, told",
    [
        (b"\x80\x04\x95 pickle", "it sent a line that is not JSON"),
        (b"[" * 100_000, "it sent a line that is not JSON"),
        (b"[1]", "it sent a line that is no JSON object"),
        (b" " * (MAX_LINE_BYTES + 1), f"it sent a line of more than {MAX_LINE_BYTES} bytes"),
    ],
)
def test_what_is_no_message_is_a_strangers(line, told):
    with pytest.raises(Stranger, match=told):
        decode(line)


def test_a_thousand_nodes_may_connect_where_a_process_has_few_files_at_first():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 1200:
        pytest.skip("this machine does not allow so many files")
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
        allow_connections(1024)
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] > 1024
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
