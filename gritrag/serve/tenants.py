"""Tenants: who may read and write which index, by API keys of which only hashes are kept.

The file of keys is YAML:

    - name: alice
      key_sha256: 2bd806c97f0e00af1a1fc3328fa763a9269723c8db8fac4f93af71db186d6e90
      read: [docs, wiki]
      write: [docs]
      create: true
"""

import hashlib
import hmac
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

EVERY = "*"
"""Stands for every index."""

OWNER = "owner"
"""Who has the one key that may do everything."""


class KeyEntry(BaseModel):
    """One entry of the file of keys.

    Args:
        name: of the tenant; entries of one name are one tenant.
        key_sha256: SHA-256 of the key, in hexadecimal: ``printf %s KEY | sha256sum``.
        key: the key itself, where the file is kept as safe as the keys are.
        read, write: names of indexes, or ``*``. Who may write may read.
        create: whether it may create vector stores.
    """

    model_config = ConfigDict(extra="forbid")

    name: str = Field(min_length=1)
    key_sha256: str = Field("", pattern="^([0-9a-f]{64})?$")
    key: str = ""
    read: list[str] = []
    write: list[str] = []
    create: bool = False

    @property
    def digest(self) -> bytes:
        return bytes.fromhex(self.key_sha256) if self.key_sha256 else hashlib.sha256(self.key.encode()).digest()


@dataclass
class Tenant:
    """Who asks.

    Args:
        name: shown in logs only.
        read, write: names of indexes, or `EVERY`.
        can_create: vector stores.
        salt: of this tenant and this process, in the address of everything that is kept of its requests.
    """

    name: str
    read: set[str]
    write: set[str]
    can_create: bool = False
    salt: bytes = field(default_factory=lambda: secrets.token_bytes(32), repr=False)

    def may_read(self, index: str) -> bool:
        return bool({index, EVERY} & (self.read | self.write))

    def may_write(self, index: str) -> bool:
        return bool({index, EVERY} & self.write)


class Tenants:
    """All keys of a server. Without any, whoever reaches the server may do everything."""

    def __init__(self, entries: Sequence[KeyEntry] = ()) -> None:
        self._by_name: dict[str, Tenant] = {}
        self._keys: list[tuple[bytes, Tenant]] = []
        for entry in entries:
            tenant = self._by_name.setdefault(entry.name, Tenant(entry.name, set(), set()))
            tenant.read |= set(entry.read)
            tenant.write |= set(entry.write)
            tenant.can_create |= entry.create
            self._keys.append((entry.digest, tenant))
        self._anyone = None if entries else Tenant("anyone", {EVERY}, {EVERY}, True)

    @property
    def are_open(self) -> bool:
        """Whether no key is asked for."""
        return self._anyone is not None

    def named(self, name: str) -> Tenant | None:
        """The tenant of a name, if there is one."""
        return self._anyone if self._anyone is not None and self._anyone.name == name else self._by_name.get(name)

    def of_key(self, key: str) -> Tenant | None:
        """The tenant of a key; None if nobody has it. Every key is compared, each in constant time."""
        if self._anyone is not None:
            return self._anyone
        digest, found = hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest(), None
        for known, tenant in self._keys:
            if hmac.compare_digest(known, digest):
                found = tenant
        return found


def load_tenants(path: Path | None, key: str = "") -> Tenants:
    """From a file of keys, and one key that may do everything.

    Raises:
        ValueError: a file that cannot be read, is no list of entries, names no key for one, or one key for two; what it
            says of keys is not repeated.
    """
    entries: list[KeyEntry] = []
    if path is not None:
        try:
            entries = TypeAdapter(list[KeyEntry]).validate_python(yaml.safe_load(path.read_text("utf-8")))
        except (OSError, yaml.YAMLError) as error:
            raise ValueError(
                f"cannot read the keys in {path}: {type(error).__name__}; see gritrag serve --help"
            ) from None
        except ValidationError as error:
            first = error.errors(include_input=False, include_url=False)[0]
            place = ".".join(map(str, first["loc"]))
            raise ValueError(f"{path}, entry {place or 'list'}: {first['msg']}") from None
        for number, entry in enumerate(entries):
            if bool(entry.key) == bool(entry.key_sha256):
                raise ValueError(f"{path}, entry {number} ({entry.name}): give either key_sha256 or key")
            if entry.name == OWNER and key:
                raise ValueError(f"{path}, entry {number}: {OWNER!r} is who has GRITRAG_API_KEY; give another name")
        if not entries:
            raise ValueError(f"{path} holds no keys; leave --keys out to serve without keys on this machine only")
    if key:
        entries.append(KeyEntry(name=OWNER, key=key, read=[EVERY], write=[EVERY], create=True))
    names = dict[bytes, str]()
    for entry in entries:
        if (other := names.setdefault(entry.digest, entry.name)) != entry.name:
            raise ValueError(f"{other} and {entry.name} have the same key: give each a key of its own")
    return Tenants(entries)
