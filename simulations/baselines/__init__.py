"""Reference recommenders: what the field would use if all users' data lay in one place.

They stand in the same table as the federated model, under the same protocol. Each is one file of this folder whose class
registers itself under a name; a new file is a new reference and touches no old code. All have the same two verbs,
:meth:`Reference.fit` on the training part and :meth:`Reference.score` of any histories, users of the training part or not.

They see raw interactions of all silos, without any privacy: simulations only.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from common.data.catalogue import Catalogue
from common.errors import ConfigError

Histories = Sequence[NDArray[np.int32]]
"""One array of item positions per user, oldest first, as :meth:`common.data.interactions.Interactions.histories` gives them."""

Progress = Callable[[int, int], None]
"""Called with ``(steps done, steps in all)`` while fitting."""


class Reference(Protocol):
    """What every reference recommender can do; options are keyword arguments of its constructor."""

    def fit(
        self,
        train: Histories,
        catalogue: Catalogue,
        item_vectors: NDArray[np.float32] | None = None,
        seed: int = 0,
        progress: Progress | None = None,
    ) -> None:
        """Learn from the training part.

        Parameters
        ----------
        train:
            Histories without the validation and the test item.
        catalogue:
            What can be recommended, ``n_items`` items.
        item_vectors:
            ``(n_items, dim)`` text vectors for references that want them; none of the built-in ones does.
        seed:
            Of everything that is random.
        progress:
            Called now and then by references that take more than a moment.
        """
        ...

    def score(self, histories: Histories) -> NDArray[np.float32]:
        """``(len(histories), n_items)`` scores, higher is better; seen items are *not* removed.

        A row depends on its own history and the fit only, so a caller may pass users in blocks of any size.
        """
        ...


_registry: dict[str, Callable[..., Reference]] = {}
_Class = TypeVar("_Class", bound=Callable[..., Any])


def register(name: str) -> Callable[[_Class], _Class]:
    """Make a class available as ``name``; its module must be called the same, with ``_`` for ``-``."""

    def decorate(reference: _Class) -> _Class:
        if name in _registry:
            raise ValueError(f"two reference recommenders are called {name!r}")
        _registry[name] = reference
        return reference

    return decorate


def names() -> tuple[str, ...]:
    """Every reference there is, without importing any."""
    return tuple(sorted(m.name.replace("_", "-") for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_")))


def create(name: str, **options: object) -> Reference:
    """A fresh, unfitted reference recommender.

    Raises
    ------
    ConfigError
        If there is none of that name.
    """
    if name not in names():
        raise ConfigError(f"unknown reference recommender {name!r}; there are: {', '.join(names())}")
    importlib.import_module(f"{__name__}.{name.replace('-', '_')}")
    return _registry[name](**options)
