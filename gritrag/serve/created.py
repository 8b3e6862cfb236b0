"""Vector stores that clients create: indexes in a folder of the server, with records of whose they are."""

import shutil
import tempfile
import time
import uuid
from collections.abc import Callable
from pathlib import Path

from pydantic import BaseModel

from gritrag.index.index import Index
from gritrag.serve.errors import ApiError
from gritrag.serve.tenants import Tenant, Tenants

MOST_STORES = 1000


class Created(BaseModel):
    """The record of a vector store."""

    id: str
    name: str
    created_at: int
    owner: str
    metadata: dict[str, str] = {}


class CreatedStores:
    """All vector stores that were created here.

    Args:
        folder: where they are kept; a temporary one, which `close` removes, where None.
        indexes: of the server, by name; they are added to and taken from it.
        open_index: opens or makes an index: its name and folder.
        tenants: who get the right to what they own.
    """

    def __init__(
        self,
        folder: Path | None,
        indexes: dict[str, Index],
        open_index: Callable[[str, Path], Index],
        tenants: Tenants,
    ) -> None:
        self._temporary = tempfile.TemporaryDirectory(prefix="gritrag-stores-") if folder is None else None
        self._folder = Path(self._temporary.name) if self._temporary else folder
        assert self._folder is not None
        self._indexes, self._open, self._tenants = indexes, open_index, tenants
        self._records: dict[str, Created] = {}
        self._folder.mkdir(parents=True, exist_ok=True)
        for path in sorted(self._folder.glob("vs_*.json")):
            self._take(Created.model_validate_json(path.read_text("utf-8")))

    def close(self) -> None:
        """Indexes have been closed already."""
        if self._temporary:
            self._temporary.cleanup()

    def created(self, id: str) -> Created | None:
        """The record of a store that was created here; None for an index that the server was started with."""
        return self._records.get(id)

    def create(self, tenant: Tenant, name: str, metadata: dict[str, str]) -> str:
        """A new store; returns its id.

        Raises:
            ApiError: 409 if there are too many.
        """
        if len(self._records) >= MOST_STORES:
            raise ApiError(409, "there are too many vector stores; delete some first", "too_many")
        id = f"vs_{uuid.uuid4().hex}"
        record = Created(id=id, name=name, created_at=int(time.time()), owner=tenant.name, metadata=metadata)
        try:
            self._take(record)
            self._write(record)
        except (OSError, ValueError):  # a full disk, or a name that is no text: what has no record would stay for ever
            self._drop(record)
            raise
        return id

    def change(self, id: str, name: str | None, metadata: dict[str, str] | None) -> None:
        record = self._own(id)
        changed = {"name": record.name if name is None else name}
        self._write(
            record.model_copy(update={**changed, "metadata": record.metadata if metadata is None else metadata})
        )

    def delete(self, id: str) -> None:
        """The index with all it holds."""
        self._drop(self._own(id))

    def _drop(self, record: Created) -> None:
        assert self._folder is not None
        self._records.pop(record.id, None)
        if (index := self._indexes.pop(record.id, None)) is not None:
            index.close()
        self._rights(record, given=False)
        (self._folder / f"{record.id}.json").unlink(missing_ok=True)
        shutil.rmtree(self._folder / record.id, ignore_errors=True)

    def _own(self, id: str) -> Created:
        if id not in self._records:
            raise ApiError(403, f"{id!r} was not created here, so it is not changed here", "not_allowed", "store")
        return self._records[id]

    def _take(self, record: Created) -> None:
        assert self._folder is not None
        self._indexes[record.id] = self._open(record.id, self._folder / record.id)
        self._records[record.id] = record
        self._rights(record, given=True)

    def _rights(self, record: Created, given: bool) -> None:
        tenant = self._tenants.named(record.owner)
        if tenant is not None:
            for names in (tenant.read, tenant.write):
                (names.add if given else names.discard)(record.id)

    def _write(self, record: Created) -> None:
        assert self._folder is not None
        path = self._folder / f"{record.id}.json"
        part = path.with_suffix(".part")
        part.write_text(record.model_dump_json(), "utf-8")
        part.replace(path)
        self._records[record.id] = record
