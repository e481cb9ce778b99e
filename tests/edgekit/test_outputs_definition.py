"""The `[[outputs]]` table: what each kind needs, and errors that name the key and tell no secret."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.outputs import Output, destination, named_files
from edgekit.services import Service, ServiceError, dump_service, parse_service
from edgekit.toml import dump

BASE = 'name = "solder"\nmodel = "solder-small"\n'


def service(*outputs: str) -> Service:
    return parse_service(BASE + "".join(f"[[outputs]]\n{one}\n" for one in outputs), "x")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('kind = "csv"', '"outputs[0].path" is missing'),
        ('kind = "csv"\npath = "/a/b.txt"', "ends in .csv"),
        ('path = "/a/b.csv"', "ends in .csv"),
        ('path = "/a/b"\nurl = "https://x/"', '"outputs[0].url" is set in service "solder" (x): it belongs to'),
        ('path = "/a/b"\nmax_mb = -1', '"outputs[0].max_mb" is -1'),
        ('kind = "webhook"', '"outputs[0].url" is missing in service "solder" (x): https://...'),
        ('kind = "webhook"\nurl = "ftp://x/"', "a URL like https://"),
        ('kind = "webhook"\nurl = "https://"', "a URL like https://"),
        ('kind = "webhook"\nurl = "https://x:99999/"', "a URL like https://"),
        ('kind = "webhook"\nurl = "https://x/#y"', "a URL like https://"),
        ('kind = "webhook"\nurl = "https://x/a b"', "a URL like https://"),
        ('kind = "webhook"\nurl = "https://user:geheim@x/"', '"outputs[0].url" has a user in it'),
        ('kind = "webhook"\nurl = "https://x/"\npath = "/a"', '"outputs[0].path" is set'),
        ('kind = "webhook"\nurl = "https://x/"\ntopic = "a"', '"outputs[0].topic" is set'),
        ('kind = "webhook"\nurl = "https://x/"\nsecret = "key"', '"outputs[0].secret" is "key"'),
        ('kind = "webhook"\nurl = "http://x/"\nca_file = "/a"', "it needs https://"),
        ('kind = "mqtt"\nurl = "https://x"', "a URL like mqtts://"),
        ('kind = "mqtt"\nurl = "mqtt://x/path"', "a URL like mqtts://"),
        ('kind = "mqtt"\nurl = "mqtt://u:geheim@x"', "has a user in it"),
        ('kind = "mqtt"\nurl = "mqtt://x"\nqos = 2', '"outputs[0].qos" is 2 in service "solder" (x): one of 0, 1'),
        ('kind = "mqtt"\nurl = "mqtt://x"\ntopic = "a/{sreial}"', "known are {service}, {label}, {decided}, {serial}"),
        ('kind = "mqtt"\nurl = "mqtt://x"\ntopic = "a/{service.__class__}"', "known are {service}"),
        ('kind = "mqtt"\nurl = "mqtt://x"\ntopic = "a/#"', "a topic belongs there"),
        ('kind = "mqtt"\nurl = "mqtt://x"\ntopic = "$SYS/a"', "a topic belongs there"),
        ('kind = "mqtt"\nurl = "mqtt://x"\ntopic = ""', "a topic belongs there"),
        ('kind = "mqtt"\nurl = "mqtt://x"\ntopic = "a/}"', "a topic belongs there"),
        ('kind = "mqtt"\nurl = "mqtt://x"\nstatus_topic = "a/{label}"', "known are {service}"),
        ('kind = "mqtt"\nurl = "mqtts://x"\ncertificate = "/a"', "belong together"),
        ('kind = "mqtt"\nurl = "mqtt://x"\ncertificate = "/a"\nkey = "/b"', "it needs mqtts://"),
        ('kind = "mqtt"\nurl = "mqtt://x"\nqueue_rows = 1', "at least 100"),
        ('kind = "kafka"', '"outputs[0].kind" is "kafka"'),
    ],
)  # fmt: skip
def test_a_wrong_output_says_what_is_wrong(text: str, message: str) -> None:
    with pytest.raises(ServiceError) as caught:
        service(text)
    assert message in str(caught.value)
    assert "geheim" not in str(caught.value)


def test_one_destination_is_one_output() -> None:
    one = 'kind = "webhook"\nurl = "https://x/a"'
    with pytest.raises(ServiceError, match="same destination"):
        service(one, one + "\ntimeout_s = 5")
    service(one, 'kind = "webhook"\nurl = "https://x/b"')
    service('path = "/a"', 'path = "/a"')


@pytest.mark.parametrize(
    ("kind", "url", "wanted"),
    [
        ("webhook", "https://x/y?z=1", ("x", 443)),
        ("webhook", "http://[fd00::1]:81/", ("fd00::1", 81)),
        ("mqtt", "mqtts://broker", ("broker", 8883)),
        ("mqtt", "mqtt://10.0.0.1/", ("10.0.0.1", 1883)),
    ],
)
def test_destinations(kind: str, url: str, wanted: tuple[str, int]) -> None:
    (output,) = service(f'kind = "{kind}"\nurl = "{url}"').outputs
    assert destination(output) == wanted


def test_every_file_that_is_named_is_known() -> None:
    text = dump(Output(kind="mqtt", url="mqtts://x", ca_file="/1", credentials="/2", certificate="/3", key="/4"))
    (output,) = service(text).outputs
    assert named_files(output) == {"ca_file": "/1", "credentials": "/2", "certificate": "/3", "key": "/4"}


outputs: st.SearchStrategy[Output] = st.one_of(
    st.builds(Output, path=st.sampled_from(["/a", "/b/c.jsonl"]), max_mb=st.floats(0, 100), keep=st.integers(1, 9)),
    st.builds(Output, kind=st.just("csv"), path=st.just("/a.csv")),
    st.builds(Output, kind=st.just("webhook"), url=st.just("https://x/"), secret=st.sampled_from(["", "/s"])),
    st.builds(Output, kind=st.just("mqtt"), url=st.just("mqtt://x"), qos=st.sampled_from([0, 1]), retain=st.booleans()),
)


@given(st.lists(outputs, max_size=3, unique_by=lambda output: output.kind))
def test_every_output_reads_back_as_it_was(found: list[Any]) -> None:
    whole = Service(name="solder", model="m", outputs=found)
    assert parse_service(dump_service(whole), "x") == whole
