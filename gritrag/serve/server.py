"""The server: model, indexes and engine put together, and run until a signal asks it to stop."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

import uvicorn

from gritrag.index.index import Index
from gritrag.model.grit import GritModel
from gritrag.serve.app import create_app
from gritrag.serve.bridge import EngineReader
from gritrag.serve.created import CreatedStores
from gritrag.serve.engine import Engine
from gritrag.serve.limits import Limits
from gritrag.serve.memory import Memory
from gritrag.serve.service import Service
from gritrag.serve.tenants import Tenants
from gritrag.serve.uploads import Uploads

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


@dataclass(frozen=True)
class Served:
    """An index to serve: the name that clients know it by, and its folder."""

    name: str
    folder: Path

    @classmethod
    def of(cls, argument: str) -> "Served":
        """From ``FOLDER`` or ``NAME=FOLDER``.

        Raises:
            ValueError: a name that is none.
        """
        name, found, folder = argument.partition("=")
        path = Path(folder if found else argument)
        name = name if found else path.resolve().name
        if not NAME.fullmatch(name):
            raise ValueError(
                f"{name!r} is no name for an index: use letters, digits, '-', '_' and '.', and write NAME=FOLDER "
                "where the folder is called otherwise"
            )
        return cls(name, path)


def make_service(
    model: GritModel,
    model_id: str,
    served: Sequence[Served],
    tenants: Tenants,
    limits: Limits,
    reads_only: bool = False,
    data: Path | None = None,
) -> Service:
    """A service over indexes, those that there are not made anew; its engine has not been started.

    Args:
        model_id: what clients call the model.
        reads_only: no index is written but those that clients create.
        data: folder of uploaded files and created vector stores; a temporary one where None.

    Raises:
        ValueError: two indexes of one name, or one that cannot be opened with this model.
    """
    names = [each.name for each in served]
    if len(set(names)) < len(names):
        raise ValueError(f"two indexes would be called alike ({', '.join(names)}); write NAME=FOLDER")
    engine = Engine(model, limits, Memory(limits.memory_bytes))
    indexes: dict[str, Index] = {}

    def opened(name: str, folder: Path, reads_only: bool = False) -> Index:
        """The index in a folder, made if there is none and it may be written."""
        reader = EngineReader(engine, f"index {name}", limits.seconds)
        if not reads_only and not (folder / "manifest.json").exists():
            return Index.create(folder, model=reader)
        return Index.open(folder, model=reader, mode="r" if reads_only else "rw")

    try:
        for each in served:
            indexes[each.name] = opened(each.name, each.folder, reads_only)
        stores = CreatedStores(None if data is None else data / "stores", indexes, opened, tenants)
        uploads = Uploads(None if data is None else data / "files", limits.files_bytes)
    except ValueError:
        for index in indexes.values():
            index.close()
        raise
    return Service(model, model_id, indexes, engine, tenants, limits, uploads, stores)


def is_local(host: str) -> bool:
    """Whether only this machine reaches a server that listens there."""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def run(service: Service, host: str, port: int) -> None:
    """Serve until SIGINT or SIGTERM; what was accepted by then is finished.

    Raises:
        ValueError: without keys, on an address that others reach.
    """
    if service.tenants.are_open and not is_local(host):
        raise ValueError(
            f"{host} can be reached from other machines: give API keys (--keys FILE, or GRITRAG_API_KEY), or serve on "
            "127.0.0.1"
        )
    config = uvicorn.Config(
        create_app(service),
        host=host,
        port=port,
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=round(service.limits.seconds) + 1,
    )
    uvicorn.Server(config).run()
