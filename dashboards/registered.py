"""Which models have an alias in MLflow's registry, such as ``champion``: whoever serves a model finds it by that."""

from __future__ import annotations

from typing import Any

ADDRESS = "winnow.address"  # tag of a version


class Registered:
    """The aliases of one registry; what a version is of is asked once. Whoever deletes a model there may make another of its
    name, so now and then one begins anew."""

    def __init__(self) -> None:
        self._addresses: dict[tuple[str, str], str] = {}

    def aliases(self, client: Any) -> dict[str, tuple[str, ...]]:
        """By the address of an artifact its aliases: ``champion of quickstart, version 3``."""
        found: dict[str, tuple[str, ...]] = {}
        token = None
        while True:
            models = client.search_registered_models(max_results=1000, page_token=token)
            for model in models:
                for alias, version in sorted(model.aliases.items()):
                    if address := self._address(client, model.name, str(version)):
                        found[address] = (*found.get(address, ()), f"{alias} of {model.name}, version {version}")
            if not (token := models.token):
                return found

    def _address(self, client: Any, name: str, version: str) -> str:
        """Of the artifact that a version is; empty of one that is none of Winnow's."""
        if (name, version) not in self._addresses:
            self._addresses[name, version] = client.get_model_version(name, version).tags.get(ADDRESS, "")
        return self._addresses[name, version]
