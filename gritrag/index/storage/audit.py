"""An audit: the pages of a large catalog are compared with their checksums in the background, while it is read already.

Until it has ended, an answer may rest on a damaged page of a table's index or of the words; every document, vector and
state that is returned has been compared with its own checksum in any case. Once it has found damage nothing is read any
more.
"""

import threading
from pathlib import Path

from gritrag.index.errors import DamagedIndex
from gritrag.index.storage.checksums import Stopped, check_catalog

__all__ = ["AT_ONCE_BYTES", "Audit"]

AT_ONCE_BYTES = 1 << 26
"""A catalog that is not larger is compared before it is used: that takes less than a tenth of a second."""

ATTEMPTS = 1000
"""A writer may fold its log while pages are compared; then they are compared again, for as long as it goes on."""


class Audit:
    """Compares the catalog, open as `descriptor`, from the moment it is made until it has been compared or stopped."""

    def __init__(self, catalog: Path, descriptor: int) -> None:
        self._damage: DamagedIndex | None = None
        self._stopping = threading.Event()
        self._thread = threading.Thread(
            target=self._compare, args=(catalog, descriptor), name="gritrag-audit", daemon=True
        )
        self._thread.start()

    def require_whole(self) -> None:
        """Raise the `DamagedIndex` that has been found, if any."""
        if self._damage is not None:
            raise DamagedIndex(self._damage.path, self._damage.problem)

    def wait(self) -> None:
        """Return when all pages have been compared."""
        self._thread.join()

    def stop(self) -> None:
        """End it, before the descriptor is closed."""
        self._stopping.set()
        self._thread.join()

    def _compare(self, catalog: Path, descriptor: int) -> None:
        try:
            check_catalog(catalog, descriptor, ATTEMPTS, self._stopping)
        except DamagedIndex as damage:
            self._damage = damage
        except OSError as error:  # a disk that fails
            self._damage = DamagedIndex(catalog, str(error))
        except Stopped:
            pass
