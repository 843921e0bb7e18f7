"""TF-IDF: content only; an item is scored by how near its text is to the texts of a history."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.data.catalogue import Catalogue
from simulations.baselines import Histories, Progress, register


@register("tf-idf")
@dataclass
class TfIdf:
    """Cosine between an item's TF-IDF vector and the recency-weighted mean of the history's.

    Parameters
    ----------
    decay:
        Weight of each older item against the next newer one.
    ngrams:
        Longest run of words that is a term.
    """

    decay: float = 0.9
    ngrams: int = 1
    _vectors: Any = field(default=None, init=False, repr=False)

    def fit(
        self,
        train: Histories,
        catalogue: Catalogue,
        item_vectors: NDArray[np.float32] | None = None,
        seed: int = 0,
        progress: Progress | None = None,
    ) -> None:
        from sklearn.feature_extraction.text import TfidfVectorizer

        # Titles hold single digits and letters that matter ("Alien 3"), hence the token pattern.
        vectorizer = TfidfVectorizer(
            ngram_range=(1, self.ngrams), sublinear_tf=True, token_pattern=r"(?u)\b\w+\b", dtype=np.float32
        )
        self._vectors = vectorizer.fit_transform(catalogue.texts)

    def score(self, histories: Histories) -> NDArray[np.float32]:
        from scipy.sparse import csr_matrix
        from sklearn.preprocessing import normalize

        if not histories:
            return np.zeros((0, self._vectors.shape[0]), dtype=np.float32)
        weights = [self.decay ** np.arange(len(h) - 1, -1, -1, dtype=np.float64) for h in histories]
        starts = np.concatenate([[0], np.cumsum([len(h) for h in histories], dtype=np.int64)])
        recency = csr_matrix(
            (
                np.concatenate([*weights, np.zeros(0)]).astype(np.float32),
                np.concatenate([*histories, np.zeros(0, dtype=np.int32)]),
                starts,
            ),
            shape=(len(histories), self._vectors.shape[0]),
        )
        profiles = normalize(recency @ self._vectors)
        return np.asarray((profiles @ self._vectors.T).toarray(), dtype=np.float32)
