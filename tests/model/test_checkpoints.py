from __future__ import annotations

import contextlib
import gzip
import io
import itertools
import logging
import lzma
import os
import random
import re
import socket
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import BUNDLED_MODELS, DEMO_MODEL, ENGLISH_MODEL, PATIENCE_S, ROOT, Clock, wait_until
from hub import FILE, MODEL_ID, CutError, Fault, Hub, hub_with
from hypothesis import given
from hypothesis import strategies as st

from parakeet_api.errors import CheckpointError, ModelLoadError, ModelNotReadyError
from parakeet_api.model import checkpoints
from parakeet_api.model.card import ModelCard
from parakeet_api.model.checkpoints import (
    BundledModels,
    Checkpoint,
    CheckpointStore,
    check_checkpoint,
    download_checkpoint,
    find_checkpoint,
)
from parakeet_api.settings import Settings

TDT_CONFIG = """
target: nemo.collections.asr.models.rnnt_bpe_models.EncDecRNNTBPEModel
decoding: {strategy: greedy_batch, durations: [0, 1, 2, 3, 4]}
"""
CTC_CONFIG = """
target: nemo.collections.asr.models.ctc_bpe_models.EncDecCTCModelBPE
decoding: {strategy: greedy_batch}
"""
CANARY_CONFIG = """
target: nemo.collections.asr.models.aed_multitask_models.EncDecMultiTaskModel
decoding: {strategy: beam, durations: [0, 1]}
"""
MULTITALKER_CONFIG = """
target: nemo.collections.asr.models.multitalker_asr_models.EncDecMultiTalkerRNNTBPEModel
decoding: {strategy: greedy_batch}
"""
CHARACTERS_CONFIG = """
target: nemo.collections.asr.models.ctc_models.EncDecCTCModel
decoding: {strategy: greedy_batch}
"""
TELEPHONE_CONFIG = """
target: nemo.collections.asr.models.rnnt_bpe_models.EncDecRNNTBPEModel
preprocessor: {sample_rate: 8000}
"""
RNNT_CONFIG = """
target: nemo.collections.asr.models.rnnt_bpe_models.EncDecRNNTBPEModel
decoding: {strategy: greedy_batch}
"""
HYBRID_CONFIG = """
target: nemo.collections.asr.models.hybrid_rnnt_ctc_bpe_models.EncDecHybridRNNTCTCBPEModel
decoding: {strategy: greedy_batch, durations: [0, 1, 2, 3, 4]}
"""
PROMPT_CONFIG = """
target: nemo.collections.asr.models.rnnt_bpe_models_prompt.EncDecRNNTBPEModelWithPrompt
model_defaults: {prompt_dictionary: {en-US: 0, de-DE: 1, en: 2, auto: 101}}
"""
WEIGHTS = bytes(1_000_000)


def nemo(config: str = TDT_CONFIG, weights: bytes = WEIGHTS) -> bytes:
    """Make an archive as NeMo writes it."""
    return tar({"./model_config.yaml": config.encode(), "./model_weights.ckpt": weights})


def tar(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def tar_with_odd_config(kind: bytes) -> bytes:
    """Make an archive whose configuration is a folder, or a link that leads nowhere."""
    buffer = io.BytesIO(tar({"model_weights.ckpt": b""}))
    with tarfile.open(fileobj=buffer, mode="a:") as archive:
        member = tarfile.TarInfo("model_config.yaml")
        member.type = kind
        member.linkname = "elsewhere.yaml"
        archive.addfile(member)
    return buffer.getvalue()


@pytest.fixture
def models(tmp_path: Path) -> Path:
    folder = tmp_path / "models"
    folder.mkdir()
    return folder


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with hub_with(nemo(), home=tmp_path / "hf-home", monkeypatch=monkeypatch) as started:
        yield started


@pytest.fixture
def cache(hub: Hub, tmp_path: Path) -> Path:
    return tmp_path / "hf-home" / "hub"


def settings_for(models: Path, hub: Hub | None = None, **environ: str) -> Settings:
    address = hub.url if hub else "http://127.0.0.1:9"
    defaults = {"MODELS_DIR": str(models), "HF_ENDPOINT": address}
    if hub:
        defaults["MODEL_ID"] = MODEL_ID
    return Settings.from_env(defaults | environ)


def start_store(
    settings: Settings, *, clock: Callable[[], float] = time.monotonic
) -> CheckpointStore:
    """Start a store and wait for its decision."""
    store = CheckpointStore(settings, bundled=BUNDLED_MODELS, clock=clock)
    store.start()
    assert store.wait_until_decided(20)
    return store


def forbid_writing(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Refuse new files as a read-only mount does; root would get past a folder's mode."""
    touch = Path.touch

    def refuse(self: Path, mode: int = 0o666, exist_ok: bool = True) -> None:
        if self.parent == folder:
            raise OSError(30, "Read-only file system", str(self))
        touch(self, mode, exist_ok)

    monkeypatch.setattr(Path, "touch", refuse)


# What is on disk


def test_model_path_is_used_and_nothing_else(models: Path, tmp_path: Path) -> None:
    chosen = tmp_path / "mine.nemo"
    chosen.write_bytes(nemo())
    (models / "parakeet-tdt-0.6b-v2.nemo").write_bytes(nemo())

    store = start_store(settings_for(models, MODEL_PATH=str(chosen), DEMO_MODEL="always"))

    assert store.checkpoint().path == chosen
    assert not store.checkpoint().is_demo
    assert store.checkpoint().name == "mine"


def test_a_model_path_that_leads_nowhere_stops_the_start(models: Path, tmp_path: Path) -> None:
    (models / "parakeet-tdt-0.6b-v2.nemo").write_bytes(nemo())
    missing = tmp_path / "missing.nemo"
    store = CheckpointStore(settings_for(models, MODEL_PATH=str(missing)), bundled=BUNDLED_MODELS)

    with pytest.raises(CheckpointError, match=re.escape(f"{missing} does not exist")):
        store.start()


def test_a_model_path_that_may_not_be_read_stops_the_start(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: Path) -> bool:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "is_file", refuse)
    store = CheckpointStore(
        settings_for(models, MODEL_PATH="/secret/mine.nemo"), bundled=BUNDLED_MODELS
    )

    with pytest.raises(CheckpointError, match=r"/secret/mine\.nemo .*Permission denied"):
        store.start()


@pytest.mark.parametrize("path", [DEMO_MODEL, ENGLISH_MODEL], ids=lambda path: path.stem)
def test_a_bundled_model_is_known_as_such_when_model_path_names_it(
    models: Path, path: Path
) -> None:
    store = start_store(settings_for(models, MODEL_PATH=str(path)))

    assert store.checkpoint().is_demo
    assert store.checkpoint().note == checkpoints.BUNDLED_NOTES[path.name]


def test_only_a_bundled_model_has_a_note(models: Path) -> None:
    (models / "mine.nemo").write_bytes(nemo())

    assert start_store(settings_for(models)).checkpoint().note is None


def store_of(settings: Settings, name: str) -> CheckpointStore:
    """Start the store of one of `MODELS` and wait for its decision."""
    store = CheckpointStore(settings, bundled=BUNDLED_MODELS, only=name)
    store.start()
    assert store.wait_until_decided(20)
    return store


@pytest.mark.parametrize("name", ["mine", "me/mine"])
def test_one_of_models_is_its_file_and_no_other(models: Path, name: str) -> None:
    for file in ("mine.nemo", "parakeet-tdt-0.6b-v2.nemo"):
        (models / file).write_bytes(nemo())

    store = store_of(settings_for(models), name)

    assert store.checkpoint().path == models / "mine.nemo"
    assert (store.name, store.model_id) == ("mine", name if "/" in name else f"nvidia/{name}")


def test_one_of_models_without_a_file_is_fetched_under_its_own_name(models: Path, hub: Hub) -> None:
    (models / "another.nemo").write_bytes(nemo())
    settings = settings_for(models, hub, MODEL_ID="me/another")

    store = store_of(settings, MODEL_ID)

    assert store.checkpoint().path.name == FILE
    assert store.name == FILE.removesuffix(".nemo")


def test_a_missing_model_of_models_is_not_replaced(models: Path) -> None:
    (models / "another.nemo").write_bytes(nemo())

    store = store_of(settings_for(models, DEMO_MODEL="auto"), "mine")

    assert store.status.state == "failed"
    assert store.name == "mine"
    with pytest.raises(ModelLoadError, match="nvidia/mine could not be downloaded"):
        store.checkpoint()


@pytest.mark.parametrize("path", [DEMO_MODEL, ENGLISH_MODEL], ids=lambda path: path.stem)
def test_a_bundled_model_can_be_one_of_models(models: Path, path: Path) -> None:
    store = store_of(settings_for(models), path.stem)

    assert store.checkpoint() == Checkpoint(path, is_demo=True)


def test_a_damaged_file_of_one_of_models_stops_the_start(models: Path) -> None:
    (models / "mine.nemo").write_bytes(nemo()[:1000])

    with pytest.raises(CheckpointError, match=r"mine\.nemo"):
        CheckpointStore(settings_for(models), bundled=BUNDLED_MODELS, only="mine").start()


def test_models_on_disk_have_an_order(models: Path) -> None:
    settings = settings_for(models, MODEL_ID="nvidia/parakeet-tdt-0.6b-v3")
    order = [
        "parakeet-tdt-0.6b-v3.nemo",  # MODEL_ID's own
        "parakeet-tdt-0.6b-v2.nemo",
        *[f"{letter}-model.nemo" for letter in "abcdefgh"],
    ]
    others = [DEMO_MODEL.name, ENGLISH_MODEL.name, "notes.txt"]
    for name in random.Random(5).sample([*order, *others], len(order) + len(others)):
        (models / name).write_bytes(nemo())

    found = []
    while (checkpoint := find_checkpoint(settings, BUNDLED_MODELS, any_file=True)) is not None:
        found.append(checkpoint.path.name)
        checkpoint.path.unlink()

    assert found == order


@pytest.mark.parametrize("path", [DEMO_MODEL, ENGLISH_MODEL], ids=lambda path: path.stem)
def test_a_bundled_model_in_the_models_folder_is_never_taken_by_accident(
    models: Path, hub: Hub, path: Path
) -> None:
    (models / path.name).symlink_to(path)

    store = start_store(settings_for(models, hub))

    assert store.checkpoint().path == models / FILE
    assert hub.gets() == [None]


def test_a_model_id_that_was_set_is_downloaded_although_another_model_is_on_disk(
    models: Path, hub: Hub
) -> None:
    (models / "other.nemo").write_bytes(nemo())

    store = start_store(settings_for(models, hub))

    assert store.checkpoint().path == models / FILE
    assert hub.gets() == [None]


def test_without_a_model_id_the_model_on_disk_is_used(models: Path, hub: Hub) -> None:
    (models / "other.nemo").write_bytes(nemo())

    settings = Settings.from_env({"MODELS_DIR": str(models), "HF_ENDPOINT": hub.url})

    assert start_store(settings).checkpoint().path == models / "other.nemo"
    assert hub.gets() == []


def test_a_model_on_disk_substitutes_one_that_cannot_be_downloaded(
    models: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (models / "other.nemo").write_bytes(nemo())

    store = start_store(settings_for(models, MODEL_ID="acme/wanted"))

    assert store.checkpoint().path == models / "other.nemo"
    assert "acme/wanted could not be downloaded" in caplog.text


def test_a_damaged_substitute_is_not_used(models: Path, caplog: pytest.LogCaptureFixture) -> None:
    (models / "other.nemo").write_bytes(nemo()[:1000])

    store = start_store(settings_for(models, MODEL_ID="acme/wanted", DEMO_MODEL="never"))

    assert store.status.state == "failed"
    assert "other.nemo" in caplog.text


@pytest.mark.parametrize(("wanted", "path"), [("always", ENGLISH_MODEL), ("grammar", DEMO_MODEL)])
def test_a_bundled_model_can_be_forced(
    models: Path, caplog: pytest.LogCaptureFixture, wanted: str, path: Path
) -> None:
    (models / "parakeet-tdt-0.6b-v2.nemo").write_bytes(nemo())

    store = start_store(settings_for(models, DEMO_MODEL=wanted))

    assert store.checkpoint() == Checkpoint(path, is_demo=True)
    note = checkpoints.BUNDLED_NOTES[path.name]
    assert f"BUNDLED MODEL {path.stem} in use: {note}." in caplog.text


@pytest.mark.parametrize("wanted", ["always", "grammar"])
def test_a_forced_bundled_model_that_is_missing_stops_the_start(models: Path, wanted: str) -> None:
    missing = Path("nowhere/model.nemo")
    bundled = BundledModels(english=missing, grammar=missing)

    with pytest.raises(CheckpointError, match=r"nowhere/model\.nemo does not exist"):
        CheckpointStore(settings_for(models, DEMO_MODEL=wanted), bundled=bundled).start()


# What a file must be


@pytest.mark.parametrize("path", [DEMO_MODEL, ENGLISH_MODEL], ids=lambda path: path.stem)
def test_the_bundled_checkpoints_pass(path: Path) -> None:
    check_checkpoint(path)


@pytest.mark.parametrize(
    ("config", "decoder"),
    [
        (TDT_CONFIG, "tdt"),
        (HYBRID_CONFIG, "tdt"),
        (RNNT_CONFIG, "rnnt"),
        (CTC_CONFIG, "ctc"),
        (RNNT_CONFIG + "loss: {loss_name: tdt}", "tdt"),
        (TDT_CONFIG.replace("durations: [0, 1, 2, 3, 4]", "durations: null"), "rnnt"),
    ],
)
def test_models_of_the_family_pass(models: Path, config: str, decoder: str) -> None:
    path = models / "x.nemo"
    path.write_bytes(nemo(config))

    assert check_checkpoint(path).decoder == decoder


def test_a_gzipped_archive_passes_as_nemo_takes_it(models: Path) -> None:
    path = models / "x.nemo"
    path.write_bytes(gzip.compress(nemo()))

    check_checkpoint(path)


BROKEN = {
    "empty": b"",
    "text": b"<html>please log in</html>" * 50,
    "truncated": nemo()[:-400_000],
    "header alone": nemo()[:700],
    "truncated gzip": gzip.compress(nemo())[:-20],
    "damaged gzip": gzip.compress(nemo())[:300] + bytes(300),
    "xz, which NeMo does not read": lzma.compress(nemo()),
    "no config": tar({"model_weights.ckpt": b""}),
    "no weights": tar({"model_config.yaml": TDT_CONFIG.encode()}),
    "config in a folder": tar({"a/model_config.yaml": b"", "a/model_weights.ckpt": b""}),
    "config is a folder": tar_with_odd_config(tarfile.DIRTYPE),
    "config is a dead link": tar_with_odd_config(tarfile.SYMTYPE),
    "config is no yaml": nemo("target: [unclosed"),
    "config is no text": nemo("\x00\x01\x02"),
    "config has an impossible date": nemo("target: 2026-99-99"),
    "config has brackets without end": nemo("[" * 100_000),
    "config is a list": nemo("- 1\n- 2"),
    "config is empty": nemo(""),
    "config names no class": nemo("decoding: {durations: [0, 1]}"),
    "config's target is a number": nemo("target: 5"),
    "canary": nemo(CANARY_CONFIG),
    "multitalker": nemo(MULTITALKER_CONFIG),
    "characters": nemo(CHARACTERS_CONFIG),
    "telephone": nemo(TELEPHONE_CONFIG),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_file_that_is_no_parakeet_model_stops_the_start(models: Path, kind: str) -> None:
    path = models / "x.nemo"
    path.write_bytes(BROKEN[kind])

    with pytest.raises(CheckpointError, match=re.escape(str(path))) as caught:
        CheckpointStore(settings_for(models), bundled=BUNDLED_MODELS).start()

    assert "another file in MODEL_PATH" in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 1


def test_a_folder_named_like_a_model_stops_the_start(models: Path) -> None:
    (models / "x.nemo").mkdir()

    with pytest.raises(CheckpointError, match=re.escape(f"{models / 'x.nemo'} does not exist or")):
        CheckpointStore(settings_for(models), bundled=BUNDLED_MODELS).start()


@pytest.mark.parametrize(
    ("config", "kind"),
    [
        (CANARY_CONFIG, "EncDecMultiTaskModel, a Canary model"),
        (MULTITALKER_CONFIG, "EncDecMultiTalkerRNNTBPEModel, a multitalker model"),
        (CHARACTERS_CONFIG, "EncDecCTCModel, an older model, which writes single characters"),
        (TELEPHONE_CONFIG, "EncDecRNNTBPEModel for audio of 8000 Hz"),
        ("target: nemo.collections.asr.models.SortformerEncLabelModel", "SortformerEncLabelModel"),
        (RNNT_CONFIG + "loss: {loss_name: multiblank_rnnt}", "EncDecRNNTBPEModel with several"),
    ],
)
def test_a_model_of_another_kind_is_told_what_it_is(models: Path, config: str, kind: str) -> None:
    path = models / "x.nemo"
    path.write_bytes(nemo(config))

    with pytest.raises(CheckpointError, match=f"holds a {kind}"):
        check_checkpoint(path)


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("scratch") / "x.nemo"


SMALL = nemo(weights=bytes(range(256)) * 20)
SMALL_END = SMALL.rindex(bytes(range(256))) + 256
"""Only zeros follow, which mark the end of the archive."""


@given(st.integers(0, SMALL_END - 1))
def test_a_file_that_lost_its_end_is_refused(scratch: Path, length: int) -> None:
    scratch.write_bytes(SMALL[:length])

    with pytest.raises(CheckpointError):
        check_checkpoint(scratch)


@given(st.data(), st.booleans())
def test_a_damaged_file_gives_no_other_error(
    scratch: Path, data: st.DataObject, packed: bool
) -> None:
    content = bytearray(gzip.compress(SMALL) if packed else SMALL)
    for _ in range(data.draw(st.integers(1, 5))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    scratch.write_bytes(content)

    with contextlib.suppress(CheckpointError):
        check_checkpoint(scratch)


# A download


def test_a_model_is_downloaded_into_the_models_folder_and_ready(
    models: Path, hub: Hub, cache: Path
) -> None:
    hub.content = DEMO_MODEL.read_bytes()

    store = start_store(settings_for(models, hub))

    assert store.status.state == "ready"
    assert store.checkpoint().path == models / FILE
    assert not store.checkpoint().is_demo
    assert (models / FILE).read_bytes() == hub.content
    assert not cache.exists()


CARD = b"""---
language:
- de
- no
license: cc-by-4.0
---
# A German model
language: fr
"""


@pytest.mark.parametrize("read_only", [False, True])
def test_the_card_of_a_model_tells_its_languages_and_licence(
    models: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch, read_only: bool
) -> None:
    hub.card = CARD
    if read_only:
        forbid_writing(monkeypatch, models)

    fetched = start_store(settings_for(models, hub)).checkpoint()

    assert fetched.languages == {"de", "no"}
    assert fetched.license == "cc-by-4.0"
    again = start_store(settings_for(models, hub)).checkpoint()
    assert (again.languages, again.license) == (fetched.languages, fetched.license)
    assert not (models / "README.md").exists()


@pytest.mark.parametrize(
    "card",
    [
        b"",
        b"# no header",
        b"---\nlanguage: de",
        b"---\n- a list\n---",
        b"---\nlanguage: [unclosed\n---",
        b"---\nlanguage: 2026-99-99\n---",
        b"\xff\xfe\x00---",
        b"---\nlanguage: {a: b}\nlicense: 5\n---",
    ],
)
def test_a_damaged_card_says_nothing(models: Path, card: bytes) -> None:
    (models / "x.nemo").write_bytes(nemo())
    (models / "x.md").write_bytes(card)

    checkpoint = start_store(settings_for(models)).checkpoint()

    assert checkpoint.card == ModelCard()


@pytest.mark.parametrize(
    ("config", "languages"),
    [
        (PROMPT_CONFIG, {"en", "de"}),
        (PROMPT_CONFIG + "labels: [a, <de-DE>, <fr-FR>]", {"de"}),
        (RNNT_CONFIG + "labels: [a, <de-DE>, <fr-FR>, <EOU>]", {"de", "fr"}),
        (RNNT_CONFIG + "labels: [a, <unk>, <EOU>]", set()),
    ],
)
def test_a_checkpoint_tells_its_languages(models: Path, config: str, languages: set[str]) -> None:
    path = models / "x.nemo"
    path.write_bytes(nemo(config))

    assert check_checkpoint(path).languages == languages


def test_a_revision_is_fetched_beside_other_files_of_the_model(models: Path, hub: Hub) -> None:
    (models / FILE).write_bytes(b"another revision")
    (models / "other.nemo").write_bytes(nemo())
    hub.revision = "v1.0"
    settings = settings_for(models, hub, MODEL_ID=f"{MODEL_ID}@v1.0")

    store = start_store(settings)

    pinned = models / FILE.replace(".nemo", "@v1.0.nemo")
    assert store.checkpoint().path == pinned
    assert pinned.read_bytes() == hub.content
    assert (models / FILE).read_bytes() == b"another revision"
    assert store.name == FILE.removesuffix(".nemo")
    assert store.model_id == f"{MODEL_ID}@v1.0"
    hub.requests.clear()
    assert start_store(settings).checkpoint().path == pinned
    assert hub.requests == []
    assert sorted(path.name for path in models.glob("*.partial")) == []


def test_a_revision_that_the_hub_does_not_have_is_no_other(models: Path, hub: Hub) -> None:
    (models / FILE).write_bytes(nemo())
    settings = settings_for(models, hub, MODEL_ID=f"{MODEL_ID}@v9", DEMO_MODEL="never")

    store = start_store(settings)

    assert store.status.state == "failed"


def test_a_revision_in_a_cache_is_that_revision(
    models: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    forbid_writing(monkeypatch, models)
    hub.revision = "refs/pr/1"

    store = start_store(settings_for(models, hub, MODEL_ID=f"{MODEL_ID}@refs/pr/1"))

    assert store.checkpoint().path.name == FILE
    assert store.name == FILE.removesuffix(".nemo")


def test_a_model_without_an_owner_is_nvidias(models: Path, hub: Hub) -> None:
    store = start_store(settings_for(models, hub, MODEL_ID="parakeet-unified-en-0.6b"))

    assert store.model_id == "nvidia/parakeet-unified-en-0.6b"
    assert any(path.startswith("/nvidia/parakeet-unified") for _, path, _ in hub.requests)


def test_what_was_downloaded_is_found_by_the_next_start(models: Path, hub: Hub) -> None:
    start_store(settings_for(models, hub))
    hub.requests.clear()

    assert start_store(settings_for(models, hub)).checkpoint().path == models / FILE
    assert hub.requests == []


def test_a_download_follows_the_hub_to_its_file_store(models: Path, hub: Hub) -> None:
    hub.redirects = True

    store = start_store(settings_for(models, hub))

    assert store.checkpoint().path.read_bytes() == hub.content
    assert ("GET", f"/cdn/{FILE}", None) in hub.requests


def test_progress_rises_to_the_whole_file(models: Path, hub: Hub) -> None:
    reports: list[tuple[int, int | None]] = []

    download_checkpoint(
        settings_for(models, hub), report=lambda done, total: reports.append((done, total))
    )

    size = len(hub.content)
    assert reports[0] == (0, None)
    assert len(reports) > 10
    assert all(before < after for (before, _), (after, _) in itertools.pairwise(reports))
    assert {total for _, total in reports[1:]} == {size}
    assert reports[-1] == (size, size)


def test_progress_is_logged_every_5_percent(
    models: Path, hub: Hub, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 4096)
    caplog.set_level(logging.INFO)

    start_store(settings_for(models, hub))

    percentages = [
        int(n) for n in re.findall(rf"downloading {MODEL_ID}: (\d+) % of 1 MB", caplog.text)
    ]
    assert 15 < len(percentages) <= 20
    assert percentages == sorted(set(percentages))
    assert percentages[-1] == 100


def test_a_download_over_xet_counts_each_byte_once() -> None:
    from huggingface_hub.utils._xet_progress_reporting import XetDownloadProgressReporter

    reports: list[tuple[int, int | None]] = []
    bar = checkpoints._progress_bar(lambda done, total: reports.append((done, total)))

    with XetDownloadProgressReporter(
        reconstruction_desc="", total=100, log_level=logging.INFO, tqdm_class=bar
    ) as reporter:
        for completed, came in [(0, 30), (40, 60), (100, 70)]:
            reporter.update_progress(
                SimpleNamespace(
                    total_bytes=100,
                    total_bytes_completed=completed,
                    total_transfer_bytes_completed=came,
                    total_bytes_completion_rate=1.0,
                    total_transfer_bytes_completion_rate=1.0,
                )
            )

    assert reports == [(40, 100), (100, 100)]


def test_requests_during_the_download_get_its_progress(models: Path, hub: Hub) -> None:
    reached, go_on = threading.Event(), threading.Event()

    def pause(position: int) -> None:
        if position > len(hub.content) // 2:
            reached.set()
            go_on.wait(PATIENCE_S)

    hub.before_block = pause
    store = CheckpointStore(settings_for(models, hub), bundled=BUNDLED_MODELS)
    store.start()
    assert reached.wait(PATIENCE_S)
    wait_until(lambda: (store.status.progress or 0) > 0.4)

    with pytest.raises(ModelNotReadyError) as caught:
        store.checkpoint()
    assert store.status.state == "downloading"
    assert store.status.progress is not None
    assert f"{store.status.progress:.0%} done" in caught.value.message
    assert caught.value.retry_after_s
    assert not store.wait_until_decided(0)
    assert list(models.glob("*.nemo")) == []

    go_on.set()
    assert store.wait_until_decided(10)
    assert store.checkpoint().path == models / FILE


def test_requests_before_the_hub_responded_get_a_retry_after(models: Path, hub: Hub) -> None:
    hub.fault = "hanging"
    store = CheckpointStore(settings_for(models, hub), bundled=BUNDLED_MODELS)
    store.start()

    with pytest.raises(ModelNotReadyError, match=r"is being downloaded\. Try again"):
        store.checkpoint()
    assert store.status.state == "choosing"

    hub.released.set()
    assert store.wait_until_decided(10)


@pytest.mark.parametrize("takes_ranges", [True, False])
def test_an_interrupted_download_is_resumed(models: Path, hub: Hub, takes_ranges: bool) -> None:
    cuts = iter([300_000, 700_000])
    at = next(cuts)

    def cut(position: int) -> None:
        nonlocal at
        if position >= at:
            at = next(cuts, len(hub.content) + 1)
            raise CutError

    hub.before_block = cut
    hub.takes_ranges = takes_ranges

    store = start_store(settings_for(models, hub, DEMO_MODEL="never"))

    assert store.checkpoint().path.read_bytes() == hub.content
    assert len(hub.gets()) == 3
    assert (hub.gets()[1] or "").startswith("bytes=")


def test_a_download_that_is_cut_for_good_leaves_nothing(models: Path, hub: Hub) -> None:
    def cut(position: int) -> None:
        if position >= 500_000:
            raise CutError

    hub.before_block = cut

    store = start_store(settings_for(models, hub, DEMO_MODEL="never"))

    assert store.status.state == "failed"
    assert [path for path in models.rglob("*") if path.suffix in (".nemo", ".incomplete")] == []


@pytest.mark.parametrize("read_only", [False, True], ids=["models folder", "hub cache"])
def test_a_body_that_ends_early_unnoticed_is_not_kept(
    models: Path, hub: Hub, cache: Path, monkeypatch: pytest.MonkeyPatch, read_only: bool
) -> None:
    def cut(position: int) -> None:
        if position >= 500_000:
            raise CutError

    if read_only:
        forbid_writing(monkeypatch, models)
    hub.before_block = cut
    hub.declares_length = False
    clock = Clock()

    store = start_store(settings_for(models, hub, DEMO_MODEL="never"), clock=clock)
    assert store.status.state == "failed"
    assert "is not a readable .nemo file" in (store.status.error or "")

    hub.before_block = lambda _: None
    clock.now += 60
    with pytest.raises(ModelLoadError):
        store.checkpoint()
    assert store.wait_until_decided(10)
    assert store.checkpoint().path.read_bytes() == hub.content


def test_a_download_of_another_kind_of_model_is_refused_and_not_fetched_again(
    models: Path, hub: Hub
) -> None:
    hub.content = nemo(CANARY_CONFIG)
    clock = Clock()

    store = start_store(settings_for(models, hub, DEMO_MODEL="never"), clock=clock)
    assert "EncDecMultiTaskModel" in (store.status.error or "")

    clock.now += 60
    with pytest.raises(ModelLoadError):
        store.checkpoint()
    assert store.wait_until_decided(10)
    assert store.status.state == "failed"
    assert hub.gets() == [None]


def test_a_read_only_models_folder_sends_the_download_to_the_hub_cache(
    models: Path, hub: Hub, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forbid_writing(monkeypatch, models)

    store = start_store(settings_for(models, hub))

    assert store.checkpoint().path.is_relative_to(cache)
    assert store.checkpoint().name == "tiny-tdt"
    assert store.checkpoint().path.read_bytes() == hub.content
    assert list(models.iterdir()) == []


def test_a_model_in_the_hub_cache_needs_no_network(
    models: Path, hub: Hub, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forbid_writing(monkeypatch, models)
    start_store(settings_for(models, hub))

    store = start_store(settings_for(models, MODEL_ID=MODEL_ID))

    assert store.checkpoint().path.is_relative_to(cache)


def test_a_missing_models_folder_is_made(tmp_path: Path, hub: Hub) -> None:
    models = tmp_path / "not" / "yet"

    assert start_store(settings_for(models, hub)).checkpoint().path == models / FILE


# No download


REASONS: dict[Fault, str] = {
    "missing model": "Repository Not Found",
    "missing file": "Entry Not Found",
    "gated": "gated repo",
    "broken": "500 Internal Server Error",
    "hanging": "no answer from the model hub within",
}


@pytest.mark.parametrize("fault", REASONS)
def test_without_a_download_the_english_model_is_used_and_the_reason_logged(
    models: Path,
    hub: Hub,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    fault: Fault,
) -> None:
    monkeypatch.setattr(checkpoints, "_PROBE_TIMEOUT_S", 0.3 if fault == "hanging" else 10)
    hub.fault = fault

    store = start_store(settings_for(models, hub))

    assert store.checkpoint() == Checkpoint(ENGLISH_MODEL, is_demo=True)
    warnings = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    messages = [text for text in warnings if text.startswith(f"{MODEL_ID} could not be downloaded")]
    assert len(messages) == 1
    assert REASONS[fault] in messages[0]
    assert "\n" not in messages[0]
    assert any("BUNDLED MODEL whisper-tdt-small-en in use" in text for text in warnings)


@pytest.mark.parametrize("fault", [None, *REASONS])
def test_a_mirrors_password_is_in_no_log_and_no_answer(
    models: Path,
    hub: Hub,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    fault: Fault | None,
) -> None:
    monkeypatch.setattr(checkpoints, "_PROBE_TIMEOUT_S", 0.3 if fault == "hanging" else 10)
    caplog.set_level(logging.INFO, "parakeet_api")
    hub.fault = fault
    address = hub.url.replace("//", "//me:s3cret@")

    store = start_store(settings_for(models, hub, HF_ENDPOINT=address, DEMO_MODEL="never"))

    assert store.status.state == ("failed" if fault else "ready")
    assert MODEL_ID in caplog.text
    assert "s3cret" not in caplog.text
    assert "s3cret" not in str(store.status)


def test_a_closed_port_is_no_network(models: Path, hub: Hub) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{taken.getsockname()[1]}"
        store = start_store(settings_for(models, hub, HF_ENDPOINT=address))

    assert store.checkpoint().is_demo


def test_a_hub_that_never_answers_is_given_up_within_15_seconds(models: Path, hub: Hub) -> None:
    hub.fault = "hanging"

    store = start_store(settings_for(models, hub))

    assert store.checkpoint().is_demo
    assert checkpoints._PROBE_TIMEOUT_S < 15


@pytest.mark.parametrize("fault", ["gated", "missing file", "broken"])
def test_without_download_and_demo_model_a_later_request_tries_again(
    models: Path, hub: Hub, fault: Fault
) -> None:
    hub.fault = fault
    clock = Clock()
    store = start_store(settings_for(models, hub, DEMO_MODEL="never"), clock=clock)
    requests_before = len(hub.requests)

    assert store.status.state == "failed"
    with pytest.raises(ModelLoadError, match=REASONS[fault]) as caught:
        store.checkpoint()
    assert caught.value.status == 503
    assert caught.value.retry_after_s

    hub.fault = None
    clock.now += caught.value.retry_after_s - 1
    with pytest.raises(ModelLoadError):
        store.checkpoint()
    assert store.status.state == "failed"
    assert len(hub.requests) == requests_before

    clock.now += 1
    with pytest.raises(ModelLoadError):
        store.checkpoint()
    assert store.wait_until_decided(10)
    assert store.checkpoint().path == models / FILE


def test_many_requests_after_the_pause_begin_one_download(models: Path, hub: Hub) -> None:
    hub.fault = "gated"
    clock = Clock()

    def slow_clock() -> float:
        # Lets the others in where the time is looked at.
        time.sleep(0.001)
        return clock.now

    store = start_store(settings_for(models, hub, DEMO_MODEL="never"), clock=slow_clock)
    hub.fault = None
    hub.requests.clear()
    clock.now += 60
    ready = threading.Barrier(20)

    def ask() -> None:
        ready.wait(PATIENCE_S)
        with pytest.raises((ModelLoadError, ModelNotReadyError)):
            store.checkpoint()

    hub.before_block = lambda _: wait_until(lambda: not any(t.is_alive() for t in threads))
    threads = [threading.Thread(target=ask) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert store.wait_until_decided(10)
    asked = [method for method, path, _ in hub.requests if path.endswith(FILE)]
    assert asked == ["HEAD", "HEAD", "GET"]


def test_a_missing_english_model_is_a_failure_not_a_promise(models: Path, hub: Hub) -> None:
    hub.fault = "missing file"
    bundled = BundledModels(english=models / "none.nemo", grammar=DEMO_MODEL)
    store = CheckpointStore(settings_for(models, hub), bundled=bundled)
    store.start()
    assert store.wait_until_decided(10)

    assert store.status.state == "failed"


def test_hf_hub_offline_makes_no_request(models: Path, hub: Hub, tmp_path: Path) -> None:
    program = (
        "import os; from app import BUNDLED_MODELS;"
        "from parakeet_api.model.checkpoints import CheckpointStore;"
        "from parakeet_api.settings import Settings;"
        "store = CheckpointStore(Settings.from_env(os.environ), bundled=BUNDLED_MODELS);"
        "store.start(); store.wait_until_decided(20); print(store.checkpoint().is_demo)"
    )
    environ = {
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(tmp_path / "empty"),
        "HF_ENDPOINT": hub.url,
        "MODEL_ID": MODEL_ID,
        "MODELS_DIR": str(models),
    }

    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env=os.environ | environ,
        capture_output=True,
        text=True,
        check=True,
        timeout=PATIENCE_S,
    )

    assert done.stdout.strip() == "True"
    assert "offline mode is enabled" in done.stderr
    assert hub.requests == []
