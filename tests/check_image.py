"""Build the image and run it, without Docker: buildah builds, unshare and chroot run.

    python tests/check_image.py [--storage DIR] [--base IMAGE] [-- OPTION...]

OPTIONs are for `buildah build`. By hand, as root, on Debian 12 with buildah and debootstrap; it
takes ten minutes and 10 GB. Each check starts the image's entrypoint as process 1 of its own
process namespace, on a read-only root, with the capabilities that Docker grants. `--storage` keeps
images and layers for the next run; the environment's STORAGE_DRIVER chooses how they are stored
(overlay where the kernel has it; vfs copies every layer).
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hub import FILE, MODEL_ID, Hub

ROOT = Path(__file__).resolve().parent.parent
SPEECH = ROOT / "samples" / "speech"
PEOPLE = ROOT / "samples" / "people"
ENGLISH_MODEL = ROOT / "samples" / "english-model" / "whisper-tdt-small-en.nemo"
GRAMMAR_MODEL = ROOT / "tests" / "grammar-model" / "parakeet-tdt-demo-en.nemo"
BASE = "localhost/python:3.11-bookworm"
LIBRARIES = "ca-certificates,libreadline8,libsqlite3-0"
"""What Python needs beside the smallest Debian."""
TAG = "localhost/parakeet-api:check"
GRACE_PERIOD_S = 60.0
"""docker-compose.yml's stop_grace_period."""
STOP_GRACE_S = 20.0
"""STOP_GRACE_SECONDS, if it is not set."""
FETCHING = ("choosing", "downloading")
START_S = 90.0
"""Seconds in which a container answers, on a busy machine."""
CAPABILITIES = (
    "-all,+chown,+dac_override,+fowner,+fsetid,+kill,+setgid,+setuid,+setpcap"
    ",+net_bind_service,+net_raw,+sys_chroot,+mknod,+audit_write,+setfcap"
)
"""Docker's, as setpriv names them."""

_INSIDE = """
set -eu
root=$1 user=$2 folder=$3 capabilities=$4
shift 4
mount --bind "$root" "$root"
while [ "$1" != -- ]; do
    mount --bind "$2" "$root$1"
    [ "$3" = rw ] || mount -o remount,bind,ro "$root$1"
    shift 3
done
shift
mount -t tmpfs tmpfs "$root/tmp"
mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
mount -o remount,bind,ro "$root"
exec setpriv --bounding-set "$capabilities" --inh-caps -all \
    chroot --userspec "$user" --groups '' "$root" env -i -C "$folder" "$@"
"""
"""What turns into process 1. After the four: TARGET SOURCE ro|rw of each volume, `--`, command."""


def buildah(storage: Path, *arguments: str | Path) -> str:
    """Run buildah on a storage of its own; give what it printed."""
    environ = {"BUILDAH_ISOLATION": "chroot", **os.environ}
    stored = ("--root", storage / "layers", "--runroot", storage / "run")
    command: list[str | Path] = ["buildah", *stored, *arguments]
    done = subprocess.run(
        command, check=True, env=environ, stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    return done.stdout.strip()


def make_base(storage: Path) -> None:
    """Make what stands for python:3.11-slim-bookworm, once: Debian and the Python that runs this.

    Debian's own Python, 3.11.2, is too old: NeMo cannot unpack a checkpoint with it.
    """
    if BASE in buildah(storage, "images", "--format", "{{.Name}}:{{.Tag}}").splitlines():
        return
    prefix = Path(sys.base_prefix)
    if prefix == Path("/usr") or sys.version_info[:2] != (3, 11):
        sys.exit("run this with a Python 3.11 that was built into a folder of its own, or --base")
    container = buildah(storage, "from", "scratch")
    root = Path(buildah(storage, "mount", container))
    options = ("--variant=minbase", f"--include={LIBRARIES}")
    subprocess.run(["debootstrap", *options, "bookworm", str(root)], check=True)
    library = Path("lib/python3.11")
    skipped = shutil.ignore_patterns("site-packages", "test", "__pycache__")
    shutil.copytree(prefix / library, root / "usr/local" / library, ignore=skipped)
    for path in (prefix / "bin/python3.11", *prefix.glob("lib/libpython3*.so*")):
        shutil.copy(path, root / "usr/local" / path.relative_to(prefix), follow_symlinks=False)
    for name in ("python", "python3"):
        (root / "usr/local/bin" / name).symlink_to("python3.11")
    for step in (["ldconfig"], ["python3", "-m", "ensurepip"]):
        subprocess.run(["chroot", str(root), *step], check=True)
    buildah(storage, "commit", "--rm", container, BASE)


@dataclass(frozen=True)
class Image:
    """A built image, mounted."""

    root: Path
    config: Mapping[str, Any]
    """Docker's: Env, Entrypoint, Cmd, Healthcheck, ..."""

    @property
    def environ(self) -> dict[str, str]:
        return dict(entry.split("=", 1) for entry in self.config["Env"])


@contextlib.contextmanager
def built_image(storage: Path, *, base: str, options: Sequence[str]) -> Iterator[Image]:
    """Build the Dockerfile and mount the outcome."""
    if base == BASE:
        make_base(storage)
    arguments = ["--layers", "--format", "docker", "--build-arg", f"BASE_IMAGE={base}", "-t", TAG]
    print(buildah(storage, "build", *arguments, *options, ROOT))
    inspected = json.loads(buildah(storage, "inspect", "--type", "image", TAG))
    container = buildah(storage, "from", TAG)
    try:
        root = Path(buildah(storage, "mount", container))
        yield Image(root, inspected["Docker"]["config"])
    finally:
        buildah(storage, "rm", container)


@dataclass(frozen=True)
class Volume:
    """A folder of the host, mounted."""

    source: Path
    target: str
    mode: str = "rw"


class Container:
    """A running container; host and container share the network."""

    def __init__(
        self,
        image: Image,
        *,
        log: Path,
        user: str = "0:0",
        environ: Mapping[str, str],
        volumes: Sequence[Volume] = (),
    ) -> None:
        self.port = _free_port()
        self.log = log
        given = image.environ | {"PORT": str(self.port)} | dict(environ)
        entries = [f"{name}={value}" for name, value in given.items()]
        mounts = [part for v in volumes for part in (v.target, str(v.source), v.mode)]
        command: list[str] = [
            *("unshare", "--mount", "--pid", "--fork", "sh", "-c", _INSIDE, "sh"),
            *(str(image.root), _numeric(user), image.config["WorkingDir"], CAPABILITIES),
            *(*mounts, "--"),
            *(*entries, *image.config["Entrypoint"], *image.config["Cmd"]),
        ]
        with log.open("wb") as output:
            self._unshare = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        self._healthcheck: list[str] = [
            *("chroot", str(image.root), "env", "-i", *entries),
            *image.config["Healthcheck"]["Test"][1:],
        ]

    def process(self) -> int:
        """Return the number, outside, of the container's process 1."""
        children = Path(f"/proc/{self._unshare.pid}/task/{self._unshare.pid}/children")
        return int(children.read_text().split()[0])

    def status(self, key: str) -> str:
        """Read a line of process 1's /proc/PID/status."""
        for line in Path(f"/proc/{self.process()}/status").read_text().splitlines():
            name, _, value = line.partition(":")
            if name == key:
                return " ".join(value.split())
        raise KeyError(key)

    def is_healthy(self) -> bool:
        """Run the image's HEALTHCHECK."""
        return subprocess.run(self._healthcheck, check=False, capture_output=True).returncode == 0

    def wait_until_healthy(self) -> None:
        """Wait for the HEALTHCHECK to pass; fail if the container ends before."""
        deadline = time.monotonic() + START_S
        while not self.is_healthy():
            assert self._unshare.poll() is None, f"it ended:\n{self.log_text()}"
            assert time.monotonic() < deadline, f"not healthy:\n{self.log_text()}"
            time.sleep(0.2)

    def stop(self) -> float:
        """Send SIGTERM to process 1, as `docker stop`; give the seconds until its end."""
        started = time.monotonic()
        os.kill(self.process(), signal.SIGTERM)
        self._unshare.wait(timeout=GRACE_PERIOD_S)
        return time.monotonic() - started

    def exit_code(self) -> int:
        """Wait for the end."""
        return self._unshare.wait(timeout=START_S)

    def log_text(self) -> str:
        return self.log.read_text(errors="replace")

    def get(self, path: str) -> Any:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        connection.request("GET", path)
        return json.load(connection.getresponse())

    def transcribe(self, recording: Path) -> tuple[int, str]:
        """Post a recording; give the answer's status and body."""
        boundary = uuid.uuid4().hex
        head = (
            f'--{boundary}\r\nContent-Disposition: form-data; name="file";'
            f' filename="{recording.name}"\r\n\r\n'
        )
        body = head.encode() + recording.read_bytes() + f"\r\n--{boundary}--\r\n".encode()
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=300)
        kind = {"Content-Type": f"multipart/form-data; boundary={boundary}"}
        connection.request("POST", "/v1/audio/transcriptions", body, kind)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()

    def kill(self) -> None:
        """End it. Not by unshare's --kill-child: who changes user is no longer told of a death."""
        if self._unshare.poll() is None:
            os.kill(self.process(), signal.SIGKILL)
        self._unshare.wait()


def _numeric(user: str) -> str:
    """Mark ids as numbers for chroot, which would look for users of that name."""
    return ":".join(f"+{part}" for part in user.split(":"))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Bench:
    """What a check has at hand: the image, and folders that are gone afterwards."""

    def __init__(self, image: Image, folder: Path) -> None:
        self.image = image
        self.folder = folder

    def volume(
        self, target: str, *, owner: int = 0, mode: int = 0o755, access: str = "rw"
    ) -> Volume:
        """Make a folder of the host to mount."""
        source = self.folder / Path(target).name
        source.mkdir()
        source.chmod(mode)
        os.chown(source, owner, owner)
        return Volume(source, target, access)

    @contextlib.contextmanager
    def running(self, *volumes: Volume, user: str = "0:0", **environ: str) -> Iterator[Container]:
        """Run a container with the small English model, unless the variables say something else."""
        container = Container(
            self.image,
            log=self.folder / "log",
            user=user,
            environ={"DEMO_MODEL": "always"} | environ,
            volumes=volumes,
        )
        try:
            yield container
        finally:
            container.kill()

    def uploads(self, **options: Any) -> Volume:
        return self.volume("/app/temp_uploads", **options)


Check = Callable[[Bench], str]
CHECKS: dict[str, Check] = {}


def check(sentence: str) -> Callable[[Check], Check]:
    """Register a check: a function that gives what it saw, or raises."""

    def register(function: Check) -> Check:
        CHECKS[sentence] = function
        return function

    return register


@check("the image holds the server, the small English model and nothing of the rest")
def holds_what_it_should(bench: Bench) -> str:
    app = bench.image.root / "app"
    expected = {
        *("app.py", "entrypoint.sh", "requirements.txt", "constraints.txt", "LICENSE"),
        *("parakeet_api", "static", "templates", "samples", "models", "temp_uploads"),
    }
    assert {entry.name for entry in app.iterdir()} == expected
    assert [path for path in (app / "samples").rglob("*") if path.is_file()] == [
        app / "samples" / "english-model" / ENGLISH_MODEL.name
    ]
    assert not list(app.rglob("__pycache__"))
    assert not (bench.image.root / "etc/pip.conf").exists()
    size = subprocess.run(
        ["du", "-sxm", bench.image.root], check=True, capture_output=True, text=True
    ).stdout.split()[0]
    return f"{size} MB"


@check("as root, the default user 1000 runs it, without capabilities, as process 1")
def default_user(bench: Bench) -> str:
    with bench.running(bench.uploads()) as container:
        container.wait_until_healthy()
        _assert_runs_as(container, 1000, 1000)
        assert container.status("NSpid").split()[1] == "1"
        assert container.status("Name") == "python"
        assert container.status("CapEff") == "0" * 16
        took_s = container.stop()
        assert container.exit_code() == 0, container.exit_code()
    return f"SIGTERM while idle: ended in {took_s:.1f} s with 0"


@check("PUID=1001 is given a folder of root's, and says so")
def takes_folder_over(bench: Bench) -> str:
    uploads = bench.uploads()
    (uploads.source / "left").touch()
    with bench.running(uploads, PUID="1001", PGID="1002") as container:
        container.wait_until_healthy()
        _assert_runs_as(container, 1001, 1002)
        for path in (uploads.source, uploads.source / "left"):
            assert (path.stat().st_uid, path.stat().st_gid) == (1001, 1002), path
        message = "/app/temp_uploads belonged to 0:0, now it belongs to 1001:1002"
        assert message in container.log_text(), container.log_text()
    return message


@check("a folder that the user can write to keeps its owner")
def leaves_folder_alone(bench: Bench) -> str:
    uploads = bench.uploads(owner=4321, mode=0o777)
    with bench.running(uploads, PUID="1001") as container:
        container.wait_until_healthy()
        assert uploads.source.stat().st_uid == 4321
        assert "belonged" not in container.log_text()
    return ""


@check("PUID=0 stays root")
def root(bench: Bench) -> str:
    with bench.running(bench.uploads(), PUID="0", PGID="0") as container:
        container.wait_until_healthy()
        _assert_runs_as(container, 0, 0)
    return ""


@check("PUID=33, a user whom the image knows already")
def known_user(bench: Bench) -> str:
    assert "www-data:x:33:33" in (bench.image.root / "etc/passwd").read_text()
    with bench.running(bench.uploads(), PUID="33", PGID="33") as container:
        container.wait_until_healthy()
        _assert_runs_as(container, 33, 33)
    return ""


@check("--user 1234:0 transcribes, as on OpenShift, with a folder of group 0")
def plain_user(bench: Bench) -> str:
    uploads = bench.uploads(mode=0o775)
    with bench.running(uploads, user="1234:0") as container:
        container.wait_until_healthy()
        _assert_runs_as(container, 1234, 0)
        _assert_transcribes(container)
        assert uploads.source.stat().st_uid == 0
    return ""


@check("a real transcription over HTTP, root and models read-only")
def transcribes(bench: Bench) -> str:
    uploads, models = bench.uploads(), bench.volume("/app/models", access="ro")
    model = models.source / "parakeet-tdt-0.6b-v2.nemo"
    model.write_bytes(ENGLISH_MODEL.read_bytes())
    with bench.running(uploads, models, DEMO_MODEL="never") as container:
        container.wait_until_healthy()
        text = _assert_transcribes(container)
        assert container.get("/health")["model"]["name"] == "parakeet-tdt-0.6b-v2"
        _assert_no_uploads(uploads)
    assert stat.S_IMODE(models.source.stat().st_mode) == 0o755
    assert (models.source.stat().st_uid, model.stat().st_uid) == (0, 0)
    return text


@check("with read-only models a download goes to the cache volume")
def downloads(bench: Bench) -> str:
    volumes = (
        bench.uploads(),
        bench.volume("/app/models", access="ro"),
        bench.volume("/cache"),
    )
    hub = Hub(ENGLISH_MODEL.read_bytes())
    try:
        with bench.running(
            *volumes, DEMO_MODEL="never", HF_ENDPOINT=hub.url, MODEL_ID=MODEL_ID
        ) as container:
            container.wait_until_healthy()
            deadline = time.monotonic() + START_S
            while (model := container.get("/health")["model"])["state"] in FETCHING:
                assert time.monotonic() < deadline, container.log_text()
                time.sleep(0.2)
            assert model["error"] is None, model["error"]
            _assert_transcribes(container)
    finally:
        hub.close()
    found = [path for path in volumes[2].source.rglob(FILE) if path.is_file()]
    assert len(found) == 1, found
    return str(found[0].relative_to(volumes[2].source))


@check("an unwritable folder for uploads stops a plain user, who is told what to do")
def unwritable_for_user(bench: Bench) -> str:
    with bench.running(bench.uploads(), user="1234:1234") as container:
        assert container.exit_code() == 73, container.exit_code()
        log = container.log_text()
    assert "chown 1234:1234" in log, log
    return log.strip()


@check("a read-only folder for uploads stops root's PUID, who is told what to do")
def unwritable_for_root(bench: Bench) -> str:
    with bench.running(bench.uploads(access="ro")) as container:
        assert container.exit_code() == 73, container.exit_code()
        assert "chown 1000:1000" in container.log_text(), container.log_text()
    return ""


@check("PUID=me is refused by name")
def bad_id(bench: Bench) -> str:
    with bench.running(bench.uploads(), PUID="me") as container:
        assert container.exit_code() == 2, container.exit_code()
        assert "PUID='me' is not the number of a user or group" in container.log_text()
    return ""


@check("SIGTERM in the middle of a 12-minute recording lets it end, within the grace period")
def stops_in_the_middle(bench: Bench) -> str:
    uploads, models = bench.uploads(), bench.volume("/app/models", access="ro")
    # The model that loses no word of this recording.
    (models.source / "tests.nemo").write_bytes(GRAMMAR_MODEL.read_bytes())
    answers: list[tuple[int, str] | Exception] = []
    with bench.running(uploads, models, DEMO_MODEL="never") as container:
        container.wait_until_healthy()
        assert container.transcribe(SPEECH / "clip-001.flac")[0] == 200

        def post() -> None:
            try:
                answers.append(container.transcribe(SPEECH / "long-dense.ogg"))
            except (OSError, http.client.HTTPException) as error:
                answers.append(error)

        client = threading.Thread(target=post)
        client.start()
        deadline = time.monotonic() + START_S
        while not container.get("/health")["queue"]["waiting_chunks"]:
            assert time.monotonic() < deadline, "the recording was never worked on"
        took_s = container.stop()
        code = container.exit_code()
        client.join()
        assert code == 0, f"exit code {code}:\n{container.log_text()}"
    _assert_no_uploads(uploads)
    (answer,) = answers
    if isinstance(answer, Exception) or answer[0] != 200:
        assert took_s >= STOP_GRACE_S, f"cut off after {took_s:.1f} s: {answer!r}"
        return f"cut off after {took_s:.1f} s with {code}, on an overloaded machine: {answer!r}"
    recognized = json.loads(answer[1])["text"].split()
    sentences = json.loads((SPEECH / "long-dense.json").read_text(encoding="utf-8"))
    reference = " ".join(sentence["text"] for sentence in sentences).split()
    assert abs(len(recognized) - len(reference)) < 0.02 * len(reference), (
        f"{len(recognized)} of {len(reference)} words"
    )
    return f"ended in {took_s:.1f} s with {code}; the client got all {len(recognized)} words"


def _assert_runs_as(container: Container, uid: int, gid: int) -> None:
    assert container.status("Uid") == " ".join([str(uid)] * 4), container.status("Uid")
    assert container.status("Gid") == " ".join([str(gid)] * 4), container.status("Gid")
    assert container.status("Groups") in ("", str(gid)), container.status("Groups")


def _assert_no_uploads(volume: Volume) -> None:
    # The folder "data" is that of the jobs, and stays.
    left = [path.name for path in volume.source.iterdir() if path.name != "data"]
    assert not left, f"left in {volume.target}: {left}"


def _assert_transcribes(container: Container) -> str:
    status, body = container.transcribe(PEOPLE / "england.flac")
    assert status == 200, f"{status} {body}\n{container.log_text()}"
    text: str = json.loads(body)["text"]
    assert text == "It is not cultivated in England being principally confined to the east.", text
    return text


def run_checks(image: Image, *, folder: Path) -> int:
    """Run every check; print a table; give how many failed."""
    failures = 0
    for number, (sentence, function) in enumerate(CHECKS.items()):
        place = folder / str(number)
        place.mkdir()
        # A container's user must be able to reach what is mounted.
        place.chmod(0o755)
        started = time.monotonic()
        try:
            result = function(Bench(image, place))
        # Whatever it is, the others are still of interest.
        except Exception:
            failures += 1
            print(f"FAILED  {sentence}\n{traceback.format_exc()}", flush=True)
        else:
            elapsed_s = time.monotonic() - started
            print(f"ok      {sentence} ({elapsed_s:.0f} s)", flush=True)
            if result:
                print(f"        {result}", flush=True)
    print(f"{len(CHECKS) - failures} of {len(CHECKS)} checks passed")
    return failures


def main() -> int:
    """Build, check, report."""
    parser = argparse.ArgumentParser(description="Build the image and run it, without Docker.")
    parser.add_argument("--storage", type=Path, metavar="DIR")
    parser.add_argument("--base", default=BASE, metavar="IMAGE")
    parser.add_argument("options", nargs="*", metavar="OPTION", help="for buildah build, after --")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch, contextlib.ExitStack() as stack:
        Path(scratch).chmod(0o755)
        storage = options.storage
        if storage is None:
            storage = Path(scratch) / "storage"
            stack.callback(lambda: subprocess.run(["rm", "-rf", storage], check=False))
        storage.mkdir(parents=True, exist_ok=True)
        image = stack.enter_context(
            built_image(storage.absolute(), base=options.base, options=options.options)
        )
        checks = Path(scratch) / "checks"
        checks.mkdir()
        return 1 if run_checks(image, folder=checks) else 0


if __name__ == "__main__":
    sys.exit(main())
