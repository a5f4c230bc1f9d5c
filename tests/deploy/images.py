"""Images from our Dockerfile, and containers of them, by buildah in a storage of their own."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.deploy.base_image import build_options, make_base
from tests.leaks import keep_log
from tests.programs import need
from tests.running import wait_until_healthy

ROOT = Path(__file__).parents[2]
BASE, PRODUCTION = "localhost/base", "localhost/metrics-service"
DEVELOPMENT = """
RUN metrics-service validate >/tmp/tried && python -m pytest --version >>/tmp/tried && id --user >>/tmp/tried

FROM dependencies AS build"""
PRODUCTION_TOO = """
COPY --from=development /tmp/tried /tried
"""
"""One build makes both stages, and what they share once: the first tries itself, the second asks for what came of it."""
USER = 1001


@dataclass(frozen=True)
class Images:
    """What was built."""

    folder: Path

    def buildah(self, *words: str | Path) -> str:
        """What a command of buildah prints."""
        return subprocess.run(self.command(*words), check=True, capture_output=True, text=True).stdout.strip()

    def command(self, *words: str | Path) -> list[str]:
        """A command of buildah."""
        storage = [f"--root={self.folder / 'images'}", f"--runroot={self.folder / 'run'}", "--storage-driver=vfs"]
        return [need("buildah"), *storage, *map(str, words)]

    def build(self) -> None:
        """Build the base, and both stages on it."""
        make_base(self.folder / "base.tar")
        base = self.buildah("from", "scratch")
        self.buildah("add", base, self.folder / "base.tar", "/")
        self.buildah("commit", "--quiet", "--rm", base, BASE)
        both = self.folder / "Dockerfile"
        text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
        assert "\nFROM dependencies AS build" in text
        both.write_text(text.replace("\nFROM dependencies AS build", DEVELOPMENT) + PRODUCTION_TOO)
        options = ["--isolation=chroot", "--format=docker", f"--build-arg=BASE_IMAGE={BASE}", *build_options()]
        self.buildah("build", *options, f"--file={both}", f"--tag={PRODUCTION}", ROOT)

    def inspect(self) -> dict[str, Any]:
        """The configuration of the image, as Docker has it."""
        return dict(json.loads(self.buildah("inspect", "--type=image", PRODUCTION))["Docker"])

    @contextmanager
    def container(self) -> Iterator[Container]:
        """A container of the image."""
        name = self.buildah("from", PRODUCTION)
        try:
            yield Container(self, name, Path(self.buildah("mount", name)))
        finally:
            self.buildah("rm", name)


@dataclass(frozen=True)
class Container:
    """One container, and its root as this machine sees it."""

    images: Images
    name: str
    root: Path

    def new_volume(self) -> Path:
        """A volume, made as Docker makes a new one: like the folder that it covers."""
        made = (self.root / "var/lib/sqlite").stat()
        volume = Path(tempfile.mkdtemp(dir=self.images.folder))
        volume.chmod(made.st_mode & 0o777)
        os.chown(volume, made.st_uid, made.st_gid)
        return volume

    def command(self, words: Sequence[str], environ: Mapping[str, str], volume: Path | None = None) -> list[str]:
        """How its user has it run a command."""
        options = [f"--env={name}={value}" for name, value in environ.items()]
        if volume is not None:
            options.append(f"--volume={volume}:/var/lib/sqlite")
        return self.images.command("run", "--isolation=chroot", *options, self.name, "--", *words)

    def run(self, words: Sequence[str], environ: Mapping[str, str] | None = None, volume: Path | None = None) -> str:
        """What a command in it prints."""
        command = self.command(words, environ or {}, volume)
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=30).stdout

    def read_only(self, words: Sequence[str], environ: Mapping[str, str], volume: Path) -> list[str]:
        """How a command is run on its root, of which nothing but the volume and /tmp can be written, and without any capability."""
        mounts = (
            f"mount --bind {self.root} {self.root} && mount --bind {volume} {self.root}/var/lib/sqlite"
            f" && mount -t tmpfs tmpfs {self.root}/tmp && mount --rbind /proc {self.root}/proc"  # noqa: S108
            f" && mount --rbind /dev {self.root}/dev && mount -o remount,bind,ro {self.root}"
        )
        variables = [f"{name}={value}" for name, value in environ.items()]
        user = [f"--reuid={USER}", f"--regid={USER}", "--clear-groups", "--no-new-privs", "--bounding-set=-all"]
        # setpriv is the base image's own: it is called inside.
        called = ["chroot", str(self.root), "/usr/bin/setpriv", *user, "/usr/bin/env", "-i", *variables, *words]
        return [need("unshare", "util-linux"), "--mount", "sh", "-c", f'{mounts} && exec "$@"', "sh", *called]


@contextmanager
def started(command: Sequence[str], base: str, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The service that this command runs, from when it is healthy; all of its processes are killed at the end."""
    with log.open("wb") as written:
        running = subprocess.Popen(command, stdout=written, stderr=written, start_new_session=True)
    try:
        wait_until_healthy(base, running, log)
        yield running
    finally:
        if running.poll() is None:
            os.killpg(running.pid, signal.SIGKILL)
        running.wait()
        keep_log(log, 0)


@contextmanager
def built(folder: Path) -> Iterator[Images]:
    """Both stages, built; their files are deleted at the end, since they are many."""
    images = Images(folder)
    try:
        images.build()
        yield images
    except subprocess.CalledProcessError as error:
        raise AssertionError(f"{' '.join(error.cmd)}: {error.stdout}{error.stderr}") from error
    finally:
        subprocess.run(images.command("rm", "--all"), check=False, capture_output=True)
        for each in ("images", "run"):
            shutil.rmtree(folder / each, ignore_errors=True)
