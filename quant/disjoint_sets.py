"""Groups of things that belong together, merged pair by pair (union-find)."""

from collections.abc import Hashable
from typing import Generic, TypeVar

T = TypeVar("T", bound=Hashable)


class DisjointSets(Generic[T]):
    """Each item starts in a group of its own; `join` merges two groups."""

    def __init__(self) -> None:
        self._parent: dict[T, T] = {}

    def find(self, item: T) -> T:
        """The representative of the item's group: the same item for every member."""
        parent = self._parent
        parent.setdefault(item, item)
        while parent[item] != item:
            parent[item] = item = parent[parent[item]]
        return item

    def join(self, item: T, other: T) -> None:
        """Merge the group of `item` into the group of `other`, which keeps its representative."""
        self._parent[self.find(item)] = self.find(other)
