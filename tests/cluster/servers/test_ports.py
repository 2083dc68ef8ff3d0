"""A home keeps its ports; what stands insists on them, what runs for a moment goes where there is room."""

from __future__ import annotations

import json
import os
import socket

import pytest

from cluster.servers.ports import FIRST, LOOPBACK, PortTaken, ports_for


def test_ports_stay_the_same_and_follow_from_the_path_alone(tmp_path):
    first = {kind: ports_for(tmp_path, kind, fixed=True) for kind in ("ray", "prefect", "mlflow")}
    ports = [port for found in first.values() for port in found.values()]
    assert len(ports) == len(set(ports)) == 5 and all(FIRST <= port < 32768 for port in ports)  # none the kernel deals out
    assert {kind: ports_for(tmp_path, kind, fixed=True) for kind in first} == first
    (tmp_path / "ports.json").unlink()
    assert {kind: ports_for(tmp_path, kind, fixed=False) for kind in first} == first


def test_a_taken_port_is_named_with_who_has_it_and_where_to_choose_another(tmp_path):
    port = ports_for(tmp_path, "mlflow", fixed=True)["mlflow"]
    with socket.create_server((LOOPBACK, port)):
        with pytest.raises(PortTaken) as refused:
            ports_for(tmp_path, "mlflow", fixed=True)
        text = str(refused.value)
        assert f"port {port}, where mlflow answers in this home, is taken by process {os.getpid()} (" in text
        assert f'write another port for "mlflow" in {tmp_path}/ports.json' in text and "\n" not in text
        elsewhere = ports_for(tmp_path, "mlflow", fixed=False)["mlflow"]
    assert elsewhere != port and ports_for(tmp_path, "mlflow", fixed=True) == {"mlflow": port}  # and is not kept


def test_a_port_that_was_lost_to_somebody_faster_is_not_tried_again(tmp_path):
    port = ports_for(tmp_path, "prefect", fixed=False)["prefect"]
    assert ports_for(tmp_path, "prefect", fixed=False, avoided=[port])["prefect"] != port


def test_a_port_somebody_wrote_is_the_port(tmp_path):
    with socket.create_server((LOOPBACK, 0)) as free:
        port = free.getsockname()[1]
    (tmp_path / "ports.json").write_text(json.dumps({"prefect": port}))
    assert ports_for(tmp_path, "prefect", fixed=True) == {"prefect": port}


@pytest.mark.parametrize("text", ["{", "[]", '{"ray": "x"}', '{"ray": 70000}', '{"ray": 5000, "mlflow": 5000}'])
def test_a_file_of_ports_that_makes_no_sense_is_one_line(tmp_path, text):
    (tmp_path / "ports.json").write_text(text)
    with pytest.raises(ValueError, match=r"ports.json: should be one JSON object of names and different ports") as refused:
        ports_for(tmp_path, "ray", fixed=True)
    assert "\n" not in str(refused.value)
