"""The score cache: equal bytes however much of it is there, and damage told in one sentence."""

import random
import re
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from leverlab.errors import LeverlabError
from leverlab.vlm import turns
from leverlab.vlm.cache import ScoreCache
from leverlab.vlm.scoring import ListScores, Scorer
from leverlab.worlds.world import World

SHOTS = range(5)
MakeScorer = Callable[..., Scorer]


def entries(count: int, size: int = 3000) -> dict[bytes, bytes]:
    rng = np.random.default_rng(0)
    return {f"key-{index}".encode(): rng.bytes(size) for index in range(count)}


def filled(path: Path, count: int = 50) -> dict[bytes, bytes]:
    content = entries(count)
    with ScoreCache(path) as cache:
        for key, value in content.items():
            cache.put(key, value)
    return content


def as_bytes(scores: ListScores) -> tuple[bytes, bytes, list[list[str]] | None]:
    return scores.answer_prob_NM.tobytes(), scores.correct_NM.tobytes(), scores.text_NM


class Request:
    """One request in several batches, and a step of beam search; a new scorer each time, as a new process has."""

    def __init__(self, world: World, make_scorer: MakeScorer):
        self._world, self._make = world, make_scorer
        rng = np.random.default_rng(5)
        self._asked = [question.id for question in world.train]
        self._lists = [tuple(world.pool[i].id for i in rng.permutation(8)[:4]) for _ in self._asked]
        self._candidates = [demo.id for demo in world.pool]

    def __call__(self, cache: ScoreCache | None) -> tuple[list[object], int]:
        scorer = self._make(self._world.pool, self._world.train, batch_tokens=300, cache=cache)
        plain = scorer.score(self._asked, self._lists, SHOTS)
        texts = scorer.score(self._asked, self._lists, SHOTS, texts=True)
        beams = scorer.extend(self._asked[0], [self._lists[0][:2], self._lists[1][:2]], self._candidates)
        return [as_bytes(plain), as_bytes(texts), beams.tobytes()], scorer.computed


@pytest.fixture
def request_scores(world: World, make_scorer: MakeScorer) -> Request:
    return Request(world, make_scorer)


def test_cold_warm_and_resumed_runs_give_the_same_bytes(request_scores: Request, tmp_path: Path) -> None:
    without, every = request_scores(None)
    path = tmp_path / "scores.sqlite"
    with ScoreCache(path) as cache:
        cold, computed = request_scores(cache)
        assert (cold, computed) == (without, every)
        assert request_scores(cache) == (cold, 0)
    with sqlite3.connect(path) as database:
        (stored,) = database.execute("SELECT count(*) FROM scores").fetchone()
        keys = [key for (key,) in database.execute("SELECT key FROM scores ORDER BY key")]
        database.executemany("DELETE FROM scores WHERE key = ?", [(key,) for key in keys[::2]])
    database.close()
    assert stored > 6  # several batches, or half of them proves nothing
    with ScoreCache(path) as cache:
        resumed, some = request_scores(cache)
        assert resumed == cold
        assert 0 < some < every
        assert request_scores(cache) == (cold, 0)


def test_computed_counts_the_prompts_that_were_not_found(world: World, make_scorer: MakeScorer, tmp_path: Path) -> None:
    """12 questions at 5 shot counts are 60 prompts; 2 prefixes by 8 candidates are 16, less 4 that repeat a demo."""
    asked = [question.id for question in world.train]
    lists = [tuple(demo.id for demo in world.pool[:4])] * 12
    with ScoreCache(tmp_path / "scores.sqlite") as cache:
        scorer = make_scorer(world.pool, world.train, cache=cache)
        counts = []
        for _ in range(2):
            scorer.score(asked, lists, SHOTS)
            counts.append(scorer.computed)
        for _ in range(2):
            scorer.extend(asked[0], [lists[0][:2], lists[0][1:3]], [demo.id for demo in world.pool])
            counts.append(scorer.computed)
        scorer.score(asked, lists, SHOTS, texts=True)
        counts.append(scorer.computed)
    assert counts == [60, 60, 72, 72, 132]


@pytest.mark.parametrize("change", ["question", "answer", "image", "digest", "shots", "max_new_tokens", "order"])
def test_whatever_changes_a_score_changes_its_key(
    change: str, world: World, make_scorer: MakeScorer, tmp_path: Path
) -> None:
    demos, questions, shots, settings = list(world.pool[:4]), list(world.train[:1]), [1, 4], {}
    lists = [tuple(demo.id for demo in demos)]
    with ScoreCache(tmp_path / "scores.sqlite") as cache:
        first = make_scorer(demos, questions, cache=cache)
        first.score([questions[0].id], lists, shots, texts=True)
        again = make_scorer(demos, questions, cache=cache)
        again.score([questions[0].id], lists, shots, texts=True)
        assert again.computed == 0
        if change == "question":
            demos[1] = replace(demos[1], question="What is it?")
        elif change == "answer":
            questions[0] = replace(questions[0], answers=("zebra",))
        elif change == "image":
            demos[1] = replace(demos[1], image=demos[2].image)
        elif change == "digest":
            settings["of"] = replace(first.table.vlm, digest="another")
        elif change == "shots":
            shots = [1, 3]
        elif change == "max_new_tokens":
            settings["max_new_tokens"] = 2
        else:
            lists = [lists[0][::-1]]
        other = make_scorer(demos, questions, cache=cache, **settings)
        other.score([questions[0].id], lists, shots, texts=True)
        assert other.computed == 2


@pytest.mark.parametrize("keep", [10, 100, 4096, 0.5, -4096])
def test_a_file_cut_short_is_one_sentence(keep: float, tmp_path: Path) -> None:
    path = tmp_path / "scores.sqlite"
    content = filled(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * keep)] if keep == 0.5 else whole[: int(keep)])

    def read_everything() -> None:
        with ScoreCache(path) as cache:
            for key in content:
                cache.get(key)

    with pytest.raises(LeverlabError, match=r"scores\.sqlite is damaged .*; delete it: it holds nothing that cannot"):
        read_everything()


def test_a_file_that_is_no_database_is_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "scores.sqlite"
    path.write_bytes(np.random.default_rng(0).bytes(20_000))
    with pytest.raises(LeverlabError, match=r"scores\.sqlite is damaged \(file is not a database\)"):
        ScoreCache(path)


def test_a_folder_in_its_place_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(LeverlabError, match=r"cannot be used .*; check its folder"):
        ScoreCache(tmp_path)


def test_a_flipped_byte_in_an_entry_is_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "scores.sqlite"
    content = filled(path, 3)
    raw = bytearray(path.read_bytes())
    raw[raw.index(content[b"key-1"][-100:])] ^= 1
    path.write_bytes(raw)
    with ScoreCache(path) as cache:
        assert cache.get(b"key-0") == content[b"key-0"]
        with pytest.raises(LeverlabError, match=r"an entry of the score cache .*scores\.sqlite is damaged; delete the"):
            cache.get(b"key-1")


def test_an_entry_that_is_there_stays(tmp_path: Path) -> None:
    with ScoreCache(tmp_path / "scores.sqlite") as cache:
        cache.put(b"key", b"first")
        cache.put(b"key", b"second")
        assert cache.get(b"key") == b"first"
        assert cache.get(b"other") is None


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB, or no test."""
    if shutil.which("mount") is None:
        pytest.skip("there is no mount command here")
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(tmp_path)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a tmpfs is not permitted here")
    yield tmp_path
    subprocess.run(["umount", "--lazy", str(tmp_path)], check=True)


def test_a_full_disk_is_one_sentence_and_loses_nothing(small_disk: Path) -> None:
    path, kept = small_disk / "scores.sqlite", {}

    def fill() -> None:
        with ScoreCache(path) as cache:
            for key, value in entries(200).items():
                cache.put(key, value)
                kept[key] = value

    with pytest.raises(LeverlabError, match=r"^no space left for the score cache .*scores\.sqlite; free some and run"):
        fill()
    assert 5 < len(kept) < 200
    subprocess.run(["mount", "-o", "remount,size=4m", str(small_disk)], check=True)
    with ScoreCache(path) as cache:
        assert {key: cache.get(key) for key in kept} == kept
        cache.put(b"new", b"value")
        assert cache.get(b"new") == b"value"


def test_opening_on_a_disk_that_is_almost_full_is_told_apart_from_damage(small_disk: Path) -> None:
    (small_disk / "other").write_bytes(bytes(244 * 1024))
    with pytest.raises(LeverlabError, match=r"^no space left for the score cache"):
        ScoreCache(small_disk / "scores.sqlite")


LIMITED = """
import resource, sys
from pathlib import Path
from leverlab.errors import LeverlabError
from leverlab.vlm.cache import ScoreCache
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
stored = 0
with ScoreCache(Path(sys.argv[1])) as cache:
    try:
        for index in range(200):
            cache.put(str(index).encode(), bytes([index]) * 3000)
            stored += 1
    except LeverlabError as error:
        print(stored, error)
"""


def test_a_limit_on_the_size_of_files_is_one_sentence_and_loses_nothing(tmp_path: Path) -> None:
    path = tmp_path / "scores.sqlite"
    done = subprocess.run([sys.executable, "-c", LIMITED, str(path)], capture_output=True, text=True, check=True)
    stored, message = done.stdout.split(maxsplit=1)
    assert re.fullmatch(r"(no space left for )?the score cache .*scores\.sqlite.*\n", message)
    assert 5 < int(stored) < 200
    with ScoreCache(path) as cache:
        for index in range(int(stored)):
            assert cache.get(str(index).encode()) == bytes([index]) * 3000


WRITER = """
import sys
from pathlib import Path
from leverlab.vlm.cache import ScoreCache
with ScoreCache(Path(sys.argv[1])) as cache:
    print("open", flush=True)
    sys.stdin.readline()
    for index in range(200):
        cache.put(f"{sys.argv[2]}-{index}".encode(), f"{index * int(sys.argv[2])}".encode())
        cache.put(f"both-{index}".encode(), str(index).encode())
"""


def test_two_processes_write_at_once_and_every_entry_reads_back(tmp_path: Path) -> None:
    path = tmp_path / "scores.sqlite"
    ScoreCache(path).__exit__(None, None, None)
    command = [sys.executable, "-c", WRITER, str(path)]
    writers = [
        subprocess.Popen([*command, name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for name in ("1", "2")
    ]
    for writer in writers:
        assert writer.stdout.readline() == "open\n"
    for writer in writers:
        writer.stdin.write("go\n")
        writer.stdin.flush()
    for writer in writers:
        writer.communicate(timeout=60)
        assert writer.returncode == 0
    with ScoreCache(path) as cache:
        for index in range(200):
            assert cache.get(f"1-{index}".encode()) == str(index).encode()
            assert cache.get(f"2-{index}".encode()) == str(2 * index).encode()
            assert cache.get(f"both-{index}".encode()) == str(index).encode()


STUBBORN_WRITER = """
import sys
from pathlib import Path
from leverlab.vlm.cache import ScoreCache
with ScoreCache(Path(sys.argv[1])) as cache:
    print("open", flush=True)
    for index in range(400):
        for name in (sys.argv[2], "all"):
            key = f"{name}-{index}".encode()
            assert cache.get(key) in (None, key * 2000)
            cache.put(key, key * 2000)
"""


def test_four_writers_that_are_killed_again_and_again(tmp_path: Path) -> None:
    """Two experiments of two workers each share a cache; a writer is killed 30 times at a random moment and started
    anew. Then every entry reads back whole."""
    path, moments = tmp_path / "scores.sqlite", random.Random(0)

    def start(name: str) -> "subprocess.Popen[str]":
        command = [sys.executable, "-c", STUBBORN_WRITER, str(path), name]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    writers = {name: start(name) for name in "abcd"}
    for _ in range(30):
        name = moments.choice("abcd")
        writers[name].stdout.readline()
        time.sleep(moments.uniform(0, 0.05))
        writers[name].kill()
        writers[name].communicate()
        writers[name] = start(name)
    for writer in writers.values():
        _, err = writer.communicate(timeout=120)
        assert (writer.returncode, err) == (0, "")
    with ScoreCache(path) as cache:
        for index in range(400):
            for name in ("a", "b", "c", "d", "all"):
                key = f"{name}-{index}".encode()
                assert cache.get(key) == key * 2000
    with sqlite3.connect(path) as db:
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert db.execute("SELECT count(*) FROM scores").fetchone() == (5 * 400,)
    db.close()


def test_opening_a_new_cache_waits_for_a_process_that_opens_it_too(tmp_path: Path) -> None:
    """Another process stands where its first write begins; SQLite's timeout does not cover the change of journal."""
    path = tmp_path / "scores.sqlite"
    other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    other.execute("CREATE TABLE scores (key BLOB PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID")
    other.execute("BEGIN IMMEDIATE")
    release = threading.Timer(0.3, lambda: other.execute("COMMIT"))
    release.start()
    try:
        with ScoreCache(path) as cache:
            cache.put(b"key", b"value")
            assert cache.get(b"key") == b"value"
    finally:
        release.join()
        other.close()


def test_a_step_of_beam_search_is_not_taken_from_other_batches(
    world: World, make_scorer: MakeScorer, tmp_path: Path
) -> None:
    """Its forwards are cut by `batch_tokens`, which moves the last bits; a cold run would not give what is stored."""
    prefixes, candidates = [(world.pool[0].id,)], [demo.id for demo in world.pool]
    with ScoreCache(tmp_path / "scores.sqlite") as cache:
        for batch_tokens in (64, 4096):
            scorer = make_scorer(world.pool, world.train[:1], batch_tokens=batch_tokens, cache=cache)
            scorer.extend(world.train[0].id, prefixes, candidates)
            assert scorer.computed == 7


def test_scores_are_not_taken_from_features_with_other_bits(
    world: World, make_scorer: MakeScorer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which images are encoded together moves the last bits of a feature in float32, and so of every score; two stages
    with different questions share one cache. The shift here stands for such a difference."""
    asked, lists = world.train[0].id, [tuple(demo.id for demo in world.pool[:4])]
    with ScoreCache(tmp_path / "scores.sqlite") as cache:
        make_scorer(world.pool, world.train[:1], cache=cache).score([asked], lists, SHOTS)
        own = turns.encode_images
        monkeypatch.setattr(turns, "encode_images", lambda *inputs: [feature + 1e-6 for feature in own(*inputs)])
        shifted = make_scorer(world.pool, world.train[:1], cache=cache)
        found = shifted.score([asked], lists, SHOTS)
        cold = make_scorer(world.pool, world.train[:1]).score([asked], lists, SHOTS)
    assert as_bytes(found) == as_bytes(cold)
