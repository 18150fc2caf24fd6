"""Activation stores on disk: what is read is what was harvested, whatever happened in between."""

import random
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import saelab
from saelab.data import shards
from saelab.data.activations import ActivationStore
from saelab.data.batches import Share, batches_of
from saelab.data.shards import ShardWriter, StoredRows, StoreError, open_shards, read_index

HOOKS = ["blocks.0.hook_resid_post", "blocks.1.mlp.hook_post"]
TEXTS = saelab.load_text()[:40]


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a few hundred rows make several shards of several blocks: 64 rows of width 256 in blocks of 16."""
    monkeypatch.setattr(shards, "SHARD_BYTES", 2**16)
    monkeypatch.setattr(shards, "BLOCK_BYTES", 2**14)


def written(folder: Path, x: torch.Tensor) -> StoredRows:
    """A store of one column, ``x``."""
    writer = ShardWriter(folder, {"what": "a test"})
    writer.add({"x": x})
    writer.finish()
    return StoredRows(open_shards(folder, read_index(folder)), "x")


def read_all(folder: Path) -> None:
    for hook in HOOKS:
        store = ActivationStore.open(folder, hook)
        for column in (store.activations, store.token_ids, store.text_indices, store.positions):
            for start in range(0, len(store), 3):  # blocks are of 4 or 16: most are come upon alone
                column[start : start + 3]


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_a_store_on_disk_holds_what_one_in_memory_holds(model: Any, tmp_path: Path, small_shards: None) -> None:
    on_disk = saelab.harvest_many(model, HOOKS, TEXTS, store=tmp_path / "store", progress=False)
    in_memory = saelab.harvest_many(model, HOOKS, TEXTS, progress=False)
    assert list(on_disk) == list(in_memory) == HOOKS
    assert len(list((tmp_path / "store").glob("*.safetensors"))) > 3
    for hook in HOOKS:
        disk, memory = on_disk[hook], in_memory[hook]
        assert (disk.hook, disk.model_name) == (memory.hook, memory.model_name) == (hook, "reviews-4l")
        assert disk.scale == pytest.approx(memory.scale, rel=1e-12)
        assert torch.equal(disk.activations[:], memory.activations[:])
        for name in ("token_ids", "text_indices", "positions"):
            assert torch.equal(getattr(disk, name)[:], getattr(memory, name)[:])
        width = disk.d_in
        assert float(disk.activations[:].square().sum(dim=1).mean()) == pytest.approx(width, rel=1e-5)


def test_one_hook_of_several_is_what_it_is_alone(model: Any) -> None:
    alone = saelab.harvest(model, HOOKS[0], TEXTS[:3], progress=False)
    together = saelab.harvest_many(model, HOOKS, TEXTS[:3], progress=False)[HOOKS[0]]
    assert torch.equal(alone.activations[:], together.activations[:]) and alone.scale == together.scale


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_takes_half_the_space_and_reads_as_float32(
    model: Any, tmp_path: Path, dtype: torch.dtype
) -> None:
    sizes = []
    for kept, folder in ((torch.float32, tmp_path / "whole"), (dtype, tmp_path / "half")):
        store = saelab.harvest(model, HOOKS[0], TEXTS, store=folder, dtype=kept, progress=False)
        sizes.append(sum(path.stat().st_size for path in folder.iterdir()))
    assert store.activations[:3].dtype == torch.float32
    whole = ActivationStore.open(tmp_path / "whole")
    torch.testing.assert_close(store.activations[:], whole.activations[:], rtol=1e-2, atol=1e-2)
    assert 0.5 < sizes[1] / sizes[0] < 0.52


def test_special_tokens_are_left_out_unless_asked_for(model: Any) -> None:
    texts = ["A fine film.", "It ends here.<|endoftext|>And begins."]
    plain = saelab.harvest(model, HOOKS[0], texts, progress=False)
    all_tokens = saelab.harvest(model, HOOKS[0], texts, special_tokens=True, progress=False)
    special = all_tokens.token_ids[:] == model.tokenizer.bos_token_id
    assert all_tokens.positions[:][special].tolist() == [-1, -1, 4]  # BOS of both, and the one within the second
    assert torch.equal(all_tokens.token_ids[:][~special], plain.token_ids[:])
    assert 4 not in plain.positions[:][plain.text_indices[:] == 1].tolist()


def test_harvesting_again_opens_what_is_there_and_does_not_run_the_model(
    model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = saelab.harvest_many(model, HOOKS, TEXTS, store=tmp_path, n_tokens=500, progress=False)
    before = content(tmp_path)
    monkeypatch.setattr("saelab.data.hooks.hook_values", None)  # it could not run
    again = saelab.harvest_many(model, HOOKS, TEXTS, store=tmp_path, n_tokens=500, progress=False)
    assert content(tmp_path) == before
    assert len(again[HOOKS[0]]) == len(first[HOOKS[0]]) == 500


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"n_tokens": 400}, "n_tokens"),
        ({"context": 64}, "context"),
        ({"dtype": torch.float16}, "dtype"),
        ({"scales": dict.fromkeys(HOOKS, 1.0)}, "scale"),
        ({"special_tokens": True}, "special_tokens"),
        ({"text": TEXTS[1:]}, "text"),
        ({"hooks": HOOKS[:1]}, "hooks"),
    ],
)
def test_a_folder_with_another_harvest_is_refused_and_says_what_differs(
    model: Any, tmp_path: Path, change: dict[str, Any], named: str
) -> None:
    arguments: dict[str, Any] = {"hooks": HOOKS, "text": TEXTS, "n_tokens": 500}
    saelab.harvest_many(model, **arguments, store=tmp_path, progress=False)
    with pytest.raises(FileExistsError, match=f"differs in {named}"):
        saelab.harvest_many(model, **{**arguments, **change}, store=tmp_path, progress=False)


def test_a_model_that_was_trained_further_under_the_same_name_is_another(tmp_path: Path) -> None:
    model = saelab.load_language_model()
    saelab.harvest(model, HOOKS[0], TEXTS[:2], store=tmp_path, progress=False)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1e-3)
    with pytest.raises(FileExistsError, match="differs in weights"):
        saelab.harvest(model, HOOKS[0], TEXTS[:2], store=tmp_path, progress=False)


def test_a_folder_with_something_else_in_it_is_left_alone(model: Any, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work", encoding="utf-8")
    with pytest.raises(FileExistsError, match="is not an activation store"):
        saelab.harvest(model, HOOKS[0], TEXTS[:1], store=tmp_path, progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    with pytest.raises(StoreError, match=r"has no index\.json"):
        ActivationStore.open(tmp_path)


def test_text_without_a_token_leaves_no_folder_behind(model: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no tokens"):
        saelab.harvest(model, HOOKS[0], ["", ""], store=tmp_path / "store", progress=False)
    assert not (tmp_path / "store").exists()


KILLED = """
import sys, torch
import saelab
from saelab.data import shards
shards.SHARD_BYTES, shards.BLOCK_BYTES = 2**16, 2**14
torch.set_num_threads(1)
model = saelab.load_language_model()
print("ready", flush=True)
saelab.harvest_many(model, sys.argv[2:], saelab.load_text()[:40], store=sys.argv[1], batch_size=3, progress=False)
"""


def test_a_harvest_killed_at_random_moments_ends_as_an_undisturbed_one(model: Any, tmp_path: Path) -> None:
    def start(folder: Path) -> "subprocess.Popen[str]":
        command = [sys.executable, "-c", KILLED, str(folder), *HOOKS]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, encoding="utf-8")
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        return process

    assert start(tmp_path / "whole").wait() == 0
    moments = random.Random(0)
    killed = tmp_path / "killed"
    n_shards = []
    for _ in range(3):
        process = start(killed)
        until = len(list(killed.glob("*.safetensors"))) + 1
        while len(list(killed.glob("*.safetensors"))) < until and process.poll() is None:
            time.sleep(0.001)
        time.sleep(moments.random() * 0.05)
        process.kill()
        assert process.wait() != 0  # it was still at work
        n_shards.append(len(list(killed.glob("*.safetensors"))))
        with pytest.raises(StoreError, match="stopped before it finished"):
            ActivationStore.open(killed, HOOKS[0])
    assert n_shards == sorted(n_shards) and n_shards[0] < n_shards[-1]
    assert start(killed).wait() == 0
    for leftover in killed.glob(".*.unfinished"):
        shutil.rmtree(leftover)
    assert content(killed) == content(tmp_path / "whole")


def test_an_interrupted_harvest_goes_on_from_its_last_shard(
    model: Any, tmp_path: Path, small_shards: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = saelab.harvest(model, HOOKS[0], TEXTS, store=tmp_path / "whole", batch_size=4, progress=False)
    add, n_calls = ShardWriter.add, 0

    def stops(self: ShardWriter, rows: Any) -> None:
        nonlocal n_calls
        n_calls += 1
        if n_calls == 6:
            raise KeyboardInterrupt
        add(self, rows)

    monkeypatch.setattr(ShardWriter, "add", stops)
    with pytest.raises(KeyboardInterrupt):
        saelab.harvest(model, HOOKS[0], TEXTS, store=tmp_path / "stopped", batch_size=4, progress=False)
    # Another batch size may round otherwise, but finds the same tokens.
    resumed = saelab.harvest(model, HOOKS[0], TEXTS, store=tmp_path / "stopped", batch_size=7, progress=False)
    for name in ("token_ids", "text_indices", "positions"):
        assert torch.equal(getattr(resumed, name)[:], getattr(whole, name)[:])
    torch.testing.assert_close(resumed.activations[:], whole.activations[:], rtol=1e-4, atol=1e-4)


@pytest.fixture(scope="module")
def intact(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("intact") / "store"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "SHARD_BYTES", 2**16)
        patch.setattr(shards, "BLOCK_BYTES", 2**14)
        saelab.harvest_many(model, HOOKS, TEXTS[:3], store=folder, progress=False)
    return folder


def test_a_flipped_bit_anywhere_is_found_and_its_file_named(intact: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(intact, tmp_path / "flipped")
    draw = random.Random(0)  # evenly over a file, which hypothesis' integers are not
    for _ in range(120):
        path = draw.choice(sorted(folder.glob("*.safetensors")))
        content = path.read_bytes()
        header = 8 + int.from_bytes(content[:8], "little")
        place = draw.randrange(draw.choice([header, len(content)]))  # half of them where they can be misunderstood
        flipped = bytearray(content)
        flipped[place] ^= 1 << draw.randrange(8)
        path.write_bytes(flipped)
        with pytest.raises(StoreError, match=path.name):
            read_all(folder)
        path.write_bytes(content)
    read_all(folder)


def test_a_flipped_bit_in_any_byte_of_the_index_is_found(intact: Path, tmp_path: Path) -> None:
    content = (intact / "index.json").read_bytes()
    for place in range(len(content)):
        flipped = bytearray(content)
        flipped[place] ^= 1 << place % 8
        (tmp_path / "index.json").write_bytes(flipped)
        with pytest.raises(StoreError, match=r"index\.json"):
            read_index(tmp_path)


@pytest.mark.parametrize("kept", [0.0, 0.3, 0.999])
def test_a_cut_shard_is_found_when_the_store_is_opened(intact: Path, tmp_path: Path, kept: float) -> None:
    folder = shutil.copytree(intact, tmp_path / "cut")
    path = folder / "00001.safetensors"
    path.write_bytes(path.read_bytes()[: int(kept * path.stat().st_size)])
    with pytest.raises(StoreError, match=r"00001\.safetensors"):
        ActivationStore.open(folder, HOOKS[0])
    path.unlink()
    with pytest.raises(StoreError, match=r"00001\.safetensors: this shard is missing"):
        ActivationStore.open(folder, HOOKS[0])


def test_shards_of_another_store_do_not_pass_for_its_own(model: Any, intact: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(intact, tmp_path / "mixed")
    shutil.copy(folder / "00000.safetensors", folder / "00001.safetensors")
    with pytest.raises(StoreError, match=r"00001\.safetensors: its header does not match the index"):
        ActivationStore.open(folder, HOOKS[0])


def test_a_newer_store_and_a_hook_that_is_not_in_it_get_a_sentence(intact: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds activations of blocks\.0\.hook_resid_post, blocks.*name one as hook"):
        ActivationStore.open(intact)
    folder = shutil.copytree(intact, tmp_path / "newer")
    text = (folder / "index.json").read_text(encoding="utf-8").replace('"version": 1', '"version": 2')
    (folder / "index.json").write_text(text, encoding="utf-8")
    with pytest.raises(StoreError, match="version 2, but this SAELab reads up to 1; install a newer one"):
        ActivationStore.open(folder, HOOKS[0])


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_rows_on_disk_are_indexed_like_a_tensor(tmp_path: Path, small_shards: None, data: st.DataObject) -> None:
    n = data.draw(st.integers(1, 300))
    folder = tmp_path / "rows"
    shutil.rmtree(folder, ignore_errors=True)
    x = torch.arange(n * 256, dtype=torch.float32).reshape(n, 256)
    writer = ShardWriter(folder, {"what": "a test"})
    writer.add({"x": x, "ids": torch.arange(n, dtype=torch.int32)})
    writer.finish()
    rows, ids = (StoredRows(open_shards(folder, read_index(folder)), name) for name in ("x", "ids"))
    assert len(rows) == n and rows.shape == x.shape and rows.dtype == x.dtype
    start, stop = data.draw(st.integers(-n - 2, n + 2)), data.draw(st.integers(-n - 2, n + 2))
    step = data.draw(st.sampled_from([None, 1, 2, 3]))
    assert torch.equal(rows[start:stop:step], x[start:stop:step])
    index = torch.tensor(data.draw(st.lists(st.integers(-n, n - 1), max_size=20)), dtype=torch.long)
    assert torch.equal(rows[index], x[index])
    assert torch.equal(rows[index.reshape(-1, 1)], x[index.reshape(-1, 1)])
    mask = torch.arange(n) % 3 == 0
    assert torch.equal(rows[mask], x[mask])
    assert torch.equal(rows[n - 1], x[n - 1])
    assert int(ids[n - 1]) == n - 1 and ids[n - 1].shape == ()
    first = data.draw(st.integers(1, n))
    assert torch.equal(rows.first(first)[:], x[:first])
    with pytest.raises(IndexError, match=f"no row {n}"):
        rows[n]


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(n=st.integers(1, 400), batch_size=st.integers(1, 150), n_processes=st.integers(1, 3))
def test_every_row_on_disk_is_drawn_once_an_epoch_by_one_process(
    tmp_path: Path, small_shards: None, monkeypatch: pytest.MonkeyPatch, n: int, batch_size: int, n_processes: int
) -> None:
    monkeypatch.setattr("saelab.data.batches.POOL_BYTES", 2**16)  # 4 blocks
    folder = tmp_path / "rows"
    shutil.rmtree(folder, ignore_errors=True)
    rows = written(folder, torch.arange(float(n)).repeat_interleave(256).reshape(n, 256))

    def source(process: int, n_processes: int) -> Any:
        return batches_of(rows, 256, batch_size=batch_size, seed=1, share=Share(process, n_processes))

    alone = source(0, 1)
    several = [source(process, n_processes) for process in range(n_processes)]
    drawn: list[float] = []
    read: list[set[float]] = [set() for _ in several]
    while len(drawn) < 2 * n:
        expected = alone.draw()
        assert torch.equal(expected.places, torch.arange(batch_size)) and expected.size == batch_size
        together = torch.full((batch_size, 256), -1.0)
        for process, batches in enumerate(several):
            part = batches.draw()
            together[part.places] = part.x
            if len(drawn) + batch_size <= n:
                read[process] |= set(part.x[:, 0].tolist())
        assert torch.equal(together, expected.x)
        drawn += expected.x[:, 0].tolist()
    assert sorted(drawn[:n]) == list(range(n)) == sorted(drawn[n : 2 * n])
    assert sum(map(len, read)) == len(set().union(*read))  # disjoint


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(n=st.integers(1, 400), batch_size=st.integers(1, 150), n_drawn=st.integers(0, 12))
def test_batches_from_disk_go_on_after_an_interruption_as_if_there_had_been_none(
    tmp_path: Path, small_shards: None, monkeypatch: pytest.MonkeyPatch, n: int, batch_size: int, n_drawn: int
) -> None:
    monkeypatch.setattr("saelab.data.batches.POOL_BYTES", 2**16)
    folder = tmp_path / "rows"
    shutil.rmtree(folder, ignore_errors=True)
    rows = written(folder, torch.randn(n, 256))
    whole, stopped, resumed = (batches_of(rows, 256, batch_size=batch_size, seed=1) for _ in range(3))
    for _ in range(n_drawn):
        whole.draw(), stopped.draw()
    resumed.restore(stopped.state())
    for _ in range(5):
        assert torch.equal(resumed.draw().x, whole.draw().x)


def test_training_from_disk_is_resumed_bit_by_bit_and_remembers_where_it_belongs(
    model: Any, tmp_path: Path, small_shards: None
) -> None:
    store = saelab.harvest(model, HOOKS[0], TEXTS, store=tmp_path / "store", progress=False)
    config = saelab.TrainingConfig(n_steps=12, batch_size=64, checkpoint_every=5)
    whole = saelab.Trainer(saelab.GatedSAE(256, 64), store, config).run(progress=False)
    stopped = saelab.Trainer(saelab.GatedSAE(256, 64), store, config, folder=tmp_path / "run")
    for _ in range(7):
        stopped.step()
    stopped.save()
    resumed = saelab.Trainer.resume(tmp_path / "run", ActivationStore.open(tmp_path / "store")).run(progress=False)
    for name, weight in whole.sae.named_parameters():
        assert torch.equal(weight, resumed.sae.get_parameter(name)), name
    assert saelab.load(tmp_path / "run" / "checkpoint.safetensors").trained_on == store.trained_on
    assert store.trained_on == ("reviews-4l", HOOKS[0], store.scale)
    other = saelab.harvest(model, HOOKS[0], TEXTS[1:], store=tmp_path / "other", progress=False)
    with pytest.raises(ValueError, match="used different activations"):
        saelab.Trainer.resume(tmp_path / "run", other)


def test_features_metrics_and_training_read_a_store_on_disk_as_one_in_memory(model: Any, intact: Path) -> None:
    disk = ActivationStore.open(intact, HOOKS[0])
    memory = saelab.harvest(model, HOOKS[0], TEXTS[:3], progress=False)
    sae = saelab.StandardSAE(256, 32, seed=1)
    one, other = (saelab.evaluate(sae, store).as_dict() for store in (disk, memory))
    assert one == pytest.approx(other)
    for mine, theirs in zip(
        *(saelab.read_features(model, sae, s, progress=False) for s in (disk, memory)), strict=True
    ):
        assert str(mine) == str(theirs)


LARGE = """
import resource, sys, torch
from pathlib import Path
from saelab.data.batches import batches_of
from saelab.data.shards import StoredRows, open_shards, read_index
folder = Path(sys.argv[1])
rows = StoredRows(open_shards(folder, read_index(folder)), "x")
batches = batches_of(rows, 1024, batch_size=1024, seed=0)
batches.draw()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
total, n = 0.0, len(rows) // 1024 * 1024
for _ in range(len(rows) // 1024):
    total += float(batches.draw().x[:, 0].sum())
print(total, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads ru_maxrss, which is in KiB on Linux only")
def test_a_store_is_read_through_in_much_less_memory_than_it_takes(tmp_path: Path) -> None:
    n = 96 * 1024  # 384 MiB
    writer = ShardWriter(tmp_path, {"what": "a test"})
    for _ in range(96):
        writer.add({"x": torch.ones(1024, 1024)})
    writer.finish()
    command = [sys.executable, "-c", LARGE, str(tmp_path)]
    run = subprocess.run(command, capture_output=True, encoding="utf-8", check=True)
    total, grown = map(float, run.stdout.split())
    assert total == n  # every row, once
    assert grown < 100  # MiB at its height, of 384 that were read
