"""``ocfcluster keygen`` and ``ocfcluster key status | add | use | drop | load``."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ocfcluster.cli import options, output

if TYPE_CHECKING:
    from ocfcluster.client import Client
    from ocfcluster.wire.keys import ClusterKey

app = typer.Typer(
    help="Change the cluster's key while it runs: add the new one on every node, use it, drop the old one."
    " Example: ocfcluster key status",
    no_args_is_help=True,
)

KeyId = Annotated[
    str, typer.Argument(metavar="ID", help="A key's id, as `key status` shows it.", show_default=False)
]

Force = Annotated[
    bool,
    typer.Option("--force", help="Also where a node that seals with a key that goes is not heard any more."),
]


def keygen(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The key file to make.", show_default=False)],
    force: Annotated[
        bool, typer.Option("--force", help="Replace a file that is there: its keys are gone then.")
    ] = False,
    json: options.Json = False,
) -> None:
    """Make a key file with one new key, readable by its owner alone. Copy it to every node, by a way that nobody reads.

    Example: ocfcluster keygen /etc/ocfcluster/key
    """
    from ocfcluster.errors import ConfigurationError
    from ocfcluster.wire.keys import KEY_BYTES, ClusterKey, key_text

    key = ClusterKey(secrets.token_bytes(KEY_BYTES))
    text = key_text([key])
    if force:
        _replace(file, text, as_found=False)
    else:
        try:
            descriptor = os.open(
                file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600
            )
        except FileExistsError:
            raise ConfigurationError(
                f"{file} is there already, and what is sealed with its keys opens with no other: name another file, or "
                "say --force"
            ) from None
        try:
            _write(descriptor, text)
            _sync_directory(file)
        except BaseException:
            file.unlink(missing_ok=True)
            raise
    if json:
        output.print_json({"command": "keygen", "file": str(file), "key_id": key.id})
    else:
        output.print_line(f"{file}: key {key.id}. Copy it to every node, and name it as security.key_file")


@app.command()
def status(context: typer.Context, socket: options.Socket = None, json: options.Json = False) -> None:
    """Show which keys the nodes have that this one hears: the first of each is what it seals with.

    Example: ocfcluster key status
    """
    with options.connect(context, socket, orders=False) as client:
        document = client.status()["sealing"]
    if json:
        output.print_json(document)
    elif not document["sealed"]:
        output.print_line("nothing is sealed: this agent has no security.key_file")
    else:
        output.print_table(
            ("node", "seals with", "accepts as well"),
            (
                (str(one["node_id"]), one["key_ids"][0], ", ".join(one["key_ids"][1:]) or "-")
                if one["key_ids"]
                else (str(one["node_id"]), "?", "?")
                for one in document["members"]
            ),
        )


@app.command()
def add(
    context: typer.Context,
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="A key file with the new key.", show_default=False)
    ],
    socket: options.Socket = None,
    json: options.Json = False,
) -> None:
    """First, on every node: accept the key of FILE as well. The key file of this node's agent gets it.

    Example: ocfcluster key add new.key
    """
    from ocfcluster.agent.keys import read_key_file

    added = read_key_file(file, named="")

    def change(keys: list[ClusterKey]) -> list[ClusterKey]:
        return [*keys, *(key for key in added if key not in keys)]

    names = ", ".join(key.id for key in added)
    _change(
        context, socket, json, "add", change, f"key {names} is accepted", key_ids=[key.id for key in added]
    )


@app.command()
def use(
    context: typer.Context, key_id: KeyId, socket: options.Socket = None, json: options.Json = False
) -> None:
    """Second, on every node: seal with this key from now on. Refused while a node has not said that it has it.

    Example: ocfcluster key use 1f2e3d4c
    """

    def change(keys: list[ClusterKey]) -> list[ClusterKey]:
        return sorted(keys, key=lambda key: key.id != _known(keys, key_id))

    _change(context, socket, json, "use", change, f"key {key_id} seals", key_ids=[key_id])


@app.command()
def drop(
    context: typer.Context, key_id: KeyId, force: Force = False, socket: options.Socket = None,
    json: options.Json = False,
) -> None:  # fmt: skip
    """Third, on every node: accept this key no more. Refused while a node seals with it.

    Who has a stolen key can seal with it, and have that refused for as long as he likes: --force takes it away.

    Example: ocfcluster key drop 0a1b2c3d
    """

    def change(keys: list[ClusterKey]) -> list[ClusterKey]:
        from ocfcluster.errors import Refused

        if keys[0].id == _known(keys, key_id):
            raise Refused(f"this node seals with key {key_id}: `ocfcluster key use` another one first")
        return [key for key in keys if key.id != key_id]

    _change(context, socket, json, "drop", change, f"key {key_id} is gone", force=force, key_ids=[key_id])


@app.command()
def load(
    context: typer.Context, force: Force = False, socket: options.Socket = None, json: options.Json = False
) -> None:
    """Have the agent read its key file again, after it was changed by something else than these commands.

    Example: ocfcluster key load
    """
    with options.connect(context, socket, orders=False) as client:
        client.admin.load_keys(force=force)
        accepts = client.status()["sealing"]["accepts"]
    if json:
        output.print_json({"command": "key load", "accepts": accepts})
    else:
        output.print_line(f"key {accepts[0]} seals; accepted: {', '.join(accepts)}")


def _known(keys: list[ClusterKey], key_id: str) -> str:
    from ocfcluster.errors import InvalidArgument

    if all(key.id != key_id for key in keys):
        raise InvalidArgument(f"there is no key {key_id} in this node's key file; it has {_ids(keys)}")
    return key_id


def _ids(keys: list[ClusterKey]) -> str:
    return ", ".join(key.id for key in keys)


def _change(
    context: typer.Context, socket: str | None, json: bool, command: str,
    change: Callable[[list[ClusterKey]], list[ClusterKey]], text: str, *, force: bool = False, **document: Any,
) -> None:  # fmt: skip
    """Change the key file of the agent, and have it read again: neither, where the agent refuses it.

    ``force``: also where members are lost by it.
    """
    from ocfcluster.agent.keys import read_key_file
    from ocfcluster.errors import ConfigurationError, Refused
    from ocfcluster.wire.keys import key_text, keys_fault

    with options.connect(context, socket, orders=False) as client:
        path = Path(_key_file(client))
        before = read_key_file(path, own=False)  # root's command, the agent's file
        after = change(before)
        fault = keys_fault(after)
        if fault:
            raise ConfigurationError(f"the key file would not do: it {fault}")
        if not force:
            client.admin.check_keys([key.id for key in after])
        if [key.id for key in after] != [key.id for key in before]:
            _replace(path, key_text(after))
        try:
            client.admin.load_keys(force=force)
        except Refused:
            _replace(path, key_text(before))
            raise
        accepts = client.status()["sealing"]["accepts"]
    if json:
        output.print_json(
            {"command": f"key {command}", **document, "seals_with": accepts[0], "accepts": accepts}
        )
    else:
        output.print_line(f"{text}; sealed with {accepts[0]}, accepted: {', '.join(accepts)}")


def _key_file(client: Client) -> str:
    from ocfcluster.errors import Refused

    sealing = client.status()["sealing"]
    if not sealing["sealed"]:
        raise Refused("this agent has no security.key_file, and seals nothing")
    return str(sealing["key_file"])


def _replace(file: Path, text: str, *, as_found: bool = True) -> None:
    """Write ``file`` anew, whole or not at all: ``as_found``, with the owner and mode that it has, else 0600 and the
    user's, whoever could read what was there."""
    file = Path(os.path.realpath(file))
    temporary = file.with_name(f".{file.name}.{secrets.token_hex(8)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        if as_found:
            with suppress(FileNotFoundError):
                found = os.stat(file)
                if (found.st_uid, found.st_gid) != (os.geteuid(), os.getegid()):
                    os.fchown(descriptor, found.st_uid, found.st_gid)
                os.fchmod(descriptor, found.st_mode & 0o740)
        _write(descriptor, text)
        os.rename(temporary, file)
        _sync_directory(file)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(temporary)
        raise


def _sync_directory(file: Path) -> None:
    """Else a power cut may take the change away."""
    descriptor = os.open(file.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write(descriptor: int, text: str) -> None:
    with open(descriptor, "w", encoding="ascii") as writing:
        writing.write(text)
        writing.flush()
        os.fsync(writing.fileno())
