"""RM-Bench: the matrix of styles, as it was published and as it was meant."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rmr1_jax.errors import UserError
from rmr1_jax.evaluation.benchmarks.rm_bench import DOMAINS, cell_of, load, make_table
from rmr1_jax.evaluation.record import Record
from rmr1_jax.evaluation.runner import Order, positions
from tests.evaluation.made import Rejects, judged, values

CELLS = [(row, column) for row in range(3) for column in range(3)]
ROW = {
    "id": "chat/1", "prompt": "Q", "domain": "chat",
    "chosen": ["c0", "c1", "c2"], "rejected": ["r0", "r1", "r2"],
}  # fmt: skip


def of_prompt(domain: str, id: str, files: list[list[int]], **fields: Any) -> list[Record]:
    """Results of the three files of one prompt, each by pairing."""
    return [
        judged("rm_bench", right, id=id, group=domain, cell=cell_of(file, style), **fields)
        for file, results in enumerate(files)
        for style, right in enumerate(results)
    ]


class TestScores:
    def test_the_fixture_both_ways(self) -> None:
        table = make_table(of_prompt("chat", "1", [[1, 0, 1], [1, 1, 1], [0, 0, 1]]))
        found = values(table)
        levels = ("hard", "normal", "easy")
        corrected = [found[f"corrected.{level}"] for level in levels]
        published = [found[f"as_published.{level}"] for level in levels]
        assert corrected == pytest.approx([2 / 3, 2 / 3, 2 / 3])
        assert published == pytest.approx([0, 2 / 3, 2 / 3])
        matrix = table.details()["matrix"]
        assert matrix["corrected"] == [[1, 1, 0], [0, 0, 1], [1, 1, 1]]
        assert matrix["as_published"] == [[1, 0, 0], [0, 0, 0], [1, 1, 1]]
        assert matrix["domains"]["chat"]["corrected"] == matrix["corrected"]
        assert matrix["domains"]["math"]["corrected"] == [[None] * 3] * 3

    @settings(max_examples=20)
    @given(st.integers(0, 2**32 - 1))
    def test_a_plain_loop_gives_the_same(self, seed: int) -> None:
        random = np.random.RandomState(seed)
        domains = ["chat", "math", "code", "safety-refuse", "safety-response", "math"]
        results = random.randint(0, 2, (len(domains), 3, 3)).tolist()  # [prompt][file][pairing]
        records = [
            record
            for number, (domain, files) in enumerate(zip(domains, results, strict=True))
            for record in of_prompt(domain, str(number), files, index=number)
        ]
        found = values(make_table(records))
        for way in ("corrected", "as_published"):
            scores: dict[str, list[float]] = {"hard": [], "normal": [], "easy": []}
            for domain in ("chat", "math", "code", "safety"):
                mine = [r for d, r in zip(domains, results, strict=True) if d.startswith(domain)]
                matrices = []
                for r1, r2, r3 in mine:
                    if way == "as_published":
                        r2 = r3
                    matrices.append(
                        [[r1[0], r2[0], r3[0]], [r3[1], r1[1], r2[1]], [r2[2], r3[2], r1[2]]]
                    )
                mean = np.mean(matrices, axis=0)
                hard = np.mean([mean[0, 1], mean[0, 2], mean[1, 2]])
                normal = np.mean([mean[0, 0], mean[1, 1], mean[2, 2]])
                easy = np.mean([mean[1, 0], mean[2, 0], mean[2, 1]])
                score = np.mean([hard, normal, easy])
                assert found[f"{way}.{domain}"] == pytest.approx(score)
                for level, value in zip(scores, (hard, normal, easy), strict=True):
                    scores[level].append(float(value))
            for level, each in scores.items():
                assert found[f"{way}.{level}"] == pytest.approx(np.mean(each))
            total = np.mean([np.mean(each) for each in scores.values()])
            assert found[f"{way}.total"] == pytest.approx(total)

    def test_as_published_never_reads_the_second_file(self) -> None:
        whole = [
            record
            for domain, prompts in DOMAINS.items()
            for number in range(prompts)
            for record in of_prompt(domain, f"{domain}/{number}", [[1, 0, 1], [0, 0, 0], [1, 1, 1]])
        ]
        second = {cell_of(1, style) for style in range(3)}
        table = make_table([record for record in whole if record.cell not in second])
        support = table.support()
        assert support["as_published.total"] == (1327 * 6, True)
        assert support["as_published.hard"] == (1327 * 2, True)
        assert support["corrected.total"] == (1327 * 6, False)
        assert support["corrected.normal"] == (1327 * 3, True)
        full = make_table(whole)
        assert full.support()["corrected.total"] == (11943, True)
        assert full.support()["corrected.safety"] == (441 * 9, True)
        for name, value in values(table).items():
            if name.startswith("as_published"):
                assert value == values(full)[name]

    def test_what_is_absent_is_left_out(self) -> None:
        records = of_prompt("code", "1", [[1, 0, 1], [1, 1, 1], [0, 0, 1]])
        found = values(make_table([record for record in records if record.cell == (0, 1)]))
        assert found["corrected.hard"] == found["corrected.code"] == found["corrected.total"] == 1
        assert np.isnan(found["corrected.easy"]) and np.isnan(found["as_published.total"])

    def test_a_prompt_is_weighed_as_a_whole(self) -> None:
        records = [
            *of_prompt("chat", "1", [[1, 1, 1]] * 3),
            *of_prompt("chat", "2", [[0, 0, 0]] * 3),
        ]
        table = make_table(records)
        assert table.strata.tolist() == [0, 0]
        assert values(table, [3, 1])["corrected.total"] == 0.75

    @pytest.mark.parametrize(
        ("fields", "said"),
        [
            ({"group": "poetry", "cell": (0, 0)}, "domain: 'poetry' is none of RM-Bench's"),
            ({"group": "chat", "cell": (0, 3)}, r"cell: is \(0, 3\)"),
            ({"group": "chat"}, "cell: is None; it must be the styles"),
        ],
    )
    def test_records_of_something_else(self, fields: dict[str, Any], said: str) -> None:
        with pytest.raises(UserError, match=said):
            make_table([judged("rm_bench", 1, **fields)])


class TestLoad:
    def write(self, path: Path, rows: list[Any]) -> str:
        path.write_text(json.dumps(rows))
        return str(path)

    def test_the_development_slice(self, shared_data: Path) -> None:
        rejects = Rejects()
        items, missing = load(str(shared_data / "rm-bench" / "dev.json"), rejects)
        assert len(items) == 247 * 9 and not rejects.found
        assert [item.index for item in items] == [*range(247 * 9)]
        assert [item.draw for item in items] == [*range(247 * 3)] * 3
        assert len({(item.id, item.cell) for item in items}) == len(items)
        assert missing == [
            "domain chat: 38 of 129 prompts",
            "domain math: 0 of 529 prompts",
            "domain code: 71 of 228 prompts",
            "domain safety: 138 of 441 prompts",
        ]

    def test_the_order_of_the_three_published_files(self, tmp_path: Path) -> None:
        """File 2 has its rejected ones rotated by [1,2,0], file 3 by [2,0,1]."""
        rows = [ROW, ROW | {"id": "chat/2"}]
        items = load(self.write(tmp_path / "total_dataset.json", rows), Rejects()).items
        pairs = [(i.id[-1], i.pair.response_a, i.pair.response_b) for i in items]
        expected = [
            (number, f"c{style}", f"r{rotation[style]}")
            for rotation in ([0, 1, 2], [1, 2, 0], [2, 0, 1])
            for style in range(3)
            for number in "12"
        ]
        assert pairs == expected
        for item in items:
            assert item.cell == (int(item.pair.response_a[1]), int(item.pair.response_b[1]))
        places = positions(items, Order("published"))
        assert places[:6] == places[6:12] == places[12:]

    def test_a_directory_of_the_rotated_files_too(self, tmp_path: Path) -> None:
        for number in (1, 2, 3):
            self.write(tmp_path / f"total_dataset_{number}.json", [ROW])
        rejects = Rejects()
        assert len(load(str(tmp_path), rejects).items) == 9 and not rejects.found

    def test_a_rotated_file_alone_is_refused(self, tmp_path: Path) -> None:
        source = self.write(tmp_path / "total_dataset_2.json", [ROW])
        with pytest.raises(UserError, match=r"total_dataset_2.json: has its rejected answers rot"):
            load(source, Rejects())

    def test_bad_rows_are_rejected_and_shift_no_other(self, tmp_path: Path) -> None:
        rows = [
            ROW,
            ROW,
            ROW | {"id": "chat/2", "chosen": ["c0", "", "c2"]},
            ROW | {"id": "chat/3", "rejected": ["r0", "r1"]},
            ROW | {"id": "chat/4", "prompt": 3.5},
            ROW | {"id": "chat/5"},
        ]
        rejects = Rejects()
        items = load(self.write(tmp_path / "x.json", rows), rejects).items
        assert [(item.id, item.draw) for item in items[:4]] == [
            ("chat/1", 0), ("chat/5", 5), ("chat/1", 6), ("chat/5", 11),
        ]  # fmt: skip
        assert dict(rejects.found) == {
            2: "id: 'chat/1': was given to record 1; make ids unique",
            3: "chosen[1]: is empty; it must hold some text",
            4: "rejected: must be a list of 3 texts, one a style",
            5: "prompt: is 3.5; it must be a text",
        }

    def test_files_of_something_else_are_refused(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="fields a, b; it needs id, prompt, chosen, rejected"):
            load(self.write(tmp_path / "x.json", [{"a": 1, "b": 2}]), Rejects())
        with pytest.raises(UserError, match="record 1: domain: 'x' is none of RM-Bench's"):
            load(self.write(tmp_path / "x.json", [ROW | {"domain": "x"}]), Rejects())
        Path(tmp_path / "x.json").write_text(json.dumps([ROW])[:-9])
        with pytest.raises(UserError, match=r"x.json: is not JSON"):
            load(str(tmp_path / "x.json"), Rejects())
