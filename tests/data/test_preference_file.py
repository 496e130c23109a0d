"""Files of preferences: what is good is read, what is bad is named, nothing disappears."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rmr1_jax.data import RejectsFile, read_preferences
from rmr1_jax.errors import UserError
from rmr1_jax.judging import Preference

GOOD = {"question": "Q", "response_a": "RA", "response_b": "RB"}
LINE = json.dumps(GOOD).encode()
Reject = tuple[int, str, str]


def read(path: Path) -> tuple[list[Preference], list[Reject]]:
    rejected: list[Reject] = []
    kept = list(read_preferences(path, rejects=lambda *reject: rejected.append(reject)))
    return kept, rejected


def never(line: int, reason: str, text: str) -> None:
    raise AssertionError(f"line {line} was rejected: {reason}")


def write_jsonl(path: Path, records: list[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


def write_gzip(path: Path, records: list[dict[str, str]]) -> None:
    path.write_bytes(gzip.compress("\n".join(map(json.dumps, records)).encode()))


def write_json(path: Path, records: list[dict[str, str]]) -> None:
    path.write_text(json.dumps(records, indent=2), encoding="utf-8")


def write_parquet(path: Path, records: list[dict[str, str]]) -> None:
    pq.write_table(pa.Table.from_pylist(records), path)


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("pairs.jsonl", write_jsonl),
        ("pairs.jsonl.gz", write_gzip),
        ("pairs.json", write_json),
        ("pairs.parquet", write_parquet),
    ],
)
def test_every_format_gives_the_same_preferences(
    tmp_path: Path, name: str, write: Callable[[Path, list[dict[str, str]]], None]
) -> None:
    path = tmp_path / name
    write(path, [{**GOOD, "response_a": f"R{i}"} for i in range(70)] + [{**GOOD, "question": ""}])
    kept, rejected = read(path)
    assert [preference.id for preference in kept] == [str(i + 1) for i in range(70)]
    assert [preference.response_a for preference in kept] == [f"R{i}" for i in range(70)]
    ((line, reason, text),) = rejected
    assert (line, reason) == (71, "question: is empty; it must hold some text")
    assert json.loads(text)["response_b"] == "RB"


def test_a_bad_line_is_rejected_with_its_number_and_reading_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    lines = [
        b"\xef\xbb\xbf" + LINE,
        b"",
        b'{"question": "caf\xe9"}',
        b'{"question": ',
        b"[" * 100_000,
        b"[]",
        json.dumps({**GOOD, "label": "C"}).encode(),
        json.dumps({**GOOD, "id": "x"}).encode(),
        json.dumps({**GOOD, "id": "x"}).encode(),
        json.dumps({**GOOD, "id": 1}).encode(),
        LINE,
    ]
    path.write_bytes(b"\r\n".join(lines))
    kept, rejected = read(path)
    assert [preference.id for preference in kept] == ["1", "x", "11"]
    reasons = {line: reason for line, reason, _ in rejected}
    assert list(reasons) == [3, 4, 5, 6, 7, 9, 10]
    assert "not UTF-8 (byte 0xe9 at 17)" in reasons[3]
    assert "not JSON" in reasons[4]
    assert "not JSON" in reasons[5]
    assert "record: is a list of 0" in reasons[6]
    assert "label: is 'C'" in reasons[7]
    assert "id: 'x' was given to line 8" in reasons[9]
    assert "id: '1' was given to line 1" in reasons[10]
    assert rejected[0][2] == '{"question": "caf\ufffd"}'


def test_lines_are_read_as_they_are_needed(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_bytes((LINE + b"\n") * 50_000)
    preferences = read_preferences(path, rejects=never)
    assert next(preferences).id == "1"
    # Had the rest been read already, cutting it off now would change nothing.
    with path.open("r+b") as file:
        file.truncate(10_000 * (len(LINE) + 1))
    assert sum(1 for _ in preferences) == 9_999


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("pairs.jsonl", b"", "holds no records"),
        ("pairs.jsonl", b"\n \n", "holds no records"),
        ("pairs.json", b"[]", "holds no records"),
        ("pairs.json", b"{}", "not a list"),
        ("pairs.json", LINE + b"\n" + LINE, r"not JSON .* name it \.jsonl"),
        ("pairs.json", b'["\xff"]', "not JSON"),
        ("pairs.jsonl.gz", LINE, "cannot be read .*gzip"),
        ("pairs.parquet", LINE, "no readable Parquet"),
    ],
)
def test_an_unusable_file_is_refused_at_the_call(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        read_preferences(path, rejects=never)
    assert str(caught.value).startswith(f"{path}: ")


@pytest.mark.parametrize("name", ["none.jsonl", "none.json", "none.parquet", "none.jsonl.gz", "."])
def test_a_missing_file_or_a_directory_is_refused_at_the_call(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match=r"cannot be read .* give a file"):
        read_preferences(tmp_path / name, rejects=never)


def test_a_file_without_permission_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(self: Path, *_: object) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "open", denied)
    with pytest.raises(UserError, match=r"cannot be read \(Permission denied\)"):
        read_preferences(tmp_path / "pairs.jsonl", rejects=never)


def test_a_gzip_file_cut_short_keeps_what_came_before(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl.gz"
    content = gzip.compress((LINE + b"\n") * 20_000)
    path.write_bytes(content[: len(content) // 2])
    preferences = read_preferences(path, rejects=never)
    assert next(preferences).id == "1"
    with pytest.raises(UserError, match="cut short or damaged"):
        list(preferences)


def test_an_error_of_the_callback_is_not_taken_for_one_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_bytes(b"{")

    def full(line: int, reason: str, text: str) -> None:
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        list(read_preferences(path, rejects=full))


def test_rejects_are_appended_and_cut(tmp_path: Path) -> None:
    rejects = RejectsFile(tmp_path / "rejects.jsonl")
    assert not rejects.path.exists()
    rejects(3, "line: is not JSON", "\u00e9" * 600)
    rejects(5, "id: is empty", "\ud800")
    lines = [json.loads(line) for line in rejects.path.read_text("utf-8").splitlines()]
    assert lines[0] == {"line": 3, "reason": "line: is not JSON", "text": "\u00e9" * 500}
    assert lines[1]["text"] == "?"
    assert rejects.count == 2


@pytest.mark.parametrize("torn", [1, 4, 1000])
def test_a_second_run_repeats_no_reject_and_mends_a_torn_line(tmp_path: Path, torn: int) -> None:
    path = tmp_path / "rejects.jsonl"
    first = RejectsFile(path)
    first(3, "bad", "three")
    first(5, "bad", "five")
    whole = path.read_bytes()
    path.write_bytes(whole[:-torn])
    second = RejectsFile(path)
    second(3, "bad", "three")
    second(5, "bad", "five")
    assert path.read_bytes() == whole
    assert second.count == 2


def test_a_rejects_file_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be written"):
        RejectsFile(tmp_path / "none" / "rejects.jsonl")(1, "bad", "text")


def test_published_preferences_are_read_or_named(shared_data: Path, tmp_path: Path) -> None:
    # Anthropic's transcripts are single texts without a prompt: each is named, none is lost.
    kept, rejected = read(shared_data / "pref" / "hh-rlhf-harmless-base-test.jsonl.gz")
    assert kept == []
    assert len(rejected) == 2312
    assert {reason.split(":")[0] for _, reason, _ in rejected} == {"prompt"}

    # judgebench has our fields but for the label, which it spells "A>B".
    source = shared_data / "pref" / "judgebench-claude.jsonl"
    records = [json.loads(line) for line in source.read_text("utf-8").splitlines()]
    path = tmp_path / "judgebench.jsonl"
    write_jsonl(
        path,
        [
            {
                "id": record["pair_id"],
                "question": record["question"],
                "response_a": record["response_A"],
                "response_b": record["response_B"],
                "label": record["label"][0],
            }
            for record in records
        ],
    )
    kept, rejected = read(path)
    assert (len(kept), rejected) == (270, [])
    assert kept[0].id == records[0]["pair_id"]
