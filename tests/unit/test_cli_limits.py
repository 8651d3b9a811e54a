"""``ocfcluster limits``: every bound is there with a reason, and docs/limits.md is what it says."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from ocfcluster import limits
from ocfcluster.agent.config import AgentConfig
from ocfcluster.cli import main
from ocfcluster.cli.limits import CONFIGURED, all_limits, markdown

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "limits.md"


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    assert isinstance(ended.value.code, int)
    return ended.value.code


def test_every_limit_is_there_and_has_a_reason() -> None:
    named = {name for name, value in vars(limits).items() if name.isupper() and not name.startswith("_")}
    found = all_limits()
    assert {one.name for one in found} == named - {"KIB", "MIB", "MILLISECOND_NS", "SECOND_NS"}
    assert [one.name for one in found if not one.reason or not one.section] == []
    assert {one.name: one.value for one in found} == {one.name: getattr(limits, one.name) for one in found}


def test_reasons_above_and_beside_and_values_with_their_units() -> None:
    by_name = {one.name: one for one in all_limits()}
    assert by_name["FRAME_BYTES"].reason.startswith("One message on an event socket")
    assert by_name["FRAME_BYTES"].shown() == "82 KiB"
    assert by_name["STATUS_ENTRIES"].reason.startswith("clients, and subscriptions"), (
        "in parentheses, by the layout"
    )
    assert by_name["SUSPICION_NS"].shown() == "1 s"
    assert by_name["EVENT_BYTES_DEFAULT"].shown() == "1 MiB"
    assert by_name["CLIENTS"].shown() == "1024"
    assert by_name["RESERVED_PREFIX"].shown() == "oc."


def test_keys_are_keys_of_the_configuration_with_these_defaults() -> None:
    units = {"ms": limits.MILLISECOND_NS}
    for name, key in CONFIGURED.items():
        section, field = key.split(".")
        default = getattr(getattr(AgentConfig(), section), field)
        assert default * units.get(field.rsplit("_", 1)[-1], 1) == getattr(limits, name), key


def test_the_document_is_what_the_source_says() -> None:
    if os.environ.get("OCFCLUSTER_REWRITE"):
        DOCUMENT.write_text(markdown(), "utf-8")
    assert DOCUMENT.read_text("utf-8") == markdown(), "OCFCLUSTER_REWRITE=1 writes it anew"


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("limits", "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert {"section", "name", "value", "reason", "key"} == set(document[0])
    assert len(document) == len(all_limits())
    assert run("limits", "Limits.Clients") == 0
    printed = capsys.readouterr().out
    assert "CLIENTS" in printed
    assert "SUSPICION_NS" not in printed
